"""The software path: what it writes must be what a sender without offload would have written."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stack.link.device import (
    DATA_VALID,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    Offload,
    RxFrame,
    TxFrame,
)
from stack.link.offload import (
    ALL_OFFLOADS,
    OffloadError,
    as_received,
    as_transmit,
    finish_checksum,
    owned_parts,
    prepare,
    segment,
    verify_rx,
)
from stack.testing import builders as b

MAC_A, MAC_B = b"\x02aaaaa", b"\x02bbbbb"
V4 = (b"\x0a\0\2\2", b"\x0a\0\2\x0f")
V6 = (bytes(15) + b"\1", bytes(15) + b"\2")
TIMESTAMPS = b"\1\1\x08\x0a" + bytes(8)
SPARE = memoryview(bytes(range(256)) * 512)


def superframe(
    size: int, mss: int, *, flags: int, v6: bool, seq: int, ident: int, vlan: int | None, cuts: list[int]
) -> TxFrame:
    """A TCP superframe as the stack hands it down, its bytes split into parts at `cuts`."""
    src, dst = V6 if v6 else V4
    length = 20 + len(TIMESTAMPS) + size
    segment_bytes = b.tcp(
        src, dst, 1000, 2000, seq=seq, flags=flags, options=TIMESTAMPS, payload=bytes(SPARE[:size]),
        checksum=b.partial_checksum(src, dst, 6, length),
    )  # fmt: skip
    packet = b.ipv6(src, dst, 6, segment_bytes) if v6 else b.ipv4(src, dst, 6, segment_bytes, identification=ident)
    frame = b.ethernet(MAC_B, MAC_A, 0x86DD if v6 else 0x0800, packet, vlan=vlan)
    start = 14 + (4 if vlan is not None else 0) + (40 if v6 else 20)
    edges = sorted({0, len(frame), *(min(cut, len(frame)) for cut in cuts)})
    parts = tuple(frame[i:j] for i, j in pairwise(edges))
    return parts, NEEDS_CSUM, GSO_TCPV6 if v6 else GSO_TCPV4, start + 32, mss, start, 16


def expected_pieces(
    size: int, mss: int, *, flags: int, v6: bool, seq: int, ident: int, vlan: int | None
) -> list[bytes]:
    """The frames of a sender that never heard of offload."""
    src, dst = V6 if v6 else V4
    result = []
    for number, offset in enumerate(range(0, max(size, 1), mss)):
        last = offset + mss >= size
        piece_flags = flags if last else flags & ~(b.FIN | b.PSH)
        if number:
            piece_flags &= ~b.CWR
        body = b.tcp(
            src, dst, 1000, 2000, seq=(seq + offset) & 0xFFFFFFFF, flags=piece_flags, options=TIMESTAMPS,
            payload=bytes(SPARE[offset : min(size, offset + mss)]),
        )  # fmt: skip
        packet = (
            b.ipv6(src, dst, 6, body) if v6 else b.ipv4(src, dst, 6, body, identification=(ident + number) & 0xFFFF)
        )
        result.append(b.ethernet(MAC_B, MAC_A, 0x86DD if v6 else 0x0800, packet, vlan=vlan))
    return result


shapes = st.fixed_dictionaries(
    {
        "size": st.integers(0, 65000),
        "mss": st.integers(48, 9000),
        "flags": st.integers(0, 255),
        "v6": st.booleans(),
        "seq": st.integers(0, 2**32 - 1),
        "ident": st.integers(0, 0xFFFF),
        "vlan": st.none() | st.integers(1, 4094),
    }
)


#: One of its pieces has the checksum 0x0000, which TCP writes as it is.
ZERO_SUM = {"size": 12240, "mss": 48, "flags": 0, "v6": False, "seq": 59875, "ident": 0, "vlan": None}


@example(ZERO_SUM, [])
@given(shapes, st.lists(st.integers(0, 400), max_size=4))
def test_pieces_equal_what_a_sender_without_offload_writes(shape: dict[str, Any], cuts: list[int]) -> None:
    """Sequence, identification, lengths, both checksums; FIN and PSH only last, CWR only first."""
    pieces = segment(superframe(cuts=cuts, **shape))
    assert [b"".join(piece[0]) for piece in pieces] == expected_pieces(**shape)
    assert all(piece[1:] == (0, GSO_NONE, 0, 0, 0, 0) for piece in pieces)


@example(ZERO_SUM)
@given(shapes)
def test_pieces_with_partial_checksums_are_finished_to_the_same_bytes(shape: dict[str, Any]) -> None:
    """For a device with CSUM but no TSO (virtio 1.3 section 5.1.6.2)."""
    pieces = segment(superframe(cuts=[], **shape), keep_partial=True)
    assert all(piece[1] == NEEDS_CSUM for piece in pieces)
    assert [b"".join(finish_checksum(piece)[0]) for piece in pieces] == expected_pieces(**shape)


@given(st.binary(min_size=0, max_size=200), st.lists(st.integers(0, 250), max_size=5))
def test_finished_checksum_is_right_however_the_frame_is_split(payload: bytes, cuts: list[int]) -> None:
    """Odd-length parts swap the bytes of their successors (RFC 1071)."""
    src, dst = V4
    whole = b.ethernet(MAC_B, MAC_A, 0x0800, b.ipv4(src, dst, 17, b.udp(src, dst, 5, 6, payload)))
    partial = b.partial_checksum(src, dst, 17, 8 + len(payload)).to_bytes(2, "big")
    frame = whole[:40] + partial + whole[42:]
    edges = sorted({0, len(frame), *(min(cut, len(frame)) for cut in cuts)})
    parts = tuple(frame[i:j] for i, j in pairwise(edges))
    finished = finish_checksum((parts, NEEDS_CSUM, 0, 0, 0, 34, 6))
    assert b"".join(finished[0]) == whole
    assert finished[1] == 0


def test_a_udp_sum_of_zero_is_stored_as_ffff() -> None:
    """RFC 768: a UDP field of zero would say that there is no checksum."""
    src, dst = V4
    for filler in range(0x10000):
        datagram = b.udp(src, dst, 5, 6, struct.pack("!H", filler), checksum=0)
        if b.inet_checksum(b.pseudo_header(src, dst, 17, 10) + datagram) == 0:
            break
    partial = b.partial_checksum(src, dst, 17, 10).to_bytes(2, "big")
    frame = finish_checksum(((datagram[:6] + partial + datagram[8:],), NEEDS_CSUM, 0, 0, 0, 0, 6))
    assert b"".join(frame[0])[6:8] == b"\xff\xff"


def good(**changes: Any) -> TxFrame:
    shape: dict[str, Any] = {"size": 3000, "mss": 1000, "flags": b.ACK, "v6": False, "seq": 1, "ident": 2, "vlan": None}
    return superframe(cuts=[], **(shape | changes))


def altered(frame: TxFrame, offset: int, value: int) -> TxFrame:
    data = bytearray(b"".join(frame[0]))
    data[offset] = value
    return ((bytes(data),), *frame[1:])


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ((*good()[:4], 0, 34, 16), "below the least"),
        ((*good()[:4], 47, 34, 16), "below the least"),
        ((good()[0], 0, *good()[2:]), "needs a partial"),
        ((*good()[:6], 6), "needs a partial"),
        ((*good()[:5], 3046, 16), "out of place"),
        ((*good()[:2], GSO_TCPV6, *good()[3:]), "does not hold"),
        ((*good()[:2], 3, *good()[3:]), "neither TCP"),
        ((*good()[:5], 30, 16), "fit|place|hold"),
        (altered(good(), 46, 0x40), "does not fit"),
        (altered(good(), 23, 17), "does not hold"),
        (altered(good(), 14, 0x46), "does not hold"),
        (altered(good(size=10), 46, 0xF0), "does not fit"),
        (((b"short",), NEEDS_CSUM, GSO_TCPV4, 0, 1000, 34, 16), "out of place"),
    ],
)
def test_lying_superframes_are_refused_with_a_reason(frame: TxFrame, reason: str) -> None:
    """Reference section 4.3: gso_size 0 and tiny ones, headers that are not there."""
    with pytest.raises(OffloadError, match=reason):
        segment(frame)
    refused: list[TxFrame] = []
    assert list(prepare([frame, good(size=10)], Offload.CSUM, refused=refused)) == segment(
        good(size=10), keep_partial=True
    )
    assert refused == [frame]


def test_a_checksum_field_outside_the_frame_is_refused() -> None:
    """CVE-2024-11614: csum_start + csum_offset + 2 must lie inside."""
    with pytest.raises(OffloadError, match="has no byte"):
        finish_checksum(((bytes(60),), NEEDS_CSUM, 0, 0, 0, 50, 9))
    finish_checksum(((bytes(60),), NEEDS_CSUM, 0, 0, 0, 50, 8))


def test_prepare_leaves_a_burst_alone_that_needs_nothing() -> None:
    burst = [good(), good(v6=True)]
    assert prepare(burst, ALL_OFFLOADS) is burst
    plain = [((bytes(60),), 0, 0, 0, 0, 0, 0)]
    assert prepare(plain, Offload.NONE) is plain


@pytest.mark.parametrize(
    ("offloads", "gso_type", "pieces"),
    [
        (Offload.CSUM | Offload.TSO4, GSO_TCPV4, 1),
        (Offload.CSUM | Offload.TSO4, GSO_TCPV6, 3),
        (Offload.CSUM | Offload.TSO6, GSO_TCPV4, 3),
        (Offload.CSUM | Offload.TSO6, GSO_TCPV6, 1),
        (Offload.CSUM | Offload.TSO4, GSO_TCPV4 | GSO_ECN, 3),
        (Offload.CSUM | Offload.TSO4 | Offload.TSO_ECN, GSO_TCPV4 | GSO_ECN, 1),
        (Offload.NONE, GSO_TCPV4, 3),
    ],
)
def test_prepare_cuts_exactly_what_the_device_lacks(offloads: Offload, gso_type: int, pieces: int) -> None:
    frame = good(v6=gso_type & ~GSO_ECN == GSO_TCPV6)
    prepared = prepare([(*frame[:2], gso_type, *frame[3:])], offloads)
    assert len(prepared) == pieces
    assert list(prepare(prepared, offloads)) == list(prepared), "idempotent"


def test_a_superframe_above_the_devices_limit_is_cut() -> None:
    assert len(prepare([good()], ALL_OFFLOADS, max_frame=2000)) == 3


def received(frame: bytes, flags: int = 0) -> RxFrame:
    return memoryview(frame), flags, 0, 0, 0, 0


@given(
    st.sampled_from(["tcp", "udp"]), st.booleans(), st.binary(max_size=64), st.integers(0, 7), st.data(),
)  # fmt: skip
def test_verify_rx_sees_every_flipped_bit_of_the_transport(
    protocol: str, v6: bool, payload: bytes, bit: int, data: st.DataObject
) -> None:
    src, dst = V6 if v6 else V4
    number = 6 if protocol == "tcp" else 17
    body = b.tcp(src, dst, 1, 2, payload=payload) if protocol == "tcp" else b.udp(src, dst, 1, 2, payload)
    packet = b.ipv6(src, dst, number, body) if v6 else b.ipv4(src, dst, number, body)
    frame = b.ethernet(MAC_B, MAC_A, 0x86DD if v6 else 0x0800, packet + bytes(3))  # padding is not summed
    assert verify_rx(received(frame))
    start = 54 if v6 else 34
    position = data.draw(st.integers(start, start + len(body) - 1))
    damaged = bytearray(frame)
    damaged[position] ^= 1 << bit
    zeroed = not v6 and protocol == "udp" and damaged[40:42] == b"\0\0"
    assert verify_rx(received(bytes(damaged))) == zeroed
    assert verify_rx(received(bytes(damaged), DATA_VALID))
    assert verify_rx(received(bytes(damaged), NEEDS_CSUM))


def test_verify_rx_skips_what_has_no_checksum_here() -> None:
    src, dst = V4
    datagram = b.udp(src, dst, 1, 2, b"abc", checksum=0x1234)
    fragment = b.ethernet(MAC_B, MAC_A, 0x0800, b.ipv4(src, dst, 17, datagram, flags_fragment=0x2000))
    unsummed = b.ethernet(MAC_B, MAC_A, 0x0800, b.ipv4(src, dst, 17, b.udp(src, dst, 1, 2, b"abc", checksum=0)))
    wrong = b.ethernet(MAC_B, MAC_A, 0x0800, b.ipv4(src, dst, 17, datagram))
    other = b.ethernet(MAC_B, MAC_A, 0x0800, b.ipv4(src, dst, 132, bytes(12)))
    assert verify_rx(received(fragment))
    assert verify_rx(received(unsummed))
    assert not verify_rx(received(wrong))
    assert verify_rx(received(other))
    assert verify_rx(received(b.ethernet(MAC_B, MAC_A, 0x0806, bytes(28))))


def test_verify_rx_walks_ipv6_extension_headers() -> None:
    src, dst = V6
    body = b.udp(src, dst, 1, 2, b"abc")
    options = bytes([17, 0]) + b"\1\4" + bytes(4)
    frame = b.ethernet(MAC_B, MAC_A, 0x86DD, b.ipv6(src, dst, 0, options + body))
    assert verify_rx(received(frame))
    assert not verify_rx(received(frame[:-1] + b"x"))
    unsummed = b.ipv6(src, dst, 17, b.udp(src, dst, 1, 2, b"abc", checksum=0))
    assert not verify_rx(received(b.ethernet(MAC_B, MAC_A, 0x86DD, unsummed))), "RFC 8200 8.1: not optional"


@given(st.binary(max_size=80), st.sampled_from([0x0800, 0x86DD, 0x8100]))
def test_verify_rx_never_raises(noise: bytes, ethertype: int) -> None:
    verify_rx(received(b.ethernet(MAC_B, MAC_A, ethertype, noise)))


def test_turning_frames_round_keeps_facts_and_owns_bytes() -> None:
    frame = good()
    there = as_received(frame)
    assert bytes(there[0]) == b"".join(frame[0])
    back = as_transmit(there)
    assert back[1:] == frame[1:]
    scratch = bytearray(60)
    kept = as_received(((scratch,), 0, 0, 0, 0, 0, 0))[0]
    parts = owned_parts((b"ab", memoryview(scratch)))
    scratch[:] = b"x" * 60
    assert bytes(kept) == bytes(60)
    assert b"".join(parts) == b"ab" + bytes(60)
    untouched = (b"ab", memoryview(b"cd"))
    assert owned_parts(untouched) is untouched


# -- UDP superframes --------------------------------------------------------------------------------------------------


def datagrams(size: int, piece: int, *, v6: bool, ident: int = 7, vlan: int | None = None) -> TxFrame:
    """`size` bytes in datagrams of `piece`, as the stack hands them down."""
    src, dst = V6 if v6 else V4
    body = b.udp(src, dst, 1000, 2000, bytes(SPARE[:size]), checksum=b.partial_checksum(src, dst, 17, 8 + size))
    packet = b.ipv6(src, dst, 17, body) if v6 else b.ipv4(src, dst, 17, body, identification=ident)
    frame = b.ethernet(MAC_B, MAC_A, 0x86DD if v6 else 0x0800, packet, vlan=vlan)
    start = 14 + (4 if vlan is not None else 0) + (40 if v6 else 20)
    return (
        (frame[:start], frame[start : start + 8], frame[start + 8 :]),
        NEEDS_CSUM,
        GSO_UDP_L4,
        start + 8,
        piece,
        start,
        6,
    )


@given(st.integers(1, 6000), st.integers(48, 1472), st.booleans(), st.integers(0, 0xFFFF), st.sampled_from([None, 5]))
def test_a_udp_superframe_is_cut_into_the_datagrams_of_a_sender_without_offload(
    size: int, piece: int, v6: bool, ident: int, vlan: int | None
) -> None:
    src, dst = V6 if v6 else V4
    frame = datagrams(size, piece, v6=v6, ident=ident, vlan=vlan)
    expected = []
    for number, at in enumerate(range(0, size, piece)):
        body = b.udp(src, dst, 1000, 2000, bytes(SPARE[at : min(size, at + piece)]))
        packet = (
            b.ipv6(src, dst, 17, body) if v6 else b.ipv4(src, dst, 17, body, identification=(ident + number) & 0xFFFF)
        )
        expected.append(b.ethernet(MAC_B, MAC_A, 0x86DD if v6 else 0x0800, packet, vlan=vlan))
    assert [b"".join(each[0]) for each in segment(frame)] == expected
    partial = segment(frame, keep_partial=True)
    assert [b"".join(finish_checksum(each)[0]) for each in partial] == expected
    assert prepare([frame], Offload.CSUM | Offload.USO) == [frame]
    assert len(prepare([frame], Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN)) == len(expected)


def test_lying_udp_superframes_are_refused() -> None:
    """Every fact and every header that a superframe can lie with; at most 128 small datagrams come out of one."""
    good = datagrams(3000, 1000, v6=False)
    assert len(segment(datagrams(128, 1, v6=False))) == 128
    tcp = superframe(3000, 1000, flags=0, v6=False, seq=1, ident=1, vlan=None, cuts=[])
    for bad in (
        datagrams(129, 1, v6=False),
        (*good[:4], 0, *good[5:]),
        (good[0], 0, *good[2:]),
        (*good[:6], 16),
        (*good[:5], 20, 6),
        (*good[:5], 5000, 6),
        (*good[:5], 250, 6),
        (good[0], good[1], GSO_UDP_L4 | GSO_ECN, *good[3:]),
        (tcp[0], NEEDS_CSUM, GSO_UDP_L4, 42, 1000, 34, 6),
        (datagrams(3000, 1000, v6=True)[0], *good[1:]),
        ((b"".join(good[0])[:40],), *good[1:]),
    ):
        with pytest.raises(OffloadError):
            segment(bad)
