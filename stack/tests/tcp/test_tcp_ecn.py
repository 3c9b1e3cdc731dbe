"""ECN (RFC 3168): who agrees, who marks, who echoes, who reduces; ABE (RFC 8511)."""

from __future__ import annotations

import pytest

from stack.tests.tcp.sacking import SackScript
from stack.tests.tcp.script import Script, pattern
from stack.wire.tcp import ACK, CWR, ECE, FIN, PSH, SYN, HeaderOptions

ECT0, CE = 2, 3


# --- section 6.1.1: the handshake -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "asked", "answer"), [(0, True, 0), (1, True, ECE), (2, True, ECE), (2, False, 0), (1, False, 0)]
)
def test_agreeing_as_server(mode: int, asked: bool, answer: int) -> None:
    s = Script(ecn=mode).listen()
    s.send(SYN | (ECE | CWR if asked else 0), options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK | answer)


@pytest.mark.parametrize("bits", [ECE, CWR])
def test_one_bit_is_no_question(bits: int) -> None:
    s = Script(ecn=2).listen()
    s.send(SYN | bits, options=HeaderOptions(mss=1460))
    s.expect(SYN | ACK)


@pytest.mark.parametrize(("answer", "agreed"), [(ECE, True), (0, False), (ECE | CWR, False), (CWR, False)])
def test_asking_as_client(answer: int, agreed: bool) -> None:
    s = Script(ecn=1).connect()
    s.expect(SYN | ECE | CWR)
    s.send(SYN | ACK | answer, ack=1, options=HeaderOptions(mss=1460))
    assert (s.connection.ecn is not None) is agreed


def test_client_does_not_ask_by_default() -> None:
    Script().connect().expect(SYN)


def test_the_syn_again_goes_without() -> None:
    """Section 6.1.1.1: a middlebox may have dropped it for its flags."""
    s = Script(ecn=1).connect()
    s.expect(SYN | ECE | CWR)
    s.wait(1001)
    s.expect(SYN)


# --- who is ECN-capable -----------------------------------------------------------------------------------------------


def test_new_data_is_ecn_capable_and_nothing_else() -> None:
    """Section 6.1.4 (bare ACKs), 6.1.5 (retransmissions)."""
    s = SackScript(ecn=True).sending(10)
    s.sack(0, (1, 10))
    again, new = s.drain()[:2]
    assert (again.tos, new.tos) == (0, ECT0)
    s.send(ACK, seq=1, ack=s.at(0), data=pattern(10))
    s.wait(50)
    bare = [sent for sent in s.drain() if not sent.data]
    assert bare
    assert all(sent.tos == 0 for sent in bare)


def test_without_agreement_nothing_is() -> None:
    s = SackScript()
    s.write(b"x")
    assert s.drain()[0].tos == 0


def test_the_users_tos_keeps_its_upper_six_bits() -> None:
    s = SackScript(ecn=True)
    s.connection.options.tos = 0x2B
    s.write(b"x")
    assert s.drain()[0].tos == 0x28 | ECT0


# --- section 6.1.3: the receiver --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timestamps", [False, True])
def test_marks_are_echoed_until_cwr(timestamps: bool) -> None:
    s = SackScript(ecn=True, timestamps=timestamps)
    s.tos = CE
    s.send(ACK | PSH, seq=1, ack=1, data=b"a")
    s.tos = ECT0
    s.expect(ACK | ECE, ack=2)
    s.send(ACK | PSH, seq=2, ack=1, data=b"b")
    s.expect(ACK | ECE, ack=3)
    s.send(ACK | PSH | CWR, seq=3, ack=1, data=b"c")
    s.expect(ACK, ack=4)
    assert s.read() == b"abc"


def test_data_and_duplicate_acks_carry_the_echo_too() -> None:
    s = SackScript(ecn=True)
    s.tos = CE
    s.send(ACK, seq=11, ack=1, data=b"late")
    s.expect(ACK | ECE, ack=1)
    s.write(b"x")
    s.expect(ACK | ECE, data=b"x")


def test_a_mark_with_cwr_is_a_new_one() -> None:
    s = SackScript(ecn=True)
    s.tos = CE
    s.send(ACK | PSH | CWR, seq=1, ack=1, data=b"a")
    s.expect(ACK | ECE, ack=2)


def test_marks_mean_nothing_without_agreement() -> None:
    s = SackScript()
    s.tos = CE
    s.send(ACK | PSH, seq=1, ack=1, data=b"a")
    s.expect(ACK, ack=2)


# --- section 6.1.2: the sender ----------------------------------------------------------------------------------------


def test_an_echo_reduces_once_per_window_and_says_so() -> None:
    """The reduction is Reno's with beta 0.8 (RFC 8511), and CWR is on one segment of new data."""
    s = SackScript(ecn=True).sending(20)
    congestion = s.connection.sender.congestion
    s.sack(10, flags=ACK | ECE)
    assert congestion.ssthresh == congestion.cwnd == 10 * s.mss * 8 // 10
    s.sack(12, flags=ACK | ECE)
    assert congestion.ssthresh == 8 * s.mss
    s.drain()
    s.sack(20, flags=ACK | ECE)
    sent = s.drain()
    assert [bool(one.header.flags & CWR) for one in sent] == [True] + [False] * (len(sent) - 1)
    assert len(sent[0].data) == s.mss  # not a superframe
    s.sack(21, flags=ACK)
    assert congestion.ssthresh == 8 * s.mss
    s.sack(22, flags=ACK | ECE)
    assert congestion.ssthresh < 8 * s.mss  # a new window


def test_cubic_reduces_by_its_own_factor() -> None:
    s = SackScript(ecn=True, congestion="cubic").sending(20)
    s.sack(1, flags=ACK | ECE)
    congestion = s.connection.sender.congestion
    assert congestion.ssthresh == pytest.approx(0.85 * 21 * s.mss, rel=0.05)


def test_the_last_piece_keeps_its_fin_behind_the_cwr_segment() -> None:
    s = SackScript(ecn=True).sending(4)
    s.connection.shutdown_write()
    ecn = s.connection.ecn
    assert ecn is not None
    plan, codepoint = ecn.dress([(1, 3000, ACK | PSH | FIN)], 1460, fresh=True)
    assert (list(plan), codepoint) == ([(1, 3000, ACK | PSH | FIN)], ECT0)
    ecn.cwr_due = True
    plan, _ = ecn.dress([(1, 3000, ACK | PSH | FIN)], 1460, fresh=True)
    assert list(plan) == [(1, 1460, ACK | CWR), (1461, 1540, ACK | PSH | FIN)]


def test_echo_without_agreement_is_ignored() -> None:
    s = SackScript().sending(20)
    before = s.connection.sender.congestion.ssthresh
    s.sack(1, flags=ACK | ECE)
    assert s.connection.sender.congestion.ssthresh == before
