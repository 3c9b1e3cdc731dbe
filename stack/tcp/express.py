"""A short way in: from an interface straight to the connection, for segments like the one before.

Theory of operation
-------------------
A segment walks through three layers, and each asks what it asks of every packet. For the next segment of a flow most
answers are those of the one before. So when a segment over IPv4 has come through by header prediction, `Express`, which
stands where interfaces hand over IPv4 frames, remembers its *flow*: the connection, and the bytes of its headers that
must be the same again. The next frame is taken apart by one unpack, compared, and handed to `Pcb.fast`, or, if it is no
more than a short question or answer, to `conversation.hear`. Whatever is not as remembered goes the long way, to which
flows make no difference.

What is not asked again, and why it would be answered as before:

* whether the frame is for us, our addresses, what is a martian, who forwards: all of it goes by MACs, addresses and
  TOS, which are compared, and by the configuration, any change of which changes the IP layer's generation;
* whether somebody else wants such packets (raw sockets, filters, signatures): they stand in TCP's place among the
  handlers, which is looked at;
* which connection it is for: while the remembered one is in a state that predicts, and under the same key, it is found
  by that key (what is tied to one interface is never remembered).

Asked each time: header checksum, lengths, fragmentation, the device's word for the transport checksum. Connections with
ECN are never remembered. Over `lo` everything does, for what its frames carry besides (`stack.iface.loopback`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from stack.tcp.buffers import COPY_BREAK
from stack.tcp.closing import take_fin, take_last_ack
from stack.tcp.conversation import hear
from stack.tcp.opening import FEW, Opening
from stack.tcp.pcb import PLAIN_OFFSET, STAMPED_OFFSET
from stack.tcp.request import Request
from stack.wire.ipv4 import FRAGMENT_MASK
from stack.wire.tcp import ACK, FIN, PROTO, SYN, TIMESTAMPS_WORD

if TYPE_CHECKING:
    from stack.iface.hooks import Taker
    from stack.iface.interface import Interface
    from stack.tcp.connection import Connection
    from stack.tcp.demux import Key
    from stack.tcp.layer import TcpLayer

#: MACs, ethertype, version, IHL and TOS; total length; identification; flags and offset; TTL and protocol; checksum;
#: addresses and ports; sequence number; acknowledgment number; data offset; flags; window
_FRAME: Final = struct.Struct("!16sHHHHH12sIIBBH4x")
_unpack: Final = _FRAME.unpack_from
_STAMP: Final = struct.Struct("!III")  #: first option word, TSval, TSecr
_ETHERNET: Final = 14
_PLAIN_TOTAL: Final = 40  # both headers without options
_STAMPED_TOTAL: Final = 52
_WORDS: Final = struct.Struct("!4H")  # both addresses
_PSH_FIN_OFF: Final = 0xF6
_FIN_ACK: Final = FIN | ACK
_FAMILY: Final = b"\x08\x00\x45"  # IPv4, without options
#: NEEDS_CSUM, DATA_VALID, or both
_TRUSTED: Final = (1, 2, 3)


class Flow:
    """What the headers of one connection's segments have in common as they come in."""

    __slots__ = ("base", "connection", "express", "generation", "head", "iface", "key", "opening", "place", "word")

    def __init__(
        self, express: Express, iface: Interface, head: bytes, word: int, place: bytes, connection: Connection
    ) -> None:
        self.express = express
        self.place = place
        self.iface = iface
        self.head = head  #: MACs, ethertype, version, IHL, TOS
        self.word = word  #: TTL and protocol
        self.base = int.from_bytes(head[14:], "big") + word + sum(_WORDS.unpack_from(place))  #: ... in the checksum
        self.connection = connection
        self.key: Key = connection.key
        self.opening: Opening | None = None  #: the handshake is not over
        self.generation = express.generation

    def valid(self) -> bool:
        """Whether a segment with these headers would be this connection's, and nobody else would see it before."""
        return (
            self.generation == self.express.generation
            and self.connection.key is self.key
            and self.iface.mac == self.head[:6]
            and self.express.alone
        )


def install(layer: TcpLayer) -> None:
    """From now on interfaces hand IPv4 frames to an `Express` of this layer."""
    layer.ip.divert4(Express(layer).receive)


class Express:
    """Of one TCP layer."""

    def __init__(self, layer: TcpLayer) -> None:
        self._layer = layer
        self._stats = layer.stats
        self._ip = ip = layer.ip
        self._handlers = ip.handlers4
        self._input = ip.handlers4[PROTO]  # TCP's own, as long as nobody stands before it
        self._slow = ip.input4.receive
        self._flows = layer.flows

    @property
    def generation(self) -> int:
        """Of the configuration of the IP layer."""
        return self._ip.generation

    @property
    def alone(self) -> bool:
        """Nobody stands in TCP's place among the handlers."""
        return self._handlers[PROTO] is self._input

    def receive(self, iface: Interface, frame: memoryview, link_kind: int, flags: int, gso_size: int) -> Taker | None:
        """One Ethernet frame of type 0x0800, as `Ipv4Input.receive`."""
        length = len(frame) - _ETHERNET
        if length < _PLAIN_TOTAL:
            return self._slow(iface, frame, link_kind, flags, gso_size)
        head, total, ident, fragment, word, check, place, seq, ack, offset, bits, window = _unpack(frame)
        flow = self._flows.get(place)
        if (  # said so, and not the other way round, the interpreter specialises it (docs/decisions/0051)
            flow is None
            or flow.head != head
            or flow.generation != self._ip.generation
            or flow.iface is not iface
            or flow.word != word
            or flags not in _TRUSTED
            or fragment & FRAGMENT_MASK
            or (flow.base + total + ident + fragment + check) % 0xFFFF != 0
            or bits & _PSH_FIN_OFF != ACK
            or total > length
            or self._handlers[PROTO] is not self._input
        ):
            pass
        else:
            connection = flow.connection
            value = echo = 0
            if offset == PLAIN_OFFSET:
                size = total - _PLAIN_TOTAL
            else:
                size = total - _STAMPED_TOTAL
                if size >= 0:
                    option, value, echo = _STAMP.unpack_from(frame, _ETHERNET + _PLAIN_TOTAL)
                    if option != TIMESTAMPS_WORD:
                        size = -1
            if size < 0 or connection.key is not flow.key:
                pass
            elif offset != connection.predicted:
                if (
                    not size
                    and bits == ACK
                    and offset == (STAMPED_OFFSET if connection.timestamps else PLAIN_OFFSET)
                    and (
                        take_last_ack(connection, seq, ack, value)
                        if flow.opening is None
                        else flow.opening.answered(flow, seq, ack, window, value, echo)
                    )
                ):
                    self._stats.ladder_in += 1
                    return None
            elif bits & FIN:
                if not size and bits == _FIN_ACK and take_fin(connection, seq, ack, window, value, echo):
                    self._stats.ladder_in += 1
                    return None
            else:
                if (
                    size
                    and size < COPY_BREAK
                    and not gso_size
                    and hear(connection, frame, _ETHERNET + total, size, seq, ack, window, value)
                ):
                    self._stats.fast_in += 1
                    return None  # perhaps there is no flush to come, which what continues it would need
                if connection.fast(frame[: _ETHERNET + total], size, seq, ack, window, value, echo, gso_size):
                    self._stats.fast_in += 1
                    return connection.receiver if size else connection.sender
        predicted = self._stats.fast_in
        taker = self._slow(iface, frame, link_kind, flags, gso_size)
        if self._stats.fast_in != predicted and flags in _TRUSTED and not link_kind:
            self._remember(iface, head, word, place)
        elif bits == SYN and flags in _TRUSTED and not link_kind and head[12:15] == _FAMILY:
            self._await(iface, head, word, place)
        return taker

    def _remember(self, iface: Interface, head: bytes, word: int, place: bytes) -> None:
        """A segment with these headers has just been predicted."""
        key = (place[:4], place[4:8], int.from_bytes(place[8:], "big"))
        connection = self._layer.connections.get(key)
        if connection is not None and connection.ecn is None and head[12:15] == _FAMILY:
            self._flows[place] = connection.flow = Flow(self, iface, head, word, place, connection)

    def _await(self, iface: Interface, head: bytes, word: int, place: bytes) -> None:
        """A SYN with these headers has just been answered, if anybody listens."""
        layer = self._layer
        request = layer.demux.minisocks.get((place[:4], place[4:8], int.from_bytes(place[8:], "big")))
        if type(request) is Request and request.opening is None and len(layer.syn_queue) <= FEW:
            opening = request.opening = Opening(self, request, iface, head, word, place)
            layer.scheduler.defer(opening.prepare)

    def expect(
        self, iface: Interface, head: bytes, word: int, place: bytes, opening: Opening, connection: Connection
    ) -> None:
        """`connection` is made, and in no table; the first segment with these headers is for `opening`."""
        flow = self._flows[place] = connection.flow = Flow(self, iface, head, word, place, connection)
        flow.opening = opening

    def forget(self, place: bytes, opening: Opening) -> None:
        """Nothing is expected any more."""
        flow = self._flows.get(place)
        if flow is not None and flow.opening is opening:
            del self._flows[place]
