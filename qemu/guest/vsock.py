"""A guest's vsock, seen from the host: its CID, and sockets to and from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stack import Stack
    from vhost_user import VsockDevice


class GuestVsock:
    """`Guest.vsock`. The sockets are those of the gateway's `stack.socket`."""

    def __init__(self, stack: Stack, device: VsockDevice) -> None:
        self.device = device
        self._socket = stack.socket

    @property
    def cid(self) -> int:
        return self.device.guest_cid

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
