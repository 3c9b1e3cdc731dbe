"""The lower half of AF_PACKET sockets: whole frames of one network namespace, in and out."""

from stack.packet.endpoint import PacketEndpoint, Received
from stack.packet.layer import PacketLayer

__all__ = ["PacketEndpoint", "PacketLayer", "Received"]
