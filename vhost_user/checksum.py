"""Internet checksums in C (RFC 1071), for frames that no offload spares them.

All sums here are partial: ones-complement sums of big-endian 16-bit words, folded to 16 bits and not inverted. What
goes on the wire is ``~sum & 0xffff``; data including its own checksum sums to 0xffff.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhost_user._vring import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview


def partial_sum(data: Buffer, initial: int = 0) -> int:
    """The sum of one contiguous buffer, on top of an earlier sum of at most 32 bits."""
    return lib.gw_sum(ffi.from_buffer(data), len(data), initial)


def partial_sum_parts(parts: Sequence[Buffer], initial: int = 0) -> int:
    """The sum of the concatenation of buffers of any lengths, odd ones too, without joining them."""
    held = [ffi.from_buffer(part) for part in parts]
    return lib.gw_sum_parts(held, [len(part) for part in held], len(held), initial)


def partial_sums(data: Buffer, jobs: Sequence[tuple[int, int, int]]) -> list[int]:
    """Many sums of one buffer in one call: jobs of (offset, length, initial).

    A job that lies outside the buffer answers 0x10000, which no sum is.
    """
    held = ffi.from_buffer(data)
    sums = ffi.new("uint32_t[]", len(jobs))
    lib.gw_sum_jobs(held, len(held), ffi.new("struct gw_sum_job[]", list(jobs)), len(jobs), sums)
    return ffi.unpack(sums, len(jobs)) if jobs else []
