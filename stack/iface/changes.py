"""What changed in a network namespace: records for those above who tell others (netlink groups, kernel events).

Lower layers never call upward. They append here; readers keep a cursor and drain from it. The log is bounded: a reader
that was away too long learns how many records it lost, as a netlink socket does with ENOBUFS.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MAX_RECORDS: Final = 1024


class ChangeKind(StrEnum):
    NEW_LINK = "new-link"  #: also: flags, carrier, MTU or MAC of a link changed
    DEL_LINK = "del-link"
    NEW_ADDRESS = "new-address"
    DEL_ADDRESS = "del-address"
    NEW_ROUTE = "new-route"
    DEL_ROUTE = "del-route"
    NEW_NEIGHBOUR = "new-neighbour"  #: also: its state changed
    DEL_NEIGHBOUR = "del-neighbour"
    NEW_VSOCK = "new-vsock"  #: also: its carrier or front-end changed
    DEL_VSOCK = "del-vsock"
    NEW_RULE = "new-rule"
    DEL_RULE = "del-rule"


_OF_LINKS: Final = frozenset((ChangeKind.NEW_LINK, ChangeKind.DEL_LINK))


#: Which list a change is about, named by its NEW_...
_LISTS: Final = {kind: ChangeKind(kind.replace("del-", "new-")) for kind in ChangeKind}


@dataclass(slots=True)
class Change:
    """One record. `subject` is the Interface, InterfaceAddress, RouteEntry, Neighbour or Rule concerned."""

    kind: ChangeKind
    subject: Any
    ifindex: int  #: 0 if no interface is concerned
    detail: str = ""  #: for links: what changed, in words
    origin: tuple[int, int] = (0, 0)  #: who asked for it: netlink port id and sequence number, or nobody
    name: str = ""  #: for links: what it was called just then


class ChangeLog:
    """Append-only, bounded, read through cursors."""

    def __init__(self, limit: int = MAX_RECORDS) -> None:
        self._records: deque[Change] = deque(maxlen=limit)
        self.end = 0  #: the cursor after the newest record
        #: How often there was something new, or something went, by the kind's NEW_...: whether a list is what it was.
        self.counts: Counter[ChangeKind] = Counter()
        #: Layers above that distribute records; called at each append, may only note the work.
        self.observers: list[Callable[[], None]] = []
        self.origin: tuple[int, int] = (0, 0)  #: of what is appended now

    def append(self, kind: ChangeKind, subject: Any, ifindex: int, detail: str = "") -> None:
        name = str(getattr(subject, "name", "")) if kind in _OF_LINKS else ""
        self._records.append(Change(kind, subject, ifindex, detail, self.origin, name))
        self.end += 1
        if kind is not ChangeKind.NEW_LINK or detail == "new":
            self.counts[_LISTS[kind]] += 1
        for observer in self.observers:
            observer()

    def since(self, cursor: int) -> tuple[list[Change], int]:
        """(records after `cursor`, how many were lost before them). Continue from ``end``."""
        wanted = self.end - cursor
        kept = min(wanted, len(self._records))
        records = list(self._records)[len(self._records) - kept :] if kept else []
        return records, wanted - kept
