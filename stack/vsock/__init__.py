"""AF_VSOCK between a host and its guests: the connection engine, sans-IO."""

from stack.vsock.connection import VsockConnection
from stack.vsock.engine import VsockEngine
from stack.vsock.guest import GuestPort
from stack.vsock.listener import VsockListener
from stack.vsock.seqpacket import SeqpacketConnection
from stack.vsock.status import VsockState
from stack.vsock.transport import VsockTransport

__all__ = [
    "GuestPort",
    "SeqpacketConnection",
    "VsockConnection",
    "VsockEngine",
    "VsockListener",
    "VsockState",
    "VsockTransport",
]
