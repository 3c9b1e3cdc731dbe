"""The front-end's end of a vhost-user connection: what QEMU says, or anything else a test wants to say.

Every method named after a message sends exactly that message, well formed, and waits for the reply where there is
one. `send` sends any bytes with any descriptors. When REPLY_ACK was negotiated, `ack` asks for an answer to messages
that have none of their own, and a refusal is a `DriverError`.
"""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING, Final, Self

from vhost_user.message import (
    CONFIG_HEAD,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    LOG,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_NOFD,
    VRING_STATE,
    Protocol,
    Request,
    emit_config,
    emit_region,
    emit_table,
    request_name,
)

from .errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .memory import MemoryRegion

#: How long a back-end may take to answer, in seconds. QEMU waits for ever; a test must not.
DEFAULT_TIMEOUT: Final = 10.0


class Frontend:
    """One connection to a back-end. `sock` is a connected AF_UNIX stream socket, owned from here on."""

    def __init__(self, sock: socket.socket, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """`timeout`: longest wait for any reply, in seconds; it shows up as a DriverError."""
        sock.settimeout(timeout)
        self.socket = sock
        self.protocol_features = 0  #: negotiated bits, by set_protocol_features
        self.closed = False

    @classmethod
    def connect(cls, address: str | os.PathLike[str], *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Connect to a socket path, or to an abstract name written ``@name``. Raises OSError as connect() does."""
        path = os.fspath(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
        except BaseException:
            sock.close()
            raise
        return cls(sock, timeout=timeout)

    def close(self) -> None:
        """Hang up, as QEMU does when it exits. Idempotent."""
        self.closed = True
        self.socket.close()

    # -- any message ----------------------------------------------------------------------------------------------

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = VERSION) -> None:
        """One message with any request, payload, descriptors and flags."""
        self.send_bytes(HEADER.pack(request, flags, len(payload)) + payload, fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Raw bytes; `fds` go with the first of them. Raises DriverError when the back-end has hung up."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self.socket.sendmsg([data], ancillary)
            if sent < len(data):  # even nothing cannot be sent to who has hung up
                self.socket.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise DriverError("the back-end closed the connection") from error

    def receive(self, request: int) -> bytes:
        """The payload of the reply to `request`. Raises DriverError on silence, hang-up or anything but that reply."""
        number, flags, size = HEADER.unpack(self._exactly(HEADER.size, request))
        payload = self._exactly(size, request)
        if number != request or flags != FLAG_REPLY | VERSION:
            raise DriverError(f"{request_name(request)}: got {request_name(number)} with flags {flags:#x} in reply")
        return payload

    def _exactly(self, size: int, request: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data))
            except TimeoutError as error:
                raise DriverError(f"{request_name(request)}: no reply from the back-end") from error
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise DriverError(f"{request_name(request)}: the back-end closed the connection")
            data += piece
        return data

    def call(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message that has a reply of its own; returns the reply's payload."""
        self.send(request, payload, fds)
        return self.receive(request)

    def ack(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message without a reply of its own; when REPLY_ACK is negotiated wait until it is done."""
        if not self.protocol_features & Protocol.REPLY_ACK:
            self.send(request, payload, fds)
            return
        self.send(request, payload, fds, flags=VERSION | FLAG_NEED_REPLY)
        code = self._u64(request, self.receive(request))
        if code:
            raise DriverError(f"{request_name(request)}: refused by the back-end (code {code})")

    def _u64(self, request: int, payload: bytes) -> int:
        if len(payload) != U64.size:
            raise DriverError(f"{request_name(request)}: reply of {len(payload)} bytes, expected {U64.size}")
        value: int = U64.unpack(payload)[0]
        return value

    def _get(self, request: int) -> int:
        return self._u64(request, self.call(request))

    # -- one method per message -----------------------------------------------------------------------------------

    def get_features(self) -> int:
        return self._get(Request.GET_FEATURES)

    def set_features(self, features: int) -> None:
        self.ack(Request.SET_FEATURES, U64.pack(features))

    def get_protocol_features(self) -> int:
        return self._get(Request.GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, features: int) -> None:
        self.send(Request.SET_PROTOCOL_FEATURES, U64.pack(features))
        self.protocol_features = features

    def set_owner(self) -> None:
        self.ack(Request.SET_OWNER)

    def get_queue_num(self) -> int:
        """Queue pairs of a net device."""
        return self._get(Request.GET_QUEUE_NUM)

    def get_max_mem_slots(self) -> int:
        return self._get(Request.GET_MAX_MEM_SLOTS)

    def set_mem_table(self, regions: Sequence[MemoryRegion], fd: int) -> None:
        """All regions are of the one file `fd`."""
        self.ack(Request.SET_MEM_TABLE, emit_table(list(regions)), [fd] * len(regions))

    def add_mem_reg(self, region: MemoryRegion, fd: int) -> None:
        self.ack(Request.ADD_MEM_REG, emit_region(region), [fd])

    def rem_mem_reg(self, region: MemoryRegion) -> None:
        self.ack(Request.REM_MEM_REG, emit_region(region))

    def set_vring_num(self, index: int, num: int) -> None:
        self.ack(Request.SET_VRING_NUM, VRING_STATE.pack(index, num))

    def set_vring_base(self, index: int, base: int) -> None:
        self.ack(Request.SET_VRING_BASE, VRING_STATE.pack(index, base))

    def get_vring_base(self, index: int) -> int:
        """Stops the ring; returns the next available index."""
        payload = self.call(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
        answered, base = VRING_STATE.unpack(payload)
        if answered != index:
            raise DriverError(f"GET_VRING_BASE: asked for ring {index}, answered for ring {answered}")
        number: int = base
        return number

    def set_vring_addr(self, index: int, desc: int, used: int, avail: int, *, flags: int = 0, log: int = 0) -> None:
        """`desc`, `used`, `avail`: addresses in our user space (`MemoryRegion.uva`); `log` guest-physical."""
        self.ack(Request.SET_VRING_ADDR, VRING_ADDR.pack(index, flags, desc, used, avail, log))

    def set_vring_enable(self, index: int, enable: bool) -> None:
        self.ack(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, int(enable)))

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        self._ring_fd(Request.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self._ring_fd(Request.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._ring_fd(Request.SET_VRING_ERR, index, fd)

    def set_backend_req_fd(self, fd: int) -> None:
        self.ack(Request.SET_BACKEND_REQ_FD, b"", [fd])

    def _ring_fd(self, request: int, index: int, fd: int | None) -> None:
        if fd is None:
            self.ack(request, U64.pack(index | VRING_NOFD))
        else:
            self.ack(request, U64.pack(index), [fd])

    def get_config(self, offset: int, size: int) -> bytes:
        payload = self.call(Request.GET_CONFIG, emit_config(offset, size))
        if len(payload) != CONFIG_HEAD.size + size:
            raise DriverError(f"GET_CONFIG: {len(payload) - CONFIG_HEAD.size} bytes in reply, asked for {size}")
        return payload[CONFIG_HEAD.size :]

    def send_rarp(self, mac: bytes) -> None:
        self.ack(Request.SEND_RARP, mac + bytes(2))

    def net_set_mtu(self, mtu: int) -> None:
        self.ack(Request.NET_SET_MTU, U64.pack(mtu))

    def set_status(self, status: int) -> None:
        self.ack(Request.SET_STATUS, U64.pack(status))

    def get_status(self) -> int:
        return self._get(Request.GET_STATUS)

    def set_log_base(self, size: int, offset: int, fd: int) -> None:
        """Shares the dirty log of a migration; always answered."""
        self.call(Request.SET_LOG_BASE, LOG.pack(size, offset), [fd])
