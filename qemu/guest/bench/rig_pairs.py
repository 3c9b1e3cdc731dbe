"""Queue pairs of one card served by one thread or by two: the part of it that is C, without a driver beside it.

On two cores a driver that runs at the same time would take one of them. So the rings are filled first, here, and what
is timed is emptying them: copying each frame out and verifying its checksum, which is what the threads share out.
"""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path
from typing import Final

from qemu.guest.bench.rig import GATEWAY, GUEST, GUEST_MAC, RigError
from stack.testing import builders
from vhost_user import NetDevice, Server
from vhost_user.driver import NetDriver

PAIRS: Final = 2
_PAYLOAD: Final = 60000
_MTU: Final = 65520
#: Frames in each ring: 2 MiB, so that they and their copies are not all in the cache.
_FRAMES: Final = 32


def pairs_in(seconds: float, *, workers: int) -> float:
    """Gb/s out of two rings of long frames whose checksums the guest did not spare us; `workers` help the caller."""
    with tempfile.TemporaryDirectory(prefix="guestwire-rig-") as directory, Server() as server:
        device = NetDevice(mtu=_MTU, queues=PAIRS, workers=workers)
        path = Path(directory) / "net"
        server.listen(device, path=path)
        try:
            with NetDriver(str(path), queues=PAIRS) as driver:
                burst = driver.burst([_frame()] * _FRAMES)
                device.receive(1)
                moved, spent, deadline = 0, 0.0, time.perf_counter() + seconds
                while time.perf_counter() < deadline:
                    waiting = sum(burst.send(driver.tx(queue)) for queue in range(PAIRS))
                    began = time.perf_counter()
                    while waiting:
                        frames = device.receive(256)
                        if not frames:
                            raise RigError(f"{waiting} frames did not arrive: {device.drops}")
                        waiting -= len(frames)
                        moved += sum(len(frame[0]) for frame in frames)
                    spent += time.perf_counter() - began
        finally:
            device.close()
    return moved * 8e-9 / spent


def _frame() -> bytes:
    guest, gateway = socket.inet_aton(GUEST), socket.inet_aton(GATEWAY)
    segment = builders.tcp(guest, gateway, 40000, 9000, payload=bytes(range(250)) * (_PAYLOAD // 250))
    packet = builders.ipv4(guest, gateway, 6, segment)
    return builders.ethernet(b"\x52\x54\x00\x77\xaa\x01", GUEST_MAC, builders.ETHERTYPE_IPV4, packet)
