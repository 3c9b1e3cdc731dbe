"""`Network`: everything joined by cables and switches; one lock, one Scheduler, `poll(now) -> next deadline`.

Theory of operation
-------------------
A Network owns what is shared by the stacks, links and guests joined together: the lock, the Scheduler, and the
*sources* of work (interfaces, switch ports, vsock ports: `stack.sources`). It never waits and reads no clock of its
own: `poll(now)` runs one **turn** at the time it is told, so a test can drive a whole network by hand. Waiting is the
runner's business (`stack.runner`), which is built on the same turns.

A turn: due timers; sources whose descriptor is readable; sources that reported work through `on_ready`; deferred work
(ACKs, bursts to transmit); and last the marked pollees are settled, which wakes threads. Each source is served at most
`BUDGET` items a turn, so nobody starves. The cost of a turn is proportional to what is active: a source that exists and
has nothing to say is not looked at.

**Hot sources.** A descriptor that fires makes its source hot: notifications are suppressed and every turn asks the
source directly, which costs a fraction of a system call. `arm` cools the hot sources down again: notifications on, one
more look, and whoever had work meanwhile stays hot.

**Socket calls** (`call`, `block_on`) take the lock, bring the time up to date, attempt, and `finish`: what the attempt
deferred is sent and, as far as the links are inside this process, carried all the way to the other side at once, in
the calling thread, as a kernel's loopback does. So a reply over lo costs no hand-off between threads. What is left
after a bounded number of rounds is for whoever polls.

**The lock** is a plain one, held for one attempt or one turn. Two rules come from Python's signals and garbage
collector. It is only ever taken by `with`, which a KeyboardInterrupt cannot split. And finalisers never take it: what
is to be closed because the last reference went away is queued with `dispose` and closed by the next who holds the lock.
A thread that finds the lock taken queues at the `turnstile`, so that a thread that polls turn after turn can see that
somebody wants in, and let him.
"""

from __future__ import annotations

import errno
import random
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, TypeVar

from stack import core
from stack.bursts import NetworkStats, histogram
from stack.errors import NetError
from stack.scheduler import Randomness, Scheduler
from stack.socket.base import AGAIN, Again, Timeout
from stack.socket.poll import Pollee
from stack.sources import Sources

if TYPE_CHECKING:
    from stack.iface.source import Source

T = TypeVar("T")

#: Items one source may have served in one turn; the other bound of a burst, 512 KiB, is the device's.
BUDGET: Final = 256
#: Rounds of delivery inside the process that one socket call runs before it leaves the rest to whoever polls.
INLINE_ROUNDS: Final = 32
#: Readable descriptors taken from the kernel in one turn.
MAX_EVENTS: Final = 64
#: Where bursts of a source that was detached in the same turn are counted: nobody looks.
_DETACHED: Final = histogram()


class Runner(Protocol):
    """Who waits for a Network; see `stack.runner`."""

    clock: Callable[[], int]

    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        """The rest of `Network.block_on` after a first attempt in vain; lock not held."""
        ...

    def glance(
        self, pollee: Pollee, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        """Lock held, `attempt` was in vain: look a moment longer before `block_on`. AGAIN: still in vain."""
        ...

    def attend(self) -> None:
        """Lock held, devices are hot: see `Waiting.attend`."""
        ...

    def nudge(self) -> None:
        """Lock held: work or an earlier deadline appeared that whoever sleeps does not know of."""
        ...

    def rouse(self) -> None:
        """Lock held: wake every waiting thread, to look for itself."""
        ...

    @property
    def occupied(self) -> bool:
        """Lock held: some thread is in a blocking call. The last to leave a vacant Network calls its `release`."""
        ...

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Network:
    """One world of stacks and links. Make stacks with `stack(name)`; join links with `attach`."""

    #: Makes the runner of a new Network from it and its clock (None: the real one); put here by `stack.runner`.
    make_runner: ClassVar[Callable[[Network, Callable[[], int] | None], Runner] | None] = None

    def __init__(self, *, clock: Callable[[], int] | None = None, rng: Randomness | None = None) -> None:
        """`clock` answers monotonic nanoseconds; a `stack.testing.clock.ManualClock` makes blocking calls run in
        virtual time. `rng` defaults to the system's. Neither changes later.
        """
        if Network.make_runner is None:
            raise RuntimeError("nobody can wait for this Network yet: use `from stack import Network`")
        self.lock = threading.Lock()
        self.turnstile = threading.Lock()
        self.scheduler = Scheduler(rng=rng if rng is not None else random.SystemRandom())
        self.marks: list[Pollee] = []
        self.stats = NetworkStats()
        self.closed = False
        self.vacant = False  #: closed, and nothing left but threads on their way out
        self.stacks: dict[str, core.Stack] = {}
        #: Until when (ns) whoever polls sleeps without looking; 0 while nobody does.
        self.asleep_until = 0
        sources = Sources(self.stats)
        self._sources = sources
        self.epoll, self.alarm = sources.epoll, sources.alarm
        # Of `sources`, what every turn looks at.
        self._fds, self._by_fd = sources.fds, sources.by_fd
        self._ready = sources.ready
        self._taken = sources.taken
        self.hot = sources.hot  #: suppressed sources
        self._disposals: deque[Callable[[], None]] = deque()
        self.runner = Network.make_runner(self, clock)
        self.clock = self.runner.clock
        self.scheduler.now = self.clock()

    # -- building -----------------------------------------------------------------------------------------------------

    def stack(self, name: str) -> core.Stack:
        """A new Stack of this name in this Network. Raises ValueError if the name is taken."""
        return core.Stack(name, network=self)

    def attach(self, source: Source) -> None:
        """Poll `source` from now on."""
        with self.lock:
            self.attach_locked(source)
            self.finish()

    def attach_locked(self, source: Source, name: str = "") -> None:
        """As `attach`, the lock held already. `name`: what `stats.sources` calls it, if not by its own name."""
        self._sources.add(source, name)

    def detach(self, source: Source) -> None:
        """Never touch `source` again. Unknown sources are no error."""
        with self.lock:
            self.detach_locked(source)

    def detach_locked(self, source: Source) -> None:
        """As `detach`, the lock held already."""
        self._sources.remove(source)

    @property
    def polls_descriptors(self) -> bool:
        """Whether any source has a descriptor."""
        return bool(self._by_fd)

    # -- by hand ------------------------------------------------------------------------------------------------------

    def poll(self, now_ns: int) -> int | None:
        """Run one turn at time `now_ns` (of the Network's clock); returns when to poll next.

        The answer is `now_ns` while more work is there, the next timer's deadline otherwise, None if there is none.
        With a ManualClock the clock moves to `now_ns`. Descriptors are looked at, never waited for.
        """
        with self.lock:
            if self.closed:
                return None
            advance = getattr(self.clock, "advance_to", None)
            if advance is not None:
                advance(now_ns)
            worked = self.turn(now_ns, self.events())
            if worked or (self.hot and self.arm()):
                return now_ns
            return self.scheduler.next_deadline()

    def advance(self, delay: int) -> None:
        """Let `delay` ns pass in virtual time, turn by turn. Raises RuntimeError with a clock that cannot be moved."""
        move = getattr(self.clock, "advance_to", None)
        if move is None:
            raise RuntimeError("only a Network with a ManualClock can be advanced; others live in real time")
        now = self.clock()
        end = now + delay
        while (due := self.poll(now)) is not None and due <= end:
            now = due
        move(end)

    def events(self) -> list[tuple[int, int]]:
        """Lock held: what `epoll` reports now, without waiting."""
        if not self._by_fd:
            return []
        self.stats.polls += 1
        return self.epoll.poll(0, MAX_EVENTS)

    # -- turns (lock held) --------------------------------------------------------------------------------------------

    def turn(self, now: int, events: list[tuple[int, int]]) -> bool:
        """Everything there is to do at `now`, each source within its budget. True if anything was done."""
        stats = self.stats
        stats.turns += 1
        scheduler = self.scheduler
        scheduler.now = now
        try:
            heap = scheduler.heap
            fired = scheduler.run_timers() if heap and heap[0][0] <= now else 0
            served = 0
            hot = self.hot
            if events:
                self._heat(events)
            if hot:
                taken = self._taken
                for source in tuple(hot):
                    count = source.service(BUDGET)
                    taken.get(source, _DETACHED)[count.bit_length()] += 1
                    served += count
            if self._ready:
                served += self._serve_ready()
            deferred = scheduler.run_deferred() if scheduler.deferred else 0
            if self.marks:
                self._settle()
        except BaseException:
            self.runner.rouse()  # a Ctrl-C in the middle of the turn: somebody may have been about to be woken
            raise
        if self._disposals:
            self._dispose()
        if fired:
            stats.timers += fired
        stats.served += served
        return bool(served or fired or deferred or self._ready)

    def _heat(self, events: list[tuple[int, int]]) -> None:
        """Their descriptors are readable: from now on they are asked each turn, and need not say so again."""
        hot = self.hot
        for fd, _ in events:
            source = self._by_fd.get(fd)
            if source is not None and source not in hot:
                hot[source] = None
                source.suppress()

    def _serve_ready(self) -> int:
        ready = self._ready
        batch = tuple(ready)
        ready.clear()
        served = 0
        fds = self._fds
        for source in batch:
            if source.fileno() != fds.get(source, -1):
                self._sources.follow(source)
            count = source.service(BUDGET)
            self._taken.get(source, _DETACHED)[count.bit_length()] += 1
            if count:  # maybe there is more than one burst
                served += count
                ready[source] = None
            elif fds.get(source, -1) >= 0 and source not in self.hot and source.arm():
                # A source that says "look" has been looked at, perhaps past what its other side was to tell us of.
                ready[source] = None
        return served

    def _settle(self) -> None:
        marks = self.marks
        while marks:
            batch = tuple(marks)
            marks.clear()
            for pollee in batch:
                pollee.settle()

    def arm(self) -> bool:
        """Cool the hot sources down. True: at least one has work again and stays hot."""
        appeared = False
        for source in tuple(self.hot):
            if source.arm():
                source.suppress()
                appeared = True
            else:
                del self.hot[source]
        return appeared

    def linger(self) -> None:
        """After a turn with nothing to do: if one source alone is hot, have it look on without Python."""
        if len(self.hot) == 1:
            (source,) = self.hot
            look = getattr(source, "linger", None)
            if look is not None:
                look()

    def finish(self) -> None:
        """End a socket call: send and deliver what it deferred, wake whom it concerns."""
        scheduler = self.scheduler
        ready = self._ready
        if ready or scheduler.deferred:
            try:
                for _ in range(INLINE_ROUNDS):
                    scheduler.run_deferred()
                    if not ready:
                        break
                    self._serve_ready()
                else:
                    scheduler.run_deferred()
            except BaseException:
                self.runner.rouse()
                raise
        if self.marks:
            self._settle()
        if self._disposals:
            self._dispose()
        until = self.asleep_until
        if until:
            deadline = scheduler.next_deadline()
            if ready or (deadline is not None and deadline < until):
                self.stats.nudges += 1
                self.asleep_until = 0  # once is enough
                self.runner.nudge()

    # -- socket calls -------------------------------------------------------------------------------------------------

    def call(self, attempt: Callable[..., T], args: tuple[Any, ...]) -> T:
        """See `stack.socket.base.Waiting.call`."""
        if self.lock.locked():
            with self.turnstile, self.lock:
                return self._call(attempt, args)
        with self.lock:
            return self._call(attempt, args)

    def _call(self, attempt: Callable[..., T], args: tuple[Any, ...]) -> T:
        if self.closed:
            raise closed_error()
        self.stats.calls += 1
        scheduler = self.scheduler
        scheduler.now = self.clock()
        try:
            return attempt(*args)
        finally:
            if scheduler.deferred or self._ready or self.marks or self._disposals or self.asleep_until:
                self.finish()

    def block_on(
        self, pollee: Pollee, events: int, timeout: Timeout, attempt: Callable[..., T | Again], args: tuple[Any, ...]
    ) -> T | Again:
        """See `stack.socket.base.Waiting.block_on`."""
        if self.lock.locked():
            with self.turnstile, self.lock:
                result = self._call(attempt, args)
                if result is AGAIN and self.hot and timeout != 0:
                    result = self.runner.glance(pollee, timeout, attempt, args)
        else:
            with self.lock:
                if self.closed:  # as `_call`, without the call
                    raise closed_error()
                self.stats.calls += 1
                scheduler = self.scheduler
                clock = self.clock
                scheduler.now = clock()
                try:
                    result = attempt(*args)
                finally:
                    if scheduler.deferred or self._ready or self.marks or self._disposals or self.asleep_until:
                        self.finish()
                if result is AGAIN and self.hot and timeout != 0:
                    result = self.runner.glance(pollee, timeout, attempt, args)
        if result is not AGAIN:
            return result
        if timeout == 0:
            looked: T | Again = self.call(self._look, (attempt, args))
            return looked
        return self.runner.block_on(pollee, events, timeout, attempt, args)

    def briefly(self, step: Callable[[Any, Any], bool], one: Any, two: Any) -> bool:
        """See `stack.socket.base.Waiting.briefly`."""
        if self.lock.locked():
            return False
        with self.lock:  # as `_call`, without the call
            if self.closed:
                return False
            scheduler = self.scheduler
            clock = self.clock
            scheduler.now = clock()
            try:
                done = step(one, two)
            finally:
                if scheduler.deferred or self._ready or self.marks or self._disposals or self.asleep_until:
                    self.finish()
            if done:
                self.stats.calls += 1
            return done

    def _look(self, attempt: Callable[..., T], args: tuple[Any, ...]) -> T:
        """A call that may not wait takes one turn itself, so that it sees what has arrived.

        What becomes hot in it has a readable descriptor, which wakes whoever sleeps as well; he arms it again.
        """
        self.turn(self.scheduler.now, self.events())
        return attempt(*args)

    def attend(self) -> None:
        """See `stack.socket.base.Waiting.attend`. Whoever has the lock meanwhile is at it already."""
        if self.hot and self.lock.acquire(blocking=False):
            try:
                if not self.closed:
                    self.runner.attend()
            finally:
                self.lock.release()

    def dispose(self, close: Callable[[], None]) -> None:
        """From a finaliser, on any thread, perhaps with the lock held: run `close` under the lock, soon."""
        self._disposals.append(close)
        if self.lock.acquire(blocking=False):
            try:
                if not self.closed:
                    self.finish()
            finally:
                self.lock.release()

    def _dispose(self) -> None:
        disposals = self._disposals
        while disposals:
            disposals.popleft()()
        self.scheduler.run_deferred()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have a background thread poll whenever no other thread does. Idempotent; nothing with a ManualClock."""
        self.runner.start()

    def close(self) -> None:
        """End everything: blocked calls raise OSError(ENETDOWN), stacks and devices are closed. Idempotent."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.runner.rouse()
        self.runner.stop()
        with self.lock:
            for stack in tuple(self.stacks.values()):
                stack.close_locked()
            for source in tuple(self._fds):
                self.detach_locked(source)
            self.marks.clear()
            self._disposals.clear()
            self.vacant = True
            if not self.runner.occupied:
                self.release()

    def release(self) -> None:
        """Lock held: the last thread has left a closed Network. Closed earlier, its alarm would not wake a sleeper."""
        self._sources.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Network {', '.join(self.stacks) or 'without stacks'}{' closed' if self.closed else ''}>"


def closed_error() -> NetError:
    """What every call on a closed Network gets, blocked ones included."""
    return NetError(errno.ENETDOWN, "the Network is closed")


core.Stack.make_network = Network
