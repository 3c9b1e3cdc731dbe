"""Links: whatever carries frames between the nodes of a Network, behind the one shape `LinkDevice`."""

from stack.link.cable import CableEnd, cable
from stack.link.device import LinkDevice, Offload
from stack.link.impairment import Impairment, PathStats
from stack.link.loopback import Loopback

__all__ = ["CableEnd", "Impairment", "LinkDevice", "Loopback", "Offload", "PathStats", "cable"]
