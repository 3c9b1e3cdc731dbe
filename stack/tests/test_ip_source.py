"""Source address selection: RFC 6724 5 rule by rule, against a second reading of it, and Linux's choice for IPv4."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import NetError
from stack.iface.address import IFA_DEPRECATED, IFA_TEMPORARY, IFA_TENTATIVE, parse_address
from stack.ip.source import SourceSelection, scope6
from stack.netns import NetNamespace
from stack.scheduler import Scheduler
from stack.tests.ip_rig import ScriptedDevice

MACS = [bytes((2, 0, 0, 0, 0, number)) for number in range(1, 4)]


def namespace(*links: list[str]) -> NetNamespace:
    """eth0, eth1... with these addresses, and default routes for both families by way of eth0."""
    netns = NetNamespace(Scheduler(rng=random.Random(1)))
    for number, addresses in enumerate(links):
        netns.add_interface(ScriptedDevice(mac=MACS[number]), addresses=addresses)
    netns.add_route("default", "fe80::ffff", dev="eth0")
    return netns


def source(netns: NetNamespace, dst: str, *, oif: int = 0) -> str:
    return str(ipaddress.ip_address(netns.ip.route(parse_address(dst), oif=oif).src))


def flag(netns: NetNamespace, text: str, flags: int) -> None:
    for iface in netns.interfaces.values():
        for each in iface.addresses:
            if each.address == parse_address(text):
                each.flags |= flags
    netns.ip.refresh()


def test_rule_1_the_same_address() -> None:
    netns = namespace(["2001:db8:1::1/64", "2001:db8:1::2/64"])
    assert source(netns, "2001:db8:1::2") == "2001:db8:1::2"


@pytest.mark.parametrize(
    ("dst", "expected"),
    [
        ("2001:db8:9::9", "2001:db8:1::1"),  # link-local does not reach that far
        ("fe80::99", "fe80::ff:fe00:1"),  # the smallest scope that does
        ("ff02::99", "fe80::ff:fe00:1"),
        ("ff0e::99", "2001:db8:1::1"),
        ("ff05::99", "2001:db8:1::1"),
    ],
)
def test_rule_2_appropriate_scope(dst: str, expected: str) -> None:
    netns = namespace(["2001:db8:1::1/64"])
    oif = netns.interface("eth0").index
    assert source(netns, dst, oif=oif) == expected


def test_rule_3_deprecated_addresses_are_avoided_but_better_than_none() -> None:
    netns = namespace(["2001:db8:1::1/64", "2001:db8:1::2/64"])
    flag(netns, "2001:db8:1::1", IFA_DEPRECATED)
    assert source(netns, "2001:db8:1::99") == "2001:db8:1::2"
    flag(netns, "2001:db8:1::2", IFA_DEPRECATED)
    assert source(netns, "2001:db8:1::99") == "2001:db8:1::1"


def test_rule_5_the_outgoing_interface() -> None:
    """Also before a longer common prefix elsewhere."""
    netns = namespace(["2001:db8:1::1/64"], ["2001:db8:ff00::1/64"])
    assert source(netns, "2001:db8:ff01::9") == "2001:db8:1::1"


def test_addresses_of_other_interfaces_will_do() -> None:
    netns = namespace([], ["2001:db8:2::1/64"])
    assert source(netns, "2001:db8:9::9") == "2001:db8:2::1"
    assert source(netns, "ff02::9", oif=netns.interface("eth0").index) == "fe80::ff:fe00:1"


@pytest.mark.parametrize(
    ("dst", "expected"),
    [
        ("2002:c000:201::9", "2002:c633:6401::1"),  # 6to4 to 6to4
        ("2001:db8:9::9", "2001:db8:1::1"),
        ("fd12:3456::9", "fd00::1"),  # unique local to unique local
        ("2001::9", "2001:0:1::1"),  # Teredo to Teredo
    ],
)
def test_rule_6_matching_label(dst: str, expected: str) -> None:
    netns = namespace(["fd00::1/64", "2002:c633:6401::1/48", "2001:0:1::1/64", "2001:db8:1::1/64"])
    assert source(netns, dst) == expected


def test_rule_7_public_addresses_unless_temporary_ones_are_preferred() -> None:
    netns = namespace(["2001:db8:1::1/64", "2001:db8:1::2/64"])
    flag(netns, "2001:db8:1::1", IFA_TEMPORARY)
    assert source(netns, "2001:db8:9::9") == "2001:db8:1::2"
    netns.ip.source_selection.prefer_temporary = True
    netns.ip.invalidate()
    assert source(netns, "2001:db8:9::9") == "2001:db8:1::1"


def test_rule_8_the_longest_common_prefix_within_the_candidates_own() -> None:
    netns = namespace(["2001:db8:1::1/64", "2001:db8:2::1/64", "2001:db8:3::1/32"])
    assert source(netns, "2001:db8:2:ffff::9") == "2001:db8:2::1"
    # Only 32 bits of the third count; of equals the first stays.
    assert source(netns, "2001:db8:3:1::9") == "2001:db8:2::1"


def test_an_address_not_known_to_be_unique_is_no_candidate() -> None:
    netns = namespace(["2001:db8:1::1/64"])
    flag(netns, "2001:db8:1::1", IFA_TENTATIVE)
    assert source(netns, "2001:db8:9::9") == "fe80::ff:fe00:1"
    flag(netns, "fe80::ff:fe00:1", IFA_TENTATIVE)
    with pytest.raises(NetError) as caught:
        source(netns, "2001:db8:9::9")
    assert "EADDRNOTAVAIL" in str(caught.value)


def reading(candidates: list[tuple[str, int, bool, int]], dst: str) -> str:
    """RFC 6724 5 as its text runs: "choose between SA and SB", pair by pair. (address, prefix, on link, flags)."""
    table = [("::1/128", 0), ("::ffff:0:0/96", 4), ("::/96", 3), ("2001::/32", 5), ("2002::/16", 2), ("3ffe::/16", 12),
             ("fec0::/10", 11), ("fc00::/7", 13), ("::/0", 1)]  # fmt: skip

    def label(text: str) -> int:
        return next(number for net, number in table if ipaddress.ip_address(text) in ipaddress.ip_network(net))

    def scope(text: str) -> int:
        address = ipaddress.IPv6Address(text)
        if address.is_multicast:
            return int(address) >> 112 & 15
        return 2 if address.is_link_local or address.is_loopback else 5 if address.is_site_local else 14

    def common(text: str, limit: int) -> int:
        one, other = (f"{int(ipaddress.ip_address(each)):0128b}" for each in (text, dst))
        return min(limit, next((at for at in range(128) if one[at] != other[at]), 128))

    def prefers_b(a: tuple[str, int, bool, int], b: tuple[str, int, bool, int]) -> bool:
        if dst in (a[0], b[0]):
            return b[0] == dst
        if scope(a[0]) != scope(b[0]):
            if scope(a[0]) < scope(b[0]):
                return scope(a[0]) < scope(dst)
            return not scope(b[0]) < scope(dst)
        for differs in (
            lambda each: not each[3] & IFA_DEPRECATED,
            lambda each: each[2],
            lambda each: label(each[0]) == label(dst),
            lambda each: not each[3] & IFA_TEMPORARY,
        ):
            if differs(a) != differs(b):
                return bool(differs(b))
        return common(b[0], b[1]) > common(a[0], a[1])

    best = candidates[0]
    for each in candidates[1:]:
        if prefers_b(best, each):
            best = each
    return best[0]


POOL = ["2001:db8:1::1", "2001:db8:1:8000::1", "fd00::1", "fd00:0:0:1::1", "2002:c633:6401::1", "2001:0:1::1",
        "fec0::1", "3ffe::1", "2001:db8:f::1", "fdff::1"]  # fmt: skip
FLAGS = st.sampled_from([0, 0, IFA_DEPRECATED, IFA_TEMPORARY])
CANDIDATE = st.tuples(st.sampled_from(POOL), st.sampled_from([32, 48, 64]), st.booleans(), FLAGS)


@given(
    st.lists(CANDIDATE, min_size=1, max_size=6, unique_by=lambda each: each[0]),
    st.sampled_from([*POOL, "2001:db8:1::99", "fd00::99", "ff0e::1", "ff05::1", "2002:1::1", "2001:0:2::1"]),
)
def test_the_choice_is_that_of_a_second_reading_of_the_rfc(
    candidates: list[tuple[str, int, bool, int]], dst: str
) -> None:
    netns = NetNamespace(Scheduler(rng=random.Random(1)))
    out = netns.add_interface(ScriptedDevice(mac=MACS[0]))
    other = netns.add_interface(ScriptedDevice(mac=MACS[1]))
    for iface in (out, other):
        iface.addresses.clear()
    for text, prefix, on_link, flags in candidates:
        netns.add_address(out if on_link else other, f"{text}/{prefix}").flags |= flags
    if dst.startswith("ff"):
        candidates = [each for each in candidates if each[2]]  # section 4: of that link only
    else:
        candidates = sorted(candidates, key=lambda each: not each[2])  # interfaces in order
    got = SourceSelection().select6(parse_address(dst), out, netns.ip.interfaces.values())
    if not candidates:
        assert got is None
        return
    assert got is not None
    assert str(ipaddress.ip_address(got)) == reading(candidates, dst)


@pytest.mark.parametrize(
    ("text", "scope"),
    [("::1", 2), ("fe80::1", 2), ("fec0::1", 5), ("fd00::1", 14), ("2001:db8::1", 14), ("ff05::2", 5)],
)
def test_scopes_of_addresses(text: str, scope: int) -> None:
    assert scope6(parse_address(text)) == scope


def test_ipv4_takes_the_address_on_the_next_hops_subnet_else_the_first() -> None:
    netns = namespace(["169.254.3.3/16", "10.0.1.1/24", "10.0.2.1/24"], ["10.9.0.1/24"])
    netns.add_route("192.0.2.0/24", "10.0.2.254")
    netns.add_route("198.51.100.0/24", dev="eth0")
    netns.add_route("203.0.113.0/24", "10.0.1.254", src="10.9.0.1")
    assert source(netns, "192.0.2.9") == "10.0.2.1"
    assert source(netns, "198.51.100.9") == "169.254.3.3"
    assert source(netns, "203.0.113.9") == "10.9.0.1", "a route may say"
    assert source(netns, "169.254.9.9") == "169.254.3.3"


def test_ipv4_beyond_a_gateway_is_not_talked_to_from_a_link_local_address() -> None:
    netns = namespace(["169.254.3.3/16"], ["10.9.0.1/24"])
    netns.add_route("192.0.2.0/24", "169.254.0.1", dev="eth0")
    assert source(netns, "192.0.2.9") == "10.9.0.1", "that of another interface instead"
