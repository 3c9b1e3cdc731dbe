"""What a Network polls: `Source`, satisfied by shape by interfaces, switch ports and vsock ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Source(Protocol):
    """Something that may have work. Every method is called with the Network's lock held and none waits."""

    #: Set by the Network; called (lock held) when work appeared that no descriptor announces, or when `fileno` changed.
    #: So also by a source that was quiet and has looked by itself (`arm` of its device: true): it is armed once served.
    on_ready: Callable[[], None] | None

    def fileno(self) -> int:
        """A pollable descriptor, readable while there may be work; -1 if work is announced by `on_ready` alone."""
        ...

    def service(self, budget: int) -> int:
        """Do up to `budget` items of work (also retry what could not be sent); returns how many. Never raises."""
        ...

    def suppress(self) -> None:
        """The Network looks by itself now: no notifications needed until `arm`."""
        ...

    def arm(self) -> bool:
        """Notify from now on. True: work appeared meanwhile, service once more before sleeping."""
        ...
