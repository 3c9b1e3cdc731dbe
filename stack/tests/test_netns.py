"""The network namespace: interfaces, addresses, routes, names, and the record of every change."""

from __future__ import annotations

import errno
import random

import pytest

from stack.errors import NetError
from stack.iface.address import parse_address
from stack.iface.changes import ChangeKind
from stack.ip.route import RouteEntry, RouteKind
from stack.netns import NetNamespace
from stack.scheduler import Scheduler
from stack.tests.ip_rig import MY_MAC, ScriptedDevice


def namespace() -> NetNamespace:
    return NetNamespace(Scheduler(rng=random.Random(1)), name="test")


def with_eth0(*addresses: str) -> tuple[NetNamespace, ScriptedDevice]:
    netns, device = namespace(), ScriptedDevice()
    netns.add_interface(device, addresses=addresses or ("10.0.2.2/24", "fd00::2/64"))
    return netns, device


def lines(netns: NetNamespace) -> set[tuple[str, str]]:
    """(prefix in hex, name of the interface) of every route that has one."""
    return {
        (f"{entry.network.hex()}/{entry.prefix_length}", entry.iface.name)
        for entry in netns.routes
        if entry.iface is not None
    }


def test_interfaces_get_the_next_free_name_and_index() -> None:
    netns = namespace()
    first = netns.add_interface(ScriptedDevice())
    named = netns.add_interface(ScriptedDevice(), name="uplink")
    second = netns.add_interface(ScriptedDevice())
    assert [(each.index, each.name) for each in netns.interfaces.values()] == [
        (1, "lo"),
        (2, "eth0"),
        (3, "uplink"),
        (4, "eth1"),
    ]
    netns.remove_interface(first)
    again = netns.add_interface(ScriptedDevice())
    assert (again.name, again.index) == ("eth0", 5), "an index is never used twice"
    assert netns.interface("uplink") is netns.interface(3) is named
    netns.remove_interface("eth1")
    assert second.name not in netns.interfaces


def test_an_interface_has_an_ipv6_link_local_address() -> None:
    netns, _ = with_eth0()
    assert [str(each) for each in netns.interface("eth0").addresses] == [
        "10.0.2.2/24",
        "fd00::2/64",
        "fe80::ff:fe00:1/64",
    ]


def test_addresses_bring_their_subnet_routes_and_take_them_away() -> None:
    netns, _ = with_eth0("10.0.2.2/24", "10.0.2.3/24", "192.0.2.1/32", "fd00::2/64")
    assert lines(netns) == {
        ("0a000200/24", "eth0"),
        ("fd00" + "0" * 28 + "/64", "eth0"),
        ("fe80" + "0" * 28 + "/64", "eth0"),
    }
    eth = netns.interface("eth0")
    netns.remove_address(eth, parse_address("10.0.2.2"))
    assert ("0a000200/24", "eth0") not in lines(netns)
    assert not netns.ip.is_own_unicast(parse_address("10.0.2.3")), "a secondary address goes with its primary one"


def test_a_secondary_address_goes_alone() -> None:
    netns, _ = with_eth0("10.0.2.2/24", "10.0.2.3/24")
    eth = netns.interface("eth0")
    netns.remove_address(eth, parse_address("10.0.2.3"))
    assert ("0a000200/24", "eth0") in lines(netns)
    assert netns.ip.is_own_unicast(parse_address("10.0.2.2"))


def test_an_address_is_announced() -> None:
    """RFC 5227 2.3."""
    netns, device = with_eth0("10.0.2.2/24")
    netns.scheduler.run_deferred()
    frames = [b"".join(frame[0]) for frame in device.sent]
    assert [frame[28:32] for frame in frames if frame[12:14] == b"\x08\x06"] == [parse_address("10.0.2.2")]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"addresses": ["10.0.2.2/24", "10.0.2.300/24"]}, "10.0.2.300"),
        ({"addresses": ["224.0.0.1/24"]}, "224.0.0.1/24"),
        ({"name": ""}, "not an interface name"),
        ({"name": "a" * 16}, "not an interface name"),
        ({"name": "a/b"}, "not an interface name"),
        ({"name": "a b"}, "not an interface name"),
        ({"mac": b"\xff" * 6}, "ff:ff:ff:ff:ff:ff"),
        ({"mtu": 9000}, "MTU 9000"),
    ],
)
def test_what_cannot_be_is_named_and_leaves_nothing(how: dict[str, object], says: str) -> None:
    netns, device = namespace(), ScriptedDevice()
    end = netns.changes.end
    with pytest.raises(ValueError, match=says):
        netns.add_interface(device, **how)  # type: ignore[arg-type]  # a table of keywords
    assert (list(netns.interfaces), device.on_change, netns.changes.end) == (["lo"], None, end)


def test_names_are_unique_and_lo_stays() -> None:
    netns, _ = with_eth0()
    with pytest.raises(NetError, match="already"):
        netns.add_interface(ScriptedDevice(), name="eth0")
    with pytest.raises(NetError) as caught:
        netns.remove_interface("lo")
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(NetError, match="there are: lo, eth0") as caught:
        netns.interface("eth7")
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(NetError, match="already"):
        netns.add_address(netns.interface("eth0"), "10.0.2.2/24")
    with pytest.raises(NetError):
        netns.remove_address(netns.lo, parse_address("10.0.2.2"))


def test_routes_by_gateway_and_by_device() -> None:
    """IF-15."""
    netns, _ = with_eth0()
    default = netns.add_route("default", "10.0.2.1")
    assert (default.gateway, default.iface, default.prefix_length) == (
        parse_address("10.0.2.1"),
        netns.interface("eth0"),
        0,
    )
    assert netns.ip.route(parse_address("192.0.2.1")).next_hop == parse_address("10.0.2.1")
    netns.add_route("192.0.2.0/24", dev="eth0")
    assert netns.ip.route(parse_address("192.0.2.1")).next_hop == parse_address("192.0.2.1")
    netns.add_route("default", "fd00::1")
    assert netns.ip.route(parse_address("2001:db8::1")).next_hop == parse_address("fd00::1")
    netns.add_route("198.51.100.0/24", kind=RouteKind.PROHIBIT)
    with pytest.raises(NetError) as caught:
        netns.ip.route(parse_address("198.51.100.1"))
    assert caught.value.errno == errno.EACCES
    netns.remove_route(default)
    with pytest.raises(NetError) as caught:
        netns.remove_route(default)
    assert caught.value.errno == errno.ESRCH


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"dst": "10.0.2.1/24", "dev": "eth0"}, ValueError, "host bits"),
        ({"dst": "nonsense", "dev": "eth0"}, ValueError, "nonsense"),
        ({"dst": "default", "gateway": "10.0.9.1"}, NetError, "on no subnet of ours"),
        ({"dst": "10.1.0.0/16"}, NetError, "needs a gateway or a device"),
        ({"dst": "10.1.0.0/16", "dev": "eth5"}, NetError, "no interface 'eth5'"),
        ({"dst": "10.0.2.0/24", "dev": "eth0"}, NetError, "already"),
    ],
)
def test_routes_that_cannot_be(how: dict[str, str], error: type[Exception], says: str) -> None:
    netns, _ = with_eth0()
    before = lines(netns)
    with pytest.raises(error, match=says):
        netns.add_route(**how)  # type: ignore[arg-type]  # a table of keywords
    assert lines(netns) == before


def test_every_change_is_recorded() -> None:
    netns, device = namespace(), ScriptedDevice()
    cursor = netns.changes.end
    eth = netns.add_interface(device, addresses=["10.0.2.2/24"])
    route = netns.add_route("default", "10.0.2.1")
    eth.set_mtu(1400)
    device.carrier = False
    device.changed()
    netns.remove_interface(eth)
    records, lost = netns.changes.since(cursor)
    told = [(record.kind, record.detail) for record in records]
    assert lost == 0
    assert told[:5] == [
        (ChangeKind.NEW_LINK, "new"),
        (ChangeKind.NEW_ADDRESS, ""),
        *[(ChangeKind.NEW_ROUTE, "implied")] * 3,  # to itself, to its subnet, to everybody there (RT-17)
    ]
    assert (ChangeKind.NEW_LINK, "mtu") in told
    assert (ChangeKind.NEW_LINK, "no carrier") in told
    assert told[-1] == (ChangeKind.DEL_LINK, "")
    deleted = [record.subject for record in records if record.kind is ChangeKind.DEL_ROUTE]
    assert route in deleted
    assert all(isinstance(each, RouteEntry) for each in deleted)
    assert all(record.ifindex == eth.index for record in records)


def test_closing_removes_everything() -> None:
    netns, device = with_eth0()
    netns.close()
    netns.close()
    assert (list(netns.interfaces), device.on_change, netns.lo.device.carrier) == (["lo"], None, False)
    assert lines(netns) == set()


def test_two_namespaces_share_nothing() -> None:
    one, other = with_eth0()[0], namespace()
    one.udp.bind(bytes(4), 7)
    other.udp.bind(bytes(4), 7)
    with pytest.raises(NetError):
        other.ip.route(parse_address("10.0.2.9"))
    assert one.interface("eth0").mac == MY_MAC
