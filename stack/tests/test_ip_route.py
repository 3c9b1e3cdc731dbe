"""Routing (IF-15): the table against a brute-force oracle, what `route` answers, sources, path MTUs, generations."""

from __future__ import annotations

import errno
import ipaddress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.errors import NetError
from stack.iface.address import InterfaceAddress, network_of
from stack.iface.interface import Interface
from stack.ip.route import RouteEntry, RouteKind, RouteTable
from stack.link.device import Offload
from stack.tests.ip_rig import EVERYBODY, LO, LO6, ME, ME6, PEER, PEER6, SUBNET_BROADCAST, Host

GATEWAY = bytes((10, 0, 2, 1))
FAR = bytes((192, 0, 2, 7))


def iface(index: int, *, up: bool = True) -> Interface:
    return cast(Interface, SimpleNamespace(index=index, up=up, name=f"eth{index}"))


ENTRIES = st.lists(
    st.tuples(st.integers(0, 255), st.integers(24, 32), st.integers(0, 3), st.integers(1, 3)), max_size=20
)


@given(ENTRIES, st.integers(0, 255), st.integers(0, 3))
def test_longest_prefix_then_lowest_metric(lines: list[tuple[int, int, int, int]], host: int, oif: int) -> None:
    """Against trying every line; interface 3 is down."""
    links = {index: iface(index, up=index != 3) for index in (1, 2, 3)}
    table = RouteTable(4)
    kept: list[RouteEntry] = []
    for low, length, metric, index in lines:
        entry = RouteEntry(network_of(bytes((10, 0, 0, low)), length), length, links[index], metric=metric)
        if table.add(entry):
            kept.append(entry)
    dst = bytes((10, 0, 0, host))
    fitting = [
        entry
        for entry in kept
        if ipaddress.ip_address(dst) in ipaddress.ip_network((entry.network, entry.prefix_length))
        and entry.iface is not None
        and entry.iface.up
        and (not oif or entry.iface.index == oif)
    ]
    best = max(fitting, key=lambda each: (each.prefix_length, -each.metric), default=None)
    found = table.lookup(dst, oif)
    if best is None:
        assert found is None
    else:
        assert found is not None
        assert (found.prefix_length, found.metric) == (best.prefix_length, best.metric)
    for entry in kept:
        assert table.remove(entry)
        assert not table.remove(entry)
    assert list(table) == []


def test_the_same_line_twice_is_refused() -> None:
    table, link = RouteTable(4), iface(1)
    assert table.add(RouteEntry(bytes(4), 0, link, gateway=GATEWAY))
    assert not table.add(RouteEntry(bytes(4), 0, link, gateway=GATEWAY))
    assert table.add(RouteEntry(bytes(4), 0, link, gateway=GATEWAY, metric=5))


@pytest.mark.parametrize(
    ("dst", "kind", "name", "src"),
    [
        (PEER, RouteKind.UNICAST, "eth0", ME),
        (PEER6, RouteKind.UNICAST, "eth0", ME6),
        (ME, RouteKind.LOCAL, "lo", ME),
        (ME6, RouteKind.LOCAL, "lo", ME6),
        (LO, RouteKind.LOCAL, "lo", LO),
        (LO6, RouteKind.LOCAL, "lo", LO6),
        (bytes((127, 1, 2, 3)), RouteKind.LOCAL, "lo", bytes((127, 1, 2, 3))),
        (SUBNET_BROADCAST, RouteKind.BROADCAST, "eth0", ME),
        (bytes((10, 0, 2, 0)), RouteKind.BROADCAST, "eth0", ME),
    ],
)
def test_where_packets_go(dst: bytes, kind: RouteKind, name: str, src: bytes) -> None:
    route = Host().ip.route(dst)
    assert (route.kind, route.iface.name, route.src, route.next_hop) == (kind, name, src, dst)


@pytest.mark.parametrize(("dst", "loopback"), [(bytes(4), LO), (bytes(16), LO6)])
def test_the_unspecified_address_means_this_host(dst: bytes, loopback: bytes) -> None:
    assert Host().ip.route(dst).dst == loopback


@pytest.mark.parametrize("dst", [FAR, EVERYBODY, bytes((239, 1, 2, 3)), bytes.fromhex("20010db8" + "00" * 12)])
def test_no_route(dst: bytes) -> None:
    with pytest.raises(NetError) as caught:
        Host().ip.route(dst)
    assert caught.value.errno == errno.ENETUNREACH


def test_a_gateway_is_the_next_hop_but_not_for_groups_and_broadcasts() -> None:
    host = Host()
    host.ip.add_route(RouteEntry(bytes(4), 0, host.eth, gateway=GATEWAY))
    far = host.ip.route(FAR)
    assert (far.next_hop, far.src, far.kind) == (GATEWAY, ME, RouteKind.UNICAST)
    assert host.ip.route(EVERYBODY).next_hop == EVERYBODY
    group = host.ip.route(bytes((239, 1, 2, 3)))
    assert (group.next_hop, group.kind) == (bytes((239, 1, 2, 3)), RouteKind.MULTICAST)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (RouteKind.BLACKHOLE, errno.EINVAL),
        (RouteKind.UNREACHABLE, errno.EHOSTUNREACH),
        (RouteKind.PROHIBIT, errno.EACCES),
    ],
)
def test_routes_that_say_no(kind: RouteKind, number: int) -> None:
    host = Host()
    host.ip.add_route(RouteEntry(network_of(FAR, 24), 24, None, kind=kind))
    with pytest.raises(NetError) as caught:
        host.ip.route(FAR)
    assert caught.value.errno == number


def test_an_interface_may_be_asked_for() -> None:
    host = Host()
    assert host.ip.route(EVERYBODY, oif=2).iface is host.eth
    assert host.ip.route(bytes((239, 1, 2, 3)), oif=2).kind is RouteKind.MULTICAST
    with pytest.raises(NetError) as caught:
        host.ip.route(PEER, oif=99)
    assert caught.value.errno == errno.ENODEV


def test_the_source_is_on_the_next_hops_subnet() -> None:
    host = Host()
    host.eth.addresses.insert(0, InterfaceAddress.parse("172.16.0.1/16"))
    host.ip.refresh()
    assert host.ip.route(PEER).src == ME
    assert host.ip.route(PEER, src=bytes((172, 16, 0, 1))).src == bytes((172, 16, 0, 1))


def test_ipv6_sources_match_scope_and_prefix() -> None:
    """RFC 6724 in the small."""
    host = Host()
    host.eth.addresses.insert(0, InterfaceAddress.parse("fe80::1/64"))
    host.eth.addresses.append(InterfaceAddress.parse("2001:db8::1/64"))
    host.ip.add_route(RouteEntry(bytes(16), 0, host.eth))
    host.ip.refresh()
    assert host.ip.route(PEER6).src == ME6
    assert host.ip.route(ipaddress.ip_address("2001:db8:1::5").packed).src == ipaddress.ip_address("2001:db8::1").packed
    assert host.ip.route(ipaddress.ip_address("fe80::9").packed, oif=2).src == ipaddress.ip_address("fe80::1").packed


def test_no_source_at_all() -> None:
    host = Host()
    host.eth.addresses.clear()
    host.ip.refresh()
    with pytest.raises(NetError) as caught:
        host.ip.route(PEER6)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert host.ip.route(EVERYBODY, oif=2).src == bytes(4), "an interface may ask for its first address"


@pytest.mark.parametrize("change", ["address", "route", "down", "mtu", "mac", "device", "path mtu"])
def test_whatever_may_change_a_route_bumps_the_generation(change: str) -> None:
    host = Host()
    route = host.ip.route(PEER)
    assert host.ip.route(PEER) is route, "asking again costs a dictionary"
    if change == "address":
        host.ip.refresh()
    elif change == "route":
        host.ip.add_route(RouteEntry(bytes(4), 0, host.eth))
    elif change == "down":
        host.eth.set_up(False)
    elif change == "mtu":
        host.eth.set_mtu(1000)
    elif change == "mac":
        host.eth.set_mac(bytes.fromhex("020000000077"))
    elif change == "device":
        host.device.mtu = 1400
        host.device.changed()
    else:
        host.ip.update_path_mtu(PEER, 1000)
    assert route.generation != host.ip.generation


def test_a_route_goes_with_its_link() -> None:
    host = Host()
    host.eth.set_up(False)
    with pytest.raises(NetError):
        host.ip.route(PEER)
    host.eth.set_up(True)
    host.ip.route(PEER)


@pytest.mark.parametrize(("dst", "floor"), [(PEER, 552), (PEER6, 1280)])
def test_path_mtu_is_believed_down_to_a_floor_and_for_ten_minutes(dst: bytes, floor: int) -> None:
    host = Host()
    host.ip.update_path_mtu(dst, 1400)
    assert host.ip.mtu_for(host.ip.route(dst)) == 1400
    host.ip.update_path_mtu(dst, 1450)
    assert host.ip.route(dst).mtu == 1400, "only downwards"
    host.ip.update_path_mtu(dst, 1)
    assert host.ip.route(dst).mtu == floor
    host.pass_time(601 * 10**9)
    host.ip.invalidate()
    assert host.ip.route(dst).mtu == 1500


@pytest.mark.parametrize(
    ("offloads", "limit4", "limit6"),
    [
        (Offload.CSUM | Offload.TSO4 | Offload.TSO6, 65515, 65495),
        (Offload.NONE, 65515, 65535),  # cut in software, so the device's frame size is no limit
    ],
)
def test_the_largest_superframe(offloads: Offload, limit4: int, limit6: int) -> None:
    host = Host(offloads=offloads)
    assert host.ip.offloads_for(host.ip.route(PEER)) == (offloads, limit4)
    assert host.ip.offloads_for(host.ip.route(PEER6)) == (offloads, limit6)


def test_removing_an_interface_takes_its_routes_and_groups() -> None:
    host = Host()
    group = bytes((239, 1, 2, 3))
    host.ip.join_group(group, host.eth)
    gone = host.ip.remove_interface(host.eth)
    assert [entry.iface for entry in gone] == [host.eth, host.eth]
    assert group not in host.ip.local
    with pytest.raises(NetError):
        host.ip.leave_group(group, host.eth)


def test_the_route_cache_is_bounded() -> None:
    host = Host()
    cache: dict[Any, Any] = host.ip._cache
    for number in range(10_000):
        host.ip.route(bytes((127, 1, number >> 8, number & 255)))
    assert len(cache) <= 4096
