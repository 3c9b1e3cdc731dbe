"""Memory tables: what the front-end may say about the guest's memory, and how long mappings live (section 4.1)."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost_user.memory import MAX_REGIONS, MemoryTable, MemoryTableError, Region
from vhost_user.tests.ring_guest import memory_file
from vhost_user.virtqueue import Virtqueue

PAGE = 0x1000
SIZE = 0x10000


@pytest.fixture(name="fd")
def _fd() -> Iterator[int]:
    fd = memory_file(SIZE)
    yield fd
    os.close(fd)


def mapped_pages() -> int:
    """How many pages of memfds this process has mapped: neighbours are one line of the kernel's list, or two."""
    spans = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/memfd:guest" in line
    ]
    return sum(int(end, 16) - int(start, 16) for start, end in spans) // PAGE


def region(gpa: int = 0, size: int = PAGE, uva: int | None = None, offset: int = 0) -> Region:
    return Region(gpa, size, gpa + (1 << 40) if uva is None else uva, offset)


def test_regions_are_kept_by_address(fd: int) -> None:
    low, high = region(), region(PAGE, offset=PAGE)
    table = MemoryTable.build([(high, fd), (low, fd)])
    assert table.regions == (low, high)
    assert not table.unsealed
    assert mapped_pages() == 2
    table.close()
    table.close()
    assert mapped_pages() == 0


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ([], "0 memory regions"),
        ([region(PAGE * i, offset=0) for i in range(MAX_REGIONS + 1)], f"{MAX_REGIONS + 1} memory regions"),
        ([region(size=0)], "empty"),
        ([region(gpa=(1 << 64) - PAGE, uva=0)], "gpa \\+ size overflows"),
        ([region(uva=(1 << 64) - PAGE)], "uva \\+ size overflows"),
        ([region(offset=(1 << 64) - PAGE)], "offset \\+ size overflows"),
        ([region(size=(1 << 64) - 1)], "overflows"),
        ([region(), region(PAGE - 1, uva=0)], "overlap in guest-physical"),
        ([region(), region(0, uva=0)], "overlap in guest-physical"),
        ([region(uva=0), region(PAGE, uva=PAGE - 1)], "overlap in user addresses"),
        ([region(size=SIZE + 1)], "promised"),
        ([region(offset=SIZE - PAGE + 1)], "promised"),
        ([region(offset=SIZE)], "promised"),
        ([region(), region(PAGE, offset=SIZE)], "promised"),
    ],
)
def test_a_table_that_cannot_be_is_refused_and_nothing_stays_mapped(
    fd: int, regions: list[Region], reason: str
) -> None:
    with pytest.raises(MemoryTableError, match=reason):
        MemoryTable.build([(item, fd) for item in regions])
    assert mapped_pages() == 0


def test_the_largest_table(fd: int) -> None:
    table = MemoryTable.build([(region(PAGE * i), fd) for i in range(MAX_REGIONS)])
    assert len(table.regions) == MAX_REGIONS
    table.close()
    assert mapped_pages() == 0


def test_a_region_may_end_exactly_where_its_file_ends(fd: int) -> None:
    MemoryTable.build([(region(size=PAGE, offset=SIZE - PAGE), fd)]).close()


def test_offsets_need_not_be_whole_pages(fd: int) -> None:
    os.pwrite(fd, b"at 100", 100)
    table = MemoryTable.build([(region(size=50, offset=100), fd)])
    from vhost_user._vring import ffi

    assert ffi.buffer(table.handle.region[0].host, 6)[:] == b"at 100"
    table.close()


def test_descriptors_that_are_no_memory_are_refused(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(MemoryTableError, match="not a memory file"):
        MemoryTable.build([(region(), left.fileno())])
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(MemoryTableError, match="not a memory file"):
        MemoryTable.build([(region(), fd)])
    os.close(fd)
    with pytest.raises(MemoryTableError, match="Bad file descriptor"):
        MemoryTable.build([(region(), fd)])


def test_memory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file, pytest.raises(MemoryTableError, match="Permission denied"):
        MemoryTable.build([(region(), file.fileno())])


def test_a_plain_file_is_memory_too_but_unsealed(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file:
        table = MemoryTable.build([(region(), file.fileno())])
    assert table.unsealed
    table.close()


def test_one_unsealed_region_is_enough_to_be_careful(fd: int) -> None:
    open_fd = memory_file(SIZE, sealed=False)
    table = MemoryTable.build([(region(), fd), (region(PAGE), open_fd)])
    assert table.unsealed
    table.close()
    os.close(open_fd)


# changing


def test_adding_shares_what_is_mapped(fd: int) -> None:
    table = MemoryTable.build([(region(), fd)])
    larger = table.with_added(region(PAGE, offset=PAGE), fd)
    assert mapped_pages() == 2
    table.close()
    assert mapped_pages() == 2
    larger.close()
    assert mapped_pages() == 0


def test_adding_an_exact_duplicate_changes_nothing(fd: int) -> None:
    """QEMU 7.2 with multiqueue repeats ADD_MEM_REG once per queue pair."""
    table = MemoryTable.build([(region(), fd)])
    same = table.with_added(region(), fd)
    assert same.regions == table.regions
    assert mapped_pages() == 1
    table.close()
    same.close()
    assert mapped_pages() == 0


@pytest.mark.parametrize(
    "added", [region(uva=0), region(PAGE - 1, uva=0), region(PAGE, size=SIZE + 1), region(PAGE, 0)]
)
def test_adding_what_cannot_be_keeps_the_old_table(fd: int, added: Region) -> None:
    table = MemoryTable.build([(region(), fd)])
    with pytest.raises(MemoryTableError):
        table.with_added(added, fd)
    assert table.regions == (region(),)
    table.close()
    assert mapped_pages() == 0


def test_removing_needs_an_exact_match(fd: int) -> None:
    table = MemoryTable.build([(region(), fd), (region(PAGE), fd)])
    for wrong in (region(uva=0), region(size=PAGE - 1), region(2 * PAGE)):
        with pytest.raises(MemoryTableError, match="not in the table"):
            table.with_removed(wrong)
    smaller = table.with_removed(region(offset=0x777))  # the offset does not count: some front-ends send 0
    assert smaller is not None
    assert smaller.regions == (region(PAGE),)
    assert smaller.with_removed(region(PAGE)) is None
    table.close()
    assert mapped_pages() == 1
    smaller.close()
    assert mapped_pages() == 0


# life


def test_a_ring_keeps_its_memory_mapped(fd: int) -> None:
    table = MemoryTable.build([(region(size=SIZE), fd)])
    queue = Virtqueue(0, gate=threading.Lock())
    queue.set_memory(table)
    table.close()
    assert mapped_pages() == SIZE // PAGE
    queue.set_memory(None)
    assert mapped_pages() == 0
    with pytest.raises(MemoryTableError, match="gone"):
        queue.set_memory(table)
    queue.close()


def test_a_thousand_tables_leave_nothing(fd: int) -> None:
    gc.collect()  # what others left goes now, not in between
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        table = MemoryTable.build([(region(), fd)])
        larger = table.with_added(region(PAGE), fd)
        table.close()
        larger.close()
    assert mapped_pages() == 0
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # what others left may have gone meanwhile
