"""Runs QEMU on behalf of a launcher, and leaves nothing of it behind however the launcher ends.

Theory of operation
-------------------
A launcher killed with SIGKILL can clean nothing up, and PR_SET_PDEATHSIG alone is not enough: it follows the *thread*
that forked, which in a launcher may be any short-lived one, and it removes no files. So QEMU is started by this
small process, which has one thread and no other duty:

* it is in a session of its own, so Ctrl-C at the launcher's terminal does not reach it, and ignores polite signals;
* it watches its end of a socketpair whose other end only the launcher holds, and the launcher's pidfd as well,
  because a child the launcher forked without exec may hold the socket's other end open beyond the launcher's death;
* when either says the launcher is gone (or has closed the guest), it kills QEMU's process group, waits for it,
  removes the files it was told about, and ends;
* QEMU itself has PR_SET_PDEATHSIG towards this single-threaded process: killing the reaper kills QEMU too.

It is run by path with ``python -I -S`` and imports little, since it is part of every guest's start.

The conversation on descriptor 0, one line of ASCII each. Launcher: a literal list
``[launcher pid, [argv...], [files and directories to remove...]]``. Reaper: ``pid N``, later ``exit STATUS`` (as
os.waitpid encodes it), or ``error TEXT`` if QEMU could not be started.
"""

from __future__ import annotations

import ast
import ctypes
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_CONTROL: Final = 0


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    request = _read_line()
    if not request:
        return
    launcher, argv, remove = ast.literal_eval(request)
    pid = 0
    try:
        watched = [_CONTROL, os.pidfd_open(launcher)]
        pid = _start(argv)
    except OSError as error:
        _tell(f"error {error.strerror or error}")
        watched = [_CONTROL]
    if pid:
        _tell(f"pid {pid}")
        _forget_inherited(keep=watched)
        pid = _watch(pid, watched)
    else:
        select.select([_CONTROL], [], [])
    if pid:
        _kill(pid)
    for path in remove:
        _remove(path)


def _watch(pid: int, watched: list[int]) -> int:
    """Until the launcher is gone; returns `pid`, or 0 once QEMU has ended by itself."""
    poller = select.poll()
    for descriptor in watched:
        poller.register(descriptor, select.POLLIN)
    child = os.pidfd_open(pid)
    poller.register(child, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == child:
                poller.unregister(child)
                # What it started goes with it. Before it is waited for: until then the group's number is its own.
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                pid = 0
                _tell(f"exit {status}")
            elif descriptor != _CONTROL or not os.read(_CONTROL, 4096):
                return pid


def _start(argv: list[str]) -> int:
    """Fork and exec; raises the OSError that exec met in the child."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(argv[0], argv)  # noqa: S606  (no shell is the point)
        except OSError as error:
            os.write(write_end, b"%d" % (error.errno or 0))
        finally:
            os._exit(127)
    os.close(write_end)
    failure = os.read(read_end, 16)
    os.close(read_end)
    if failure:
        os.waitpid(pid, 0)
        raise OSError(int(failure), os.strerror(int(failure)))
    return pid


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # it is our child and not reaped: the number is still its own
    os.waitpid(pid, 0)


def _remove(path: str) -> None:
    """Remove a file, or a directory with all in it. What is gone already is fine."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            for name in os.listdir(path):
                _remove(os.path.join(path, name))
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError:
        pass


def _forget_inherited(keep: list[int]) -> None:
    """Close QEMU's descriptors here: their peers must see end of file when QEMU ends."""
    kept = {*keep, 0, 1, 2}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # the listing's own descriptor is gone already
                os.close(int(name))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _tell(line: str) -> None:
    with suppress(OSError):  # the launcher is gone; the watch sees that next
        os.write(_CONTROL, line.encode() + b"\n")


def _read_line() -> str:
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(_CONTROL, 65536)
        if not chunk:
            return ""
        line += chunk
    return line.decode()


if __name__ == "__main__":
    main()
    sys.stdout = sys.stderr = None
    os._exit(0)
