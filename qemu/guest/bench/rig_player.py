"""Plays guests for the frame rows of the driver rig (rig_frames.py): floods and drains.

python -m qemu.guest.bench.rig_player flood SOCKET SIZE           frames of SIZE bytes, until killed
python -m qemu.guest.bench.rig_player udp SOCKET PORT SIZE        datagrams in such frames, until killed
python -m qemu.guest.bench.rig_player drain SOCKET                     empty the ring, until killed
python -m qemu.guest.bench.rig_player switch A B SIZE SECONDS     from a guest on A to one on B; prints "go" when
                                                                  frames arrive, and what arrived, and in how long
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

from qemu.guest.bench.rig import GUEST_MAC
from qemu.guest.bench.rig_guest import Host
from stack.link.device import NEEDS_CSUM
from stack.testing import builders
from vhost_user.driver import NetDriver, NetFrame
from vhost_user.driver.ring import DriverRing

_RING: Final = 1024
#: As many as a guest's TCP or a packet generator hands its driver at a time.
_BATCH: Final = 64
#: Looks at a full ring before sleeping until half of it is free.
_LOOKS: Final = 300
_EXPERIMENTAL: Final = 0x88B5  #: IEEE 802's "local experimental EtherType 1"
_OTHER_MAC: Final = bytes.fromhex("525400776602")
_UDP_AT: Final = 34
_PROTO_UDP: Final = 17


class Flood:
    """A burst sent again and again."""

    def __init__(self, ring: DriverRing, frames: list[NetFrame]) -> None:
        self.ring = ring
        self.burst = NetDriver.burst(frames)
        self.vain = 0

    def more(self) -> int:
        """Send what there is room for. Sleeps when there has been none for a while."""
        sent = self.burst.send(self.ring)
        if sent:
            self.vain = 0
        elif (vain := self.vain + 1) > _LOOKS:
            self.ring.wait(0.1, after=self.ring.in_flight // 2)
            self.vain = 0
        else:
            self.vain = vain
        return sent


def _driver(path: str) -> NetDriver:
    return NetDriver(path, tx_size=_RING, rx_size=_RING)


def _plain(destination: bytes, source: bytes, size: int) -> NetFrame:
    return NetFrame(builders.ethernet(destination, source, _EXPERIMENTAL, bytes(size - 14)))


def flood(path: str, size: str) -> None:
    with _driver(path) as driver:
        source = Flood(driver.tx(), [_plain(_OTHER_MAC, GUEST_MAC, int(size))] * _BATCH)
        while True:
            source.more()


def udp(path: str, port: str, size: str) -> None:
    with _driver(path) as driver:
        host = Host(driver)
        payload = bytes(int(size) - 42)
        checksum = builders.partial_checksum(host.address, host.peer, _PROTO_UDP, 8 + len(payload))
        datagram = builders.udp(host.address, host.peer, 9000, int(port), payload, checksum=checksum)
        packet = builders.ipv4(host.address, host.peer, _PROTO_UDP, datagram)
        frame = builders.ethernet(host.mac, GUEST_MAC, builders.ETHERTYPE_IPV4, packet)
        source = Flood(driver.tx(), [NetFrame(frame, NEEDS_CSUM, csum_start=_UDP_AT, csum_offset=6)] * _BATCH)
        while True:
            source.more()


def drain(path: str) -> None:
    with _driver(path) as driver:
        while True:
            driver.drain(timeout=1.0)


def switch(one: str, other: str, size: str, seconds: str) -> None:
    with _driver(one) as sender, _driver(other) as receiver:
        # The switch learns where the receiver is, then the sender's frames go nowhere else.
        receiver.send([_plain(b"\xff" * 6, _OTHER_MAC, 64)], timeout=1.0)
        source = Flood(sender.tx(), [_plain(_OTHER_MAC, GUEST_MAC, int(size))] * _BATCH)
        sender.drain(timeout=5.0)
        _arrived(source, receiver, float(seconds) / 10)
        print("go", flush=True)  # noqa: T201 - read by rig_frames.py
        began = time.perf_counter()
        count = _arrived(source, receiver, float(seconds))
        print(count, time.perf_counter() - began, flush=True)  # noqa: T201
        time.sleep(10)  # until killed: what the end costs the other process is not what it measures


def _arrived(source: Flood, receiver: NetDriver, seconds: float) -> int:
    count = 0
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        for _ in range(16):
            source.burst.send(source.ring)
            count += receiver.drain()[0]
    return count


MODES: Final[dict[str, Callable[..., None]]] = {"flood": flood, "udp": udp, "drain": drain, "switch": switch}

if __name__ == "__main__":
    MODES[sys.argv[1]](*sys.argv[2:])
