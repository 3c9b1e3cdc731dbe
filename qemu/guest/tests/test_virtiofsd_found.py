"""Which virtiofsd is used, how it is started, and what is said of those that do not work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.guest import virtiofsd
from qemu.guest.virtiofsd import Daemon, Method

#: Answers GET_FEATURES on the descriptor it is given, as a daemon does, and then waits for the connection's end.
ANSWERS = """#!/usr/bin/env python3
import socket, struct, sys
if "--help" in sys.argv:
    print("--shared-dir --readonly")
    sys.exit()
print(*sys.argv[1:], file=sys.stderr, flush=True)
[fd] = [word[5:] for word in sys.argv if word.startswith("--fd=")]
connection, _ = socket.socket(fileno=int(fd)).accept()
connection.recv(12)
connection.sendall(struct.pack("<IIIQ", 1, 5, 8, 1 << 30))
connection.recv(1)
"""
FAILS = """#!/bin/sh
[ "$1" = --help ] && exit
echo starting >&2
echo "cannot unshare: no" >&2
exit 1
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No virtiofsd but those a test puts in tmp_path/bin."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(virtiofsd, "_PLACES", (str(tmp_path / "bin/other"),))
    virtiofsd._find.cache_clear()
    yield
    virtiofsd._find.cache_clear()


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_one_that_answers_works(tmp_path: Path) -> None:
    program(tmp_path / "bin/virtiofsd", ANSWERS)
    found = virtiofsd.method(writable=True)
    assert found.program == str(tmp_path / "bin/virtiofsd")
    assert found.rust
    assert virtiofsd.why_not(writable=False) == ""


def test_one_that_fails_is_passed_over_for_the_next(tmp_path: Path) -> None:
    program(tmp_path / "bin/virtiofsd", FAILS)
    program(tmp_path / "bin/other", ANSWERS)
    assert virtiofsd.method(writable=True).program == str(tmp_path / "bin/other")


def test_what_those_that_fail_said_is_the_reason(tmp_path: Path) -> None:
    program(tmp_path / "bin/virtiofsd", FAILS)
    assert virtiofsd.why_not(writable=True).endswith("virtiofsd does not work here (cannot unshare: no)")


def test_none_is_said_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/such/directory")
    assert virtiofsd.why_not(writable=True).startswith("there is no virtiofsd here (Debian: qemu-system-common")


def test_a_read_only_share_is_so_on_the_hosts_side(tmp_path: Path) -> None:
    rust = Method("v", rust=True, sandbox="none", user_namespace=False, has_readonly=True)
    assert "--readonly" in rust.command(tmp_path, 7, writable=False)
    assert "--readonly" not in rust.command(tmp_path, 7, writable=True)
    c = Method("v", rust=False, sandbox="chroot", user_namespace=True, has_readonly=False)
    words = c.command(tmp_path, 7, writable=False)
    assert words[:6] == ["unshare", "--mount", "--user", "--map-root-user", "--", "sh"]
    assert "remount,bind,ro" in words[9]
    assert c.command(tmp_path, 7, writable=True)[:4] == ["unshare", "--user", "--map-root-user", "--"]


def test_commas_and_backslashes_in_a_path_are_kept(tmp_path: Path) -> None:
    c = Method("v", rust=False, sandbox="chroot", user_namespace=False, has_readonly=False)
    assert r"source=/a\,b\\c" in c.command(Path("/a,b\\c"), 7, writable=True)


def test_an_end_that_nobody_wanted_is_told_with_what_it_said(tmp_path: Path) -> None:
    program(tmp_path / "bin/virtiofsd", FAILS)
    failing = Method(
        str(tmp_path / "bin/virtiofsd"), rust=True, sandbox="none", user_namespace=False, has_readonly=True
    )
    told = threading.Event()
    said: list[str] = []

    def died(words: str) -> None:
        said.append(words)
        told.set()

    daemon = Daemon(failing, tmp_path, tmp_path / "socket", writable=True)
    daemon.watch(died)
    assert told.wait(30)
    daemon.close()
    assert daemon.stderr.endswith("cannot unshare: no")
    assert len(said) == 1


def test_an_end_that_was_wanted_is_not(tmp_path: Path) -> None:
    program(tmp_path / "bin/virtiofsd", ANSWERS)
    daemon = Daemon(virtiofsd.method(writable=True), tmp_path, tmp_path / "socket", writable=True)
    said: list[str] = []
    daemon.watch(said.append)
    pid = daemon.pid
    daemon.close()
    assert said == []
    assert not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "socket").exists()
