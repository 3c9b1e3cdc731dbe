"""A device around another one: what does something with frames says how, and leaves all else to the device inside."""

from __future__ import annotations

from collections.abc import Callable

from stack.link.device import LinkDevice


class AroundDevice:
    """All of a `LinkDevice` but `receive` and `transmit`, taken from `device`, which is closed with it."""

    def __init__(self, device: LinkDevice) -> None:
        self.device = device

    @property
    def mtu(self) -> int:
        return self.device.mtu

    @property
    def mac(self) -> bytes:
        return self.device.mac

    @property
    def carrier(self) -> bool:
        return self.device.carrier

    @property
    def connected(self) -> bool:
        """A front-end is there, if the device can tell."""
        return bool(getattr(self.device, "connected", False))

    @property
    def offloads(self) -> int:
        return self.device.offloads

    @property
    def max_superframe(self) -> int:
        return self.device.max_superframe

    @property
    def on_change(self) -> Callable[[], None] | None:
        return self.device.on_change

    @on_change.setter
    def on_change(self, callback: Callable[[], None] | None) -> None:
        self.device.on_change = callback

    def suppress(self) -> None:
        self.device.suppress()

    def arm(self) -> bool:
        return self.device.arm()

    def fileno(self) -> int:
        return self.device.fileno()

    def close(self) -> None:
        self.device.close()
