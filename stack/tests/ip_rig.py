"""What the tests of interfaces, IP and UDP stand on: a scripted link device, a host around it, and a manual turn.

Frames are built with `stack.testing.builders` and read back with `struct` and `inet_checksum`, so that neither side of
a test depends on the emitters and parsers under test.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from stack.iface.address import InterfaceAddress
from stack.iface.changes import ChangeLog
from stack.iface.interface import Interface
from stack.iface.loopback import LoopbackInterface
from stack.ip.layer import IpLayer
from stack.ip.route import RouteEntry
from stack.link.device import DATA_VALID, Offload, RxFrame, TxFrame
from stack.link.loopback import Loopback
from stack.link.offload import ALL_OFFLOADS
from stack.scheduler import Scheduler
from stack.testing import builders
from stack.testing.coalescing import Coalescing
from stack.udp import UdpLayer

MY_MAC = bytes.fromhex("020000000001")
PEER_MAC = bytes.fromhex("020000000002")
ME = bytes((10, 0, 2, 2))
PEER = bytes((10, 0, 2, 15))
SUBNET_BROADCAST = bytes((10, 0, 2, 255))
EVERYBODY = b"\xff" * 4
ME6 = bytes.fromhex("fd00" + "00" * 13 + "02")
PEER6 = bytes.fromhex("fd00" + "00" * 13 + "15")
LO = bytes((127, 0, 0, 1))
LO6 = bytes(15) + b"\x01"


class ScriptedDevice:
    """A `LinkDevice` whose wire is two lists. `accept` bounds what `transmit` takes before it refuses."""

    def __init__(self, *, mtu: int = 1500, mac: bytes = MY_MAC, offloads: Offload = ALL_OFFLOADS) -> None:
        self.mtu = mtu
        self.mac = mac
        self.carrier = True
        self.offloads = offloads
        self.max_superframe = 65549 if offloads & (Offload.TSO4 | Offload.TSO6) else 14 + mtu
        self.on_change: Callable[[], None] | None = None
        self.inbox: list[RxFrame] = []
        self.sent: list[TxFrame] = []
        self.bursts: list[int] = []  # length of each accepted burst
        self.accept: int | None = None
        self.on_transmit: Callable[[], None] | None = None
        self.on_arm: Callable[[], None] | None = None
        self.room_appears = False  # what `arm` finds

    def receive(self, budget: int) -> Sequence[RxFrame]:
        burst, self.inbox = self.inbox[:budget], self.inbox[budget:]
        return burst

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        count = len(burst) if self.accept is None else min(self.accept, len(burst))
        if self.accept is not None:
            self.accept -= count
        self.sent.extend(burst[:count])
        self.bursts.append(count)
        if self.on_transmit is not None:
            self.on_transmit()
        return count

    def suppress(self) -> None: ...

    def arm(self) -> bool:
        if self.on_arm is not None:
            self.on_arm()
        return self.room_appears or bool(self.inbox)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.carrier = False

    def changed(self) -> None:
        assert self.on_change is not None
        self.on_change()


class Host:
    """lo and eth0 (10.0.2.2/24, fd00::2/64) with IP and UDP, and what came out of eth0."""

    def __init__(
        self, *, offloads: Offload = ALL_OFFLOADS, mtu: int = 1500, resolved: bool = True, coalescing: bool = False
    ) -> None:
        """`resolved`: the peer's MAC is known, so that nothing waits for ARP or NDP. `coalescing`: eth0 joins them."""
        self.scheduler = Scheduler(rng=random.Random(7))
        self.changes = ChangeLog()
        self.ip = IpLayer(self.scheduler)
        self.lo = LoopbackInterface(self.scheduler, Loopback(), name="lo", index=1, changes=self.changes, loopback=True)
        self.ip.add_interface(self.lo)
        self.device = ScriptedDevice(offloads=offloads, mtu=mtu)
        link = Coalescing(self.device) if coalescing else self.device
        self.eth = Interface(self.scheduler, link, name="eth0", index=2, changes=self.changes)
        self.ip.add_interface(self.eth)
        self.udp = UdpLayer(self.scheduler, self.ip)
        for iface, text in (
            (self.lo, "127.0.0.1/8"),
            (self.lo, "::1/128"),
            (self.eth, "10.0.2.2/24"),
            (self.eth, "fd00::2/64"),
        ):
            address = InterfaceAddress.parse(text)
            iface.addresses.append(address)
            if iface is self.eth:
                self.ip.add_route(RouteEntry(address.network, address.prefix_length, iface))
        self.ip.refresh()
        if resolved:
            self.eth.neighbours.set_permanent(PEER, PEER_MAC)
            self.eth.neighbours.set_permanent(PEER6, PEER_MAC)

    def turn(self) -> None:
        """Everything there is to do now, as a Network would."""
        for _ in range(50):
            work = self.scheduler.run_timers()
            for iface in self.ip.interfaces.values():
                work += iface.service(64)
            work += self.scheduler.run_deferred()
            if not work:
                return
        raise AssertionError("the host never comes to rest")

    def pass_time(self, ns: int) -> None:
        """Let `ns` pass, firing timers when they are due."""
        end = self.scheduler.now + ns
        while True:
            due = self.scheduler.next_deadline()
            if due is None or due > end:
                break
            self.scheduler.now = max(due, self.scheduler.now)
            self.turn()
        self.scheduler.now = end
        self.turn()

    def receive(self, *frames: bytes, flags: int = 0) -> None:
        """Have eth0 receive whole frames, then run a turn."""
        for frame in frames:
            self.device.inbox.append((memoryview(frame), flags, 0, 0, 0, 0))
        self.turn()

    def receive4(self, packet: bytes, *, dst_mac: bytes = MY_MAC, flags: int = 0) -> None:
        self.receive(builders.ethernet(dst_mac, PEER_MAC, 0x0800, packet), flags=flags)

    def receive6(self, packet: bytes, *, dst_mac: bytes = MY_MAC, flags: int = 0) -> None:
        self.receive(builders.ethernet(dst_mac, PEER_MAC, 0x86DD, packet), flags=flags)

    def sent(self) -> list[bytes]:
        """Frames that left through eth0 since the last call, each as one string of bytes, checksums as handed over."""
        self.turn()
        frames = [b"".join(frame[0]) for frame in self.device.sent]
        self.device.sent.clear()
        return frames

    def sent_ip(self) -> list[bytes]:
        """Like `sent`, IP packets only, without their Ethernet headers."""
        return [frame[14:] for frame in self.sent() if frame[12:14] in (b"\x08\x00", b"\x86\xdd")]


def valid_flags() -> int:
    """Offload flags of a frame whose transport checksum the device verified."""
    return DATA_VALID


def fields4(packet: bytes) -> dict[str, int | bytes]:
    """An IPv4 header taken apart with its checksum verified word by word."""
    first, tos, total, ident, fragment, ttl, proto, _ = struct.unpack_from("!BBHHHBBH", packet)
    length = (first & 15) * 4
    assert first >> 4 == 4
    assert builders.inet_checksum(packet[:length]) == 0, "IPv4 header checksum"
    assert total == len(packet), "IPv4 total length"
    return {
        "tos": tos,
        "ident": ident,
        "df": fragment >> 14 & 1,
        "mf": fragment >> 13 & 1,
        "offset": (fragment & 0x1FFF) * 8,
        "ttl": ttl,
        "proto": proto,
        "src": packet[12:16],
        "dst": packet[16:20],
        "payload": packet[length:],
    }
