"""TIME-WAIT: RFC 9293 section 3.6.1, RFC 6191 (who may end it), RFC 1337 (who may not), row TCP-23."""

from __future__ import annotations

import errno
import gc
import tracemalloc
import weakref
from typing import Any

import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_S
from stack.tcp import TcpOptions, TcpState
from stack.tests.tcp.script import PEER4, US4, Script
from stack.wire.tcp import ACK, FIN, PSH, RST, SYN, HeaderOptions

MASK = 0xFFFFFFFF


def waiting(s: Script) -> bool:
    return len(s.tcp.time_waits) == 1


def stamped(s: Script, age: int) -> HeaderOptions:
    """A timestamp `age` ticks before the last one the peer has sent."""
    return HeaderOptions(mss=1460, timestamps=((s.tsval - age) & MASK, s.tsecr))


# --- what it is ------------------------------------------------------------------------------------------------------


def test_tcp_23_it_lasts_a_minute() -> None:
    """2 MSL are 60 s on Linux; whoever still has the connection sees it go to CLOSED, the port is free then."""
    s = Script().time_wait()
    s.listener.close()
    assert s.in_state(TcpState.TIME_WAIT)
    s.wait(59_999)
    assert waiting(s)
    assert s.tcp.ports.claims(80)
    events = s.events
    s.wait(2)
    assert s.in_state(TcpState.CLOSED)
    assert s.events > events
    assert not s.tcp.demux.minisocks
    assert not s.tcp.ports.claims(80)
    assert s.tcp.mib["TcpExtTW"] == 1


def test_a_small_object_waits_and_the_connection_goes() -> None:
    """Once its user has closed, nothing refers to the connection any more."""
    s = Script().fin_wait_2()
    s.close()
    gone = weakref.ref(s.connection)
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(ACK, seq=2, ack=2)
    s.connection = None  # type: ignore[assignment]  # the test lets go
    gc.collect()
    assert gone() is None
    assert waiting(s)


def test_what_was_received_stays_readable() -> None:
    s = Script().fin_wait_2()
    s.send(FIN | ACK | PSH, seq=1, ack=2, data=b"last words")
    s.expect(ACK, seq=2, ack=12)
    assert s.in_state(TcpState.TIME_WAIT)
    assert s.read() == b"last words"
    assert s.connection.eof
    with pytest.raises(NetError) as caught:
        s.connection.write(b"x")
    assert caught.value.errno == errno.EPIPE


def test_it_costs_little() -> None:
    s = Script().listen()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(300):
            finish(s, number)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / 300
    finally:
        tracemalloc.stop()
    assert len(s.tcp.time_waits) == 300
    assert each < 1200, f"{each:.0f} bytes"


def finish(s: Script, number: int) -> None:
    """A connection from peer `number`, from its SYN to TIME-WAIT on our side."""
    s.peer_port = 2000 + number
    s.send(SYN, seq=0)
    s.expect(SYN | ACK)
    s.send(ACK, seq=1, ack=1)
    s.accept()
    s.close()
    s.expect(FIN | ACK)
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(ACK, seq=2, ack=2)
    s.turn()


def test_tcp_23_above_the_limit_there_is_none() -> None:
    """tcp_max_tw_buckets: the connection goes straight to CLOSED, its FIN acknowledged; those that wait stay."""
    s = Script(time_wait_max=3).listen()
    for number in range(8):
        finish(s, number)
    assert [wait.remote[1] - 2000 for wait in s.tcp.time_waits] == [0, 1, 2]
    assert s.in_state(TcpState.CLOSED)
    assert s.tcp.mib["TcpExtTCPTimeWaitOverflow"] == s.tcp.drops["time-wait-overflow"] == 5
    assert s.tcp.mib["TcpExtTW"] == 3
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(RST, seq=2)


# --- what may come ---------------------------------------------------------------------------------------------------


def test_the_fin_again_is_acknowledged_and_restarts_the_wait() -> None:
    """RFC 9293 section 3.10.7.4: "the only thing that can arrive in this state is a retransmission of the FIN"."""
    s = Script().time_wait()
    s.wait(50_000)
    for _ in range(3):
        s.send(FIN | ACK, seq=1, ack=2)
        s.expect(ACK, seq=2, ack=2)
    s.wait(59_000)
    assert waiting(s)
    s.wait(1_001)
    assert not waiting(s)


def test_bare_acks_in_place_are_not_answered() -> None:
    """As Linux they begin the wait anew; two ends in TIME-WAIT never talk to each other."""
    s = Script().time_wait()
    s.wait(50_000)
    s.send(ACK, seq=2, ack=2)
    s.expect_nothing()
    s.wait(59_000)
    assert waiting(s)


def test_old_bare_acks_are_answered_twice_a_second() -> None:
    s = Script().time_wait()
    s.send(ACK, seq=-10, ack=2)
    s.expect(ACK, seq=2, ack=2)
    s.send(ACK, seq=-10, ack=2)
    s.expect_nothing()
    assert s.tcp.mib["TcpExtTCPACKSkippedTimeWait"] == 1
    s.wait(501)
    s.send(ACK, seq=-10, ack=2)
    s.expect(ACK, seq=2, ack=2)


def test_data_is_answered_by_an_ack() -> None:
    s = Script().time_wait()
    s.send(ACK | PSH, seq=2, ack=2, data=b"late")
    s.expect(ACK, seq=2, ack=2)
    assert waiting(s)


def test_acks_carry_timestamps() -> None:
    s = Script(timestamps=True).time_wait()
    s.wait(1000)
    s.send(FIN | ACK, seq=1, ack=2)
    answer = s.expect(ACK, seq=2, ack=2).header.options.timestamps
    assert answer is not None


def test_paws_goes_on() -> None:
    """An old timestamp: an ACK, nothing more (RFC 7323 section 5.3)."""
    s = Script(timestamps=True).time_wait()
    s.send(SYN, seq=1000, options=stamped(s, 5))
    s.expect(ACK, seq=2, ack=2)
    assert waiting(s)
    assert s.tcp.mib["TcpExtPAWSEstab"] == 1


# --- RFC 1337 --------------------------------------------------------------------------------------------------------


def test_rfc_1337_section_2_a_reset_ends_it_by_default() -> None:
    """Time-wait assassination, which Linux allows; only exactly in place, though (RFC 5961)."""
    s = Script().time_wait()
    for seq in (1, 3, 1000):
        s.send(RST, seq=seq)
        assert waiting(s)
    s.send(RST, seq=2)
    assert not waiting(s)
    assert s.in_state(TcpState.CLOSED)
    s.expect_nothing()


def test_rfc_1337_section_3_fix_f1_a_reset_is_ignored() -> None:
    """tcp_rfc1337."""
    s = Script(rfc1337=True).time_wait()
    s.wait(30_000)
    s.send(RST, seq=2)
    assert waiting(s)
    s.wait(30_001)
    assert not waiting(s)


def test_rfc_1337_an_old_duplicate_does_not_bring_a_reset_about() -> None:
    """Section 2: old data, our ACK for it, the other end's reset. With tcp_rfc1337 the last step has no effect."""
    s = Script(rfc1337=True).time_wait()
    s.send(ACK | PSH, seq=-4, ack=1, data=b"old")
    s.expect(ACK, seq=2, ack=2)
    s.send(RST, seq=2)
    assert waiting(s)


# --- RFC 6191: a new SYN ---------------------------------------------------------------------------------------------


def reopened(s: Script, seq: int, **options: Any) -> bool:
    """Whether a SYN with this sequence number begins a new connection."""
    s.send(SYN, seq=seq, **options)
    sent = s.drain()
    assert len(sent) == 1
    if sent[0].header.flags == SYN | ACK:
        s.iss = sent[0].header.seq
        s.tsval += 1
        assert s.in_state(TcpState.CLOSED)
        assert not waiting(s)
        s.send(ACK, seq=seq + 1, ack=1)
        assert s.listener.ready == 1
        return True
    assert sent[0].header.flags == ACK
    assert waiting(s)
    return False


@pytest.mark.parametrize(("seq", "expected"), [(3, True), (1 << 30, True), (2, False), (1, False), (-1000, False)])
def test_rfc_6191_without_timestamps_a_newer_sequence_number(seq: int, expected: bool) -> None:
    """Section 2, last case, RFC 1122 section 4.2.2.13: beyond all the old connection has seen."""
    assert reopened(Script().time_wait(), seq) is expected


@pytest.mark.parametrize(
    ("seq", "age", "expected"),
    [(100, -1, True), (-1000, -1, True), (100, 0, True), (-1000, 0, False), (100, 1, False), (-1000, 1, False)],
)
def test_rfc_6191_with_timestamps_a_newer_timestamp(seq: int, age: int, expected: bool) -> None:
    """Section 2: newer opens, whatever the sequence number; equal leaves it to that; older never does."""
    s = Script(timestamps=True).time_wait()
    assert reopened(s, seq, options=stamped(s, age)) is expected


def test_rfc_6191_a_syn_without_timestamps_after_a_connection_with() -> None:
    s = Script(timestamps=True).time_wait()
    s.timestamps = False
    assert reopened(s, 100)


def test_the_new_connection_begins_beyond_the_old_one() -> None:
    """RFC 1122 section 4.2.2.13 (a): its sequence numbers cannot be taken for old ones, up to a window of 64 KiB."""
    s = Script().time_wait()
    last = s.iss + 2
    s.send(SYN, seq=100, options=HeaderOptions(mss=1460))
    assert (s.expect(SYN | ACK).header.seq - last) & MASK == 65537


def test_without_a_listener_the_syn_is_answered_by_an_ack() -> None:
    s = Script().time_wait()
    s.listener.close()
    s.send(SYN, seq=100)
    s.expect(ACK, seq=2, ack=2)
    assert waiting(s)


def test_a_full_accept_queue_still_ends_it() -> None:
    """As on Linux: the place of the old connection is given up before the new one is found not to fit."""
    s = Script().time_wait()
    s.listener.backlog = 0
    port = s.peer_port
    s.peer_port = 9
    s.send(SYN, seq=0)
    s.expect(SYN | ACK)
    s.send(ACK, seq=1, ack=1)
    s.peer_port = port
    s.send(SYN, seq=100)
    s.expect_nothing()
    assert not waiting(s)


# --- RFC 6191: a connect of our own ----------------------------------------------------------------------------------


def active(*, timestamps: bool = True, **config: Any) -> Script:
    """TIME-WAIT after a connection we opened from the only port there is."""
    s = Script(timestamps=timestamps, **config)
    s.tcp.ports.ephemeral_first = s.tcp.ports.ephemeral_last = s.our_port = 50000
    s.connection = s.tcp.connect(None, None, (s.peer, s.peer_port))
    s.expect(SYN)
    s.send(SYN | ACK, seq=0, ack=1)
    s.close()
    s.drain()
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(ACK, seq=2, ack=2)
    assert waiting(s)
    return s


def connects(s: Script, *, bound: bool = False) -> bool:
    """Whether a connect to the same place gets its port."""
    held = s.tcp.ports.bind(US4, s.our_port, reuse_addr=True) if bound else None
    try:
        s.connection = s.tcp.connect(held, None, (s.peer, s.peer_port))
    except NetError as failure:
        refusal = failure.errno
    else:
        assert not waiting(s)
        return True
    assert refusal == errno.EADDRNOTAVAIL
    assert waiting(s)
    return False


def test_tcp_tw_reuse_after_a_second() -> None:
    """tcp_tw_reuse 1: with timestamps, a second after the end; sequence numbers and echo go on from the old ones."""
    s = active(tw_reuse=1)
    last, recent = s.iss + 2, s.tsval
    s.wait(999)
    assert not connects(s)
    s.wait(1)
    assert connects(s)
    syn = s.expect(SYN).header
    assert (syn.seq - last) & MASK == 65537
    assert syn.options.timestamps is not None
    assert syn.options.timestamps[1] == recent
    assert s.tcp.mib["TcpExtTWRecycled"] == 1


@pytest.mark.parametrize("reuse", [0, 2])
def test_tcp_tw_reuse_is_off_but_for_loopback(reuse: int) -> None:
    """Linux's default is 2: only where both ends are on this host nothing old can be on its way."""
    s = active(tw_reuse=reuse)
    s.wait(50_000)
    assert not connects(s)
    s = active_loopback(reuse)
    s.wait(2_000)
    assert connects(s) is (reuse == 2)


def active_loopback(reuse: int) -> Script:
    s = Script(timestamps=True, tw_reuse=reuse)
    s.us, s.peer = bytes((127, 0, 0, 2)), bytes((127, 0, 0, 1))
    s.tcp.ports.ephemeral_first = s.tcp.ports.ephemeral_last = s.our_port = 50000
    s.connection = s.tcp.connect(None, s.us, (s.peer, s.peer_port))
    s.expect(SYN)
    s.send(SYN | ACK, seq=0, ack=1)
    s.close()
    s.drain()
    s.send(FIN | ACK, seq=1, ack=2)
    s.expect(ACK)
    real = s.tcp.connect

    def connect(bound: Any, src: Any, remote: Any) -> Any:
        return real(bound, s.us, remote)

    s.tcp.connect = connect  # type: ignore[method-assign,assignment]  # the source is part of the place
    return s


def test_without_timestamps_never() -> None:
    s = active(timestamps=False, tw_reuse=1)
    s.wait(59_000)
    assert not connects(s)
    s.wait(1_001)
    s.connection = s.tcp.connect(None, None, (s.peer, s.peer_port))


def test_who_chose_the_port_gets_it_at_once() -> None:
    """bind to it with SO_REUSEADDR, and connect: as Linux whatever tcp_tw_reuse says, if there are timestamps."""
    s = active(tw_reuse=0)
    for claim in s.tcp.ports.claims(s.our_port):
        claim.reuse_addr = True
    assert connects(s, bound=True)


def test_tcp_02_a_port_is_shared_by_connections_to_different_places() -> None:
    """When every ephemeral port is taken, one goes to another destination; only the same 4-tuple is refused."""
    s = Script()
    s.tcp.ports.ephemeral_first, s.tcp.ports.ephemeral_last = 50000, 50001
    first = [s.tcp.connect(None, None, (PEER4, 80)) for _ in range(2)]
    assert {one.local[1] for one in first} == {50000, 50001}
    with pytest.raises(NetError) as caught:
        s.tcp.connect(None, None, (PEER4, 80))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    others = [s.tcp.connect(None, None, (PEER4, 81)) for _ in range(2)]
    assert {one.local[1] for one in others} == {50000, 50001}
    for one in (*first, *others):
        assert s.tcp.ports.claims(one.local[1])
        one.abort()
    assert not list(s.tcp.ports)
    assert s.tcp.connect(None, None, (PEER4, 80)).local[1] in (50000, 50001)


def test_options_of_the_layer_are_linuxs() -> None:
    config = Script().config
    assert (config.tw_reuse, config.rfc1337, config.time_wait) == (2, False, 60 * NS_PER_S)
    assert TcpOptions().fin_timeout == 60 * NS_PER_S


def test_ports_given_back_are_not_remembered() -> None:
    """However many connections come and go, what is kept of their ports is bounded."""
    s = Script()
    for number in range(3000):
        s.tcp.connect(None, None, (PEER4, 1 + number)).abort()
    s.drain()
    assert len(s.tcp._shared) <= 300
    assert not list(s.tcp.ports)
