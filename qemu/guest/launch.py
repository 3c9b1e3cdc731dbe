"""Starts one QEMU with its console, QMP and agent, and takes all of it down again. Knows nothing of networks.

Theory of operation
-------------------
Console, QMP and agent are socketpairs that QEMU inherits one end of: there is no file to connect to, to be left behind
or to collide with. The one directory a guest needs, for its initramfs and for vhost-user sockets, is made here and
removed by whoever comes first: `Launch.close`, or the reaper when this process is gone.

The agent's answer to HELLO is what "booted" means. Every way in which it may not come ends the wait at once with the
console's tail: QEMU ended, the kernel panicked (panic=-1 and -no-reboot make QEMU end), the deadline passed.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from qemu.guest.agent_client import AgentClient
from qemu.guest.argv import QemuConfig, arguments
from qemu.guest.console import Log, Reader
from qemu.guest.errors import GuestDiedError, GuestError, GuestTimeoutError
from qemu.guest.process import QemuProcess
from qemu.guest.qmp_client import Qmp

_QMP_SECONDS: Final = 10.0
_LAST_WORDS_SECONDS: Final = 2.0
#: Long enough for the longest name in it, short enough for sockaddr_un.
_LONGEST_USEFUL_TMPDIR: Final = 60


def private_directory() -> Path:
    """A new directory nobody else may enter, with a path short enough for sockets in it."""
    base: str | None = tempfile.gettempdir()
    if base is not None and len(os.fsencode(base)) > _LONGEST_USEFUL_TMPDIR:
        base = "/tmp" if os.access("/tmp", os.W_OK) else base  # noqa: S108  (mkdtemp inside it is private)
    return Path(tempfile.mkdtemp(prefix="guestwire-", dir=base))


class Launch:
    """One running QEMU and its three channels. Raises what `QemuProcess` and `arguments` raise."""

    def __init__(
        self,
        configure: Callable[[int, int, int], QemuConfig],
        directory: Path,
        *,
        tee: Callable[[bytes], object] | None = None,
        inherit: Sequence[int] = (),
        resume: bool = False,
    ) -> None:
        """`configure(console_fd, qmp_fd, agent_fd)` makes the configuration; `directory` goes away with QEMU.

        QEMU gets the descriptors `inherit` as well, under their numbers; they stay the caller's. `resume` says that
        the agent runs already, perhaps in the middle of something.
        """
        self.directory = directory
        self.console = Log(tee=tee)
        self.stderr = Log()
        self.ram = -1  #: the guest's memory file, if it was started on one of ours; closed with it
        self._qmp: Qmp | None = None
        self._qmp_lock = threading.Lock()
        self._closed = False
        self._ended = False
        self._reader = Reader()
        self._agent: AgentClient | None = None
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            undo.callback(self._reader.close)
            console, console_theirs = self._pair(undo)
            self._qmp_socket, qmp_theirs = self._pair(undo)
            agent, agent_theirs = self._pair(undo)
            stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC)
            self._reader.add(stderr_read, self.stderr)
            undo.callback(os.close, stderr_write)
            channels = [end.fileno() for end in (console_theirs, qmp_theirs, agent_theirs)]
            self.config = configure(*channels)
            self.argv = arguments(self.config)
            self.started = time.monotonic()
            self.process = QemuProcess(
                self.argv,
                inherit=[*channels, *inherit],
                stderr=stderr_write,
                remove=[directory],
                on_exit=self._on_exit,
            )
            undo.callback(self.process.close)
            for theirs in (console_theirs, qmp_theirs, agent_theirs):
                theirs.close()
            os.close(stderr_write)
            self._reader.add(console.detach(), self.console)
            self._reader.start()
            self._agent = AgentClient(agent, resume=resume)
            if self._ended:
                self._on_exit()
            undo.pop_all()

    @staticmethod
    def _pair(undo: ExitStack) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        undo.callback(theirs.close)
        return ours, theirs

    @property
    def agent(self) -> AgentClient:
        assert self._agent is not None
        return self._agent

    @property
    def qmp(self) -> Qmp:
        """The QMP session, opened when first asked for: most guests never need it, and asyncio is slow to start."""
        with self._qmp_lock:
            if self._qmp is None:
                self._qmp = Qmp(self._qmp_socket, timeout=_QMP_SECONDS)
            return self._qmp

    @property
    def qmp_events(self) -> list[dict[str, Any]]:
        """Those kept so far; none if nobody used QMP yet."""
        with self._qmp_lock:
            return list(self._qmp.events) if self._qmp is not None else []

    def wait_booted(self, timeout: float) -> float:
        """Until the agent answers; seconds since QEMU was started. Raises GuestDiedError or GuestTimeoutError."""
        try:
            self.agent.hello(timeout)
        except GuestTimeoutError:
            raise GuestTimeoutError(
                self.explain(f"waited {timeout:g} s for the guest's agent to answer; the guest did not come up")
            ) from None
        except GuestDiedError:
            raise self._died("the guest ended before its agent answered") from None
        return time.monotonic() - self.started

    def end_waits(self, error: GuestError, grace: float) -> None:
        """Every wait for the guest ends with `error`; but if QEMU ends within `grace` seconds, that is the reason."""
        try:
            self.process.wait(grace)
        except GuestTimeoutError:
            self.agent.fail(error)

    def explain(self, what: str) -> str:
        """`what`, followed by everything known that could be the reason."""
        if not self.process.running:
            self._reader.settle(_LAST_WORDS_SECONDS)
        parts = [what]
        status = self.process.exit_status
        if status is not None:
            parts.append(f"QEMU was killed by signal {-status}" if status < 0 else f"QEMU ended with status {status}")
        if self.console.trouble:
            parts.append(f"the kernel said: {self.console.trouble}")
        if self.stderr.tail():
            parts.append(f"--- QEMU's standard error\n{self.stderr.tail()}")
        tail = self.console.tail()
        parts.append(f"--- the console's last lines\n{tail}" if tail else "nothing was printed on the console")
        return "\n".join(parts)

    def failure(self, error: GuestError) -> GuestError:
        """`error` with the explanation added, if it means that the guest is gone."""
        if isinstance(error, GuestDiedError) and "--- " not in str(error):
            return self._died(str(error))
        return error

    def _died(self, what: str) -> GuestDiedError:
        # The agent's stream ends a moment before QEMU has ended and its last words are read.
        with suppress(GuestTimeoutError):
            self.process.wait(_LAST_WORDS_SECONDS)
        return GuestDiedError(self.explain(what))

    def close(self) -> None:
        """Kill QEMU, remove its directory, end the threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.process.close()
        self.agent.close()
        if self._qmp is not None:
            self._qmp.close()
        self._qmp_socket.close()
        self._reader.settle(_LAST_WORDS_SECONDS)
        self._reader.close()
        if self.ram >= 0:
            os.close(self.ram)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _on_exit(self) -> None:
        self._ended = True
        if self._agent is not None:
            self._agent.fail(GuestDiedError("QEMU ended"))
