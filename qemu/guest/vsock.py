"""A guest's vsock, seen from the host: its CID, sockets to and from it, and the way for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemu.guest.errors import SetupError

if TYPE_CHECKING:
    from qemu.guest.vsock_plug import VsockPlug
    from stack import Stack
    from stack.services.vsock_gateway import VsockGateway


class GuestVsock:
    """`Guest.vsock`. The sockets are those of the gateway's `stack.socket`."""

    def __init__(self, stack: Stack, plug: VsockPlug) -> None:
        self.device = plug.device
        self._plug = plug
        self._socket = stack.socket

    @property
    def cid(self) -> int:
        return self.device.guest_cid

    @property
    def uds_path(self) -> Path | None:
        """The hybrid Unix socket other programs connect to (`vsock_uds`): ``ssh vsock-mux/PATH``."""
        return self._plug.config.uds_path

    def connect(self, port: int, *, timeout: float = 10.0) -> Any:
        """A socket connected to `port` in the guest. Raises OSError as sockets do."""
        sock = self._socket.socket(self._socket.AF_VSOCK, self._socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect((self.cid, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def listen(self, port: int, *, backlog: int = 16, timeout: float = 10.0) -> Any:
        """A socket that accepts what the guest connects to CID 2, `port`."""
        sock = self._socket.socket(self._socket.AF_VSOCK, self._socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.bind((self._socket.VMADDR_CID_ANY, port))
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    def forward(self, port: int, target: str) -> None:
        """What the guest connects to CID 2, `port`, goes to a server of the host from now on.

        `target`: "tcp:HOST:PORT", "unix:PATH" or "vsock:CID:PORT". Raises SetupError for one that is none.
        """
        from qemu.guest.hybrid import read_address

        address = read_address(target)
        self._plug.ask(lambda gateway: gateway.forward(port, address))

    def expose(self, where: str, port: int) -> Any:
        """Each connection to `where`, written as in `forward`, goes to the guest's `port`; the address it was bound to.

        ("tcp:127.0.0.1:0" lets the kernel choose.) Raises SetupError if that cannot be listened on.
        """
        from qemu.guest.hybrid import read_address

        address = read_address(where)

        def expose(gateway: VsockGateway) -> Any:
            return gateway.expose(address, port).address

        try:
            return self._plug.ask(expose)
        except OSError as error:
            raise SetupError(f"cannot listen on {where}: {error.strerror}") from error
