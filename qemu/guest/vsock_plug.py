"""Plugs one guest's vsock into a Stack: the device, its place in the engine, and its gateway to the host's programs."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from qemu.guest.argv import MAX_GUEST_CID, MIN_GUEST_CID
from qemu.guest.errors import SetupError

if TYPE_CHECKING:
    from stack import Stack
    from stack.services.vsock_gateway import VsockGateway
    from stack.vsock.transport import VsockTransport
    from vhost_user import VsockDevice

T = TypeVar("T")

DEFAULT_BUFFER: Final = 1 << 20  # bytes, as in stack.services.vsock_gateway
DEFAULT_QUEUE_SIZE: Final = 1024  # descriptors; the most a ring of QEMU's virtio-mmio has


@dataclass(frozen=True, slots=True, kw_only=True)
class VsockConfig:
    """A guest's vsock as vhost-device-vsock's options describe it."""

    cid: int | None = None  #: None: the first free one from 3
    uds_path: Path | None = None  #: the hybrid Unix socket, and the prefix of those the guest reaches
    forward_cid: int | None = None  #: or the CID of the host's own kernel whose ports the guest reaches
    forward_listen: tuple[int, ...] = ()  #: ports of the host's own kernel, any CID, that are the guest's
    buffer: int = DEFAULT_BUFFER  #: bytes the guest may send ahead on one stream through the gateway
    queue_size: int = DEFAULT_QUEUE_SIZE  #: descriptors of the largest ring taken
    groups: tuple[str, ...] = ()  #: guests with one in common reach each other


class VsockPlug:
    """One guest's vsock, until `close`. Raises SetupError for what cannot be."""

    def __init__(
        self, stack: Stack, config: VsockConfig, *, tap: Callable[[VsockTransport], VsockTransport] | None = None
    ) -> None:
        """`tap` is put between the device and the engine: it may record what passes."""
        from vhost_user import VsockDevice

        self.config = config
        self._stack = stack
        self._gateway: VsockGateway | None = None
        if config.buffer < 1:
            raise SetupError(f"a buffer of {config.buffer} bytes lets no byte through")
        with ExitStack() as undo:
            for cid in range(MIN_GUEST_CID, MAX_GUEST_CID) if config.cid is None else (config.cid,):
                try:
                    device = VsockDevice(cid, max_ring_size=config.queue_size)
                except ValueError as error:
                    raise SetupError(str(error)) from error
                try:
                    stack.add_vsock(device if tap is None else tap(device), groups=config.groups)
                except ValueError as error:
                    device.close()
                    if config.cid is not None:
                        raise SetupError(f"CID {cid} cannot be used: {error}") from error
                    continue
                break
            self.device: VsockDevice = device
            undo.callback(device.close)
            undo.callback(self._leave)
            if config.uds_path is not None or config.forward_cid is not None:
                self.ask(lambda gateway: gateway)
            for port in config.forward_listen:
                self._listen(port)
            self._undo = undo.pop_all()

    def ask(self, question: Callable[[VsockGateway], T]) -> T:
        """Call `question` with the gateway, made when first asked for, and the Network's lock held.

        Raises SetupError when the hybrid socket cannot be listened on.
        """
        from stack.services.vsock_gateway import VsockGateway

        network, config = self._stack.network, self.config
        with network.lock:
            if self._gateway is None:
                path = str(config.uds_path) if config.uds_path is not None else None
                try:
                    port = self._stack.vsock.guests[self.device.guest_cid]
                    self._gateway = VsockGateway(
                        port, uds_path=path, forward_cid=config.forward_cid, buffer=config.buffer
                    )
                except OSError as error:
                    raise SetupError(f"cannot listen on {path}: {error.strerror}") from error
                except ValueError as error:
                    raise SetupError(str(error)) from error
                network.attach_locked(self._gateway.hosts)
            try:
                return question(self._gateway)
            finally:
                network.finish()

    def _listen(self, port: int) -> None:
        from stack.services.host_address import vsock_address

        where = vsock_address(socket.VMADDR_CID_ANY, port)
        try:
            self.ask(lambda gateway: gateway.expose(where, port))
        except OSError as error:
            raise SetupError(f"forward-listen: cannot listen on {where}: {error.strerror}") from error

    def close(self) -> None:
        """Connections end with ECONNRESET, socket files of ours are removed. Idempotent."""
        self._undo.close()

    def _leave(self) -> None:
        network, cid = self._stack.network, self.device.guest_cid
        with network.lock:
            if self._gateway is not None:
                network.detach_locked(self._gateway.hosts)
                self._gateway.close()
            plugged = cid in self._stack.vsock.guests  # unless the Stack was closed before
        if plugged:
            self._stack.remove_vsock(cid)
