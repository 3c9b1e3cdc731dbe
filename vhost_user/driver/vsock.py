"""The guest's side of a virtio-vsock device: packets with their headers, out of and into guest memory."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from vhost_user.features import VsockFeature

from .base import ALL_PROTOCOL_FEATURES, Driver, Order
from .burst import Burst, Inbox
from .errors import DriverError
from .frontend import DEFAULT_TIMEOUT
from .ring import DriverRing

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Iterable, Sequence

    from .memory import BytesLike, GuestMemory

#: struct virtio_vsock_hdr (virtio 1.3 section 5.10.6): src_cid, dst_cid, src_port, dst_port, len, type, op, flags,
#: buf_alloc, fwd_cnt.
VSOCK_HEADER: Final = Struct("<QQIIIHHIII")

ALL_FEATURES: Final = (
    VsockFeature.STREAM
    | VsockFeature.SEQPACKET
    | VsockFeature.NO_IMPLIED_STREAM
    | VsockFeature.INDIRECT_DESC
    | VsockFeature.EVENT_IDX
    | VsockFeature.VERSION_1
)

HOST_CID: Final = 2
TYPE_STREAM: Final = 1
TYPE_SEQPACKET: Final = 2

SEQ_EOM: Final = 1
SEQ_EOR: Final = 2

OP_REQUEST: Final = 1
OP_RESPONSE: Final = 2
OP_RST: Final = 3
OP_SHUTDOWN: Final = 4
OP_RW: Final = 5
OP_CREDIT_UPDATE: Final = 6
OP_CREDIT_REQUEST: Final = 7

#: Room for a header, 64 KiB, and more than is allowed.
TX_BUFFER: Final = 68 << 10
#: What Linux posts (VIRTIO_VSOCK_DEFAULT_RX_BUF_SIZE): 4 KiB, header included from 6.3 on, beside it before.
RX_BUFFER: Final = 4096


class VsockPacket(NamedTuple):
    """A packet. `length` None stands for len(payload); anything else is sent as it is."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    op: int
    payload: BytesLike = b""
    type: int = TYPE_STREAM
    flags: int = 0
    buf_alloc: int = 256 << 10
    fwd_cnt: int = 0
    length: int | None = None

    def header(self) -> bytes:
        return VSOCK_HEADER.pack(
            self.src_cid,
            self.dst_cid,
            self.src_port,
            self.dst_port,
            len(self.payload) if self.length is None else self.length,
            self.type,
            self.op,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        )


class VsockDriver(Driver):
    """A guest's vsock without the guest. `guest_cid` is what the device's config space said.

    `rx_size`, `tx_size`: ring sizes in descriptors. `rx_buffer`: bytes of a receive buffer. `rx_pieces`, `tx_pieces`:
    sizes of the leading descriptors of each chain; (44,) puts headers in one of their own, as Linux before 6.3 does.
    Everything else as in `NetDriver`.
    """

    order = Order.VSOCK

    def __init__(
        self,
        target: str | os.PathLike[str] | socket.socket,
        *,
        features: int = ALL_FEATURES,
        protocol_features: int = ALL_PROTOCOL_FEATURES,
        rx_size: int = 128,
        tx_size: int = 128,
        rx_buffer: int = RX_BUFFER,
        rx_pieces: Sequence[int] = (),
        tx_pieces: Sequence[int] = (44,),
        memory: GuestMemory | None = None,
        order: Order | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        start: bool = True,
    ) -> None:
        super().__init__(
            target,
            features=features,
            protocol_features=protocol_features,
            memory=memory,
            order=order,
            timeout=timeout,
        )
        self.guest_cid = 0
        self.rx_size, self.tx_size = rx_size, tx_size
        self.rx_buffer = rx_buffer
        self.rx_pieces, self.tx_pieces = tuple(rx_pieces), tuple(tx_pieces)
        self._inbox = Inbox()
        if start:
            try:
                self.negotiate()
                self.start()
            except BaseException:
                self.close()
                raise

    def make_rings(self) -> list[DriverRing]:
        indirect, event_idx = self.has(VsockFeature.INDIRECT_DESC), self.has(VsockFeature.EVENT_IDX)
        return [
            DriverRing(
                self.memory,
                0,
                self.rx_size,
                writable=True,
                buffers=self.rx_size,
                buffer_size=self.rx_buffer,
                indirect=indirect,
                event_idx=event_idx,
                pieces=self.rx_pieces,
            ),
            DriverRing(
                self.memory,
                1,
                self.tx_size,
                writable=False,
                buffers=self.tx_size,
                buffer_size=TX_BUFFER,
                indirect=indirect,
                event_idx=event_idx,
                pieces=self.tx_pieces,
            ),
        ]

    def on_negotiated(self) -> None:
        self.guest_cid = int.from_bytes(self.frontend.get_config(0, 8), "little")

    def prepare_rings(self) -> None:
        for ring in self.rings:
            ring.suppress()
        self.rx.post()

    @property
    def rx(self) -> DriverRing:
        """The ring the device writes to."""
        return self.rings[0]

    @property
    def tx(self) -> DriverRing:
        """The ring the device reads from."""
        return self.rings[1]

    def packet(self, op: int, src_port: int, dst_port: int, payload: BytesLike = b"", **fields: int) -> VsockPacket:
        """A packet of ours to the host."""
        return VsockPacket(self.guest_cid, HOST_CID, src_port, dst_port, op, payload, **fields)

    @staticmethod
    def burst(packets: Iterable[VsockPacket]) -> Burst:
        """Packets made ready to be sent, several times if need be (see `Burst`)."""
        return Burst([(packet.header(), packet.payload) for packet in packets])

    def send(self, packets: Burst | Iterable[VsockPacket], *, timeout: float | None = 0.0) -> int:
        """Send packets; returns how many went out. Waits up to `timeout` seconds (None: for ever) for buffers."""
        burst = packets if isinstance(packets, Burst) else self.burst(packets)
        return burst.send(self.tx, timeout=timeout)

    def recv(self, limit: int = 64, *, timeout: float | None = 0.0) -> list[VsockPacket]:
        """Up to `limit` packets from the device; waits up to `timeout` seconds for the first. Buffers go back at once.

        Raises DriverError when the device broke a rule of the ring or the packet's length is not what was written.
        """
        packets = []
        for message in self._inbox.receive(self.rx, limit, timeout=timeout, merge=-1):
            if len(message) < VSOCK_HEADER.size:
                raise DriverError(f"a packet of {len(message)} bytes has no whole header")
            src, dst, sport, dport, length, kind, op, flags, alloc, fwd = VSOCK_HEADER.unpack_from(message)
            payload = message[VSOCK_HEADER.size :]
            if length != len(payload):
                raise DriverError(f"a packet says {length} bytes of payload and brings {len(payload)}")
            packets.append(VsockPacket(src, dst, sport, dport, op, payload, kind, flags, alloc, fwd, length))
        return packets

    def recv_headers(self, limit: int = 64, *, timeout: float | None = 0.0) -> list[VsockPacket]:
        """As `recv`, but payloads are only copied out of the ring: packets come with their `length` and no payload."""
        packets = []
        for head, whole in self._inbox.heads(self.rx, limit, VSOCK_HEADER.size, timeout=timeout):
            if len(head) < VSOCK_HEADER.size:
                raise DriverError(f"a packet of {len(head)} bytes has no whole header")
            src, dst, sport, dport, length, kind, op, flags, alloc, fwd = VSOCK_HEADER.unpack(head)
            if length != whole - VSOCK_HEADER.size:
                raise DriverError(f"a packet says {length} bytes of payload and brings {whole - VSOCK_HEADER.size}")
            packets.append(VsockPacket(src, dst, sport, dport, op, b"", kind, flags, alloc, fwd, length))
        return packets

    def drain(self, limit: int = 256, *, timeout: float | None = 0.0) -> tuple[int, int]:
        """As `recv`, but packets are only copied out and counted: (packets, payload bytes). For benches."""
        count, size = self._inbox.drain(self.rx, limit, timeout=timeout, merge=-1)
        return count, size - count * VSOCK_HEADER.size
