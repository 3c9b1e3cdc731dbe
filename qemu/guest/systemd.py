"""systemd's ways to report to the host: readiness, exit status and the journal, over vsock.

A guest with systemd 254 or later reads credentials from its SMBIOS tables (type 11, "OEM strings"). Two of them name a
stream socket: to `vmm.notify_socket` it sends what sd_notify(3) sends, one connection a message - READY=1 when the boot
is done, STATUS=, X_SYSTEMD_UNIT_ACTIVE=, and EXIT_STATUS= when it goes down; to `journal.forward_to_socket` journald
(256 and later) sends its journal. `Guest(systemd=True)` hands both out and receives what comes.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from qemu.guest.errors import GuestTimeoutError, SetupError
from qemu.guest.journal import JournalEntry, JournalParser

if TYPE_CHECKING:
    from stack import Stack

#: A message of sd_notify; systemd's own limit for what it receives is a page.
MESSAGE_LIMIT: Final = 64 << 10
#: What is kept of all that a guest tells; the oldest goes first.
JOURNAL_KEPT: Final = 64 << 20  # bytes of entries, each counted as ENTRY_COST more than its fields
ENTRY_COST: Final = 1024
MESSAGES_KEPT: Final = 200
NAMES_KEPT: Final = 256  # a guest's systemd uses about ten
_HOST_CID: Final = 2
#: systemd's versions that know the credentials (its NEWS).
_NOTIFY_SINCE: Final = 254
_JOURNAL_SINCE: Final = 256


class SystemdReports:
    """`Guest.systemd`: what its systemd told. Methods may be called from any thread."""

    def __init__(self, stack: Stack, *, on_entry: Callable[[JournalEntry], object] | None = None) -> None:
        """`on_entry` is called with each journal entry as it comes, from whichever thread drives the Network."""
        from stack.services.vsock_sink import VsockSink
        from stack.wire.vsock import PORT_ANY

        #: Of systemd, once the guest has said so (a disk image, booted). What is too old for a report is then told.
        self.version: int | None = None
        self._news = threading.Condition()
        self._messages: deque[dict[str, str]] = deque(maxlen=MESSAGES_KEPT)
        self._values: dict[str, str] = {}
        self._entries: deque[JournalEntry] = deque()
        self._kept = 0  # bytes of them
        self._lost = 0  # how many went
        self._on_entry = on_entry
        self._network = stack.network
        with self._network.lock:
            self._notify = VsockSink(stack.vsock, PORT_ANY, lambda: _Message(self._told))
            self._journal = VsockSink(stack.vsock, PORT_ANY, lambda: JournalParser(self._logged))
            self._network.finish()

    @property
    def credentials(self) -> dict[str, str]:
        """What the guest has to be told."""
        return {
            "vmm.notify_socket": f"vsock-stream:{_HOST_CID}:{self._notify.port}",
            "journal.forward_to_socket": f"vsock-stream:{_HOST_CID}:{self._journal.port}",
        }

    @property
    def messages(self) -> list[dict[str, str]]:
        """Every message, oldest first: its assignments by name."""
        with self._news:
            return list(self._messages)

    @property
    def ready(self) -> bool:
        """READY=1 came."""
        with self._news:
            return self._values.get("READY") == "1"

    @property
    def exit_status(self) -> int | None:
        """EXIT_STATUS of the guest, once it came."""
        with self._news:
            text = self._values.get("EXIT_STATUS", "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def journal(self) -> list[JournalEntry]:
        """The journal so far, oldest first. Raises SetupError for a systemd that does not forward it."""
        self._check("journal.forward_to_socket", _JOURNAL_SINCE)
        with self._news:
            return list(self._entries)

    def wait_entry(self, pattern: str, *, timeout: float) -> JournalEntry:
        """The first journal entry whose message has the regular expression, waited for if need be.

        Raises GuestTimeoutError, SetupError for a systemd that does not forward its journal.
        """
        self._check("journal.forward_to_socket", _JOURNAL_SINCE)
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        seen = 0
        with self._news:
            while True:
                for entry in list(self._entries)[max(0, seen - self._lost) :]:
                    if wanted.search(entry.message):
                        return entry
                seen = self._lost + len(self._entries)
                left = deadline - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    raise GuestTimeoutError(f"waited {timeout:g} s for {pattern!r} in the guest's journal")

    def wait(self, name: str, *, timeout: float) -> str:
        """The last value of the assignment `name`, waited for if need be.

        Raises GuestTimeoutError, SetupError for a systemd that does not say such things.
        """
        self._check("vmm.notify_socket", _NOTIFY_SINCE)
        deadline = time.monotonic() + timeout
        with self._news:
            while name not in self._values:
                left = deadline - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    said = ", ".join(f"{key}={value}" for key, value in self._values.items()) or "nothing"
                    raise GuestTimeoutError(f"waited {timeout:g} s for the guest's {name}; it said {said}")
            return self._values[name]

    def _check(self, what: str, since: int) -> None:
        if self.version is not None and self.version < since:
            raise SetupError(f"the guest's systemd {self.version} knows nothing of {what}: {since} and later do")

    def close(self) -> None:
        """Idempotent. What was told stays readable."""
        with self._network.lock:
            self._notify.close()
            self._journal.close()
            self._network.finish()

    def _told(self, message: dict[str, str]) -> None:
        with self._news:
            self._messages.append(message)
            for name, value in message.items():
                if name in self._values or len(self._values) < NAMES_KEPT:
                    self._values[name] = value
            self._news.notify_all()

    def _logged(self, entry: JournalEntry) -> None:
        with self._news:
            self._entries.append(entry)
            self._kept += _cost(entry)
            while self._kept > JOURNAL_KEPT:
                self._kept -= _cost(self._entries.popleft())
                self._lost += 1
            self._news.notify_all()
        if self._on_entry is not None:
            self._on_entry(entry)


def _cost(entry: JournalEntry) -> int:
    return ENTRY_COST + sum(len(name) + len(value) + ENTRY_COST // 8 for name, value in entry.fields)


class _Message:
    """One connection to the notify socket: one message, ended by the guest's half-close."""

    def __init__(self, on_message: Callable[[dict[str, str]], None]) -> None:
        self._on_message = on_message
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MESSAGE_LIMIT:
            raise ValueError(f"a notification of more than {MESSAGE_LIMIT} bytes")

    def end(self) -> None:
        message = {}
        for line in self._data.decode(errors="replace").split("\n"):
            name, equals, value = line.partition("=")
            if equals and name:
                message[name] = value
        if message:
            self._on_message(message)


def smbios_arguments(credentials: dict[str, str]) -> list[str]:
    """QEMU's options that hand systemd credentials to the guest. Raises SetupError for a name systemd would not take.

    A value that is plain text is put in as it is, any other in base64.
    """
    words = []
    for name, value in credentials.items():
        if not name or not name.isascii() or any(letter in "=,:/" or not letter.isprintable() for letter in name):
            raise SetupError(f"{name!r} is no name of a systemd credential")
        if value.isascii() and value.isprintable():
            text = f"io.systemd.credential:{name}={value}"
        else:
            text = f"io.systemd.credential.binary:{name}={base64.b64encode(value.encode()).decode()}"
        words += ["-smbios", f"type=11,value={text.replace(',', ',,')}"]
    return words
