"""The seam to whatever carries vsock packets to and from one guest: `VsockTransport`, satisfied by shape.

`vhost_user.VsockDevice` and a test's fake look like this to the connection engine. A header crosses as plain ints
(virtio 1.3 section 5.10.6), a payload as a bytes-like view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

#: (src_cid, dst_cid, src_port, dst_port, type, op, flags, buf_alloc, fwd_cnt, payload). `len` of the wire header is
#: len(payload). Payload views stay valid and unchanged for as long as anything refers to them.
VsockRx: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, memoryview]

#: As VsockRx, but the payload may be any bytes-like object. At most 64 KiB; the device cuts it into
#: the guest's buffers, and leaves end-of-message marks (`flags`) to the last piece.
VsockTx: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, Buffer]


class VsockTransport(Protocol):
    """One guest's vsock as the engine sees it. Same calling rules as `stack.link.device.LinkDevice`."""

    guest_cid: int  #: may change together with the generation
    carrier: bool  #: the guest's driver is ready
    generation: int  #: counts driver resets and guests that left: connections of an earlier one are dead
    stream: bool  #: STREAM was negotiated, or is implied; of no meaning without carrier
    seqpacket: bool  #: SEQPACKET was negotiated; of no meaning without carrier

    #: Set by the owner; called (lock held) after carrier, generation or pending work changed. May be None.
    on_change: Callable[[], None] | None

    def receive(self, budget: int) -> Sequence[VsockRx]:
        """Up to `budget` packets from the guest, oldest first, already checked for structure and source CID."""
        ...

    partial: int  #: payload bytes that left, after `transmit`, of the packet behind those it accepted

    def transmit(self, burst: Sequence[VsockTx]) -> int:
        """Hand packets over in order; returns how many were accepted whole. The others stay the caller's to retry: of
        the first of them without the first `partial` bytes of its payload.
        """
        ...

    # A transport may offer more, for streams that are forwarded without a program of ours:
    #   def receive_from(self, packet: VsockTx, fd: int, limit: int) -> int | None
    #       `packet` without payload, and up to `limit` bytes straight from the socket `fd` as payload: bytes, 0 at the
    #       end of that stream, None for lack of room. Raises OSError as recv(2) does.
    #   roomy: bool - whether `receive_from` may find room where it last found none.
    #   def next_data(self) -> tuple[int, int, int, int, int] | None
    #       src_cid, dst_cid, src_port, dst_port and type of the next packet, if it is RW.
    #   def send_on(self, fd: int, limit: int, enough: int) -> tuple[int, int, bytes, int, int]
    #       That packet's payload, and that of the packets of its stream behind it, straight to the socket `fd`: packets
    #       taken, bytes sent, the rest of the last one, its buf_alloc and fwd_cnt. Raises OSError as send(2) does.

    def suppress(self) -> None: ...

    def arm(self) -> bool: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...
