"""Links: whatever carries frames between the nodes of a Network, behind the one shape `LinkDevice`."""

from stack.link.cable import CableEnd, cable
from stack.link.device import LinkDevice, Offload
from stack.link.impairment import Impairment, PathStats
from stack.link.loopback import Loopback
from stack.link.switch import DevicePort, StackPort, Switch

__all__ = [
    "CableEnd",
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
