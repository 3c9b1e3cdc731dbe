"""What a command that ran in a guest left behind."""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass

from qemu.guest.errors import CommandFailedError


@dataclass(frozen=True, slots=True)
class Result:
    """Exit code or signal, output, and how long it took.

    Like `subprocess.CompletedProcess` (`args`, `returncode`, `stdout`, `stderr`), with shorter names beside them.
    """

    args: tuple[str, ...]
    rc: int  #: exit code; 128 + n if signal n ended it, as shells say it
    signal: int  #: the signal that ended it, or 0
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float  #: seconds of the guest's clock from fork to end
    cpu_seconds: float  #: CPU time used in the guest

    @property
    def returncode(self) -> int:
        """As `subprocess` has it: negative for a signal."""
        return -self.signal if self.signal else self.rc

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    @property
    def succeeded(self) -> bool:
        return self.rc == 0

    def check(self, console_tail: str = "") -> Result:
        """Self, or CommandFailedError with all that is known if it did not succeed."""
        __tracebackhide__ = True  # pytest shows the test's line, not ours
        if self.succeeded:
            return self
        how = f"was ended by {_signal_name(self.signal)}" if self.signal else f"returned {self.rc}"
        parts = [f"in the guest, {' '.join(self.args)!r} {how} after {self.duration:.2f} s"]
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr), ("console", console_tail)):
            if text.strip():
                parts.append(f"--- {name}\n{text.rstrip()[-4000:]}")
        raise CommandFailedError("\n".join(parts), self)


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
