"""TCP: `TcpLayer` (one per network namespace), `Connection`, `Listener`.

Where to look: `layer` (segments come in), `listener` with `request` and `syncookies` (the handshake seen from LISTEN),
`states` (the ladders of RFC 9293 section 3.10.7), `timewait` (what is left at the end), `connection` (what the user
calls) over `pcb`, its halves `receiver` and `sender` with `recovery`, `congestion` and `rtt`, `output` (headers),
`timers`, `buffers` and `reassembly` (bytes).
"""

from stack.tcp.connection import Connection
from stack.tcp.info import TcpInfo
from stack.tcp.layer import TcpLayer
from stack.tcp.listener import Listener
from stack.tcp.options import TcpConfig, TcpOptions
from stack.tcp.transitions import TcpState

__all__ = ["Connection", "Listener", "TcpConfig", "TcpInfo", "TcpLayer", "TcpOptions", "TcpState"]
