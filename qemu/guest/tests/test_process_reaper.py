"""Nothing survives the launcher: no QEMU, no file, also when it is killed with SIGKILL."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qemu.guest.errors import GuestTimeoutError, MissingError
from qemu.guest.process import QemuProcess

SECONDS = 20.0

LAUNCHER = """
import os, sys, threading, time
from pathlib import Path
from qemu.guest.process import QemuProcess
def launch():
    global process
    process = QemuProcess(["sleep", "600"], remove=[Path(sys.argv[1])])
thread = threading.Thread(target=launch)  # the forking thread ends long before the process does
thread.start(); thread.join()
forked = 0
if sys.argv[2] == "fork":
    forked = os.fork()  # a child without exec holds every descriptor of ours
    if forked == 0:
        time.sleep(600)
print(process.pid, process._reaper.pid, forked, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Wait until the process has ended (as far as anybody but its parent can tell)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], SECONDS)[0])
    finally:
        os.close(descriptor)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "guestwire-test"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "deep" / "file").write_text("x")
    (directory / "link").symlink_to("/etc")
    return directory


def test_runs_a_program_and_reports_how_it_ended() -> None:
    process = QemuProcess(["sh", "-c", "exit 3"])
    assert process.wait(SECONDS) == 3
    assert not process.running
    process.close()


def test_a_signal_is_negative() -> None:
    process = QemuProcess(["sh", "-c", "kill -9 $$"])
    assert process.wait(SECONDS) == -signal.SIGKILL
    process.close()


def test_passes_descriptors_under_their_numbers() -> None:
    read_end, write_end = os.pipe()
    process = QemuProcess(["sh", "-c", f"echo hello > /proc/self/fd/{write_end}"], inherit=[write_end])
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        assert reader.read() == "hello\n"  # and then end of file: the reaper keeps no copy
    process.close()


def test_a_missing_program_is_named() -> None:
    with pytest.raises(MissingError, match="cannot run no-such-qemu: No such file or directory"):
        QemuProcess(["no-such-qemu"])


def test_tells_when_it_ends() -> None:
    ended = threading.Event()
    process = QemuProcess(["true"], on_exit=ended.set)
    assert ended.wait(SECONDS)
    process.close()


def test_waiting_has_an_end() -> None:
    process = QemuProcess(["sleep", "600"])
    with pytest.raises(GuestTimeoutError, match=r"waited 0\.01 s for QEMU"):
        process.wait(0.01)
    process.close()


def test_close_kills_the_whole_group_and_removes_the_files(directory: Path) -> None:
    read_end, write_end = os.pipe()
    process = QemuProcess(
        ["sh", "-c", f"sleep 600 & echo $! > /proc/self/fd/{write_end}; wait"], inherit=[write_end], remove=[directory]
    )
    os.close(write_end)
    child = int(os.read(read_end, 100))
    os.close(read_end)
    process.close()
    assert gone(process.pid)
    assert gone(child)
    assert not directory.exists()
    assert Path("/etc").is_dir()  # a link's target is not ours
    process.close()


def test_what_it_started_does_not_outlive_it() -> None:
    read_end, write_end = os.pipe()
    script = f"sleep 600 & echo $! > /proc/self/fd/{write_end}"
    process = QemuProcess(["sh", "-c", script], inherit=[write_end])
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        assert gone(int(reader.read()))  # to its end: nobody holds the pipe any more
    process.close()


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_sigkill_of_the_launcher_leaves_nothing(directory: Path, how: str) -> None:
    """PR_SET_PDEATHSIG alone would kill too early (the forking thread ended) and remove no file."""
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, str(directory), how], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        qemu, reaper, forked = map(int, launcher.stdout.readline().split())
        os.kill(qemu, 0)  # alive although the thread that launched it is gone
        assert directory.exists()
        launcher.kill()
    try:
        assert gone(qemu)
        assert gone(reaper)
        assert not directory.exists()
    finally:
        if forked:
            os.kill(forked, signal.SIGKILL)


def test_sigkill_of_the_reaper_kills_qemu() -> None:
    process = QemuProcess(["sleep", "600"])
    os.kill(process._reaper.pid, signal.SIGKILL)
    assert gone(process.pid)
    process.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_polite_signals_do_not_disturb_the_reaper(number: signal.Signals, directory: Path) -> None:
    process = QemuProcess(["sleep", "600"], remove=[directory])
    os.kill(process._reaper.pid, number)
    assert process.running
    process.close()
    assert gone(process.pid)
    assert not directory.exists()


def test_its_group_and_session_are_not_ours() -> None:
    """Ctrl-C at the terminal goes to the foreground group: QEMU must not be in it."""
    process = QemuProcess(["sleep", "600"])
    assert os.getpgid(process.pid) == process.pid
    assert os.getsid(process.pid) != os.getsid(0)
    process.close()
