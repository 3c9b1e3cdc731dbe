"""Captures what a guest and its QEMU print: bounded, always read, searchable.

Always read, because an unread serial line stalls the guest; bounded, because a guest can print for ever. The end is
what matters, so the beginning is what goes.
"""

from __future__ import annotations

import os
import re
import selectors
import threading
from collections.abc import Callable
from typing import Final

#: Bytes kept of each stream.
DEFAULT_LIMIT: Final = 256 * 1024
TAIL_LINES: Final = 25
_READ_BYTES: Final = 65536

#: What Linux prints when it cannot go on or has hurt itself (kernel/panic.c, arch/x86/kernel/dumpstack.c, lib/bug.c).
_TROUBLE: Final = re.compile(
    rb"Kernel panic - not syncing: [^\r\n]*|Oops: [^\r\n]*|kernel BUG at [^\r\n]*"
    rb"|BUG: [^\r\n]*|general protection fault[^\r\n]*|Unable to handle [^\r\n]*"
)
#: Escape sequences that firmware and kernels put between the words.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[c()][0-9A-Za-z]?)|[\x00-\x08\x0b-\x1f\x7f]")


class Log:
    """The end of one byte stream, kept up to `limit` bytes. Filled by one thread, read by any."""

    def __init__(self, limit: int = DEFAULT_LIMIT, *, tee: Callable[[bytes], object] | None = None) -> None:
        self.limit = limit
        self.dropped = 0  #: bytes no longer kept
        self.ended = False
        self._tee = tee
        self._bytes = bytearray()
        self._changed = threading.Condition()

    def feed(self, data: bytes) -> None:
        with self._changed:
            self._bytes += data
            # Cut in large steps: cutting byte by byte would move the whole ring for every line.
            if len(self._bytes) > self.limit + self.limit // 4:
                cut = len(self._bytes) - self.limit
                del self._bytes[:cut]
                self.dropped += cut
            self._changed.notify_all()
        if self._tee is not None:
            self._tee(data)

    def end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    @property
    def text(self) -> str:
        """All that is kept, as text without control sequences."""
        with self._changed:
            data = bytes(self._bytes[-self.limit :])
        return _ESCAPES.sub("", data.decode(errors="replace"))

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last `lines` lines that are not empty, joined by newlines; "" if nothing was printed."""
        kept = [line.rstrip() for line in self.text.splitlines() if line.strip()]
        return "\n".join(kept[-lines:])

    @property
    def trouble(self) -> str:
        """The kernel's first complaint (panic, oops, BUG) in what is kept, or ""."""
        with self._changed:
            found = _TROUBLE.search(self._bytes)
            return found.group().decode(errors="replace").strip() if found else ""

    def wait_for(self, pattern: str, timeout: float) -> bool:
        """Until the regular expression `pattern` matches. False after `timeout` s or at the stream's end."""
        compiled = re.compile(pattern)
        with self._changed:
            self._changed.wait_for(
                lambda: self.ended or compiled.search(self._bytes.decode(errors="replace")) is not None, timeout
            )
            return compiled.search(self._bytes.decode(errors="replace")) is not None


class Reader:
    """Reads any number of descriptors into their `Log`s, in one background thread, until all have ended or `close`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._logs: dict[int, Log] = {}
        self._thread = threading.Thread(target=self._run, name="guest-console", daemon=True)

    def add(self, descriptor: int, log: Log) -> None:
        """Owns `descriptor` from now on. Only before `start`."""
        os.set_blocking(descriptor, False)
        self._logs[descriptor] = log
        self._selector.register(descriptor, selectors.EVENT_READ, log)

    def start(self) -> None:
        self._thread.start()

    def settle(self, timeout: float) -> None:
        """Wait until every stream has ended: after QEMU's exit that makes the logs complete."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._wake_write < 0:
            return
        os.close(self._wake_write)
        self._wake_write = -1
        if self._thread.is_alive():
            self._thread.join()
        for descriptor, log in self._logs.items():
            os.close(descriptor)
            log.end()
        self._logs.clear()
        self._selector.close()
        os.close(self._wake_read)

    def _run(self) -> None:
        left = len(self._logs)
        while left:
            for key, _ in self._selector.select():
                log = key.data
                if log is None:
                    return
                try:
                    data = os.read(key.fd, _READ_BYTES)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""  # ECONNRESET: QEMU was killed
                if data:
                    log.feed(data)
                else:
                    self._selector.unregister(key.fd)
                    log.end()
                    left -= 1
