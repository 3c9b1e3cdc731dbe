"""The DHCP server on an interface: frames in, frames out, for a client without an address."""

from __future__ import annotations

import random

import pytest

from stack.credentials import Credentials
from stack.errors import NetError
from stack.netns import NetNamespace
from stack.scheduler import NS_PER_S, Scheduler
from stack.services.dhcp import DhcpConfig
from stack.services.dhcp_service import DhcpService
from stack.services.leases import Lease
from stack.testing import builders as b
from stack.testing.links import RecorderDevice
from stack.uts_ns import UtsNamespace
from stack.wire import dhcp
from stack.wire.dhcp import DhcpMessage, MessageType, Option

MAC = b"\x02guest"
ANY, EVERYBODY = bytes(4), b"\xff" * 4
SERVER, CLIENT = b"\x0a\0\2\2", b"\x0a\0\2\x0f"


class Lan:
    """A namespace with one interface, and the guest's end of its cable."""

    def __init__(self, mtu: int = 1500) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.netns = NetNamespace(self.scheduler, name="gw")
        self.device = RecorderDevice(mtu=mtu)
        self.interface = self.netns.add_interface(self.device, "eth0", ["10.0.2.2/24"])
        self.turn()
        self.device.take()

    def turn(self) -> None:
        while self.interface.service(64) or self.scheduler.run_deferred():
            pass

    def sends(
        self, message: DhcpMessage, *, src: bytes = ANY, dst: bytes = EVERYBODY, mac: bytes = b.BROADCAST
    ) -> None:
        datagram = b.udp(src, dst, dhcp.CLIENT_PORT, dhcp.SERVER_PORT, message.emit())
        self.device.feed(b.ethernet(mac, MAC, 0x0800, b.ipv4(src, dst, 17, datagram)))
        self.turn()

    def answers(self) -> list[tuple[bytes, bytes, DhcpMessage]]:
        """(destination MAC, destination address, message) of each DHCP answer; headers and checksums are checked."""
        answers = []
        for frame in self.device.take():
            packet = frame[14:]
            source, destination, datagram = packet[12:16], packet[16:20], packet[20:]
            assert frame[6:14] == self.device.mac + b"\x08\0"
            assert b.inet_checksum(packet[:20]) == 0
            assert int.from_bytes(packet[2:4], "big") == len(packet)
            assert b.inet_checksum(b.pseudo_header(source, destination, 17, len(datagram)) + datagram) == 0
            assert (source, datagram[:4]) == (SERVER, b"\0\x43\0\x44")
            answers.append((frame[:6], destination, dhcp.parse(datagram[8:])))
        return answers


def message(kind: MessageType, **fields: object) -> DhcpMessage:
    found = DhcpMessage(dhcp.BOOTREQUEST, 42, MAC, {Option.MESSAGE_TYPE: bytes((kind,))})
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def test_a_client_without_address_gets_one_without_arp() -> None:
    """RFC 2131 section 4.1: to its future address and its MAC."""
    lan = Lan()
    leases: list[Lease] = []
    service = DhcpService(lan.netns, "eth0", on_lease=leases.append)
    lan.sends(message(MessageType.DISCOVER))
    ((mac, destination, offer),) = lan.answers()
    assert (mac, destination, offer.kind, offer.yiaddr) == (MAC, CLIENT, MessageType.OFFER, CLIENT)
    request = message(MessageType.REQUEST)
    request.options |= {Option.SERVER_ID: SERVER, Option.REQUESTED_ADDRESS: CLIENT}
    lan.sends(request)
    ((mac, destination, ack),) = lan.answers()
    assert (mac, destination, ack.kind) == (MAC, CLIENT, MessageType.ACK)
    assert ack.options[Option.ROUTER] == SERVER
    assert [lease.address for lease in leases] == [lease.address for lease in service.leases()] == [CLIENT]
    service.close()


def test_a_client_that_asks_for_broadcast_gets_it_and_so_does_a_refusal() -> None:
    lan = Lan()
    service = DhcpService(lan.netns, lan.interface)
    lan.sends(message(MessageType.DISCOVER, broadcast=True))
    assert [answer[:2] for answer in lan.answers()] == [(b.BROADCAST, EVERYBODY)]
    refused = message(MessageType.REQUEST)
    refused.options[Option.REQUESTED_ADDRESS] = b"\xc0\xa8\1\1"
    lan.sends(refused)
    assert [(*answer[:2], answer[2].kind) for answer in lan.answers()] == [(b.BROADCAST, EVERYBODY, MessageType.NAK)]
    service.close()


def test_a_renewal_by_unicast_is_answered_by_unicast() -> None:
    lan = Lan()
    service = DhcpService(lan.netns, "eth0")
    request = message(MessageType.REQUEST)
    request.options[Option.REQUESTED_ADDRESS] = CLIENT
    lan.sends(request)
    lan.answers()
    lan.scheduler.now += 1800 * NS_PER_S
    lan.sends(message(MessageType.REQUEST, ciaddr=CLIENT), src=CLIENT, dst=SERVER, mac=lan.device.mac)
    assert [(*answer[:2], answer[2].kind) for answer in lan.answers()] == [(MAC, CLIENT, MessageType.ACK)]
    assert [lease.expires for lease in service.leases()] == [5400 * NS_PER_S]
    service.close()


def test_the_interfaces_mtu_is_handed_on_unless_it_is_the_usual_one() -> None:
    for mtu, given in ((1500, None), (9000, b"\x23\x28")):
        lan = Lan(mtu)
        service = DhcpService(lan.netns, "eth0")
        lan.sends(message(MessageType.DISCOVER))
        assert lan.answers()[0][2].options.get(Option.MTU) == given
        service.close()


def test_other_interfaces_are_not_served() -> None:
    lan = Lan()
    other = RecorderDevice(mac=b"\x02other")
    second = lan.netns.add_interface(other, "eth1", ["10.9.0.1/24"])
    service = DhcpService(lan.netns, second)
    lan.sends(message(MessageType.DISCOVER))
    assert lan.answers() == []
    first = DhcpService(lan.netns, "eth0")
    lan.sends(message(MessageType.DISCOVER))
    assert [answer[2].yiaddr for answer in lan.answers()] == [CLIENT], "a server for each of them is possible"
    first.close()
    service.close()


def test_clients_are_told_the_domain_of_the_nodes_uts_namespace_as_it_is_now() -> None:
    lan, uts = Lan(), UtsNamespace()
    service = DhcpService(lan.netns, "eth0", uts=uts)
    told = []
    for domain in (b"", b"first.example", b"second.example"):
        if domain:
            uts.setdomainname(domain, len(domain), Credentials())
        lan.sends(message(MessageType.DISCOVER))
        told += [answer[2].options.get(Option.DOMAIN) for answer in lan.answers()]
    assert told == [None, b"first.example", b"second.example"]
    service.close()
    assert not uts.observers


def test_noise_on_the_port_is_counted_and_after_close_nobody_listens() -> None:
    lan = Lan()
    service = DhcpService(lan.netns, "eth0", DhcpConfig(domain="example.org"))
    datagram = b.udp(ANY, EVERYBODY, 68, 67, b"noise")
    lan.device.feed(b.ethernet(b.BROADCAST, MAC, 0x0800, b.ipv4(ANY, EVERYBODY, 17, datagram)))
    lan.turn()
    assert lan.answers() == []
    assert service.server.drops.total == 1
    service.close()
    service.close()
    lan.sends(message(MessageType.DISCOVER))
    assert lan.answers() == []


def test_what_cannot_be_served_is_said_by_name() -> None:
    lan = Lan()
    lan.netns.add_interface(RecorderDevice(), "eth1", [])
    with pytest.raises(ValueError, match="eth1 has no IPv4 address"):
        DhcpService(lan.netns, "eth1")
    with pytest.raises(NetError, match="no interface 'eth7'"):
        DhcpService(lan.netns, "eth7")
