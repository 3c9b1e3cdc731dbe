"""The background thread: polls a Network while no other thread does. How it fits in is told in `stack.runner`.

Theory of operation
-------------------
Waking it for every message that another thread handles itself would cost a thread switch each, and while it runs it
keeps the others from the interpreter. So it rests in one of three ways, and threads that come and go change the way
without waking it, as far as that can be:

* **On patrol**, while others lead and traffic is recent: a short sleep, `FAR` if somebody leads as it begins, after
  which it only looks whether anybody led meanwhile. If nobody did it takes over: it cools the sources the last leader
  left suppressed and goes on watch. While nobody else waits, and whoever leads has been back in time for a while
  (`Token.steady`), the sleep is `LONG`: each look takes the interpreter from who leads.
* **On watch**: asleep in the Network's descriptors, as a leader would be. Only one may sleep there; a leader who is
  about to takes the watch from it, and one who leaves for good gives it back, by a change to the set of descriptors it
  sleeps in (`epoll_ctl` works on a set somebody sleeps in). It must be woken only if the Network needs somebody earlier
  than it will wake anyway.
* **Off duty**, without recent traffic, while somebody leads: asleep until told.

So steady request-and-response traffic wakes it some dozens of times a second, however many messages there are, and a
quiet Network never. Of work without an end it rests every millisecond while others make calls: they would hardly get
the interpreter's lock.
"""

from __future__ import annotations

import logging
import select
import threading
from typing import TYPE_CHECKING, Final, Protocol

from stack.alarm import Alarm
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.token import PATROL

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.network import Network

#: A sleep without a deadline, as `Network.asleep_until`.
FOREVER: Final = 1 << 62
#: How long after the last traffic it stays on patrol, ns.
RECENT: Final = 20 * NS_PER_MS
#: A rest on patrol while somebody leads, ns: if he leaves the token lying and stays away, others wait so long.
FAR: Final = 2 * PATROL
#: The same while leaders are steady, ns: so long waits, once, what came when one stays away after all.
LONG: Final = 16 * PATROL
#: Seconds; epoll_wait counts milliseconds in a C int.
LONGEST_SLEEP: Final = 86400.0

_LOG: Final = logging.getLogger(__name__)


class Host(Protocol):
    """What it needs of the runner whose last follower it is."""

    network: Network
    clock: Callable[[], int]
    last_traffic: int
    written: int  #: when (ns) a thread last wrote a lot: it takes in by itself what comes

    @property
    def led(self) -> bool: ...
    def steady(self, now: int) -> bool: ...
    def accompanied(self, now: int) -> bool: ...
    def consider_switching(self, now: int) -> None: ...
    def rouse(self) -> None: ...


class Background:
    """A daemon thread; satisfies `stack.token.LastFollower`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._on_watch = False  # asleep in the Network's descriptors
        self._watching = False  # they are among those it sleeps in
        self.running = False
        self.on_patrol = False
        self._until = FOREVER  # when it will look by itself
        self._bell: Alarm
        self._rest: select.epoll  # where it sleeps: its own bell, and on watch the Network's descriptors too

    def start(self) -> None:
        network = self._host.network
        with network.lock:
            if self._thread is not None or network.closed:
                return
            self._bell = Alarm()
            self._rest = select.epoll()
            self._rest.register(self._bell, select.EPOLLIN | select.EPOLLET)
            self._rest.register(network.epoll.fileno(), 0)
            self._thread = threading.Thread(target=self._run, name="guestwire-network", daemon=True)
            self.running = True
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
        with self._host.network.lock:
            self.running = self._on_watch = self.on_patrol = False
            self._thread = None
        self._rest.close()
        self._bell.close()

    def tell(self) -> None:
        """End its rest, whichever it is."""
        if self._thread is not None:
            self._bell.ring()

    def mind(self) -> None:
        """Lock held: the last leader has left for a moment. If he is not back before long somebody must see to it."""
        if not self.on_patrol:
            self.yield_watch()
            self.tell()

    def resume(self) -> None:
        """Lock held: the last leader has left, and is not expected back. On patrol it finds that out by itself."""
        if self._thread is None or self.on_patrol:
            return
        network = self._host.network
        if network.hot and network.arm():
            self.tell()
            return
        self._on_watch = True
        self._watch(True)
        network.asleep_until = self._until
        due = network.scheduler.next_deadline()
        if due is not None and due < self._until:
            self.tell()

    def yield_watch(self) -> None:
        """Lock held: a leader goes to sleep in the Network's descriptors, where only one may sleep."""
        if self._on_watch:
            self._on_watch = False
            self._watch(False)

    def _watch(self, on: bool) -> None:
        """Lock held: whether the Network's descriptors end its rest, which may have begun."""
        if on is not self._watching:
            self._watching = on
            self._rest.modify(self._host.network.epoll.fileno(), select.EPOLLIN if on else 0)

    def _run(self) -> None:
        host = self._host
        network = host.network
        timeout = 0.0
        try:
            while not self._stopping:
                if timeout:
                    self._rest.poll(timeout, 2)
                with network.lock:
                    if network.closed:
                        return
                    watched = self._on_watch
                    self._on_watch = self.on_patrol = False
                    if not host.led:
                        network.asleep_until = 0
                    timeout, watch = self._duty(watched=watched)
                    self._watch(watch)
                if timeout == 0.0:
                    with network.turnstile:
                        pass
        except Exception:  # noqa: BLE001 - whatever it is, blocked threads must hear of it
            _LOG.exception("the Network's background thread failed; the Network is closed")
            with network.lock:
                network.closed = True
                host.rouse()

    def _duty(self, *, watched: bool = False) -> tuple[float, bool]:
        """Lock held, `watched` if it was on watch: do what is to be done; returns how long to rest (s; 0.0: not at all,
        -1: for ever), and whether on watch.
        """
        host = self._host
        network = host.network
        now = host.clock()
        if host.led:
            if now - host.last_traffic >= RECENT:
                self._until = FOREVER
                return -1.0, False
            return self._on_patrol(now, LONG if host.steady(now) else FAR)
        if now - host.last_traffic < PATROL and not watched:
            return self._on_patrol(now, LONG if host.steady(now) else PATROL)  # somebody just led and will again
        while True:
            worked = network.turn(at := host.clock(), network.events())
            if network.turnstile.locked():
                return 0.0, False
            if worked and at - now > PATROL and host.accompanied(at):
                return self._on_patrol(at, PATROL)
            if not worked and at - host.written < PATROL:
                return self._on_patrol(at, PATROL)
            if not worked and not network.arm():
                break
        host.consider_switching(now)
        due = network.scheduler.next_deadline()
        self._on_watch = True
        self._until = network.asleep_until = FOREVER if due is None else due
        return seconds(self._until, host.clock()), True

    def _on_patrol(self, now: int, rest: int) -> tuple[float, bool]:
        self.on_patrol = True
        self._until = now + rest
        return rest / NS_PER_S, False


def seconds(until: int, now: int) -> float:
    """How long epoll is to sleep: at least a moment, at most what it can count, -1 for ever."""
    return -1.0 if until == FOREVER else min(max((until - now) / NS_PER_S, 1e-6), LONGEST_SLEEP)
