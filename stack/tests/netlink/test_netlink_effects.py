"""What is configured by rtnetlink is what packets meet: tables, rules, multipath, metrics; links of every kind."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.errors import NetError
from stack.iface import kinds
from stack.scheduler import NS_PER_S
from stack.testing.clock import ManualClock
from stack.tests.netlink.script import MAC_A, NEW, ip
from stack.tests.netlink.test_netlink_hostile import Talker
from stack.wire.netlink import header
from stack.wire.netlink.address import ADDR
from stack.wire.netlink.header import NLM_F_DUMP, NLM_F_REQUEST
from stack.wire.netlink.link import LINK
from stack.wire.netlink.neighbour import NEIGHTBL
from stack.wire.netlink.route import ROUTE
from stack.wire.netlink.rtnetlink import AF_INET, Group, Rtm
from stack.wire.netlink.rule import RULE, RuleAction


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


@pytest.fixture
def talker(stack: Stack) -> Iterator[Talker]:
    made = Talker(stack)
    yield made
    made.close()


def add(stack: Stack, talker: Talker, name: str, kind: str = "dummy", **more: Any) -> Any:
    """A link that is up."""
    info: dict[str, Any] = {"kind": kind}
    if "data" in more:
        info["data"] = more.pop("data")
    body = LINK.emit({"flags": 1, "change": 1}, {"ifname": name, "linkinfo": info, **more})
    assert talker.ask(Rtm.NEWLINK, NEW, body) == 0
    return stack.netns.interface(name)


def show(talker: Talker, index: int) -> dict[str, Any]:
    talker.sock.send(header.pack(Rtm.GETLINK, NLM_F_REQUEST, 1, 0, LINK.emit({"index": index})))
    return LINK.parse(talker.sock.recv(65536)[16:]).attributes


def route(length: int, network: str, fields: dict[str, int] | None = None, **more: Any) -> bytes:
    base = {"family": AF_INET, "dst_len": length, "table": 254, "type": 1, "protocol": 4, **(fields or {})}
    return ROUTE.emit(base, {"dst": ip(network), **more})


def test_multipath_shares_flows_by_weight_and_keeps_each_to_one_way(stack: Stack, talker: Talker) -> None:
    one, two = add(stack, talker, "one"), add(stack, talker, "two")
    ways = [{"oif": one.index, "hops": 0}, {"oif": two.index, "hops": 2}]
    assert talker.ask(Rtm.NEWROUTE, NEW, route(16, "10.8.0.0", {"scope": 253}, multipath=ways)) == 0
    targets = [bytes((10, 8, high, low)) for high in range(8) for low in range(128)]
    found = [stack.netns.ip.route(target).iface.name for target in targets]
    shares = Counter(found)
    assert 0.25 < shares["one"] / len(targets) < 0.42
    assert found == [stack.netns.ip.route(target).iface.name for target in targets]
    stack.netns.ip.invalidate()
    assert found == [stack.netns.ip.route(target).iface.name for target in targets]
    two.set_up(False)  # the route is not taken away by the device alone
    assert {stack.netns.ip.route(target).iface.name for target in targets} == {"one"}


def test_a_rule_leads_to_its_table(stack: Stack, talker: Talker) -> None:
    main, other = add(stack, talker, "main"), add(stack, talker, "other")
    stack.netns.add_address(main, "192.0.2.1/24")
    stack.netns.add_address(other, "192.0.2.2/32")
    assert talker.ask(Rtm.NEWROUTE, NEW, route(16, "10.8.0.0", {"scope": 253}, oif=main.index)) == 0
    assert talker.ask(Rtm.NEWROUTE, NEW, route(16, "10.8.0.0", {"scope": 253}, oif=other.index, table=1000)) == 0
    target, source = ip("10.8.1.1"), ip("192.0.2.2")
    assert stack.netns.ip.route(target, src=source).iface is main
    rule = RULE.emit({"family": AF_INET, "src_len": 32, "action": 1}, {"src": source, "table": 1000, "priority": 9})
    assert talker.ask(Rtm.NEWRULE, NEW, rule) == 0
    assert stack.netns.ip.route(target, src=source).iface is other
    assert stack.netns.ip.route(target).iface is main
    assert talker.ask(Rtm.DELRULE, 0, rule) == 0
    assert stack.netns.ip.route(target, src=source).iface is main


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (RuleAction.BLACKHOLE, errno.EINVAL),
        (RuleAction.UNREACHABLE, errno.EHOSTUNREACH),
        (RuleAction.PROHIBIT, errno.EACCES),
    ],
)
def test_a_rule_refuses(stack: Stack, talker: Talker, action: int, code: int) -> None:
    main = add(stack, talker, "main")
    stack.netns.add_route("default", dev=main)
    rule = RULE.emit({"family": AF_INET, "dst_len": 8, "action": action}, {"dst": ip("10.0.0.0"), "priority": 9})
    assert talker.ask(Rtm.NEWRULE, NEW, rule) == 0
    with pytest.raises(NetError) as caught:
        stack.netns.ip.route(ip("10.1.1.1"))
    assert caught.value.errno == code
    assert stack.netns.ip.route(ip("11.1.1.1")).iface is main


def test_a_rule_may_leave_short_prefixes_to_others(stack: Stack, talker: Talker) -> None:
    """suppress_prefixlength 0: a default route in the table does not count."""
    main, other = add(stack, talker, "main"), add(stack, talker, "other")
    stack.netns.add_route("default", dev=main)
    assert talker.ask(Rtm.NEWROUTE, NEW, route(0, "0.0.0.0", {"scope": 253}, oif=other.index, table=99)) == 0
    rule = RULE.emit({"family": AF_INET, "action": 1}, {"table": 99, "priority": 9, "suppress_prefixlen": 0})
    assert talker.ask(Rtm.NEWRULE, NEW, rule) == 0
    assert stack.netns.ip.route(ip("10.1.1.1")).iface is main


def test_a_metric_bounds_the_packets(stack: Stack, talker: Talker) -> None:
    main = add(stack, talker, "main")
    made = route(16, "10.8.0.0", {"scope": 253}, oif=main.index, metrics={"mtu": 1300})
    assert talker.ask(Rtm.NEWROUTE, NEW, made) == 0
    assert stack.netns.ip.route(ip("10.8.1.1")).mtu == 1300


def test_links_of_every_kind(stack: Stack, talker: Talker) -> None:
    below = add(stack, talker, "dm0")
    vlan = add(stack, talker, "vlan5", "vlan", data={"id": 5}, link=below.index)
    shown = show(talker, vlan.index)
    assert shown["link"] == below.index
    assert shown["linkinfo"]["kind"] == "vlan"
    assert shown["linkinfo"]["data"]["id"] == 5
    macvlan = add(stack, talker, "mv0", "macvlan", link=below.index, address=MAC_A)
    assert show(talker, macvlan.index)["linkinfo"]["kind"] == "macvlan"
    assert show(talker, macvlan.index)["address"] == MAC_A
    bridge = add(stack, talker, "br0", "bridge")
    port = add(stack, talker, "dm1", master=bridge.index)
    shown = show(talker, port.index)
    assert shown["master"] == bridge.index
    assert shown["linkinfo"] == {"kind": "dummy", "slave_kind": "bridge"}
    assert talker.ask(Rtm.SETLINK, 0, LINK.emit({"index": port.index}, {"master": 0})) == 0
    assert "master" not in show(talker, port.index)
    add(stack, talker, "va", "veth", data={"peer": {"ifname": "vb"}})
    assert "vb" in stack.netns.interfaces
    assert set(kinds.kinds()) >= {"bridge", "dummy", "macvlan", "veth", "vlan"}
    assert talker.ask(Rtm.DELLINK, 0, LINK.emit({"index": below.index})) == 0
    assert {"vlan5", "mv0"}.isdisjoint(stack.netns.interfaces), "what stands on a link goes with it"


def test_a_name_is_found_for_who_gives_none(stack: Stack, talker: Talker) -> None:
    for _ in range(2):
        assert talker.ask(Rtm.NEWLINK, NEW, LINK.emit({}, {"linkinfo": {"kind": "dummy"}})) == 0
    assert list(stack.netns.interfaces) == ["lo", "dummy0", "dummy1"]


def test_a_dummy_swallows(stack: Stack, talker: Talker) -> None:
    main = add(stack, talker, "main")
    stack.netns.add_address(main, "192.0.2.1/24")
    with stack.socket.socket(2, 2) as sock:
        sock.sendto(b"x", ("192.0.2.9", 7))
    assert main.stats.tx_packets >= 1
    talker.sock.send(header.pack(Rtm.GETLINK, NLM_F_REQUEST, 1, 0, LINK.emit({"index": main.index})))
    shown = LINK.parse(talker.sock.recv(65536)[16:])
    assert shown.fields["flags"] & 0x80, "IFF_NOARP: nobody is asked for"
    assert shown.attributes["stats64"]["tx_packets"] == main.stats.tx_packets


def test_getneightbl_lists_both_caches_and_their_parameters(stack: Stack, talker: Talker) -> None:
    talker.sock.send(header.pack(Rtm.GETNEIGHTBL, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, bytes(4)))
    found: list[Any] = []
    while not found or found[-1] is not None:
        for each, whole in header.split(talker.sock.recv(65536)):
            found.append(NEIGHTBL.parse(whole[16:]) if each.type == Rtm.NEWNEIGHTBL else None)
    tables = [(each.attributes["name"], each.attributes["parms"].get("ifindex")) for each in found[:-1]]
    assert tables == [("arp_cache", None), ("arp_cache", 1), ("ndisc_cache", None), ("ndisc_cache", 1)]
    assert found[0].attributes["parms"]["retrans_time"] == 1000
    assert found[0].attributes["thresh3"] == 1024


def test_changes_are_echoed(stack: Stack, talker: Talker) -> None:
    """NLM_F_ECHO: who asked for a change is told of it, once, although he listens too."""
    talker.sock.bind((0, 1 << 4))
    body = ADDR.emit({"family": AF_INET, "prefixlen": 32, "index": 1}, {"local": ip("127.9.9.9")})
    talker.sock.send(header.pack(Rtm.NEWADDR, NLM_F_REQUEST | NEW | header.NLM_F_ECHO, 5, 0, body))
    heard: list[int] = []
    while header.NLMSG_ERROR not in heard:
        heard.extend(each.type for each, _ in header.split(talker.sock.recv(65536)))
    assert heard == [Rtm.NEWADDR, header.NLMSG_ERROR]


def test_addresses_end_when_their_time_is_over() -> None:
    """Deprecated first, which is told, and not used for new conversations; then gone, with its routes."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        stack = network.stack("gw")
        talker = Talker(stack)
        link = add(stack, talker, "dm0")
        ear = stack.socket.socket(16, 3, 0)
        ear.bind((0, 1 << Group.IPV4_IFADDR - 1))
        ear.settimeout(0)
        for last, preferred, valid in ((1, 0xFFFFFFFF, 0xFFFFFFFF), (2, 10, 30)):
            times = {"preferred": preferred, "valid": valid, "cstamp": 0, "tstamp": 0}
            fields = {"family": AF_INET, "prefixlen": 32, "index": link.index}
            given = {"local": bytes((10, 0, 0, last)), "cacheinfo": times}
            assert talker.ask(Rtm.NEWADDR, NEW, ADDR.emit(fields, given)) == 0

        def heard() -> list[tuple[str, int, int]]:
            told: list[tuple[str, int, int]] = []
            while True:
                try:
                    data = ear.recv(65536)
                except BlockingIOError:
                    return told
                for found, whole in header.split(data):
                    message = ADDR.parse(bytes(whole[16:]))
                    cache = message.attributes["cacheinfo"]
                    told.append((Rtm(found.type).name, message.fields["flags"], cache["valid"]))

        assert heard() == [("NEWADDR", 0x80, 0xFFFFFFFF), ("NEWADDR", 0, 30)]
        network.advance(9 * NS_PER_S)
        assert heard() == []
        network.advance(2 * NS_PER_S)
        assert heard() == [("NEWADDR", 0x20, 20)]
        network.advance(18 * NS_PER_S)
        assert heard() == []
        network.advance(NS_PER_S)
        ((verb, _, left),) = heard()
        assert (verb, left) == ("DELADDR", 0)
        assert [str(each) for each in link.addresses if len(each.address) == 4] == ["10.0.0.1/32"]
        ear.close()
        talker.close()


def test_a_rule_by_mark_leads_marked_packets_to_its_table(stack: Stack, talker: Talker) -> None:
    """SO_MARK of the sender, in the bits of the mask."""
    main, other = add(stack, talker, "main"), add(stack, talker, "other")
    stack.netns.add_address(main, "192.0.2.1/24")
    assert talker.ask(Rtm.NEWROUTE, NEW, route(8, "10.0.0.0", oif=main.index)) == 0
    assert talker.ask(Rtm.NEWROUTE, NEW, route(8, "10.0.0.0", {"table": 100}, oif=other.index)) == 0
    marked = {"fwmark": 0x10, "fwmask": 0xF0, "table": 100}
    assert talker.ask(Rtm.NEWRULE, NEW, RULE.emit({"family": AF_INET, "action": 1}, marked)) == 0
    target = ip("10.1.1.1")
    for mark, link in ((0, main), (0x10, other), (0x1F, other), (0x20, main)):
        assert stack.netns.ip.route(target, mark=mark).iface is link
