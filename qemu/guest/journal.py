"""systemd's journal export format (systemd.io/JOURNAL_EXPORT_FORMATS), read as it arrives.

An entry is a sequence of fields and ends with an empty line. A field is ``NAME=text`` on a line, or, if its value holds
line ends, ``NAME`` on a line, the value's length as 64 bits little-endian, the value, and a line end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

#: Bytes of one entry. What journald forwards are lines and their context; core dumps stay in the guest.
ENTRY_LIMIT: Final = 4 << 20
FIELD_LIMIT: Final = 1024  # fields of one entry; journald's ENTRY_FIELD_COUNT_MAX
_LENGTH_BYTES: Final = 8
_PRIORITIES: Final = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")


@dataclass(slots=True)
class JournalEntry:
    """One entry. A field may occur more than once; `get` gives the last."""

    fields: list[tuple[str, bytes]] = field(default_factory=list)

    def get(self, name: str, default: str = "") -> str:
        for key, value in reversed(self.fields):
            if key == name:
                return value.decode(errors="replace")
        return default

    @property
    def message(self) -> str:
        return self.get("MESSAGE")

    @property
    def unit(self) -> str:
        return self.get("_SYSTEMD_UNIT") or self.get("UNIT")

    @property
    def priority(self) -> str:
        """As journalctl calls it: "err", "info", ...; "" without one."""
        text = self.get("PRIORITY")
        return _PRIORITIES[int(text)] if text in map(str, range(len(_PRIORITIES))) else ""

    def __str__(self) -> str:
        """A line as journalctl prints it."""
        stamp = self.get("__REALTIME_TIMESTAMP") or self.get("_SOURCE_REALTIME_TIMESTAMP")
        when = ""
        if stamp.isascii() and stamp.isdigit() and len(stamp) <= 18:
            when = time.strftime("%b %d %H:%M:%S ", time.gmtime(int(stamp) // 1_000_000))
        name = self.get("SYSLOG_IDENTIFIER") or self.get("_COMM", "unknown")
        process = self.get("_PID")
        return f"{when}{name}{f'[{process}]' if process else ''}: {self.message}"


class JournalParser:
    """Bytes in, entries out. A `stack.services.vsock_sink.Receiver`."""

    def __init__(self, on_entry: Callable[[JournalEntry], None]) -> None:
        self._on_entry = on_entry
        self._entry = JournalEntry()
        self._size = 0  # bytes of the entry so far
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Raises ValueError for what is no journal."""
        pending = self._pending
        pending += data
        at = 0
        while (used := self._field(pending, at)) > 0:
            at += used
        del pending[:at]
        if self._size + len(pending) > ENTRY_LIMIT:
            raise ValueError(f"a journal entry of more than {ENTRY_LIMIT} bytes")

    def end(self) -> None:
        """Raises ValueError in the middle of a field; an entry whose empty line is missing counts."""
        if self._pending:
            raise ValueError("the journal ends in the middle of a field")
        self._finish()

    def _field(self, data: bytearray, at: int) -> int:
        """Take one field or an entry's end at `at`; the bytes used, 0 if more are needed."""
        end = data.find(b"\n", at)
        if end < 0:
            return 0
        if end == at:
            self._finish()
            return 1
        line = bytes(data[at:end])
        name, equals, value = line.partition(b"=")
        used = end + 1 - at
        if not equals:
            length = int.from_bytes(data[end + 1 : end + 1 + _LENGTH_BYTES], "little")
            begin = end + 1 + _LENGTH_BYTES
            if len(data) < begin:
                return 0
            if length > ENTRY_LIMIT:
                raise ValueError(f"a journal field of {length} bytes")
            if len(data) <= begin + length:
                return 0
            if data[begin + length] != 0x0A:
                raise ValueError("a journal field is longer than it says")
            value = bytes(data[begin : begin + length])
            used = begin + length + 1 - at
        if not name:
            raise ValueError("a journal field without a name")
        self._size += used
        if self._size > ENTRY_LIMIT or len(self._entry.fields) >= FIELD_LIMIT:
            raise ValueError(f"a journal entry of more than {ENTRY_LIMIT} bytes or {FIELD_LIMIT} fields")
        self._entry.fields.append((name.decode(errors="replace"), value))
        return used

    def _finish(self) -> None:
        entry, self._entry = self._entry, JournalEntry()
        self._size = 0
        if entry.fields:
            self._on_entry(entry)
