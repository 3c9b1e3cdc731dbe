"""What is different while a row is measured: a thread that computes beside, polling never or always.

Each is a context manager that puts everything back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from stack.patience import MAX_SPIN, Patience
from stack.switching import SwitchInterval

ALONE: Final = "alone"
BUSY: Final = "busy thread"
BUSY_LEFT: Final = "busy thread, interval left alone"
ADAPTIVE: Final = "adaptive"
NEVER: Final = "never polls"
ALWAYS: Final = "always polls"


@contextmanager
def busy_thread() -> Iterator[None]:
    """A thread of this process that computes in Python and never waits."""
    ending = False

    def compute() -> None:
        number = 1
        while not ending:
            number = number * 1_103_515_245 + 12345 & 0x7FFFFFFF

    thread = threading.Thread(target=compute, name="busy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending = True
        thread.join()


@contextmanager
def busy_thread_interval_left_alone() -> Iterator[None]:
    """The same, and the interpreter's switch interval stays what it is."""
    with _replaced(SwitchInterval, "look", lambda *_: None), busy_thread():
        yield


@contextmanager
def never_polling() -> Iterator[None]:
    """Whoever drives the devices sleeps whenever there is nothing to do."""
    with _replaced(Patience, "window", lambda _: 0):
        yield


@contextmanager
def always_polling() -> Iterator[None]:
    """Whoever drives the devices looks for as long as is allowed, whatever that costs others."""
    with _replaced(Patience, "window", lambda _: MAX_SPIN):
        yield


@contextmanager
def _replaced(kind: type, name: str, substitute: Callable[..., Any]) -> Iterator[None]:
    original = kind.__dict__[name]
    setattr(kind, name, substitute)
    try:
        yield
    finally:
        setattr(kind, name, original)
