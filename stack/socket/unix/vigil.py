"""`Vigil`: a thread of one socket waits for room at another (rows UNX-07, UDG-04)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.socket.poll import OUT, Pollee

if TYPE_CHECKING:
    from stack.unix.endpoint import Endpoint


class Vigil:
    """A pollee of its own, ready whenever one of the watched endpoints has changed since the last attempt."""

    __slots__ = ("_watched", "pollee", "stirred")

    def __init__(self, marks: list[Pollee]) -> None:
        self.pollee = Pollee(self._bits, marks)
        self.stirred = True
        self._watched: tuple[Endpoint, ...] = ()

    def _bits(self) -> int:
        return OUT if self.stirred else 0

    def _stir(self) -> None:
        self.stirred = True
        self.pollee.notify()

    def watch(self, *endpoints: Endpoint | None) -> None:
        """Lock held: these from now on."""
        watched = tuple(each for each in endpoints if each is not None)
        if watched == self._watched:
            return
        self.end()
        self._watched = watched
        for each in watched:
            each.watchers[self._stir] = None

    def end(self) -> None:
        """Watch nothing. Dictionaries of callbacks are changed atomically: the lock is not needed."""
        watched, self._watched = self._watched, ()
        for each in watched:
            each.watchers.pop(self._stir, None)
