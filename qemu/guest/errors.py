"""What can go wrong with a guest, each as its own class so that callers can tell the cases apart.

`SetupError` and its subclass are about this machine and say what to do; the others are about one guest and carry the
end of its console, because that is where the answer usually is.
"""

from __future__ import annotations


class GuestError(Exception):
    """Base of everything `qemu.guest` raises on its own account."""


class SetupError(GuestError):
    """A parameter, file or program is not usable. The message names it and the remedy."""


class MissingError(SetupError):
    """QEMU, a kernel or a compiler is missing: no guest can be started on this machine as it is (exit code 77)."""


class GuestDiedError(GuestError):
    """QEMU ended, the guest panicked, or its agent went away. The message has the console's tail."""


class KernelTroubleError(GuestError):
    """The guest's kernel was caught at a fault (panic, oops, BUG, lockdep, a sanitizer). The message has its report."""


class ShareDiedError(GuestError):
    """What served a shared directory has ended, so programs of the guest wait for ever. The message names it."""


class GuestTimeoutError(GuestError, TimeoutError):
    """A deadline passed. The message says what was waited for, for how long, and has the console's tail."""


class AgentError(GuestError):
    """The agent refused a request, or what came from it is not its protocol."""


class OutputLimitError(GuestError):
    """A command printed more than is kept, and was killed."""


class CommandFailedError(GuestError):
    """A command run with ``check=True`` did not succeed. The message has its output.

    Attributes: `result`, the `qemu.guest.result.Result`.
    """

    def __init__(self, message: str, result: object) -> None:
        super().__init__(message)
        self.result = result


class CommandTimeoutError(GuestTimeoutError):
    """A command did not end in time and was killed. Attributes: `stdout`, `stderr`, what it had written until then."""

    def __init__(self, message: str, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(message)
        self.stdout = stdout
        self.stderr = stderr
