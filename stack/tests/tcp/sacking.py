"""A scripted peer that reports what it holds. Data is counted in whole segments: segment 0 is the first one sent."""

from __future__ import annotations

from typing import Any

from stack.tcp.sack_recovery import SackRecovery
from stack.tests.tcp.script import Script, Sent
from stack.wire.tcp import ACK, ECE, SYN, HeaderOptions

MSS = 1460
RTT_MS = 100


class SackScript(Script):
    """Established with SACK, one round trip of 100 ms measured, ready to send."""

    def __init__(self, *, ecn: bool = False, congestion: str = "reno", **config: Any) -> None:
        super().__init__(congestion=congestion, **config)
        self.mss = MSS - (12 if self.timestamps else 0)
        self.listen()
        flags = SYN | (ECE | 0x80 if ecn else 0)
        self.send(flags, options=HeaderOptions(mss=MSS, window_scale=7, sack_permitted=True))
        self.synack = self.drain()[0]
        self.iss = self.synack.header.seq
        if self.synack.header.options.timestamps is not None:
            self.tsecr = self.synack.header.options.timestamps[0]
        self.wait(RTT_MS)
        self.send(ACK, seq=1, ack=1)
        self.accept()
        assert isinstance(self.connection.sender.recovery, SackRecovery)

    @property
    def recovery(self) -> SackRecovery:
        recovery = self.connection.sender.recovery
        assert isinstance(recovery, SackRecovery)
        return recovery

    def sending(self, segments: int, *, queued: int = 100) -> SackScript:
        """`segments` are in flight as cwnd allows, of `queued` written."""
        self.connection.sender.last_sent = self.scheduler.now  # not idle: cwnd counts
        self.connection.sender.congestion.cwnd = segments * self.mss
        self.connection.write(bytes(queued * self.mss))
        self.turn()
        assert sum(len(one.data) for one in self.drain()) == min(segments, queued) * self.mss
        return self

    def sack(self, acked: int, *blocks: tuple[int, int], turn: bool = True, flags: int = ACK) -> None:
        """ACK of everything before segment `acked`, and blocks of segments [from, to)."""
        edges = tuple(((self.iss + self.at(a)) & 0xFFFFFFFF, (self.iss + self.at(b)) & 0xFFFFFFFF) for a, b in blocks)
        options = HeaderOptions(sack=edges)
        self.send(flags, seq=1, ack=self.at(acked), options=options, turn=turn)

    def sack_bytes(self, ack: int, *blocks: tuple[int, int]) -> None:
        """ACK of everything before byte `ack` (the first is 1), and blocks of bytes."""
        edges = tuple(((self.iss + left) & 0xFFFFFFFF, (self.iss + right) & 0xFFFFFFFF) for left, right in blocks)
        self.send(ACK, seq=1, ack=ack, options=HeaderOptions(sack=edges))

    def at(self, segment: int) -> int:
        return 1 + segment * self.mss

    def segments(self) -> list[tuple[int, int]]:
        """What was sent since: (first segment, how many), superframes as one."""
        return [self._place(sent) for sent in self.drain() if sent.data]

    def _place(self, sent: Sent) -> tuple[int, int]:
        start = ((sent.header.seq - self.iss) & 0xFFFFFFFF) - 1
        assert start % self.mss == 0
        return start // self.mss, -(-len(sent.data) // self.mss)
