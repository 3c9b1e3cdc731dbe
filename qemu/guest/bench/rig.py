"""The driver rig: what ring, stack and socket carry when no guest and no QEMU slow them down.

A second process plays the guest (rig_guest.py). This one serves its card, and one thread moves bytes through a socket.
Beside it, in the same run, stands the cheapest thing the same bytes could have cost: copying them twice.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from qemu.guest.bench.farend import FarEnd, sink, source
from stack import Network, Stack
from vhost_user import NetDevice, Server

GATEWAY: Final = "10.0.2.2"
GUEST: Final = "10.0.2.15"
_GRACE_SECONDS: Final = 20.0
#: What is copied at a time, and the memory it moves through: a superframe, and a window of them.
_PIECE_BYTES: Final = 65483
_WINDOW_BYTES: Final = 4 << 20


class RigError(RuntimeError):
    """The process that plays the guest failed; the message is what it said."""


@contextmanager
def served_card(*, offload: bool = True) -> Iterator[tuple[Stack, Path]]:
    """A Stack with a card that listens on a socket file for a front-end."""
    with tempfile.TemporaryDirectory(prefix="guestwire-rig-") as directory, Network() as network, Server() as server:
        network.start()
        stack = network.stack("gw")
        device = NetDevice(mac=bytes.fromhex("52540077aa01"), offload=offload)
        stack.add_interface(device, addresses=[f"{GATEWAY}/24"])
        path = Path(directory) / "net"
        server.listen(device, path=path)
        yield stack, path


def guest_to_stack(seconds: float, *, frame: int = 65483, offload: bool = True) -> float:
    """TCP from the driver through ring, stack and socket, Gb/s."""
    with served_card(offload=offload) as (stack, path), FarEnd(stack.socket, GATEWAY, sink) as far:
        _play_guest(path, "send", far.port, seconds, frame)
    return far.transfers[0].gbps


def stack_to_guest(seconds: float) -> float:
    """TCP from a socket through stack and ring to the driver, Gb/s as it received them."""
    with served_card() as (stack, path), FarEnd(stack.socket, GATEWAY, source(seconds)) as far:
        said = _play_guest(path, "recv", far.port, seconds, 0)
    return float(said)


def two_copies(seconds: float) -> float:
    """Copying the same bytes twice through the same window, Gb/s."""
    data = memoryview(bytes(range(256)) * (_WINDOW_BYTES // 256))
    slab = memoryview(bytearray(_WINDOW_BYTES))
    user = memoryview(bytearray(256 << 10))
    places = range(0, _WINDOW_BYTES - _PIECE_BYTES, _PIECE_BYTES)
    moved, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        for at in places:
            slab[at : at + _PIECE_BYTES] = data[at : at + _PIECE_BYTES]
            user[:_PIECE_BYTES] = slab[at : at + _PIECE_BYTES]
            moved += _PIECE_BYTES
    return moved * 8e-9 / (now - began)


def _play_guest(path: Path, mode: str, port: int, seconds: float, frame: int) -> str:
    command = [sys.executable, "-m", "qemu.guest.bench.rig_guest", str(path), mode, str(port), str(seconds), str(frame)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RigError(f"the driver rig did not end {_GRACE_SECONDS:g} s after its time") from error
    if done.returncode:
        raise RigError(f"the driver rig failed: {done.stderr.strip()}")
    return done.stdout.strip()
