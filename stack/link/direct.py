"""Frames that devices move between themselves: what a switch tells them, and when it takes it back.

A device may be able to hand frames to another one of its kind without anybody looking at them (two guests' network
cards do, in C). It is told for which addresses: `Shortcuts` keeps, for one switch, every pair of addresses it told
some device, and finds those that depend on an address when that address moves, ages or goes away. A shortcut is only
ever a decision the switch has just made about a frame, kept until it could be another one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar, cast

#: Destination and source address: where an Ethernet frame begins.
KEY: Final = 12


class DirectDevice(Protocol):
    """What a `LinkDevice` has that can move frames by itself. Called with the Network's lock held; nothing waits."""

    def route(self, key: bytes, other: object, deadline: int, token: object) -> bool:
        """Frames that begin with the 12 bytes `key` may go to the device `other` until `deadline` (ns). Replaces what
        was said about `key`. False: they cannot, or there are too many of them."""
        ...

    def unroute(self, key: bytes) -> None:
        """No more. Unknown keys are no error."""
        ...

    def forward(self, budget: int, now: int, closed: Collection[object]) -> tuple[Sequence[tuple[Any, int]], bool]:
        """Move up to `budget` frames, in order, except to the devices in `closed`.

        A frame that has no route, or that could not be moved exactly as `receive` here and `transmit` there would have
        done it, is left, with all behind it. Returns (token, frames) for each route used, and whether frames were left.
        """
        ...


class Wrapper(Protocol):
    """A `LinkDevice` around another one, such as a line that may be bad, or a recorder."""

    @property
    def device(self) -> object: ...

    @property
    def passes(self) -> bool:
        """Just now it does nothing with frames, and need not see them."""
        ...


class _Port(Protocol):
    @property
    def direct(self) -> DirectDevice | None: ...


P = TypeVar("P", bound=_Port)


def unwrapped(device: object) -> tuple[DirectDevice | None, tuple[Wrapper, ...]]:
    """The device inside all wrappers, if it can move frames by itself, and those wrappers."""
    wrappers: list[Wrapper] = []
    while hasattr(device, "passes"):
        wrappers.append(cast(Wrapper, device))
        device = wrappers[-1].device
    return (cast(DirectDevice, device) if hasattr(device, "forward") else None), tuple(wrappers)


class Shortcuts(Generic[P]):
    """All of one switch. The token of a shortcut is (source address, port where its frames go)."""

    def __init__(self) -> None:
        self._by_mac: dict[bytes, set[tuple[P, bytes]]] = {}
        self._of: dict[P, dict[bytes, P]] = {}  # key to target, by the port frames come in at
        self._targets: dict[P, tuple[P, ...]] = {}  # made when asked for

    def __contains__(self, port: P) -> bool:
        """Some of the frames that come in at `port` are moved by its device."""
        return port in self._of

    def targets(self, port: P) -> tuple[P, ...]:
        """Where they go: each port once."""
        found = self._targets.get(port)
        if found is None:
            found = self._targets[port] = tuple(dict.fromkeys(self._of.get(port, {}).values()))
        return found

    def add(self, port: P, header: bytes, target: P, deadline: int) -> None:
        """Frames with this Ethernet header, which come in at `port`, go to `target` until `deadline`."""
        device, other = port.direct, target.direct
        key = header[:KEY]
        if device is None or other is None or not device.route(key, other, deadline, (key[6:], target)):
            return
        self._of.setdefault(port, {})[key] = target
        self._targets.pop(port, None)
        for mac in (key[:6], key[6:]):
            self._by_mac.setdefault(mac, set()).add((port, key))

    def forget(self, mac: bytes) -> None:
        """Whatever goes to or comes from `mac` is looked at again."""
        for port, key in self._by_mac.pop(mac, ()):
            other = key[:6] if key[6:] == mac else key[6:]
            entries = self._by_mac.get(other)
            if entries is not None:
                entries.discard((port, key))
                if not entries:
                    del self._by_mac[other]
            keys = self._of[port]
            del keys[key]
            self._targets.pop(port, None)
            if not keys:
                del self._of[port]
            if port.direct is not None:
                port.direct.unroute(key)
