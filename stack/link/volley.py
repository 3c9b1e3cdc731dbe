"""The frames a volley stands for, for who has to look at each of them (see `stack.link.device.VolleyDevice`)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.link.device import Buffer, TxFrame, VolleyHead

_NUMBER: Final = struct.Struct("!I")


def unrolled(
    head: VolleyHead, last: VolleyHead, count: int, number: tuple[int, int], parts: Sequence[Buffer]
) -> Iterator[TxFrame]:
    """What `transmit` would have been called with. Payload is not copied."""
    at, first = number
    rest = iter(parts)
    left = memoryview(b"")
    for sent in range(count):
        header, facts, size = head if sent + 1 < count else last
        placed = b"".join((header[:at], _NUMBER.pack((first + sent * head[2]) & 0xFFFFFFFF), header[at + 4 :]))
        frame: list[Buffer] = [placed]
        while size:
            while not left:
                left = memoryview(next(rest))
            frame.append(left[:size])
            left = left[size:]
            size -= len(frame[-1])
        yield (tuple(frame), *facts)
