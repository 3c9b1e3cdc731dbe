"""The guest's side of a virtio-net card: frames with their virtio_net_hdr facts, out of and into guest memory."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from vhost_user.features import NET_OFFLOADS, NetFeature, without_orphans

from .base import ALL_PROTOCOL_FEATURES, Driver, Order
from .bulk import Bulk, BulkSegment
from .burst import Burst, Inbox
from .errors import DriverError
from .exchange import Exchange
from .frontend import DEFAULT_TIMEOUT
from .memory import MIB, GuestMemory
from .ring import DriverRing

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Iterable, Sequence

    from .memory import BytesLike

#: struct virtio_net_hdr (virtio 1.3 section 5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset,
#: num_buffers.
NET_HEADER: Final = Struct("<BBHHHHH")

#: Everything `NetDriver` can use.
ALL_FEATURES: Final = (
    NET_OFFLOADS
    | NetFeature.MRG_RXBUF
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.MQ
    | NetFeature.INDIRECT_DESC
    | NetFeature.EVENT_IDX
    | NetFeature.VERSION_1
)

#: Room for the largest thing a test may want to send: header, Ethernet, 64 KiB, and more than is allowed.
TX_BUFFER: Final = 68 << 10
#: Sizes of receive buffers (5.1.6.3.1): mergeable ones as Linux makes them, big ones for TSO without merging.
RX_MERGEABLE: Final = 4096
RX_BIG: Final = 65562
RX_SMALL: Final = 1526


class NetFrame(NamedTuple):
    """A frame and its header's facts. `num_buffers` counts receive buffers; 0 when sent."""

    data: BytesLike
    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def header(self) -> bytes:
        return NET_HEADER.pack(*self[1:])


class NetDriver(Driver):
    """A guest's network card without the guest.

    >>> with NetDriver("/run/net.sock") as guest:      # doctest: +SKIP
    ...     guest.send([frame_bytes])
    ...     print(guest.recv(timeout=1.0))

    `features`: what to acknowledge of what is offered (prerequisites are seen to). `queues`: pairs, all enabled.
    `rx_size`, `tx_size`: ring sizes in descriptors. `rx_buffer`: bytes of one receive buffer; chosen from the features
    as a real driver would, if None. `rx_pieces`, `tx_pieces`: sizes of the leading descriptors of each chain, e.g.
    (12,) for the header in one of its own. `tx_buffers`: transmit buffers in use at most (`tx_size` if None).
    `start=False` leaves `negotiate` and `start` to the caller.
    """

    order = Order.NET

    def __init__(
        self,
        target: str | os.PathLike[str] | socket.socket,
        *,
        features: int = ALL_FEATURES,
        protocol_features: int = ALL_PROTOCOL_FEATURES,
        queues: int = 1,
        rx_size: int = 256,
        tx_size: int = 256,
        rx_buffer: int | None = None,
        rx_pieces: Sequence[int] = (),
        tx_pieces: Sequence[int] = (),
        tx_buffers: int | None = None,
        memory: GuestMemory | None = None,
        order: Order | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        start: bool = True,
    ) -> None:
        if memory is None:
            memory = GuestMemory([(0, queues * 256 * MIB)])
        super().__init__(
            target,
            features=without_orphans(NetFeature(features)),
            protocol_features=protocol_features,
            memory=memory,
            order=order,
            timeout=timeout,
        )
        self.queues = queues
        self.rx_size, self.tx_size = rx_size, tx_size
        self.rx_buffer = rx_buffer
        self.rx_pieces, self.tx_pieces = tuple(rx_pieces), tuple(tx_pieces)
        self.tx_buffers = tx_size if tx_buffers is None else tx_buffers
        self._inbox = Inbox()
        if start:
            try:
                self.negotiate()
                self.start()
            except BaseException:
                self.close()
                raise

    # -- rings ----------------------------------------------------------------------------------------------------

    def on_queue_num(self, count: int) -> None:
        if count < self.queues:
            raise DriverError(f"the device has {count} queue pairs, asked for {self.queues}")

    def make_rings(self) -> list[DriverRing]:
        if self.queues > 1 and not self.has(NetFeature.MQ):
            raise DriverError(f"the device does not offer VIRTIO_NET_F_MQ, asked for {self.queues} queue pairs")
        size = self.rx_buffer
        if size is None and self.has(NetFeature.MRG_RXBUF):
            size = RX_MERGEABLE
        elif size is None:
            tso = self.features & (NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6)
            size = RX_BIG if tso else RX_SMALL
        return [self._ring(index, size) for index in range(2 * self.queues)]

    def _ring(self, index: int, rx_buffer: int) -> DriverRing:
        receives = index % 2 == 0
        return DriverRing(
            self.memory,
            index,
            self.rx_size if receives else self.tx_size,
            writable=receives,
            buffers=self.rx_size if receives else self.tx_buffers,
            buffer_size=rx_buffer if receives else TX_BUFFER,
            indirect=self.has(NetFeature.INDIRECT_DESC),
            event_idx=self.has(NetFeature.EVENT_IDX),
            pieces=self.rx_pieces if receives else self.tx_pieces,
        )

    def prepare_rings(self) -> None:
        for ring in self.rings:
            ring.suppress()
            if ring.index % 2 == 0:
                ring.post()

    def rx(self, queue: int = 0) -> DriverRing:
        """The ring of pair `queue` the device writes to."""
        return self.rings[2 * queue]

    def tx(self, queue: int = 0) -> DriverRing:
        """The ring of pair `queue` the device reads from."""
        return self.rings[2 * queue + 1]

    # -- frames ---------------------------------------------------------------------------------------------------

    @staticmethod
    def burst(frames: Iterable[NetFrame | BytesLike]) -> Burst:
        """Frames made ready to be sent, several times if need be (see `Burst`)."""
        return Burst([(f.header(), f.data) if isinstance(f, NetFrame) else (bytes(NET_HEADER.size), f) for f in frames])

    def send(
        self, frames: Burst | Iterable[NetFrame | BytesLike], *, queue: int = 0, timeout: float | None = 0.0
    ) -> int:
        """Transmit frames; bare bytes have an all-zero header. Returns how many went out.

        Waits up to `timeout` seconds (None: for ever) for the device to give buffers back.
        """
        burst = frames if isinstance(frames, Burst) else self.burst(frames)
        return burst.send(self.tx(queue), timeout=timeout)

    def recv(self, limit: int = 64, *, queue: int = 0, timeout: float | None = 0.0) -> list[NetFrame]:
        """Up to `limit` frames from the device; waits up to `timeout` seconds for the first. Buffers go back at once.

        Raises DriverError when the device broke a rule of the ring.
        """
        frames = []
        for message in self._receive(limit, queue, timeout):
            if len(message) < NET_HEADER.size:
                raise DriverError(f"ring {2 * queue}: a frame of {len(message)} bytes has no whole header")
            flags, gso, hdr_len, gso_size, start, offset, buffers = NET_HEADER.unpack_from(message)
            if not self.has(NetFeature.MRG_RXBUF) and buffers != 1:
                raise DriverError(f"num_buffers is {buffers}, must be 1 without MRG_RXBUF (5.1.6.4.1)")
            data = message[NET_HEADER.size :]
            frames.append(NetFrame(data, flags, gso, hdr_len, gso_size, start, offset, buffers))
        return frames

    def _receive(self, limit: int, queue: int, timeout: float | None) -> list[bytes]:
        return self._inbox.receive(self.rx(queue), limit, timeout=timeout, merge=self._merge)

    def heads(
        self, limit: int = 256, *, size: int, queue: int = 0, timeout: float | None = 0.0
    ) -> list[tuple[bytes, int]]:
        """As `recv`, but of each frame only the first `size` bytes, and its length, both without the header."""
        skip = NET_HEADER.size
        found = self._inbox.heads(self.rx(queue), limit, skip + size, timeout=timeout, merge=self._merge)
        return [(head[skip:], length - skip) for head, length in found]

    def drain(self, limit: int = 256, *, queue: int = 0, timeout: float | None = 0.0) -> tuple[int, int]:
        """As `recv`, but frames are only copied out and counted: (frames, bytes without headers). For benches."""
        count, size = self._inbox.drain(self.rx(queue), limit, timeout=timeout, merge=self._merge)
        return count, size - count * NET_HEADER.size

    def exchange(self, header: BytesLike, data: BytesLike, *, queue: int = 0, patience: float = 1.0) -> Exchange:
        """A frame, behind its struct virtio_net_hdr in `header`, and the answer to it, over and over (see `Exchange`;
        answers begin with their struct virtio_net_hdr)."""
        return Exchange(self.tx(queue), self.rx(queue), header, data, merge=self._merge, patience=patience)

    def bulk(self, ack: BulkSegment, segment: BulkSegment | None = None, *, queue: int = 0, scale: int = 0) -> Bulk:
        """The bulk of an established TCP connection (see `Bulk`)."""
        return Bulk(self.tx(queue), self.rx(queue), ack, segment, merge=self._merge, scale=scale)

    @property
    def _merge(self) -> int:
        return NET_HEADER.size - 2 if self.has(NetFeature.MRG_RXBUF) else -1
