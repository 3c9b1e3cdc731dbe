"""Watches a guest's console for what its kernel complains of, and keeps the lines that matter.

Theory of operation
-------------------
A complaint begins with a line that is known (a panic, an oops, a BUG, a report of lockdep or a sanitizer) and goes on
with the lines the kernel prints after it: where, in which call chain. It is complete at its end mark, at the next
complaint, when it is long enough, or when the console has been silent for a moment; then it is told. Registers, code
bytes and the list of modules are left out: what is left is what one looks at first.

`fatal` complaints are of a kernel that has hurt itself or been caught at it. The others (the OOM killer, a stalled
processor, which a busy host brings about) are told, and fail nothing.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

MAX_LINES: Final = 40
MAX_FINDINGS: Final = 50
#: A kernel prints a report in one go; a serial line under TCG is at most this slow between two lines.
SILENCE_SECONDS: Final = 0.4
_MAX_LINE_BYTES: Final = 4096

_OUT_OF_MEMORY: Final = "out of memory"
_OOM_LINE: Final = re.compile(r"oom|Out of memory|Comm:")

#: (what it is called, whether it is fatal, how its first line looks). The first that matches counts.
_KINDS: Final[tuple[tuple[str, bool, re.Pattern[str]], ...]] = (
    ("panic", True, re.compile(r"Kernel panic - not syncing")),
    ("KASAN", True, re.compile(r"BUG: KASAN: ")),
    ("KFENCE", True, re.compile(r"BUG: KFENCE: ")),
    ("KMSAN", True, re.compile(r"BUG: KMSAN: ")),
    ("KCSAN", True, re.compile(r"BUG: KCSAN: ")),
    ("UBSAN", True, re.compile(r"UBSAN: ")),
    # kernel/locking/lockdep.c, kernel/rcu: what their reports begin with.
    (
        "lockdep",
        True,
        re.compile(
            r"WARNING: (?:possible (?:circular|recursive|irq lock inversion)|inconsistent lock state|bad unlock balance"
            r"|suspicious RCU usage|lock held when returning|Nested lock was not taken|held lock freed|bad contention)"
            r"|WARNING: [A-Z]+-(?:safe|READ-safe) -> [A-Z]+-unsafe lock order|BUG: (?:MAX_LOCK|sleeping function)"
            r"|possible (?:circular locking dependency|recursive locking) detected"
        ),
    ),
    ("stall", False, re.compile(r"rcu: INFO: .*detected.* stall|watchdog: BUG: soft lockup|INFO: task .* blocked for")),
    (_OUT_OF_MEMORY, False, re.compile(r"invoked oom-killer|Out of memory: Killed process")),
    ("BUG", True, re.compile(r"kernel BUG at |\bBUG: ")),
    ("oops", True, re.compile(r"Oops: |general protection fault|Unable to handle kernel |Internal error: Oops")),
    ("warning", True, re.compile(r"WARNING: CPU: \d+ PID: \d+ at ")),
)
#: In every first line there is; spares all others a dozen searches.
_TRIGGER: Final = re.compile(
    r"panic|BUG|SAN: |WARNING|possible |stall|INFO: task|oom-|Out of|Oops|fault|Unable|Internal"
)
_END: Final = re.compile(r"---\[ end |^={20,}$|Rebooting in|Out of memory: Killed process")
#: What a report's reader looks at last: registers, code bytes, modules, raw stack, frames the unwinder is not sure of.
_NOISE: Final = re.compile(
    r"^(?:R[A-D0-9S][0-9XIP ]{0,2}: |R[A-Z]{2}: [0-9a-f]{16}|RSP: |[CDEFGS]S:|[FG]S: |CR\d: |DR\d: |PKRU|Code: "
    r"|Modules linked|Stack:$|[0-9a-f ]{16,}$|#PF: |PGD |\s*</?(?:TASK|IRQ)>$|\s+\? |Hardware name: |Kernel Offset: "
    r"|x\d+ ?: [0-9a-f]{16}|sp : |pstate: |CPU features: |Memory Limit: )"
)
_STAMP: Final = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])? ?")
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(slots=True)
class Finding:
    """One complaint of the kernel."""

    kind: str
    fatal: bool
    lines: list[str] = field(default_factory=list)  #: without time stamps; the first says what it is

    @property
    def summary(self) -> str:
        return self.lines[0]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Watcher:
    """Fed with a console's bytes; `told` gets each finding once it is complete, from the feeding thread or a timer's.

    `allow` is a pattern of complaints that are expected: they become findings that are not fatal.
    """

    def __init__(self, told: Callable[[Finding], object], *, allow: str | None = None) -> None:
        self.findings: list[Finding] = []  #: complete ones, oldest first
        self.missed = 0  #: complaints beyond MAX_FINDINGS
        self._told = told
        self._allow = re.compile(allow) if allow else None
        self._pending = b""
        self._current: Finding | None = None
        self._timer: threading.Timer | None = None
        self._latest: threading.Timer | None = None  # the last there was, whether it still waits or not
        self._fed_at = 0.0
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        complete: list[Finding] = []
        with self._lock:
            *lines, self._pending = (self._pending + data).split(b"\n")
            self._pending = self._pending[-_MAX_LINE_BYTES:]
            for line in lines:
                self._line(_ESCAPE.sub("", line[:_MAX_LINE_BYTES].decode(errors="replace")), complete)
            self._fed_at = time.monotonic()
            self._watch_silence()
        for finding in complete:
            self._told(finding)

    def flush(self) -> None:
        """What is under way is complete now: the console has ended, or has been silent."""
        complete: list[Finding] = []
        with self._lock:
            if self._pending:
                line, self._pending = self._pending, b""
                self._line(_ESCAPE.sub("", line.decode(errors="replace")), complete)
            self._finish(complete)
        for finding in complete:
            self._told(finding)

    def close(self) -> None:
        """Nothing more comes. Leaves no thread behind; idempotent."""
        self.flush()
        with self._lock:
            timer = self._latest
        if timer is not None and timer is not threading.current_thread():
            timer.cancel()
            timer.join()  # also one that is just about to end

    def _line(self, line: str, complete: list[Finding]) -> None:
        text = _STAMP.sub("", line).rstrip()
        current = self._current
        kind = _kind(text)
        if kind is not None and not self._belongs(current, kind):
            self._finish(complete)
            expected = self._allow is not None and self._allow.search(text) is not None
            self._current = Finding(kind[0], kind[1] and not expected, [text])
        elif current is not None and text and not self._noise(current, text):
            current.lines.append(text)
            if len(current.lines) >= MAX_LINES:
                self._finish(complete)
        if self._current is not None and _END.search(text):
            self._finish(complete)

    @staticmethod
    def _noise(current: Finding, text: str) -> bool:
        if current.kind == _OUT_OF_MEMORY:
            return _OOM_LINE.search(text) is None  # a screenful of tables
        return _NOISE.search(text) is not None

    @staticmethod
    def _belongs(current: Finding | None, kind: tuple[str, bool]) -> bool:
        """An oops says so several times: the line is a part of the report that is under way."""
        if current is None:
            return False
        return kind[0] == current.kind or (kind[0] == "oops" and current.kind in ("BUG", "KASAN", "KFENCE"))

    def _finish(self, complete: list[Finding]) -> None:
        finding, self._current = self._current, None
        if finding is None:
            return
        if len(self.findings) >= MAX_FINDINGS:
            self.missed += 1
            return
        self.findings.append(finding)
        complete.append(finding)

    def _watch_silence(self) -> None:
        """See to it that a report without an end is told. One timer at a time: it looks again if there was more."""
        if self._current is not None and self._timer is None:
            self._timer = threading.Timer(SILENCE_SECONDS, self._look)
            self._timer.daemon = True
            self._timer.name = "guest-dmesg"
            self._timer.start()
            self._latest = self._timer

    def _look(self) -> None:
        complete: list[Finding] = []
        with self._lock:
            self._timer = None
            if time.monotonic() - self._fed_at >= SILENCE_SECONDS:
                self._finish(complete)
            self._watch_silence()
        for finding in complete:
            self._told(finding)


def _kind(text: str) -> tuple[str, bool] | None:
    if not _TRIGGER.search(text):
        return None
    for name, fatal, pattern in _KINDS:
        if pattern.search(text):
            return name, fatal
    return None
