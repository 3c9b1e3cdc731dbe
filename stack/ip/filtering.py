"""A socket's classic BPF filter over a packet that IP delivers (SO_ATTACH_FILTER)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.bpf import FilterPacket, Program, run
from stack.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6

if TYPE_CHECKING:
    from stack.ip.packet import IpPacket
    from stack.scheduler import Randomness


def verdict(program: Program, packet: IpPacket, data: memoryview | bytes, rng: Randomness) -> int:
    """How many bytes of `data`, which is what the filter counts from, to keep; 0: the packet is refused."""
    iface = packet.iface
    return run(
        program,
        FilterPacket(
            data,
            frame=packet.frame,
            network=packet.start,
            protocol=ETHERTYPE_IPV4 if packet.version == 4 else ETHERTYPE_IPV6,
            kind=int(packet.kind),
            ifindex=iface.index,
            hatype=iface.link_type,
            random=lambda: rng.getrandbits(32),
        ),
    )
