"""Raw and ping sockets' lower half: IP packets of a protocol without a transport in between."""

from stack.raw.endpoint import IpEndpoint
from stack.raw.ping import PingEndpoint
from stack.raw.raw import RawEndpoint

__all__ = ["IpEndpoint", "PingEndpoint", "RawEndpoint"]
