"""Waiting for a Network: the only file of the stack that reads a clock or sleeps.

Theory of operation
-------------------
**Whoever waits, polls.** At any time at most one thread is the *leader*: it holds the poll token and runs the
Network's turns. A thread that blocks in `recv` and finds no leader becomes it, so the answer to what it sent is taken
from the device, through the stack and to the user by one thread, without a hand-over. A thread that finds a leader is
a *follower*: it parks on a gate of its own until the leader's turn makes its socket ready, or until a leaving leader
hands it the token; a leaving leader wakes exactly one. The **background thread** (`start`) is the last follower: it
polls only while no other thread does.

A Network without descriptors (loopback and cables alone) has nothing to poll for but timers: everything else is
delivered in the call that causes it. There the background thread, if it runs, keeps the token and all others follow.

**Looking and sleeping.** After traffic the leader keeps looking for a while, with notifications suppressed, because
waking a halted core costs more than the wait; how long is learnt from how long recent waits took (`_Patience`). Then
it arms the devices, looks once more, and sleeps in `epoll` - Python's, so that Ctrl-C works - without the lock, until
a descriptor fires, a timer is due, its own deadline comes, or another thread *nudges* it: a socket call of another
thread that made the leader's socket ready, left work undone, or armed an earlier timer.

**The background thread's three rests.** Waking it for every message that another thread handles itself would cost a
thread switch each. So while others lead and traffic is recent it is on *patrol*: a short sleep after which it only
looks whether anybody led meanwhile. If nobody did it takes over: it cools the sources the last leader left suppressed
and goes on *watch*, asleep in the Network's descriptors as a leader would be. Without recent traffic it is *off
duty*, asleep until told. A leaving leader tells it only if it is not on patrol; so steady request-and-response
traffic wakes it about a thousand times a second, however many messages there are, and a quiet Network never.

**Interrupts.** The lock is only taken by `with`, sleeping happens outside of it, and whoever leaves, by whatever
exception, gives back in `finally` what it held: its place among the observers, its place in the line, the token.

With a ManualClock there is nothing to wait for: see `stack.virtual`.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from stack.network import MAX_EVENTS, Alarm, Network, Runner, closed_error
from stack.scheduler import NS_PER_MS, NS_PER_S, NS_PER_US
from stack.socket.base import AGAIN, Again, Timeout
from stack.socket.poll import ALWAYS, Pollee
from stack.switching import SwitchInterval
from stack.virtual import VirtualRunner

T = TypeVar("T")

#: A sleep without a deadline, as `Network.asleep_until`.
FOREVER: Final = 1 << 62
#: How often the background thread on patrol looks whether anybody leads.
PATROL: Final = 1 * NS_PER_MS
#: How long after the last traffic it stays on patrol.
RECENT: Final = 20 * NS_PER_MS
#: The longest wait worth spinning for; a halted core takes about 50 us to wake.
MAX_SPIN: Final = 200 * NS_PER_US
#: Seconds; epoll_wait counts milliseconds in a C int.
LONGEST_SLEEP: Final = 86400.0
#: The main thread sleeps no longer than this at a time, seconds. Python looks for signals before it goes to sleep, and
#: one that interrupts a sleep ends it; but one that comes just between the look and the sleep would wait for its end.
SIGNAL_GAP: Final = 1.0

#: The interpreter has one switch interval, whatever the number of Networks.
SWITCHING: Final = SwitchInterval()

_LOG: Final = logging.getLogger(__name__)


class _Waiter:
    """A thread that waits: an observer of the pollee it waits for. All but `gate` under the Network's lock."""

    __slots__ = ("asleep", "events", "gate", "parked", "ready", "runner")

    def __init__(self, runner: _RealRunner) -> None:
        self.runner = runner
        self.events = 0
        self.ready = False  #: the pollee has one of `events`: attempt again
        self.parked = False  #: a follower, at its gate or on the way there; whoever clears this opens the gate
        self.asleep = False  #: the leader, in epoll or on the way there
        self.gate = threading.Lock()
        self.gate.acquire()

    def update(self, bits: int) -> None:
        if bits & self.events and not self.ready:
            self.rouse()

    def rouse(self) -> None:
        """Have the thread attempt again."""
        self.ready = True
        if self.parked:
            self.unpark()
        elif self.asleep:
            self.runner.ring()

    def unpark(self) -> None:
        self.parked = False
        self.gate.release()


class _Patience:
    """How long it pays to keep looking before sleeping: learnt from how long waits took.

    A spin helps only if it outlasts the wait, so it is the longest allowed or none at all. A wait that was slept
    through includes the time a halted core takes to wake: hence half as much again before spinning is given up.
    """

    __slots__ = ("_typical",)

    def __init__(self) -> None:
        self._typical = MAX_SPIN // 4

    def window(self) -> int:
        """Nanoseconds to look for."""
        return MAX_SPIN if 2 * self._typical < 3 * MAX_SPIN else 0

    def learn(self, waited: int) -> None:
        """A wait took `waited` ns. One long pause counts little: it is capped before it is averaged."""
        self._typical += (min(waited, 4 * MAX_SPIN) - self._typical) >> 3


class _RealRunner:
    """Waiting in real time: leader, followers, background thread."""

    def __init__(self, network: Network, clock: Callable[[], int]) -> None:
        self.network = network
        self.clock = clock
        self._leader: _Waiter | None = None
        self._line: dict[_Waiter, None] = {}  # everybody who waits, oldest first
        self._spare: list[_Waiter] = []
        self._patience = _Patience()
        self._can_spin = (os.cpu_count() or 1) > 1
        self._background = _Background(self)
        self._last_traffic = 0

    # -- what the Network asks ----------------------------------------------------------------------------------------

    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        network = self.network
        deadline = FOREVER if timeout is None else self.clock() + timeout
        lock, turnstile = network.lock, network.turnstile
        with turnstile, lock:
            waiter = self._spare.pop() if self._spare else _Waiter(self)
            waiter.events = events | ALWAYS
            waiter.ready = bool(pollee.bits() & waiter.events)
            self._line[waiter] = None
            pollee.observe(waiter)
        try:
            while True:
                with turnstile, lock:
                    leads = self._leader is waiter
                    if not leads:
                        if waiter.ready:
                            result = self._attempt(waiter, attempt, args)
                            if result is not AGAIN:
                                return result
                        if network.closed:
                            raise closed_error()
                        if self._leader is None and (network.polls_descriptors or not self._background.running):
                            self._leader = waiter
                            leads = True
                        elif self.clock() >= deadline:
                            return AGAIN
                        else:
                            waiter.parked = True
                if leads:
                    return self._lead(waiter, deadline, attempt, args)
                self._park(waiter, deadline)
        finally:
            with turnstile, lock:
                self._leave(waiter, pollee)

    def nudge(self) -> None:
        leader = self._leader
        if leader is not None:
            if leader.asleep:
                self.ring()
        else:
            self._background.tell()

    def rouse(self) -> None:
        for waiter in tuple(self._line):
            waiter.rouse()

    @property
    def occupied(self) -> bool:
        return bool(self._line)

    def ring(self) -> None:
        """End the leader's sleep."""
        self.network.alarm.ring()

    def start(self) -> None:
        self._background.start()

    def stop(self) -> None:
        self._background.stop()
        SWITCHING.restore()

    # -- following ----------------------------------------------------------------------------------------------------

    def _park(self, waiter: _Waiter, deadline: int) -> None:
        """At the gate until someone opens it or `deadline`."""
        timeout = SIGNAL_GAP if threading.current_thread() is threading.main_thread() else threading.TIMEOUT_MAX
        if deadline != FOREVER:
            timeout = min(timeout, max(0.0, (deadline - self.clock()) / NS_PER_S))
        if not waiter.gate.acquire(timeout=timeout):
            with self.network.turnstile, self.network.lock:
                self._close_gate(waiter)

    def _close_gate(self, waiter: _Waiter) -> None:
        """Lock held: the thread is back without having gone through its gate, which may have been opened since."""
        waiter.parked = False
        waiter.gate.acquire(blocking=False)

    def _attempt(self, waiter: _Waiter, attempt: Callable[..., T | Again], args: tuple[Any, ...]) -> T | Again:
        network = self.network
        waiter.ready = False
        if network.closed:
            raise closed_error()
        network.scheduler.now = self.clock()
        try:
            return attempt(*args)
        finally:
            network.finish()

    def _leave(self, waiter: _Waiter, pollee: Pollee) -> None:
        """Lock held: `waiter` waits no more. The token goes to the next in line or to the background thread."""
        pollee.forget(waiter)
        self._line.pop(waiter, None)
        waiter.asleep = False
        self._close_gate(waiter)
        self._spare.append(waiter)
        if self.network.vacant and not self._line:
            self.network.release()
        if self._leader is not waiter:
            return
        self._leader = None
        network = self.network
        network.asleep_until = 0
        for follower in self._line:
            if follower.parked:
                self._leader = follower
                network.stats.handovers += 1
                follower.unpark()
                return
        if not network.closed:
            self._background.resume()

    # -- leading ------------------------------------------------------------------------------------------------------

    def _lead(
        self, waiter: _Waiter, deadline: int, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        """Poll until `attempt` succeeds or `deadline`."""
        network = self.network
        clock = self.clock
        stats = network.stats
        lock = network.lock
        turnstile = network.turnstile
        events = [] if network.hot else network.events()
        began = quiet_since = clock()
        looked = 0
        while True:
            timeout = 0.0
            with lock:
                waiter.asleep = False
                network.asleep_until = 0
                while True:
                    now = clock()
                    worked = network.turn(now, events)
                    events = []
                    if waiter.ready:
                        result = self._attempt(waiter, attempt, args)
                        if result is not AGAIN:
                            self._patience.learn(now - began)
                            self._last_traffic = now
                            return result
                        worked = True
                    if network.closed:
                        raise closed_error()
                    if now >= deadline:
                        return AGAIN
                    if worked:
                        quiet_since = now
                        looked += 1
                        if turnstile.locked():
                            break
                        if looked & 7 == 0:
                            events = network.events()
                        continue
                    if network.hot:
                        if self._can_spin and now - quiet_since < self._patience.window() and not turnstile.locked():
                            stats.spins += 1
                            continue
                        if network.arm():
                            continue
                    if SWITCHING.due(now):
                        self.consider_switching(now)
                    timeout = self._prepare_sleep(waiter, now, deadline)
                    break
            if timeout == 0.0:
                with turnstile:  # somebody wants in: he has the lock when we come through here
                    pass
                continue
            events = network.epoll.poll(timeout, MAX_EVENTS)

    def _prepare_sleep(self, waiter: _Waiter, now: int, deadline: int) -> float:
        """Lock held: what must be known of a leader that sleeps; returns for how many seconds, -1 for ever."""
        network = self.network
        network.stats.sleeps += 1
        self._background.yield_watch()
        due = network.scheduler.next_deadline()
        until = deadline if due is None or deadline < due else due
        waiter.asleep = True
        network.asleep_until = until
        seconds = _seconds(until, now)
        if threading.current_thread() is not threading.main_thread():
            return seconds
        return SIGNAL_GAP if seconds < 0 else min(seconds, SIGNAL_GAP)

    def consider_switching(self, now: int) -> None:
        """Lock held, about to sleep: is somebody computing beside us? Only matters where outside events wake us."""
        if self.network.polls_descriptors:
            others = time.process_time_ns() - time.thread_time_ns()
            SWITCHING.look(now, threading.get_ident(), others, self.network.stats.calls)

    # -- for the background thread ------------------------------------------------------------------------------------

    @property
    def led(self) -> bool:
        """Lock held: another thread has the token."""
        return self._leader is not None

    @property
    def last_traffic(self) -> int:
        return self._last_traffic


class _Background:
    """The last follower: a daemon thread that polls while no other thread does."""

    def __init__(self, runner: _RealRunner) -> None:
        self._runner = runner
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._on_watch = False  # asleep in the Network's descriptors
        self._on_patrol = False
        self._until = FOREVER  # on watch: when it will look by itself
        self._bell: Alarm
        self._rest: select.epoll  # where it sleeps: its own bell, and on watch the Network's descriptors too

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        network = self._runner.network
        with network.lock:
            if self._thread is not None or network.closed:
                return
            self._bell = Alarm()
            self._rest = select.epoll()
            self._rest.register(self._bell, select.EPOLLIN | select.EPOLLET)
            self._rest.register(network.epoll.fileno(), 0)
            self._thread = threading.Thread(target=self._run, name="guestwire-network", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Not under the lock. Returns when the thread has ended."""
        thread = self._thread
        if thread is None:
            return
        self._stopping = True
        self.tell()
        if thread is not threading.current_thread():
            thread.join()
        self._thread = None
        self._rest.close()
        self._bell.close()

    def tell(self) -> None:
        """End its rest, whichever it is."""
        if self._thread is not None:
            self._bell.ring()

    def resume(self) -> None:
        """Lock held: the last leader has left."""
        if self._thread is not None and not self._on_patrol:
            network = self._runner.network
            if not self._on_watch or network.hot:
                self.tell()
            else:
                self._mind_deadline(network)

    def _mind_deadline(self, network: Network) -> None:
        """On watch all the time, but its deadline may be too late by now."""
        network.asleep_until = self._until
        due = network.scheduler.next_deadline()
        if due is not None and due < self._until:
            self.tell()

    def yield_watch(self) -> None:
        """Lock held: a leader goes to sleep in the Network's descriptors, where only one may sleep."""
        if self._on_watch:
            self._on_watch = False
            self.tell()

    def _run(self) -> None:
        runner = self._runner
        network = runner.network
        timeout = 0.0
        watching = False
        try:
            while not self._stopping:
                if timeout:
                    self._rest.poll(timeout, 2)
                with network.lock:
                    if network.closed:
                        return
                    self._on_watch = self._on_patrol = False
                    if not runner.led:
                        network.asleep_until = 0
                    timeout, watch = self._duty()
                    if watch != watching:
                        watching = watch
                        self._rest.modify(network.epoll.fileno(), select.EPOLLIN if watch else 0)
                if timeout == 0.0:
                    with network.turnstile:
                        pass
        except Exception:  # noqa: BLE001 - whatever it is, blocked threads must hear of it
            _LOG.exception("the Network's background thread failed; the Network is closed")
            with network.lock:
                network.closed = True
                runner.rouse()

    def _duty(self) -> tuple[float, bool]:
        """Lock held: do what is to be done; returns how long to rest (s; 0.0: not at all, -1: for ever), on watch?"""
        runner = self._runner
        network = runner.network
        now = runner.clock()
        recent = now - runner.last_traffic < RECENT
        if runner.led:
            self._on_patrol = recent
            return (PATROL / NS_PER_S if recent else -1.0), False
        if now - runner.last_traffic < PATROL:
            self._on_patrol = True  # somebody led a moment ago and will again
            return PATROL / NS_PER_S, False
        while True:
            worked = network.turn(runner.clock(), network.events())
            if network.turnstile.locked():
                return 0.0, False
            if not worked and not network.arm():
                break
        if SWITCHING.due(now):
            runner.consider_switching(now)
        due = network.scheduler.next_deadline()
        self._on_watch = True
        self._until = network.asleep_until = FOREVER if due is None else due
        return _seconds(self._until, runner.clock()), True


def _seconds(until: int, now: int) -> float:
    """How long epoll is to sleep: at least a moment, at most what it can count, -1 for ever."""
    return -1.0 if until == FOREVER else min(max((until - now) / NS_PER_S, 1e-6), LONGEST_SLEEP)


def make_runner(network: Network, clock: Callable[[], int] | None) -> Runner:
    """The runner for a Network: virtual if its clock can be moved."""
    advance_to = getattr(clock, "advance_to", None)
    if clock is not None and advance_to is not None:
        return VirtualRunner(network, clock, advance_to, threading.get_ident)
    return _RealRunner(network, clock if clock is not None else time.monotonic_ns)


Network.make_runner = make_runner
