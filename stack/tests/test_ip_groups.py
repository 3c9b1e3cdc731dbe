"""Multicast: memberships and their filters, IGMPv2/v3 and MLDv1/v2 as a host speaks them, who gets what.

RFC 3376, RFC 2236, RFC 3810, RFC 2710, RFC 3678.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import NetError
from stack.iface.address import parse_address
from stack.ip.groups import NOBODY, SourceFilter, merged
from stack.ip.igmp import split
from stack.scheduler import NS_PER_S
from stack.testing import builders
from stack.tests.ip_rig import ME6, PEER, PEER6, Host
from stack.wire import igmp, ipv6, mld
from stack.wire.error import WireError
from stack.wire.igmp import Record, RecordType, floating

GROUP = {4: parse_address("239.1.2.3"), 6: parse_address("ff05::1:3")}
S = {4: [bytes((192, 0, 2, n)) for n in range(1, 9)], 6: [parse_address(f"2001:db8::{n}") for n in range(1, 9)]}
PEER_LL = parse_address("fe80::15")
BOTH = pytest.mark.parametrize("family", [4, 6])
WIDTH = {4: 4, 6: 16}


def filter_of(exclude: bool, *sources: bytes) -> SourceFilter:
    return SourceFilter(exclude, frozenset(sources))


def reports(host: Host) -> list[tuple[int, bytes, bytes, list[bytes]]]:
    """(record type, destination, group, sources) of what left since last asked; older messages as (-type, ...)."""
    found: list[tuple[int, bytes, bytes, list[bytes]]] = []
    for packet in host.sent_ip():
        width = 4
        if packet[0] >> 4 == 4:
            if packet[9] != 2:
                continue
            assert packet[0] == 0x46, "router alert makes 24 bytes of header"
            assert packet[8] == 1, "TTL"
            assert packet[20:24] == b"\x94\x04\0\0"
            dst, body = packet[16:20], packet[24:]
            assert builders.inet_checksum(body) == 0
            kind, is_new = body[0], body[0] == 0x22
            group = body[4:8]
        else:
            if packet[6] != 0:
                continue
            width = 16
            assert packet[7] == 1, "hop limit"
            assert packet[40:48] == bytes((58, 0, 5, 2, 0, 0, 1, 0))
            dst, body = packet[24:40], packet[48:]
            pseudo = builders.pseudo_header(packet[8:24], dst, 58, len(body))
            assert builders.inet_checksum(pseudo + body) == 0
            kind, is_new = body[0], body[0] == 143
            group = body[8:24]
        if not is_new:
            found.append((-kind, dst, group, []))
            continue
        assert dst == (igmp.V3_ROUTERS if width == 4 else mld.V2_ROUTERS)
        at = 8
        for _ in range(struct.unpack_from("!H", body, 6)[0]):
            record, _, count = struct.unpack_from("!BBH", body, at)
            at += 4
            sources = [body[at + width * (n + 1) : at + width * (n + 2)] for n in range(count)]
            found.append((record, dst, body[at : at + width], sources))
            at += width * (count + 1)
        assert at == len(body)
    return found


def query(
    host: Host,
    family: int,
    group: bytes | None = None,
    sources: list[bytes] | None = None,
    *,
    code: int = 100,
    old: bool = False,
    robustness: int = 2,
    ttl: int = 1,
    src: bytes | None = None,
    alert: bool = True,
) -> None:
    """A query of the peer, of ten seconds (100 tenths; for MLD 10,000 ms)."""
    tail = b"" if old else struct.pack("!BBH", robustness, 125, len(sources or [])) + b"".join(sources or [])
    if family == 4:
        body = struct.pack("!BBH", 0x11, code, 0) + (group or bytes(4)) + tail
        body = body[:2] + struct.pack("!H", builders.inet_checksum(body)) + body[4:]
        dst = group or parse_address("224.0.0.1")
        host.receive4(builders.ipv4(src or PEER, dst, 2, body, ttl=ttl, options=b"\x94\x04\0\0" if alert else b""))
        return
    source, dst = src or PEER_LL, group or ipv6.ALL_NODES
    body = struct.pack("!BBHHH", 130, 0, 0, code * 100 if code < 128 else code, 0) + (group or bytes(16)) + tail
    check = builders.inet_checksum(builders.pseudo_header(source, dst, 58, len(body)) + body)
    body = body[:2] + struct.pack("!H", check) + body[4:]
    payload = bytes((58, 0, 5, 2, 0, 0, 1, 0)) + body if alert else body
    host.receive6(builders.ipv6(source, dst, 0 if alert else 58, payload, hop_limit=ttl))


def old_report(host: Host, family: int, group: bytes) -> None:
    """Another host's report in the older version."""
    if family == 4:
        host.receive4(builders.ipv4(PEER, group, 2, igmp.emit(igmp.V2_REPORT, group), ttl=1, options=b"\x94\x04\0\0"))
    else:
        body = mld.emit(mld.V1_REPORT, group, PEER_LL, group)
        host.receive6(builders.ipv6(PEER_LL, group, 0, mld.ROUTER_ALERT + body, hop_limit=1))


def ready(_family: int = 4) -> Host:
    host = Host()
    host.sent()
    return host


# --- filters ----------------------------------------------------------------------------------------------------------

NAMES = [bytes((n,)) for n in range(6)]
FILTERS = st.lists(st.builds(SourceFilter, st.booleans(), st.frozensets(st.sampled_from(NAMES))), max_size=5)


@given(FILTERS)
def test_an_interface_lets_in_what_any_listener_wants(filters: list[SourceFilter]) -> None:
    """RFC 3376 3.2: the merged filter allows a source exactly if one of the filters does."""
    for source in [*NAMES, b"another"]:
        assert merged(filters).allows(source) == any(each.allows(source) for each in filters)


def test_the_example_of_the_rfc() -> None:
    """RFC 3376 3.2: EXCLUDE {a,b,c,d}, EXCLUDE {b,c,d,e}, INCLUDE {d,e,f} make EXCLUDE {b,c}."""
    a, b, c, d, e, f = NAMES
    filters = [filter_of(True, a, b, c, d), filter_of(True, b, c, d, e), filter_of(False, d, e, f)]
    assert merged(filters) == filter_of(True, b, c)
    assert merged([filter_of(False, a, b), filter_of(False, b, c)]) == filter_of(False, a, b, c)
    assert merged([]) == NOBODY


# --- changes ----------------------------------------------------------------------------------------------------------

RULES = [  # RFC 3376 5.1, RFC 3810 6.1: old state, new state, records
    ((False, ""), (True, ""), [(RecordType.CHANGE_TO_EXCLUDE, "")]),
    ((True, ""), (False, ""), [(RecordType.CHANGE_TO_INCLUDE, "")]),
    ((False, "ab"), (False, "bc"), [(RecordType.ALLOW_NEW_SOURCES, "c"), (RecordType.BLOCK_OLD_SOURCES, "a")]),
    ((True, "ab"), (True, "bc"), [(RecordType.ALLOW_NEW_SOURCES, "a"), (RecordType.BLOCK_OLD_SOURCES, "c")]),
    ((False, "ab"), (True, "bc"), [(RecordType.CHANGE_TO_EXCLUDE, "bc")]),
    ((True, "ab"), (False, "bc"), [(RecordType.CHANGE_TO_INCLUDE, "bc")]),
    ((False, ""), (False, "ab"), [(RecordType.ALLOW_NEW_SOURCES, "ab")]),
    ((False, "ab"), (False, ""), [(RecordType.BLOCK_OLD_SOURCES, "ab")]),
]


@BOTH
@pytest.mark.parametrize(("before", "after", "records"), RULES)
def test_a_change_is_told_twice_in_the_records_of_the_rfc(
    family: int, before: tuple[bool, str], after: tuple[bool, str], records: list[tuple[int, str]]
) -> None:
    host = ready(family)
    group = GROUP[family]

    def sources(letters: str) -> list[bytes]:
        return [S[family]["abc".index(letter)] for letter in letters]

    def state(of: tuple[bool, str]) -> SourceFilter:
        return filter_of(of[0], *sources(of[1]))

    old, new = state(before), state(after)
    membership = host.ip.groups.join(group, host.eth, old)
    host.pass_time(5 * NS_PER_S)
    reports(host)
    membership.set(new)
    expected = [(kind, group, sources(letters)) for kind, letters in records]
    assert [(kind, of, who) for kind, _, of, who in reports(host)] == expected
    host.pass_time(NS_PER_S)
    assert [(kind, of, who) for kind, _, of, who in reports(host)] == expected
    host.pass_time(5 * NS_PER_S)
    assert reports(host) == []


@BOTH
def test_what_is_repeated_is_what_is_true_by_then(family: int) -> None:
    host = ready(family)
    group = GROUP[family]
    membership = host.ip.groups.join(group, host.eth)
    membership.leave()
    membership.leave()
    assert [kind for kind, *_ in reports(host)] == [RecordType.CHANGE_TO_EXCLUDE, RecordType.CHANGE_TO_INCLUDE]
    host.pass_time(5 * NS_PER_S)
    assert {kind for kind, *_ in reports(host)} == {RecordType.CHANGE_TO_INCLUDE}


@BOTH
def test_only_the_first_that_joins_and_the_last_that_leaves_are_told(family: int) -> None:
    host = ready(family)
    first = host.ip.groups.join(GROUP[family], host.eth)
    host.pass_time(5 * NS_PER_S)
    reports(host)
    second = host.ip.groups.join(GROUP[family], host.eth)
    first.leave()
    host.pass_time(5 * NS_PER_S)
    assert reports(host) == []
    second.leave()
    assert [kind for kind, *_ in reports(host)] == [RecordType.CHANGE_TO_INCLUDE]


# --- queries ----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_general_query_is_answered_with_every_group_within_its_time(family: int) -> None:
    host = ready(family)
    other = GROUP[family][:-1] + b"\x77"
    host.ip.groups.join(GROUP[family], host.eth)
    host.ip.groups.join(other, host.eth, filter_of(False, S[family][0]))
    host.pass_time(5 * NS_PER_S)
    reports(host)
    query(host, family)
    assert reports(host) == []
    host.pass_time(10 * NS_PER_S)
    told = {(kind, group, *sources) for kind, _, group, sources in reports(host)}
    assert {(RecordType.MODE_IS_EXCLUDE, GROUP[family]), (RecordType.MODE_IS_INCLUDE, other, S[family][0])} <= told
    if family == 6:
        assert (RecordType.MODE_IS_EXCLUDE, ipv6.solicited_node(ME6)) in told
    host.pass_time(20 * NS_PER_S)
    assert reports(host) == []


@BOTH
def test_a_query_for_a_group_or_its_sources(family: int) -> None:
    """RFC 3376 5.2: the table of records sent; for sources nobody wants there is no answer."""
    host = ready(family)
    a, b, c = S[family][:3]
    group = GROUP[family]
    membership = host.ip.groups.join(group, host.eth, filter_of(False, a, b))
    host.pass_time(5 * NS_PER_S)
    reports(host)
    for asked, state, expected in (
        ([], filter_of(False, a, b), [(RecordType.MODE_IS_INCLUDE, [a, b])]),
        ([b, c], filter_of(False, a, b), [(RecordType.MODE_IS_INCLUDE, [b])]),
        ([c], filter_of(False, a, b), []),
        ([], filter_of(True, a), [(RecordType.MODE_IS_EXCLUDE, [a])]),
        ([a, b], filter_of(True, a), [(RecordType.MODE_IS_INCLUDE, [b])]),
    ):
        membership.set(state)
        host.pass_time(5 * NS_PER_S)
        reports(host)
        query(host, family, group, asked, code=10)
        host.pass_time(NS_PER_S)
        assert [(kind, sources) for kind, _, _, sources in reports(host)] == expected
    query(host, family, group[:-1] + b"\x99", code=10)
    host.pass_time(NS_PER_S)
    assert reports(host) == []


@BOTH
def test_queries_for_one_group_are_answered_together(family: int) -> None:
    host = ready(family)
    a, b = S[family][:2]
    host.ip.groups.join(GROUP[family], host.eth)
    host.pass_time(5 * NS_PER_S)
    reports(host)
    query(host, family, GROUP[family], [a])
    query(host, family, GROUP[family], [b])
    host.pass_time(10 * NS_PER_S)
    assert [(kind, sources) for kind, _, _, sources in reports(host)] == [(RecordType.MODE_IS_INCLUDE, [a, b])]
    query(host, family, GROUP[family], [a])
    query(host, family, GROUP[family])
    host.pass_time(10 * NS_PER_S)
    assert [(kind, sources) for kind, _, _, sources in reports(host)] == [(RecordType.MODE_IS_EXCLUDE, [])]


@BOTH
def test_an_answer_about_everything_that_comes_sooner_is_enough(family: int) -> None:
    """RFC 3376 5.2 rule 1."""
    host = ready(family)
    host.ip.groups.join(GROUP[family], host.eth)
    host.pass_time(5 * NS_PER_S)
    reports(host)
    query(host, family, code=1)
    query(host, family, GROUP[family], code=100)
    host.pass_time(10 * NS_PER_S)
    assert len([group for _, _, group, _ in reports(host) if group == GROUP[family]]) == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda host: query(host, 4, ttl=2),
        lambda host: query(host, 6, ttl=2),
        lambda host: query(host, 6, src=PEER6),
        lambda host: query(host, 6, alert=False),
    ],
)
def test_queries_that_are_no_neighbours_are_dropped(ask: Callable[[Host], None]) -> None:
    """RFC 3810 6.2."""
    host = ready(4)
    for group in GROUP.values():
        host.ip.groups.join(group, host.eth)
    host.pass_time(5 * NS_PER_S)
    reports(host)
    ask(host)
    host.pass_time(20 * NS_PER_S)
    assert reports(host) == []
    assert host.ip.drops["bad-message"] == 1


# --- the older versions -----------------------------------------------------------------------------------------------


@BOTH
def test_an_older_querier_is_spoken_to_in_its_language_for_a_while(family: int) -> None:
    """RFC 3376 7.2.1, RFC 3810 8.2.1: 2 times 125 s and a response time."""
    host = ready(family)
    group = GROUP[family]
    report, leave = (-0x16, -0x17) if family == 4 else (-131, -132)
    routers = igmp.ALL_ROUTERS if family == 4 else ipv6.ALL_ROUTERS
    query(host, family, old=True)
    membership = host.ip.groups.join(group, host.eth)
    assert [each[:3] for each in reports(host)] == [(report, group, group)]
    host.pass_time(10 * NS_PER_S)
    assert [each[:3] for each in reports(host)] == [(report, group, group)], "told twice (RFC 2236 3)"
    query(host, family, old=True)
    host.pass_time(10 * NS_PER_S)
    assert [each[:3] for each in reports(host)] == [(report, group, group)]
    membership.leave()
    assert [each[:3] for each in reports(host)] == [(leave, routers, group)]
    host.pass_time(261 * NS_PER_S)
    host.ip.groups.join(group, host.eth)
    assert [kind for kind, *_ in reports(host)] == [RecordType.CHANGE_TO_EXCLUDE]


@BOTH
def test_another_hosts_report_spares_us_ours_and_the_leave(family: int) -> None:
    host = ready(family)
    group = GROUP[family]
    query(host, family, old=True)
    membership = host.ip.groups.join(group, host.eth)
    host.pass_time(30 * NS_PER_S)
    reports(host)
    query(host, family, old=True)
    old_report(host, family, group)
    host.pass_time(30 * NS_PER_S)
    assert reports(host) == []
    membership.leave()
    assert reports(host) == []


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "bits", "value"),
    [(127, 4, 127), (128, 4, 128), (255, 4, 31744), (32767, 12, 32767), (0xFFFF, 12, 8387584)],
)
def test_codes_in_floating_point(code: int, bits: int, value: int) -> None:
    """RFC 3376 4.1.1, RFC 3810 5.1.3."""
    assert floating(code, bits) == value


def test_reports_are_divided_to_fit_the_link() -> None:
    sources = [bytes((10, 0, n >> 8, n & 255)) for n in range(500)]
    records = [Record(RecordType.MODE_IS_INCLUDE, GROUP[4], sources) for _ in range(3)]
    portions = split(records, 1400)
    assert all(len(igmp.emit_report(each)) <= 1408 for each in portions)
    assert sum(len(record.sources) for each in portions for record in each) == 1500


@given(st.binary(max_size=60))
def test_a_lying_igmp_message_is_refused_or_read(data: bytes) -> None:
    whole = data[:2] + b"\0\0" + data[4:]
    whole = whole[:2] + struct.pack("!H", builders.inet_checksum(whole)) + whole[4:]
    try:
        _, group, found = igmp.parse(memoryview(whole))
    except WireError:
        return
    assert len(group) == 4
    assert found is None or all(len(source) == 4 for source in found.sources)


# --- who gets what ----------------------------------------------------------------------------------------------------


def send_to_group(host: Host, family: int, source: bytes, group: bytes | None = None) -> None:
    dst = group or GROUP[family]
    body = builders.udp(source, dst, 1000, 5000, b"x")
    if family == 4:
        host.receive4(builders.ipv4(source, dst, 17, body), dst_mac=b"\x01\x00\x5e" + bytes((dst[1] & 127,)) + dst[2:])
    else:
        host.receive6(builders.ipv6(source, dst, 17, body), dst_mac=b"\x33\x33" + dst[12:])


@BOTH
def test_packets_are_let_in_by_group_interface_and_source(family: int) -> None:
    host = ready(family)
    index = host.eth.index
    any_address = bytes(WIDTH[family])
    socket = host.udp.bind(any_address, 5000)

    def waiting() -> int:
        return socket.pending

    send_to_group(host, family, S[family][0])
    assert not waiting(), "nobody joined"
    socket.listening.join(GROUP[family], index)
    send_to_group(host, family, S[family][0])
    assert waiting() == 1
    socket.listening.block(GROUP[family], S[family][0], index)
    send_to_group(host, family, S[family][0])
    assert waiting() == 1
    send_to_group(host, family, S[family][1])
    assert waiting() == 2
    socket.listening.leave(GROUP[family], index)
    send_to_group(host, family, S[family][1])
    assert waiting() == 2
    socket.listening.add_source(GROUP[family], S[family][2], index)
    send_to_group(host, family, S[family][1])
    assert waiting() == 2
    send_to_group(host, family, S[family][2])
    assert waiting() == 3
    socket.close()
    assert len(host.ip.groups) == 0


@BOTH
def test_each_socket_has_its_own_filter(family: int) -> None:
    host = ready(family)
    a, b = S[family][:2]
    one, other, third = (host.udp.bind(bytes(WIDTH[family]), 5000, reuse_addr=True) for _ in range(3))
    one.listening.add_source(GROUP[family], a, host.eth.index)
    other.listening.add_source(GROUP[family], b, host.eth.index)
    third.listening.everything4 = third.listening.everything6 = False
    send_to_group(host, family, a)
    assert [each.pending for each in (one, other, third)] == [1, 0, 0]
    third.listening.everything4 = third.listening.everything6 = True
    send_to_group(host, family, b)
    assert [each.pending for each in (one, other, third)] == [1, 1, 1]


@BOTH
@pytest.mark.parametrize("loop", [True, False])
def test_what_we_send_comes_back_to_our_own_listeners_unless_switched_off(family: int, loop: bool) -> None:
    host = ready(family)
    listener = host.udp.bind(bytes(WIDTH[family]), 5000)
    listener.listening.join(GROUP[family], host.eth.index)
    sender = host.udp.bind(bytes(WIDTH[family]))
    sender.v4.multicast_ifindex = sender.v6.multicast_ifindex = host.eth.index
    sender.v4.loop = sender.v6.loop = loop
    host.sent()
    sender.send(b"hello", (GROUP[family], 5000))
    sender.send(bytes(3000), (GROUP[family], 5000))
    assert len([each for each in host.sent_ip() if GROUP[family] in each[:40]]) == 4
    assert listener.pending == (2 if loop else 0)


def test_errors_of_memberships() -> None:
    """As Linux gives them: ip(7), RFC 3678."""
    host = ready(4)
    socket = host.udp.bind(bytes(4))
    group, (a, b), index = GROUP[4], S[4][:2], host.eth.index
    listening = socket.listening

    def fails(number: int, call: Callable[..., object], *args: object) -> None:
        with pytest.raises(NetError) as caught:
            call(*args)
        assert caught.value.errno == number

    fails(errno.EINVAL, listening.join, bytes((10, 0, 0, 1)), index)
    fails(errno.ENODEV, listening.join, group, 99)
    fails(errno.ENODEV, listening.join, group)
    fails(errno.EADDRNOTAVAIL, listening.leave, group, index)
    fails(errno.EINVAL, listening.block, group, a, index)
    fails(errno.EINVAL, listening.drop_source, group, a, index)
    listening.join(group, index)
    fails(errno.EADDRINUSE, listening.join, group, index)
    fails(errno.EINVAL, listening.add_source, group, a, index)
    fails(errno.EADDRNOTAVAIL, listening.unblock, group, a, index)
    listening.block(group, a, index)
    fails(errno.EADDRNOTAVAIL, listening.block, group, a, index)
    listening.unblock(group, a, index)
    listening.leave(group)
    listening.add_source(group, a, index)
    fails(errno.EADDRNOTAVAIL, listening.add_source, group, a, index)
    fails(errno.EADDRNOTAVAIL, listening.drop_source, group, b, index)
    listening.set_filter(group, index, exclude=True, sources=[b])
    assert listening.filter_of(group, index) == filter_of(True, b)
    listening.set_filter(group, index, exclude=False, sources=[])
    fails(errno.EADDRNOTAVAIL, listening.filter_of, group, index)
    listening.add_source(group, a, index)
    listening.drop_source(group, a, index)
    assert len(listening) == 0
    for number in range(20):
        listening.join(bytes((239, 0, 0, number)), index)
    fails(errno.ENOBUFS, listening.join, group, index)
    many = [bytes((10, 1, n >> 8, n & 255)) for n in range(65)]
    fails(errno.ENOBUFS, lambda: listening.set_filter(bytes((239, 0, 0, 1)), index, exclude=True, sources=many))


def test_a_group_of_everybody_needs_no_membership() -> None:
    host = ready(4)
    socket = host.udp.bind(bytes(4), 5000)
    send_to_group(host, 4, PEER, parse_address("224.0.0.1"))
    assert socket.pending == 1
