"""Any bytes -> a front-end's life, so that a fuzzer's mutation of the bytes is a small change of the life.

Each instruction is one byte of operation and its operands. Reading past the end ends the program.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Step(NamedTuple):
    """One sendmsg of a front-end."""

    data: bytes
    fds: tuple[int, ...] = ()  #: indexes into `message_world.KINDS`


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """`count` bytes, zeros after the end."""
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece.ljust(count, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]


def decode(data: bytes, base: Sequence[Step]) -> list[Step]:
    """The steps `data` stands for. `base` is the well-behaved life whose messages serve as raw material."""
    source = _Bytes(data)
    steps: list[Step] = []
    good = 0  # how much of the base has been played

    def step(body: bytes, fds: Sequence[int]) -> None:
        steps.append(Step(body, tuple(fds)))

    while source.left():
        operation = source.byte()
        kind, operand = operation >> 5, operation & 31
        if kind == 0:  # go on with the base for a while
            steps += base[good : good + operand + 1]
            good += operand + 1
        elif kind == 1:  # one message of the base, unchanged, out of order
            steps.append(base[(operand + 32 * (source.byte() & 1)) % len(base)])
        elif kind in {2, 3}:  # one with some bytes of it changed
            item = base[(operand + 16 * (source.byte() & 3)) % len(base)]
            body = bytearray(item.data)
            for _ in range(1 + (kind == 3) * (source.byte() & 3)):
                at, value = source.byte(), source.byte()
                body[at % len(body)] ^= value
            step(bytes(body), item.fds)
        elif kind == 4:  # one with other descriptors
            item = base[(operand + 16 * (source.byte() & 3)) % len(base)]
            step(item.data, [source.byte() for _ in range(source.byte() % 11)])
        elif kind == 5:  # a well-framed message of anything
            payload = source.take(source.byte())
            request, flags = operand + 32 * (source.byte() & 1), 1 | source.byte() & 8
            step(struct.pack("<III", request, flags, len(payload)) + payload, ())
        elif kind == 6:  # one cut in two
            item = base[(operand + 16 * (source.byte() & 3)) % len(base)]
            at = source.byte() % len(item.data)
            step(item.data[:at], item.fds)
            step(item.data[at:], item.fds if source.byte() & 1 else ())
        else:  # raw bytes, raw descriptors
            step(source.take(operand), [source.byte() for _ in range(source.byte() & 3)])
    return steps
