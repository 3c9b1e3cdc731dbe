"""Which groups we listen to on which interface, and from whom (RFC 3376 3, RFC 3810 4).

Every listener (a socket's, a service's) holds a `Membership` with a filter of its own: INCLUDE these sources, or
EXCLUDE those. An interface's filter for a group is what all of them together want: EXCLUDE, if any excludes, what all
that exclude agree on and nobody includes; else INCLUDE what any includes. Changes of it are told to the reporter (IGMP,
MLD); packets are let in by it, and each socket applies its own filter afterwards.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.iface.interface import Interface

MAX_SOURCES: Final = 64  # of one membership; Linux: igmp_max_msf 10, mld_max_msf 64
MAX_MEMBERSHIPS: Final = 4096  # of one namespace


class SourceFilter(NamedTuple):
    """EXCLUDE (`exclude`) or INCLUDE `sources`. INCLUDE nobody is not listening."""

    exclude: bool
    sources: frozenset[bytes]

    def allows(self, source: bytes) -> bool:
        return (source in self.sources) != self.exclude


NOBODY: Final = SourceFilter(exclude=False, sources=frozenset())
EVERYBODY: Final = SourceFilter(exclude=True, sources=frozenset())


def merged(filters: Iterable[SourceFilter]) -> SourceFilter:
    """What all listeners together want (RFC 3376 3.2)."""
    excluded: frozenset[bytes] | None = None
    included: frozenset[bytes] = frozenset()
    for each in filters:
        if each.exclude:
            excluded = each.sources if excluded is None else excluded & each.sources
        else:
            included |= each.sources
    if excluded is None:
        return SourceFilter(exclude=False, sources=included)
    return SourceFilter(exclude=True, sources=excluded - included)


class Membership:
    """One listener's wish concerning one group on one interface. Made by `Groups.join`."""

    __slots__ = ("_groups", "filter", "group", "iface")

    def __init__(self, groups: Groups, group: bytes, iface: Interface, wanted: SourceFilter) -> None:
        self._groups = groups
        self.group = group
        self.iface = iface
        self.filter = wanted

    def set(self, wanted: SourceFilter) -> None:
        """Another filter. Raises NetError(ENOBUFS) for too many sources."""
        if len(wanted.sources) > MAX_SOURCES:
            raise NetError(errno.ENOBUFS)
        self.filter = wanted
        self._groups.update(self.group, self.iface)

    def leave(self) -> None:
        """Idempotent."""
        self._groups.leave(self)


class Groups:
    """All memberships of one namespace."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called when the set of groups is another one."""
        self._changed = changed
        self._members: dict[tuple[bytes, int], list[Membership]] = {}
        self._filters: dict[tuple[bytes, int], SourceFilter] = {}
        self._count = 0
        #: Told of every change of an interface's filter: (interface, group, old, new). Set by the reporters.
        self.reporters: dict[int, Callable[[Interface, bytes, SourceFilter, SourceFilter], None]] = {}

    def join(self, group: bytes, iface: Interface, wanted: SourceFilter = EVERYBODY) -> Membership:
        """Raises NetError(ENOBUFS) for too many memberships or sources."""
        if self._count >= MAX_MEMBERSHIPS or len(wanted.sources) > MAX_SOURCES:
            raise NetError(errno.ENOBUFS)
        membership = Membership(self, group, iface, wanted)
        self._members.setdefault((group, iface.index), []).append(membership)
        self._count += 1
        self.update(group, iface)
        return membership

    def leave(self, membership: Membership) -> None:
        """Nothing happens if it was left already."""
        key = (membership.group, membership.iface.index)
        members = self._members.get(key, [])
        if membership in members:
            members.remove(membership)
            self._count -= 1
            if not members:
                del self._members[key]
            self.update(membership.group, membership.iface)

    def update(self, group: bytes, iface: Interface) -> None:
        """A membership changed: work out the interface's filter and tell of a difference."""
        key = (group, iface.index)
        old = self._filters.get(key, NOBODY)
        new = merged(each.filter for each in self._members.get(key, ()))
        if new == old:
            return
        if new == NOBODY:
            del self._filters[key]
        else:
            self._filters[key] = new
        if NOBODY in (old, new):
            self._changed()
        reporter = self.reporters.get(len(group))
        if reporter is not None and not iface.loopback:
            reporter(iface, group, old, new)

    def forget(self, iface: Interface) -> None:
        """The interface is gone; its memberships are void."""
        for key in [key for key in self._members if key[1] == iface.index]:
            self._count -= len(self._members.pop(key))
            self._filters.pop(key, None)
        self._changed()

    def filter_of(self, group: bytes, iface: Interface) -> SourceFilter:
        """What is let in through `iface`."""
        return self._filters.get((group, iface.index), NOBODY)

    def of(self, iface: Interface, width: int) -> list[tuple[bytes, SourceFilter]]:
        """The groups of one family listened to on `iface`."""
        return [
            (group, wanted)
            for (group, index), wanted in self._filters.items()
            if index == iface.index and len(group) == width
        ]

    def accepts(self, group: bytes, iface: Interface, source: bytes) -> bool:
        """Is a packet of `source` to `group` let in? What we send ourselves comes in through `lo`."""
        if iface.loopback:
            return any(key[0] == group and wanted.allows(source) for key, wanted in self._filters.items())
        wanted = self._filters.get((group, iface.index))
        return wanted is not None and wanted.allows(source)

    def __iter__(self) -> Iterator[bytes]:
        """Every group that somebody listens to, on any interface."""
        return iter({group for group, _ in self._filters})

    def __len__(self) -> int:
        """Memberships."""
        return self._count
