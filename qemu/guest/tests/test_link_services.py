"""What a gateway serves on a guest's link, as the guest's configuration says; no guest is needed for that."""

from __future__ import annotations

import random
from collections.abc import Iterator

import dns.message
import pytest

from qemu.guest.config import GuestConfig
from qemu.guest.errors import SetupError
from qemu.guest.link_services import LinkServices
from stack import Network, Stack
from stack.iface.interface import Interface
from stack.link import cable
from stack.testing.clock import ManualClock


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        yield network


def link(network: Network, name: str, *addresses: str) -> tuple[Stack, Interface]:
    """An interface of the gateway, and the node at the other end of its cable."""
    ours, theirs = cable(network.scheduler)
    gateway = network.stacks.get("gw") or network.stack("gw")
    client = network.stack(f"client-{name}")
    client.add_interface(theirs, name="eth0", addresses=[addresses[0].replace(".2/", ".15/")])
    return client, gateway.add_interface(ours, name=name, addresses=addresses)


def asked(client: Stack, server: str, name: str, rdtype: str = "A") -> list[str]:
    with client.socket.socket(2, 2) as sock:
        sock.settimeout(5)
        sock.sendto(dns.message.make_query(name, rdtype).to_wire(), (server, 53))
        answer = dns.message.from_wire(sock.recv(4096))
    return [rdata.to_text() for rrset in answer.answer for rdata in rrset]


def refused(client: Stack) -> bool:
    """Nobody answers questions."""
    with client.socket.socket(2, 2) as sock:
        sock.settimeout(5)
        sock.connect(("10.0.2.2", 53))
        sock.send(b"x")
        try:
            sock.recv(1)
        except ConnectionRefusedError:
            return True
    return False


def test_names_of_the_gateway_of_other_nodes_and_those_set(network: Network) -> None:
    client, interface = link(network, "eth0", "10.0.2.2/24")
    gateway = network.stacks["gw"]
    services = LinkServices(network, gateway, interface, GuestConfig())
    gateway.hosts["api.test"] = ["192.0.2.1"]
    network.stack("bare")
    assert asked(client, "10.0.2.2", "gateway") == asked(client, "10.0.2.2", "gw") == ["10.0.2.2"]
    assert asked(client, "10.0.2.2", "api.test") == ["192.0.2.1"]
    assert asked(client, "10.0.2.2", "client-eth0") == ["10.0.2.15"]
    assert asked(client, "10.0.2.2", "bare") == [], "a node without addresses is not at 127.0.0.1"
    assert services.dhcp is not None
    assert (services.dhcp6, services.advertiser, services.upstream) == (None, None, None)
    services.close()
    services.close()
    assert gateway.clients == []
    assert refused(client)


def test_guests_of_one_gateway_have_different_names_and_each_knows_all(network: Network) -> None:
    links = [link(network, f"eth{number}", f"10.0.{number + 2}.2/24") for number in range(3)]
    gateway = network.stacks["gw"]
    services = [LinkServices(network, gateway, interface, GuestConfig()) for _, interface in links]
    assert [each.dhcp.hostname for each in services if each.dhcp] == ["guest", "guest2", "guest3"]
    services[1].close()
    again = LinkServices(network, gateway, links[1][1], GuestConfig())
    assert again.dhcp is not None
    assert again.dhcp.hostname == "guest2"
    for each in (*services, again):
        each.close()


def test_with_ipv6_there_are_advertisements_and_leases_if_asked_for(network: Network) -> None:
    _, interface = link(network, "eth0", "10.0.2.2/24", "fd00::2/64")
    gateway = network.stacks["gw"]
    config = GuestConfig(address6="fd00::2/64", dhcp6=True, dns_upstream=("127.0.0.1",))
    services = LinkServices(network, gateway, interface, config)
    assert services.advertiser is not None
    said = services.advertiser.advertisement()
    assert (said.managed, said.other) == (True, True)
    assert [servers for _, servers in said.rdnss] == [[b"\xfd" + bytes(14) + b"\2"]]
    assert services.upstream is not None
    assert services.upstream.resolvers == [("127.0.0.1", 53)]
    assert services.dns is not None
    assert services.dns.server.forwarder is services.upstream
    services.close()
    assert len(services.upstream.hosts) == 0


def test_nothing_is_served_that_is_not_wanted(network: Network) -> None:
    client, interface = link(network, "eth0", "10.0.2.2/24")
    services = LinkServices(network, network.stacks["gw"], interface, GuestConfig(dns=False, dhcp=False))
    assert (services.dns, services.dhcp) == (None, None)
    assert refused(client)
    services.close()


def test_what_cannot_be_served_is_said_and_nothing_stays(network: Network) -> None:
    _, interface = link(network, "eth0", "10.0.2.2/24")
    gateway = network.stacks["gw"]
    with gateway.socket.socket(2, 2) as taken:
        taken.bind(("10.0.2.2", 53))
        with pytest.raises(SetupError, match=r"eth0 cannot be served: .*EADDRINUSE"):
            LinkServices(network, gateway, interface, GuestConfig())
    with pytest.raises(SetupError, match="no address"):
        LinkServices(network, gateway, interface, GuestConfig(dns_upstream=("no address",)))
    LinkServices(network, gateway, interface, GuestConfig()).close()
    assert gateway.clients == []
