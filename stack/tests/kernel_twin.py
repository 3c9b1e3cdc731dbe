"""What tests of socket semantics run on: the kernel's `socket` module and a Stack's, behind one face."""

from __future__ import annotations

import fcntl
import os
import select
import socket as _kernel
from collections.abc import Callable, Iterator
from typing import Any
from weakref import finalize

import pytest

from stack import Network
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP

LOOPBACK = "127.0.0.1"
ASKED = IN | OUT | RDHUP
# In numbers: what is tested includes what the names of a module stand for.
INET, INET6, UNIX, NETLINK, VSOCK = 2, 10, 1, 16, 40
STREAM, DGRAM, RAW, SEQPACKET = 1, 2, 3, 5


def _unix_urgent() -> bool:
    one, other = _kernel.socketpair()
    with one, other:
        try:
            return one.send(b"!", _kernel.MSG_OOB) == 1
        except OSError:
            return False


#: The kernel's Unix streams have urgent data (CONFIG_AF_UNIX_OOB, Linux 5.15).
UNIX_URGENT = _unix_urgent()


class World:
    """What differs between the two: the module, and how to ask for poll bits."""

    def __init__(self, module: Any, network: Network | None) -> None:
        self.socket = module
        self.network = network

    def bits(self, sock: Any) -> int:
        """Poll bits among IN, OUT, RDHUP, ERR, HUP once they have settled."""
        if self.network is not None:
            return int(sock._sock.poll()) & (ASKED | ERR | HUP)
        poll = select.poll()
        poll.register(sock, ASKED)
        return sum(bits for _, bits in poll.poll(0))

    def settle(self, sock: Any, wanted: int) -> int:
        """The bits as soon as all of `wanted` are there (the kernel's loopback is quick, not instant)."""
        if self.network is None:
            self.until(lambda: self.bits(sock) & wanted == wanted)
        return self.bits(sock)

    @staticmethod
    def until(done: Callable[[], bool]) -> None:
        """Come back as soon as `done`. On a busy machine the kernel's loopback may take its time, ten seconds at most:
        what is asserted afterwards then tells what was missing.
        """
        for _ in range(10_000):
            if done():
                return
            select.select([], [], [], 0.001)

    def delivered(self) -> None:
        """Come back when what was sent before is with its receivers or lost: loopback keeps its order."""
        if self.network is None:
            with self.socket.socket(type=_kernel.SOCK_DGRAM) as last:
                last.bind((LOOPBACK, 0))
                last.settimeout(10)
                last.sendto(b"", last.getsockname())
                last.recv(1)

    def listener(self, backlog: int = 5) -> Any:
        sock = self.socket.socket()
        sock.bind((LOOPBACK, 0))
        sock.listen(backlog)
        return sock

    def pair(self) -> tuple[Any, Any]:
        """A connected client and the accepted socket."""
        with self.listener() as listener:
            client = self.socket.socket()
            client.settimeout(10)
            client.connect(listener.getsockname())
            served, _ = listener.accept()
        served.settimeout(10)
        return client, served

    def refused_address(self) -> tuple[str, int]:
        """Where nobody listens. The port is held for as long as this World, so that nobody else gets it meanwhile,
        neither to listen nor to connect from; with SO_REUSEADDR it can be bound to.
        """
        sock = self.socket.socket()
        sock.setsockopt(_kernel.SOL_SOCKET, _kernel.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, 0))
        finalize(self, sock.close)
        address: tuple[str, int] = sock.getsockname()
        return address

    def deaf_address(self, host: str = LOOPBACK) -> tuple[str, int]:
        """Where datagrams are refused: a socket holds the port for as long as this World, connected to itself."""
        family = _kernel.AF_INET6 if ":" in host else _kernel.AF_INET
        sock = self.socket.socket(family, _kernel.SOCK_DGRAM)
        sock.bind((host, 0))
        sock.connect(sock.getsockname())
        finalize(self, sock.close)
        address: tuple[str, int] = sock.getsockname()
        return address


def twin(which: str) -> Iterator[World]:
    """For a fixture with the parameters "kernel" and "ours"."""
    if which == "kernel":
        yield World(_kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


class Calls:
    """The system calls on descriptors that sockets share with files: the kernel's, or ours."""

    def __init__(self, source: Any) -> None:
        self.read: Callable[[int, int], bytes] = source.read
        self.write: Callable[[int, bytes], int] = source.write
        self.readv: Callable[..., int] = source.readv
        self.writev: Callable[..., int] = source.writev
        self.sendfile: Callable[..., int] = source.sendfile
        self.ioctl: Callable[..., Any] = fcntl.ioctl if source is os else source.ioctl


def code(call: Any, *args: Any) -> int | None:
    """The errno a call raises."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what the test compares
        call(*args)
    return caught.value.errno


def has_ipv6_loopback() -> bool:
    """Whether this machine's kernel has ::1: plain containers often run without IPv6."""
    with _kernel.socket(_kernel.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True
