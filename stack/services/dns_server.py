"""A DNS server for the names of a LAN, sans-IO (RFC 1034, RFC 1035, RFC 2308, RFC 6891).

Theory of operation
-------------------
`DnsServer.handle` takes one message and calls `reply` once, with the answer or, to say nothing, None: at once or, for
what is asked elsewhere, later.
It answers with authority for what it knows (`stack.services.names`), for names without a dot and names in the LAN's
domain, known or not, and for what belongs nowhere else: reverse names of private addresses (RFC 6303), ``localhost``
and ``invalid`` (RFC 6761). Everything else goes to the forwarder. Without one there is nothing else: the LAN is the
whole world, and a name it does not have does not exist. (A refusal would say less, and resolvers take it for a broken
server: the C library reports a temporary failure, systemd-resolved tries again and again.)

A name that does not exist is NXDOMAIN; one that exists without records of the type asked for is an answer without
records. Both carry the SOA that says how long this may be remembered: as everything here not at all, unless configured,
for names change while a LAN lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any, Final, Protocol, TypeAlias

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from stack.errors import DropReason, Drops
from stack.scheduler import Scheduler
from stack.services.faults import Fault, Faults, Later
from stack.services.names import Names
from stack.wire import dns as wire
from stack.wire.dns import Rcode

_ADDRESS_TYPES: Final = (dns.rdatatype.A, dns.rdatatype.AAAA)
#: Questions about a server's zones as a whole, not about a name.
_TRANSFERS: Final = (dns.rdatatype.IXFR, dns.rdatatype.AXFR, dns.rdatatype.MAILB, dns.rdatatype.MAILA)
#: RFC 6303 section 4: asking the rest of the world about these tells it nothing and us nothing.
_LOCAL_NETWORKS: Final = tuple(
    ip_network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32",
        "::/127", "fc00::/7", "fe80::/10", "2001:db8::/32",
    )
)  # fmt: skip
_REVERSE4: Final = dns.name.from_text("in-addr.arpa.")
_REVERSE6: Final = dns.name.from_text("ip6.arpa.")
_INVALID: Final = "invalid"


Reply: TypeAlias = Callable[[bytes | None], None]


@dataclass(frozen=True, slots=True)
class DnsRequest:
    """One question."""

    name: str  #: lower case, without the final dot
    rdtype: int
    client: bytes  #: address; empty if it is not known
    stream: bool  #: came over TCP
    query: dns.message.Message

    @property
    def type_text(self) -> str:
        """As "AAAA", or "TYPE65280"."""
        return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(self.rdtype))


class Forwarder(Protocol):
    """Asks elsewhere; see `stack.services.host_dns`."""

    def forward(
        self, name: dns.name.Name, rdtype: int, dnssec: bool, done: Callable[[dns.message.Message | None], None]
    ) -> None:
        """Calls `done` once, now or later: with the response, or None if there is none. Never waits, never raises."""
        ...


class DnsFaults(Faults[DnsRequest, dns.message.Message]):
    """What goes wrong on purpose; `limits` are `times` and `when` of `inject`."""

    def rcode(self, rcode: Rcode, **limits: Any) -> Fault[DnsRequest, dns.message.Message]:
        """Answers are `rcode`, as `Rcode.SERVFAIL`, and nothing else."""

        def fail(_: DnsRequest, response: dns.message.Message) -> dns.message.Message:
            response.set_rcode(dns.rcode.Rcode.make(rcode))
            response.answer.clear()
            response.authority.clear()
            return response

        return self.inject(alter=fail, **limits)

    def truncate(self, **limits: Any) -> Fault[DnsRequest, dns.message.Message]:
        """Answers by datagram are cut to nothing, so that whoever asks must ask again over TCP."""
        when = limits.pop("when", lambda _: True)

        def cut(_: DnsRequest, response: dns.message.Message) -> dns.message.Message:
            response.flags |= dns.flags.TC
            response.answer.clear()
            response.authority.clear()
            return response

        return self.inject(alter=cut, when=lambda request: not request.stream and when(request), **limits)

    def answer(self, *addresses: str, **limits: Any) -> Fault[DnsRequest, dns.message.Message]:
        """Questions for addresses are answered with these, true or not."""
        packed = [ip_address(text).packed for text in addresses]
        when = limits.pop("when", lambda _: True)

        def lie(request: DnsRequest, response: dns.message.Message) -> dns.message.Message:
            rrset = wire.address_rrset(request.query.question[0].name, request.rdtype, 0, packed)
            response.set_rcode(dns.rcode.NOERROR)
            response.authority.clear()
            response.answer = [rrset] if rrset else []
            return response

        return self.inject(alter=lie, when=lambda each: each.rdtype in _ADDRESS_TYPES and when(each), **limits)


class DnsServer:
    """The protocol. `ttl`, seconds, is what answers may be remembered for; `forwarder` may be set at any time."""

    def __init__(self, names: Names, scheduler: Scheduler, *, ttl: int = 0, forwarder: Forwarder | None = None) -> None:
        if not 0 <= ttl < 1 << 31:
            raise ValueError(f"a TTL is 0 to 2147483647 seconds (RFC 2181 section 8), not {ttl}")
        self.names = names
        self.forwarder = forwarder
        self.faults = DnsFaults()
        self.queries = 0  #: that could be read
        self.drops = Drops()
        self._ttl = ttl
        self._later = Later(scheduler)

    def handle(self, data: bytes, reply: Reply, *, client: bytes = b"", stream: bool = False) -> None:
        """Answer one message. Never raises; what is no query is counted, and nothing is said to it."""
        try:
            query = wire.parse_query(data)
        except wire.RefusedError as refused:
            self.drops.count(f"answered-{refused.rcode.name.lower()}")
            reply(refused.answer)
            return
        except wire.UnanswerableError:
            self.drops.count(DropReason.BAD_MESSAGE)
            reply(None)
            return
        self.queries += 1
        question = query.question[0]
        request = DnsRequest(wire.text_of(question.name), int(question.rdtype), client, stream, query)
        fault = self.faults.take(request)
        if fault is not None and fault.drop:
            self.drops.count("fault")
            reply(None)
            return
        finish = partial(self._finish, request, fault, reply)
        response = self._answer(request)
        if response is not None:
            finish(response)
        elif self.forwarder is None or not query.flags & dns.flags.RD:
            finish(self._failure(query, Rcode.REFUSED))
        else:
            dnssec = bool(query.ednsflags & dns.flags.DO)
            self.forwarder.forward(
                question.name, request.rdtype, dnssec, lambda found: finish(self._forwarded(query, found))
            )

    def close(self) -> None:
        """Nothing more is said."""
        self._later.close()

    # -- what we know -------------------------------------------------------------------------------------------------

    def _answer(self, request: DnsRequest) -> dns.message.Message | None:
        """The response, or None for a question to ask elsewhere."""
        query = request.query
        question = query.question[0]
        if question.rdclass not in (dns.rdataclass.IN, dns.rdataclass.ANY) or request.rdtype in _TRANSFERS:
            return self._failure(query, Rcode.REFUSED)
        name = question.name
        if name.is_subdomain(_REVERSE4) or name.is_subdomain(_REVERSE6):
            return self._reverse(request, name)
        text = request.name
        addresses = self.names.lookup(text)
        if addresses or self.names.exists(text):
            if not text and self.forwarder is not None:
                return None  # about the root itself
            return self._known(request, name, addresses)
        if self.forwarder is None or not self._elsewhere(request):
            return self._missing(query, self._zone(text) or dns.name.root)
        return None

    def _elsewhere(self, request: DnsRequest) -> bool:
        """Whether a name we do not know may be known to others."""
        text = request.name
        if self._zone(text) is not None or text.rpartition(".")[2] == _INVALID:
            return False
        return "." in text or request.rdtype not in _ADDRESS_TYPES

    def _known(self, request: DnsRequest, name: dns.name.Name, addresses: list[bytes]) -> dns.message.Message:
        """A name that exists, with addresses or not."""
        response = self._response(request.query)
        for each in _ADDRESS_TYPES:
            if request.rdtype in (each, dns.rdatatype.ANY):
                rrset = wire.address_rrset(name, each, self._ttl, addresses)
                if rrset:
                    response.answer.append(rrset)
        if not response.answer:
            # A name of another domain that was set here is a zone of its own.
            zone = self._zone(request.name) or (dns.name.root if self.forwarder is None else name)
            soa = wire.soa_rrset(zone, self._server(), self._ttl)
            at_top = request.rdtype == dns.rdatatype.SOA and zone == name
            (response.answer if at_top else response.authority).append(soa)
        return response

    def _reverse(self, request: DnsRequest, name: dns.name.Name) -> dns.message.Message | None:
        address = wire.reversed_address(name)
        found = [] if address is None else self.names.reverse(address)
        query = request.query
        zone = _REVERSE4 if name.is_subdomain(_REVERSE4) else _REVERSE6
        if found:
            response = self._response(query)
            if request.rdtype in (dns.rdatatype.PTR, dns.rdatatype.ANY):
                targets = [target for text in found if (target := _name(text)) is not None]
                response.answer.append(wire.pointer_rrset(name, self._ttl, targets))
            else:
                response.authority.append(wire.soa_rrset(zone, self._server(), self._ttl))
            return response
        if self.forwarder is not None and not (address is not None and _is_local(address)):
            return None
        if address is not None:
            return self._missing(query, zone)
        response = self._response(query)  # above addresses: it exists, without records
        response.authority.append(wire.soa_rrset(zone, self._server(), self._ttl))
        return response

    def _zone(self, text: str) -> dns.name.Name | None:
        """The domain, if the name is in it."""
        domain = self.names.domain
        return _name(domain) if domain and (text == domain or text.endswith("." + domain)) else None

    def _server(self) -> dns.name.Name:
        """Our own name as a server."""
        return _name(self.names.qualified("ns")) or dns.name.root

    # -- responses ----------------------------------------------------------------------------------------------------

    def _response(self, query: dns.message.Message) -> dns.message.Message:
        response = wire.respond(query, recursion=self.forwarder is not None)
        response.flags |= dns.flags.AA
        return response

    def _missing(self, query: dns.message.Message, zone: dns.name.Name) -> dns.message.Message:
        response = self._response(query)
        response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(wire.soa_rrset(zone, self._server(), self._ttl))
        return response

    def _failure(self, query: dns.message.Message, rcode: Rcode) -> dns.message.Message:
        response = wire.respond(query, recursion=self.forwarder is not None)
        response.set_rcode(dns.rcode.Rcode.make(rcode))
        return response

    def _forwarded(self, query: dns.message.Message, found: dns.message.Message | None) -> dns.message.Message:
        """Someone else's response as ours: its records and its verdict, our header."""
        if found is None:
            return self._failure(query, Rcode.SERVFAIL)
        response = wire.respond(query, recursion=True)
        if response.edns >= 0:
            response.ednsflags = query.ednsflags & dns.flags.DO  # RFC 3225 section 3
        rcode = found.rcode()
        response.set_rcode(rcode if rcode < 16 or response.edns >= 0 else dns.rcode.SERVFAIL)
        response.answer = found.answer
        response.authority = found.authority
        response.additional = found.additional
        return response

    def _finish(
        self,
        request: DnsRequest,
        fault: Fault[DnsRequest, dns.message.Message] | None,
        reply: Reply,
        response: dns.message.Message,
    ) -> None:
        if fault is not None and fault.alter is not None:
            altered = fault.alter(request, response)
            if altered is None:
                self.drops.count("fault")
                reply(None)
                return
            response = altered
        limit = wire.MAXIMUM_STREAM if request.stream else wire.payload_limit(request.query)
        answer = wire.emit(response, limit)
        self._later.call(0 if fault is None else fault.delay, lambda: reply(answer))


def _name(text: str) -> dns.name.Name | None:
    """Names come from clients too: what is none gets no record."""
    try:
        return wire.name_from_text(text)
    except ValueError:
        return None


def _is_local(address: bytes) -> bool:
    found = ip_address(address)
    return any(found in network for network in _LOCAL_NETWORKS if network.version == found.version)
