"""The DHCPv6 server, rule by rule (RFC 8415), as a scripted client sees it."""

from __future__ import annotations

import random
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.scheduler import NS_PER_S
from stack.services.boot import Boot
from stack.services.dhcp6 import Dhcp6Config, Dhcp6Server, identifier_bytes
from stack.services.dhcp6_exchange import DECLINE_TIME, REFRESH_TIME
from stack.services.leases import OFFER_TIME
from stack.wire import dhcp6
from stack.wire.dhcp6 import Dhcp6Message, Identity, LeasedAddress, MessageType, Option, Status
from stack.wire.error import WireError

SERVER_DUID = dhcp6.link_layer_duid(b"\x02gate!")
MAC = b"\x02guest"
DUID = dhcp6.link_layer_duid(MAC)
UUID_DUID = b"\0\4" + bytes(range(16))
#: Not made of a hardware address.
SOURCE = IPv6Address("fe80::1234").packed
XID = 0xABCDEF


def ip(text: str) -> bytes:
    return IPv6Address(text).packed


def server(**settings: Any) -> Dhcp6Server:
    defaults: dict[str, Any] = {"interface": "fd00::2/64", "first": "fd00::15", "last": "fd00::17", "lease_time": 1000}
    return Dhcp6Server(Dhcp6Config(**(defaults | settings)), SERVER_DUID)


class Client:
    """A client's half of the conversation."""

    def __init__(self, to: Dhcp6Server, duid: bytes | None = DUID, source: bytes = SOURCE) -> None:
        self.server = to
        self.duid = duid
        self.source = source
        self.now = 0

    def send(
        self,
        kind: int,
        identities: list[Identity] | None = None,
        *options: tuple[int, bytes],
        named: bool | None = None,
        multicast: bool = True,
    ) -> Dhcp6Message | None:
        """The answer. `named`: with the server's identifier, as the kind of message demands if None."""
        message = Dhcp6Message(kind, XID)
        if self.duid is not None:
            message.add(Option.CLIENT_ID, self.duid)
        to_one = kind in (MessageType.REQUEST, MessageType.RENEW, MessageType.RELEASE, MessageType.DECLINE)
        if to_one if named is None else named:
            message.add(Option.SERVER_ID, SERVER_DUID)
        for identity in [Identity(1)] if identities is None else identities:
            message.add(Option.IA_NA, identity.emit())
        message.options += options
        reply = self.server.handle(message.emit(), self.source, self.now, multicast=multicast)
        return None if reply is None else dhcp6.parse(reply.data)

    def ask(self, kind: int, *arguments: Any, **options: Any) -> Dhcp6Message:
        answer = self.send(kind, *arguments, **options)
        assert answer is not None
        assert answer.xid == XID
        assert answer.get(Option.SERVER_ID) == SERVER_DUID
        assert answer.get(Option.CLIENT_ID) == self.duid
        return answer

    def lease(self, iaid: int = 1, *options: tuple[int, bytes]) -> bytes:
        """Solicit, Request; the address."""
        (offered,) = identities(self.ask(MessageType.SOLICIT, [Identity(iaid)], *options))
        (given,) = identities(self.ask(MessageType.REQUEST, [Identity(iaid, addresses=offered.addresses)], *options))
        assert given.addresses[0].valid == 1000
        return given.addresses[0].address


def identities(message: Dhcp6Message) -> list[Identity]:
    return [dhcp6.parse_identity(value) for value in message.all(Option.IA_NA)]


def holding(address: bytes, iaid: int = 1) -> list[Identity]:
    """An identity as a client sends it that has this address."""
    return [Identity(iaid, addresses=[LeasedAddress(address)])]


def status(message: Dhcp6Message) -> int:
    value = message.get(Option.STATUS)
    assert value is not None
    return dhcp6.parse_status(value)[0]


def identity_status(message: Dhcp6Message) -> int:
    (identity,) = identities(message)
    assert identity.status is not None
    assert not identity.addresses
    return identity.status[0]


# -- solicit, advertise, request, reply -------------------------------------------------------------------------------


def test_solicit_advertise_request_reply() -> None:
    """Sections 18.3.1, 18.3.2, 18.3.9; T1 and T2 are 0.5 and 0.8 of the preferred lifetime (section 21.4)."""
    client = Client(server())
    offer = client.ask(MessageType.SOLICIT)
    assert offer.kind == MessageType.ADVERTISE
    assert offer.get(Option.PREFERENCE) == b"\xff"
    (offered,) = identities(offer)
    assert (offered.iaid, offered.t1, offered.t2) == (1, 375, 600)
    assert offered.addresses == [LeasedAddress(ip("fd00::15"), 750, 1000)]
    assert not list(client.server.leases(0))
    reply = client.ask(MessageType.REQUEST, holding(ip("fd00::15")))
    assert reply.kind == MessageType.REPLY
    assert identities(reply) == [offered]
    (lease,) = client.server.leases(0)
    assert (lease.address, lease.client, lease.expires) == (ip("fd00::15"), DUID + b"\0\0\0\1", 1000 * NS_PER_S)


def test_each_identity_has_an_address_of_its_own_and_keeps_it() -> None:
    to = server()
    client = Client(to)
    first, second = client.lease(1), client.lease(2)
    other = Client(to, UUID_DUID).lease(1)
    assert len({first, second, other}) == 3
    assert client.lease(1) == first
    (both,) = [identities(client.ask(MessageType.SOLICIT, [Identity(1), Identity(2)]))]
    assert [each.addresses[0].address for each in both] == [first, second]


def test_the_address_a_client_would_like_is_its_if_it_is_free() -> None:
    to = server()
    (offered,) = identities(Client(to).ask(MessageType.SOLICIT, holding(ip("fd00::17"))))
    assert offered.addresses[0].address == ip("fd00::17")
    for wish in ("fd00::17", "fd00::99", "2001:db8::1"):
        (offered,) = identities(Client(to, UUID_DUID).ask(MessageType.SOLICIT, holding(ip(wish))))
        assert offered.addresses[0].address == ip("fd00::15")


def test_when_the_pool_is_used_up_that_is_said() -> None:
    """Section 18.3.9: the identity comes back with NoAddrsAvail."""
    to = server()
    for number in range(3):
        Client(to, UUID_DUID + bytes((number,))).lease()
    client = Client(to)
    assert identity_status(client.ask(MessageType.SOLICIT)) == Status.NO_ADDRESSES
    assert identity_status(client.ask(MessageType.REQUEST)) == Status.NO_ADDRESSES
    assert to.drops["pool-exhausted"] == 2
    client.now = 1001 * NS_PER_S
    assert client.lease() in (ip("fd00::15"), ip("fd00::16"), ip("fd00::17"))


def test_an_offer_nobody_takes_is_free_again_after_a_minute() -> None:
    to = server(last="fd00::15")
    Client(to).ask(MessageType.SOLICIT)
    other = Client(to, UUID_DUID)
    assert identity_status(other.ask(MessageType.SOLICIT)) == Status.NO_ADDRESSES
    other.now = OFFER_TIME + 1
    assert other.lease() == ip("fd00::15")


def test_asking_again_shortens_no_lease_and_lengthens_an_offer() -> None:
    """Who has a lease and solicits anew keeps what it has, bound; an offer is held a minute from the last asking."""
    client = Client(server(last="fd00::15"))
    client.lease()
    client.ask(MessageType.SOLICIT)
    (lease,) = client.server.leases(0)
    assert (lease.bound, lease.expires) == (True, 1000 * NS_PER_S)
    offered = Client(server(last="fd00::15"))
    offered.ask(MessageType.SOLICIT)
    offered.now = 40 * NS_PER_S
    offered.ask(MessageType.SOLICIT)
    other = Client(offered.server, UUID_DUID)
    other.now = 70 * NS_PER_S
    assert identity_status(other.ask(MessageType.SOLICIT)) == Status.NO_ADDRESSES


def test_an_address_of_another_link_is_not_on_link() -> None:
    """Section 18.3.2."""
    answer = Client(server()).ask(MessageType.REQUEST, holding(ip("fd01::1")))
    assert identity_status(answer) == Status.NOT_ON_LINK


def test_rapid_commit_is_a_lease_at_once() -> None:
    """Section 18.3.1."""
    client = Client(server())
    reply = client.ask(MessageType.SOLICIT, None, (Option.RAPID_COMMIT, b""))
    assert reply.kind == MessageType.REPLY
    assert reply.get(Option.RAPID_COMMIT) == b""
    assert len(list(client.server.leases(0))) == 1
    slow = Client(server(rapid_commit=False))
    advertise = slow.ask(MessageType.SOLICIT, None, (Option.RAPID_COMMIT, b""))
    assert (advertise.kind, advertise.get(Option.RAPID_COMMIT)) == (MessageType.ADVERTISE, None)


# -- while it lasts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MessageType.RENEW, MessageType.REBIND])
def test_renew_and_rebind_make_it_last_longer(kind: MessageType) -> None:
    client = Client(server())
    address = client.lease()
    client.now = 500 * NS_PER_S
    (again,) = identities(client.ask(kind, holding(address)))
    assert again.addresses == [LeasedAddress(address, 750, 1000)]
    (lease,) = client.server.leases(client.now)
    assert lease.expires == 1500 * NS_PER_S


@pytest.mark.parametrize("kind", [MessageType.RENEW, MessageType.REBIND])
def test_a_server_that_knows_nothing_lets_a_client_keep_a_free_address(kind: MessageType) -> None:
    """Sections 18.3.4 and 18.3.5 allow it: the gateway was started anew, its guest was not."""
    client = Client(server())
    (kept,) = identities(client.ask(kind, holding(ip("fd00::16"))))
    assert kept.addresses == [LeasedAddress(ip("fd00::16"), 750, 1000)]
    assert len(list(client.server.leases(0))) == 1


@pytest.mark.parametrize("kind", [MessageType.RENEW, MessageType.REBIND])
def test_what_must_not_be_used_any_more_comes_back_with_lifetimes_of_zero(kind: MessageType) -> None:
    client = Client(server())
    (wrong,) = identities(client.ask(kind, holding(ip("fd01::1"))))
    assert wrong.addresses == [LeasedAddress(ip("fd01::1"), 0, 0)]
    address = client.lease()
    mixed = [Identity(1, addresses=[LeasedAddress(ip("fd00::99")), LeasedAddress(address)])]
    (right,) = identities(client.ask(kind, mixed))
    assert right.addresses == [LeasedAddress(address, 750, 1000), LeasedAddress(ip("fd00::99"), 0, 0)]


def test_renewing_somebody_elses_address_is_no_binding_and_rebinding_it_is_nothing() -> None:
    """Section 18.3.4; 18.3.5: "the server MUST NOT send a Reply" where it has nothing to say."""
    to = server()
    taken = Client(to).lease()
    other = Client(to, UUID_DUID)
    assert identity_status(other.ask(MessageType.RENEW, holding(taken))) == Status.NO_BINDING
    assert other.send(MessageType.REBIND, holding(taken)) is None
    assert other.send(MessageType.REBIND, [Identity(1)]) is None


def test_confirm_says_whether_addresses_are_right_for_the_link() -> None:
    """Section 18.3.3."""
    client = Client(server())
    assert status(client.ask(MessageType.CONFIRM, holding(ip("fd00::77")))) == Status.SUCCESS
    assert status(client.ask(MessageType.CONFIRM, holding(ip("fd01::77")))) == Status.NOT_ON_LINK
    both = [*holding(ip("fd00::77")), *holding(ip("fd01::77"), 2)]
    assert status(client.ask(MessageType.CONFIRM, both)) == Status.NOT_ON_LINK
    assert client.send(MessageType.CONFIRM) is None  # without addresses


def test_release_frees_the_address() -> None:
    """Section 18.3.7."""
    to = server(last="fd00::15")
    client = Client(to)
    address = client.lease()
    reply = client.ask(MessageType.RELEASE, holding(address))
    assert status(reply) == Status.SUCCESS
    assert not identities(reply)
    assert not list(to.leases(0))
    again = client.ask(MessageType.RELEASE, holding(address))
    assert (status(again), identity_status(again)) == (Status.SUCCESS, Status.NO_BINDING)
    assert Client(to, UUID_DUID).lease() == address


def test_a_release_of_another_address_changes_nothing() -> None:
    to = server()
    client = Client(to)
    client.lease()
    client.ask(MessageType.RELEASE, holding(ip("fd00::17")))
    assert len(list(to.leases(0))) == 1


def test_a_declined_address_is_nobodys_for_a_while() -> None:
    """Section 18.3.8: somebody else has it."""
    to = server(last="fd00::15")
    client = Client(to)
    address = client.lease()
    assert status(client.ask(MessageType.DECLINE, holding(address))) == Status.SUCCESS
    assert identity_status(client.ask(MessageType.SOLICIT)) == Status.NO_ADDRESSES
    client.now = DECLINE_TIME + 1
    assert client.lease() == address
    stranger = Client(to, UUID_DUID)
    assert identity_status(stranger.ask(MessageType.DECLINE, holding(address))) == Status.NO_BINDING


# -- fixed addresses and names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "duid", "source"),
    [
        (DUID.hex(), DUID, SOURCE),
        (UUID_DUID, UUID_DUID, SOURCE),
        ("02:67:75:65:73:74", DUID, SOURCE),
        (MAC, b"\0\1\0\1" + b"time" + MAC, SOURCE),  # a DUID-LLT
        (MAC, UUID_DUID, b"\xfe\x80" + bytes(6) + b"\x00gu\xff\xfeest"),  # by the link-local address made of it
    ],
)
def test_a_fixed_address_is_by_duid_or_hardware_address(key: str | bytes, duid: bytes, source: bytes) -> None:
    to = server(static={key: "fd00::beef"}, static_hostnames={key: "db"})
    client = Client(to, duid, source)
    assert client.lease() == ip("fd00::beef")
    assert to.addresses("db", 0) == [ip("fd00::beef")]
    assert to.names(ip("fd00::beef"), 0) == ["db"]
    assert client.lease(2) == ip("fd00::15")  # one identity has it, the next is as any other
    assert client.lease(1) == ip("fd00::beef")
    assert Client(to, b"\0\3\0\1other!").lease() == ip("fd00::16")


def test_a_fixed_address_is_nobody_elses() -> None:
    to = server(static={MAC: "fd00::16"})
    stranger = Client(to, UUID_DUID)
    (offered,) = identities(stranger.ask(MessageType.SOLICIT, holding(ip("fd00::16"))))
    assert offered.addresses[0].address == ip("fd00::15")
    assert stranger.lease() == ip("fd00::15")
    assert Client(to, b"\0\3\0\1other!").lease() == ip("fd00::17")
    assert Client(to).lease() == ip("fd00::16")


def test_a_fixed_address_goes_to_a_new_identity_when_the_old_one_is_gone() -> None:
    """A guest that was installed anew has another IAID."""
    to = server(static={MAC: "fd00::beef"})
    client = Client(to)
    client.lease(1)
    client.now = 1001 * NS_PER_S
    assert client.lease(7) == ip("fd00::beef")


def test_clients_are_known_by_the_name_they_give() -> None:
    """RFC 4704: option 39, partial or not."""
    to = server()
    address = Client(to).lease(1, (Option.FQDN, b"\0\3web"))
    assert to.addresses("web", 0) == [address]
    other = Client(to, UUID_DUID).lease(1, (Option.FQDN, b"\1\2db\7example\0"))
    assert to.addresses("db", 0) == [other]
    assert to.addresses("db", 1001 * NS_PER_S) == []
    for nonsense in (b"", b"\0", b"\0\x40aaa", b"\0\5ab", b"\0\1\xff", b"\0\2a b"):
        Client(to).lease(1, (Option.FQDN, nonsense))
        assert to.names(address, 0) == []


# -- information ------------------------------------------------------------------------------------------------------

EVERYTHING = Dhcp6Config(
    interface="fd00::2/64",
    dns=("self", "2001:db8::53"),
    domain="lan.test",
    search=("a.example", "lan.test"),
    ntp=("2001:db8::123",),
    boot=(Boot(file="pxelinux.0"), Boot(file="http://[fd00::2]/efi", architectures=(16,)), Boot(file="tftp://x/bios")),
)


def requesting(*codes: int) -> tuple[int, bytes]:
    return Option.REQUESTED, b"".join(code.to_bytes(2, "big") for code in codes)


def test_what_was_asked_for_is_given() -> None:
    """RFC 3646, RFC 4075, RFC 5908, in the forms they give."""
    client = Client(Dhcp6Server(EVERYTHING, SERVER_DUID))
    codes = (Option.DNS, Option.DOMAINS, Option.SNTP, Option.NTP)
    for kind in (MessageType.SOLICIT, MessageType.REQUEST):
        answer = client.ask(kind, None, requesting(*codes))
        assert answer.get(Option.DNS) == ip("fd00::2") + ip("2001:db8::53")
        assert answer.get(Option.DOMAINS) == b"\3lan\4test\0\1a\7example\0"
        assert answer.get(Option.SNTP) == ip("2001:db8::123")
        assert answer.get(Option.NTP) == b"\0\1\0\x10" + ip("2001:db8::123")
    only = client.ask(MessageType.SOLICIT, None, requesting(Option.DNS))
    assert [code for code, _ in only.options if code in codes] == [Option.DNS]


def test_information_without_an_address() -> None:
    """Section 18.3.6; the client's identifier may be missing (section 16.12), the time to ask again is said (21.23)."""
    client = Client(Dhcp6Server(EVERYTHING, SERVER_DUID), duid=None)
    answer = client.ask(MessageType.INFORMATION_REQUEST, [], requesting(Option.DNS, Option.REFRESH_TIME))
    assert answer.kind == MessageType.REPLY
    assert answer.get(Option.DNS) == ip("fd00::2") + ip("2001:db8::53")
    assert answer.get(Option.REFRESH_TIME) == REFRESH_TIME.to_bytes(4, "big")
    assert not list(client.server.leases(0))


def test_a_stateless_server_gives_information_and_no_addresses() -> None:
    client = Client(server(stateful=False, dns=("self",)))
    for kind in (MessageType.SOLICIT, MessageType.REQUEST):
        answer = client.ask(kind, None, (Option.RAPID_COMMIT, b""))
        assert identity_status(answer) == Status.NO_ADDRESSES
        assert answer.get(Option.DNS) == ip("fd00::2")
    assert identity_status(client.ask(MessageType.RENEW, holding(ip("fd00::15")))) == Status.NO_BINDING
    assert client.server.drops["pool-exhausted"] == 0


def test_prefixes_and_temporary_addresses_are_not_to_be_had() -> None:
    """Sections 18.3.9, 21.5, 21.21: and that is said, or the client would ask for ever."""
    wanted = ((Option.IA_PD, b"\0\0\0\7" + bytes(8)), (Option.IA_TA, b"\0\0\0\x08"))
    answer = Client(server()).ask(MessageType.SOLICIT, None, *wanted, (Option.IA_PD, b"\0"))
    (prefix,) = answer.all(Option.IA_PD)
    refused = dhcp6.parse_identity(prefix)
    assert (refused.iaid, refused.status) == (7, (Status.NO_PREFIXES, "none here"))
    (temporary,) = answer.all(Option.IA_TA)
    assert temporary[:4] == b"\0\0\0\x08"
    assert list(dhcp6.parse_options(temporary[4:])) == [(Option.STATUS, b"\0\2none here")]


def test_booting_from_the_network_is_by_url() -> None:
    """RFC 5970 sections 3.1 and 3.3."""
    client = Client(Dhcp6Server(EVERYTHING, SERVER_DUID))

    def told(*options: tuple[int, bytes]) -> bytes | None:
        return client.ask(MessageType.SOLICIT, None, *options).get(Option.BOOT_URL)

    asked = requesting(Option.BOOT_URL)
    assert told(asked, (Option.ARCHITECTURE, b"\0\x10")) == b"http://[fd00::2]/efi"
    assert told(asked, (Option.ARCHITECTURE, b"\0\0")) == b"tftp://x/bios"
    assert told(asked) == b"tftp://x/bios"
    assert told((Option.ARCHITECTURE, b"\0\x10")) is None
    by_class = Client(server(boot=(Boot(file="http://x/", vendor_class="HTTPClient"),)))
    said = (Option.VENDOR_CLASS, bytes(4) + b"\0\x0eHTTPClient:Arc")
    assert by_class.ask(MessageType.SOLICIT, None, asked, said).get(Option.BOOT_URL) == b"http://x/"
    assert by_class.ask(MessageType.SOLICIT, None, asked).get(Option.BOOT_URL) is None


def test_the_domain_can_change() -> None:
    to = server()
    client = Client(to)
    assert client.ask(MessageType.SOLICIT).get(Option.DOMAINS) is None
    to.set_domain("lan.test")
    assert client.ask(MessageType.SOLICIT).get(Option.DOMAINS) == b"\3lan\4test\0"


# -- what is not answered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MessageType))
@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_messages_that_lack_an_identifier_or_have_one_too_many_are_discarded(
    kind: MessageType, client: bool, named: bool
) -> None:
    """Section 16, message by message."""
    to_one = (MessageType.REQUEST, MessageType.RENEW, MessageType.RELEASE, MessageType.DECLINE)
    to_all = (MessageType.SOLICIT, MessageType.CONFIRM, MessageType.REBIND)
    right = (client and named and kind in to_one) or (client and not named and kind in to_all)
    right = right or kind == MessageType.INFORMATION_REQUEST
    to = server()
    content = [] if kind == MessageType.INFORMATION_REQUEST else holding(ip("fd00::15"))
    answer = Client(to, DUID if client else None).send(kind, content, named=named)
    assert (answer is not None) == right
    assert to.drops.total == (0 if right else 1)


def test_messages_for_another_server_are_not_ours() -> None:
    to = server()
    message = Dhcp6Message(MessageType.REQUEST, XID, [(Option.CLIENT_ID, DUID), (Option.SERVER_ID, b"\0\3\0\1others")])
    assert to.handle(message.emit(), SOURCE, 0) is None
    assert to.drops["not-for-us"] == 1


@pytest.mark.parametrize("kind", list(MessageType))
def test_messages_sent_to_us_alone(kind: MessageType) -> None:
    """Section 18.4: UseMulticast for some, silence for the others."""
    to = server()
    answer = Client(to).send(kind, [] if kind == MessageType.INFORMATION_REQUEST else None, multicast=False)
    if kind in (MessageType.REQUEST, MessageType.RENEW, MessageType.RELEASE, MessageType.DECLINE):
        assert answer is not None
        assert status(answer) == Status.USE_MULTICAST
        assert not identities(answer)
    else:
        assert answer is None
        assert to.drops.total == 1
    assert not list(to.leases(0))


def test_information_is_not_asked_with_an_identity() -> None:
    to = server()
    assert Client(to).send(MessageType.INFORMATION_REQUEST) is None
    assert to.drops["bad-message"] == 1


@pytest.mark.parametrize("duid", [b"", b"\0\1", bytes(131)])
def test_identifiers_are_of_a_sensible_length(duid: bytes) -> None:
    to = server()
    assert Client(to, duid).send(MessageType.SOLICIT) is None
    assert to.drops["bad-message"] == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(b"\0", id="half a code"),
        pytest.param(b"\0\3\0", id="half a length"),
        pytest.param(b"\0\3\0\x0d" + bytes(12), id="an option past the end"),
        pytest.param(b"\0\3\0\x0b" + bytes(11), id="an IA too short"),
        pytest.param(b"\0\3\0\x0e" + bytes(12) + b"\0\5", id="an IA with half an option"),
        pytest.param(b"\0\3\0\x12" + bytes(12) + b"\0\5\0\2ab", id="an address too short"),
        pytest.param(b"\0\x11\0\0" * 65, id="more options than anybody needs"),
    ],
)
def test_a_malformed_message_is_counted(options: bytes) -> None:
    to = server()
    good = Dhcp6Message(MessageType.SOLICIT, XID, [(Option.CLIENT_ID, DUID)]).emit()
    assert to.handle(good, SOURCE, 0) is not None
    assert to.handle(good + options, SOURCE, 0) is None
    assert to.drops["bad-message"] == 1
    for short in (b"", b"\1", b"\1\0\0"):
        assert to.handle(short, SOURCE, 0) is None
    assert to.drops["bad-message"] == 4


def test_many_identities_in_one_message_are_not_a_pool() -> None:
    to = server(last="fd00::ffff")
    answer = Client(to).ask(MessageType.REQUEST, [Identity(number) for number in range(40)])
    assert len(identities(answer)) == 8
    assert len(list(to.leases(0))) == 8


@given(data=st.binary(max_size=80), seed=st.integers(0, 1 << 32), kind=st.integers(0, 14))
def test_dhcpv6_messages_of_any_bytes_are_answered_or_counted(data: bytes, seed: int, kind: int) -> None:
    """Never an exception: arbitrary bytes, arbitrary options, a sound message with bytes changed."""
    to = Dhcp6Server(EVERYTHING, SERVER_DUID)
    sound = Dhcp6Message(kind, XID, [(Option.CLIENT_ID, DUID), requesting(*range(1, 64))])
    if seed & 1:
        sound.add(Option.SERVER_ID, SERVER_DUID)
    sound.add(Option.IA_NA, holding(ip("fd00::1000"))[0].emit())
    sound.add(Option.FQDN, b"\0\3web")
    sound.add(Option.VENDOR_CLASS, bytes(4) + b"\0\3abc")
    bent = bytearray(sound.emit())
    rng = random.Random(seed)
    for _ in range(rng.randrange(4)):
        bent[rng.randrange(len(bent))] = rng.randrange(256)
    for message in (data, sound.emit() + data, bytes(bent)):
        reply = to.handle(message, SOURCE, 0, multicast=bool(seed & 2))
        if reply is not None:
            dhcp6.parse(reply.data)


@given(data=st.binary(max_size=60))
def test_identities_of_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        identity = dhcp6.parse_identity(data)
    except WireError:
        return
    assert dhcp6.parse_identity(identity.emit()) == identity


# -- faults and settings ----------------------------------------------------------------------------------------------


def test_dhcpv6_faults() -> None:
    to = server()
    client = Client(to)
    to.faults.inject(drop=True, times=1)
    assert client.send(MessageType.SOLICIT) is None
    assert to.drops["fault"] == 1
    to.faults.status(Status.NO_ADDRESSES, times=1, when=lambda message: message.kind == MessageType.REQUEST)
    client.ask(MessageType.SOLICIT)
    assert identity_status(client.ask(MessageType.REQUEST)) == Status.NO_ADDRESSES
    to.faults.address("2001:db8::bad", times=1)
    (lied,) = identities(client.ask(MessageType.SOLICIT))
    assert lied.addresses[0].address == ip("2001:db8::bad")
    to.faults.inject(alter=lambda request, answer: None, times=1)
    assert client.send(MessageType.SOLICIT) is None
    to.faults.inject(delay=2, times=1)
    message = Dhcp6Message(MessageType.SOLICIT, XID, [(Option.CLIENT_ID, DUID)])
    reply = to.handle(message.emit(), SOURCE, 0)
    assert reply is not None
    assert reply.delay == 2 * NS_PER_S


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"interface": "fd00::2/127"}, "too few"),
        ({"lease_time": 59}, "lease_time"),
        ({"first": "fd01::1"}, "first"),
        ({"last": "fd01::1"}, "last"),
        ({"last": "fd00::1"}, "pool holds"),
        ({"static": {MAC: "fd01::1"}}, "static"),
        ({"static": {MAC: "fd00::2"}}, "static"),
        ({"static": {MAC: "fd00::9", UUID_DUID: "fd00::9"}}, "share"),
        ({"static": {"ab": "fd00::9"}}, "DUID"),
        ({"dns": ("10.0.0.1",)}, "10.0.0.1"),
        ({"search": ("a..b",)}, "domain name"),
        ({"domain": "x" * 64}, "domain name"),
    ],
)
def test_settings_that_cannot_be_right_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        server(**settings)


def test_the_default_pool_is_clear_of_low_numbers() -> None:
    assert Client(Dhcp6Server(Dhcp6Config(interface="fd00::2/64", lease_time=1000), SERVER_DUID)).lease() == ip(
        "fd00::1000"
    )
    assert Client(Dhcp6Server(Dhcp6Config(interface="fd00::2/120", lease_time=1000), SERVER_DUID)).lease() == ip(
        "fd00::80"
    )
    with pytest.raises(ValueError, match="DUID"):
        Dhcp6Server(Dhcp6Config(interface="fd00::2/64"), b"\0\1")
    assert identifier_bytes("00:03:00:01:02:67:75:65:73:74") == DUID
