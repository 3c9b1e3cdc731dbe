"""A ring's gate: the lock between the data path and the control thread, fair to the control thread.

A plain lock is not enough. The data path releases it after a burst and takes it again a microsecond later, long before
the other thread has woken up, so the control thread can lose that race hundreds of times in a row: measured beside a
polling data path, 124 ms until it got in, while QEMU stood still. So whoever changes a ring closes a door first and
then waits for the lock; the data path finds the door closed at its next burst and waits there. That makes the wait
one burst.

The data path pays for it with one attribute: `Gate.acquire` *is* the lock's own `acquire` as long as the door is open,
and another function while it is closed. So it must be looked up each time, never kept.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_SERIALS: Final = itertools.count()


class LockLike(Protocol):
    """What a ring needs of its gate: a `Gate`, or a plain lock where nobody else changes the ring."""

    @property
    def acquire(self) -> Callable[[], Any]: ...
    @property
    def release(self) -> Callable[[], Any]: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any: ...


class Gate:
    """`acquire` and `release` (or ``with gate:``) on the data path, for one burst; ``with gate.control:`` to change
    the ring. The control side may not nest; the data path may hold several gates if it takes them in the order of their
    `serial`. Control sections of one gate are serialised by their device's `control_lock`.
    """

    __slots__ = ("_door", "_lock", "acquire", "control", "release", "serial")

    def __init__(self) -> None:
        self.serial = next(_SERIALS)
        self._lock = threading.Lock()
        self._door = threading.Lock()
        self.acquire: Callable[[], Any] = self._lock.acquire
        self.release = self._lock.release
        self.control = Control(self)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.release()

    def close(self) -> None:
        """Make the data path wait from its next burst on, and wait for the end of this one."""
        self._door.acquire()
        self.acquire = self._behind_the_door
        self._lock.acquire()

    def open(self) -> None:
        """Undo `close`."""
        self.acquire = self._lock.acquire
        self._lock.release()
        self._door.release()

    def _behind_the_door(self) -> None:
        with self._door:
            pass
        self._lock.acquire()


class Control:
    """The control thread's way through a gate."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.close()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._gate.open()
