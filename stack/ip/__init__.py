"""The network layer: IPv4 and IPv6 of one namespace."""

from stack.ip.layer import IpLayer
from stack.ip.packet import IcmpError, IpPacket, PacketKind
from stack.ip.ports import BoundPort, PortTable
from stack.ip.route import Route, RouteEntry, RouteKind

__all__ = [
    "BoundPort",
    "IcmpError",
    "IpLayer",
    "IpPacket",
    "PacketKind",
    "PortTable",
    "Route",
    "RouteEntry",
    "RouteKind",
]
