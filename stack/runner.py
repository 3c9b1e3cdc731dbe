"""Waiting for a Network: the only file of the stack that reads a clock. Who may poll is in `stack.token`,
how long to look in `stack.patience`, the last follower in `stack.background`.

Theory of operation
-------------------
**Whoever waits, polls.** At any time at most one thread is the *leader*: it holds the poll token and runs the
Network's turns. A thread that blocks in `recv` and finds no leader becomes it, so the answer to what it sent is taken
from the device, through the stack and to the user by one thread, without a hand-over. A thread that finds a leader is
a *follower*: it parks on a gate of its own until the leader's turn makes its socket ready, or until it is handed the
token. The **background thread** (`start`) is the last follower: it polls only while no other thread does.

**The token goes where the data goes.** A server's first thread waits in `accept`, another one in `recv`; if the first
kept the token, each burst would cost the second a hand-over. So when a leader's turn makes a follower ready and not
the leader itself, the follower is *promoted* and the leader parks. And a leader that leaves with what it waited for
leaves the token lying: it will be back for the next piece, sooner than another thread could be woken, and the
background thread sees to it that nobody waits much longer than `PATROL` if it is not (or, once, than `LONG`, after it
has been back in time for a while). Whether it comes back is learnt per socket (`Pollee.absence`): if it stays away
longer than `ABSENCE`, or closes the socket, or leaves with nothing, or there is no background thread, it wakes exactly
one follower to lead, and is not promoted again.

A Network without descriptors (loopback and cables alone) has nothing to poll for but timers: everything else is
delivered in the call that causes it. There the background thread, if it runs, keeps the token and all others follow.

**A glance.** While devices are hot, most of what is waited for comes before a sleep would be due. So a call that finds
nothing looks first, in the same breath (`glance`): it takes turns and attempts until it has what it wants, somebody
else wants in, or it is time to sleep. Only then does it take a place in the line, which costs as much as a turn.

**A writer attends.** Who writes a lot waits for nothing, so it leads seldom; the background thread would wake for each
acknowledgment, and take the interpreter and the lock from who writes. So a thread that has just written a lot takes a
turn itself (`attend`), once in `ATTENDANCE`: acknowledgments by the dozen are cheap. The background thread stays on
patrol meanwhile, as if the token lay there, and takes over when the writer stays away.

**Looking and sleeping.** After traffic the leader keeps looking for a while, with notifications suppressed, because
waking a halted core costs more than the wait; whether that pays is learnt (`stack.patience`). Then it arms the
devices, looks once more, and sleeps in `epoll` - Python's, so that Ctrl-C works - without the lock, until a descriptor
fires, a timer is due, its own deadline comes, or another thread *nudges* it: a socket call of another thread that made
the leader's socket ready, left work undone, or armed an earlier timer.

**The background thread** rests on patrol, on watch or off duty (`stack.background`). A leader who is not expected back
and leaves nobody in the line cools the sources and puts it on watch, which wakes it only if there is work.

**Interrupts.** The lock is only taken by `with`, sleeping happens outside of it, and whoever leaves, by whatever
exception, gives back in `finally` what it held: its place among the observers, its place in the line, the token.

With a ManualClock there is nothing to wait for: see `stack.virtual`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Literal, TypeVar

from stack.background import FOREVER, Background, seconds
from stack.network import MAX_EVENTS, Network, Runner, closed_error
from stack.patience import Patience
from stack.scheduler import NS_PER_S, NS_PER_US
from stack.socket.base import AGAIN, Again, Timeout
from stack.socket.poll import ALWAYS, Pollee
from stack.switching import SwitchInterval
from stack.token import ABSENCE, LATE, Token
from stack.virtual import VirtualRunner
from stack.waiter import Waiter

T = TypeVar("T")

#: So many glances, and turns with something to do in them, pass between two looks at the descriptors.
LOOK_AROUND: Final = 8
#: A look in C that took longer (ns) has cost us the interpreter: somebody computes beside us, and took it meanwhile. So
#: many spins then look in Python, which lets go of it for a microsecond at a time: most often nobody is quick enough.
LOST: Final = 50 * NS_PER_US
SHY: Final = 256
#: A thread that writes a lot takes in what has come so often, ns.
ATTENDANCE: Final = 200 * NS_PER_US
#: The main thread sleeps no longer than this at a time, seconds. Python looks for signals before it goes to sleep, and
#: one that interrupts a sleep ends it; but one that comes just between the look and the sleep would wait for its end.
SIGNAL_GAP: Final = 1.0

#: The interpreter has one switch interval, whatever the number of Networks.
SWITCHING: Final = SwitchInterval()

#: Absences that are no matter, ns: far from where they are.
BRIEF: Final = ABSENCE // 4

_NO_EVENTS: Final[list[tuple[int, int]]] = []


class _Deposed(Enum):
    """What a leader gets that is to follow; an enum so that type checkers can tell it from results."""

    DEPOSED = "deposed"


DEPOSED: Final[Literal[_Deposed.DEPOSED]] = _Deposed.DEPOSED


class _RealRunner(Token):
    """Waiting in real time: leader, followers, background thread."""

    def __init__(self, network: Network, clock: Callable[[], int]) -> None:
        super().__init__(network)
        self.clock = clock
        self.late = clock()  # nobody has been steady yet
        self._spare: list[Waiter] = []
        self._patience = Patience()
        self._glances = 0  # since the descriptors were last looked at
        self._looking: tuple[int, int] | None = None  # of a glance in vain: since when, and since when without traffic
        self.written = self._attended = 0  # when (ns) a thread last wrote a lot, and took a turn after it
        self._can_spin = (os.cpu_count() or 1) > 1
        self._shy = 0  # so many spins are without a look in C
        self.background: Background = Background(self)

    # -- what the Network asks ----------------------------------------------------------------------------------------

    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        network = self.network
        deadline = FOREVER if timeout is None else self.clock() + timeout
        lock, turnstile = network.lock, network.turnstile
        with turnstile, lock:
            waiter = self._spare.pop() if self._spare else Waiter(threading.Lock(), self)
            waiter.pollee = pollee
            waiter.events = events | ALWAYS
            waiter.ready = bool(pollee.bits() & waiter.events)
            waiter.returns = False
            self.line[waiter] = None
            pollee.observe(waiter)
            now = self.clock()
            self.came(now)
            if pollee.left:
                pollee.learn(now - pollee.left)
        try:
            while True:
                with turnstile, lock:
                    if waiter.ready:
                        result = self._attempt(waiter, attempt, args)
                        if result is not AGAIN:
                            waiter.returns = self.succeeded(pollee, self.clock())
                            return result
                    if network.closed:
                        raise closed_error()
                    leads = self.leader is waiter
                    if leads:
                        pass
                    elif self.free:
                        self.take(waiter)
                        leads = True
                    elif self.clock() >= deadline:
                        return AGAIN
                    else:
                        waiter.parked = True
                if leads:
                    led = self._lead(waiter, deadline, attempt, args)
                    if led is not DEPOSED:
                        return led
                self._park(waiter, deadline)
        finally:
            with turnstile, lock:
                self._leave(waiter, pollee)

    def glance(
        self, pollee: Pollee, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        """Lock held, `attempt` was in vain just now, and devices are hot: lead without a place in the line, for as long
        as nobody wants in and no sleep is due. Most answers come meanwhile, and cost a turn and nothing else.
        """
        if self.leader is not None:
            return AGAIN
        network = self.network
        began = quiet_since = now = network.scheduler.now
        if now - self.last_traffic >= LATE:  # as `came`, without the call
            self.late = now
        if pollee.left:
            away = now - pollee.left
            if away < BRIEF and pollee.absence < BRIEF:
                pollee.left = 0  # nothing to learn: as ever
            else:
                pollee.learn(away)
        deadline = FOREVER if timeout is None else now + timeout
        network.asleep_until = 0
        self._glances += 1
        while True:
            events = _NO_EVENTS
            if self._glances >= LOOK_AROUND:  # a device that is cool must not wait until those that are hot have rested
                self._glances = 0
                events = network.events()
            if network.turn(now, events):
                self._glances += 1
                quiet_since = now
                try:
                    result = attempt(*args)
                finally:
                    network.finish()
                if result is not AGAIN:
                    if now != began:  # what was there at once was not waited for
                        self._patience.learn(now - began)
                    self.depart(pollee, now)
                    return result
                if self.heir is not None:
                    break
            elif not self._spins(now, quiet_since):
                break
            if network.turnstile.locked():
                break
            now = self.clock()
            if now >= deadline:
                break
        self._looking = began, quiet_since
        return AGAIN

    def attend(self) -> None:
        if self.leader is not None:
            return
        network = self.network
        self.written = now = self.clock()
        if now - self._attended < ATTENDANCE:
            return
        self.came(now)
        self._attended = self.last_traffic = now
        network.turn(now, _NO_EVENTS)
        network.finish()
        network.asleep_until = 0
        if not self.background.on_patrol and not network.closed:
            self.background.mind()

    def start(self) -> None:
        self.background.start()

    def stop(self) -> None:
        self.background.stop()
        SWITCHING.restore()

    # -- following ----------------------------------------------------------------------------------------------------

    def _park(self, waiter: Waiter, deadline: int) -> None:
        """At the gate until someone opens it or `deadline`."""
        timeout = SIGNAL_GAP if threading.current_thread() is threading.main_thread() else threading.TIMEOUT_MAX
        if deadline != FOREVER:
            timeout = min(timeout, max(0.0, (deadline - self.clock()) / NS_PER_S))
        if not waiter.gate.acquire(timeout=timeout):
            with self.network.turnstile, self.network.lock:
                self._close_gate(waiter)

    def _close_gate(self, waiter: Waiter) -> None:
        """Lock held: the thread is back without having gone through its gate, which may have been opened since."""
        waiter.parked = False
        waiter.gate.acquire(blocking=False)

    def _attempt(self, waiter: Waiter, attempt: Callable[..., T | Again], args: tuple[Any, ...]) -> T | Again:
        network = self.network
        waiter.ready = False
        if network.closed:
            raise closed_error()
        network.scheduler.now = self.clock()
        try:
            return attempt(*args)
        finally:
            network.finish()

    def _leave(self, waiter: Waiter, pollee: Pollee) -> None:
        """Lock held: `waiter` waits no more. The token lies until it is back, or goes to the next in line or to the
        background thread.
        """
        pollee.forget(waiter)
        self.line.pop(waiter, None)
        waiter.asleep = False
        if self.heir is waiter:
            self.heir = None
        self._close_gate(waiter)
        self._spare.append(waiter)
        if self.network.vacant and not self.line:
            self.network.release()
        if self.leader is waiter:
            self.leave(pollee, returns=waiter.returns)

    # -- leading ------------------------------------------------------------------------------------------------------

    def _lead(
        self, waiter: Waiter, deadline: int, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again | Literal[_Deposed.DEPOSED]:
        """Poll until `attempt` succeeds, or `deadline`, or another thread gets the token (DEPOSED)."""
        network = self.network
        clock = self.clock
        lock = network.lock
        turnstile = network.turnstile
        events = [] if network.hot else network.events()
        now = clock()
        began, quiet_since = self._looking or (now, now)
        self._looking = None
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
                            assert waiter.pollee is not None
                            waiter.returns = self.succeeded(waiter.pollee, now)
                            return result
                        worked = True
                    elif self.depose(waiter):
                        return DEPOSED
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
                    if network.hot and (self._spins(now, quiet_since) or network.arm()):
                        continue
                    self.consider_switching(now)
                    timeout = self._prepare_sleep(waiter, now, deadline)
                    break
            if timeout == 0.0:
                with turnstile:  # somebody wants in: he has the lock when we come through here
                    pass
                continue
            events = network.epoll.poll(timeout, MAX_EVENTS)
            if events:
                network.stats.wakeups += 1

    def _spins(self, now: int, quiet_since: int) -> bool:
        """Lock held, nothing to do since `quiet_since`: whether to look again rather than to sleep."""
        network = self.network
        if self._can_spin and now - quiet_since < self._patience.window() and not network.turnstile.locked():
            network.stats.spins += 1
            if self._shy:
                self._shy -= 1
            else:
                network.linger()
                if self.clock() - now > LOST:
                    self._shy = SHY
            return True
        return False

    def _prepare_sleep(self, waiter: Waiter, now: int, deadline: int) -> float:
        """Lock held: what must be known of a leader that sleeps; returns for how many seconds, -1 for ever."""
        network = self.network
        network.stats.sleeps += 1
        self.background.yield_watch()
        due = network.scheduler.next_deadline()
        until = deadline if due is None or deadline < due else due
        waiter.asleep = True
        network.asleep_until = until
        length = seconds(until, now)
        if threading.current_thread() is not threading.main_thread():
            return length
        return SIGNAL_GAP if length < 0 else min(length, SIGNAL_GAP)

    def consider_switching(self, now: int) -> None:
        """Lock held, about to sleep: is somebody computing beside us? Only matters where outside events wake us."""
        if SWITCHING.due(now) and self.network.polls_descriptors:
            others = time.process_time_ns() - time.thread_time_ns()
            SWITCHING.look(now, threading.get_ident(), others, self.network.stats.calls)


def make_runner(network: Network, clock: Callable[[], int] | None) -> Runner:
    """The runner for a Network: virtual if its clock can be moved."""
    advance_to = getattr(clock, "advance_to", None)
    if clock is not None and advance_to is not None:
        return VirtualRunner(network, clock, advance_to, threading.get_ident)
    if clock is None:
        network.scheduler.epoch = time.time_ns() - time.monotonic_ns()
    return _RealRunner(network, clock if clock is not None else time.monotonic_ns)


Network.make_runner = make_runner
