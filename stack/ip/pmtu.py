"""What is known of the way to single destinations: path MTUs below the link's (RFC 1191, RFC 8201).

Learned from ICMP by way of the transports, or set by one that probes with packets of its own (RFC 4821, RFC 8899). An
entry ages: after ten minutes the link's MTU is believed again (RFC 1191 6.3, RFC 8201 4), which costs one lost packet
if nothing changed. Bounded: the oldest entry gives way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_S

if TYPE_CHECKING:
    from stack.scheduler import Scheduler

MAX_ENTRIES: Final = 4096
EXPIRY: Final = 600 * NS_PER_S  # Linux: net.ipv4.route.mtu_expires, net.ipv6.route.mtu_expires
#: MTUs of links there are or were, RFC 1191 table 7-1, for routers too old to name theirs.
PLATEAUS: Final = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)


def plateau_below(length: int) -> int:
    """The next lower plausible MTU when a packet of `length` bytes was too big and nobody says for what."""
    return next((plateau for plateau in PLATEAUS if plateau < length), PLATEAUS[-1])


class PathMtus:
    """By destination. `on_change` is called when one was learned or has aged out."""

    __slots__ = ("_entries", "_on_change", "_scheduler", "_timer")

    def __init__(self, scheduler: Scheduler, on_change: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._on_change = on_change
        self._entries: dict[bytes, tuple[int, int]] = {}  # destination -> (MTU, expiry in ns), the next to expire first
        self._timer = scheduler.timer(self._expire)

    def get(self, dst: bytes) -> int | None:
        """Bytes, or None if nothing is known."""
        entry = self._entries.get(dst)
        return None if entry is None or entry[1] <= self._scheduler.now else entry[0]

    def set(self, dst: bytes, mtu: int) -> None:
        """Good for `EXPIRY` from now on."""
        entries = self._entries
        entries.pop(dst, None)
        if len(entries) >= MAX_ENTRIES:
            del entries[next(iter(entries))]
        entries[dst] = (mtu, self._scheduler.now + EXPIRY)
        if not self._timer.armed:
            self._timer.arm_in(EXPIRY)
        self._on_change()

    def forget(self, dst: bytes) -> None:
        """Believe the link again."""
        if self._entries.pop(dst, None) is not None:
            self._on_change()

    def __len__(self) -> int:
        return len(self._entries)

    def _expire(self) -> None:
        now = self._scheduler.now
        entries = self._entries
        for dst in list(entries):
            expiry = entries[dst][1]
            if expiry > now:
                self._timer.arm(expiry)
                break
            del entries[dst]
        self._on_change()
