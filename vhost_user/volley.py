"""Superframes of one flow that follow each other, handed to the ring as one: their headers differ in a number.

A bulk transfer is mostly that. `Delivery.transmit` makes a header, a list of parts and addresses for each frame; here
C writes the number into a copy of one header, again and again, and cuts the payload (csrc/push.c, `gw_vring_volley`).
What the guest gets is the same, or nothing: whatever would have to be looked at frame by frame is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vhost_user._vring import lib

from .frames import MIN_FRAME, Buffer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .virtqueue import Virtqueue

#: A frame without its payload: its headers, its offload facts (flags, gso_type, hdr_len, gso_size, csum_start,
#: csum_offset), and how many bytes of payload it has.
Head = tuple[bytes, tuple[int, int, int, int, int, int], int]

_UNKNOWN: Final = (b"", 1, 0)  # good for no length


def push_volley(
    ring: Virtqueue,
    known: Mapping[tuple[int, ...], tuple[bytes, int, int]],
    fixup: int,
    head: Head,
    last: Head,
    count: int,
    number: tuple[int, int],
    parts: Sequence[Buffer],
) -> int:
    """How many of `count` frames the ring took. `known`: virtio headers by offload facts, and the lengths they are good
    for (`Delivery._headers`); `number`: where in a frame it is, and the first one's.
    """
    bare, facts, size = head
    bare_last, facts_last, size_last = last
    header, shortest, longest = known.get(facts, _UNKNOWN)
    header_last, shortest_last, longest_last = known.get(facts_last, _UNKNOWN)
    length = len(bare)
    if (
        not shortest <= length + size <= longest
        or not max(shortest_last, MIN_FRAME) <= length + size_last <= longest_last
        or len(bare_last) != length
        or length + lib.VNET_HEADER > lib.GW_VOLLEY_HEADER_MAX
    ):
        return 0
    at, first = number
    return ring.push_volley(
        b"".join((header, bare, header_last, bare_last)),
        lib.VNET_HEADER + at,
        first,
        (size, size_last),
        count,
        parts,
        header_fixup=fixup,
    )
