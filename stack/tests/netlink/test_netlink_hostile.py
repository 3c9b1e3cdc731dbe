"""Bad input to rtnetlink, and writers that race: refusals change nothing, and nothing raises inside the stack."""

from __future__ import annotations

import errno
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stack import Network, Stack
from stack.netns import NetNamespace
from stack.socket.netlink.endpoint import SOL_NETLINK
from stack.socket.netlink.options import NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK
from stack.tests.netlink.script import MAC_A, NEW, ip
from stack.wire.netlink import header
from stack.wire.netlink.address import ADDR
from stack.wire.netlink.attribute import pack
from stack.wire.netlink.header import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
from stack.wire.netlink.link import LINK
from stack.wire.netlink.neighbour import NEIGH
from stack.wire.netlink.route import ROUTE
from stack.wire.netlink.rtnetlink import AF_INET, Rtm
from stack.wire.netlink.rule import RULE

AF_NETLINK, RAW = 16, 3


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def dummy(name: str, **attributes: Any) -> bytes:
    return LINK.emit({}, {"ifname": name, "linkinfo": {"kind": "dummy"}, **attributes})


class Talker:
    """A socket that asks and wants to know the errno."""

    def __init__(self, stack: Stack) -> None:
        self.sock = stack.socket.socket(AF_NETLINK, RAW, 0)
        self.sock.settimeout(5)
        self.seq = 0

    def ask(self, kind: int, flags: int, body: bytes) -> int:
        self.seq += 1
        self.sock.send(header.pack(kind, NLM_F_REQUEST | NLM_F_ACK | flags, self.seq, 0, body))
        while True:
            for found, whole in header.split(self.sock.recv(65536)):
                if found.type == header.NLMSG_ERROR:
                    assert found.seq == self.seq
                    return -int(struct.unpack_from("=i", whole, 16)[0])

    def close(self) -> None:
        self.sock.close()


def snapshot(netns: NetNamespace) -> Any:
    """Everything a request could change."""
    links = [
        (
            *(each.index, each.name, each.kind, each.mac, each.mtu, each.up, each.alias, each.group),
            *(each.tx_queue_length, each.promiscuous, each.link and each.link.index, each.master and each.master.index),
            [(one.address, one.prefix_length, one.flags, one.label) for one in each.addresses],
            sorted((one.address, one.mac or b"", int(one.state)) for one in each.neighbours),
        )
        for each in netns.interfaces.values()
    ]
    rules = [(one.priority, one.table, one.action) for one in (*netns.ip.routes4.rules, *netns.ip.routes6.rules)]
    return links, sorted(map(repr, netns.routes)), rules


PARTIAL = [
    pytest.param(Rtm.SETLINK, {"mtu": 1300, "ifname": "lo"}, errno.EEXIST, id="the name is taken"),
    pytest.param(Rtm.SETLINK, {"ifname": "new", "mtu": 10}, errno.EINVAL, id="the MTU is too small"),
    pytest.param(Rtm.SETLINK, {"address": b"\2" * 6, "mtu": 10}, errno.EINVAL, id="the MTU after the MAC"),
    pytest.param(Rtm.SETLINK, {"ifalias": "x", "txqlen": 3, "address": b"\1" * 6}, errno.EADDRNOTAVAIL, id="the MAC"),
    pytest.param(Rtm.SETLINK, {"mtu": 1300, "group": 5, "master": 77}, errno.EINVAL, id="no such master"),
    pytest.param(Rtm.SETLINK, {"mtu": 1300, "master": 1}, errno.EOPNOTSUPP, id="not a master"),
    pytest.param(Rtm.NEWLINK, {"mtu": 1300, "linkinfo": {"data": b""}}, errno.EOPNOTSUPP, id="data of a kind"),
    pytest.param(Rtm.SETLINK, {"mtu": 1300, "net_ns_pid": 1}, errno.EINVAL, id="namespaces"),
]


@pytest.mark.parametrize(("kind", "attributes", "code"), PARTIAL)
def test_a_refused_change_changes_nothing(stack: Stack, kind: int, attributes: dict[str, Any], code: int) -> None:
    """Linux would have made the changes before the one it refuses, and say so in its log."""
    talker = Talker(stack)
    assert talker.ask(Rtm.NEWLINK, NEW, dummy("dm0", address=MAC_A)) == 0
    index = stack.netns.interface("dm0").index
    before = snapshot(stack.netns)
    assert talker.ask(kind, 0, LINK.emit({"index": index, "flags": 1, "change": 1}, attributes)) == code
    assert snapshot(stack.netns) == before
    talker.close()


REFUSED_LINKS = [
    pytest.param({"mtu": 10}, errno.EINVAL, id="MTU"),
    pytest.param({"address": b"\1" * 6}, errno.EADDRNOTAVAIL, id="a group's MAC"),
    pytest.param({"address": b"\2"}, errno.EINVAL, id="a short MAC"),
    pytest.param({"link": 77}, errno.ENODEV, id="no link below"),
    pytest.param({"master": 77}, errno.EINVAL, id="no master"),
    pytest.param({"master": 1}, errno.EOPNOTSUPP, id="a master that takes no ports"),
    pytest.param({"ifname": "a b"}, errno.EINVAL, id="a name"),
]


@pytest.mark.parametrize(("attributes", "code"), REFUSED_LINKS)
def test_a_refused_link_is_not_there(stack: Stack, attributes: dict[str, Any], code: int) -> None:
    talker = Talker(stack)
    before = snapshot(stack.netns)
    assert (
        talker.ask(
            Rtm.NEWLINK,
            NEW,
            dummy(**{"name": "dm0", **attributes} if "ifname" not in attributes else {"name": attributes["ifname"]}),
        )
        == code
    )
    assert snapshot(stack.netns) == before
    talker.close()


# --- any bytes --------------------------------------------------------------------------------------------------------

GOOD: dict[int, bytes] = {
    Rtm.NEWLINK: dummy("dm0", mtu=1400),
    Rtm.SETLINK: LINK.emit({"index": 1, "flags": 1, "change": 1}, {"mtu": 1400, "ifalias": "x"}),
    Rtm.DELLINK: LINK.emit({"index": 2}),
    Rtm.GETLINK: LINK.emit({"index": 1}),
    Rtm.NEWADDR: ADDR.emit({"family": AF_INET, "prefixlen": 24, "index": 1}, {"local": ip("10.1.1.1")}),
    Rtm.DELADDR: ADDR.emit({"family": AF_INET, "prefixlen": 24, "index": 1}, {"local": ip("10.1.1.1")}),
    Rtm.GETADDR: ADDR.emit({"family": AF_INET}),
    Rtm.NEWROUTE: ROUTE.emit(
        {"family": AF_INET, "dst_len": 16, "table": 254, "type": 1, "scope": 253},
        {"dst": ip("10.8.0.0"), "oif": 1, "metrics": {"mtu": 1300}, "multipath": [{"oif": 1, "hops": 1}]},
    ),
    Rtm.DELROUTE: ROUTE.emit({"family": AF_INET, "dst_len": 16}, {"dst": ip("10.8.0.0")}),
    Rtm.GETROUTE: ROUTE.emit({"family": AF_INET, "dst_len": 32}, {"dst": ip("127.0.0.1")}),
    Rtm.NEWNEIGH: NEIGH.emit({"family": AF_INET, "index": 1, "state": 128}, {"dst": ip("127.9.9.9"), "lladdr": MAC_A}),
    Rtm.GETNEIGH: NEIGH.emit({"family": AF_INET, "index": 1}, {"dst": ip("127.9.9.9")}),
    Rtm.NEWRULE: RULE.emit({"family": AF_INET, "action": 1}, {"table": 99, "priority": 9}),
    Rtm.DELRULE: RULE.emit({"family": AF_INET, "action": 1}, {"table": 99, "priority": 9}),
    Rtm.GETNEIGHTBL: bytes(4),
    Rtm.GETSTATS: struct.pack("=B3xII", 0, 1, 1),
}

flag_sets = st.sets(st.sampled_from([NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_DUMP])).map(sum)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A good request damaged, or attributes of the right numbers with anything in them, or junk."""
    kind = draw(st.sampled_from(list(GOOD)) | st.integers(0, 130))
    body = bytearray(GOOD.get(kind, b"") if draw(st.booleans()) else draw(st.binary(max_size=64)))
    for _ in range(draw(st.integers(0, 3))):
        body += pack(draw(st.integers(0, 70)), draw(st.binary(max_size=24)))
    for _ in range(draw(st.integers(0, 3))):
        if body:
            body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(body))) if draw(st.booleans()) else len(body)
    return header.pack(kind, NLM_F_REQUEST | draw(flag_sets), 1, 0, bytes(body[:cut]))


def test_no_request_raises_inside_and_no_refusal_changes_anything() -> None:
    with Network() as network:
        stack = network.stack("gw")
        sock = stack.socket.socket(AF_NETLINK, RAW, 0)
        sock.bind((0, 0xFFFFFFFF))
        sock.setblocking(False)
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)

        @settings(suppress_health_check=list(HealthCheck), max_examples=600)
        @given(requests(), st.booleans())
        def survive(request: bytes, strict: bool) -> None:
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, strict)
            before = snapshot(stack.netns)
            sock.send(request)
            refused = False
            with suppress(BlockingIOError):
                while True:
                    for found, whole in header.split(sock.recv(65536)):
                        if found.type == header.NLMSG_ERROR:
                            code = -struct.unpack_from("=i", whole, 16)[0]
                            assert code in errno.errorcode or not code
                            refused = refused or bool(code)
            if refused:
                assert snapshot(stack.netns) == before

        survive()
        sock.close()


# --- two writers ------------------------------------------------------------------------------------------------------


def consistent(netns: NetNamespace) -> None:
    """Nothing refers to what is not there; whatever is there can be listed."""
    assert {each.name: each for each in netns.interfaces.values()} == netns.interfaces
    assert sorted(each.index for each in netns.interfaces.values()) == sorted(netns.ip.interfaces)
    for entry in netns.routes:
        for iface in (entry.iface, *(hop.iface for hop in entry.hops)):
            assert iface is None or (iface.up and netns.ip.interfaces[iface.index] is iface)
    for iface in netns.interfaces.values():
        for address in iface.addresses:
            assert netns.ip.is_own_unicast(address.address)
        primaries = [(one.network, one.prefix_length) for one in iface.addresses if not one.secondary]
        assert len(set(primaries)) == len(primaries)


def random_request(rng: random.Random) -> tuple[int, int, bytes]:
    """Of a small world, so that two writers meet."""
    index, name = rng.randrange(2, 6), f"dm{rng.randrange(3)}"
    address = ip(f"10.{rng.randrange(3)}.0.{rng.randrange(1, 4)}")
    network = ip(f"172.{rng.randrange(16, 19)}.0.0")
    fields = {"family": AF_INET, "dst_len": 16, "table": 254, "type": 1}
    made: list[tuple[int, int, bytes]] = [
        (Rtm.NEWLINK, NEW, dummy(name)),
        (Rtm.DELLINK, 0, LINK.emit({}, {"ifname": name})),
        (Rtm.SETLINK, 0, LINK.emit({"flags": rng.randrange(2), "change": 1}, {"ifname": name})),
        (
            Rtm.SETLINK,
            0,
            LINK.emit({"index": index}, {"ifname": f"dm{rng.randrange(3)}", "mtu": rng.choice([1400, 9])}),
        ),
        (Rtm.NEWADDR, NEW, ADDR.emit({"family": AF_INET, "prefixlen": 24, "index": index}, {"local": address})),
        (Rtm.DELADDR, 0, ADDR.emit({"family": AF_INET, "prefixlen": 24, "index": index}, {"local": address})),
        (Rtm.NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, ROUTE.emit(fields, {"dst": network, "gateway": address})),
        (Rtm.NEWROUTE, NEW, ROUTE.emit({**fields, "scope": 253}, {"dst": network, "oif": index})),
        (Rtm.DELROUTE, 0, ROUTE.emit({**fields, "scope": 255}, {"dst": network})),
    ]
    return rng.choice(made)


def test_two_writers_end_in_one_consistent_state() -> None:
    """Thousands of interleavings, drawn from a seed: after each request the world is whole, and the log tells it all.

    A third party who only listens to the groups knows the links and addresses at the end.
    """
    rng = random.Random(7)
    for _ in range(60):
        with Network() as network:
            stack = network.stack("gw")
            writers = [Talker(stack), Talker(stack)]
            ear = stack.socket.socket(AF_NETLINK, RAW, 0)
            ear.bind((0, 1 | 1 << 4))
            ear.setblocking(False)
            names: dict[int, str] = {}
            addresses: set[tuple[int, bytes]] = set()
            for _ in range(60):
                kind, flags, body = random_request(rng)
                before = snapshot(stack.netns)
                if rng.choice(writers).ask(kind, flags, body):
                    assert snapshot(stack.netns) == before
                consistent(stack.netns)
                with suppress(BlockingIOError):
                    while True:
                        for found, whole in header.split(ear.recv(65536)):
                            follow(found.type, whole, names, addresses)
            there = stack.netns.interfaces.values()
            assert names == {each.index: each.name for each in there if each.index in names}
            assert set(names) >= {each.index for each in there if not each.loopback}
            assert addresses == {
                (each.index, one.address)
                for each in there
                if each.index != 1
                for one in each.addresses
                if len(one.address) == 4
            }
            ear.close()
            for writer in writers:
                writer.close()


def follow(kind: int, whole: memoryview, names: dict[int, str], addresses: set[tuple[int, bytes]]) -> None:
    if kind in (Rtm.NEWLINK, Rtm.DELLINK):
        link = LINK.parse(whole[16:])
        if kind == Rtm.NEWLINK:
            names[link.fields["index"]] = link.attributes["ifname"]
        else:
            names.pop(link.fields["index"], None)
    else:
        address = ADDR.parse(whole[16:])
        entry = (address.fields["index"], address.attributes["address"])
        if kind == Rtm.NEWADDR:
            addresses.add(entry)
        else:
            addresses.discard(entry)


def test_two_threads_write_at_once(stack: Stack) -> None:
    """The same with real threads: neither sees an error that is not an answer, and the end is whole."""
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        talker = Talker(stack)
        try:
            for _ in range(300):
                assert talker.ask(*random_request(rng)) in (0, *errno.errorcode)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)
        finally:
            talker.close()

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    consistent(stack.netns)
