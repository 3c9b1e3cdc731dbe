"""Filters of TCP sockets (SO_ATTACH_FILTER): what they refuse never reaches the connection.

Theory of operation
-------------------
Nobody pays for this before the first filter is attached in a namespace: then `Filtering` puts itself between IP and
the layer. It looks up whom a segment is for, a connection or a listener, and runs that one's filter, if it has one,
over TCP header and data. A filter that keeps less than all cuts the segment's data, as on Linux; the rest counts as
never sent. A handshake goes by the listener's filter, and the connection inherits it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.errors import DropReason
from stack.ip.filtering import verdict
from stack.wire.checksum import partial_sum, pseudo_sum
from stack.wire.tcp import HEADER_LENGTH, PROTO

if TYPE_CHECKING:
    from stack.bpf import Program
    from stack.ip.packet import IpPacket
    from stack.tcp.layer import TcpLayer


class Filtering:
    """One per layer."""

    def __init__(self, layer: TcpLayer) -> None:
        self._layer = layer
        self.installed = False

    def install(self) -> None:
        """From now on filters are looked for. Idempotent."""
        if self.installed:
            return
        self.installed = True
        layer = self._layer
        if not layer.signatures.installed:  # else those pass on what is good
            layer.ip.register(PROTO, self.receive, layer.icmp_error)

    def receive(self, packet: IpPacket) -> None:
        """One received segment or superframe, on its way to the layer. Never raises."""
        data = packet.payload
        if len(data) >= HEADER_LENGTH:
            program = self._program(packet, data)
            if program is not None and _intact(packet, data):
                keep = verdict(program, packet, data, self._layer.scheduler.rng)
                if not keep:
                    self._layer.drops.count(DropReason.FILTERED)
                    return
                keep = max(keep, data[12] >> 4 << 2)
                if keep < len(data):
                    packet.payload = data[:keep]
                    packet.csum_ok = True
        self._layer.input(packet)

    def _program(self, packet: IpPacket, data: memoryview) -> Program | None:
        demux = self._layer.demux
        key = (packet.src, packet.dst, int.from_bytes(data[:4], "big"))
        ifindex = self._layer.ip.arrival(packet)
        connection = demux.connections.get(key)
        if connection is None and demux.ties:
            connection = demux.connections.get(demux.tied(key, ifindex))
        if connection is not None:
            return connection.options.filter
        listener = demux.listener(key, ifindex)
        return None if listener is None else listener.options.filter


def _intact(packet: IpPacket, data: memoryview) -> bool:
    """Is the checksum right? Of what is cut it cannot be verified any more."""
    return packet.csum_ok or partial_sum(data, pseudo_sum(packet.src, packet.dst, PROTO, len(data))) == 0xFFFF
