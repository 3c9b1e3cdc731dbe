"""Sequence numbers (RFC 9293 section 3.4): 32 bits on the wire, endless integers inside.

A connection counts its stream in integers that never wrap, so that `<` and `-` mean what they say everywhere. On the
way in a wire value is placed at the one endless number next to a known one; on the way out it is masked. Timestamps
(RFC 7323) stay 32 bits, because nothing is counted by them: `older` compares those.
"""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000


def unwrap(wire: int, near: int) -> int:
    """The number congruent to `wire` modulo 2**32 that is nearest to `near` (from near - 2**31 to near + 2**31 - 1)."""
    return near + ((wire - near + HALF) & MASK) - HALF


def older(one: int, other: int) -> bool:
    """Whether the 32-bit timestamp `one` is before `other` (RFC 7323 section 5.2)."""
    return (one - other) & MASK >= HALF
