"""A thread that waits for a Network, as the others see it (see `stack.runner`)."""

from __future__ import annotations

from typing import Protocol

from stack.socket.poll import Pollee


class Gate(Protocol):
    """A lock that one thread takes and another one opens."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


class Wakes(Protocol):
    """What a waiter needs of its runner."""

    heir: Waiter | None  #: the follower woken last because it is ready

    def ring(self) -> None:
        """End the leader's sleep."""
        ...


class Waiter:
    """A thread that waits: an observer of the pollee it waits for. All but `gate` under the Network's lock."""

    __slots__ = ("asleep", "events", "gate", "parked", "pollee", "ready", "returns", "runner")

    def __init__(self, gate: Gate, runner: Wakes) -> None:
        """`gate` is a fresh lock."""
        self.runner = runner
        self.pollee: Pollee | None = None  #: what it waits for
        self.events = 0
        self.returns = False  #: leaves with what it waited for, and is expected back soon
        self.ready = False  #: the pollee has one of `events`: attempt again
        self.parked = False  #: a follower, at its gate or on the way there; whoever clears this opens the gate
        self.asleep = False  #: the leader, in epoll or on the way there
        self.gate = gate
        self.gate.acquire()

    def update(self, bits: int) -> None:
        if bits & self.events and not self.ready:
            self.rouse()

    def rouse(self) -> None:
        """Have the thread attempt again."""
        self.ready = True
        if self.parked:
            self.unpark()
            self.runner.heir = self
        elif self.asleep:
            self.runner.ring()

    def unpark(self) -> None:
        self.parked = False
        self.gate.release()
