"""The dirty log: every page written for the guest is marked, and nothing beyond the log (CVE-2020-10722)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from vhost_user.dirty_log import DirtyLog
from vhost_user.memory import MemoryTableError
from vhost_user.tests.ring_guest import (
    AVAIL,
    BUFFERS,
    DESC,
    F_EVENT_IDX,
    F_LOG_ALL,
    USED,
    WRITE,
    Guest,
    Ring,
    memory_file,
)

LOG_SIZE = 0x1000  # 32768 pages
#: Where the used ring's writes are to be logged: any guest address, not necessarily where the ring is.
LOG_GPA = 0x3FF8


class Logged:
    """A running ring with a log."""

    def __init__(self, *, features: int = F_EVENT_IDX | F_LOG_ALL, flags: int = 1, size: int = LOG_SIZE) -> None:
        self.guest = Guest()
        self.ring = Ring(self.guest, features=features)
        self.fd = memory_file(LOG_SIZE)
        log = DirtyLog(self.fd, size, 0)
        self.ring.queue.set_log(log)
        log.close()
        self.ring.queue.set_addr(flags, self.ring.uva(DESC), self.ring.uva(USED), self.ring.uva(AVAIL), LOG_GPA)

    def pages(self) -> set[int]:
        bits = os.pread(self.fd, LOG_SIZE, 0)
        found = {8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}
        os.pwrite(self.fd, bytes(LOG_SIZE), 0)
        return found

    def close(self) -> None:
        self.ring.close()
        self.guest.close()
        os.close(self.fd)


@pytest.fixture(name="logged")
def _logged() -> Iterator[Logged]:
    logged = Logged()
    yield logged
    logged.close()


def test_payload_and_used_ring_are_marked(logged: Logged) -> None:
    """num = 8: entries at log_gpa+4, idx at +2; 0x3ff8+4 to 0x3ff8+12 crosses from page 3 to page 4."""
    logged.ring.offer_buffers((0x9FFF, 10), flags=WRITE)
    logged.ring.queue.push([(b"ab",)])
    assert logged.pages() == {0x9, 0xA, 0x3, 0x4}


def test_only_what_is_written_is_marked(logged: Logged) -> None:
    logged.ring.offer_buffers((0x9000, 0x3000), flags=WRITE)
    logged.ring.queue.push([(b"x" * 0x1000,)])
    assert logged.pages() - {3, 4} == {0x9}


def test_every_chunk_of_a_long_frame_is_marked(logged: Logged) -> None:
    logged.ring.offer_buffers((0x1F800, 0x1000), (0x9000, 0x2001), flags=WRITE)
    logged.ring.queue.push([(bytes(12), b"x" * 0x2FF5)], header_fixup=10)
    assert logged.pages() - {3, 4} == {0x1F, 0x20, 0x9, 0xA, 0xB}


def test_reading_marks_the_used_ring_only(logged: Logged) -> None:
    logged.ring.offer_buffers((BUFFERS, 0x1000))
    logged.ring.pop()
    assert logged.pages() == {3, 4}


def test_used_entries_are_marked_where_they_wrap(logged: Logged) -> None:
    """With num = 8 and the log at 0x3ff8, entry 0 ends in page 4 like all others; flags and idx alone are in page 3."""
    for _ in range(3):
        logged.ring.offer_buffers(*[(BUFFERS, 1)] * 6)
        assert len(logged.ring.pop()) == 6
        assert logged.pages() == {3, 4}


def test_avail_event_and_flags_are_marked(logged: Logged) -> None:
    logged.ring.queue.arm()
    assert logged.pages() == {4}  # avail_event: 4 + 8*8 behind 0x3ff8


def test_used_flags_are_marked() -> None:
    logged = Logged(features=F_LOG_ALL)
    logged.pages()
    logged.ring.queue.suppress()
    assert logged.pages() == {3}
    logged.close()


def test_without_the_address_flag_the_used_ring_is_not_marked() -> None:
    logged = Logged(flags=0)
    logged.ring.offer_buffers((0x9000, 10), flags=WRITE)
    logged.ring.queue.push([(b"ab",)])
    assert logged.pages() == {9}
    logged.close()


def test_without_the_feature_payload_is_not_marked() -> None:
    logged = Logged(features=F_EVENT_IDX)
    logged.ring.offer_buffers((0x9000, 10), flags=WRITE)
    logged.ring.queue.push([(b"ab",)])
    assert logged.pages() == {3, 4}
    logged.close()


def test_pages_beyond_the_log_are_not_marked_anywhere() -> None:
    """CVE-2020-10722: the log of this guest claims one byte, pages 0 to 7; the file behind it is longer."""
    logged = Logged(size=1)
    logged.ring.offer_buffers((0x7F00, 0x200), (0x40000, 10), flags=WRITE)
    logged.ring.queue.push([(b"x" * 0x200,), (b"y",)])
    assert logged.pages() == {3, 4, 7}
    logged.close()


def test_a_log_address_that_overflows_is_not_marked(logged: Logged) -> None:
    ring = logged.ring
    ring.queue.set_addr(1, ring.uva(DESC), ring.uva(USED), ring.uva(AVAIL), (1 << 64) - 1)
    ring.offer_buffers((0x9000, 10))
    logged.pages()
    assert len(ring.pop()) == 1
    assert logged.pages() == set()
    assert ring.queue.broken is None


def test_a_log_that_cannot_be_is_refused() -> None:
    fd = memory_file(LOG_SIZE)
    for size, offset in ((0, 0), (-1, 0), (LOG_SIZE + 1, 0), (LOG_SIZE, 1), (1, 1 << 64), (1, -1), (1 << 64, 0)):
        with pytest.raises(MemoryTableError):
            DirtyLog(fd, size, offset)
    os.close(fd)


def test_a_truncated_log_breaks_the_ring_not_the_process() -> None:
    logged = Logged()
    fd = memory_file(LOG_SIZE, sealed=False)
    log = DirtyLog(fd, LOG_SIZE, 0)
    logged.ring.queue.set_log(log)
    log.close()
    os.ftruncate(fd, 0)
    logged.ring.offer_buffers((0x9000, 10), flags=WRITE)
    assert logged.ring.queue.push([(b"ab",)]) == 0
    assert logged.ring.queue.broken is not None
    assert "truncated" in logged.ring.queue.broken
    os.close(fd)
    logged.close()


def test_the_model_of_a_page_number() -> None:
    """log[p/8] |= 1 << (p%8)."""
    logged = Logged()
    logged.pages()
    logged.ring.offer_buffers((0x43000, 1), flags=WRITE)
    logged.ring.queue.push([(b"x",)])
    assert os.pread(logged.fd, 1, 0x43 // 8) == struct.pack("B", 1 << (0x43 % 8))
    logged.close()
