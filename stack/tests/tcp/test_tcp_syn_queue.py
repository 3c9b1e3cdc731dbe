"""LISTEN and SYN-RECEIVED as Linux keeps them: SYN queue, accept queue, their limits (rows TCP-14, TCP-29, TCP-35).

A `Listener` turns a SYN into a request, the ACK of its SYN|ACK into a connection. RFC 9293 section 3.10.7.2 and .4.
"""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest

from stack.scheduler import NS_PER_S
from stack.tcp import TcpOptions
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, FIN, PSH, RST, SYN, HeaderOptions


def syn(s: Script, number: int, *, answered: bool = True, **options: object) -> int:
    """A SYN of peer `number`; gives our ISN in the answer."""
    s.peer_port = 1024 + number
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460, **options))  # type: ignore[arg-type]  # of HeaderOptions
    if not answered:
        s.expect_nothing()
        return 0
    return s.expect(SYN | ACK, seq=0, ack=1).header.seq


def last_ack(s: Script, number: int, iss: int, data: bytes = b"") -> None:
    s.peer_port, s.iss = 1024 + number, iss
    s.send(ACK | PSH if data else ACK, seq=1, ack=1, data=data)


def ports(s: Script) -> list[int]:
    found = []
    while (connection := s.listener.accept()) is not None:
        found.append(connection.remote[1] - 1024)
    return found


# --- the accept queue ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backlog", [0, 1, 4])
def test_tcp_14_accept_queue_holds_backlog_plus_one_in_order(backlog: int) -> None:
    """listen(n) keeps n + 1 connections for accept, first come first served; a SYN that finds them all is dropped."""
    s = Script().listen(backlog=backlog)
    for number in range(backlog + 1):
        last_ack(s, number, syn(s, number))
    assert s.listener.ready == backlog + 1
    syn(s, 99, answered=False)
    assert s.tcp.mib["TcpExtListenOverflows"] == s.tcp.mib["TcpExtListenDrops"] == 1
    assert s.tcp.drops["accept-queue-full"] == 1
    assert ports(s) == list(range(backlog + 1))
    syn(s, 99)


def overflowing(**config: Any) -> tuple[Script, int]:
    """Peers 0 and 1 fill the accept queue, peer 2 is half open; and our ISN for that one."""
    s = Script(**config).listen(backlog=1)
    last_ack(s, 0, syn(s, 0))
    isns = [syn(s, 1), syn(s, 2)]
    last_ack(s, 1, isns[0])
    return s, isns[1]


def test_tcp_14_last_ack_that_finds_the_queue_full_is_dropped() -> None:
    """The peer believes it is connected; our SYN|ACK comes again in time, and with room its answer gets in."""
    s, iss = overflowing()
    last_ack(s, 2, iss)
    s.expect_nothing()
    assert s.listener.ready == 2
    assert len(s.listener.half_open) == 1
    assert s.tcp.mib["TcpExtListenOverflows"] == 1
    s.wait(1000)
    s.expect(SYN | ACK, seq=0, ack=1)
    last_ack(s, 2, iss)
    assert s.tcp.mib["TcpExtListenOverflows"] == 2
    assert ports(s) == [0, 1]
    s.wait(2000)
    s.expect(SYN | ACK, seq=0, ack=1)
    last_ack(s, 2, iss, b"at last")
    connection = s.listener.accept()
    assert connection is not None
    assert connection.read(99) == b"at last"


def test_tcp_14_abort_on_overflow_resets_instead() -> None:
    """Linux tcp_abort_on_overflow: the last ACK that finds no room is answered by a reset."""
    s, iss = overflowing(abort_on_overflow=True)
    last_ack(s, 2, iss)
    s.expect(RST | ACK, seq=1)
    assert not s.listener.half_open
    assert s.tcp.mib["TcpExtEmbryonicRsts"] == 1


def test_tcp_13_backlog_changes_count_at_once() -> None:
    """listen() again sets the limit anew, negative means SOMAXCONN."""
    s = Script().listen(backlog=0)
    last_ack(s, 0, syn(s, 0))
    syn(s, 1, answered=False)
    s.listener.backlog = 1
    last_ack(s, 1, syn(s, 1))
    syn(s, 2, answered=False)
    s.listener.backlog = -1
    assert s.listener.limit == 4096
    syn(s, 2)


# --- the SYN queue ---------------------------------------------------------------------------------------------------


def test_tcp_35_syn_queue_holds_backlog_plus_one() -> None:
    """With cookies off a SYN that finds as many half-open connections is dropped; one that ends makes room."""
    s = Script(syncookies=0).listen(backlog=3)
    isns = [syn(s, number) for number in range(4)]
    syn(s, 4, answered=False)
    assert s.tcp.mib["TcpExtTCPReqQFullDrop"] == s.tcp.mib["TcpExtListenDrops"] == 1
    assert s.tcp.drops["syn-queue-full"] == 1
    last_ack(s, 2, isns[2])
    syn(s, 4)
    s.peer_port = 1024
    s.send(RST, seq=1)
    syn(s, 5)
    assert [request.remote[1] - 1024 for request in s.listener.half_open] == [1, 3, 4, 5]


def test_tcp_35_last_quarter_is_for_peers_that_are_known() -> None:
    """tcp_max_syn_backlog counts while cookies are off: above three quarters only who has been here before gets in."""
    s = Script(syncookies=0, syn_backlog=16).listen(backlog=100)
    friend, stranger = s.peer, bytes((10, 0, 2, 99))
    last_ack(s, 0, syn(s, 0))
    s.peer = stranger
    for number in range(13):
        syn(s, number)
    syn(s, 13, answered=False)
    assert s.tcp.mib["TcpExtListenDrops"] == 1
    assert s.tcp.mib["TcpExtTCPReqQFullDrop"] == 0
    s.peer = friend
    syn(s, 14)


def test_tcp_35_syn_backlog_does_not_count_beside_cookies() -> None:
    s = Script(syncookies=1, syn_backlog=4).listen(backlog=100)
    for number in range(50):
        syn(s, number)
    assert len(s.listener.half_open) == 50


def test_half_open_connections_cost_little() -> None:
    """A request of the SYN queue is a small fraction of a connection."""
    s = Script().listen(backlog=4000)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            syn(s, number)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / 1000
        for request in s.listener.half_open[:100]:
            last_ack(s, request.remote[1] - 1024, request.iss)
        gc.collect()
        whole = (tracemalloc.get_traced_memory()[0] - before - 900 * each) / 100
    finally:
        tracemalloc.stop()
    assert each < 1100, f"{each:.0f} bytes"
    assert whole > 4 * each, f"{each:.0f} against {whole:.0f} bytes"


# --- SYN|ACK again ---------------------------------------------------------------------------------------------------


def retransmissions(s: Script, seconds: int) -> list[int]:
    """When SYN|ACKs came again, in whole seconds from now."""
    start, found = s.scheduler.now, []
    for _ in range(seconds):
        s.wait(1000)
        found += [(s.scheduler.now - start) // NS_PER_S for sent in s.drain() if sent.header.flags == SYN | ACK]
    return found


def test_syn_ack_comes_again_five_times_in_a_minute() -> None:
    """tcp_synack_retries 5: after 1, 3, 7, 15 and 31 s; at 63 s the request is gone."""
    s = Script().syn_received()
    assert retransmissions(s, 62) == [1, 3, 7, 15, 31]
    assert s.listener.half_open
    s.wait(1001)
    assert not s.listener.half_open
    assert s.tcp.mib["TcpExtTCPSynRetrans"] == 5
    assert s.tcp.mib["TcpExtTCPTimeouts"] == 6
    assert s.tcp.mib["TcpAttemptFails"] == 1
    s.send(ACK, seq=1, ack=1)
    s.expect(RST, seq=1)


def test_syncnt_of_a_listener_bounds_its_syn_acks() -> None:
    """As in Linux TCP_SYNCNT, if set on a listening socket, goes before tcp_synack_retries."""
    s = Script().syn_received(TcpOptions(synack_retries=2))
    assert retransmissions(s, 100) == [1, 3]
    assert not s.listener.half_open


def test_waits_double_up_to_two_minutes() -> None:
    s = Script().syn_received(TcpOptions(synack_retries=9))
    assert retransmissions(s, 1000) == [1, 3, 7, 15, 31, 63, 127, 247, 367]


def test_old_requests_go_earlier_when_the_queue_is_half_full() -> None:
    """Linux keeps half of the SYN queue for young requests: two retransmissions have to do for the others."""
    s = Script().listen(backlog=8)
    for number in range(9):
        syn(s, number)
    assert retransmissions(s, 100) == [1] * 9 + [3] * 9 + [7] * 4 + [15] * 4 + [31] * 4
    s.listener.backlog = 100
    for number in range(9):
        syn(s, number)
    assert len(retransmissions(s, 100)) == 45


def test_syn_again_restarts_the_wait() -> None:
    """Our SYN|ACK was lost: it is sent again, at most twice a second, and its time-out begins anew."""
    s = Script().syn_received()
    s.wait(900)
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK, seq=0, ack=1)
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460))
    s.expect_nothing()
    assert s.tcp.mib["TcpExtTCPACKSkippedSynRecv"] == 1
    s.wait(900)
    s.expect_nothing()
    s.wait(101)
    s.expect(SYN | ACK, seq=0, ack=1)


def test_time_of_the_handshake_is_the_first_round_trip() -> None:
    s = Script().syn_received()
    s.wait(80)
    s.send(ACK, seq=1, ack=1)
    s.accept()
    assert s.connection.sender.rtt.srtt == 80_000_000


def test_retransmitted_syn_ack_gives_no_round_trip_time() -> None:
    """Karn's rule, and RFC 6298 section 5.7: 3 s to begin with."""
    s = Script().syn_received()
    s.wait(1080)
    s.expect(SYN | ACK)
    s.send(ACK, seq=1, ack=1)
    s.accept()
    assert s.connection.sender.rtt.srtt == 0
    assert s.connection.sender.rtt.rto == 3 * NS_PER_S


# --- TCP_DEFER_ACCEPT ------------------------------------------------------------------------------------------------


def deferring(seconds: int) -> Script:
    s = Script().listen(options=TcpOptions(defer_accept=seconds * NS_PER_S))
    s.iss = syn(s, 0)
    return s


def test_tcp_29_bare_acks_wait_for_data() -> None:
    """A bare ACK does not wake the listener, nor does the SYN|ACK come again before the last round of the period."""
    s = deferring(7)
    s.send(ACK, seq=1, ack=1)
    s.expect_nothing()
    assert s.listener.ready == 0
    assert s.tcp.mib["TcpExtTCPDeferAcceptDrop"] == 1
    s.wait(2900)
    s.expect_nothing()
    s.send(ACK | PSH, seq=1, ack=1, data=b"hello")
    s.accept()
    assert s.connection.read(9) == b"hello"
    assert s.connection.options.defer_accept == 0  # row TCP-16


def test_tcp_29_after_the_period_any_ack_will_do() -> None:
    s = deferring(3)  # two time-outs: 1 s, 2 s
    s.send(ACK, seq=1, ack=1)
    s.wait(2900)
    s.send(ACK, seq=1, ack=1)
    s.expect_nothing()
    assert s.listener.ready == 0
    s.wait(100)
    s.expect(SYN | ACK)
    s.send(ACK, seq=1, ack=1)
    assert s.listener.ready == 1


def test_tcp_29_unacknowledged_syn_acks_come_again_as_ever() -> None:
    s = deferring(100)
    assert retransmissions(s, 40) == [1, 3, 7, 15, 31]


def test_tcp_29_period_may_outlast_the_retries() -> None:
    """127 s are seven time-outs; with an ACK seen the request waits for all of them, and once more for the answer."""
    s = deferring(127)
    s.send(ACK, seq=1, ack=1)
    assert retransmissions(s, 246) == [127]
    assert s.listener.half_open
    s.wait(1001)
    assert not s.listener.half_open
    assert s.listener.ready == 0


def test_tcp_29_a_fin_is_no_bare_ack() -> None:
    s = deferring(10)
    s.send(FIN | ACK, seq=1, ack=1)
    s.expect(ACK, seq=1, ack=2)
    assert s.listener.ready == 1


# --- what else may come in SYN-RECEIVED ------------------------------------------------------------------------------


def test_reset_must_be_exact() -> None:
    """RFC 5961 section 3.2: in the window a challenge ACK, outside nothing, exact: back to LISTEN."""
    s = Script().syn_received()
    s.send(RST, seq=100)
    s.expect(ACK, seq=1, ack=1)
    s.send(RST, seq=70_000)
    s.expect_nothing()
    assert s.listener.half_open
    s.send(RST, seq=1)
    assert not s.listener.half_open
    assert s.tcp.mib["TcpExtEmbryonicRsts"] == s.tcp.mib["TcpAttemptFails"] == 1
    assert not s.tcp.demux.minisocks


def test_another_syn_in_the_window_is_challenged() -> None:
    """RFC 5961 section 4.2."""
    s = Script().syn_received()
    s.send(SYN, seq=50)
    s.expect(ACK, seq=1, ack=1)
    assert s.listener.half_open


def test_segments_outside_the_window_are_answered_by_an_ack() -> None:
    """RFC 9293 section 3.10.7.4, first: unless it is a reset; bare ones twice a second."""
    s = Script().syn_received()
    s.send(ACK, seq=-500, ack=1)
    s.expect(ACK, seq=1, ack=1)
    s.send(ACK, seq=-500, ack=1)
    s.expect_nothing()
    s.send(ACK | PSH, seq=-500, ack=1, data=b"old")
    s.expect(ACK, seq=1, ack=1)
    assert s.listener.half_open


def test_segments_without_ack_are_ignored() -> None:
    s = Script().syn_received()
    s.send(0, seq=1)
    s.send(FIN, seq=1)
    s.send(PSH, seq=1, data=b"text")
    s.expect_nothing()
    assert s.listener.half_open


def test_data_before_the_last_ack_arrives_is_taken() -> None:
    """The bare ACK was lost or overtaken: any segment in the window with the right ACK ends the handshake."""
    s = Script().syn_received()
    s.send(ACK | PSH, seq=6, ack=1, data=b"world")
    s.expect(ACK, seq=1, ack=1)
    s.send(ACK | PSH, seq=1, ack=1, data=b"hello")
    s.expect(ACK, seq=1, ack=11)
    s.accept()
    assert s.connection.read(99) == b"helloworld"


def test_old_timestamps_are_not_taken() -> None:
    """RFC 7323 section 5.3 (PAWS), from the SYN on."""
    s = Script(timestamps=True).syn_received()
    s.send(ACK, seq=1, ack=1, options=HeaderOptions(timestamps=(s.tsval - 1, s.tsecr)))
    s.expect(ACK, seq=1, ack=1)
    assert s.listener.ready == 0
    assert s.tcp.mib["TcpExtPAWSEstab"] == s.tcp.drops["paws"] == 1


def test_echoes_of_what_was_never_sent_are_not_taken() -> None:
    """As Linux: TSecr of the last ACK lies between the first and the last SYN|ACK's TSval."""
    s = Script(timestamps=True).syn_received()
    first = s.tsecr
    s.wait(1000)
    s.expect(SYN | ACK)
    for echo in (first - 1, s.tsecr + 1):
        s.send(ACK, seq=1, ack=1, options=HeaderOptions(timestamps=(s.tsval, echo)))
        assert s.listener.ready == 0
    assert s.tcp.mib["TcpExtTSEcrRejected"] == 2
    s.drain()
    s.send(ACK, seq=1, ack=1, options=HeaderOptions(timestamps=(s.tsval, first)))
    assert s.listener.ready == 1


def test_syn_with_fin_is_dropped() -> None:
    s = Script().listen()
    s.send(SYN | FIN, seq=0)
    s.expect_nothing()
    assert not s.listener.half_open
    assert s.tcp.drops["syn-and-fin"] == 1


def test_icmp_about_another_sequence_number_changes_nothing() -> None:
    """RFC 5927 section 4: only what quotes our SYN|ACK is believed."""
    from stack.tests.tcp.test_tcp_icmp import icmp

    s = Script().syn_received()
    icmp(s, 113, seq=7)
    assert s.listener.half_open
    assert s.tcp.mib["TcpExtOutOfWindowIcmps"] == 1
    icmp(s, 113, seq=0)
    assert not s.listener.half_open
    assert s.tcp.mib["TcpExtListenDrops"] == 1
