"""TCP of one network namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.tcp.connection import Connection
from stack.tcp.listener import Listener
from stack.tcp.options import TcpConfig, TcpOptions

if TYPE_CHECKING:
    from stack.ip import IpLayer
    from stack.ip.ports import BoundPort, PortTable
    from stack.scheduler import Scheduler


class TcpLayer:
    def __init__(
        self, scheduler: Scheduler, ip: IpLayer, *, ports: PortTable | None = None, config: TcpConfig | None = None
    ) -> None:
        """`ports` is the namespace's TCP port table; without one the layer makes its own (`self.ports`)."""
        raise NotImplementedError

    def connect(
        self,
        bound: BoundPort | None,
        src: bytes | None,
        remote: tuple[bytes, int],
        *,
        options: TcpOptions | None = None,
    ) -> Connection:
        """A connection in SYN-SENT; the outcome comes through on_event (`connected` or `error`).

        Without `bound` an ephemeral port is taken. Raises NetError: ENETUNREACH..., EADDRNOTAVAIL (4-tuple in use,
        no port free).
        """
        raise NotImplementedError

    def listen(self, bound: BoundPort, backlog: int, *, options: TcpOptions | None = None) -> Listener:
        """Takes over `bound`'s release."""
        raise NotImplementedError
