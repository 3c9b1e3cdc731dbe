"""Flame graphs: what is drawn of sampled stacks, and what is said where they cannot be had."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from qemu.guest.bench import flame, profile

STACKS = """\
thread_run (libpython3.11.so.1.0);Thread._bootstrap (threading.py:1002);serve (a.py:1);copy<int> (ring.so) 30
thread_run (libpython3.11.so.1.0);Thread._bootstrap (threading.py:1002);serve (a.py:1);read (b.py:2) 10
main (c.py:3);select_epoll_poll (selectmodule.c:841);epoll_wait (libc.so.6);0x7f2a (libc.so.6) 500
main (c.py:3);PyThread_acquire_lock_timed (libpython3.11.so.1.0);0x7f2a (libc.so.6) 500
not a stack
"""


def test_waiting_threads_are_left_out_and_shares_are_of_the_rest() -> None:
    root = flame.tree(flame.parse(STACKS))
    assert root.samples == 40
    (serve,) = root.inner.values()
    assert serve.name == "serve (a.py:1)"
    assert {name: inner.samples for name, inner in serve.inner.items()} == {
        "copy<int> (ring.so)": 30,
        "read (b.py:2)": 10,
    }


def test_a_wait_deep_under_work_is_work() -> None:
    frames = ["read (libc.so.6)", *(f"f{number} (a.py:1)" for number in range(6))]
    assert not flame.waits(frames)


def test_the_picture_is_wellformed_and_every_frame_says_its_share() -> None:
    picture = ET.fromstring(flame.draw(flame.tree(flame.parse(STACKS)), "Bulk & more", "40 samples."))
    name = "{http://www.w3.org/2000/svg}"
    titles = [title.text for title in picture.iter(f"{name}title")]
    assert titles == ["all: 100.0%", "serve (a.py:1): 100.0%", "copy<int> (ring.so): 75.0%", "read (b.py:2): 25.0%"]
    colours = [rect.get("fill") for rect in picture.iter(f"{name}rect")][2:]
    assert colours[0] == colours[2] != colours[1]  # Python, Python, C


def test_nothing_sampled_is_an_empty_picture_not_an_error() -> None:
    assert "</svg>" in flame.draw(flame.tree([]), "nothing")


def test_a_refused_ptrace_is_named_with_its_remedy(tmp_path: Path) -> None:
    sampler = tmp_path / "py-spy"
    sampler.write_text("#!/bin/sh\necho 'Permission Denied: Try again with more rights' >&2\nexit 1\n")
    sampler.chmod(0o755)
    with pytest.raises(
        profile.ProfileError, match=r"ptrace.*sysctl kernel\.yama\.ptrace_scope=1.*--cap-add SYS_PTRACE"
    ):
        profile.sample(str(sampler), tmp_path / "out.txt", 1, lambda _: None)


def test_without_native_frames_python_alone_is_sampled(tmp_path: Path) -> None:
    sampler = tmp_path / "py-spy"
    sampler.write_text("#!/bin/sh\ncase $* in *--native*) echo 'native is not supported here' >&2; exit 1;; esac\n")
    sampler.chmod(0o755)
    lengths: list[float] = []
    assert profile.sample(str(sampler), tmp_path / "out.txt", 2, lengths.append) is False
    assert lengths == [4.0, 4.0]


def test_another_failure_is_passed_on(tmp_path: Path) -> None:
    sampler = tmp_path / "py-spy"
    sampler.write_text("#!/bin/sh\necho 'Error: no such process' >&2\nexit 1\n")
    sampler.chmod(0o755)
    with pytest.raises(profile.ProfileError, match="py-spy failed: Error: no such process"):
        profile.sample(str(sampler), tmp_path / "out.txt", 1, lambda _: None)


def test_the_sampler_is_the_environments_own() -> None:
    assert profile.find_sampler() == str(Path(sys.executable).with_name("py-spy"))
    assert "--native" in profile.command("py-spy", Path("x"), 2.4, native=True)
