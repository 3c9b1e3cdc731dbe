"""The netlink codec: what is emitted is parsed, no bytes whatever raise anything but NetlinkError (NL-14, NL-15)."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.wire.netlink import ack, header
from stack.wire.netlink.address import ADDR
from stack.wire.netlink.attribute import (
    ADDRESS,
    BE16,
    FLAG,
    MAX_DEPTH,
    S32,
    U8,
    U16,
    U32,
    U64,
    Context,
    Nested,
    Schema,
    String,
    attributes,
    pack,
)
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.generic import CONTROLLER
from stack.wire.netlink.link import LINK, LINK_SCHEMA, STATISTICS
from stack.wire.netlink.message import MessageType
from stack.wire.netlink.neighbour import NEIGH, NEIGHTBL
from stack.wire.netlink.route import ROUTE
from stack.wire.netlink.rule import RULE

ALL = [LINK, STATISTICS, ADDR, ROUTE, NEIGH, NEIGHTBL, RULE, CONTROLLER]


def test_nl_14_a_message_by_hand() -> None:
    """A message is length, type, flags, sequence number, port, and a body aligned to four bytes."""
    assert header.pack(18, 0x301, 7, 9, b"abcde") == bytes.fromhex(
        "15000000 1200 0103 07000000 09000000 6162636465 000000".replace(" ", "")
    )


@pytest.mark.parametrize("body", [b"", b"a", b"abcd", bytes(65)])
def test_nl_17_a_message_says_its_length_and_takes_up_whole_words(body: bytes) -> None:
    """The length in a message's header is that of header and body; what follows begins at the next multiple of four."""
    raw = header.pack(18, 1, 7, 9, body)
    assert int.from_bytes(raw[:4], "little") == 16 + len(body)
    assert len(raw) == header.align(16 + len(body))
    found = list(header.split(raw + raw))
    assert [(each.length, bytes(whole[16:])) for each, whole in found] == [(16 + len(body), body)] * 2


def test_nl_15_attributes_by_hand() -> None:
    """An attribute is length with header, type with NESTED and NET_BYTEORDER in its high bits, and a value aligned to
    four bytes.
    """
    schema = Schema((1, "small", U8), (2, "name", String()), (3, "inner", Nested(Schema((1, "port", BE16)))))
    wire = schema.emit({"small": 5, "name": "lo", "inner": {"port": 0x1234}})
    assert wire.hex() == "0500010005000000" + "070002006c6f0000" + "0c0003800600010012340000"
    assert schema.parse(wire) == {"small": 5, "name": "lo", "inner": {"port": 0x1234}}


def test_none_and_false_are_left_out_and_flags_are_empty() -> None:
    schema = Schema((1, "flag", FLAG), (2, "other", FLAG), (3, "number", U32))
    assert schema.emit({"flag": True, "other": False, "number": None}) == b"\4\0\1\0"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        pytest.param(b"\1\2\3", errno.ERANGE, id="too short"),
        pytest.param(b"\1\0\0\0\0", None, id="longer than its type passes"),
    ],
)
def test_rt_05_numbers(value: bytes, code: int | None) -> None:
    """A number is the size it is: shorter is an error, longer is cut."""
    schema = Schema((4, "mtu", U32))
    wire = pack(9, b"unknown") + pack(4, value)
    if code is None:
        assert schema.parse(wire) == {"mtu": 1}
        with pytest.raises(NetlinkError):
            schema.parse(wire, Context(strict=True))
        return
    with pytest.raises(NetlinkError) as caught:
        schema.parse(wire, Context(base=32))
    assert (caught.value.errno, caught.value.offset) == (code, 32 + 12)


def test_rt_05_strings() -> None:
    """A name ends at its zero, and is not longer than it may be."""
    plain, zero = Schema((3, "name", String(15))), Schema((3, "name", String(15, zero=True)))
    assert plain.parse(pack(3, b"x" * 15)) == {"name": "x" * 15}, "the final zero may be missing"
    with pytest.raises(NetlinkError) as long:
        plain.parse(pack(3, b"x" * 16 + b"\0"))
    with pytest.raises(NetlinkError) as unterminated:
        zero.parse(pack(3, b"nlctrl"))
    assert (long.value.errno, unterminated.value.errno) == (errno.ERANGE, errno.EINVAL)


def test_an_impossible_length_ends_the_list_and_the_last_of_two_counts() -> None:
    schema = Schema((1, "value", U32))
    twice = schema.emit({"value": 1}) + schema.emit({"value": 2})
    for rest in (b"\xff\0\1\0", b"\3\0\1\0", b"\0"):
        context = Context()
        assert schema.parse(twice + rest, context) == {"value": 2}
        assert context.leftover
        with pytest.raises(NetlinkError, match="leftover"):
            schema.parse(twice + rest, Context(strict=True))


def test_strict_parsing_knows_no_strangers() -> None:
    with pytest.raises(NetlinkError, match="Unknown attribute") as caught:
        Schema((1, "value", U32)).parse(pack(2, b""), Context(strict=True, base=16))
    assert caught.value.offset == 16


def test_nesting_is_bounded() -> None:
    """veth's peer is a link, which may be a veth, whose peer..."""
    body = LINK.emit({}, {"ifname": "x"})
    for _ in range(MAX_DEPTH):
        info = pack(1, b"veth\0") + pack(2, pack(1, body))
        body = LINK.emit({}) + pack(18, info)
    with pytest.raises(NetlinkError, match="depth"):
        LINK.parse(body)


def test_an_attribute_has_65535_bytes_at_most() -> None:
    with pytest.raises(ValueError, match="there can be"):
        pack(1, bytes(65532))


def test_names_that_are_not_are_errors_of_ours() -> None:
    with pytest.raises(KeyError):
        LINK.emit({}, {"colour": 1})
    with pytest.raises(KeyError):
        LINK.emit({"colour": 1})


def test_acks_are_parsed_as_emitted() -> None:
    request = memoryview(header.pack(19, 5, 77, 0, b"payload"))
    for capped in (False, True):
        wire = ack.acknowledge(request, 9, errno.ENODEV, capped=capped, extended=ack.Extended("no such", 32))
        ((found, whole),) = header.split(wire)
        assert (found.type, found.seq, found.pid) == (header.NLMSG_ERROR, 77, 9)
        assert ack.parse(found.type, found.flags, whole[16:]) == ack.Outcome(errno.ENODEV, "no such", 32)
    ((found, whole),) = header.split(ack.acknowledge(request, 9))
    assert (found.length, found.flags) == (36, header.NLM_F_CAPPED)
    ((found, whole),) = header.split(ack.done(1, 2, errno.EINVAL, extended=ack.Extended("why")))
    assert ack.parse(found.type, found.flags, whole[16:]) == ack.Outcome(errno.EINVAL, "why")


# --- whatever comes ---------------------------------------------------------------------------------------------------

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15)


def values(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings a schema can emit and must parse back."""
    simple: dict[int, st.SearchStrategy[Any]] = {
        id(U8): st.integers(0, 0xFF),
        id(U16): st.integers(0, 0xFFFF),
        id(U32): st.integers(0, 0xFFFFFFFF),
        id(U64): st.integers(0, 2**64 - 1),
        id(S32): st.integers(-(2**31), 2**31 - 1),
        id(ADDRESS): addresses,
    }
    rows: dict[str, st.SearchStrategy[Any]] = {}
    for row in schema.by_name.values():
        if id(row.type) in simple:
            rows[row.name] = simple[id(row.type)]
        elif isinstance(row.type, String):
            rows[row.name] = names
        elif isinstance(row.type, Nested):
            rows[row.name] = values(row.type.schema)
    return st.fixed_dictionaries({}, optional=rows)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: " ".join(kind.names))
def test_what_is_emitted_is_parsed(kind: MessageType) -> None:
    @given(values(kind.schema))
    def there_and_back(value: dict[str, Any]) -> None:
        assert kind.parse(kind.emit({}, value), strict=True).attributes == value

    there_and_back()


def refusal(kind: MessageType, data: bytes, *, strict: bool = False) -> NetlinkError | None:
    try:
        kind.parse(data, strict=strict)
    except NetlinkError as error:
        return error
    return None


@given(st.binary(max_size=200))
def test_no_bytes_surprise_the_splitter(data: bytes) -> None:
    total = 0
    for found, whole in header.split(data):
        assert len(whole) == found.length >= 16
        total += header.align(found.length)
    assert total <= header.align(len(data))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: " ".join(kind.names))
def test_no_bytes_surprise_a_parser(kind: MessageType) -> None:
    @given(st.binary(max_size=160), st.booleans())
    def parse(data: bytes, strict: bool) -> None:
        refused = refusal(kind, data, strict=strict)
        assert refused is None or refused.errno in (errno.EINVAL, errno.ERANGE)

    parse()


@given(st.lists(st.tuples(st.integers(0, 70), st.binary(max_size=40)), max_size=6), st.data())
def test_damaged_links(parts: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Attributes of the right numbers with the wrong contents, then a byte of the whole turned over."""
    body = bytearray(LINK.emit({}) + b"".join(pack(number, value) for number, value in parts))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    refused = refusal(LINK, bytes(body))
    assert refused is None or refused.offset is None or 32 <= refused.offset < 16 + len(body)


def test_every_attribute_number_is_declared_once() -> None:
    for kind in ALL:
        assert len(kind.schema.by_number) == len(kind.schema.by_name)
    assert LINK_SCHEMA.by_name["ifname"].number == 3


def test_attributes_are_found_where_they_are() -> None:
    body = LINK.emit({"index": 1}, {"mtu": 1, "ifname": "x"})
    assert LINK.offset_of(body, "ifname") == 32 + 8
    assert struct.unpack_from("=HH", body, 16)[1] == 4
    assert [number for number, _, _ in attributes(memoryview(body)[16:])] == [4, 3]
