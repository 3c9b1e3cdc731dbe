"""Unix sockets below the socket room, sans-IO: endpoints, names, paths, and files on their way.

`space` is what the sockets of one Stack share, `endpoint` what all of them have; `stream`, `records` and `datagram` are
the three kinds, `listening` is how they meet, `inflight` finds sockets that nobody can receive any more.
"""

from stack.unix.datagram import DatagramEndpoint
from stack.unix.endpoint import Endpoint, State
from stack.unix.names import AbstractNames
from stack.unix.records import SeqpacketEndpoint
from stack.unix.space import UnixSpace
from stack.unix.stream import StreamEndpoint

__all__ = [
    "AbstractNames",
    "DatagramEndpoint",
    "Endpoint",
    "SeqpacketEndpoint",
    "State",
    "StreamEndpoint",
    "UnixSpace",
]
