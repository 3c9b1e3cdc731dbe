"""A gateway that serves DNS and a client on its cable, in virtual time; and a server with nothing around it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rcode

from stack import Network, Stack
from stack.link import cable
from stack.scheduler import Scheduler
from stack.services.dns_server import DnsServer, Forwarder
from stack.services.dns_service import DnsConfig, DnsService
from stack.services.names import Names, NameSource, StaticNames
from stack.testing.clock import ManualClock
from stack.wire import dns as wire

SERVER4, SERVER6 = "10.0.2.2", "fd00::2"
CLIENT = "10.0.2.15"


class Book:
    """A source of names that is two dictionaries."""

    def __init__(self, names: dict[str, list[bytes]]) -> None:
        self.book = names

    def addresses(self, name: str) -> list[bytes]:
        return self.book.get(name, [])

    def names(self, address: bytes) -> list[str]:
        return [name for name, addresses in self.book.items() if address in addresses]


class Alone:
    """A server, sans-IO: what is asked is answered in the same call, or collected."""

    def __init__(
        self,
        own: NameSource,
        hosts: dict[str, list[str]] | None = None,
        *,
        domain: str | None = None,
        ttl: int = 0,
        forwarder: Forwarder | None = None,
    ) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.names = Names(own, StaticNames(lambda: hosts or {}), domain=lambda: domain)
        self.server = DnsServer(self.names, self.scheduler, ttl=ttl, forwarder=forwarder)
        self.said: list[bytes | None] = []

    def raw(self, data: bytes, *, stream: bool = False) -> bytes | None:
        """The one answer to `data`."""
        self.said.clear()
        self.server.handle(data, self.said.append, stream=stream)
        assert len(self.said) == 1
        return self.said[0]

    def ask(self, name: str, rdtype: str = "A", **options: Any) -> dns.message.Message:
        answer = self.raw(query(name, rdtype, **options).to_wire())
        assert answer is not None
        return dns.message.from_wire(answer)


def query(name: str, rdtype: str = "A", **options: Any) -> dns.message.Message:
    return dns.message.make_query(name, rdtype, id=options.pop("id", 4711), **options)


def texts(message: dns.message.Message) -> list[str]:
    """The records of the answer."""
    return [rdata.to_text() for rrset in message.answer for rdata in rrset]


def verdict(message: dns.message.Message) -> str:
    """ "NOERROR", "NXDOMAIN"..., or "NODATA" for no error and no records."""
    text = dns.rcode.to_text(message.rcode())
    return "NODATA" if text == "NOERROR" and not message.answer else text


@contextmanager
def lan(config: DnsConfig | None = None, **options: Any) -> Iterator[tuple[Stack, Stack, DnsService]]:
    """Gateway ``gw``, client, and the gateway's service."""
    with Network(clock=ManualClock(), rng=random.Random(3)) as network:
        left, right = cable(network.scheduler)
        gateway, client = network.stack("gw"), network.stack("client")
        gateway.add_interface(left, name="eth0", addresses=[f"{SERVER4}/24", f"{SERVER6}/64"])
        client.add_interface(right, name="eth0", addresses=[f"{CLIENT}/24", "fd00::15/64"])
        with network.lock:
            service = DnsService(gateway.netns, "eth0", config, uts=gateway.uts, hosts=lambda: gateway.hosts, **options)
        try:
            yield gateway, client, service
        finally:
            with network.lock:
                service.close()


def asked(client: Stack, message: dns.message.Message | bytes, server: str = SERVER4) -> bytes:
    """One datagram there, one back."""
    sockets = client.socket
    data = message if isinstance(message, bytes) else message.to_wire()
    with sockets.socket(sockets.AF_INET6 if ":" in server else sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((server, wire.PORT))
        sock.send(data)
        answer: bytes = sock.recv(65535)
        return answer


def framed(*messages: dns.message.Message | bytes) -> bytes:
    """As they go onto a stream."""
    raws = [each if isinstance(each, bytes) else each.to_wire() for each in messages]
    return b"".join(len(raw).to_bytes(2, "big") + raw for raw in raws)


def read_framed(sock: Any) -> bytes:
    """The next message of a stream."""
    length = int.from_bytes(exactly(sock, 2), "big")
    return exactly(sock, length)


def exactly(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        block = sock.recv(size - len(data))
        assert block, f"the stream ended after {len(data)} of {size} bytes"
        data += block
    return data
