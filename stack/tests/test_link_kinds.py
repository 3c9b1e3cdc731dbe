"""Links made by kind carry traffic, follow what is below them and take along what Linux takes along (RT-15, RT-16)."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from stack import Network, Stack
from stack.errors import NetError
from stack.iface import kinds
from stack.iface.interface import Interface
from stack.link.device import RxFrame
from stack.netns import NetNamespace
from stack.scheduler import NS_PER_S
from stack.testing.clock import ManualClock


@pytest.fixture
def net() -> Iterator[Network]:
    network = Network(clock=ManualClock(), rng=random.Random(7))
    yield network
    network.close()


def make(netns: NetNamespace, kind: str, name: str, address: str = "", **attributes: Any) -> Interface:
    iface = kinds.create(netns, kind, name, attributes)
    netns.set_up(iface, True)
    if address:
        netns.add_address(iface, address)
    return iface


def veth_to(near: Stack, far: Stack, name: str = "veth0", peer: str = "eth0", address: str = "") -> Interface:
    """A veth of `near` whose other end, up, is `far`'s."""
    own = make(near.netns, "veth", name, data={"peer": {"name": peer, "netns": far.netns}})
    other = far.netns.interface(peer)
    far.netns.set_up(other, True)
    if address:
        far.netns.add_address(other, address)
    return own


def talks(net: Network, one: Stack, other: Stack, address: str, size: int = 100) -> bool:
    """Does a datagram from `one` arrive at `other`, and the answer come back?"""
    with other.socket.socket(2, 2) as server, one.socket.socket(2, 2) as client:
        server.bind(("0.0.0.0", 0))
        client.settimeout(3)
        server.settimeout(3)
        try:
            client.sendto(bytes(size), (address, server.getsockname()[1]))
            data, peer = server.recvfrom(70000)
            server.sendto(data, peer)
            return len(client.recv(70000)) == size
        except TimeoutError:
            return False


def streams(net: Network, one: Stack, other: Stack, address: str, size: int = 300_000) -> bool:
    """Does a TCP stream of `size` bytes, superframes and all, arrive whole?"""
    data = random.Random(1).randbytes(size)
    sent, got = 0, bytearray()
    with (
        other.socket.create_server(("0.0.0.0", 0)) as server,
        one.socket.create_connection((address, server.getsockname()[1]), timeout=5) as client,
        server.accept()[0] as taken,
    ):
        client.setblocking(False)
        taken.setblocking(False)
        for _ in range(2000):
            with suppress(BlockingIOError):
                sent += client.send(data[sent : sent + 60000]) if sent < size else 0
            net.advance(NS_PER_S // 1000)
            with suppress(BlockingIOError):
                got += taken.recv(1 << 18)
            if len(got) == size:
                break
    return bytes(got) == data


def state(*ifaces: Interface) -> list[str]:
    return [f"{iface.name} {'up' if iface.up else 'down'} {'carrier' if iface.carrier else '-'}" for iface in ifaces]


# --- veth -------------------------------------------------------------------------------------------------------------


def test_veth_joins_two_nodes_and_has_a_carrier_while_both_ends_are_up(net: Network) -> None:
    a, b = net.stack("a"), net.stack("b")
    own = make(a.netns, "veth", "v0", "10.1.0.1/24", data={"peer": {"name": "v1", "netns": b.netns}})
    peer = b.netns.interface("v1")
    assert state(own, peer) == ["v0 up -", "v1 down -"]
    b.netns.set_up(peer, True)
    b.netns.add_address(peer, "10.1.0.2/24")
    assert state(own, peer) == ["v0 up carrier", "v1 up carrier"]
    assert talks(net, a, b, "10.1.0.2")
    assert streams(net, a, b, "10.1.0.2")
    a.netns.set_up(own, False)
    assert state(own, peer) == ["v0 down -", "v1 up -"]


def test_veth_peers_go_together_and_the_peer_has_the_lower_index(net: Network) -> None:
    a = net.stack("a")
    own = make(a.netns, "veth", "v0")
    peer = own.link
    assert peer is not None
    assert (peer.name, own.index) == ("veth0", peer.index + 1)
    a.netns.remove_interface("veth0")
    assert list(a.netns.interfaces) == ["lo"]


def test_a_veth_that_cannot_be_leaves_nothing_behind(net: Network) -> None:
    a = net.stack("a")
    make(a.netns, "dummy", "taken")
    with pytest.raises(NetError) as refused:
        kinds.create(a.netns, "veth", "taken", {"data": {"peer": {"name": "v1"}}})
    assert refused.value.errno == errno.EEXIST
    assert list(a.netns.interfaces) == ["lo", "taken"]


# --- bridge -----------------------------------------------------------------------------------------------------------


def test_a_bridge_switches_between_its_ports_and_is_a_node_itself(net: Network) -> None:
    hub, a, b = net.stack("hub"), net.stack("a"), net.stack("b")
    bridge = make(hub.netns, "bridge", "br0", "10.2.0.254/24")
    assert state(bridge) == ["br0 up -"], "without a port there is no carrier"
    for number, node in enumerate((a, b), 1):
        port = veth_to(hub, node, f"p{number}", address=f"10.2.0.{number}/24")
        hub.netns.set_master(port, bridge)
    assert state(bridge) == ["br0 up carrier"]
    assert bridge.mac == min(iface.mac for iface in hub.netns.interfaces.values() if iface.master is bridge)
    assert talks(net, a, b, "10.2.0.2")
    assert streams(net, a, b, "10.2.0.2")
    assert talks(net, a, hub, "10.2.0.254")
    assert talks(net, hub, b, "10.2.0.2")


def test_a_port_that_leaves_is_its_own_again(net: Network) -> None:
    hub, a = net.stack("hub"), net.stack("a")
    bridge = make(hub.netns, "bridge", "br0", "10.2.0.254/24")
    port = veth_to(hub, a, "p1", address="10.2.0.1/24")
    hub.netns.set_master(port, bridge)
    assert talks(net, a, hub, "10.2.0.254")
    hub.netns.set_master(port, None)
    assert state(bridge) == ["br0 up -"]
    assert not talks(net, a, hub, "10.2.0.254")
    hub.netns.remove_interface(bridge)
    hub.netns.add_address(port, "10.2.0.253/24")
    assert talks(net, a, hub, "10.2.0.253")


def test_who_cannot_be_a_port(net: Network) -> None:
    hub = net.stack("hub")
    bridge, other = make(hub.netns, "bridge", "br0"), make(hub.netns, "bridge", "br1")
    for iface, code in ((other, errno.ELOOP), (hub.netns.lo, errno.EINVAL)):
        with pytest.raises(NetError) as refused:
            hub.netns.set_master(iface, bridge)
        assert refused.value.errno == code
    port = make(hub.netns, "dummy", "d0")
    hub.netns.set_master(port, bridge)
    hub.netns.remove_interface(bridge)
    assert port.master is None
    assert not port.rx_hooks


def test_a_bridge_follows_the_smallest_mtu_of_its_ports_until_it_is_set(net: Network) -> None:
    hub = net.stack("hub")
    bridge = make(hub.netns, "bridge", "br0")
    port = make(hub.netns, "dummy", "d0", mtu=1400)
    hub.netns.set_master(port, bridge)
    assert bridge.mtu == 1400
    bridge.set_mtu(1300)
    port.set_mtu(1350)
    assert bridge.mtu == 1300


# --- vlan -------------------------------------------------------------------------------------------------------------


def test_vlans_keep_their_traffic_apart_and_the_parent_keeps_the_untagged(net: Network) -> None:
    a, b = net.stack("a"), net.stack("b")
    near = make(a.netns, "veth", "v0", "10.3.0.1/24", data={"peer": {"name": "v0", "netns": b.netns}})
    far = b.netns.interface("v0")
    b.netns.set_up(far, True)
    b.netns.add_address(far, "10.3.0.2/24")
    for number in (5, 6):
        make(a.netns, "vlan", f"v0.{number}", f"10.3.{number}.1/24", link=near, data={"id": number})
        make(b.netns, "vlan", f"v0.{number}", f"10.3.{number}.2/24", link=far, data={"id": number})
    seen: list[bytes] = []

    def look(burst: Sequence[RxFrame]) -> Sequence[RxFrame]:
        seen.extend(bytes(frame[0][12:16]) for frame in burst)
        return burst

    far.rx_hooks.insert(0, look)
    net.advance(NS_PER_S)  # the announcements of new addresses are through
    for number in (5, 6):
        seen.clear()
        assert talks(net, a, b, f"10.3.{number}.2")
        assert set(seen) == {bytes((0x81, 0, 0, number))}
        assert streams(net, a, b, f"10.3.{number}.2")
    seen.clear()
    assert talks(net, a, b, "10.3.0.2")
    assert not any(tag.startswith(b"\x81\x00") for tag in seen)


def test_a_vlan_on_a_device_without_offloads_is_cut_behind_its_tag(net: Network) -> None:
    from stack.link import Offload, cable

    a, b = net.stack("a"), net.stack("b")
    for stack, end, last in zip((a, b), cable(net.scheduler, offloads=Offload.NONE), (1, 2), strict=True):
        parent = stack.add_interface(end, name="eth0")
        with net.lock:
            make(stack.netns, "vlan", "eth0.9", f"10.4.0.{last}/24", link=parent, data={"id": 9})
            net.finish()
    assert streams(net, a, b, "10.4.0.2")


def test_a_tagged_superframe_is_cut_further_down_where_a_port_lacks_the_offload(net: Network) -> None:
    """The VLAN stands on a bridge, which takes every offload; the bridge's port does not: it cuts behind the tag."""
    from stack.link import Offload, cable

    a, b = net.stack("a"), net.stack("b")
    near, far = (
        stack.add_interface(end, name="eth0")
        for stack, end in zip((a, b), cable(net.scheduler, offloads=Offload.NONE), strict=True)
    )
    with net.lock:
        bridge = make(a.netns, "bridge", "br0")
        a.netns.set_master(near, bridge)
        make(a.netns, "vlan", "br0.9", "10.4.0.1/24", link=bridge, data={"id": 9})
        make(b.netns, "vlan", "eth0.9", "10.4.0.2/24", link=far, data={"id": 9})
        net.finish()
    assert a.netns.interface("br0.9").tso4, "superframes go down whole"
    assert streams(net, a, b, "10.4.0.2")
    assert streams(net, b, a, "10.4.0.1")


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({}, errno.EINVAL),
        ({"link": "d0"}, errno.EINVAL),
        ({"link": "d0", "data": {"id": 4095}}, errno.ERANGE),
        ({"link": "d0", "data": {"id": 1, "protocol": 0x88A8}}, errno.EPROTONOSUPPORT),
        ({"link": "lo", "data": {"id": 1}}, errno.EOPNOTSUPP),
        ({"link": "d0", "data": {"id": 7}}, errno.EEXIST),
        ({"link": "d0", "data": {"id": 8}, "mtu": 9000}, errno.EINVAL),
    ],
)
def test_vlans_that_cannot_be(net: Network, attributes: dict[str, Any], code: int) -> None:
    netns = net.stack("a").netns
    parent = make(netns, "dummy", "d0")
    make(netns, "vlan", "d0.7", link=parent, data={"id": 7})
    if "link" in attributes:
        attributes = {**attributes, "link": netns.interface(attributes["link"])}
    with pytest.raises(NetError) as refused:
        kinds.create(netns, "vlan", "x", attributes)
    assert refused.value.errno == code
    assert list(netns.interfaces) == ["lo", "d0", "d0.7"]


def test_a_vlan_goes_up_and_down_and_away_with_its_parent(net: Network) -> None:
    netns = net.stack("a").netns
    parent = make(netns, "dummy", "d0")
    vlan = make(netns, "vlan", "d0.7", link=parent, data={"id": 7})
    netns.set_up(parent, False)
    assert state(vlan) == ["d0.7 down -"]
    with pytest.raises(NetError) as refused:
        netns.set_up(vlan, True)
    assert refused.value.errno == errno.ENETDOWN
    netns.set_up(parent, True)
    assert state(vlan) == ["d0.7 up carrier"]
    netns.remove_interface(parent)
    assert list(netns.interfaces) == ["lo"]


def test_the_last_vlan_takes_its_hook_along(net: Network) -> None:
    netns = net.stack("a").netns
    parent = make(netns, "dummy", "d0")
    make(netns, "vlan", "d0.7", link=parent, data={"id": 7})
    netns.remove_interface("d0.7")
    assert (parent.rx_hooks, parent.watchers, parent.uppers) == ([], [], [])


# --- macvlan ----------------------------------------------------------------------------------------------------------


def test_macvlans_reach_each_other_and_beyond_but_not_their_parent(net: Network) -> None:
    host, one, two, far = (net.stack(name) for name in ("host", "one", "two", "far"))
    parent = veth_to(host, far, "v0", address="10.5.0.9/24")
    host.netns.add_address(parent, "10.5.0.254/24")
    for number, node in enumerate((one, two), 1):
        # made in the parent's namespace and moved, as a container's would be
        make(host.netns, "macvlan", f"m{number}", link=parent)
        moved = host.netns.interface(f"m{number}")
        node.netns.adopt(moved)
        node.netns.set_up(moved, True)
        node.netns.add_address(moved, f"10.5.0.{number}/24")
    assert talks(net, one, two, "10.5.0.2")
    assert talks(net, one, far, "10.5.0.9")
    assert streams(net, far, two, "10.5.0.2")
    assert talks(net, host, far, "10.5.0.9")
    assert not talks(net, one, host, "10.5.0.254")


def test_macvlans_go_with_their_parent_and_leave_it_as_it_was(net: Network) -> None:
    netns = net.stack("a").netns
    parent = make(netns, "dummy", "d0")
    make(netns, "macvlan", "m0", link=parent)
    assert len(parent.rx_hooks) == 1
    netns.remove_interface("m0")
    assert (parent.rx_hooks, parent.watchers, parent.uppers) == ([], [], [])
    make(netns, "macvlan", "m1", link=parent)
    netns.remove_interface(parent)
    assert list(netns.interfaces) == ["lo"]
    with pytest.raises(NetError) as refused:
        kinds.create(netns, "macvlan", "m2", {"link": netns.lo})
    assert refused.value.errno == errno.EINVAL
