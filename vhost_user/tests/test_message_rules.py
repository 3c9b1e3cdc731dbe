"""What a message may look like: header, sizes, descriptor counts, gates, reserved bits (vhost-user.rst)."""

from __future__ import annotations

import struct

import pytest

from vhost_user import message as m
from vhost_user.message import Protocol, ProtocolError, Request

ALL_FEATURES = int(
    Protocol.MQ
    | Protocol.LOG_SHMFD
    | Protocol.RARP
    | Protocol.REPLY_ACK
    | Protocol.NET_MTU
    | Protocol.BACKEND_REQ
    | Protocol.CONFIG
    | Protocol.CONFIGURE_MEM_SLOTS
    | Protocol.STATUS
)

#: Payload sizes as the specification's table has them, written out independently of RULES.
SIZES = {
    1: 0, 2: 8, 3: 0, 4: 0, 5: 40, 6: 16, 7: 0, 8: 8, 9: 40, 10: 8, 11: 8, 12: 8, 13: 8, 14: 8, 15: 0, 16: 8, 17: 0,
    18: 8, 19: 8, 20: 8, 21: 0, 24: 12, 25: 12, 36: 0, 37: 40, 38: 40, 39: 8, 40: 0,
}  # fmt: skip


def header(request: int, flags: int, size: int) -> bytes:
    return struct.pack("<III", request, flags, size)


def test_header_is_request_flags_size_in_twelve_bytes() -> None:
    assert m.parse_header(bytes.fromhex("05000000 09000000 28000000")) == (5, 9, 40)


@pytest.mark.parametrize("version", [0, 2, 3])
def test_header_version_must_be_one(version: int) -> None:
    with pytest.raises(ProtocolError, match="GET_FEATURES: protocol version"):
        m.parse_header(header(1, version, 0))


def test_header_reply_flag_on_a_request_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="reply flag"):
        m.parse_header(header(1, 1 | 4, 0))


@pytest.mark.parametrize("bit", range(4, 32))
def test_header_reserved_flag_bits_are_an_error(bit: int) -> None:
    with pytest.raises(ProtocolError, match="reserved flag bits"):
        m.parse_header(header(1, 1 | 1 << bit, 0))


@pytest.mark.parametrize("size", [m.MAX_PAYLOAD + 1, 1 << 31, 0xFFFFFFFF])
def test_header_size_is_limited_before_any_payload_is_read(size: int) -> None:
    with pytest.raises(ProtocolError, match="at most 4096"):
        m.parse_header(header(5, 1, size))


@pytest.mark.parametrize("request_id", [0, 46, 255, 0x10001, 0xFFFFFFFF])
def test_unknown_request_is_an_error_that_shows_its_number(request_id: int) -> None:
    with pytest.raises(ProtocolError, match=f"request {request_id} is not a request"):
        m.check(request_id, 0, 0, ALL_FEATURES)


@pytest.mark.parametrize("request_id", sorted(set(range(1, 46)) - set(SIZES)))
def test_known_request_that_is_not_offered_is_an_error_by_name(request_id: int) -> None:
    with pytest.raises(ProtocolError, match=f"{Request(request_id).name} is not a request this back-end offers"):
        m.check(request_id, 0, 0, ALL_FEATURES)


def fds_for(request_id: int) -> int:
    return m.RULES[request_id].min_fds


@pytest.mark.parametrize("request_id", sorted(SIZES))
def test_every_request_takes_exactly_its_payload_size(request_id: int) -> None:
    size = SIZES[request_id]
    m.check(request_id, size, fds_for(request_id), ALL_FEATURES)
    for wrong in {0, size - 1, size + 1, size + 3, size + 33, m.MAX_PAYLOAD - 1} - {size}:
        if wrong < 0 or (request_id in {Request.GET_CONFIG, Request.SET_CONFIG} and wrong > size):
            continue  # the config's own size field decides; see below
        with pytest.raises(ProtocolError, match="payload of"):
            m.check(request_id, wrong, fds_for(request_id), ALL_FEATURES)


#: (fewest, most) descriptors by request; KICK/CALL/ERR are settled by their NOFD bit, SET_MEM_TABLE by its regions.
FDS = {5: (1, 8), 6: (1, 1), 7: (1, 1), 12: (0, 1), 13: (0, 1), 14: (0, 1), 21: (1, 1), 37: (1, 1), 38: (0, 1)}


@pytest.mark.parametrize("request_id", sorted(SIZES))
def test_every_request_takes_only_its_descriptors(request_id: int) -> None:
    low, high = FDS.get(request_id, (0, 0))
    for count in range(10):
        if low <= count <= high:
            m.check(request_id, SIZES[request_id], count, ALL_FEATURES)
        else:
            with pytest.raises(ProtocolError, match=f"came with {count} descriptors"):
                m.check(request_id, SIZES[request_id], count, ALL_FEATURES)


#: Protocol feature bit by request, from the specification.
GATES = {21: 5, 6: 1, 17: 0, 19: 2, 20: 4, 24: 9, 25: 9, 36: 15, 37: 15, 38: 15, 39: 16, 40: 16}


@pytest.mark.parametrize("request_id", sorted(SIZES))
def test_gated_requests_need_exactly_their_protocol_feature(request_id: int) -> None:
    gate = 1 << GATES[request_id] if request_id in GATES else 0
    m.check(request_id, SIZES[request_id], fds_for(request_id), gate)
    if gate:
        with pytest.raises(ProtocolError, match="was not negotiated"):
            m.check(request_id, SIZES[request_id], fds_for(request_id), ALL_FEATURES & ~gate)


def test_every_request_of_the_rules_is_in_these_tables() -> None:
    assert {int(request) for request in m.RULES} == set(SIZES)


def test_mem_table_layout() -> None:
    region = (0x1000, 0x2000, 0x7F0000000000, 0x3000)
    payload = struct.pack("<II", 2, 0) + struct.pack("<QQQQ", *region) * 2
    assert m.parse_table(payload) == [region, region]
    assert m.emit_table([region, region]) == payload


@pytest.mark.parametrize(
    ("head", "regions", "reason"),
    [
        ((0, 0), 1, "0 memory regions"),
        ((9, 0), 9, "9 memory regions"),
        ((2, 0), 1, "2 memory regions announced"),
        ((1, 0), 2, "1 memory regions announced"),
        ((1, 1), 1, "padding"),
        ((0xFFFFFFFF, 0), 1, "4294967295 memory regions"),
    ],
)
def test_mem_table_count_padding_and_size_must_agree(head: tuple[int, int], regions: int, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        m.parse_table(struct.pack("<II", *head) + bytes(32 * regions))


def test_single_region_layout_and_padding() -> None:
    region = (1, 2, 3, 4)
    payload = struct.pack("<QQQQQ", 0, *region)
    assert m.parse_region(payload) == region
    assert m.emit_region(region) == payload
    with pytest.raises(ProtocolError, match="padding"):
        m.parse_region(struct.pack("<QQQQQ", 1, *region))


def test_vring_address_order_on_the_wire_is_desc_used_avail_log() -> None:
    assert m.parse_addr(struct.pack("<IIQQQQ", 1, 1, 0xD0, 0xE0, 0xA0, 0x10)) == (1, 1, 0xD0, 0xE0, 0xA0, 0x10)


@pytest.mark.parametrize(("value", "expected"), [(0, (0, True)), (0x103, (3, False)), (0xFF, (255, True))])
def test_ring_descriptor_word_is_index_and_nofd(value: int, expected: tuple[int, bool]) -> None:
    assert m.parse_ring_fd(struct.pack("<Q", value)) == expected


@pytest.mark.parametrize("bit", range(9, 64))
def test_ring_descriptor_word_reserved_bits_are_an_error(bit: int) -> None:
    """An index cut down to its low byte would name another ring (CVE-2020-10723 and its kind)."""
    with pytest.raises(ProtocolError, match="reserved bits"):
        m.parse_ring_fd(struct.pack("<Q", 1 << bit))


def test_config_layout() -> None:
    payload = struct.pack("<III", 4, 3, 1) + b"abc"
    assert m.parse_config(payload) == (4, 3, 1, b"abc")
    assert m.emit_config(4, 3, 1, b"abc") == payload


@pytest.mark.parametrize(
    ("size", "flags", "follow", "reason"),
    [(8, 0, 7, "announced"), (8, 0, 9, "announced"), (257, 0, 257, "at most 256"), (0xFFFFFFFF, 0, 8, "announced"),
     (8, 2, 8, "unknown config flags")],
)  # fmt: skip
def test_config_size_field_must_match_the_payload(size: int, flags: int, follow: int, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        m.parse_config(struct.pack("<III", 0, size, flags) + bytes(follow))


def test_reply_flags_are_exactly_five() -> None:
    """QEMU: "Flags 0x%x instead of 0x5" and it hangs up."""
    assert m.emit_reply(Request.GET_FEATURES, b"\1" * 8) == bytes.fromhex("01000000 05000000 08000000") + b"\1" * 8


def test_request_carries_version_and_need_reply() -> None:
    assert m.emit_request(Request.SET_OWNER) == header(3, 1, 0)
    assert m.emit_request(Request.SET_FEATURES, bytes(8), need_reply=True) == header(2, 9, 8) + bytes(8)
