"""What is told of an interface and of its frames: type, flags, counters, whom a frame was addressed to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

#: ifi_type of <linux/if_arp.h> (IF-01, IF-02).
ARPHRD_ETHER: Final = 1
ARPHRD_LOOPBACK: Final = 772

#: How the link addressed a frame; the values are those of `stack.ip.packet.PacketKind`.
TO_US: Final = 0
TO_ALL: Final = 1
TO_GROUP: Final = 2


class InterfaceFlags(IntFlag):
    """IFF_* of <net/if.h>."""

    UP = 0x1
    BROADCAST = 0x2
    LOOPBACK = 0x8
    RUNNING = 0x40
    NOARP = 0x80
    PROMISC = 0x100
    ALLMULTI = 0x200
    MULTICAST = 0x1000
    LOWER_UP = 0x10000


def hardware_type(*, loopback: bool) -> int:
    """ARPHRD_*"""
    return ARPHRD_LOOPBACK if loopback else ARPHRD_ETHER


def shown_flags(asked: InterfaceFlags, *, loopback: bool, up: bool, carrier: bool, noarp: bool) -> InterfaceFlags:
    """IFF_* as Linux shows them; `asked` are those somebody set. What packet sockets want is counted, but not shown."""
    flags = InterfaceFlags.LOOPBACK if loopback else InterfaceFlags.BROADCAST | InterfaceFlags.MULTICAST
    if up:
        flags |= InterfaceFlags.UP
        if carrier:
            flags |= InterfaceFlags.RUNNING | InterfaceFlags.LOWER_UP
    flags |= asked
    if noarp:
        flags = flags & ~InterfaceFlags.MULTICAST | InterfaceFlags.NOARP
    return flags


@dataclass(slots=True)
class InterfaceStats:
    """Counters since creation; a superframe counts as one packet."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
