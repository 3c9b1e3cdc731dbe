"""The DHCPv6 service on an interface: a client on the other end of the cable, and what router advertisements say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import dns.message
import pytest

from stack import Network, Stack
from stack.errors import NetError
from stack.link import cable
from stack.scheduler import NS_PER_S
from stack.services.dhcp6 import Dhcp6Config
from stack.services.dhcp6_service import Dhcp6Service
from stack.services.dns_service import DnsService
from stack.services.names import NameSource
from stack.services.router_advertisement import RouterAdvertiser, RouterConfig
from stack.testing.clock import ManualClock
from stack.tests.services.dns_world import asked, query, texts
from stack.wire import dhcp6
from stack.wire.dhcp6 import Dhcp6Message, Identity, MessageType, Option
from stack.wire.router import PrefixInformation

OTHER = PrefixInformation(IPv6Address("fd00:bad::").packed, 64)
DUID = dhcp6.link_layer_duid(b"\x02guest")


@contextmanager
def lan(config: Dhcp6Config | None = None, **options: Any) -> Iterator[tuple[Stack, Stack, Dhcp6Service]]:
    with Network(clock=ManualClock(), rng=random.Random(3)) as network:
        left, right = cable(network.scheduler)
        gateway, client = network.stack("gw"), network.stack("client")
        gateway.add_interface(left, name="eth0", addresses=["fd00::2/64"])
        client.add_interface(right, name="eth0")
        with network.lock:
            service = Dhcp6Service(gateway.netns, "eth0", config, uts=gateway.uts, **options)
        try:
            yield gateway, client, service
        finally:
            with network.lock:
                service.close()


def conversed(client: Stack, message: Dhcp6Message) -> tuple[Dhcp6Message, bytes]:
    """The answer, and who gave it."""
    network = client.network
    index = client.netns.interface("eth0").index
    with network.lock:
        endpoint = client.netns.udp.bind(bytes(16), 546)
        endpoint.send(message.emit(), (dhcp6.ALL_SERVERS, 547), oif=index)
        network.finish()
    assert isinstance(network, Network)
    network.advance(NS_PER_S)
    with network.lock:
        datagram = endpoint.recv()
        endpoint.close()
    assert datagram is not None
    assert datagram.src[1] == 547
    return dhcp6.parse(datagram.data), datagram.src[0]


def soliciting(*options: tuple[int, bytes]) -> Dhcp6Message:
    content = [(Option.CLIENT_ID, DUID), (Option.IA_NA, Identity(1).emit()), (Option.RAPID_COMMIT, b""), *options]
    return Dhcp6Message(MessageType.SOLICIT, 7, list(content))


def test_a_client_without_an_address_is_answered_at_its_link_local_one() -> None:
    with lan() as (gateway, client, service):
        answer, server = conversed(client, soliciting())
        assert answer.kind == MessageType.REPLY
        assert answer.get(Option.SERVER_ID) == dhcp6.link_layer_duid(gateway.netns.interface("eth0").mac)
        assert server[:2] == b"\xfe\x80"
        (value,) = answer.all(Option.IA_NA)
        given = dhcp6.parse_identity(value).addresses[0].address
        assert given == IPv6Address("fd00::1000").packed
        assert [lease.address for lease in service.leases()] == [given]


def test_leases_have_names_and_the_domain_is_the_nodes() -> None:
    shared: list[NameSource] = []
    with lan(leases=shared) as (gateway, client, _):
        gateway.setdomainname("lan.test")
        network = gateway.network
        with network.lock:
            named = DnsService(gateway.netns, "eth0", uts=gateway.uts, leases=shared)
            client.netns.add_address(client.netns.interface("eth0"), "fd00::1000/64")
            network.finish()
        answer, _ = conversed(client, soliciting((Option.FQDN, b"\0\3web")))
        assert answer.get(Option.DOMAINS) == b"\3lan\4test\0"
        found = asked(client, query("web.lan.test", "AAAA"), "fd00::2")
        assert texts(dns.message.from_wire(found)) == ["fd00::1000"]
        gateway.setdomainname("not..a domain")
        answer, _ = conversed(client, soliciting())
        assert answer.get(Option.DOMAINS) is None
        with network.lock:
            named.close()
    assert shared == []


def test_router_advertisements_say_that_there_is_dhcpv6() -> None:
    """RFC 4861 section 4.2: M where addresses are to be had, O with either."""
    for stateful in (True, False):
        with Network(clock=ManualClock(), rng=random.Random(3)) as network:
            left, _right = cable(network.scheduler)
            gateway = network.stack("gw")
            gateway.add_interface(left, name="eth0", addresses=["fd00::2/64"])
            with network.lock:
                advertiser = RouterAdvertiser(gateway.netns, "eth0")
                sent = advertiser.sent
                service = Dhcp6Service(gateway.netns, "eth0", Dhcp6Config(stateful=stateful), advertiser=advertiser)
                said = advertiser.advertisement()
                assert (said.managed, said.other) == (stateful, True)
                network.finish()
            network.advance(4 * NS_PER_S)
            assert advertiser.sent > sent  # hosts know soon
            with network.lock:
                service.close()
                said = advertiser.advertisement()
                assert (said.managed, said.other) == (False, False)
                advertiser.close()
                service.close()


def advertised(client: Stack) -> list[str]:
    """The client's addresses of the router's prefix."""
    return [str(each) for each in client.netns.interface("eth0").addresses if str(each).startswith("fd00")]


def test_router_advertisement_faults() -> None:
    """Dropped, late, and wrong, for whom they are meant."""
    with Network(clock=ManualClock(), rng=random.Random(3)) as network:
        left, right = cable(network.scheduler)
        gateway, client = network.stack("gw"), network.stack("client")
        gateway.add_interface(left, name="eth0", addresses=["fd00::2/64"])
        client.add_interface(right, name="eth0")
        with network.lock:
            advertiser = RouterAdvertiser(gateway.netns, "eth0", RouterConfig(reply_delay=0))
            network.finish()
        network.advance(NS_PER_S)
        with network.lock:
            silence = advertiser.faults.inject(drop=True)
            client.netns.autoconf.enable(client.netns.interface("eth0"))
            network.finish()
        network.advance(60 * NS_PER_S)
        assert silence.happened >= 3  # it solicits three times (RFC 4861 section 10)
        assert advertised(client) == []
        assert gateway.netns.ip.drops["fault"] == silence.happened
        with network.lock:
            advertiser.faults.remove(silence)
            advertiser.faults.inject(delay=5, alter=lambda _, said: replace(said, prefixes=[OTHER]), times=1)
            advertiser.announce_dhcp6(managed=True, other=True)
            network.finish()
        network.advance(4 * NS_PER_S)
        assert advertised(client) == []
        network.advance(4 * NS_PER_S)
        assert [each[:9] for each in advertised(client)] == ["fd00:bad:"]
        with network.lock:
            advertiser.faults.inject(delay=500, times=1)
            advertiser.announce_dhcp6(managed=False, other=False)
            network.finish()
        network.advance(20 * NS_PER_S)
        with network.lock:
            advertiser.close()  # what is held back is forgotten


def test_a_taken_port_and_an_interface_without_an_address() -> None:
    with lan() as (gateway, _, service):
        with gateway.network.lock, pytest.raises(NetError, match="EADDRINUSE"):
            Dhcp6Service(gateway.netns, "eth0")
        with gateway.network.lock:
            left, _right = cable(gateway.network.scheduler)
            with pytest.raises(ValueError, match="no IPv6 address"):
                Dhcp6Service(gateway.netns, gateway.netns.add_interface(left, "bare"))
            service.close()
            service.close()
            Dhcp6Service(gateway.netns, "eth0").close()
