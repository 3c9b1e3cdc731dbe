"""The seam to whatever carries frames: `LinkDevice`, satisfied by shape.

`vhost_user.NetDevice`, the loopback, a switch port, a cable's end, a TAP and a test's fake all look like this to the
stack. Only bytes-like parts and plain ints cross the seam, so neither side imports a class of the other.

The offload facts are those of struct virtio_net_hdr (virtio 1.3 section 5.1.6), because that is what the hot device
speaks and everything else is simpler:

* ``flags``: `NEEDS_CSUM`: the 16-bit field at ``csum_start + csum_offset`` holds the pseudo-header's partial sum and
  the frame from ``csum_start`` on is still to be summed; `DATA_VALID`: the transport checksum was verified.
* ``gso_type``/``gso_size``: the frame is a superframe of `GSO_TCPV4`/`GSO_TCPV6` whose payload is to be cut into
  pieces of ``gso_size`` bytes; `GSO_ECN` may be or-ed in. `GSO_NONE` otherwise.
* ``hdr_len`` (transmit only): bytes of all headers, a hint to the receiver.

One fact is not from there, and comes from `CoalescingDevice.receive_coalesced` alone: `FOLLOWS` in ``flags``: the frame
continues the one before it in the burst. Both are TCP segments over IPv4 without options or IPv6 without extension
headers, with equal facts, and their headers say the same but for

* the lengths: of one that follows, frame and IP packet end at the same byte, and it has payload,
* the identification and checksum of IPv4, of which the latter is right,
* the sequence number, which is the one after the payload of the frame before,
* PSH, and the checksum of TCP, which the facts vouch for;

or both are bare acknowledgments of the same length, and the second one differs in these, but for sequence number and
PSH, in its window if at all, and acknowledges more.

So whatever is decided by headers alone is decided for both; who does not know the flag treats each as the frame it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import Final, Protocol, TypeAlias, runtime_checkable

#: What the parts of a frame may be. A memoryview is of format "B", one-dimensional and contiguous.
Buffer: TypeAlias = bytes | bytearray | memoryview

NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
FOLLOWS: Final = 128

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

#: (frame, flags, gso_type, gso_size, csum_start, csum_offset). The frame is one contiguous view that stays valid
#: and unchanged for as long as anything refers to it: devices never reuse memory that still has a view.
RxFrame: TypeAlias = tuple[memoryview, int, int, int, int, int]

#: (parts, flags, gso_type, hdr_len, gso_size, csum_start, csum_offset). The frame is the concatenation of `parts`.
#: The device has copied them when `transmit` returns; accepted frames are no longer referred to.
TxFrame: TypeAlias = tuple[tuple[Buffer, ...], int, int, int, int, int, int]

#: ... what of it is not `parts`.
TxFacts: TypeAlias = tuple[int, int, int, int, int, int]

#: The headers of a superframe, its facts as in `TxFrame`, and how many bytes of payload follow: see `VolleyDevice`.
VolleyHead: TypeAlias = tuple[bytes, TxFacts, int]


class Offload(IntFlag):
    """What a device takes off the stack when it transmits (towards the wire)."""

    NONE = 0
    CSUM = 1  #: accepts NEEDS_CSUM
    TSO4 = 2  #: accepts GSO_TCPV4 superframes (with NEEDS_CSUM)
    TSO6 = 4  #: accepts GSO_TCPV6 superframes (with NEEDS_CSUM)
    TSO_ECN = 8  #: accepts GSO_ECN
    USO = 16  #: accepts GSO_UDP_L4


class LinkDevice(Protocol):
    """One link as the stack sees it. Methods are called with the Network's lock held, by one thread at a time.

    Nothing here waits. `fileno` is an epoll (or other pollable) descriptor that is readable when `receive` may
    have work or when `transmit`, having refused frames, may accept some again; a device that needs no waiting
    (a loopback, a cable inside the Network) answers -1 and reports work through `on_change`.
    """

    @property
    def mtu(self) -> int:
        """Largest layer-3 packet in bytes, without Ethernet header."""
        ...

    @property
    def mac(self) -> bytes:
        """Suggested hardware address for the interface on this side, 6 bytes."""
        ...

    @property
    def carrier(self) -> bool:
        """The other side is there and ready."""
        ...

    @property
    def offloads(self) -> int:
        """`Offload` bits now in force for transmit; may change with `on_change`."""
        ...

    @property
    def max_superframe(self) -> int:
        """Largest frame `transmit` takes, Ethernet header included (65549 with TSO: 14 + 65535)."""
        ...

    #: Set by the owner; called (lock held) after carrier, offloads, mtu or pending work changed. May be None.
    on_change: Callable[[], None] | None

    def receive(self, budget: int) -> Sequence[RxFrame]:
        """Up to `budget` frames (and at most about 512 KiB) that arrived, oldest first. Never waits."""
        ...

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        """Hand frames over in order; returns how many were accepted. The rest stays the caller's to retry.

        A frame the device can never carry (too long, malformed offload facts) is counted, dropped and accepted.
        With no carrier everything is accepted and dropped, as an unplugged card does.
        """
        ...

    def suppress(self) -> None:
        """We are going to look by ourselves: no notifications until `arm`."""
        ...

    def arm(self) -> bool:
        """Notify again from now on. True: work appeared meanwhile, look once more before sleeping."""
        ...

    def fileno(self) -> int: ...

    def close(self) -> None:
        """Idempotent. Afterwards `receive` is empty, `transmit` drops, `carrier` is False."""
        ...


@runtime_checkable
class CoalescingDevice(Protocol):
    """What a `LinkDevice` may have besides: generic receive offload."""

    def receive_coalesced(self, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        """As `LinkDevice.receive`, neighbours of one flow put together where one superframe could have been cut into
        them, and nothing is lost by it; of what is left, frames may be marked that continue the one before (`FOLLOWS`).
        Returns the frames, and of how many frames and bytes on the wire they are made; at most `budget` of these."""
        ...


#: What `LandingDevice` puts into a buffer: TCP segments over IPv4 without options, whose MACs, ethertype, version and
#: TOS are these 16 bytes, and addresses and ports these 12; TTL and protocol; window; sequence number of the first;
#: acknowledgment number; TS.Recent; offset of the payload in the packet (40, or 52 with a time stamp); room in bytes.
Wanted: TypeAlias = tuple[bytes, bytes, int, int, int, int, int, int, int]
#: What was put there: frames, segments on the wire, bytes of payload and of frames; the longest segment's payload;
#: TSval of all.
Landed: TypeAlias = tuple[int, int, int, int, int, int]
NOTHING_LANDED: Final = (0, 0, 0, 0, 0, 0)


@runtime_checkable
class LandingDevice(CoalescingDevice, Protocol):
    """What a `CoalescingDevice` may have besides: putting bulk payload where its reader wants it."""

    def receive_landing(
        self, budget: int, wanted: Wanted, ground: memoryview
    ) -> tuple[Sequence[RxFrame], int, int, Landed]:
        """As `receive_coalesced`; but the payload of the first frames, as long as each continues the one before (but
        for length, identification, PSH and TSecr), its time stamp is that of the first and no older than TS.Recent, and
        it is bulk, good and whole, goes to `ground`. Their headers do not come up, but they are counted."""
        ...


@runtime_checkable
class LingeringDevice(Protocol):
    """What a `LinkDevice` may have besides: looking for frames without Python."""

    def linger(self) -> None:
        """Look for frames for some microseconds, or until there is one, without the interpreter's lock."""
        ...


@runtime_checkable
class LoneDevice(Protocol):
    """What a `LinkDevice` may have besides: a shorter `transmit` for one short frame."""

    def transmit_alone(self, parts: tuple[Buffer, ...], facts: TxFacts) -> bool:
        """As `transmit` of the frame (`parts`, *`facts`). False: it was not accepted, and nothing was done."""
        ...


@runtime_checkable
class VolleyDevice(Protocol):
    """What a `LinkDevice` may have besides: taking superframes that follow each other in one flow all together."""

    def transmit_volley(
        self, head: VolleyHead, last: VolleyHead, count: int, number: tuple[int, int], parts: Sequence[Buffer]
    ) -> int:
        """As `transmit` of `count` frames: a header and the next stretch of the payload `parts` each.

        `head` tells of all of them but the last one, `last` of that; their headers have the same length. `number`: at
        which offset in a frame a big-endian word counts the payload that went before, and what it is in the first one.
        Returns how many were accepted, without having dropped any: 0 if the device would rather see them one by one.
        """
        ...
