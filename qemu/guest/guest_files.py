"""What goes into a guest and comes out of it: files, functions, load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from qemu.guest.guest_core import DEFAULT_RUN_SECONDS, GuestCore
from qemu.guest.load import Load

#: Files are as large as they are: only what was not asked for has a limit.
_FILE_LIMIT: Final = 1 << 40


class GuestFiles(GuestCore):
    """A guest that things can be given to."""

    def put(self, path: str, data: str | bytes, *, mode: int = 0o644, timeout: float = DEFAULT_RUN_SECONDS) -> None:
        """Make `data` the content of the guest's file `path`, whole or not at all. Parent directories are made."""
        content = data.encode() if isinstance(data, str) else data
        self.run(["@put", path, f"{mode:o}"], input=content, timeout=timeout, check=True)

    def get(self, path: str, *, timeout: float = DEFAULT_RUN_SECONDS) -> bytes:
        """The content of the guest's file `path`."""
        return self.run(["@get", path], timeout=timeout, check=True, limit=_FILE_LIMIT).stdout_bytes

    def read(self, path: str, *, timeout: float = DEFAULT_RUN_SECONDS) -> str:
        """The text of the guest's file `path`."""
        return self.get(path, timeout=timeout).decode(errors="replace")

    def write(self, path: str, text: str, *, mode: int = 0o644, timeout: float = DEFAULT_RUN_SECONDS) -> None:
        """Make `text` the content of the guest's file `path`."""
        self.put(path, text, mode=mode, timeout=timeout)

    def python(
        self,
        function: Callable[..., Any],
        *args: Any,
        timeout: float = DEFAULT_RUN_SECONDS,
        interpreter: str = "python3",
        **kwargs: Any,
    ) -> Any:
        """Call a function of ours in the guest's Python: see `qemu.guest.python_call` for what it may use.

        Raises GuestPythonError with the traceback if it raises there, SetupError if it cannot be sent.
        """
        from qemu.guest.python_call import answer, order

        words, data = order(function, args, kwargs)
        done = self.run([interpreter, *words], input=data, timeout=timeout)
        return answer(function.__name__, done.stdout, done.stderr)

    def load(self, mode: str, address: str, port: int, *, family: str = "tcp", **options: float) -> Load:
        """Start the agent's load generator (agent/load.c: send, recv, rr, crr, echo); see `Load`.

        `address` is where to connect to, or "listen". Options: seconds, bytes, count, size, response, timeout.
        """
        words = [f"{key}={value}" for key, value in options.items()]
        return Load(self.spawn(["@load", mode, family, address, str(port), *words]))
