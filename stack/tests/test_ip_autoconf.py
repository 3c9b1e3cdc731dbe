"""Hosts that configure themselves, routers that tell them how, and addresses that turn out to be somebody else's.

RFC 4861 6, RFC 4862 5.4 and 5.5, RFC 5227, RFC 7527, RFC 7559, RFC 8106.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import NetError
from stack.iface.address import IFA_DADFAILED, IFA_DEPRECATED, IFA_TENTATIVE, InterfaceAddress, parse_address
from stack.iface.interface import Interface
from stack.netns import NetNamespace
from stack.scheduler import NS_PER_S
from stack.services.router_advertisement import RouterAdvertiser, RouterConfig
from stack.testing import builders
from stack.tests.ip_world import World
from stack.wire import icmpv6, ipv6, router
from stack.wire.error import WireError
from stack.wire.router import INFINITE, PrefixInformation, RouterAdvertisement

NET = parse_address("fd01::")
ALL_NODES = ipv6.ALL_NODES


class Link:
    """A host and a router (fd01::1/64) at the ends of a cable."""

    def __init__(self, config: RouterConfig | None = None, *, advertise: bool = True, mtu: int = 1500) -> None:
        self.world = World()
        self.host_if, self.router_if = self.world.join("host", "router", b_addresses=["fd01::1/64"], mtu=mtu)
        self.host: NetNamespace = self.world.node("host")
        self.router: NetNamespace = self.world.node("router")
        self.link = self.host.autoconf.enable(self.host_if)
        self.advertiser = RouterAdvertiser(self.router, self.router_if, config) if advertise else None

    def global_address(self) -> InterfaceAddress | None:
        return next((each for each in self.host_if.addresses if each.address[:8] == NET[:8]), None)

    def settle(self) -> None:
        self.world.pass_time(3)

    def say(self, said: RouterAdvertisement, *, src: bytes | None = None, hop_limit: int = 255) -> None:
        """An advertisement from the router's end, whatever it is."""
        source = src or ipv6.link_local_from_mac(self.router_if.mac)
        packet = builders.ipv6(source, ALL_NODES, 58, said.emit(source, ALL_NODES), hop_limit=hop_limit)
        self.router_if.send_frame(b"\x33\x33\x00\x00\x00\x01", 0x86DD, packet)
        self.world.turn()


def default_routes(netns: NetNamespace) -> list[str]:
    return [str(IPv6Address(each.gateway)) for each in netns.routes if each.gateway and not each.prefix_length]


def test_a_host_gets_an_address_a_route_and_talks() -> None:
    link = Link()
    link.settle()
    address = link.global_address()
    assert address is not None
    assert address.address[8:] == ipv6.link_local_from_mac(link.host_if.mac)[8:], "RFC 2464 4: EUI-64"
    assert address.flags & (IFA_TENTATIVE | IFA_DEPRECATED) == 0
    assert default_routes(link.host) == [str(IPv6Address(ipv6.link_local_from_mac(link.router_if.mac)))]
    answers: list[bytes] = []
    link.host.ip.icmp6.listen_echo(7, lambda src, _seq, _data: answers.append(src))
    link.host.ip.icmp6.send_echo(parse_address("fd01::1"), 7, 1, b"x")
    link.world.turn()
    assert answers == [parse_address("fd01::1")]
    assert link.host.ip.route(parse_address("2001:db8::1")).src == address.address


def test_the_address_is_tested_before_it_is_used() -> None:
    link = Link(RouterConfig(reply_delay=0))
    link.world.pass_time(3, lambda: link.global_address() is not None)
    address = link.global_address()
    assert address is not None
    assert address.flags & IFA_TENTATIVE
    assert not link.host.ip.is_own_unicast(address.address)
    link.settle()
    assert link.host.ip.is_own_unicast(address.address)


def test_what_a_router_says_beside_prefixes_is_kept() -> None:
    config = RouterConfig(
        mtu=1400,
        name_servers=["fd01::53", "fd01::54"],
        search_domains=["lan.test", "test"],
        managed=True,
        other=True,
        hop_limit=33,
        reachable=20_000,
        retransmit=500,
    )
    link = Link(config)
    link.settle()
    kept = link.link
    assert list(kept.name_servers) == [parse_address("fd01::53"), parse_address("fd01::54")]
    assert list(kept.search_domains) == ["lan.test", "test"]
    assert (kept.managed, kept.other, kept.hop_limit, kept.mtu) == (True, True, 33, 1400)
    assert link.host.ip.path_mtu(parse_address("fd01::1")) == 1400
    assert link.host.ip.mtu6(link.host_if) == 1400
    assert link.host_if.mtu == 1500, "IPv4 keeps the link's"
    assert link.host_if.neighbours.base_reachable_time == 20 * NS_PER_S
    assert link.host_if.neighbours.retrans_time == NS_PER_S // 2


@pytest.mark.parametrize("mtu", [0, 600, 1279, 1501, 0xFFFFFFFF])
def test_an_mtu_that_cannot_be_is_not_believed(mtu: int) -> None:
    link = Link(advertise=False)
    link.say(RouterAdvertisement(mtu=mtu))
    assert link.host.ip.mtu6(link.host_if) == 1500


def test_the_interfaces_own_mtu_is_advertised_if_unusual() -> None:
    link = Link(mtu=9000)
    link.settle()
    assert link.link.mtu == 9000


def test_addresses_grow_old() -> None:
    """RFC 4862 5.5.4: deprecated, then gone; the route to the prefix too; and then asked for again."""
    link = Link(advertise=False)
    link.say(RouterAdvertisement(lifetime=9000, prefixes=[PrefixInformation(NET, 64, 8000, 100)]))
    link.settle()
    address = link.global_address()
    assert address is not None
    link.world.pass_time(99)
    assert address.flags & IFA_DEPRECATED
    link.world.pass_time(7800)
    assert link.global_address() is address
    link.world.pass_time(200)
    assert link.global_address() is None
    assert not any(each.network == NET for each in link.host.routes)
    assert default_routes(link.host)
    link.world.pass_time(1000)
    assert not default_routes(link.host)


def test_a_forged_short_lifetime_leaves_two_hours() -> None:
    """RFC 4862 5.5.3 e."""
    link = Link(advertise=False)
    link.say(RouterAdvertisement(prefixes=[PrefixInformation(NET, 64, 86400, 86400)]))
    address = link.global_address()
    assert address is not None
    for valid, left in ((1, 7200), (100_000, 100_000), (INFINITE, None), (60, 7200)):
        link.say(RouterAdvertisement(prefixes=[PrefixInformation(NET, 64, valid, 0)]))
        until = address.valid_until
        assert (None if until is None else (until - link.world.scheduler.now) // NS_PER_S) == left
    assert address.flags & IFA_DEPRECATED, "the preferred lifetime is believed"
    link.world.pass_time(100)
    link.say(RouterAdvertisement(prefixes=[PrefixInformation(NET, 64, 7150, 0)]))
    assert address.valid_until is not None
    assert address.valid_until - link.world.scheduler.now == 7150 * NS_PER_S, "longer than what was left"


@pytest.mark.parametrize(
    "prefix",
    [
        PrefixInformation(parse_address("fe80::"), 64),
        PrefixInformation(parse_address("ff02::"), 64),
        PrefixInformation(NET, 63),
        PrefixInformation(NET, 64, 100, 200),
        PrefixInformation(NET, 64, 0, 0),
        PrefixInformation(NET, 64, autonomous=False),
    ],
)
def test_prefixes_that_make_no_address(prefix: PrefixInformation) -> None:
    link = Link(advertise=False)
    link.say(RouterAdvertisement(prefixes=[prefix]))
    assert len([each for each in link.host_if.addresses if len(each.address) == 16]) == 1


def test_a_prefix_off_link_makes_an_address_and_no_route() -> None:
    link = Link(advertise=False)
    link.say(RouterAdvertisement(prefixes=[PrefixInformation(NET, 64, on_link=False)]))
    assert link.global_address() is not None
    assert not any(each.network == NET for each in link.host.routes)


def test_a_router_that_leaves_says_so() -> None:
    """RFC 4861 6.2.5: lifetime 0; and its advertiser is gone for good."""
    link = Link()
    link.settle()
    assert default_routes(link.host)
    assert link.advertiser is not None
    link.advertiser.close()
    link.advertiser.close()
    link.world.turn()
    assert not default_routes(link.host)
    sent = link.advertiser.sent
    link.world.pass_time(1300)
    assert link.advertiser.sent == sent
    RouterAdvertiser(link.router, link.router_if).close()


def test_a_router_that_died_is_forgotten_and_solicited_again() -> None:
    link = Link()
    link.settle()
    link.router_if.set_up(False)
    link.world.pass_time(1799)
    assert not default_routes(link.host)
    link.router.set_up(link.router_if, False)
    link.router_if.set_up(True)
    link.world.pass_time(200, lambda: bool(default_routes(link.host)))


def test_solicitations_back_off() -> None:
    """RFC 7559 2: 4 s, doubled each time with a tenth of jitter."""
    link = Link(advertise=False)
    times: list[int] = []
    link.router.ip.icmp6.on_solicitation[link.router_if.index] = lambda *_: times.append(link.world.scheduler.now)
    link.router.ip.join_group(ipv6.ALL_ROUTERS, link.router_if)
    link.world.pass_time(70)
    gaps = [(after - before) / NS_PER_S for before, after in itertools.pairwise(times)]
    assert len(times) == 5
    for gap, nominal in zip(gaps, (4, 8, 16, 32), strict=True):
        assert 0.9 * nominal <= gap <= 1.1 * nominal


def test_a_router_ignores_other_routers() -> None:
    link = Link(advertise=False)
    link.host.set_forwarding(True)
    link.say(RouterAdvertisement(prefixes=[PrefixInformation(NET, 64)]))
    assert link.global_address() is None
    assert not default_routes(link.host)


@pytest.mark.parametrize(("src", "hop_limit"), [(parse_address("fd01::1"), 255), (None, 254)])
def test_advertisements_from_elsewhere_are_dropped(src: bytes | None, hop_limit: int) -> None:
    """RFC 4861 6.1.2."""
    link = Link(advertise=False)
    link.say(RouterAdvertisement(prefixes=[PrefixInformation(NET, 64)]), src=src, hop_limit=hop_limit)
    assert link.global_address() is None
    assert link.host.ip.drops["bad-message"] == 1


def test_a_liar_cannot_fill_the_tables() -> None:
    link = Link(advertise=False)
    for number in range(100):
        source = parse_address(f"fe80::{number + 1:x}")
        prefix = PrefixInformation(parse_address(f"fd02:0:0:{number:x}::"), 64)
        names = [(100, [f"n{number}.test"])]
        servers = [(100, [parse_address(f"fd03::{number:x}")])]
        link.say(RouterAdvertisement(prefixes=[prefix], rdnss=servers, dnssl=names), src=source)
    kept = link.link
    assert (len(kept.routers), len(kept.prefixes)) == (8, 16)
    assert (len(kept.name_servers), len(kept.search_domains)) == (16, 16)
    assert len(link.host_if.addresses) == 17
    assert link.host.ip.drops["too-many"] > 100


def test_giving_up_autoconfiguration_takes_everything_back() -> None:
    link = Link()
    link.settle()
    link.host.autoconf.disable(link.host_if)
    assert link.global_address() is None
    assert not default_routes(link.host)
    assert [each for each in link.host.routes if each.network == NET] == []


def test_a_link_that_comes_back_is_configured_again() -> None:
    link = Link()
    link.settle()
    link.host.set_up(link.host_if, False)
    assert not default_routes(link.host)
    link.host.set_up(link.host_if, True)
    link.settle()
    assert link.global_address() is not None
    assert default_routes(link.host)
    link.host.remove_interface(link.host_if)
    link.world.pass_time(4000)


def test_a_flood_of_solicitations_costs_one_answer() -> None:
    link = Link()
    link.settle()
    assert link.advertiser is not None
    before = link.advertiser.sent
    for number in range(1000):
        source = parse_address(f"fe80::{number + 1:x}")
        message = router.emit_solicitation(b"\x02\x01\x00\x00" + number.to_bytes(2, "big"), source, ipv6.ALL_ROUTERS)
        packet = builders.ipv6(source, ipv6.ALL_ROUTERS, 58, message, hop_limit=255)
        link.host_if.send_frame(b"\x33\x33\x00\x00\x00\x02", 0x86DD, packet)
        if number % 100 == 0:
            link.world.turn()
    link.world.pass_time(1)
    assert link.advertiser.sent - before <= 66


def test_hosts_without_an_address_are_answered_together_every_three_seconds() -> None:
    """RFC 4861 6.2.6: MIN_DELAY_BETWEEN_RAS."""
    link = Link(RouterConfig(reply_delay=0))
    link.world.pass_time(100)
    assert link.advertiser is not None
    before = link.advertiser.sent
    message = router.emit_solicitation(None, ipv6.ANY, ipv6.ALL_ROUTERS)
    packet = builders.ipv6(ipv6.ANY, ipv6.ALL_ROUTERS, 58, message, hop_limit=255)
    for _ in range(60):
        link.host_if.send_frame(b"\x33\x33\x00\x00\x00\x02", 0x86DD, packet)
        link.world.pass_time(0.1)
    assert 2 <= link.advertiser.sent - before <= 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": NS_PER_S},
        {"lifetime": 9001},
        {"lifetime": 10},
        {"search_domains": ["a..b"]},
        {"name_servers": ["10.0.0.1"]},
        {"prefixes": [PrefixInformation(NET, 64, 1, 2)]},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        RouterConfig(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_one_advertiser_an_interface() -> None:
    link = Link()
    with pytest.raises(ValueError, match="already"):
        RouterAdvertiser(link.router, "eth0")
    with pytest.raises(ValueError, match="link-local"):
        RouterAdvertiser(link.router, "lo")


def test_neighbours_are_told_that_it_is_a_router() -> None:
    link = Link()
    link.settle()
    entry = link.host_if.neighbours.lookup(parse_address("fd01::1"))
    entry.resolve()
    link.world.turn()
    assert entry.is_router


# --- the message itself -----------------------------------------------------------------------------------------------

LIFETIME = st.integers(0, 2**32 - 1)
SAID = st.builds(
    RouterAdvertisement,
    st.integers(0, 255),
    st.booleans(),
    st.booleans(),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.one_of(st.none(), st.just(b"\x02\0\0\0\0\1")),
    st.integers(0, 2**32 - 1),
    st.lists(
        st.builds(
            PrefixInformation,
            st.binary(min_size=16, max_size=16),
            st.integers(0, 128),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.booleans(),
            st.booleans(),
        ),
        max_size=3,
    ),
    st.lists(st.tuples(LIFETIME, st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=3)), max_size=2),
    st.lists(st.tuples(LIFETIME, st.just(["a.example", "b.test"])), max_size=2),
)  # fmt: skip
SOURCE = parse_address("fe80::1")


@given(SAID)
def test_what_is_said_is_what_is_heard(said: RouterAdvertisement) -> None:
    message = icmpv6.parse(memoryview(said.emit(SOURCE, ALL_NODES)), SOURCE, ALL_NODES)
    assert router.parse_advertisement(message, SOURCE, 255) == said


@given(SAID, st.data())
def test_a_lying_advertisement_is_refused_or_read_never_worse(said: RouterAdvertisement, data: st.DataObject) -> None:
    whole = bytearray(said.emit(SOURCE, ALL_NODES))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    message = icmpv6.Icmpv6Message(134, 0, 0, bytes(whole[8 : data.draw(st.integers(8, len(whole)))]))
    try:
        heard = router.parse_advertisement(message, SOURCE, 255)
    except WireError:
        return
    assert all(len(each.prefix) == 16 and each.length <= 128 for each in heard.prefixes)


# --- duplicates -------------------------------------------------------------------------------------------------------


def pair() -> tuple[World, Interface, Interface]:
    world = World()
    one, other = world.join("a", "b")
    return world, one, other


def test_a_tested_address_is_ours_after_a_silent_second_or_two() -> None:
    world, a, _ = pair()
    address = world.node("a").add_address(a, "fd01::5/64", detect_duplicates=True)
    assert not world.node("a").ip.is_own_unicast(address.address)
    with pytest.raises(NetError):
        world.node("a").udp.bind(address.address)
    world.pass_time(2.1)
    assert world.node("a").ip.is_own_unicast(address.address)
    assert not address.flags & (IFA_TENTATIVE | IFA_DADFAILED)


def test_an_address_somebody_has_is_given_up() -> None:
    world, a, b = pair()
    world.node("b").add_address(b, "fd01::5/64")
    address = world.node("a").add_address(a, "fd01::5/64", detect_duplicates=True)
    world.pass_time(3)
    assert address.flags & IFA_DADFAILED
    assert not world.node("a").ip.is_own_unicast(address.address)
    assert world.node("a").ip.drops["duplicate-address"] == 1
    assert world.node("b").ip.is_own_unicast(address.address)


def test_of_two_that_test_the_same_address_one_gives_it_up() -> None:
    """RFC 4862 5.4.3: whoever hears the other's solicitation while its own test runs."""
    world, a, b = pair()
    one = world.node("a").add_address(a, "fd01::5/64", detect_duplicates=True)
    other = world.node("b").add_address(b, "fd01::5/64", detect_duplicates=True)
    world.pass_time(3)
    assert sorted(each.flags & IFA_DADFAILED for each in (one, other)) == [0, IFA_DADFAILED]


def test_our_own_solicitation_coming_back_means_nothing() -> None:
    """RFC 7527: a link that loops back."""
    world, a, b = pair()
    address = world.node("a").add_address(a, "fd01::5/64", detect_duplicates=True)

    class Echo:
        def received(self, burst: object) -> None:
            for frame, *_ in burst:  # type: ignore[attr-defined]  # a burst of frames
                if frame[54] == 135:
                    b.send_frame(bytes(frame[:6]), 0x86DD, bytes(frame[14:]))

        def transmitted(self, burst: object) -> None: ...

    b.taps.append(Echo())
    world.pass_time(3)
    assert not address.flags & IFA_DADFAILED


def test_a_prefix_whose_address_is_taken_makes_none() -> None:
    link = Link()
    taken = NET[:8] + ipv6.link_local_from_mac(link.host_if.mac)[8:]
    link.router.add_address(link.router_if, f"{IPv6Address(taken)}/64")
    link.settle()
    assert link.global_address() is None
    assert link.host.ip.drops["duplicate-address"] >= 1


def test_an_ipv4_address_is_probed_announced_and_defended() -> None:
    """RFC 5227 2.1, 2.3, 2.4 b."""
    world, a, b = pair()
    heard: list[tuple[int, bytes, bytes]] = []
    b.handlers[0x0806] = lambda _iface, frame, *_: heard.append((frame[21], bytes(frame[28:32]), bytes(frame[38:42])))
    address = world.node("a").add_address(a, "10.0.0.5/24", detect_duplicates=True)
    mine, nobody = address.address, bytes(4)
    world.pass_time(4)
    assert not world.node("a").ip.is_own_unicast(mine)
    world.pass_time(8)
    assert heard == [(1, nobody, mine)] * 3 + [(1, mine, mine)] * 2
    assert world.node("a").ip.is_own_unicast(mine)
    heard.clear()
    for _ in range(5):
        b.send_frame(b"\xff" * 6, 0x0806, builders.arp(2, b.mac, mine, b"\xff" * 6, mine))
        world.pass_time(1)
    assert heard == [(1, mine, mine)], "once in ten seconds"


@pytest.mark.parametrize("how", ["owner", "probe"])
def test_an_ipv4_address_somebody_has_or_wants_is_given_up(how: str) -> None:
    world, a, b = pair()
    if how == "owner":
        world.node("b").add_address(b, "10.0.0.5/24")
        world.turn()
    address = world.node("a").add_address(a, "10.0.0.5/24", detect_duplicates=True)
    other = None if how == "owner" else world.node("b").add_address(b, "10.0.0.5/24", detect_duplicates=True)
    world.pass_time(12)
    loser = address if other is None or address.flags & IFA_DADFAILED else other
    assert loser.flags & IFA_DADFAILED
    assert other is None or not (address.flags & other.flags & IFA_DADFAILED)
    with pytest.raises(NetError) as caught:
        world.node("a" if loser is address else "b").udp.bind(address.address)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_without_being_asked_nothing_is_tested() -> None:
    world, a, _ = pair()
    world.node("a").add_address(a, "10.0.0.5/24")
    world.node("a").add_address(a, "fd01::5/64")
    assert world.node("a").ip.is_own_unicast(ipaddress.ip_address("fd01::5").packed)
    assert world.node("a").ip.is_own_unicast(ipaddress.ip_address("10.0.0.5").packed)


def test_an_unsolicited_advertisement_corrects_a_neighbours_cache() -> None:
    """RFC 4861 7.2.6."""
    world, a, b = pair()
    world.node("a").add_address(a, "fd01::5/64")
    entry = b.neighbours.lookup(parse_address("fd01::5"))
    entry.update(b"\x02\x09\0\0\0\0", solicited=True)
    world.node("a").ip.icmp6.ndp.announce(a, parse_address("fd01::5"))
    world.turn()
    assert entry.mac == a.mac
