"""The console is always read, bounded, searchable, and says what hurt the kernel."""

from __future__ import annotations

import os

import pytest

from qemu.guest.console import Log, Reader


def test_keeps_the_end_within_the_limit() -> None:
    log = Log(limit=1000)
    for number in range(1000):
        log.feed(b"line %d\n" % number)
    assert len(log.text) <= 1000
    assert log.text.endswith("line 999\n")
    assert log.dropped > 0
    assert len(log._bytes) <= 1250  # what is held, not only what is shown


def test_tail_skips_empty_lines_and_control_sequences() -> None:
    log = Log()
    log.feed(b"\x1bc\x1b[?7l\x1b[2J one\r\n\r\n\r\ntwo\x1b[0m\r\nthree\xff")
    assert log.tail(2) == "two\nthree\N{REPLACEMENT CHARACTER}"
    assert log.tail() == " one\ntwo\nthree\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("printed", "trouble"),
    [
        (
            b"[ 1.0] Kernel panic - not syncing: No working init found.\r\n",
            "Kernel panic - not syncing: No working init found.",
        ),
        (
            b"[ 1.0] BUG: kernel NULL pointer dereference, address: 0\r\n",
            "BUG: kernel NULL pointer dereference, address: 0",
        ),
        (b"Oops: 0002 [#1] PREEMPT SMP\r\nmore", "Oops: 0002 [#1] PREEMPT SMP"),
        (b"kernel BUG at mm/slub.c:4!\n", "kernel BUG at mm/slub.c:4!"),
        (b"all is well\n", ""),
    ],
)
def test_names_the_kernels_first_complaint(printed: bytes, trouble: str) -> None:
    log = Log()
    log.feed(b"before\r\n" + printed)
    assert log.trouble == trouble


def test_tee_gets_every_byte() -> None:
    seen: list[bytes] = []
    log = Log(limit=4, tee=seen.append)
    log.feed(b"abc")
    log.feed(b"defgh")
    assert b"".join(seen) == b"abcdefgh"


def test_reader_fills_logs_until_their_ends() -> None:
    reader, logs, writers = Reader(), [Log(), Log()], []
    for log in logs:
        read_end, write_end = os.pipe()
        reader.add(read_end, log)
        writers.append(write_end)
    reader.start()
    os.write(writers[0], b"hello\n")
    assert logs[0].wait_for("hel+o", 10)
    for writer in writers:
        os.close(writer)
    reader.settle(10)
    assert [log.ended for log in logs] == [True, True]
    assert not logs[0].wait_for("never", 10)  # at once: the stream has ended
    reader.close()


def test_reader_closes_while_a_stream_is_silent() -> None:
    reader, log = Reader(), Log()
    read_end, write_end = os.pipe()
    reader.add(read_end, log)
    reader.start()
    reader.close()
    reader.close()
    assert log.ended
    os.close(write_end)


def test_reader_that_was_never_started_closes_too() -> None:
    reader = Reader()
    read_end, write_end = os.pipe()
    reader.add(read_end, Log())
    reader.close()
    os.close(write_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_end)
