"""The Internet checksum (RFC 1071), and the pseudo-header sums that checksum offload starts from.

Theory of operation
-------------------
The ones' complement sum of 16-bit big-endian words is the buffer's value, read as one big number, modulo 0xFFFF: each
word's weight is a power of 2**16, which is 1 modulo 2**16 - 1. CPython divides a long integer by a short one in one C
loop, so ``int.from_bytes(...) % 0xFFFF`` is the fastest sum pure Python has (0.1 us for a header, 2 ns a byte for
payload). It serves headers and the rare software path; payload is summed in C or not at all.

The one difference from adding words up is the representation of zero: the remainder 0 stands for the sums 0x0000 (all
bytes zero) and 0xFFFF alike. Both are the same number in ones' complement; where the wire tells them apart (UDP, RFC
768: a field of zero means "no checksum") the protocol's own file says what is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MODULUS: Final = 0xFFFF


def partial_sum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """Ones' complement sum of `data` (an odd last byte counts as its word's high byte) plus `initial`, 0..0xFFFF.

    Not inverted. `initial` is any non-negative integer, normally another partial sum.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    total = value + initial
    folded = total % _MODULUS
    return folded if folded or not total else _MODULUS


def checksum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The checksum field for `data` summed on top of `initial`: the inverted sum, 0..0xFFFF.

    Over data that already contains its right checksum the result is 0.
    """
    return partial_sum(data, initial) ^ 0xFFFF


def sum_parts(parts: Iterable[bytes | bytearray | memoryview], initial: int = 0) -> int:
    """`partial_sum` of the concatenation of `parts`, not concatenating (RFC 1071 2(B): bytes swap at odd places)."""
    total = initial
    odd = False
    for part in parts:
        piece = partial_sum(part)
        if odd:
            piece = (piece >> 8) | ((piece & 0xFF) << 8)
        total += piece
        odd ^= bool(len(part) & 1)
    folded = total % _MODULUS
    return folded if folded or not total else _MODULUS


def pseudo_sum(src: bytes, dst: bytes, proto: int, length: int) -> int:
    """Partial sum of the pseudo-header: RFC 9293 3.1 and RFC 768 for 4-byte addresses, RFC 8200 8.1 for 16-byte ones.

    `length` is that of the transport header and payload. Folded, not inverted: what a device that offers CSUM expects
    in the checksum field.
    """
    total = int.from_bytes(src, "big") + int.from_bytes(dst, "big") + proto + length
    folded = total % _MODULUS
    return folded if folded or not total else _MODULUS


def adjust(field: int, old: int, new: int) -> int:
    """The checksum `field` after one 16-bit word changed from `old` to `new` (RFC 1624, equation 3)."""
    total = (~field & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
