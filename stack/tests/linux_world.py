"""Our stack on one end of a cable, Linux's on the other, in real time: for tests that hold one against the other.

The kernel's node is a network namespace made here (`stack.testing.kernel_host`). Between the two there may be a bad
line of ours, because not every kernel has netem: the TAP is then a port of a switch, and our Stack sits behind an
impaired cable. Where no namespace may be made, the tests say so in one line and are skipped.
"""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import pytest

from stack import Network
from stack.link import Impairment, Switch, cable
from stack.link.device import Offload
from stack.link.offload import ALL_OFFLOADS
from stack.testing.kernel_host import KernelHost, NoKernelHostError

LINUX: Final = {4: "10.9.0.2", 6: "fd09::2"}
OURS: Final = {4: "10.9.0.1", 6: "fd09::1"}
FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
TIMEOUT: Final = 20.0


class LinuxWorld:
    """`gw` is our Stack, `linux` the kernel's node. A context manager."""

    def __init__(
        self,
        *,
        to_linux: Impairment | None = None,
        to_us: Impairment | None = None,
        offload: bool = True,
        mtu: int = 1500,
    ) -> None:
        try:
            self.linux = KernelHost(f"{LINUX[4]}/24", f"{LINUX[6]}/64", offload=offload, mtu=mtu)
        except NoKernelHostError as error:
            pytest.skip(str(error))
        try:
            self._build(to_linux, to_us, offload, mtu)
        except BaseException:
            self.linux.close()
            raise
        self._sockets: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def _build(self, to_linux: Impairment | None, to_us: Impairment | None, offload: bool, mtu: int) -> None:
        self.network = Network(rng=random.Random(7))
        self.gw = self.network.stack("gw")
        addresses = [f"{OURS[4]}/24", f"{OURS[6]}/64"]
        if to_linux is None and to_us is None:
            self.gw.add_interface(self.linux.tap, addresses=addresses, mtu=mtu)
        else:
            with self.network.lock:
                switch = Switch(self.network.scheduler)
                near, far = cable(
                    self.network.scheduler,
                    a_to_b=to_linux or Impairment(),
                    b_to_a=to_us or Impairment(),
                    mtu=mtu,
                    offloads=ALL_OFFLOADS if offload else Offload.NONE,
                )
                for device in (far, self.linux.tap):
                    self.network.attach_locked(switch.attach(device))
            self.gw.add_interface(near, addresses=addresses, mtu=mtu)
        self.network.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.join()
        finally:
            for sock in self._sockets:
                sock.close()
            self.network.close()
            self.linux.close()

    def spawn(self, work: Callable[..., object], *args: object) -> None:
        """Run `work` in a thread; `join` raises what it raised."""

        def body() -> None:
            try:
                work(*args)
            except Exception as error:  # noqa: BLE001  (raised again by `join`, in the test's own thread)
                self._errors.append(error)

        thread = threading.Thread(target=body, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT)
            if thread.is_alive():
                self._errors.append(TimeoutError("a side of the transfer is still at it"))
        self._threads.clear()
        if self._errors:
            raise self._errors[0]

    def module(self, side: str) -> Any:
        """What makes sockets on that side, "ours" or "linux"."""
        return self.gw.socket if side == "ours" else self.linux

    def socket(self, side: str, version: int, kind: int = socket.SOCK_STREAM) -> Any:
        """A socket on that side, closed at the end at the latest."""
        sock = self.module(side).socket(FAMILY[version], kind)
        sock.settimeout(TIMEOUT)
        self._sockets.append(sock)
        return sock

    def listener(self, side: str, version: int, *, backlog: int = 16) -> Any:
        sock = self.socket(side, version)
        sock.bind(((OURS if side == "ours" else LINUX)[version], 0))
        sock.listen(backlog)
        return sock

    def connect(self, side: str, address: Any, version: int, *, prepare: Callable[[Any], object] | None = None) -> Any:
        """A socket on `side` connected to `address`, which is on the other."""
        sock = self.socket(side, version)
        if prepare is not None:
            prepare(sock)
        sock.connect(address[:2])
        return sock

    def pair(self, client: str, version: int, *, prepare: Callable[[Any], object] | None = None) -> tuple[Any, Any]:
        """(client, served): connected, the client on the side named."""
        server = "linux" if client == "ours" else "ours"
        with self.listener(server, version) as listener:
            mine = self.connect(client, listener.getsockname(), version, prepare=prepare)
            served, _ = listener.accept()
        served.settimeout(TIMEOUT)
        self._sockets.append(served)
        return mine, served


def send_all(sock: Any, size: int, seed: int) -> str:
    """`size` pseudo-random bytes in writes of all sizes, then the end; returns their digest."""
    rng = random.Random(seed)
    block = rng.randbytes(1 << 20)
    digest = hashlib.blake2s()
    left = size
    while left:
        start = rng.randrange(1 << 19)
        piece = block[start : start + min(left, rng.choice((1, 700, 1448, 20_000, 300_000, 300_000)))]
        digest.update(piece)
        sock.sendall(piece)
        left -= len(piece)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def receive_all(sock: Any) -> tuple[int, str]:
    """Everything up to the end: how many bytes, and their digest."""
    digest = hashlib.blake2s()
    size = 0
    while data := sock.recv(1 << 18):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def send_until(sock: Any, error: type[OSError]) -> int:
    """Send until it raises `error`; how many bytes were taken."""
    sent = 0
    while True:
        try:
            sent += sock.send(b"z" * 65536)
        except error:
            return sent
