"""Selective acknowledgments: the sender's scoreboard (RFC 2018, RFC 6675) and D-SACK both ways (RFC 2883)."""

from __future__ import annotations

import random

import pytest

from stack.tcp.recovery import RecoveryPhase
from stack.tcp.scoreboard import Scoreboard
from stack.tests.tcp.sacking import SackScript
from stack.tests.tcp.script import PEER_ISN, pattern
from stack.wire.tcp import ACK, HeaderOptions

# --- the scoreboard against a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_scoreboard_agrees_with_a_bitmap(seed: int) -> None:
    """RFC 6675 section 3: any order of blocks, ACKs, losses and retransmissions, segment by segment."""
    rng = random.Random(seed)
    mss, count = 10, 60
    flights = sorted({*(rng.randrange(1, count) for _ in range(8)), count})
    board = Scoreboard.begin(0, count * mss, [(edge * mss, edge) for edge in flights], 0)
    fate = ["flight"] * count
    una = 0
    for _ in range(60):
        match rng.choice(("sack", "ack", "lose", "resend")):
            case "sack":
                left = rng.randrange(una, count)
                right = rng.randrange(left + 1, count + 1)
                news = board.sack(left * mss, right * mss, mss)
                fresh = [n for n in range(left, right) if fate[n] != "sacked"]
                assert sorted(n for run in news for n in range(run.start // mss, run.end // mss)) == fresh
                for n in fresh:
                    fate[n] = "sacked"
            case "ack":
                una = rng.randrange(una, min(una + 6, count))
                _, size = board.acknowledge(una * mss)
                assert size == mss * sum(fate[n] not in ("sacked", "gone") for n in range(una))
                fate[:una] = ["gone"] * una
            case "lose":
                for run in board.runs:
                    if not run.sacked and not run.lost and rng.random() < 0.3:
                        board.lose(run)
                        for n in range(run.start // mss, run.end // mss):
                            fate[n] = "lost"
            case "resend":
                lost = [index for index, run in enumerate(board.runs) if run.lost]
                if lost:
                    run = board.resend(rng.choice(lost), mss * rng.randrange(1, 4), 1000)
                    for n in range(run.start // mss, run.end // mss):
                        fate[n] = "flight"
        assert board.sacked == mss * fate.count("sacked")
        assert board.lost == mss * fate.count("lost")
        at = una * mss
        for run in board.runs:
            assert run.start == at < run.end
            at = run.end
            names = {fate[n] for n in range(run.start // mss, run.end // mss)}
            assert names == {"sacked" if run.sacked else "lost" if run.lost else "flight"}
        assert at == count * mss


def test_bytes_that_are_no_whole_segment_cost_nothing() -> None:
    """A peer that reports every second byte does not make the scoreboard longer than one that reports segments."""
    board = Scoreboard.begin(0, 100_000, [(100_000, 1)], 0)
    for at in range(1, 100_000, 2):
        assert board.sack(at, at + 1, 1000) == []
    assert len(board.runs) == 1


# --- RFC 2018 ---------------------------------------------------------------------------------------------------------


def test_only_the_holes_go_again() -> None:
    """Section 5: "the data sender SHOULD NOT retransmit segments that are SACKed"."""
    s = SackScript().sending(20)
    s.sack(2, (3, 6), (8, 12))
    assert s.recovery.phase is RecoveryPhase.RECOVERY
    sent = s.segments()
    s.sack(3, (3, 6), (8, 12))
    s.sack(6, (8, 12))
    s.sack(7, (8, 12))
    sent += s.segments()
    again = [n for first, count in sent for n in range(first, first + count) if n < 12]
    assert again == [2, 6, 7]


def test_blocks_are_advisory_and_a_reneging_peer_gets_everything() -> None:
    """Section 8: after a time-out what was sacked is sent again if the peer does not acknowledge it."""
    s = SackScript().sending(4, queued=4)
    s.sack(0, (1, 2))
    s.recovery.board.runs[0].lost = False  # type: ignore[union-attr] # it is there
    s.wait(300)
    assert s.segments()[0] == (0, 1)
    s.sack(1)  # the segment at SND.UNA was sacked and is not acknowledged with what it follows
    s.wait(3000)
    assert (1, 1) in s.segments()
    s.sack(4)
    assert s.connection.sender.snd_una == s.connection.sender.snd_max


@pytest.mark.parametrize(
    "blocks",
    [((50, 60),), ((5, 5),), ((6, 3),), ((19, 21),), ((0, 100_000),)],
    ids=["unsent", "empty", "turned", "beyond", "far"],
)
def test_senseless_blocks_are_ignored(blocks: tuple[tuple[int, int], ...]) -> None:
    s = SackScript().sending(20)
    s.sack(0, *blocks)
    assert s.recovery.board is None
    assert s.segments() == []
    s.sack(20)
    assert s.connection.sender.snd_una == 1 + 20 * s.mss + s.connection.sender.iss


def test_no_scoreboard_without_disorder() -> None:
    s = SackScript().sending(20)
    s.sack(10)
    course = [s.recovery.engaged]
    s.sack(10, (11, 14))
    course.append(s.recovery.engaged)
    s.segments()
    s.sack(s.connection.sender.flight // s.mss + 10)
    course.append(s.recovery.engaged)
    assert course == [False, True, False]
    assert len(s.connection.sender.flights) == 0 or s.connection.sender.flights[0][0] > s.connection.sender.snd_una


# --- RFC 6675 ---------------------------------------------------------------------------------------------------------


def test_pipe_is_what_limits() -> None:
    """Section 4, SetPipe: what is sacked has left the network, so as much new data may enter (with RFC 3042)."""
    s = SackScript().sending(10)
    s.sack(0, (1, 2))
    assert s.segments() == [(10, 1)]
    s.sack(0, (1, 3))
    assert s.segments() == [(11, 1)]
    assert s.connection.sender.congestion.cwnd == 10 * s.mss


def test_retransmission_before_new_data() -> None:
    """Section 4, NextSeg rule 1 before rule 2."""
    s = SackScript().sending(10)
    s.sack(0, (1, 5))
    sent = s.segments()
    assert sent[0] == (0, 1)
    assert all(first >= 10 for first, _ in sent[1:])


def test_one_reduction_per_window() -> None:
    """Section 5: until RecoveryPoint is acknowledged further holes of that window do not reduce again."""
    s = SackScript().sending(20)
    s.sack(0, (1, 6))
    ssthresh = s.connection.sender.congestion.ssthresh
    s.segments()
    s.sack(6, (8, 14))
    s.sack(14, (16, 20))
    assert s.connection.sender.congestion.ssthresh == ssthresh
    assert s.recovery.phase is RecoveryPhase.RECOVERY


def test_loss_of_what_was_sent_after_the_reduction_is_another_event() -> None:
    """Section 5: RecoveryPoint bounds what one reduction answers for, though the hole was mended in the meantime."""
    s = SackScript().sending(20)
    s.wait(100)
    s.sack(0, (1, 20))
    new = [first for first, _ in s.segments() if first >= 20]
    assert new
    s.wait(50)
    s.sack(0, (1, 20))
    s.connection.sender.congestion.cwnd += 8 * s.mss
    s.connection.schedule()
    s.turn()
    sent = s.segments()
    end = max(first + count for first, count in sent)
    s.wait(100)
    again = []
    for left in range(end - 1, 20, -1):
        s.sack(0, (1, 20), (left, end))
        again += [first for first, _ in s.segments()]
    assert 20 in again
    first_reduction = s.connection.sender.congestion.ssthresh
    s.sack(20, (21, end))
    assert s.recovery.phase is RecoveryPhase.RECOVERY
    assert s.connection.sender.congestion.ssthresh < first_reduction


# --- RFC 2883 ---------------------------------------------------------------------------------------------------------


def reported(s: SackScript) -> list[tuple[int, int]]:
    sent = s.drain()[-1].header
    return [((left - PEER_ISN) & 0xFFFFFFFF, (right - PEER_ISN) & 0xFFFFFFFF) for left, right in sent.options.sack]


def test_a_duplicate_below_the_ack_is_reported_once() -> None:
    """Section 4.1.1, reporting a duplicate segment."""
    s = SackScript()
    s.send(ACK, seq=1, ack=1, data=pattern(1000))
    s.drain()
    s.send(ACK, seq=501, ack=1, data=pattern(500, 500))
    assert reported(s) == [(501, 1001)]
    s.send(ACK, seq=1001, ack=1, data=pattern(1000, 1000))
    assert reported(s) == []


def test_a_duplicate_with_a_hole_before_it() -> None:
    """Section 4.1.2 and 4.2: the D-SACK block first, then the block that contains it."""
    s = SackScript()
    s.send(ACK, seq=2001, ack=1, data=pattern(1000))
    s.send(ACK, seq=3001, ack=1, data=pattern(1000))
    s.send(ACK, seq=5001, ack=1, data=pattern(1000))
    s.drain()
    s.send(ACK, seq=2001, ack=1, data=pattern(1000))
    assert reported(s) == [(2001, 3001), (2001, 4001), (5001, 6001)]


def test_a_partial_duplicate() -> None:
    """Section 4.3: only the part that was there already."""
    s = SackScript()
    s.send(ACK, seq=1, ack=1, data=pattern(1000))
    s.drain()
    s.send(ACK, seq=501, ack=1, data=pattern(1000, 500))
    assert reported(s) == [(501, 1001)]


def test_blocks_are_told_though_data_leaves_too() -> None:
    """Our own data segments have no room for blocks: a bare ACK carries them beside."""
    s = SackScript()
    s.send(ACK, seq=2001, ack=1, data=pattern(1000), turn=False)
    s.connection.write(b"data of our own")
    s.turn()
    bare, ours = s.drain()
    assert bare.header.options.sack
    assert not bare.data
    assert ours.data == b"data of our own"


def test_a_burst_out_of_order_is_told_in_as_few_acks_as_hold_it() -> None:
    s = SackScript()
    for start in range(2001, 20_001, 2000):
        s.send(ACK, seq=start, ack=1, data=pattern(1000), turn=False)
    s.turn()
    sent = s.drain()
    assert len(sent) == 2  # nine ranges; RECENT remembers eight, an ACK holds four
    assert sent[-1].header.options.sack[0][0] == (PEER_ISN + 18_001) & 0xFFFFFFFF


def test_unneeded_retransmissions_are_taken_back() -> None:
    """RFC 3708: everything sent again was reported as duplicate, so nothing had been lost."""
    s = SackScript().sending(20)
    congestion = s.connection.sender.congestion
    s.sack(0, (1, 5))
    assert s.segments()[0] == (0, 1)
    assert congestion.cwnd < 20 * s.mss
    s.sack(5)  # the original was only late
    s.sack(6, (0, 1))
    assert congestion.cwnd >= 20 * s.mss
    assert s.tcp.stats.spurious == 1
    assert s.tcp.stats.dsacks_in == 1


def test_timestamps_tell_a_late_original() -> None:
    """RFC 3522: the ACK echoes a time before the retransmission."""
    s = SackScript(timestamps=True).sending(20)
    before = s.connection.timestamp()
    s.tsecr = before
    s.wait(50)
    s.sack(0, (1, 5))
    assert s.segments()[0] == (0, 1)
    s.tsecr = before
    s.sack(5)
    assert s.tcp.stats.spurious == 1
    assert s.recovery.phase is RecoveryPhase.OPEN


# --- a peer that lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_no_blocks_whatever_break_the_account(seed: int) -> None:
    """Any edges, in any order, with any ACK in range: the scoreboard stays whole, and an honest ACK ends it all."""
    rng = random.Random(seed)
    s = SackScript(congestion=("reno", "cubic", "bbr")[seed % 3]).sending(2, queued=300)
    sender = s.connection.sender
    sender.congestion.cwnd = 200 * s.mss
    acked = 0
    for _ in range(150):
        s.drain()
        s.wait(rng.choice((0, 0, 1, 30, 250)))
        flight = sender.snd_max - sender.snd_una
        edges = []
        for _ in range(rng.randrange(1, 5)):
            left = sender.snd_una + rng.randrange(-3000, flight + 3000)
            edges.append((left & 0xFFFFFFFF, (left + rng.randrange(-10, 9000)) & 0xFFFFFFFF))
        if rng.random() < 0.2:
            acked = sender.snd_una - sender.iss - 1 + rng.randrange(0, flight + 1)
        options = HeaderOptions(sack=tuple(edges))
        s.send(ACK, seq=1, ack=1 + acked, options=options)
        board = s.recovery.board
        if board is not None and board.runs:
            assert board.runs[0].start == sender.snd_una
            assert board.runs[-1].end == sender.snd_max
            assert all(a.end == b.start for a, b in zip(board.runs, board.runs[1:], strict=False))
            assert board.sacked == sum(run.end - run.start for run in board.runs if run.sacked)
            assert board.lost == sum(run.end - run.start for run in board.runs if run.lost)
            assert len(board.runs) <= 2 * flight // s.mss + 4
    for _ in range(400):
        if sender.snd_una > sender.queue.end - 1:
            break
        s.wait(400)
        s.drain()
        s.send(ACK, seq=1, ack=sender.snd_max - sender.iss)
    assert sender.queue.end == sender.snd_una
