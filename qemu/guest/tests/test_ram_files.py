"""Guest memory in files: copies are exact and private, a saved file has no pages of zeros, no room is an error."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.guest import SetupError, ram
from qemu.guest.ram import MIB, check_room, checksum, copy_ram, new_ram, save_ram

SIZE = 8 * MIB


@pytest.fixture
def memory() -> Iterator[int]:
    """A memory file with a page at its start, one across a megabyte's boundary, zeros written out, and a last byte."""
    descriptor = new_ram(SIZE)
    os.pwrite(descriptor, b"\x01" * 4096, 0)
    os.pwrite(descriptor, b"\x02" * 8192, MIB - 4096)
    os.pwrite(descriptor, bytes(64 * 1024), 3 * MIB)
    os.pwrite(descriptor, b"\x03", SIZE - 1)
    yield descriptor
    os.close(descriptor)


def content(descriptor: int) -> bytes:
    return os.pread(descriptor, SIZE + 1, 0)


def test_a_copy_has_the_same_content_and_is_its_own(memory: int) -> None:
    copy = copy_ram(memory)
    try:
        assert content(copy) == content(memory)
        os.pwrite(copy, b"changed", 0)
        assert content(memory)[:7] == b"\x01" * 7
    finally:
        os.close(copy)


def test_a_copy_takes_no_room_for_what_was_never_written(memory: int) -> None:
    copy = copy_ram(memory)
    try:
        assert os.fstat(copy).st_blocks * 512 <= 128 * 1024
    finally:
        os.close(copy)


def test_a_saved_file_is_equal_without_pages_of_zeros(memory: int, tmp_path: Path) -> None:
    save_ram(memory, tmp_path / "ram")
    assert (tmp_path / "ram").read_bytes() == content(memory)
    assert (tmp_path / "ram").stat().st_blocks * 512 <= 64 * 1024
    with (tmp_path / "ram").open("rb") as saved:
        assert checksum(saved.fileno()) == checksum(memory)


@pytest.mark.parametrize("damage", ["short", "long", "bit", "page", "zeros"])
def test_the_checksum_tells_every_damage(memory: int, damage: str) -> None:
    before = checksum(memory)
    match damage:
        case "short":
            os.ftruncate(memory, SIZE - 1)
        case "long":
            os.ftruncate(memory, SIZE + 4096)
        case "bit":
            os.pwrite(memory, b"\x01\x01\x03", 100)
        case "page":
            os.pwrite(memory, bytes(4096), MIB)
        case "zeros":  # the same data, elsewhere
            os.pwrite(memory, bytes(4096), 0)
            os.pwrite(memory, b"\x01" * 4096, 64 * 1024)
    assert checksum(memory) != before


def test_a_file_without_data_is_copied_and_saved(tmp_path: Path) -> None:
    empty = new_ram(SIZE)
    copy = copy_ram(empty)
    save_ram(empty, tmp_path / "ram")
    assert content(copy) == bytes(SIZE) == (tmp_path / "ram").read_bytes()
    os.close(copy)
    os.close(empty)


def test_a_disk_that_fills_up_is_an_error_of_the_write_and_no_signal(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        save_ram(memory, tmp_path / "ram")


def test_a_guest_that_does_not_fit_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "available_memory", lambda: (300 * MIB, "MemAvailable"))
    check_room(200 * MIB)
    with pytest.raises(SetupError, match=r"a guest of 256 MiB does not fit: 300 MiB .*MemAvailable.*memory_mib"):
        check_room(256 * MIB)


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel lets this process write no file longer than a megabyte: EFBIG (setrlimit(2), RLIMIT_FSIZE)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_memory_the_kernel_refuses_is_named(memory: int, small_files: None, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no memory for a guest of 8 MiB: File too large"):
        new_ram(SIZE)
    with pytest.raises(SetupError, match="no memory for a guest of 8 MiB"):
        copy_ram(memory)
    with pytest.raises(OSError, match="File too large"):
        save_ram(memory, tmp_path / "ram")


def test_the_smaller_of_machine_and_control_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 2000000 kB\n",
        "/proc/self/cgroup": "0::/box/inner\n",
        "/sys/fs/cgroup/box/memory.max": f"{500 * MIB}\n",
        "/sys/fs/cgroup/box/memory.current": f"{400 * MIB}\n",
        "/sys/fs/cgroup/box/memory.stat": f"anon 7\ninactive_file {50 * MIB}\nactive_file {20 * MIB}\n",
        "/sys/fs/cgroup/box/inner/memory.max": "max\n",
    }
    monkeypatch.setattr(ram, "_text", lambda path: texts.get(str(path), ""))
    assert ram.available_memory() == (170 * MIB, "the limit of the cgroup box")
    texts["/proc/meminfo"] = "MemAvailable: 100 kB\n"
    assert ram.available_memory() == (102400, "MemAvailable")
    texts.clear()
    assert ram.available_memory() == (None, "")
