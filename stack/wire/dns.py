"""DNS messages: queries read with suspicion, answers written to fit (RFC 1035, RFC 2181, RFC 6891).

The format itself - names and their compression, the types of records, EDNS - is dnspython's. Here is what a server on a
hostile link has to decide around it: which queries are worth reading at all, how one that is not is answered, and how
much fits into a datagram.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from stack.wire.error import WireError

PORT: Final = 53
HEADER: Final = struct.Struct("!HHHHHH")  # id, flags, counts of questions, answers, authorities, additionals
#: What fits into a datagram for who does not say how much it takes (RFC 1035 section 4.2.1), bytes.
MINIMUM_PAYLOAD: Final = 512
#: What is offered and taken by datagram at most, bytes: never fragmented, as agreed on DNS Flag Day 2020 (RFC 9715).
MAXIMUM_PAYLOAD: Final = 1232
MAXIMUM_STREAM: Final = 65535  # of a message on a stream, RFC 1035 section 4.2.2

_QR: Final = 0x8000
_RD: Final = 0x0100
_OPCODE: Final = 0x7800
_OPCODE_SHIFT: Final = 11
#: OPT (RFC 6891) and perhaps TSIG (RFC 8945): a query has no more records than these.
_MAX_ADDITIONAL: Final = 2
#: Also what dnspython raises for bytes no record can hold, besides its own exceptions.
_UNREADABLE: Final = (dns.exception.DNSException, ValueError, struct.error, IndexError)


class Rcode(IntEnum):
    """RFC 1035 section 4.1.1, RFC 6891 section 9."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class UnanswerableError(WireError):
    """A message that is no query: too short for a header, or a response. Nothing is said to it."""


class RefusedError(WireError):
    """A query that is not answered but with `rcode`; `answer` is the message that says so."""

    def __init__(self, message: str, rcode: Rcode, answer: bytes) -> None:
        super().__init__(message)
        self.rcode = rcode
        self.answer = answer


def parse_query(data: bytes) -> dns.message.Message:
    """The query in `data`: exactly one question, no records but EDNS.

    Raises `UnanswerableError` for what must not be answered, or two servers might answer each other's errors for ever;
    `RefusedError` with FORMERR, NOTIMP or BADVERS for the rest.
    """
    if len(data) < HEADER.size:
        raise UnanswerableError(f"DNS message of {len(data)} bytes")
    identifier, flags, questions, answers, authorities, additionals = HEADER.unpack_from(data)
    if flags & _QR:
        raise UnanswerableError("a DNS response, where queries are taken")
    if flags & _OPCODE:
        raise _refusal(f"DNS operation {(flags & _OPCODE) >> _OPCODE_SHIFT}", Rcode.NOTIMP, identifier, flags)
    if questions != 1 or answers or authorities or additionals > _MAX_ADDITIONAL:
        raise _refusal("not one question", Rcode.FORMERR, identifier, flags)
    try:
        query = dns.message.from_wire(data)
    except _UNREADABLE as error:
        raise _refusal(f"a DNS query that cannot be read: {error}", Rcode.FORMERR, identifier, flags) from None
    if query.edns > 0:
        response = respond(query)
        response.set_rcode(dns.rcode.BADVERS)
        raise RefusedError(f"EDNS version {query.edns}", Rcode.BADVERS, response.to_wire())
    return query


def _refusal(why: str, rcode: Rcode, identifier: int, flags: int) -> RefusedError:
    """Answered with a header alone: what follows was not understood."""
    kept = flags & (_OPCODE | _RD)
    return RefusedError(why, rcode, HEADER.pack(identifier, _QR | kept | rcode, 0, 0, 0, 0))


def parse_response(data: bytes) -> dns.message.Message:
    """A response to a query of ours; one that was cut keeps what arrived. Raises WireError."""
    try:
        response = dns.message.from_wire(data, ignore_trailing=True, raise_on_truncation=False)
    except _UNREADABLE as error:
        raise WireError(f"a DNS response that cannot be read: {error}") from None
    if not response.flags & dns.flags.QR:
        raise WireError("a DNS query, where a response was due")
    return response


def make_query(name: dns.name.Name, rdtype: int, identifier: int, *, dnssec: bool = False) -> dns.message.Message:
    """A recursive query; `dnssec` asks for signatures along with the records (RFC 3225)."""
    return dns.message.make_query(
        name, dns.rdatatype.RdataType.make(rdtype), id=identifier, use_edns=0, payload=MAXIMUM_PAYLOAD,
        want_dnssec=dnssec,
    )  # fmt: skip


def respond(query: dns.message.Message, *, recursion: bool = False) -> dns.message.Message:
    """The response to `query`, empty so far; `recursion`: we forward what we do not know."""
    response = dns.message.make_response(
        query, recursion_available=recursion, our_payload=MAXIMUM_PAYLOAD if query.edns >= 0 else 0
    )
    response.ednsflags = 0  # nothing here is signed by us
    return response


def payload_limit(query: dns.message.Message) -> int:
    """Bytes of a datagram that whoever asked `query` takes (RFC 6891 section 6.2.3) and that we send."""
    if query.edns < 0:
        return MINIMUM_PAYLOAD
    return max(MINIMUM_PAYLOAD, min(query.payload, MAXIMUM_PAYLOAD))


def emit(response: dns.message.Message, limit: int) -> bytes:
    """The message in at most `limit` bytes: what does not fit is left out, and TC says so.

    Records stay in their order: chance would make two runs of one seed differ.
    """
    return response.to_wire(max_size=limit, prefer_truncation=True, want_shuffle=False)


# -- names and records ------------------------------------------------------------------------------------------------


def name_from_text(text: str) -> dns.name.Name:
    """A name as people write it, with or without the final dot. Raises ValueError."""
    try:
        return dns.name.from_text(text)
    except dns.exception.DNSException as error:
        raise ValueError(f"{text!r} is no domain name: {error}") from None


def text_of(name: dns.name.Name) -> str:
    """Lower case, without the final dot: how names are compared here. The root is the empty text."""
    return "" if name == dns.name.root else name.to_text(omit_final_dot=True).lower()


def reverse_name(address: bytes) -> dns.name.Name:
    """The name that PTR records of an address belong to."""
    text = str(IPv4Address(address) if len(address) == 4 else IPv6Address(address))
    return dns.reversename.from_address(text)


def reversed_address(name: dns.name.Name) -> bytes | None:
    """The address whose PTR record `name` is, None if it is none's."""
    try:
        text = dns.reversename.to_address(name)
    except (dns.exception.DNSException, ValueError):
        return None
    return IPv6Address(text).packed if ":" in text else IPv4Address(text).packed


def address_rrset(name: dns.name.Name, rdtype: int, ttl: int, addresses: Iterable[bytes]) -> dns.rrset.RRset:
    """A or AAAA records; addresses of the other family are left out."""
    kind = dns.rdatatype.RdataType.make(rdtype)
    width = 4 if kind == dns.rdatatype.A else 16
    rrset = dns.rrset.RRset(name, dns.rdataclass.IN, kind)
    for address in addresses:
        if len(address) == width:
            rrset.add(dns.rdata.from_wire(dns.rdataclass.IN, kind, address, 0, width), ttl)
    return rrset


def pointer_rrset(name: dns.name.Name, ttl: int, targets: Iterable[dns.name.Name]) -> dns.rrset.RRset:
    """PTR records."""
    rrset = dns.rrset.RRset(name, dns.rdataclass.IN, dns.rdatatype.PTR)
    for target in targets:
        rrset.add(dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.PTR, target.to_text()), ttl)
    return rrset


def soa_rrset(zone: dns.name.Name, server: dns.name.Name, ttl: int) -> dns.rrset.RRset:
    """The zone's SOA; its last number says how long a negative answer may be kept (RFC 2308 section 4)."""
    mailbox = dns.name.from_text("hostmaster", origin=None)
    try:
        responsible = mailbox.concatenate(zone)
    except dns.exception.DNSException:  # a zone whose name has no room for more
        responsible = zone
    # serial, refresh, retry, expire: nobody transfers this zone
    text = f"{server.to_text()} {responsible.to_text()} 1 3600 600 86400 {ttl}"
    soa = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.SOA, text)
    rrset = dns.rrset.RRset(zone, dns.rdataclass.IN, dns.rdatatype.SOA)
    rrset.add(soa, ttl)
    return rrset
