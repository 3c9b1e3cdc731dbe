"""Telling multicast routers what we listen to: the host half of IGMPv3 and MLDv2, and of their older versions.

Theory of operation
-------------------
One `Reporter` per family; IGMP (RFC 3376) and MLD (RFC 3810) differ in messages and addresses only, which `Wire` hides.

* A change of an interface's filter is reported at once and again after a random part of a second, in all as often as
  the robustness variable says (2). What is repeated is what is true by then (RFC 3376 5.1): for a change of mode the
  whole state, for a change of sources each source's present side.
* A query is answered after a random part of the time it allows, by what is true by then; answers to several queries
  are merged (5.2).
* An older querier is heard: for a while the older protocol is spoken (RFC 3376 7, RFC 3810 8): reports go to the group
  itself, another host's report spares us ours, and leaving is said only by who reported last.

224.0.0.1 and ff02::1 are never reported. Solicited-node groups are reported in answers only: every address has one, and
no switch worth the name waits for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from stack.ip.groups import NOBODY, Groups, SourceFilter
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.wire.igmp import Query, Record, RecordType

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.scheduler import Scheduler, Timer

UNSOLICITED_INTERVAL: Final = NS_PER_S  # RFC 3376 8.11, RFC 3810 9.11
OLD_UNSOLICITED_INTERVAL: Final = 10 * NS_PER_S  # RFC 2236 8.10, RFC 2710 7.10
#: A group with more sources under query than this is answered with its whole state.
MAX_QUERIED_SOURCES: Final = 64


class Wire(Protocol):
    """What differs between the families."""

    width: int  #: of addresses, bytes

    def report(self, iface: Interface, records: list[Record]) -> None: ...
    def old_report(self, iface: Interface, group: bytes) -> None: ...
    def old_leave(self, iface: Interface, group: bytes) -> None: ...
    def silent(self, group: bytes) -> bool:
        """Never reported."""
        ...

    def further(self, iface: Interface) -> list[bytes]:
        """Groups listened to without anybody having joined."""
        ...


class _Change:
    """What is still to be told of one group."""

    __slots__ = ("mode", "sources")

    def __init__(self) -> None:
        self.mode = 0  #: times left to tell of a change of mode
        self.sources: dict[bytes, int] = {}  #: times left to tell of a source


class _Link:
    """One interface."""

    def __init__(self, iface: Interface, scheduler: Scheduler, reporter: Reporter) -> None:
        self.iface = iface
        self.robustness = 2
        self.changes: dict[bytes, _Change] = {}
        self.change_timer: Timer = scheduler.timer(lambda: reporter.tell_changes(self))
        self.general_timer: Timer = scheduler.timer(lambda: reporter.answer_general(self))
        self.queried: dict[bytes, tuple[Timer, set[bytes]]] = {}  # group -> (when to answer, sources; none: all)
        self.old_until = -1  #: an older querier is present until then, ns
        self.old_timers: dict[bytes, tuple[Timer, list[int]]] = {}  # group -> (next report, [reports left])
        self.last_reporter: set[bytes] = set()  #: groups of which we sent the last version 2 (MLD 1) report

    def cancel(self) -> None:
        self.change_timer.cancel()
        self.general_timer.cancel()
        for timer, _ in self.queried.values():
            timer.cancel()
        for timer, _ in self.old_timers.values():
            timer.cancel()


class Reporter:
    """IGMP's or MLD's host half for one namespace."""

    def __init__(self, scheduler: Scheduler, groups: Groups, wire: Wire) -> None:
        self._scheduler = scheduler
        self._groups = groups
        self._wire = wire
        self._links: dict[int, _Link] = {}
        groups.reporters[wire.width] = self.changed

    def forget(self, iface: Interface) -> None:
        """The interface is gone."""
        link = self._links.pop(iface.index, None)
        if link is not None:
            link.cancel()

    def speaks_old(self, iface: Interface) -> bool:
        """The older version is in force on `iface`."""
        link = self._links.get(iface.index)
        return link is not None and link.old_until > self._scheduler.now

    def changed(self, iface: Interface, group: bytes, old: SourceFilter, new: SourceFilter) -> None:
        """The filter of `group` on `iface` became `new`."""
        if self._wire.silent(group):
            return
        link = self._link(iface)
        if link.old_until > self._scheduler.now:
            self._changed_old(link, group, old, new)
            return
        change = link.changes.setdefault(group, _Change())
        if old.exclude != new.exclude:
            change.mode = link.robustness
            change.sources.clear()
        elif not change.mode:
            for source in old.sources ^ new.sources:
                change.sources[source] = link.robustness
        else:
            change.mode = link.robustness
        self.tell_changes(link)

    def tell_changes(self, link: _Link) -> None:
        """Report what is still to be told, once."""
        records: list[Record] = []
        for group, change in list(link.changes.items()):
            state = self._groups.filter_of(group, link.iface)
            if change.mode:
                change.mode -= 1
                kind = RecordType.CHANGE_TO_EXCLUDE if state.exclude else RecordType.CHANGE_TO_INCLUDE
                records.append(Record(kind, group, sorted(state.sources)))
            elif change.sources:
                allowed = sorted(source for source in change.sources if state.allows(source))
                blocked = sorted(source for source in change.sources if not state.allows(source))
                if allowed:
                    records.append(Record(RecordType.ALLOW_NEW_SOURCES, group, allowed))
                if blocked:
                    records.append(Record(RecordType.BLOCK_OLD_SOURCES, group, blocked))
                change.sources = {source: left - 1 for source, left in change.sources.items() if left > 1}
            if not change.mode and not change.sources:
                del link.changes[group]
        if records:
            self._wire.report(link.iface, records)
        if link.changes:
            link.change_timer.arm_in(int(UNSOLICITED_INTERVAL * self._scheduler.rng.random()))

    # --- queries --------------------------------------------------------------------------------------------------

    def query(self, iface: Interface, query: Query, *, old: bool) -> None:
        """A valid query came in; `old`: of the older version."""
        link = self._link(iface)
        if old:
            if link.old_until <= self._scheduler.now:
                link.changes.clear()  # RFC 3376 7.2.1: what was to be told in the newer version is not
                link.change_timer.cancel()
            # Older version querier present: robustness times query interval, plus a response interval.
            link.old_until = self._scheduler.now + (link.robustness * query.interval + 10) * NS_PER_S
            self._query_old(link, query)
            return
        link.robustness = query.robustness
        if link.old_until > self._scheduler.now:
            self._query_old(link, query)
            return
        delay = int(query.max_response * NS_PER_MS * self._scheduler.rng.random())
        due = self._scheduler.now + delay
        general = link.general_timer
        if general.deadline is not None and general.deadline <= due:
            return  # 5.2 rule 1: an answer about everything comes sooner
        if not any(query.group):
            general.arm(due)
            return
        if self._state(link, query.group) is None:
            return
        known = link.queried.get(query.group)
        if known is None:
            timer = self._scheduler.timer(lambda: self._answer_group(link, query.group))
            timer.arm(due)
            link.queried[query.group] = (timer, set(query.sources[:MAX_QUERIED_SOURCES]))
            return
        timer, sources = known
        if not query.sources or not sources or len(sources) + len(query.sources) > MAX_QUERIED_SOURCES:
            sources.clear()
        else:
            sources.update(query.sources)
        timer.arm(min(due, timer.deadline if timer.deadline is not None else due))

    def answer_general(self, link: _Link) -> None:
        """Current-state records of every group."""
        records = []
        groups = dict(self._groups.of(link.iface, self._wire.width))
        for group in self._wire.further(link.iface):
            groups.setdefault(group, SourceFilter(exclude=True, sources=frozenset()))
        for group, state in groups.items():
            if not self._wire.silent(group) or group in self._wire.further(link.iface):
                kind = RecordType.MODE_IS_EXCLUDE if state.exclude else RecordType.MODE_IS_INCLUDE
                records.append(Record(kind, group, sorted(state.sources)))
        if records:
            self._wire.report(link.iface, records)

    def _answer_group(self, link: _Link, group: bytes) -> None:
        """RFC 3376 5.2, the table at its end."""
        _, asked = link.queried.pop(group)
        state = self._state(link, group)
        if state is None:
            return
        if not asked:
            kind = RecordType.MODE_IS_EXCLUDE if state.exclude else RecordType.MODE_IS_INCLUDE
            self._wire.report(link.iface, [Record(kind, group, sorted(state.sources))])
            return
        wanted = sorted(source for source in asked if state.allows(source))
        if wanted:
            self._wire.report(link.iface, [Record(RecordType.MODE_IS_INCLUDE, group, wanted)])

    def _state(self, link: _Link, group: bytes) -> SourceFilter | None:
        state = self._groups.filter_of(group, link.iface)
        if state != NOBODY:
            return None if self._wire.silent(group) else state
        if group in self._wire.further(link.iface):
            return SourceFilter(exclude=True, sources=frozenset())
        return None

    # --- the older version ----------------------------------------------------------------------------------------

    def heard_report(self, iface: Interface, group: bytes) -> None:
        """Another host reported `group` in the older version: ours is spared (RFC 2236 3)."""
        link = self._links.get(iface.index)
        if link is not None:
            pending = link.old_timers.pop(group, None)
            if pending is not None:
                pending[0].cancel()
            link.last_reporter.discard(group)

    def _changed_old(self, link: _Link, group: bytes, old: SourceFilter, new: SourceFilter) -> None:
        if old == NOBODY:
            self._report_old(link, group, 0, OLD_UNSOLICITED_INTERVAL, link.robustness)
        elif new == NOBODY:
            pending = link.old_timers.pop(group, None)
            if pending is not None:
                pending[0].cancel()
            if group in link.last_reporter:
                link.last_reporter.discard(group)
                self._wire.old_leave(link.iface, group)

    def _query_old(self, link: _Link, query: Query) -> None:
        groups = [group for group, _ in self._groups.of(link.iface, self._wire.width)]
        for group in groups:
            if any(query.group) and query.group != group:
                continue
            if self._wire.silent(group):
                continue
            limit = query.max_response * NS_PER_MS
            pending = link.old_timers.get(group)
            if pending is not None and (pending[0].deadline or 0) <= self._scheduler.now + limit:
                continue
            if pending is not None:
                pending[0].cancel()
            self._report_old(link, group, int(limit * self._scheduler.rng.random()), limit, 1)

    def _report_old(self, link: _Link, group: bytes, delay: int, interval: int, times: int) -> None:
        left = [times]

        def due() -> None:
            left[0] -= 1
            self._wire.old_report(link.iface, group)
            link.last_reporter.add(group)
            if left[0]:
                timer.arm_in(int(interval * self._scheduler.rng.random()))
            else:
                link.old_timers.pop(group, None)

        timer = self._scheduler.timer(due)
        link.old_timers[group] = (timer, left)
        if delay:
            timer.arm_in(delay)
        else:
            due()

    def _link(self, iface: Interface) -> _Link:
        link = self._links.get(iface.index)
        if link is None:
            link = self._links[iface.index] = _Link(iface, self._scheduler, self)
        return link
