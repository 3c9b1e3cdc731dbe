"""Launches QEMU through the reaper, so that nothing of it survives the launcher (see reaper.py)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from qemu.guest.errors import GuestDiedError, GuestTimeoutError, MissingError

_REAPER: Final = Path(__file__).with_name("reaper.py")
_START_SECONDS: Final = 30.0
_END_SECONDS: Final = 30.0


class QemuProcess:
    """One running QEMU. Made running; `close` ends it and removes what it was told to remove.

    Attributes: `pid` of QEMU, `exit_status` once it ended (negative: the signal that killed it), else None.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        inherit: Sequence[int] = (),
        stderr: int | None = None,
        remove: Sequence[Path] = (),
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        """Start `argv` with the descriptors `inherit` open in it under their numbers.

        `remove` names files and directories that go away with QEMU, also when this process is killed. `on_exit` is
        called from a background thread once QEMU ended. Raises MissingError if there is no such program.
        """
        self.exit_status: int | None = None
        self.pid = 0
        self._on_exit = on_exit
        self._changed = threading.Condition()
        self._refusal = ""
        self._over = False
        self._control, theirs = socket.socketpair()
        with theirs:
            # -I -S: nothing of the user's Python environment can slow it down or break it.
            self._reaper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_REAPER)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=inherit,
                start_new_session=True,
            )
        # A pipe, not a file: the request may be longer than one argument may be.
        self._control.sendall(repr([os.getpid(), list(argv), [str(p) for p in remove]]).encode() + b"\n")
        self._listener = threading.Thread(target=self._listen, name="guest-process", daemon=True)
        self._listener.start()
        with self._changed:
            done = self._changed.wait_for(lambda: self.pid or self._refusal or self._over, _START_SECONDS)
        if not self.pid:
            self.close()
            if self._refusal:
                raise MissingError(f"cannot run {argv[0]}: {self._refusal}")
            if done:
                raise GuestDiedError("the process that watches over QEMU ended before starting it")
            raise GuestTimeoutError(f"waited {_START_SECONDS:g} s for {argv[0]} to be started")

    @property
    def running(self) -> bool:
        return self.exit_status is None and not self._over

    def wait(self, timeout: float) -> int:
        """Until QEMU ended by itself; its exit status. Raises GuestTimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.running, timeout):
                raise GuestTimeoutError(f"waited {timeout:g} s for QEMU (pid {self.pid}) to end")
        return self.exit_status if self.exit_status is not None else -signal.SIGKILL

    def close(self) -> None:
        """Kill QEMU if it still runs, remove its files. Idempotent; returns when all of it is gone."""
        with suppress(OSError):  # the reaper is gone already
            self._control.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _END_SECONDS
        try:
            self._reaper.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._reaper.kill()  # QEMU dies with it: PR_SET_PDEATHSIG
            self._reaper.wait(_END_SECONDS)
        if self._listener is not threading.current_thread():
            self._listener.join(max(0.0, deadline - time.monotonic()))
        self._control.close()

    def _listen(self) -> None:
        try:
            with self._control.makefile("r", encoding="ascii", errors="replace", newline="\n") as lines:
                for line in lines:
                    self._heard(line.strip())
        except OSError:
            pass
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._on_exit is not None:
            self._on_exit()

    def _heard(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        with self._changed:
            if word == "pid":
                self.pid = int(rest)
            elif word == "exit":
                self.exit_status = os.waitstatus_to_exitcode(int(rest))
            else:
                self._refusal = rest or line
            self._changed.notify_all()
        if word == "exit" and self._on_exit is not None:
            self._on_exit()
