"""A TCP peer made of two verbs: `send` a segment, `expect` one. Tests written with it read like RFC 9293 figures.

The layer under test stands on a `FakeIp` that only keeps what it is given. Sequence numbers in tests are relative: SYN
is 0 and the first byte is 1, on both sides. Time is virtual; `wait` lets timers fire on their way.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from stack.errors import NetError
from stack.ip.packet import IcmpError, IpPacket, PacketHandler, PacketKind
from stack.ip.ports import PortTable
from stack.ip.route import Route, RouteKind
from stack.link.device import Buffer, Offload
from stack.scheduler import NS_PER_MS, NS_PER_S, Scheduler
from stack.tcp import Connection, Listener, TcpConfig, TcpLayer, TcpOptions, TcpState
from stack.wire import tcp as wire
from stack.wire.checksum import pseudo_sum
from stack.wire.tcp import ACK, FIN, PSH, RST, SYN, HeaderOptions, TcpHeader, flag_letters

US4, PEER4 = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 15))
US6, PEER6 = bytes.fromhex("fd00" + "0" * 26 + "02"), bytes.fromhex("fd00" + "0" * 26 + "15")
OUR_PORT, PEER_PORT = 80, 40000
PEER_ISN = 0xFFFF_F000  # wraps after 4 KiB, so that every longer test crosses it
MASK = 0xFFFFFFFF


def pattern(length: int, start: int = 0) -> bytes:
    """Bytes that tell their place: any misplaced piece shows."""
    return bytes((start + at) * 7 & 0xFF ^ (start + at) >> 8 & 0xFF for at in range(length))


@dataclass
class Sent:
    """One segment the layer handed down."""

    header: TcpHeader
    data: bytes
    gso_size: int
    src: bytes
    dst: bytes
    tos: int = 0

    def __repr__(self) -> str:
        return f"[{self.header}, {len(self.data)} bytes]"


@dataclass
class FakePacket:
    """The part of `IpPacket` that TCP looks at."""

    src: bytes
    dst: bytes
    payload: memoryview
    csum_ok: bool = True
    gso_size: int = 0
    kind: PacketKind = PacketKind.UNICAST
    tos: int = 0
    ttl: int = 64
    header: bytes = b""


class FakeIp:
    """What TcpLayer asks of an IpLayer, and nothing below it."""

    def __init__(self, scheduler: Scheduler, mtu: int) -> None:
        self.generation = 1
        self.mtu = mtu
        self.ports = {6: PortTable(scheduler.rng)}
        self.sent: deque[Sent] = deque()
        self.fail: NetError | None = None
        self.handler: PacketHandler = lambda packet: None
        self.on_error: Callable[[IcmpError], None] = lambda error: None
        self.confirmed = 0

    def register(self, proto: int, handler: PacketHandler, on_error: Callable[[IcmpError], None]) -> None:
        assert proto == 6
        self.handler, self.on_error = handler, on_error

    def arrival(self, packet: IpPacket) -> int:
        return 0

    def route(self, dst: bytes, *, src: bytes | None = None, oif: int = 0, mark: int = 0) -> Route:
        if self.fail is not None:
            raise self.fail
        ours = US4 if len(dst) == 4 else US6
        return Route(cast(Any, None), src or ours, dst, dst, self.mtu, RouteKind.UNICAST, self.generation)

    def output(
        self, route: Route, src: bytes, dst: bytes, proto: int, parts: tuple[Buffer, ...], length: int, **facts: Any
    ) -> None:
        whole = b"".join(parts)
        assert len(whole) == length
        assert facts["csum_start_offset"] == 16
        header, data = wire.parse(memoryview(whole))
        assert header.checksum == pseudo_sum(src, dst, 6, length)
        gso_size = facts.get("gso_size", 0)
        if gso_size:
            assert facts["gso_type"] == (1 if len(dst) == 4 else 4)
            assert facts["header_length"] == length - len(data)
        else:
            assert length + (20 if len(dst) == 4 else 40) <= route.mtu
        self.sent.append(Sent(header, bytes(data), gso_size, src, dst, facts.get("tos", 0)))

    def template(self, *args: Any, **facts: Any) -> None:
        """Everything goes through `output`."""

    def offloads_for(self, route: Route) -> tuple[Offload, int]:
        return Offload.CSUM | Offload.TSO4 | Offload.TSO6, 65515

    def confirm(self, route: Route) -> None:
        self.confirmed += 1

    def update_path_mtu(self, dst: bytes, mtu: int) -> None:
        self.mtu = mtu
        self.generation += 1


class Script:
    """The layer under test and its peer's two verbs."""

    def __init__(self, *, six: bool = False, mtu: int = 1500, timestamps: bool = False, **config: Any) -> None:
        self.scheduler = Scheduler(rng=random.Random(7), now=1000 * NS_PER_S)
        self.ip = FakeIp(self.scheduler, mtu)
        config.setdefault("answer_wait", 0)  # most tests give no answers, and want to see their ACKs
        self.config = TcpConfig(timestamps=timestamps, **config)
        self.tcp = TcpLayer(self.scheduler, cast(Any, self.ip), config=self.config)
        self.us, self.peer = (US6, PEER6) if six else (US4, PEER4)
        self.our_port, self.peer_port = OUR_PORT, PEER_PORT
        self.timestamps = timestamps
        self.tsval, self.tsecr = 5000, 0
        self.iss = 0  # ours, learned from the first SYN seen
        self.connection: Connection
        self.listener: Listener
        self.events = 0
        self.tos = 0  # of what the peer sends

    # --- verbs ---------------------------------------------------------------------------------------------------

    def send(
        self,
        flags: int,
        seq: int = 0,
        ack: int = 0,
        data: bytes = b"",
        *,
        win: int = 65535,
        options: HeaderOptions | None = None,
        gso_size: int = 0,
        kind: PacketKind = PacketKind.UNICAST,
        turn: bool = True,
        urgent: int = 0,
    ) -> None:
        """The peer's segment arrives; `turn` False: more of the same burst follows."""
        options = HeaderOptions() if options is None else options
        if self.timestamps and options.timestamps is None and not flags & RST:
            options.timestamps = (self.tsval & MASK, self.tsecr)
        wire_ack = (self.iss + ack) & MASK if flags & ACK else 0
        header = TcpHeader(
            self.peer_port, self.our_port, (PEER_ISN + seq) & MASK, wire_ack, flags, win, urgent=urgent, options=options
        )
        self.send_raw(header.emit() + data, gso_size=gso_size, kind=kind, turn=turn)

    def send_raw(
        self,
        segment: bytes,
        *,
        gso_size: int = 0,
        kind: PacketKind = PacketKind.UNICAST,
        turn: bool = True,
        csum_ok: bool = True,
    ) -> None:
        view = memoryview(segment)
        packet = FakePacket(self.peer, self.us, view, csum_ok, gso_size, kind, self.tos)
        self.ip.handler(cast(IpPacket, packet))
        if turn:
            self.turn()

    def expect(
        self,
        flags: int,
        seq: int | None = None,
        ack: int | None = None,
        data: bytes | None = b"",
        *,
        length: int | None = None,
        win: int | None = None,
    ) -> Sent:
        """The next segment we sent is this one. PSH is not looked at unless asked for; data=None: any."""
        assert self.ip.sent, f"nothing sent, expected {flag_letters(flags)} seq={seq} ack={ack}"
        sent = self.ip.sent.popleft()
        header = sent.header
        if header.flags & SYN:
            self.iss = header.seq
        have = header.flags if flags & PSH else header.flags & ~PSH
        assert have == flags, f"expected {flag_letters(flags)}, got {sent}"
        if seq is not None:
            got = (header.seq - self.iss + (1 << 31) & MASK) - (1 << 31)
            assert got == seq, f"seq {got}, expected {seq}: {sent}"
        if ack is not None:
            got = (header.ack - PEER_ISN + (1 << 31) & MASK) - (1 << 31)
            assert got == ack, f"ack {got}, expected {ack}: {sent}"
        if length is not None:
            assert len(sent.data) == length, f"{len(sent.data)} bytes, expected {length}: {sent}"
        elif data is not None:
            assert sent.data == data, f"{len(sent.data)} bytes {sent.data[:40]!r}, expected {data[:40]!r}"
        if win is not None:
            assert header.window == win, f"window {header.window}, expected {win}"
        if header.options.timestamps is not None:
            self.tsecr = header.options.timestamps[0]
        return sent

    def expect_nothing(self) -> None:
        assert not self.ip.sent, f"sent {list(self.ip.sent)}"

    def drain(self) -> list[Sent]:
        sent = list(self.ip.sent)
        self.ip.sent.clear()
        return sent

    def turn(self) -> None:
        """End of a burst: deferred work."""
        self.scheduler.run_deferred()

    def wait(self, milliseconds: float) -> None:
        """Let virtual time pass; every timer fires at its time."""
        end = self.scheduler.now + int(milliseconds * NS_PER_MS)
        while (due := self.scheduler.next_deadline()) is not None and due <= end:
            self.scheduler.now = max(due, self.scheduler.now)
            self.scheduler.run_timers()
            self.turn()
        self.scheduler.now = end
        self.tsval += int(milliseconds)

    # --- user ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes, *, more: bool = False) -> int:
        count = self.connection.write(data, more=more)
        self.turn()
        return count

    def read(self, limit: int = 1 << 30) -> bytes:
        data = self.connection.read(limit)
        self.turn()
        return data

    def close(self) -> None:
        self.connection.close()
        self.turn()

    @property
    def state(self) -> TcpState:
        return self.connection.state

    def in_state(self, state: TcpState) -> bool:
        return self.connection.state is state

    # --- named starts --------------------------------------------------------------------------------------------

    def listen(self, backlog: int = 5, options: TcpOptions | None = None) -> Script:
        bound = self.tcp.ports.bind(bytes(len(self.us)), self.our_port)
        self.listener = self.tcp.listen(bound, backlog, options=options)
        return self

    def connect(self, options: TcpOptions | None = None) -> Script:
        """Ends in SYN-SENT, the SYN still to be expected."""
        bound = self.tcp.ports.bind(bytes(len(self.us)), self.our_port)
        self.connection = self.tcp.connect(bound, None, (self.peer, self.peer_port), options=options)
        self._watch()
        self.turn()
        return self

    def syn_sent(self, options: TcpOptions | None = None) -> Script:
        self.connect(options)
        self.expect(SYN, seq=0)
        return self

    def syn_received(self, options: TcpOptions | None = None, *, mss: int | None = 1460, ws: int | None = None,
                     win: int = 65535) -> Script:  # fmt: skip
        """By a passive open; there is no connection yet."""
        self.listen(options=options)
        self.send(SYN, seq=0, options=HeaderOptions(mss=mss, window_scale=ws), win=win)
        self.expect(SYN | ACK, seq=0, ack=1)
        return self

    def established(self, options: TcpOptions | None = None, *, mss: int | None = 1460, ws: int | None = None,
                    win: int = 65535) -> Script:  # fmt: skip
        self.syn_received(options, mss=mss, ws=ws, win=win)
        self.send(ACK, seq=1, ack=1, win=win)
        self.expect_nothing()
        self.accept()
        assert self.in_state(TcpState.ESTABLISHED)
        return self

    def syns_crossed(self) -> Script:
        """SYN-RECEIVED by a simultaneous open."""
        self.syn_sent()
        self.send(SYN, seq=0, options=HeaderOptions(mss=1460))
        self.expect(SYN | ACK, seq=0, ack=1)
        return self

    def cookies_sent(self) -> Script:
        """A listener that answers SYNs with cookies, and has done so."""
        self.config.syncookies = 2
        return self.syn_received()

    def fast_opened(self) -> Script:
        """SYN-RECEIVED with five bytes taken from the SYN (RFC 7413)."""
        self.config.fastopen = 3
        self.listen(options=TcpOptions(fastopen=5, fastopen_no_cookie=True))
        self.send(SYN, seq=0, data=b"early", options=HeaderOptions(mss=1460))
        self.expect(SYN | ACK, seq=0, ack=6)
        self.accept()
        return self

    def fast_open_sent(self) -> Script:
        """SYN-SENT with five bytes in the SYN."""
        self.config.fastopen = 5
        bound = self.tcp.ports.bind(bytes(len(self.us)), self.our_port)
        self.connection = self.tcp.connect(bound, None, (self.peer, self.peer_port), fastopen=b"early")
        self._watch()
        self.turn()
        self.expect(SYN, seq=0, data=b"early")
        return self

    def accept(self) -> None:
        accepted = self.listener.accept()
        assert accepted is not None
        self.connection = accepted
        self._watch()

    def fin_wait_1(self) -> Script:
        self.established()
        self.connection.shutdown_write()
        self.turn()
        self.expect(FIN | ACK, seq=1, ack=1)
        return self

    def fin_wait_2(self) -> Script:
        self.fin_wait_1()
        self.send(ACK, seq=1, ack=2)
        return self

    def closing(self) -> Script:
        self.fin_wait_1()
        self.send(FIN | ACK, seq=1, ack=1)
        self.expect(ACK, seq=2, ack=2)
        return self

    def close_wait(self) -> Script:
        self.established()
        self.send(FIN | ACK, seq=1, ack=1)
        self.expect(ACK, seq=1, ack=2)
        return self

    def last_ack(self) -> Script:
        self.close_wait()
        self.connection.shutdown_write()
        self.turn()
        self.expect(FIN | ACK, seq=1, ack=2)
        return self

    def time_wait(self) -> Script:
        self.fin_wait_2()
        self.send(FIN | ACK, seq=1, ack=2)
        self.expect(ACK, seq=2, ack=2)
        return self

    def _watch(self) -> None:
        def event() -> None:
            self.events += 1

        self.connection.on_event = event
