"""The cache: entries are whole or absent, made once by whoever comes first, made again when damaged, and kept few."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from qemu.guest import GuestTimeoutError, SetupError
from qemu.guest.cache import cached, discard, prune, used


def whole(entry: Path) -> bool:
    return (entry / "data").read_text() == "whole"


def build(entry: Path) -> None:
    (entry / "data").write_text("whole")


def refuse(entry: Path) -> None:
    pytest.fail("built again")


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    entry = cached("thing", build, root=tmp_path, check=whole)
    (entry / "data").write_text("wh")
    with (entry / "data").open() as kept_open:
        assert cached("thing", build, root=tmp_path, check=whole) == entry
        assert kept_open.read() == "wh"  # who uses it keeps what he has
    assert whole(cached("thing", refuse, root=tmp_path, check=whole))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def half(entry: Path) -> None:
        (entry / "data").write_text("wh")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("thing", half, root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(entry: Path) -> None:
        (entry / "data").write_text("wh")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SetupError, match=r"thing cannot be kept in .*: No space left on device; .*XDG_CACHE_HOME"):
        cached("thing", fill, root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]


def test_two_who_ask_at_once_build_once(tmp_path: Path) -> None:
    building, go_on = threading.Event(), threading.Event()
    found: list[Path] = []

    def slow(entry: Path) -> None:
        building.set()
        assert go_on.wait(30)
        build(entry)

    first = threading.Thread(target=lambda: found.append(cached("thing", slow, root=tmp_path)))
    first.start()
    assert building.wait(30)
    second = threading.Thread(target=lambda: found.append(cached("thing", refuse, root=tmp_path)))
    second.start()
    go_on.set()
    first.join(30)
    second.join(30)
    assert found == [tmp_path / "thing"] * 2


def test_waiting_for_another_who_builds_has_an_end_and_names_him(tmp_path: Path) -> None:
    messages: list[str] = []

    def build_while_asked(entry: Path) -> None:
        with pytest.raises(GuestTimeoutError) as failure:
            cached("thing", refuse, root=tmp_path, wait=0)
        messages.append(str(failure.value))

    cached("thing", build_while_asked, root=tmp_path)
    assert f"(pid {os.getpid()}) that is making {tmp_path / 'thing'}" in messages[0]


def test_only_the_entries_used_last_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        entry = cached(f"thing-{number}", build, root=tmp_path)
        os.utime(entry, (number, number))
    (tmp_path / "other").mkdir()
    used(tmp_path / "thing-0")
    prune(tmp_path, "thing-*", 2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["other", "thing-0", "thing-4"]


def test_what_a_killed_build_left_goes_away_in_time(tmp_path: Path) -> None:
    old, new = tmp_path / ".thing-1.abcdef", tmp_path / ".thing-2.abcdef"
    for left in (old, new):
        left.mkdir()
    os.utime(old, (0, 0))
    prune(tmp_path, "thing-*", 2)
    assert not old.exists()
    assert new.exists()  # perhaps it is being built


def test_discarding_twice_is_fine(tmp_path: Path) -> None:
    entry = cached("thing", build, root=tmp_path)
    discard(entry)
    discard(entry)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
