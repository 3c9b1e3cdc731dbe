"""The DHCP server, rule by rule (RFC 2131), as a scripted client sees it."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import DropReason
from stack.scheduler import NS_PER_S
from stack.services.dhcp import BROADCAST, DECLINE_TIME, DhcpConfig, DhcpServer, Reply, mac_bytes
from stack.services.leases import OFFER_TIME, Lease
from stack.wire import dhcp
from stack.wire.dhcp import DhcpMessage, MessageType, Option
from stack.wire.error import WireError

MAC = b"\x02guest"
OTHER = b"\x02other"
SERVER = b"\x0a\0\2\2"
CONFIG = DhcpConfig(interface="10.0.2.2/24", first="10.0.2.15", last="10.0.2.17", lease_time=1000)


def ip(last: int) -> bytes:
    return bytes((10, 0, 2, last))


class Client:
    """A client's half of the conversation."""

    def __init__(self, server: DhcpServer, mac: bytes = MAC) -> None:
        self.server = server
        self.mac = mac
        self.now = 0

    def send(self, kind: int, /, broadcast: bool = False, ciaddr: bytes = dhcp.ANY, **options: bytes) -> Reply | None:
        message = DhcpMessage(dhcp.BOOTREQUEST, 0x1234, self.mac, ciaddr=ciaddr, broadcast=broadcast)
        message.options[Option.MESSAGE_TYPE] = bytes((kind,))
        message.options |= {Option[name.upper()]: value for name, value in options.items()}
        return self.server.handle(message.emit(), self.now)

    def ask(self, kind: int, /, **arguments: Any) -> DhcpMessage | None:
        reply = self.send(kind, **arguments)
        return None if reply is None else dhcp.parse(reply.data)

    def lease(self, **options: bytes) -> bytes:
        """DISCOVER, REQUEST; the address that was acknowledged."""
        offer = self.ask(MessageType.DISCOVER, **options)
        assert offer is not None
        ack = self.ask(MessageType.REQUEST, server_id=SERVER, requested_address=offer.yiaddr)
        assert ack is not None
        assert ack.kind == MessageType.ACK
        return ack.yiaddr


def test_discover_offer_request_ack() -> None:
    client = Client(DhcpServer(CONFIG))
    offer = client.ask(MessageType.DISCOVER)
    assert offer is not None
    assert (offer.op, offer.kind, offer.xid, offer.client) == (dhcp.BOOTREPLY, MessageType.OFFER, 0x1234, MAC)
    assert (offer.yiaddr, offer.address(Option.SERVER_ID)) == (ip(15), SERVER)
    ack = client.ask(MessageType.REQUEST, server_id=SERVER, requested_address=offer.yiaddr)
    assert ack is not None
    assert (ack.kind, ack.yiaddr) == (MessageType.ACK, ip(15))
    (lease,) = client.server.leases(0)
    assert lease == Lease(ip(15), MAC, 1000 * NS_PER_S, bound=True)


def test_every_configured_option_is_given_when_asked_for() -> None:
    """Options 1, 3, 6, 12, 15, 26, 28, 51, 54, 58, 59, 119 in the forms of RFC 2132 and RFC 3397."""
    config = DhcpConfig(
        interface="10.0.2.2/24",
        dns=("10.0.2.3", "1.1.1.1"),
        hostname="vm",
        domain="example.org",
        mtu=9000,
        search=("a.example", "b.example."),
        lease_time=800,
    )
    wanted = bytes((1, 3, 6, 12, 15, 26, 28, 119))
    offer = Client(DhcpServer(config)).ask(MessageType.DISCOVER, parameter_list=wanted)
    assert offer is not None
    assert offer.options == {
        53: b"\x02",
        54: SERVER,
        51: (800).to_bytes(4, "big"),
        58: (400).to_bytes(4, "big"),
        59: (700).to_bytes(4, "big"),
        1: b"\xff\xff\xff\0",
        3: SERVER,
        6: b"\x0a\0\2\3\1\1\1\1",
        12: b"vm",
        15: b"example.org",
        26: b"\x23\x28",
        28: ip(255),
        119: b"\1a\7example\0\1b\xc0\2",  # compressed
    }


def test_unasked_options_are_left_out_except_what_the_address_needs() -> None:
    server = DhcpServer(DhcpConfig(interface="10.0.2.2/24", dns=("10.0.2.3",), mtu=1400, domain="x"))
    offer = Client(server).ask(MessageType.DISCOVER, parameter_list=b"\x1a")
    assert offer is not None
    assert set(offer.options) == {53, 54, 51, 58, 59, 1, 3, 6, 26}
    everything = Client(server).ask(MessageType.DISCOVER)
    assert everything is not None
    assert {15, 28} <= set(everything.options)


def test_options_that_do_not_fit_the_client_are_left_out() -> None:
    """Option 57, and 576 bytes where it is missing (RFC 2131 section 2)."""
    server = DhcpServer(DhcpConfig(interface="10.0.2.2/24", search=tuple(f"domain{i:040}.example" for i in range(10))))
    small = Client(server).send(MessageType.DISCOVER)
    assert small is not None
    assert Option.SEARCH not in dhcp.parse(small.data).options
    assert len(small.data) <= 576 - 28
    large = Client(server).send(MessageType.DISCOVER, max_size=(1500).to_bytes(2, "big"))
    assert large is not None
    value = dhcp.parse(large.data).options[Option.SEARCH]
    assert len(value) > 255, "split and joined (RFC 3396)"


@pytest.mark.parametrize(
    ("arguments", "destination", "mac"),
    [
        ({}, ip(15), MAC),
        ({"broadcast": True}, BROADCAST, None),
    ],
)
def test_where_an_offer_goes(arguments: dict[str, Any], destination: bytes, mac: bytes | None) -> None:
    """RFC 2131 section 4.1: a client without address is met at its MAC, or by broadcast if it asks so."""
    reply = Client(DhcpServer(CONFIG)).send(MessageType.DISCOVER, **arguments)
    assert reply is not None
    assert (reply.destination, reply.mac) == (destination, mac)


def test_renewal_goes_to_the_address_and_extends_the_lease() -> None:
    client = Client(DhcpServer(CONFIG))
    address = client.lease()
    client.now = 500 * NS_PER_S
    reply = client.send(MessageType.REQUEST, ciaddr=address, broadcast=True)
    assert reply is not None
    assert reply.destination == address
    ack = dhcp.parse(reply.data)
    assert (ack.kind, ack.ciaddr, ack.yiaddr) == (MessageType.ACK, address, address)
    assert [lease.expires for lease in client.server.leases(client.now)] == [1500 * NS_PER_S]


def test_an_expired_lease_is_its_clients_until_someone_needs_it() -> None:
    server = DhcpServer(CONFIG)
    clients = [Client(server, bytes((2, 0, 0, 0, 0, number))) for number in range(5)]
    assert [client.lease() for client in clients[:3]] == [ip(15), ip(16), ip(17)]
    assert clients[3].ask(MessageType.DISCOVER) is None
    assert server.drops["pool-exhausted"] == 1
    for client in clients:
        client.now = 1001 * NS_PER_S
    assert list(server.leases(1001 * NS_PER_S)) == []
    assert clients[1].lease() == ip(16)
    assert clients[3].lease() == ip(15), "the one unused for longest"
    assert clients[0].lease() == ip(17), "its own is gone"
    assert clients[4].ask(MessageType.DISCOVER) is None


def test_reboot_keeps_the_address_or_hears_no_at_once() -> None:
    """INIT-REBOOT (RFC 2131 section 4.3.2): requested address, no server identifier."""
    server = DhcpServer(CONFIG)
    client = Client(server)
    address = client.lease()
    again = client.ask(MessageType.REQUEST, requested_address=address)
    assert again is not None
    assert (again.kind, again.yiaddr) == (MessageType.ACK, address)
    for elsewhere in (b"\xc0\xa8\x01\x05", SERVER, ip(0), ip(255), ip(100)):
        reply = Client(server, OTHER).send(MessageType.REQUEST, requested_address=elsewhere)
        assert reply is not None
        assert dhcp.parse(reply.data).kind == MessageType.NAK
        assert (reply.destination, reply.mac) == (BROADCAST, None)
    taken = Client(server, OTHER).ask(MessageType.REQUEST, requested_address=address)
    assert taken is not None
    assert taken.kind == MessageType.NAK
    free = Client(server, OTHER).ask(MessageType.REQUEST, requested_address=ip(17))
    assert free is not None
    assert free.kind == MessageType.ACK, "the only server on the segment need not be silent"


def test_a_client_that_chose_another_server_frees_the_offer() -> None:
    server = DhcpServer(CONFIG)
    client = Client(server)
    client.ask(MessageType.DISCOVER)
    assert client.ask(MessageType.REQUEST, server_id=ip(99), requested_address=ip(15)) is None
    assert Client(server, OTHER).lease(requested_address=ip(15)) == ip(15)
    bound = Client(server, OTHER)
    assert bound.ask(MessageType.REQUEST, server_id=ip(99), requested_address=ip(15)) is None
    assert [lease.client for lease in server.leases(0)] == [OTHER], "a lease in force is not given up by that"


def test_offers_are_held_and_forgotten() -> None:
    server = DhcpServer(replace(CONFIG, first="10.0.2.15", last="10.0.2.15"))
    client, other = Client(server), Client(server, OTHER)
    assert client.ask(MessageType.DISCOVER) is not None
    assert other.ask(MessageType.DISCOVER) is None
    assert client.ask(MessageType.DISCOVER) is not None
    other.now = OFFER_TIME
    assert other.lease() == ip(15)


def test_release_ends_the_lease_and_remembers_the_client() -> None:
    server = DhcpServer(CONFIG)
    client = Client(server)
    address = client.lease()
    Client(server, OTHER).send(MessageType.RELEASE, ciaddr=address)
    client.send(MessageType.RELEASE, ciaddr=ip(16))
    assert len(list(server.leases(0))) == 1, "only its client releases it, and by its address"
    assert client.send(MessageType.RELEASE, ciaddr=address, server_id=SERVER) is None
    assert list(server.leases(0)) == []
    assert Client(server, OTHER).lease() == ip(16)
    assert client.lease() == address


def test_a_declined_address_is_left_alone_for_a_while() -> None:
    server = DhcpServer(replace(CONFIG, last="10.0.2.16"))
    client = Client(server)
    address = client.lease()
    Client(server, OTHER).send(MessageType.DECLINE, requested_address=address, server_id=SERVER)
    assert len(list(server.leases(0))) == 1, "only its client may decline it"
    client.send(MessageType.DECLINE, requested_address=address, server_id=SERVER)
    assert client.lease() == ip(16)
    assert Client(server, OTHER).ask(MessageType.DISCOVER) is None
    other = Client(server, OTHER)
    other.now = DECLINE_TIME
    assert other.lease() == address


def test_inform_gives_parameters_and_no_lease() -> None:
    client = Client(DhcpServer(CONFIG))
    reply = client.send(MessageType.INFORM, ciaddr=ip(77))
    assert reply is not None
    assert reply.destination == ip(77)
    ack = dhcp.parse(reply.data)
    assert (ack.kind, ack.yiaddr) == (MessageType.ACK, dhcp.ANY)
    assert not {Option.LEASE_TIME, Option.RENEWAL_TIME} & set(ack.options)
    assert list(client.server.leases(0)) == []


def test_answers_never_leave_the_segment() -> None:
    """A forged client address is no way to send to strangers."""
    client = Client(DhcpServer(CONFIG))
    assert client.send(MessageType.INFORM, ciaddr=b"\x08\x08\x08\x08") is None
    reply = client.send(MessageType.DISCOVER, ciaddr=b"\x08\x08\x08\x08")
    assert reply is not None
    assert reply.destination == ip(15)


def test_static_leases_by_mac() -> None:
    config = DhcpConfig(
        interface="10.0.2.2/24",
        first="10.0.2.15",
        last="10.0.2.16",
        static={"02:67:75:65:73:74": "10.0.2.16"},
        static_hostnames={MAC: "box"},
        hostname="other",
    )
    server = DhcpServer(config)
    client = Client(server)
    offer = client.ask(MessageType.DISCOVER, requested_address=ip(15))
    assert offer is not None
    assert (offer.yiaddr, offer.options[Option.HOSTNAME]) == (ip(16), b"box")
    assert client.lease() == ip(16)
    other = Client(server, OTHER)
    assert other.lease(requested_address=ip(16)) == ip(15)
    third = Client(server, b"\x02third")
    third.now = 10**15
    assert third.lease() == ip(15), "a static address is never given to another, however long unused"
    refused = client.ask(MessageType.REQUEST, requested_address=ip(15))
    assert refused is not None
    assert refused.kind == MessageType.NAK
    client.send(MessageType.DECLINE, requested_address=ip(16), server_id=SERVER)
    assert client.lease() == ip(16)


def test_a_client_that_moves_gives_its_old_address_back() -> None:
    server = DhcpServer(CONFIG)
    client = Client(server)
    assert client.lease() == ip(15)
    assert Client(server, b"\x02third").lease() == ip(16)
    moved = client.ask(MessageType.REQUEST, requested_address=ip(17))
    assert moved is not None
    assert moved.kind == MessageType.ACK
    assert sorted(lease.address for lease in server.leases(0)) == [ip(16), ip(17)]
    assert Client(server, OTHER).lease() == ip(15)


def test_leases_are_reported_with_a_printable_name() -> None:
    seen: list[Lease] = []
    server = DhcpServer(CONFIG, on_lease=seen.append)
    client = Client(server)
    client.ask(MessageType.DISCOVER)
    client.ask(MessageType.REQUEST, server_id=SERVER, requested_address=ip(15), hostname=b"vm\x1b[31m\xff")
    assert [(lease.address, lease.client, lease.hostname) for lease in seen] == [(ip(15), MAC, "vm?[31m\ufffd")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:239], DropReason.BAD_MESSAGE),
        (lambda data: b"\2" + data[1:], DropReason.BAD_MESSAGE),
        (lambda data: data[:1] + b"\6" + data[2:], DropReason.BAD_MESSAGE),
        (lambda data: data[:2] + b"\x10" + data[3:], DropReason.BAD_MESSAGE),
        (lambda data: data[:236] + b"xxxx" + data[240:], DropReason.BAD_MESSAGE),
        (lambda data: data[:240] + b"\x35\xff\1", DropReason.BAD_MESSAGE),
        (lambda data: data[:240] + b"\x35", DropReason.BAD_MESSAGE),
        (lambda data: data[:240] + b"\x35\1\x63\xff", DropReason.BAD_MESSAGE),
        (lambda data: data[:240] + b"\x35\0\xff", DropReason.BAD_MESSAGE),
        (lambda data: data[:28] + b"\xff" + data[29:], DropReason.BAD_MESSAGE),
        (lambda data: data[:24] + ip(9) + data[28:], DropReason.NOT_FOR_US),
    ],
)
def test_bad_messages_are_counted_and_unanswered(change: Any, reason: DropReason) -> None:
    server = DhcpServer(CONFIG)
    message = DhcpMessage(dhcp.BOOTREQUEST, 1, MAC, {Option.MESSAGE_TYPE: b"\1"})
    assert server.handle(change(message.emit()), 0) is None
    assert server.drops[reason] == 1


@given(st.binary(max_size=400), st.integers(0, 2**62))
def test_noise_never_raises(noise: bytes, now: int) -> None:
    server = DhcpServer(CONFIG)
    server.handle(noise, now)
    header = DhcpMessage(dhcp.BOOTREQUEST, 1, MAC).emit()[:240]
    server.handle(header + noise, now)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 3, 4, 7, 8]), st.integers(13, 19), st.booleans())))
def test_no_address_is_ever_bound_to_two_clients(steps: list[tuple[int, int, int, bool]]) -> None:
    """Whatever six clients say in whatever order, over time: one holder per address, inside the pool."""
    server = DhcpServer(CONFIG)
    now = 0
    holders: dict[bytes, tuple[bytes, int]] = {}
    for number, kind, last, by_ciaddr in steps:
        now += 100 * NS_PER_S
        client = Client(server, bytes((2, 0, 0, 0, 0, number)))
        client.now = now
        if by_ciaddr:
            answer = client.ask(kind, ciaddr=ip(last))
        else:
            answer = client.ask(kind, requested_address=ip(last))
        if answer is not None and answer.kind == MessageType.ACK and kind == MessageType.REQUEST:
            holder, expires = holders.get(answer.yiaddr, (client.mac, 0))
            assert holder == client.mac or expires <= now
            assert 15 <= answer.yiaddr[3] <= 17
            holders = {address: held for address, held in holders.items() if held[0] != client.mac}
            holders[answer.yiaddr] = client.mac, now + 1000 * NS_PER_S
        elif kind in (MessageType.RELEASE, MessageType.DECLINE):
            live = {lease.address for lease in server.leases(now)}
            holders = {address: held for address, held in holders.items() if address in live}
        for lease in server.leases(now):
            assert holders[lease.address] == (lease.client, lease.expires)


def test_overloaded_fields_hold_options() -> None:
    """Option 52 (RFC 2132 section 9.3): 1 is the file field, 2 the server name, 3 both."""
    message = DhcpMessage(dhcp.BOOTREQUEST, 1, MAC, {Option.OVERLOAD: b"\3", Option.HOSTNAME: b"ab"}).emit()
    sname = (b"\x0c\2ef" + b"\xff").ljust(64, b"\0")
    file = (b"\x0c\2cd" + b"\x35\1\1\xff").ljust(128, b"\0")
    parsed = dhcp.parse(message[:44] + sname + file + message[236:])
    assert parsed.options == {Option.HOSTNAME: b"abcdef", Option.MESSAGE_TYPE: b"\1"}


def test_a_message_survives_emit_and_parse() -> None:
    message = DhcpMessage(
        dhcp.BOOTREQUEST, 7, MAC, {53: b"\1", 43: bytes(600), 12: b""}, ip(1), ip(2), ip(3), ip(4), 9, True
    )
    assert dhcp.parse(message.emit()) == message
    assert len(DhcpMessage(1, 1, MAC).emit()) == dhcp.MINIMUM_LENGTH
    assert str(message) == "dhcp DISCOVER 02:67:75:65:73:74 10.0.2.2 xid 0x00000007"
    assert "without type" in str(DhcpMessage(1, 1, MAC))
    with pytest.raises(WireError):
        dhcp.parse(b"")


def test_the_fixed_header_is_bootps() -> None:
    """RFC 951: an independent reading of the offsets."""
    data = DhcpMessage(1, 0xAABBCCDD, MAC, {53: b"\1"}, ip(1), ip(2), ip(3), ip(4), 5, True).emit()
    assert data[:4] == b"\1\1\6\0"
    assert struct.unpack_from("!IHH", data, 4) == (0xAABBCCDD, 5, 0x8000)
    assert data[12:28] == ip(1) + ip(2) + ip(3) + ip(4)
    assert data[28:34] == MAC
    assert data[236:243] == b"\x63\x82\x53\x63\x35\1\1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interface": "10.0.2.2/31"}, "leaves no addresses"),
        ({"first": "10.0.3.1"}, "first address 10.0.3.1"),
        ({"last": "10.0.3.1"}, "last address 10.0.3.1"),
        ({"first": "10.0.2.20", "last": "10.0.2.19"}, "a DHCP pool holds"),
        ({"static": {MAC: "10.0.3.1"}}, "static address 10.0.3.1"),
        ({"static": {MAC: "10.0.2.2"}}, "static address 10.0.2.2"),
        ({"static": {MAC: "10.0.2.9", OTHER: "10.0.2.9"}}, "share an address"),
        ({"static": {"02:00": "10.0.2.9"}}, "not a hardware address"),
        ({"mtu": 60}, "mtu is 68"),
        ({"lease_time": 10}, "lease_time is 60"),
        ({"search": ("a..b",)}, "label"),
    ],
)
def test_wrong_settings_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DhcpServer(replace(CONFIG, **change))


def test_default_pool_and_mac_forms() -> None:
    server = DhcpServer(DhcpConfig(interface="192.168.7.1/28"))
    assert Client(server).ask(MessageType.DISCOVER).yiaddr == IPv4Address("192.168.7.14").packed  # type: ignore[union-attr]
    assert mac_bytes("02-00-00-00-00-01") == mac_bytes("02:00:00:00:00:01") == b"\2\0\0\0\0\1"
