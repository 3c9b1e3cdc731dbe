"""The DNS server sans-IO: what is known, what is not, what is no query (RFC 1035, 2308, 6303, 6761, 6891)."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.scheduler import NS_PER_S
from stack.tests.services.dns_world import Alone, Book, query, texts, verdict
from stack.wire import dns as wire
from stack.wire.dns import Rcode
from stack.wire.error import WireError

GATEWAY4, GATEWAY6 = b"\x0a\0\2\2", b"\xfd" + bytes(14) + b"\2"
GUEST4 = b"\x0a\0\2\x0f"


def alone(**options: Any) -> Alone:
    world = Alone(
        Book({"gw": [GATEWAY4, GATEWAY6], "gateway": [GATEWAY4, GATEWAY6]}),
        {"api.test": ["192.0.2.7"], "Only6.test": ["2001:db8::6"], "broken.test": ["no address"], "deep.a.b": ["::9"]},
        **options,
    )
    world.names.leases.append(Book({"guest": [GUEST4], "gw": [b"\x0a\6\6\6"], "api.test": [b"\x0a\6\6\6"]}))
    return world


def soa(message: dns.message.Message) -> dns.rrset.RRset:
    (rrset,) = message.authority
    assert rrset.rdtype == dns.rdatatype.SOA
    return rrset


# -- what is known ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rdtype", "expected"),
    [
        ("gw", "A", ["10.0.2.2"]),
        ("GW.", "AAAA", ["fd00::2"]),
        ("gateway", "ANY", ["10.0.2.2", "fd00::2"]),
        ("api.test", "A", ["192.0.2.7"]),
        ("aPi.TesT", "A", ["192.0.2.7"]),
        ("only6.test", "AAAA", ["2001:db8::6"]),
        ("guest", "A", ["10.0.2.15"]),
        ("localhost", "A", ["127.0.0.1"]),
        ("anything.localhost", "AAAA", ["::1"]),
        ("2.2.0.10.in-addr.arpa", "PTR", ["gw.", "gateway."]),
        ("15.2.0.10.in-addr.arpa", "PTR", ["guest."]),
        ("7.2.0.192.in-addr.arpa", "PTR", ["api.test."]),
        ("1.0.0.127.in-addr.arpa", "PTR", ["localhost."]),
    ],
)
def test_a_known_name_is_answered_with_authority(name: str, rdtype: str, expected: list[str]) -> None:
    answer = alone().ask(name, rdtype)
    assert texts(answer) == expected
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.flags & dns.flags.AA
    assert not answer.flags & (dns.flags.RA | dns.flags.TC | dns.flags.AD)
    assert answer.id == 4711
    assert answer.question[0].name == dns.name.from_text(name)


def test_ipv6_addresses_have_names_too() -> None:
    name = dns.reversename.from_address("fd00::2")
    assert texts(alone().ask(name.to_text(), "PTR"))[0] == "gw."
    assert texts(alone(domain="lan.test").ask(name.to_text(), "PTR"))[0] == "gw.lan.test."


def test_with_a_domain_a_name_is_known_with_and_without_it() -> None:
    world = alone(domain="Lan.Test")
    for name in ("gw", "gw.lan.test", "GW.LAN.TEST", "guest.lan.test"):
        assert len(texts(world.ask(name))) == 1
    assert texts(world.ask("15.2.0.10.in-addr.arpa", "PTR")) == ["guest.lan.test."]
    assert texts(world.ask("7.2.0.192.in-addr.arpa", "PTR")) == ["api.test."]  # it has a domain of its own
    assert verdict(world.ask("nobody.lan.test")) == "NXDOMAIN"
    assert verdict(world.ask("gw.other.test")) == "NXDOMAIN"
    assert verdict(world.ask("sub.gw.lan.test")) == "NXDOMAIN"


def test_a_client_cannot_take_the_gateways_name_nor_one_that_was_set() -> None:
    """Leases are asked last: DHCP clients choose their names themselves."""
    assert texts(alone().ask("gw")) == ["10.0.2.2"]
    assert texts(alone().ask("api.test")) == ["192.0.2.7"]


def test_text_that_is_no_address_is_left_out() -> None:
    assert verdict(alone().ask("broken.test")) == "NXDOMAIN"


# -- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody", "nobody.test", "example.com", "a.b.c.d.e", "x.invalid"])
def test_an_unknown_name_is_nxdomain_with_the_soa_that_bounds_how_long(name: str) -> None:
    """RFC 2308 section 3: without a forwarder the LAN is the whole world, and its top is the root."""
    answer = alone(ttl=30).ask(name)
    assert verdict(answer) == "NXDOMAIN"
    assert answer.flags & dns.flags.AA
    rrset = soa(answer)
    assert rrset.name == dns.name.root
    assert (rrset.ttl, rrset[0].minimum) == (30, 30)


def test_of_the_domain_the_soa_is_the_domains() -> None:
    answer = alone(domain="lan.test").ask("nobody.lan.test")
    rrset = soa(answer)
    assert rrset.name == dns.name.from_text("lan.test.")
    assert rrset[0].mname == dns.name.from_text("ns.lan.test.")
    assert rrset[0].rname == dns.name.from_text("hostmaster.lan.test.")


@pytest.mark.parametrize(
    ("name", "rdtype"),
    [("api.test", "AAAA"), ("only6.test", "A"), ("gw", "MX"), ("test", "A"), ("a.b", "A"), ("b", "TXT"), ("", "A"),
     ("lan.home", "A"), ("home", "A"), ("2.2.0.10.in-addr.arpa", "A"), ("2.0.10.in-addr.arpa", "PTR")],
)  # fmt: skip
def test_a_name_that_exists_without_such_records_is_no_error(name: str, rdtype: str) -> None:
    """NODATA, RFC 2308 section 2.2; names above others exist (RFC 8020), and so do the domain and what is above it."""
    answer = alone(domain="lan.home").ask(name or ".", rdtype)
    assert verdict(answer) == "NODATA"
    assert dns.name.from_text(name or ".").is_subdomain(soa(answer).name)


def test_the_domain_has_an_soa() -> None:
    answer = alone(domain="lan.home").ask("lan.home", "SOA")
    assert [rrset.rdtype for rrset in answer.answer] == [dns.rdatatype.SOA]


@pytest.mark.parametrize("name", ["9.2.0.10.in-addr.arpa", "9.9.9.9.in-addr.arpa"])
def test_an_address_without_a_name(name: str) -> None:
    answer = alone().ask(name, "PTR")
    assert verdict(answer) == "NXDOMAIN"
    assert soa(answer).name == dns.name.from_text("in-addr.arpa.")


def test_what_is_not_answered_is_refused() -> None:
    world = alone()
    assert verdict(world.ask("gw", "AXFR")) == "REFUSED"
    assert verdict(world.ask("version.bind", "TXT", rdclass="CH")) == "REFUSED"


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_the_answer_fits_what_the_client_takes_and_says_when_it_was_cut() -> None:
    """RFC 1035 section 4.2.1: 512 bytes; RFC 6891 section 6.2.3: what EDNS says; more than 1232 are not sent anyway."""
    many = Alone(Book({"many": [bytes((10, 1, n >> 8, n & 255)) for n in range(200)]}))
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 512),
        ({"use_edns": 0, "payload": 100}, 512),
        ({"use_edns": 0, "payload": 900}, 900),
        ({"use_edns": 0, "payload": 4096}, 1232),
    ]
    for options, limit in cases:
        raw = many.raw(query("many", **options).to_wire())
        assert raw is not None
        assert len(raw) <= limit
        assert dns.message.from_wire(raw, raise_on_truncation=False).flags & dns.flags.TC
    whole = many.raw(query("many").to_wire(), stream=True)
    assert whole is not None
    answer = dns.message.from_wire(whole)
    assert not answer.flags & dns.flags.TC
    assert len(texts(answer)) == 200


def test_edns_is_answered_with_edns_and_only_then() -> None:
    """RFC 6891 section 6.1.1."""
    world = alone()
    assert world.ask("gw").edns == -1
    answer = world.ask("gw", use_edns=0, payload=1400, want_dnssec=True)
    assert (answer.edns, answer.payload, answer.ednsflags) == (0, 1232, 0)


def test_a_version_of_edns_that_is_not_spoken_is_badvers() -> None:
    """RFC 6891 section 6.1.3: and the answer says which version is."""
    world = alone()
    answer = world.ask("gw", use_edns=1)
    assert answer.rcode() == dns.rcode.BADVERS
    assert answer.edns == 0
    assert not answer.answer
    assert world.server.drops["answered-badvers"] == 1


# -- what is no query -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0", bytes(11), query("gw").to_wire()[:11]])
def test_a_message_too_short_for_a_header_is_dropped(data: bytes) -> None:
    world = alone()
    assert world.raw(data) is None
    assert world.server.drops["bad-message"] == 1


def test_responses_are_dropped_never_answered() -> None:
    """Or two servers might answer each other for ever."""
    world = alone()
    data = bytearray(query("gw").to_wire())
    data[2] |= 0x80
    assert world.raw(bytes(data)) is None
    data[5] = 9  # nor broken ones
    assert world.raw(bytes(data)) is None
    assert world.server.drops["bad-message"] == 2


def header(raw: bytes | None) -> tuple[int, int, int]:
    """(id, rcode, length); the counts are all zero."""
    assert raw is not None
    identifier, flags, *counts = struct.unpack("!6H", raw[:12])
    assert flags & 0x8000
    assert counts == [0, 0, 0, 0]
    return identifier, flags & 15, len(raw)


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_operations_are_not_implemented(opcode: int) -> None:
    data = bytearray(query("gw").to_wire())
    data[2] |= opcode << 3
    raw = alone().raw(bytes(data))
    assert header(raw) == (4711, Rcode.NOTIMP, 12)
    assert raw is not None
    assert raw[2] >> 3 & 15 == opcode


def damaged(change: Callable[[bytearray], object]) -> bytes:
    data = bytearray(query("gw.lan.test").to_wire())
    change(data)
    return bytes(data)


def put(offset: int, *values: int) -> Callable[[bytearray], object]:
    def change(data: bytearray) -> None:
        data[offset : offset + len(values)] = bytes(values)

    return change


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(damaged(put(4, 0, 0)), id="no question"),
        pytest.param(damaged(put(4, 0, 2)), id="two questions"),
        pytest.param(damaged(put(6, 0, 1)), id="an answer"),
        pytest.param(damaged(put(8, 0, 1)), id="an authority"),
        pytest.param(damaged(put(10, 0xFF, 0xFF)), id="65535 additionals"),
        pytest.param(damaged(put(10, 0, 1)), id="an additional that is not there"),
        pytest.param(damaged(lambda data: data.pop()), id="cut in the question"),
        pytest.param(damaged(lambda data: data.append(0)), id="bytes behind the end"),
        pytest.param(damaged(put(12, 0xC0, 12)), id="a pointer to itself"),
        pytest.param(damaged(put(12, 0xC0, 200)), id="a pointer forward"),
        pytest.param(damaged(put(12, 0x40)), id="a reserved kind of label"),
        pytest.param(damaged(put(12, 63)), id="a label longer than the message"),
    ],
)
def test_a_malformed_query_is_a_format_error(data: bytes) -> None:
    """RFC 1035 section 4.1.1: FORMERR with the id that was asked with, and nothing of what was not understood."""
    world = alone()
    assert header(world.raw(data)) == (4711, Rcode.FORMERR, 12)
    assert world.server.drops["answered-formerr"] == 1


def test_two_opt_records_are_a_format_error() -> None:
    """RFC 6891 section 6.1.1."""
    data = bytearray(query("gw", use_edns=0).to_wire())
    data[11] = 2
    data += data[-11:]
    assert header(alone().raw(bytes(data)))[1] == Rcode.FORMERR


@given(data=st.binary(max_size=100), head=st.booleans(), seed=st.integers(0, 1 << 32))
def test_dns_messages_of_any_bytes_are_answered_or_counted(data: bytes, head: bool, seed: int) -> None:
    """Never an exception: arbitrary bytes, arbitrary bytes behind a sound header, a sound query with bytes changed."""
    world = alone(domain="lan.test")
    if head:
        data = struct.pack("!6H", 7, 0x0100, 1, 0, 0, seed & 1) + data
    rng = random.Random(seed)
    sound = bytearray(query("guest.lan.test", use_edns=0).to_wire())
    for _ in range(rng.randrange(1, 4)):
        sound[rng.randrange(len(sound))] = rng.randrange(256)
    for message in (data, bytes(sound)):
        answer = world.raw(message, stream=bool(seed & 2))
        assert answer is None or answer[:2] == message[:2]
        if answer is None:
            assert world.server.drops["bad-message"]


@given(data=st.binary(max_size=120))
def test_responses_of_any_bytes_are_read_or_refused(data: bytes) -> None:
    for message in (data, b"\0\7\x81\x80\0\1\0\1\0\0\0\0" + data):
        try:
            wire.parse_response(message)
        except WireError:
            continue


@given(labels=st.lists(st.binary(min_size=1, max_size=63), max_size=4))
def test_names_of_any_bytes_are_asked_without_harm(labels: list[bytes]) -> None:
    """Dots, zeros, backslashes in labels: they are names like any other, and unknown."""
    world = alone(domain="lan.test")
    for suffix in ((), (b"lan", b"test"), (b"in-addr", b"arpa"), (b"ip6", b"arpa")):
        name = dns.name.Name((*labels, *suffix, b""))
        data = dns.message.make_query(name, "PTR").to_wire()
        assert world.raw(data) is not None


# -- faults -----------------------------------------------------------------------------------------------------------


def test_faults_happen_as_often_as_asked_and_to_whom_they_are_meant_for() -> None:
    world = alone()
    fault = world.server.faults.rcode(Rcode.SERVFAIL, times=2, when=lambda request: request.name == "api.test")
    assert verdict(world.ask("gw")) == "NOERROR"
    assert [verdict(world.ask("api.test")) for _ in range(3)] == ["SERVFAIL", "SERVFAIL", "NOERROR"]
    assert fault.happened == 2
    again = world.server.faults.rcode(Rcode.NXDOMAIN)
    failed = world.ask("gw")
    assert verdict(failed) == "NXDOMAIN"
    assert (failed.answer, failed.authority) == ([], [])
    assert world.ask("nobody").authority == []
    world.server.faults.remove(again)
    assert verdict(world.ask("gw")) == "NOERROR"


def test_a_dropped_question_and_a_late_answer() -> None:
    world = alone()
    data = query("gw").to_wire()
    world.server.faults.inject(drop=True, times=1)
    assert world.raw(data) is None
    assert world.server.drops["fault"] == 1
    world.server.faults.inject(delay=1.5, times=1)
    world.said.clear()
    world.server.handle(data, world.said.append)
    assert world.said == []
    world.scheduler.now = int(1.4 * NS_PER_S)
    world.scheduler.run_timers()
    assert world.said == []
    world.scheduler.now = int(1.5 * NS_PER_S)
    world.scheduler.run_timers()
    assert len(world.said) == 1
    world.server.faults.inject(delay=1)
    world.server.handle(data, world.said.append)
    world.server.close()  # what is held back is forgotten
    world.scheduler.now = 9 * NS_PER_S
    world.scheduler.run_timers()
    assert len(world.said) == 1


def test_wrong_answers_and_cut_ones() -> None:
    world = alone()
    lie = world.server.faults.answer("203.0.113.1", "2001:db8::bad")
    assert texts(world.ask("gw")) == ["203.0.113.1"]
    lied = world.ask("nobody", "AAAA")
    assert (texts(lied), verdict(lied), lied.authority) == (["2001:db8::bad"], "NOERROR", [])
    assert lied.answer[0].ttl == 0
    assert verdict(world.ask("gw", "MX")) == "NODATA"
    world.server.faults.remove(lie)
    world.server.faults.truncate()
    raw = world.raw(query("gw").to_wire())
    assert raw is not None
    cut = dns.message.from_wire(raw, raise_on_truncation=False)
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    nothing = world.raw(query("nobody").to_wire())
    assert nothing is not None
    assert not dns.message.from_wire(nothing, raise_on_truncation=False).authority
    whole = world.raw(query("gw").to_wire(), stream=True)
    assert whole is not None
    assert texts(dns.message.from_wire(whole)) == ["10.0.2.2"]
    world.server.faults.clear()
    world.server.faults.inject(alter=lambda request, response: None)
    assert world.raw(query("gw").to_wire()) is None
    assert world.server.drops["fault"] == 1


def test_faults_that_would_do_nothing_are_refused() -> None:
    faults = alone().server.faults
    with pytest.raises(ValueError, match="drops, delays or alters"):
        faults.inject()
    with pytest.raises(ValueError, match="not negative"):
        faults.inject(delay=-1)
    with pytest.raises(ValueError, match="at least 1"):
        faults.inject(drop=True, times=0)


# -- forwarding -------------------------------------------------------------------------------------------------------


class Elsewhere:
    """A forwarder that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bool, Callable[[dns.message.Message | None], None]]] = []

    def forward(
        self, name: dns.name.Name, rdtype: int, dnssec: bool, done: Callable[[dns.message.Message | None], None]
    ) -> None:
        self.asked.append((name.to_text(), dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rdtype)), dnssec, done))


def test_what_is_not_ours_is_asked_elsewhere_and_what_is_ours_never() -> None:
    upstream = Elsewhere()
    world = alone(domain="lan.test", forwarder=upstream)
    for name, rdtype in (
        ("gw", "A"), ("nobody", "A"), ("nobody", "AAAA"), ("nobody.lan.test", "A"), ("lan.test", "MX"),
        ("api.test", "AAAA"), ("x.invalid", "A"), ("x.localhost", "A"), ("9.2.0.10.in-addr.arpa", "PTR"),
        ("2.2.0.10.in-addr.arpa", "PTR"), ("1.1.168.192.in-addr.arpa", "PTR"), ("1.1.254.169.in-addr.arpa", "PTR"),
        (dns.reversename.from_address("fe80::1").to_text(), "PTR"),
        (dns.reversename.from_address("fd12::1").to_text(), "PTR"),
    ):  # fmt: skip
        answer = world.ask(name, rdtype)
        assert answer.flags & dns.flags.AA, name
        assert answer.flags & dns.flags.RA
    assert upstream.asked == []
    for name, rdtype in (("example.com", "A"), ("com", "NS"), (".", "NS"), ("9.9.9.9.in-addr.arpa", "PTR")):
        world.server.handle(query(name, rdtype, want_dnssec=rdtype == "NS").to_wire(), world.said.append)
    assert [(name.strip(".") or ".", rdtype, dnssec) for name, rdtype, dnssec, _ in upstream.asked] == [
        ("example.com", "A", False), ("com", "NS", True), (".", "NS", True), ("9.9.9.9.in-addr.arpa", "PTR", False)
    ]  # fmt: skip


def test_a_forwarded_answer_is_passed_on_under_our_header() -> None:
    upstream = Elsewhere()
    world = alone(forwarder=upstream)
    world.server.handle(query("WWW.example.com", id=99).to_wire(), world.said.append)
    response = dns.message.make_response(query("www.example.com", id=5))
    response.flags |= dns.flags.AA | dns.flags.AD
    response.answer = [dns.rrset.from_text("www.example.com.", 300, "IN", "A", "192.0.2.80")]
    upstream.asked[0][3](response)
    assert world.said[0] is not None
    answer = dns.message.from_wire(world.said[0])
    assert answer.id == 99
    assert answer.question[0].name.to_text() == "WWW.example.com."
    assert texts(answer) == ["192.0.2.80"]
    assert answer.flags & dns.flags.RA
    assert not answer.flags & (dns.flags.AA | dns.flags.AD)


def passed_on(rcode: int, **options: Any) -> dns.message.Message:
    """What a client is told of a response with `rcode`."""
    upstream = Elsewhere()
    world = alone(forwarder=upstream)
    asked = query("www.example.com", **options)
    world.server.handle(asked.to_wire(), world.said.append)
    response = dns.message.make_response(query("www.example.com", use_edns=0))
    response.set_rcode(dns.rcode.Rcode.make(rcode))
    upstream.asked[0][3](response)
    assert world.said[0] is not None
    return dns.message.from_wire(world.said[0])


def test_the_verdict_from_elsewhere_is_passed_on() -> None:
    """An extended one only to who speaks EDNS (RFC 6891 section 6.1.3); DO is copied (RFC 3225 section 3)."""
    assert verdict(passed_on(dns.rcode.NXDOMAIN)) == "NXDOMAIN"
    assert verdict(passed_on(dns.rcode.NOTAUTH, use_edns=0)) == "NOTAUTH"
    assert passed_on(15).rcode() == 15
    assert passed_on(16, use_edns=0).rcode() == 16
    assert passed_on(16).rcode() == dns.rcode.SERVFAIL
    assert passed_on(0, use_edns=0, want_dnssec=True).ednsflags & dns.flags.DO
    assert not passed_on(0, use_edns=0).ednsflags
    assert passed_on(0).edns == -1


def test_without_a_response_from_elsewhere_it_is_our_failure() -> None:
    upstream = Elsewhere()
    world = alone(forwarder=upstream)
    world.server.handle(query("example.com").to_wire(), world.said.append)
    upstream.asked[0][3](None)
    assert world.said[0] is not None
    assert verdict(dns.message.from_wire(world.said[0])) == "SERVFAIL"


def test_who_does_not_want_recursion_does_not_get_it() -> None:
    world = alone(forwarder=Elsewhere())
    assert verdict(world.ask("example.com", flags=0)) == "REFUSED"
    assert texts(world.ask("gw", flags=0)) == ["10.0.2.2"]


def test_a_ttl_that_is_none_is_refused() -> None:
    for bad in (-1, 1 << 31):
        with pytest.raises(ValueError, match="TTL"):
            alone(ttl=bad)
    assert alone(ttl=(1 << 31) - 1).ask("gw").answer[0].ttl == (1 << 31) - 1
