"""Partial sums against RFC 1071 in plain Python."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user.checksum import partial_sum, partial_sum_parts, partial_sums


def reference(data: bytes, initial: int = 0) -> int:
    """RFC 1071 section 1: the sum of 16-bit words, carries added back."""
    total: int = initial + sum(word for (word,) in struct.iter_unpack(">H", data + b"\0" * (len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_rfc_1071() -> None:
    assert partial_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@pytest.mark.parametrize("size", [*range(70), 1499, 1500, 65535])
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0xA5])
def test_every_length(size: int, fill: int) -> None:
    data = bytes((fill + index * (fill == 0xA5)) & 0xFF for index in range(size))
    assert partial_sum(data) == reference(data)


@given(st.binary(max_size=300), st.integers(0, 0xFFFFFFFF))
def test_any_bytes_on_top_of_any_sum(data: bytes, initial: int) -> None:
    assert partial_sum(data, initial) == reference(data, initial)
    assert partial_sum(memoryview(bytearray(data)), initial) == reference(data, initial)


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 0xFFFFFFFF))
def test_parts_of_odd_lengths_sum_like_their_concatenation(parts: list[bytes], initial: int) -> None:
    assert partial_sum_parts(parts, initial) == reference(b"".join(parts), initial)


def test_jobs_outside_the_buffer_are_told_apart() -> None:
    data = bytes(range(100))
    jobs = [(0, 100, 0), (10, 20, 5), (100, 0, 7), (99, 2, 0), (101, 0, 0), (0xFFFFFFFF, 0xFFFFFFFF, 0)]
    assert partial_sums(data, jobs) == [reference(data), reference(data[10:30], 5), 7, 0x10000, 0x10000, 0x10000]
    assert partial_sums(data, []) == []
