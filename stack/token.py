"""The poll token: who leads, who follows, who is next (see `stack.runner`, which this is a part of).

Everything here is done with the Network's lock held, reads no clock and does not wait.
"""

from __future__ import annotations

from typing import Final, Protocol

from stack.network import Network
from stack.scheduler import NS_PER_MS
from stack.socket.poll import Pollee
from stack.waiter import Waiter

#: How often the background thread on patrol looks whether anybody leads, ns.
PATROL: Final = 1 * NS_PER_MS
#: A thread that stays away from its socket for longer (ns) is not waited for with the token.
ABSENCE: Final = PATROL // 2
#: One back so late (ns) has kept others waiting; who has been back sooner for so long is steady.
LATE: Final = 2 * PATROL
STEADY: Final = 50 * NS_PER_MS
#: A thread that has made a socket call within this time (ns) may want to make another one.
COMPANY: Final = 100 * NS_PER_MS


class LastFollower(Protocol):
    """The background thread."""

    running: bool
    on_patrol: bool  #: looks by itself before long

    def tell(self) -> None:
        """End its rest, whichever it is."""
        ...

    def mind(self) -> None:
        """The last leader has left for a moment."""
        ...

    def resume(self) -> None:
        """The last leader has left, and is not expected back."""
        ...


class Token:
    """Of one Network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.background: LastFollower  #: set by who makes it
        self.leader: Waiter | None = None  #: has the token
        self.heir: Waiter | None = None  #: the follower woken last because it is ready
        self.line: dict[Waiter, None] = {}  #: everybody who waits, oldest first
        self.last_traffic = 0  #: when (ns) a thread last got what it waited for
        self.late = 0  #: when (ns) one was last back later than LATE after that
        self._absent: Pollee | None = None  # the token lies there for the thread that was last here
        self._calls = 0  # how many there were at the background thread's last look, and when it last saw them grow
        self._called = -COMPANY

    def ring(self) -> None:
        """End the leader's sleep."""
        self.network.alarm.ring()

    def nudge(self) -> None:
        leader = self.leader
        if leader is not None:
            if leader.asleep:
                self.ring()
        else:
            self.background.tell()

    def rouse(self) -> None:
        for waiter in tuple(self.line):
            waiter.rouse()

    @property
    def occupied(self) -> bool:
        return bool(self.line)

    @property
    def led(self) -> bool:
        """Some thread has the token."""
        return self.leader is not None

    @property
    def free(self) -> bool:
        """Nobody has the token, and there is something to poll."""
        return self.leader is None and (self.network.polls_descriptors or not self.background.running)

    def came(self, now: int) -> None:
        """A thread is about to wait, or to take a turn."""
        if now - self.last_traffic >= LATE:
            self.late = now

    def steady(self, now: int) -> bool:
        """Whoever leads will be back soon, and nobody else waits."""
        return now - self.late >= STEADY and len(self.line) <= (self.leader is not None)

    def accompanied(self, now: int) -> bool:
        """For the background thread, which has had work all the time: may another thread want to run? Only calls show
        it: one that waits for the interpreter's lock uses no time and stands in no line.
        """
        calls = self.network.stats.calls
        if calls != self._calls:
            self._calls, self._called = calls, now
        return now - self._called < COMPANY

    def take(self, waiter: Waiter) -> None:
        self.leader = waiter
        self._absent = None

    def succeeded(self, pollee: Pollee, now: int) -> bool:
        """A thread has what it waited for on `pollee`; is it worth keeping the token for?"""
        pollee.left = self.last_traffic = now
        return pollee.absence < ABSENCE

    def depart(self, pollee: Pollee, now: int) -> None:
        """A thread that led without a place in the line leaves with what it waited for on `pollee`."""
        background = self.background
        if self._absent is not pollee or not background.on_patrol or not background.running:
            self.leave(pollee, returns=self.succeeded(pollee, now))
            return
        pollee.left = self.last_traffic = now  # the token lies there as it did before
        if pollee.absence >= ABSENCE:
            self.leave(pollee, returns=False)

    def leave(self, pollee: Pollee, *, returns: bool) -> None:
        """A leader that waited for `pollee` leaves. The token lies until it is back (`returns`), or goes to the next in
        line or to the background thread.
        """
        self.leader = None
        self.network.asleep_until = 0
        background = self.background
        if returns and background.running:
            self._absent = pollee
            pollee.keeper = self._retire
            if not background.on_patrol and not self.network.closed:
                background.mind()
        else:
            self._absent = None
            if not self._pass_on() and not self.network.closed:
                background.resume()

    def _pass_on(self) -> bool:
        """The token lies there; the longest parked follower gets it. False if there is none."""
        for follower in self.line:
            if follower.parked:
                self.leader = follower
                self.network.stats.handovers += 1
                follower.unpark()
                return True
        return False

    def _retire(self, pollee: Pollee) -> None:
        """Nobody will wait for `pollee` any more; a token that lies there for it is passed on."""
        pollee.keeper = None
        if self._absent is pollee:
            self._absent = None
            if self.leader is None and self.network.polls_descriptors:
                self._pass_on()

    def depose(self, waiter: Waiter) -> bool:
        """After a turn that gave the leader nothing: the token goes to a follower it made ready, if that is one that
        comes back for more. True: `waiter` follows from now on.
        """
        heir = self.heir
        if heir is None:
            return False
        self.heir = None
        if heir is waiter or heir.parked or heir not in self.line or not self.background.running:
            return False  # it was woken by a call of another thread, and has looked for itself since
        pollee = heir.pollee
        if pollee is None or pollee.absence >= ABSENCE:
            return False
        self.leader = heir
        self.network.stats.handovers += 1
        waiter.parked = True
        return True
