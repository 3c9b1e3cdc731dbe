"""A sender behind a card that writes down what it carries, and a receiver at the other end of the cable."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from stack import Network
from stack.link import cable
from stack.link.around import AroundDevice
from stack.link.cable import CableEnd
from stack.link.device import Buffer, LinkDevice, RxFrame, TxFrame, VolleyHead
from stack.testing.clock import ManualClock

HOSTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
PORT = 1000


class Card(AroundDevice):
    """Writes down what it carries."""

    def __init__(self, device: CableEnd) -> None:
        super().__init__(device)
        self.end = device
        self.carried: list[tuple[bytes, tuple[int, ...]]] = []
        self.volleys = 0

    def receive(self, budget: int) -> Sequence[RxFrame]:
        return self.end.receive(budget)

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        accepted = self.end.transmit(burst)
        self.carried += [(b"".join(frame[0]), frame[1:]) for frame in burst[:accepted]]
        return accepted


class VolleyCard(Card):
    """... and takes volleys, which it takes apart again."""

    def transmit_volley(
        self, head: VolleyHead, last: VolleyHead, count: int, number: tuple[int, int], parts: Sequence[Buffer]
    ) -> int:
        payload = b"".join(parts)
        assert len(payload) == (count - 1) * head[2] + last[2]
        at, first = number
        frames: list[TxFrame] = []
        for i in range(count):
            header, facts, size = head if i + 1 < count else last
            placed = header[:at] + struct.pack(">I", first + i * head[2] & 0xFFFFFFFF) + header[at + 4 :]
            frames.append(((placed, payload[i * head[2] :][:size]), *facts))
        accepted = self.transmit(frames)
        self.volleys += accepted > 0
        return accepted


class FullCard(VolleyCard):
    """... as long as it has room."""

    room = 1 << 30  #: frames

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        accepted = super().transmit(burst[: self.room])
        self.room -= accepted
        return accepted


class DeafCard(FullCard):
    """... and loses what comes in while it is `deaf`."""

    deaf = False

    def receive(self, budget: int) -> Sequence[RxFrame]:
        burst = super().receive(budget)
        return [] if self.deaf else burst


class World:
    """A sender behind a card, a receiver at the other end of the cable, a connection between them."""

    def __init__(
        self,
        kind: type[Card],
        *,
        version: int = 4,
        queue_bytes: int = 8 << 20,
        timestamps: bool = True,
        around: Callable[[Network, Card], LinkDevice] = lambda _, card: card,
    ) -> None:
        """`around` says what the interface sees of the card."""
        self.network = Network(clock=ManualClock(), rng=random.Random(5))
        near, far = self.network.stack("near"), self.network.stack("far")
        ends = cable(self.network.scheduler, queue_bytes=queue_bytes)
        self.card = kind(ends[0])
        self.iface = near.add_interface(around(self.network, self.card), addresses=["10.0.0.1/24", "fd00::1/64"])
        far.add_interface(ends[1], addresses=["10.0.0.2/24", "fd00::2/64"])
        near.netns.tcp.config.timestamps = timestamps
        self.near, self.far = near, far
        self.network.advance(3_000_000_000)  # addresses are in use
        sockets: Any = far.socket
        family = sockets.AF_INET if version == 4 else sockets.AF_INET6
        self.listener = sockets.create_server((HOSTS[version][1], PORT), family=family)
        self.client: Any = near.socket.create_connection((HOSTS[version][1], PORT))
        self.served, _ = self.listener.accept()
        self.client.setblocking(False)
        self.served.setblocking(False)
        self.connection = next(iter(near.netns.tcp.connections.values()))

    def send(self, data: bytes) -> bytes:
        try:
            return data[self.client.send(data) :]
        except BlockingIOError:
            return data

    def read(self, limit: int) -> bytes:
        try:
            return bytes(self.served.recv(limit))
        except BlockingIOError:
            return b""

    def counters(self) -> tuple[Any, ...]:
        sender, iface = self.connection.sender, self.iface
        stats = self.near.netns.tcp.stats
        return (
            (sender.snd_una, sender.snd_nxt, sender.snd_max, sender.segments, sender.data_segments, sender.small_end),
            (tuple(sender.flights), sender.congestion.cwnd, sender.sndbuf, sender.cwnd_limited, sender.rtt.srtt),
            (stats.segments_out, stats.retransmitted, iface.stats.tx_packets, iface.stats.tx_bytes, iface.queued),
            (self.connection.receiver.quick, self.connection.receiver.last_ack_sent, self.connection.state),
        )

    def close(self) -> None:
        for each in (self.client, self.served, self.listener):
            each.close()
        self.network.close()
