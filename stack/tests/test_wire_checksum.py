"""RFC 1071, RFC 1624: the fast sums agree with adding words up as the RFC writes it."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from stack.testing.builders import inet_checksum, pseudo_header
from stack.wire.checksum import adjust, checksum, partial_sum, pseudo_sum, sum_parts

DATA = st.binary(max_size=200)


@given(DATA)
def test_checksum_agrees_with_the_rfc(data: bytes) -> None:
    assert checksum(data) == inet_checksum(data)
    assert partial_sum(data) == inet_checksum(data) ^ 0xFFFF


def test_the_rfcs_own_example() -> None:
    assert partial_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2  # RFC 1071 section 3


@given(st.binary(min_size=2, max_size=100).filter(lambda data: len(data) % 2 == 0 and any(data)))
def test_data_with_its_checksum_sums_to_zero(data: bytes) -> None:
    assert checksum(data + struct.pack("!H", checksum(data))) == 0


@given(st.lists(st.binary(max_size=30), max_size=6), st.integers(0, 0xFFFF))
def test_parts_sum_like_their_concatenation(parts: list[bytes], initial: int) -> None:
    assert sum_parts(parts, initial) % 0xFFFF == partial_sum(b"".join(parts), initial) % 0xFFFF


@given(
    st.sampled_from((4, 16)).flatmap(
        lambda n: st.tuples(st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n))
    ),
    st.integers(0, 255),
    st.integers(0, 65535),
)
def test_pseudo_header(addresses: tuple[bytes, bytes], proto: int, length: int) -> None:
    src, dst = addresses
    assert pseudo_sum(src, dst, proto, length) == inet_checksum(pseudo_header(src, dst, proto, length)) ^ 0xFFFF


@given(st.binary(min_size=20, max_size=20).filter(any), st.integers(0, 9), st.integers(0, 0xFFFF))
def test_adjusting_for_one_changed_word(data: bytes, word: int, new: int) -> None:
    old = struct.unpack_from("!H", data, word * 2)[0]
    changed = bytearray(data)
    struct.pack_into("!H", changed, word * 2, new)
    adjusted = adjust(inet_checksum(data), old, new)
    assert adjusted % 0xFFFF == inet_checksum(bytes(changed)) % 0xFFFF
