"""Links: whatever carries frames between the nodes of a Network, behind the one shape `LinkDevice`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.link.cable import CableEnd, cable
from stack.link.device import LinkDevice, Offload
from stack.link.impairment import Impairment, PathStats
from stack.link.loopback import Loopback
from stack.link.switch import DevicePort, StackPort, Switch

if TYPE_CHECKING:
    from stack.link.capture import Capture

__all__ = [
    "CableEnd",
    "Capture",
    "DevicePort",
    "Impairment",
    "LinkDevice",
    "Loopback",
    "Offload",
    "PathStats",
    "StackPort",
    "Switch",
    "cable",
]


def __getattr__(name: str) -> object:
    # Capture's library takes 50 ms to import: only who captures pays for it.
    if name == "Capture":
        from stack.link.capture import Capture

        return Capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
