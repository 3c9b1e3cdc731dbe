"""A gateway between real sockets of the host's kernel and a modelled guest, run turn by turn in virtual time."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stack.scheduler import Scheduler
from stack.services.vsock_gateway import VsockGateway
from stack.testing.vsock import ModelGuest, ModelStream, ScriptedGuest
from stack.vsock import VsockEngine
from stack.vsock.engine import MEMORY_LIMIT


class GatewayRig:
    """`path`: the hybrid Unix socket. `guest` answers by itself unless `scripted`."""

    def __init__(
        self,
        directory: Path,
        *,
        scripted: bool = False,
        guest_buffer: int = 1 << 18,
        memory_limit: int = MEMORY_LIMIT,
        **options: Any,
    ) -> None:
        self.path = str(directory / "v")
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler, memory_limit=memory_limit)
        self.transport = ScriptedGuest()
        self.guest = ModelGuest(self.transport, buffer=guest_buffer)
        self.scripted = scripted
        self.port = self.engine.add_guest(self.transport)
        self.gateway = VsockGateway(self.port, uds_path=self.path, **options)
        self._open: list[socket.socket] = []

    def settle(self, most: int = 2000) -> int:
        """Turns until nobody has anything to do; how many."""
        for turn in range(most):
            worked = self.scheduler.run_timers()
            worked += self.port.service(64)
            worked += self.gateway.hosts.service(64)
            worked += self.scheduler.run_deferred()
            if not self.scripted:
                worked += self.guest.run()
            if not worked:
                return turn
        raise AssertionError(f"still busy after {most} turns")

    def wait(self, duration: int) -> None:
        self.scheduler.now += duration
        self.settle()

    def client(self, say: bytes = b"", address: Any = None) -> socket.socket:
        """A program of the host, connected to the hybrid socket (or `address`)."""
        sock = socket.socket(socket.AF_UNIX if address is None or isinstance(address, str) else socket.AF_INET)
        self._open.append(sock)
        sock.connect(self.path if address is None else address)
        sock.setblocking(False)
        if say:
            sock.sendall(say)
        self.settle()
        return sock

    def server(self, port: int, backlog: int = 16) -> socket.socket:
        """A program of the host that listens for what the guest connects to `port`."""
        sock = socket.socket(socket.AF_UNIX)
        self._open.append(sock)
        sock.bind(f"{self.path}_{port}")
        sock.listen(backlog)
        sock.setblocking(False)
        return sock

    def accept(self, server: socket.socket) -> socket.socket:
        sock, _ = server.accept()
        sock.setblocking(False)
        self._open.append(sock)
        return sock

    @property
    def stream(self) -> ModelStream:
        """The guest's one connection."""
        (stream,) = self.guest.streams.values()
        return stream

    def close(self) -> None:
        self.gateway.close()
        self.engine.close()
        for sock in self._open:
            sock.close()


@contextmanager
def gateway_rig(directory: Path, **options: Any) -> Iterator[GatewayRig]:
    """Closed at the end, and no rule of the protocol broken towards the guest."""
    rig = GatewayRig(directory, **options)
    try:
        yield rig
        assert rig.guest.broken == []
    finally:
        rig.close()


def said(sock: socket.socket) -> bytes | None:
    """Everything that can be read now; None: nothing, and the end has not come."""
    data = b""
    try:
        while piece := sock.recv(1 << 20):
            data += piece
    except BlockingIOError:
        return data or None
    except ConnectionResetError:
        return data + b"<reset>"
    return data + b"<end>"
