"""Small frames on the driver rig: rings, the card, UDP and the switch, counted in frames a second.

Each row serves its cards here while rig_player.py plays the guests in a process of its own, until it is killed. What
is counted is what arrived. `Measured.cpu` is the rate per second of CPU time of this process: on a machine that does
other things it is the steadier of the two, and what a change to the code can be judged by.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from struct import Struct
from typing import Any, Final

from qemu.guest.bench.figure import Measured
from qemu.guest.bench.rig import GATEWAY, GUEST, GUEST_MAC, RigError, run_beside, served_card
from stack import Network
from stack.link import Switch
from vhost_user import NetDevice, Server

_RECORD: Final = Struct("=II")
_BURST: Final = 256
_BURST_BYTES: Final = 512 << 10
_START_SECONDS: Final = 10.0
#: Looks in vain before a reader sleeps.
_LOOKS: Final = 100
UDP_PORT: Final = 9000
SOL_UDP: Final = 17
UDP_GRO: Final = 104
MSG_WAITFORONE: Final = 0x10000
#: Messages one recvmmsg asks for.
_MESSAGES: Final = 1024
#: How often a loop looks at the clock: every so many bursts.
_CLOCK_EVERY: Final = 16


def ring_in(seconds: float, *, size: int = 64) -> Measured:
    """Frames from a ring's bursts, each one's length and first byte read by a Python loop."""
    with _card() as (device, path), player("flood", path, size):
        ring = _started(device).rings[1]
        unpack = _RECORD.iter_unpack

        def read() -> int:
            burst = ring.pop(_BURST, _BURST_BYTES)
            if not burst.count:
                return 0
            view = burst.view
            total = seen = 0
            for offset, length in unpack(burst.records):
                total += length
                seen |= view[offset]
            return burst.count

        return _count(read, lambda: _rest(device), seconds)


def card_in(seconds: float, *, size: int = 64) -> Measured:
    """The same from `NetDevice.receive`: frames with their offload facts, every header judged."""
    with _card() as (device, path), player("flood", path, size):
        _started(device)

        def read() -> int:
            burst = device.receive(_BURST)
            total = seen = 0
            for frame in burst:
                data = frame[0]
                total += len(data)
                seen |= data[0]
            return len(burst)

        return _count(read, lambda: _rest(device), seconds)


def ring_out(seconds: float, *, size: int = 64) -> Measured:
    """Frames to the guest in bursts of 64 through `NetDevice.transmit`."""
    with _card() as (device, path), player("drain", path):
        _started(device)
        burst = [((bytes(12) + b"\x88\xb5" + bytes(size - 14),), 0, 0, 0, 0, 0, 0)] * 64
        return _count(lambda: device.transmit(burst), lambda: _rest(device), seconds)


def udp_in(seconds: float, *, size: int = 64, coalesce: bool = False, batch: bool = False) -> Measured:
    """Datagrams in frames of `size` bytes from the driver to a socket: driver, ring, stack, `recv_into`.

    With `coalesce` the socket asked for bursts (UDP_GRO) and reads several datagrams a call; with `batch` it takes what
    waits by `recvmmsg`, and looks at each.
    """
    with served_card() as (stack, path), stack.socket.socket(2, stack.socket.SOCK_DGRAM) as sock:
        sock.bind((GATEWAY, UDP_PORT))
        if coalesce:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        sock.settimeout(_START_SECONDS)
        payload = size - 42
        room = memoryview(bytearray(1 << 16))
        with player("udp", path, UDP_PORT, size):
            sock.recv_into(room)

            def read() -> int:
                count: int = sock.recv_into(room)
                return count // payload

            def read_many() -> int:
                messages = sock.recvmmsg(_MESSAGES, size, 0, MSG_WAITFORONE)
                return sum(len(data) == payload for data, _, _, _ in messages)

            if batch:
                return _count(read_many, lambda: None, seconds)
            return _count(read, lambda: None, seconds, every=256)


def udp_out(seconds: float, *, size: int = 64, batch: bool = False) -> Measured:
    """Datagrams in frames of `size` bytes from a socket's `send` to the driver, which empties its ring.

    With `batch` 64 at a time by `sendmmsg`.
    """
    with served_card() as (stack, path), stack.socket.socket(2, stack.socket.SOCK_DGRAM) as sock:
        sock.settimeout(_START_SECONDS)
        data = bytes(size - 42)
        with player("drain", path):
            interface = stack.netns.interfaces["eth0"]
            with stack.network.lock:
                interface.neighbours.set_permanent(socket.inet_aton(GUEST), GUEST_MAC)
            _await(lambda: interface.device.carrier)
            sock.connect((GUEST, UDP_PORT))

            def send() -> int:
                sock.send(data)
                return 1

            def send_many() -> int:
                return len(sock.sendmmsg(burst))

            if batch:
                burst = [data] * 64
                return _count(send_many, lambda: None, seconds)
            return _count(send, lambda: None, seconds, every=256)


def switching(seconds: float, *, size: int = 64) -> Measured:
    """Frames from one guest to another through a learning switch of ours, as the other one received them."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guestwire-rig-")))
        network = stack.enter_context(Network())
        server = stack.enter_context(Server())
        network.start()
        switch = Switch(network.scheduler)
        for name in ("a", "b"):
            device = NetDevice()
            stack.callback(device.close)
            with network.lock:
                port = switch.attach(device, name)
                network.attach_locked(port)
                network.finish()
            stack.callback(network.detach, port)
            server.listen(device, path=place / name)
        said, cpu = run_beside("rig_player", "switch", place / "a", place / "b", size, seconds)
    frames, wall = map(float, said.split())
    return Measured(frames / wall, frames / cpu)


# -- the other process ------------------------------------------------------------------------------------------------


@contextmanager
def player(mode: str, *words: object) -> Iterator[None]:
    """rig_player.py in a process of its own, for as long as the block lasts."""
    command = [sys.executable, "-m", "qemu.guest.bench.rig_player", mode, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield
        except RigError as error:
            process.kill()
            said = process.stderr.read().decode() if process.stderr else ""
            raise RigError(f"{error}: {said.strip()}") from error
        finally:
            process.kill()


@contextmanager
def _card() -> Iterator[tuple[NetDevice, Path]]:
    """A card on a socket file that no stack is behind."""
    with tempfile.TemporaryDirectory(prefix="guestwire-rig-") as directory, Server() as server:
        device = NetDevice()
        path = Path(directory) / "net"
        server.listen(device, path=path)
        try:
            yield device, path
        finally:
            device.close()


def _started(device: NetDevice) -> NetDevice:
    def running() -> bool:
        device.receive(1)
        return device.carrier

    _await(running)
    return device


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RigError("the driver rig did not start")
        time.sleep(0.001)


def _rest(device: NetDevice) -> None:
    """Sleep until there is something in or room, as whoever drives a card does."""
    poller = select.poll()
    poller.register(device.fileno(), select.POLLIN)
    if not device.arm():
        poller.poll(100)
    device.suppress()


def _count(work: Callable[[], int], rest: Callable[[], Any], seconds: float, *, every: int = _CLOCK_EVERY) -> Measured:
    """What `work` counts a second, its first tenth left out; `rest` when it has had nothing for a while."""
    _loop(work, rest, seconds / 10, every)
    cpu, began = time.process_time(), time.perf_counter()
    done = _loop(work, rest, seconds, every)
    wall = time.perf_counter() - began
    return Measured(done / wall, done / max(time.process_time() - cpu, 1e-9))


def _loop(work: Callable[[], int], rest: Callable[[], Any], seconds: float, every: int) -> int:
    done = vain = 0
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        for _ in range(every):
            count = work()
            if count:
                done += count
                vain = 0
            elif (vain := vain + 1) > _LOOKS:
                rest()
                vain = 0
    return done
