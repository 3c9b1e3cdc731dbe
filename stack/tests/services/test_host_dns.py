"""Questions passed on to resolvers of the host: real sockets on 127.0.0.1, the Network's time moved by hand."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest

from stack.scheduler import Scheduler
from stack.services.host_dns import ROUNDS, TRY, HostDns, host_resolvers
from stack.tests.services.dns_world import framed, read_framed, texts

NAME = dns.name.from_text("www.example.com")
A = dns.rdatatype.A


class Resolver:
    """A resolver of the host that says what the test says."""

    def __init__(self) -> None:
        self.stream = socket.create_server(("127.0.0.1", 0))
        self.stream.settimeout(5)
        self.address = self.stream.getsockname()
        self.datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagram.bind(self.address)
        self.datagram.settimeout(5)

    def take(self) -> tuple[dns.message.Message, Any]:
        data, client = self.datagram.recvfrom(512)
        return dns.message.from_wire(data), client

    @property
    def silent(self) -> bool:
        return not select.select([self.datagram], [], [], 0)[0]

    def close(self) -> None:
        self.stream.close()
        self.datagram.close()


class World:
    def __init__(self, *resolvers: Resolver, seed: int = 1, **options: Any) -> None:
        self.scheduler = Scheduler(rng=random.Random(seed))
        self.forwarder = HostDns(self.scheduler, [each.address for each in resolvers], **options)
        self.found: list[dns.message.Message | None] = []

    def ask(self, name: dns.name.Name = NAME, rdtype: int = A, *, dnssec: bool = False) -> None:
        self.forwarder.forward(name, rdtype, dnssec, self.found.append)

    def turn(self) -> None:
        """The kernel has something; take it, as a Network does."""
        assert select.select([self.forwarder.hosts], [], [], 5)[0] or self.forwarder.hosts.arm()
        while self.forwarder.hosts.service(64):
            pass

    def until_found(self) -> dns.message.Message | None:
        for _ in range(100):
            if self.found:
                return self.found.pop()
            self.turn()
        raise AssertionError("no answer after a hundred turns")

    def pass_time(self, delay: int = TRY) -> None:
        self.scheduler.now += delay
        self.scheduler.run_timers()


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    resolver = Resolver()
    yield resolver
    resolver.close()


@pytest.fixture
def world(resolver: Resolver) -> Iterator[World]:
    world = World(resolver)
    yield world
    world.forwarder.close()


def response(query: dns.message.Message, *addresses: str) -> dns.message.Message:
    message = dns.message.make_response(query)
    if addresses:
        message.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *addresses)]
    return message


def test_a_question_goes_out_and_its_answer_comes_back(world: World, resolver: Resolver) -> None:
    world.ask(dnssec=True)
    query, client = resolver.take()
    assert query.question[0].name == NAME
    assert query.flags & dns.flags.RD
    assert (query.edns, query.payload) == (0, 1232)
    assert query.ednsflags & dns.flags.DO
    assert world.found == []
    resolver.datagram.sendto(response(query, "192.0.2.80").to_wire(), client)
    found = world.until_found()
    assert found is not None
    assert texts(found) == ["192.0.2.80"]
    assert len(world.forwarder) == 0
    assert len(world.forwarder.hosts) == 0


def test_identifiers_and_ports_are_drawn_from_the_networks_randomness(resolver: Resolver) -> None:
    """RFC 5452 section 9.2: both; a seed reproduces them."""
    runs = []
    for seed in (1, 1, 2):
        world = World(resolver, seed=seed)
        world.ask()
        world.ask(dns.name.from_text("other.example.com"))
        runs.append([(query.id, client[1]) for query, client in (resolver.take(), resolver.take())])
        world.forwarder.close()
    assert runs[0] == runs[1] != runs[2]
    assert len({port for run in runs for _, port in run}) == 4
    assert len({identifier for run in runs for identifier, _ in run}) == 4


def test_what_does_not_answer_the_question_is_waited_past(world: World, resolver: Resolver) -> None:
    world.ask()
    query, client = resolver.take()
    forged = response(query, "203.0.113.1")
    forged.id ^= 1
    other = response(query, "203.0.113.2")
    other.question = [dns.rrset.RRset(dns.name.from_text("evil.test"), dns.rdataclass.IN, A)]
    empty = response(query, "203.0.113.3")
    empty.question = []
    for data in (forged.to_wire(), other.to_wire(), empty.to_wire(), query.to_wire(), b"", b"\xff" * 40):
        resolver.datagram.sendto(data, client)
    resolver.datagram.sendto(response(query, "192.0.2.80").to_wire(), client)
    found = world.until_found()
    assert found is not None
    assert texts(found) == ["192.0.2.80"]
    assert world.forwarder.drops["not-what-was-asked"] == 3
    assert world.forwarder.drops["bad-response"] == 3


def test_nobody_else_can_answer(world: World, resolver: Resolver) -> None:
    """The socket is connected: the kernel refuses datagrams of anybody else."""
    world.ask()
    query, client = resolver.take()
    stranger = Resolver()
    stranger.datagram.sendto(response(query, "203.0.113.1").to_wire(), client)
    stranger.close()
    resolver.datagram.sendto(response(query, "192.0.2.80").to_wire(), client)
    found = world.until_found()
    assert found is not None
    assert texts(found) == ["192.0.2.80"]


def test_a_silent_resolver_gives_way_to_the_next_and_at_last_there_is_no_answer(resolver: Resolver) -> None:
    second = Resolver()
    world = World(resolver, second)
    world.ask()
    for number in range(ROUNDS * 2):
        asked, idle = (resolver, second) if number % 2 == 0 else (second, resolver)
        asked.take()
        assert idle.silent
        assert world.found == []
        world.pass_time(TRY - 1)
        assert world.found == []
        world.pass_time(1)
    assert world.found == [None]
    assert world.forwarder.drops["resolver-silent"] == ROUNDS * 2
    assert len(world.forwarder.hosts) == 0
    world.forwarder.close()
    second.close()


def test_a_resolver_that_is_not_there_is_not_waited_for(resolver: Resolver) -> None:
    """ICMP says so: the next one is asked at once."""
    gone = Resolver()
    gone.close()
    world = World(gone, resolver)
    world.ask()
    world.turn()
    query, client = resolver.take()
    resolver.datagram.sendto(response(query, "192.0.2.80").to_wire(), client)
    assert world.until_found() is not None
    assert world.forwarder.drops["resolver-unreachable"] == 1
    world.forwarder.close()


def test_an_answer_that_was_cut_is_asked_for_over_tcp(world: World, resolver: Resolver) -> None:
    world.ask()
    query, client = resolver.take()
    cut = response(query)
    cut.flags |= dns.flags.TC
    resolver.datagram.sendto(cut.to_wire(), client)
    world.turn()
    connection, _ = resolver.stream.accept()
    with connection:
        connection.settimeout(5)
        again = dns.message.from_wire(read_framed(connection))
        assert again.question == query.question
        addresses = [f"192.0.2.{number}" for number in range(1, 200)]
        data = framed(response(again, *addresses).to_wire(max_size=65535))
        connection.sendall(data[:1000])
        world.turn()
        assert world.found == []
        connection.sendall(data[1000:])
        found = world.until_found()
    assert found is not None
    assert sorted(texts(found)) == sorted(addresses)
    assert len(world.forwarder.hosts) == 0


def test_a_stream_that_ends_too_early_is_no_answer(world: World, resolver: Resolver) -> None:
    world.ask()
    query, client = resolver.take()
    cut = response(query)
    cut.flags |= dns.flags.TC
    resolver.datagram.sendto(cut.to_wire(), client)
    world.turn()
    connection, _ = resolver.stream.accept()
    connection.sendall(b"\0\x20short")
    connection.close()
    for _ in range(10):
        world.turn()
        if not resolver.silent:
            break
    resolver.take()  # the second round
    assert world.found == []


def test_the_same_question_goes_out_once(world: World, resolver: Resolver) -> None:
    """RFC 5452 section 5."""
    for name in ("www.example.com", "WWW.EXAMPLE.COM"):
        world.ask(dns.name.from_text(name))
    query, client = resolver.take()
    assert resolver.silent
    resolver.datagram.sendto(response(query, "192.0.2.80").to_wire(), client)
    assert world.until_found() is not None
    assert world.until_found() is not None
    assert len(world.found) == 0


def test_questions_under_way_are_bounded(resolver: Resolver) -> None:
    world = World(resolver, limit=3)
    for number in range(5):
        world.ask(dns.name.from_text(f"{number}.example.com"))
    assert world.found == [None, None]
    assert world.forwarder.drops["too-many-questions"] == 2
    assert len(world.forwarder) == 3
    world.forwarder.close()
    world.forwarder.close()
    assert world.found == [None, None]


def test_resolvers_of_the_host(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("# none\nnameserver 192.0.2.1\nsearch a b\nnameserver\nnameserver fe80::1%eth0\nnameserver x\n")
    assert host_resolvers(str(conf)) == ["192.0.2.1", "fe80::1%eth0"]
    assert host_resolvers(str(tmp_path / "none")) == ["127.0.0.1"]
    with pytest.raises(ValueError, match="no address"):
        HostDns(Scheduler(rng=random.Random(1)), ["no address"])
