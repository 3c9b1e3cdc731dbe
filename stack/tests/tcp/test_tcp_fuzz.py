"""No segment, however strange, raises or grows memory: arbitrary bytes, options and flags in every state."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack.ip.packet import PacketKind
from stack.tcp import TcpState
from stack.tests.tcp.script import PEER_ISN, Script
from stack.wire import tcp
from stack.wire.tcp import ACK, FIN, RST, SYN, HeaderOptions, TcpHeader, parse_options

MASK = 0xFFFFFFFF
STARTS = [
    "listen",
    "syn_sent",
    "syn_received",
    "syns_crossed",
    "cookies_sent",
    "fast_opened",
    "fast_open_sent",
    "established",
    "fin_wait_1",
    "fin_wait_2",
    "close_wait",
    "closing",
    "last_ack",
    "time_wait",
]

near_numbers = st.one_of(
    st.integers(-3, 3), st.integers(-70_000, 200_000), st.integers(0, MASK), st.sampled_from([1 << 31, (1 << 31) - 1])
)


@dataclass
class Step:
    """One segment, what the user does before it, and how long nothing happens after it."""

    flags: int
    seq: int
    ack: int
    win: int
    size: int
    gso_size: int
    options: bytes
    stamp: int | None
    wait: int
    user: str
    csum_ok: bool


steps = st.builds(
    Step,
    flags=st.one_of(st.integers(0, 255), st.sampled_from([ACK, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK])),
    seq=near_numbers,
    ack=near_numbers,
    win=st.one_of(st.just(0), st.integers(0, 65535)),
    size=st.one_of(st.just(0), st.integers(1, 3000), st.integers(60_000, 65_000)),
    gso_size=st.sampled_from([0, 1, 536, 1448, 65535]),
    options=st.binary(max_size=40).map(lambda raw: raw[: len(raw) // 4 * 4]),
    stamp=st.sampled_from([None, 0, 1, -1, 1 << 31]),
    wait=st.sampled_from([0, 0, 0, 1, 250, 3000, 61_000]),
    user=st.sampled_from(["", "", "read", "write", "close", "shutdown", "abort"]),
    csum_ok=st.sampled_from([True, True, True, False]),
)


def act(s: Script, what: str) -> None:
    connection = getattr(s, "connection", None)
    if connection is None:
        return
    if what == "read":
        connection.read(1000)
    elif what == "write" and connection.can_write:
        connection.write(bytes(5000))
    elif what == "close":
        connection.close()
    elif what == "shutdown":
        connection.shutdown_write()
    elif what == "abort":
        connection.abort()


def check(s: Script) -> None:
    """What holds in every state, whatever happened."""
    assert len(s.tcp.connections) <= 8
    assert len(s.tcp.demux.minisocks) <= 8
    for connection in s.tcp.connections.values():
        sender, receiver = connection.sender, connection.receiver
        assert connection.state is not TcpState.CLOSED
        assert sender.snd_una <= sender.snd_nxt <= sender.snd_max <= sender.queue.end + 1
        assert receiver.queue.length + receiver.reassembly.length <= receiver.rcvbuf + 65536
        assert receiver.rcv_nxt <= receiver.rcv_adv + 1
        assert receiver.queue.charge <= receiver.rcvbuf + 65536 + 1024
        assert sender.congestion.cwnd >= sender.mss


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("start", STARTS)
@settings(max_examples=60, deadline=None)
@given(script=st.lists(steps, max_size=8))
def test_arbitrary_segments_in_every_state(start: str, timestamps: bool, script: list[Step]) -> None:
    s: Script = getattr(Script(timestamps=timestamps, syn_backlog=8), start)()
    for step in script:
        options = step.options
        if timestamps and step.stamp is not None:
            options = HeaderOptions(timestamps=((s.tsval + step.stamp) & MASK, s.tsecr)).emit()
        seq, ack = (PEER_ISN + step.seq) & MASK, (s.iss + step.ack) & MASK
        head = TcpHeader(s.peer_port, s.our_port, seq, ack, step.flags, step.win).emit()
        offset = (20 + len(options)) << 2
        raw = head[:12] + bytes((offset,)) + head[13:] + options + bytes(step.size)
        act(s, step.user)
        s.send_raw(raw, gso_size=step.gso_size, csum_ok=step.csum_ok)
        check(s)
        s.wait(step.wait)
        check(s)
        s.drain()
    s.wait(4_000_000)
    check(s)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=120), csum_ok=st.booleans(), kind=st.sampled_from(PacketKind))
def test_arbitrary_bytes(raw: bytes, csum_ok: bool, kind: PacketKind) -> None:
    s = Script().established()
    s.send_raw(raw, csum_ok=csum_ok, kind=kind)
    s.send_raw(bytes.fromhex("9c400050") + raw, csum_ok=csum_ok, kind=kind)
    check(s)


@given(raw=st.binary(max_size=40))
def test_options_never_raise_and_known_ones_survive(raw: bytes) -> None:
    parse_options(raw)
    options = parse_options(HeaderOptions(mss=1460, window_scale=7, timestamps=(1, 2)).emit() + raw)
    assert options.mss is not None
    assert options.timestamps is not None


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "too-short"),
        (bytes(19), "too-short"),
        (bytes(12) + b"\x40" + bytes(7), "bad-header"),  # data offset 16
        (bytes(12) + b"\xf0" + bytes(7), "bad-header"),  # data offset 60 in 20 bytes
    ],
)
def test_broken_headers_are_counted(raw: bytes, reason: str) -> None:
    s = Script().established()
    s.send_raw(raw)
    assert s.tcp.drops[reason] == 1
    s.expect_nothing()


@given(st.data())
def test_options_in_their_usual_order_are_what_they_are_in_any_other(data: st.DataObject) -> None:
    """Two layouts are read at a glance: the same octets, and near misses of them, one by one."""
    layout = data.draw(st.sampled_from(("0101080a0000000100000002", "020405b40402080a000000010000000201030307")))
    raw = bytearray.fromhex(layout)
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from((0, 1, 2, 3, 4, 5, 8, 10, 0x80, 0xFF)))
    glanced = parse_options(bytes(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tcp, "_usual", lambda *_: None)
        assert parse_options(bytes(raw)) == glanced
    if raw == bytes.fromhex(layout):
        assert glanced.timestamps == (1, 2)
