"""A device that misbehaves on purpose, to see how the driver in the guest survives it.

Two kinds of faults. Those that *last* hold from `begin` to `end`, or for a ``with`` block of `lasting`:

* ``rx.stall``: nothing is delivered to the guest; what is for it waits, and is dropped where its queue is full.
* ``tx.hold``: what the guest sends is left in its ring and never returned. Linux sees its transmit queue stop, and its
  watchdog bark.
* ``irq.lost``: buffers are used and returned as always, but no interrupt tells the guest.

Those that *strike* happen once, or `count` times, by `strike`:

* ``used.bad_id``: the used ring names a descriptor that does not exist. Linux says "id 65535 out of range" and gives
  the queue up until the driver is bound anew.
* ``used.short``: buffers are returned with fewer bytes than a header has.
* ``disconnect``: the connection to QEMU ends in good order, its rings stopped between two bursts.
* ``backend.crash``: the connection ends with buffers taken and never returned, as when the process dies.

After the last two QEMU connects again if it was told to (``reconnect=``). Guest memory is treated as carefully as ever;
only what the guest is told is wrong. Any thread may call; a lasting fault takes effect with the next burst.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vhost_user._vring import lib

if TYPE_CHECKING:
    from .device import Device

LASTING: Final = ("rx.stall", "tx.hold", "irq.lost")
STRIKES: Final = ("used.bad_id", "used.short", "disconnect", "backend.crash")

#: A descriptor no ring has: the largest is 32768.
BAD_ID: Final = 0xFFFF
#: Shorter than any header.
SHORT_LENGTH: Final = 1
#: More chains than a ring has.
_ALL: Final = 1 << 16


class Faults:
    """The faults of one device: `device.faults`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.stalled = False  #: ``rx.stall`` is on
        self.holding = False  #: ``tx.hold`` is on
        self._lasting: dict[str, None] = {}

    @property
    def active(self) -> tuple[str, ...]:
        """The lasting faults that are on, in the order they began."""
        return tuple(self._lasting)

    def begin(self, name: str) -> None:
        """Commit the lasting fault `name` until `end`. Raises ValueError for a name that is none of them."""
        self._check(name, LASTING)
        self._lasting[name] = None
        self._apply()

    def end(self, name: str) -> None:
        """No more of it; of no effect if it is not on. Raises ValueError as `begin` does."""
        self._check(name, LASTING)
        self._lasting.pop(name, None)
        self._apply()

    @contextmanager
    def lasting(self, name: str) -> Iterator[None]:
        """`begin` and `end` around a block."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def strike(self, name: str, count: int = 1) -> int:
        """Commit the fault `name` now: on `count` buffers of the guest's first receive ring, or on the connection.

        Returns how often it was committed: 0 when the driver is not there, or has no buffer. Raises ValueError for a
        name that is none of `STRIKES`.
        """
        self._check(name, STRIKES)
        device = self._device
        ring = device.rings[0]
        if name == "used.bad_id":
            return ring.fault(lib.GW_FAULT_ID, count, BAD_ID)
        if name == "used.short":
            return ring.fault(lib.GW_FAULT_SHORT, count, SHORT_LENGTH)
        if name == "backend.crash":
            for each in device.rings:
                each.fault(lib.GW_FAULT_LOSE, _ALL)
        return int(device.hang_up(f"fault {name}"))

    def _check(self, name: str, names: tuple[str, ...]) -> None:
        if name in names:
            return
        if name in LASTING:
            raise ValueError(f"the fault {name!r} lasts: use begin and end, or lasting")
        if name in STRIKES:
            raise ValueError(f"the fault {name!r} happens once: use strike")
        raise ValueError(f"there is no fault {name!r}; there are {', '.join(LASTING + STRIKES)}")

    def _apply(self) -> None:
        self.stalled = "rx.stall" in self._lasting
        self.holding = "tx.hold" in self._lasting
        for ring in self._device.rings:
            ring.mute("irq.lost" in self._lasting)
        self._device.notify_change()
