"""Answers that carry acknowledgments: the first question waits a moment for one, an end is answered by an end."""

from __future__ import annotations

from stack.scheduler import NS_PER_MS
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, FIN, PSH

WAIT = NS_PER_MS


def asked(data: bytes = b"question") -> Script:
    s = Script(answer_wait=WAIT).established()
    s.send(ACK | PSH, seq=1, ack=1, data=data)
    return s


def test_the_first_question_is_acknowledged_by_its_answer() -> None:
    s = asked()
    s.expect_nothing()
    assert s.read() == b"question"
    s.turn()
    s.expect_nothing()
    s.write(b"answer")
    s.expect(ACK | PSH, seq=1, ack=9, data=b"answer")
    s.wait(100)
    s.send(ACK, seq=9, ack=7)
    s.wait(100)
    s.expect_nothing()


def test_the_first_question_is_acknowledged_after_a_millisecond_without_an_answer() -> None:
    s = asked()
    s.expect_nothing()
    s.wait(1)
    s.expect(ACK, seq=1, ack=9)
    s.send(ACK | PSH, seq=9, ack=1, data=b"more")
    s.expect(ACK, seq=1, ack=13)  # it was no question, and the next one is none either


def test_a_full_segment_is_no_question() -> None:
    s = asked(b"x" * 1460)
    s.expect(ACK, seq=1, ack=1461)


def test_after_data_of_ours_nothing_is_a_first_question() -> None:
    s = Script(answer_wait=WAIT).established()
    s.write(b"banner")
    s.expect(ACK | PSH, seq=1, data=b"banner")
    s.send(ACK | PSH, seq=1, ack=7, data=b"hello")
    s.expect(ACK, seq=7, ack=6)


def test_in_a_conversation_the_end_is_answered_by_an_end() -> None:
    s = asked()
    s.read()
    s.write(b"answer")
    s.expect(ACK | PSH, seq=1, ack=9, data=b"answer")
    s.send(ACK | FIN, seq=9, ack=7)
    s.expect_nothing()
    s.connection.close()
    s.turn()
    s.expect(ACK | FIN, seq=7, ack=10)
    s.expect_nothing()


def test_in_a_conversation_the_end_is_acknowledged_in_the_end() -> None:
    """RFC 9293 section 3.8.6.3: nobody closes, so the delayed ACK's timer says it."""
    s = asked()
    s.read()
    s.write(b"answer")
    s.expect(ACK | PSH, seq=1, ack=9, data=b"answer")
    s.send(ACK | FIN, seq=9, ack=7)
    s.expect_nothing()
    s.wait(40)
    s.expect(ACK, seq=7, ack=10)
    s.expect_nothing()
