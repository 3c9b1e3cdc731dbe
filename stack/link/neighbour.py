"""The neighbour cache: which MAC a next hop answers to, for ARP and NDP alike (RFC 4861 7.3, RFC 1122 2.3.2).

Theory of operation
-------------------
One cache per interface, entries keyed by address (4 or 16 bytes). Read RFC 4861 7.3.2 before editing. States:

    INCOMPLETE  solicited, no answer yet; packets wait in the entry's bounded queue
    REACHABLE   confirmed within the last reachable time
    STALE       known, not confirmed lately; used as it is, and the first use starts
    DELAY       a grace period in which an upper layer may confirm (TCP making progress); then
    PROBE       unicast solicitations; unanswered they end in
    FAILED      gone; the next packet starts over with INCOMPLETE
    PERMANENT   configured; never probed, never evicted
    DEAD        evicted from the cache: whoever still refers to the entry must look it up again

The hot path is one attribute: ``entry.header`` is the Ethernet header without its ethertype (12 bytes) while
packets may simply go out, and None while something must happen first (INCOMPLETE, FAILED, DEAD, and STALE, whose
first use starts the delay). `Neighbour.resolve` does that something.

How a solicitation looks is the owner's business (``solicit``: an ARP request or an NS); so is what becomes of packets
whose neighbour failed (``on_failed``). Memory is bounded twice: entries per cache, packets and bytes per entry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final

from stack.errors import DropReason, Drops
from stack.scheduler import NS_PER_MS, NS_PER_S, Scheduler

BASE_REACHABLE_TIME: Final = 30 * NS_PER_S  # RFC 4861 10: REACHABLE_TIME; used times 0.5..1.5
REACHABLE_TIME_HOLDS: Final = 300 * NS_PER_S  # as Linux; RFC 4861 6.3.4 allows a few hours
#: A confirmation sooner than this (ns) after one before changes nothing: it comes with every burst, and reachable times
#: are drawn from half a minute.
CONFIRMED_ENOUGH: Final = 10 * NS_PER_MS
RETRANS_TIME: Final = 1 * NS_PER_S  # RFC 4861 10: RETRANS_TIMER
DELAY_FIRST_PROBE_TIME: Final = 5 * NS_PER_S  # RFC 4861 10
MAX_MULTICAST_SOLICIT: Final = 3  # RFC 4861 10
MAX_UNICAST_SOLICIT: Final = 3  # RFC 4861 10

MAX_ENTRIES: Final = 1024  # Linux: gc_thresh3
MAX_PENDING_PACKETS: Final = 101  # Linux: unres_qlen
MAX_PENDING_BYTES: Final = 212_992  # Linux: unres_qlen_bytes


class NeighbourState(IntEnum):
    """Values of NUD_* in <linux/neighbour.h>; DEAD is our own."""

    DEAD = 0
    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    PERMANENT = 0x80


_INCOMPLETE: Final = NeighbourState.INCOMPLETE
_REACHABLE: Final = NeighbourState.REACHABLE
_STALE: Final = NeighbourState.STALE
_DELAY: Final = NeighbourState.DELAY
_PROBE: Final = NeighbourState.PROBE
_FAILED: Final = NeighbourState.FAILED
_PERMANENT: Final = NeighbourState.PERMANENT
_DEAD: Final = NeighbourState.DEAD


class Neighbour:
    """One entry. Read ``header``; if it is None, `resolve` and, if that gives None too, `hold` the packet."""

    __slots__ = (
        "_cache",
        "_pending",
        "_pending_bytes",
        "_timer",
        "address",
        "confirm_from",
        "header",
        "is_router",
        "mac",
        "probes",
        "state",
        "updated",
    )

    def __init__(self, cache: NeighbourCache, address: bytes) -> None:
        self._cache = cache
        self._timer = cache.scheduler.timer(self._expired)
        self._pending: deque[tuple[Any, int]] = deque()
        self._pending_bytes = 0
        self.address = address
        self.mac: bytes | None = None
        self.confirm_from = 0  #: `confirm` changes nothing before (ns)
        self.header: bytes | None = None  #: destination and source MAC, or None: see `resolve`
        self.state: NeighbourState = _FAILED
        self.probes = 0  #: solicitations sent in INCOMPLETE or PROBE
        self.is_router = False  #: RFC 4861 7.2.5: the R flag of its last advertisement
        self.updated = cache.scheduler.now  #: ns of the last change of state

    def resolve(self) -> bytes | None:
        """What a packet needs before going out: the header to use, or None if it has to wait (`hold`).

        Starts resolution or the delay before probing. A DEAD entry stays None: look the address up again.
        """
        state = self.state
        if state == _STALE:
            self._enter(_DELAY)
            self._timer.arm_in(DELAY_FIRST_PROBE_TIME)
        elif state == _FAILED:
            self.probes = 0
            self._enter(_INCOMPLETE)
            self._solicit()
        return self.header

    def hold(self, packet: Any, length: int) -> None:
        """Queue `packet` (`length` bytes) until the neighbour answers. The oldest give way (RFC 1122 2.3.2.2)."""
        pending = self._pending
        pending.append((packet, length))
        self._pending_bytes += length
        while len(pending) > MAX_PENDING_PACKETS or (self._pending_bytes > MAX_PENDING_BYTES and len(pending) > 1):
            _, dropped = pending.popleft()
            self._pending_bytes -= dropped
            self._cache.drops.count(DropReason.NEIGHBOUR_QUEUE_FULL)

    @property
    def pending(self) -> int:
        """Packets waiting."""
        return len(self._pending)

    def confirm(self) -> None:
        """Two-way reachability is proven (RFC 4861 7.3.1): an upper layer made progress, or a solicited answer came."""
        now = self._cache.scheduler.now
        if self.state is _REACHABLE:
            if now < self.confirm_from:
                return
        elif self.mac is None or self.state == _PERMANENT or self.state == _DEAD:
            return
        else:
            self._enter(_REACHABLE)
        self.confirm_from = now + CONFIRMED_ENOUGH
        self._timer.arm(now + self._cache.reachable_time())

    def update(self, mac: bytes, *, solicited: bool, override: bool = True) -> None:
        """The neighbour said (or somebody said for it) that it is at `mac`.

        `solicited`: in answer to us, hence confirmed. `override` False leaves a different known MAC alone and only
        makes it suspect (RFC 4861 7.2.5).
        """
        state = self.state
        if state in (_PERMANENT, _DEAD):
            return
        known = self.mac
        if known is None or state in (_INCOMPLETE, _FAILED):
            self.mac = mac
            if solicited:
                self.confirm()
            else:
                self._enter(_STALE)
                self._timer.cancel()
            self._release_pending()
            return
        if mac != known:
            if not override:
                if state == _REACHABLE:
                    self._enter(_STALE)
                    self._timer.cancel()
                return
            self.mac = mac
            if not solicited:
                self._enter(_STALE)
                self._timer.cancel()
                return
            self.state = _STALE  # so that confirm() enters anew and rebuilds the header
        if solicited:
            self.confirm()

    def _enter(self, state: NeighbourState) -> None:
        """Every change of state passes here: the header follows the state, the owner is told."""
        cache = self._cache
        self.state = state
        self.confirm_from = 0
        self.updated = cache.scheduler.now
        mac = self.mac
        usable = state in (_REACHABLE, _DELAY, _PROBE, _PERMANENT)
        self.header = mac + cache.mac if usable and mac is not None else None
        if cache.on_change is not None:
            cache.on_change(self)

    def _solicit(self) -> None:
        self.probes += 1
        self._timer.arm_in(self._cache.retrans_time)
        self._cache.solicit(self)

    def _expired(self) -> None:
        state = self.state
        if state == _REACHABLE:
            self._enter(_STALE)
        elif state == _DELAY:
            self.probes = 0
            self._enter(_PROBE)
            self._solicit()
        elif state in (_INCOMPLETE, _PROBE):
            limit = MAX_MULTICAST_SOLICIT if state == _INCOMPLETE else MAX_UNICAST_SOLICIT
            if self.probes < limit:
                self._solicit()
            else:
                self._fail()

    def _fail(self) -> None:
        self.mac = None
        self._enter(_FAILED)
        waiting = self._take_pending()
        if waiting:
            self._cache.drops.count(DropReason.NEIGHBOUR_FAILED, len(waiting))
            self._cache.on_failed(self, waiting)

    def _release_pending(self) -> None:
        waiting = self._take_pending()
        if waiting:
            self._cache.on_resolved(self, waiting)

    def _take_pending(self) -> list[Any]:
        waiting = [packet for packet, _ in self._pending]
        self._pending.clear()
        self._pending_bytes = 0
        return waiting

    def __repr__(self) -> str:
        return f"Neighbour({self.address.hex()} {self.state.name} {self.mac.hex(':') if self.mac else '-'})"


class NeighbourCache:
    """The neighbours of one interface."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        mac: bytes,
        solicit: Callable[[Neighbour], None],
        on_resolved: Callable[[Neighbour, list[Any]], None],
        on_failed: Callable[[Neighbour, list[Any]], None],
        on_change: Callable[[Neighbour], None] | None = None,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        """`mac`: the interface's own, 6 bytes. `solicit` asks for an entry's MAC: to everybody while its ``mac`` is
        None, else to that MAC. `on_resolved`/`on_failed` get the packets that were held."""
        self.scheduler = scheduler
        self.mac = mac
        self.solicit = solicit
        self.on_resolved = on_resolved
        self.on_failed = on_failed
        self.on_change = on_change
        self.max_entries = max_entries
        self.drops = Drops()
        self.base_reachable_time = BASE_REACHABLE_TIME  #: ns; a router may advertise others (RFC 4861 6.3.4)
        self.retrans_time = RETRANS_TIME
        self._entries: dict[bytes, Neighbour] = {}
        self._reachable_time = self._drawn_for = 0
        self._draw_at = 0  #: when (ns) the reachable time is drawn anew

    def lookup(self, address: bytes) -> Neighbour:
        """The entry for `address`, made if there is none (no solicitation yet)."""
        entry = self._entries.get(address)
        if entry is None:
            if len(self._entries) >= self.max_entries:
                self._evict()
            entry = self._entries[address] = Neighbour(self, address)
        return entry

    def get(self, address: bytes) -> Neighbour | None:
        return self._entries.get(address)

    def set_permanent(self, address: bytes, mac: bytes) -> Neighbour:
        """Configure a neighbour by hand."""
        entry = self.lookup(address)
        entry.mac = mac
        entry._timer.cancel()  # noqa: SLF001 - entry and cache are one thing
        entry._enter(_PERMANENT)  # noqa: SLF001
        entry._release_pending()  # noqa: SLF001
        return entry

    def configure(self, address: bytes, mac: bytes | None, state: NeighbourState) -> Neighbour:
        """Put a neighbour into `state` by hand, one of PERMANENT, REACHABLE, STALE and FAILED; without `mac` FAILED."""
        entry = self.lookup(address)
        if state == _PERMANENT and mac is not None:
            return self.set_permanent(address, mac)
        entry._timer.cancel()  # noqa: SLF001 - entry and cache are one thing
        if state == _FAILED or mac is None:
            entry._fail()  # noqa: SLF001
            return entry
        entry.mac = mac
        entry._enter(state)  # noqa: SLF001
        if state == _REACHABLE:
            entry._timer.arm_in(self.reachable_time())  # noqa: SLF001
        entry._release_pending()  # noqa: SLF001
        return entry

    def forget(self, address: bytes) -> None:
        """By hand: failed first, as observers of Linux see it, then gone."""
        entry = self._entries.get(address)
        if entry is not None:
            entry._timer.cancel()  # noqa: SLF001
            entry._fail()  # noqa: SLF001
            self.remove(address)

    def fixed(self, address: bytes, mac: bytes) -> Neighbour:
        """An entry outside the cache whose MAC follows from its address: broadcast, multicast, loopback."""
        entry = Neighbour(self, address)
        entry.mac = mac
        entry.state = _PERMANENT
        entry.header = mac + self.mac
        return entry

    def remove(self, address: bytes) -> bool:
        """Forget a neighbour; packets held for it are dropped and counted. False if it was not there."""
        entry = self._entries.pop(address, None)
        if entry is None:
            return False
        self._bury(entry)
        return True

    def flush(self, *, keep_permanent: bool = True) -> None:
        """Forget all neighbours: the link went down, or our own MAC changed."""
        for entry in list(self._entries.values()):
            if not (keep_permanent and entry.state == _PERMANENT):
                del self._entries[entry.address]
                self._bury(entry)

    def set_mac(self, mac: bytes) -> None:
        """Our own address changed: everything learned is asked for anew, permanent entries get new headers."""
        self.mac = mac
        self.flush()
        for entry in self._entries.values():
            entry._enter(_PERMANENT)  # noqa: SLF001

    def reachable_time(self) -> int:
        """A random reachable time in ns (RFC 4861 6.3.4: 0.5 to 1.5 of the base, drawn anew now and then).

        Asked for with every burst that proves a neighbour reachable, while drawing is a system call.
        """
        now = self.scheduler.now
        base = self.base_reachable_time
        if now >= self._draw_at or base != self._drawn_for:
            self._draw_at, self._drawn_for = now + REACHABLE_TIME_HOLDS, base
            self._reachable_time = int(base * (0.5 + self.scheduler.rng.random()))
        return self._reachable_time

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def _evict(self) -> None:
        """Make room: the first failed or stale entry, else the longest unchanged unresolved one, else of all."""
        best: Neighbour | None = None
        best_rank = (9, 0)
        for entry in self._entries.values():
            state = entry.state
            if state in (_FAILED, _STALE):
                best = entry
                break
            if state == _PERMANENT:
                continue
            rank = (0 if state == _INCOMPLETE else 1, entry.updated)
            if rank < best_rank:
                best, best_rank = entry, rank
        self.drops.count(DropReason.NEIGHBOUR_CACHE_FULL)
        if best is not None:
            del self._entries[best.address]
            self._bury(best)

    def _bury(self, entry: Neighbour) -> None:
        waiting = entry._take_pending()  # noqa: SLF001
        if waiting:
            self.drops.count(DropReason.NEIGHBOUR_FAILED, len(waiting))
        entry._timer.cancel()  # noqa: SLF001
        entry.mac = None
        entry._enter(_DEAD)  # noqa: SLF001
