"""Requests to NETLINK_ROUTE, one after the other, and what came back: the same on a kernel and on a Stack.

Run as a program it asks the kernel's network namespace it finds itself in, which must be fresh, and prints what it
heard. Numbers that depend on the moment (time stamps, counters) are left out; every other difference counts.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

from stack.socket.netlink.endpoint import SOL_NETLINK
from stack.socket.netlink.options import (
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
)
from stack.wire.netlink import ack, header
from stack.wire.netlink.address import ADDR
from stack.wire.netlink.attribute import NLA_TYPE_MASK, attributes
from stack.wire.netlink.header import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
)
from stack.wire.netlink.link import LINK, STATISTICS
from stack.wire.netlink.message import MessageType
from stack.wire.netlink.neighbour import NEIGH
from stack.wire.netlink.route import ROUTE
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6, Rtm
from stack.wire.netlink.rule import RULE

AF_NETLINK = 16
SOCK_RAW = 3
TYPES: dict[int, MessageType] = {
    **dict.fromkeys((Rtm.NEWLINK, Rtm.DELLINK), LINK),
    **dict.fromkeys((Rtm.NEWADDR, Rtm.DELADDR), ADDR),
    **dict.fromkeys((Rtm.NEWROUTE, Rtm.DELROUTE), ROUTE),
    **dict.fromkeys((Rtm.NEWNEIGH, Rtm.DELNEIGH), NEIGH),
    **dict.fromkeys((Rtm.NEWRULE, Rtm.DELRULE), RULE),
    Rtm.NEWSTATS: STATISTICS,
}
NEW = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
MAC_A = bytes.fromhex("0200000000a1")
MAC_B = bytes.fromhex("0200000000b1")

#: Depends on the moment, the machine's queues or its device drivers.
VOLATILE = frozenset(
    {
        *("cacheinfo", "stats", "stats64", "link_64", "map", "carrier_changes", "carrier_up_count"),
        *("carrier_down_count", "num_tx_queues", "num_rx_queues", "gso_max_segs", "gso_max_size", "gro_max_size"),
        *("gso_ipv4_max_size", "gro_ipv4_max_size", "tso_max_size", "tso_max_segs", "headroom", "tailroom"),
        *("qdisc", "probes", "linkmode"),
    }
)


def ip(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


def ip6(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", "").ljust(32, "0"))


class Client:
    """One socket and its numbering."""

    def __init__(self, module: Any) -> None:
        self.sock = module.socket(AF_NETLINK, SOCK_RAW, 0)
        self.sock.settimeout(5)
        self.sock.bind((0, 0))
        self.seq = 100
        self.numbers: set[tuple[str, int]] = set()  #: attributes seen, by message and number

    def option(self, number: int, value: int) -> None:
        self.sock.setsockopt(SOL_NETLINK, number, value)

    def ask(self, kind: int, flags: int, body: bytes, *, raw: bytes | None = None) -> list[Any]:
        """Everything that comes back, in order, until an answer that is known to be the last."""
        self.seq += 1
        self.sock.send(raw or header.pack(kind, flags | NLM_F_REQUEST, self.seq, 0, body))
        heard: list[Any] = []
        while True:
            data = self.sock.recv(65536)
            for found, whole in header.split(data):
                assert found.seq == self.seq
                assert found.pid == self.sock.getsockname()[0]
                heard.append(self.tell(found, bytes(whole[header.HEADER_LENGTH :])))
                if found.type in (header.NLMSG_ERROR, header.NLMSG_DONE):
                    return heard
                if not found.flags & header.NLM_F_MULTI and not flags & NLM_F_ACK:
                    return heard

    def tell(self, found: header.Header, body: bytes) -> Any:
        if found.type in (header.NLMSG_ERROR, header.NLMSG_DONE):
            outcome = ack.parse(found.type, found.flags, body)
            name = "DONE" if found.type == header.NLMSG_DONE else "ACK"
            length = found.length if not outcome.message else 0
            code = errno.errorcode.get(outcome.errno, "0")
            return (name, found.flags, code, outcome.message, outcome.offset, length)
        kind = TYPES[found.type]
        for number, _, _ in attributes(memoryview(body)[header.align(kind.header_length) :]):
            self.numbers.add((Rtm(found.type).name, number & NLA_TYPE_MASK))
        message = kind.parse(body)
        kept = [(name, value) for name, value in message.attributes.items() if name not in VOLATILE]
        return (Rtm(found.type).name, found.flags, message.fields, kept)


def run(module: Any) -> tuple[dict[str, list[Any]], set[tuple[str, int]]]:
    """(what was heard, by step; which attributes were seen)"""
    client = Client(module)
    heard: dict[str, list[Any]] = {}

    def step(label: str, kind: int, flags: int, body: bytes) -> None:
        assert label not in heard
        heard[label] = client.ask(kind, flags, body)

    up = {"flags": 1, "change": 1}
    step("lo up", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 1, **up}))
    step("RT-01 dump of links", Rtm.GETLINK, NLM_F_DUMP, LINK.emit({}))
    step("RT-01 dump by rtgenmsg", Rtm.GETLINK, NLM_F_DUMP, b"\0")
    step("RT-E9 a dump is not acked", Rtm.GETLINK, NLM_F_DUMP | NLM_F_ACK, LINK.emit({}))
    step("RT-02 by index", Rtm.GETLINK, 0, LINK.emit({"index": 1}))
    step("RT-E6 and acked", Rtm.GETLINK, NLM_F_ACK, LINK.emit({"index": 1}))
    step("RT-02 by name", Rtm.GETLINK, 0, LINK.emit({}, {"ifname": "lo"}))
    step("RT-02 neither", Rtm.GETLINK, 0, LINK.emit({}))
    step("RT-02 unknown index", Rtm.GETLINK, NLM_F_ACK, LINK.emit({"index": 999}))
    step("RT-02 unknown name", Rtm.GETLINK, NLM_F_ACK, LINK.emit({}, {"ifname": "nope"}))
    step("RT-06 dump of addresses", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({}))
    step("RT-06 of IPv4", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({"family": AF_INET}))
    step("RT-06 of IPv6", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({"family": AF_INET6}))
    step("RT-07 one IPv4", Rtm.GETADDR, 0, ADDR.emit({"family": AF_INET}))
    step("RT-07 one IPv6", Rtm.GETADDR, 0, ADDR.emit({"family": AF_INET6}))
    step("RT-12 dump of routes", Rtm.GETROUTE, NLM_F_DUMP, ROUTE.emit({"family": AF_INET}))
    step("RT-13 to lo", Rtm.GETROUTE, 0, ROUTE.emit({"family": AF_INET, "dst_len": 32}, {"dst": ip("127.0.0.1")}))
    step("RT-13 nowhere", Rtm.GETROUTE, 0, ROUTE.emit({"family": AF_INET, "dst_len": 32}, {"dst": ip("8.8.8.8")}))
    step("RT-E4 unknown type", 255 * 2 + 45, NLM_F_ACK, LINK.emit({}))
    step("RT-E3 control type", header.NLMSG_NOOP, NLM_F_ACK, LINK.emit({}))
    step("RT-E15 short body", Rtm.NEWLINK, NLM_F_ACK, b"\0\0\0\0")
    pair = {
        "ifname": "va",
        "address": MAC_A,
        "linkinfo": {"kind": "veth", "data": {"peer": {"ifname": "vb", "address": MAC_B}}},
    }
    step("RT-15 unknown kind", Rtm.NEWLINK, NEW, LINK.emit({}, {"ifname": "x", "linkinfo": {"kind": "nokind"}}))
    step("RT-15 no kind", Rtm.NEWLINK, NEW, LINK.emit({}, {"ifname": "x"}))
    step("RT-15 no CREATE", Rtm.NEWLINK, NLM_F_ACK, LINK.emit({}, {"ifname": "x", "linkinfo": {"kind": "veth"}}))
    step("RT-15 veth", Rtm.NEWLINK, NEW, LINK.emit({}, pair))
    step("RT-15 veth again", Rtm.NEWLINK, NEW, LINK.emit({}, pair))
    step("RT-15 both", Rtm.GETLINK, NLM_F_DUMP, LINK.emit({}))
    step("RT-15 up, no carrier", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3, **up}))
    step("RT-15 carrier", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 2, **up}))
    step("RT-15 MTU", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 1400}))
    step("RT-15 MTU too small", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 67}))
    step("RT-15 MTU too large", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 65536}))
    step("RT-15 MTU negative", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 0xFFFFFFFF}))
    step("RT-15 MTU by NEWLINK", Rtm.NEWLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 1500}))
    step("RT-15 taken name", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifname": "lo"}))
    step("RT-15 no name", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifname": "a/b"}))
    step("RT-05 long name", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifname": "x" * 16}))
    step("RT-15 rename", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifname": "vx"}))
    step("RT-15 rename back", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifname": "va"}))
    step("RT-15 alias", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifalias": "left"}))
    step("RT-15 queue", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"txqlen": 500}))
    step("RT-15 group", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"group": 7}))
    step("RT-15 master is none", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"master": 999}))
    step("RT-15 master takes no ports", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"master": 2}))
    step("RT-15 group MAC", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"address": b"\1" + bytes(5)}))
    step("RT-15 short MAC", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"address": b"\2" + bytes(3)}))
    step("RT-15 SETLINK of none", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 99}, {"mtu": 1400}))
    step("RT-15 SETLINK of nothing", Rtm.SETLINK, NLM_F_ACK, LINK.emit({}, {"mtu": 1400}))
    step("RT-15 EXCL", Rtm.NEWLINK, NEW, LINK.emit({"index": 3}, {"mtu": 1400}))
    step("RT-15 REPLACE", Rtm.NEWLINK, NLM_F_ACK | NLM_F_REPLACE, LINK.emit({"index": 3}, {"mtu": 1400}))
    step("RT-15 as it is now", Rtm.GETLINK, 0, LINK.emit({"index": 3}))

    def address(prefix: int, text: str, index: int = 3, **more: Any) -> bytes:
        value = ip(text)
        return ADDR.emit(
            {"family": AF_INET, "prefixlen": prefix, "index": index, **more.pop("fields", {})},
            {"local": value, "address": value, **more},
        )

    step("RT-10 address", Rtm.NEWADDR, NEW, address(24, "10.9.9.1", broadcast=ip("10.9.9.255")))
    step("RT-10 again", Rtm.NEWADDR, NEW, address(24, "10.9.9.1"))
    step("RT-10 again, no EXCL", Rtm.NEWADDR, NLM_F_ACK | NLM_F_CREATE, address(24, "10.9.9.1"))
    step("RT-10 secondary", Rtm.NEWADDR, NEW, address(24, "10.9.9.2", label="va:x"))
    step("RT-10 unknown index", Rtm.NEWADDR, NEW, address(24, "10.9.9.3", 999))
    step("RT-10 bad prefix", Rtm.NEWADDR, NEW, address(33, "10.9.9.3"))
    step("RT-10 no local address", Rtm.NEWADDR, NEW, ADDR.emit({"family": AF_INET, "index": 3}, {"address": bytes(4)}))
    step("RT-10 unknown family", Rtm.NEWADDR, NEW, ADDR.emit({"family": 77, "index": 3}, {"local": bytes(4)}))
    six = {"family": AF_INET6, "prefixlen": 64, "index": 3, "flags": 2}
    step("RT-10 IPv6", Rtm.NEWADDR, NEW, ADDR.emit(six, {"local": ip6("fd00:0000")[:15] + b"\1"}))
    step("RT-10 IPv6 again", Rtm.NEWADDR, NEW, ADDR.emit(six, {"local": ip6("fd00:0000")[:15] + b"\1"}))
    step("RT-10 IPv6 unknown index", Rtm.NEWADDR, NEW, ADDR.emit({**six, "index": 99}, {"local": ip6("fd00")}))
    step("RT-10 IPv6 none", Rtm.NEWADDR, NEW, ADDR.emit(six))

    def lasting(preferred: int, valid: int) -> dict[str, int]:
        return {"preferred": preferred, "valid": valid, "cstamp": 0, "tstamp": 0}

    step("RT-10 lifetime", Rtm.NEWADDR, NEW, address(24, "10.9.8.1", cacheinfo=lasting(500, 1000)))
    step("RT-10 deprecated", Rtm.NEWADDR, NEW, address(24, "10.9.8.2", cacheinfo=lasting(0, 1000)))
    step("RT-10 preferred after it is valid", Rtm.NEWADDR, NEW, address(24, "10.9.8.3", cacheinfo=lasting(2, 1)))
    step("RT-10 valid for no time", Rtm.NEWADDR, NEW, address(24, "10.9.8.3", cacheinfo=lasting(0, 0)))
    step("RT-10 lifetimes", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({"family": AF_INET}))
    ever = lasting(0xFFFFFFFF, 0xFFFFFFFF)
    step("RT-10 for ever", Rtm.NEWADDR, NLM_F_ACK | NLM_F_REPLACE, address(24, "10.9.8.1", cacheinfo=ever))
    step("RT-10 lifetimes now", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({"family": AF_INET}))
    step("RT-11 with its secondary", Rtm.DELADDR, NLM_F_ACK, address(24, "10.9.8.1"))
    step("RT-11 which is gone", Rtm.DELADDR, NLM_F_ACK, address(24, "10.9.8.2"))
    lasts = {"local": ip6("fd09")[:15] + b"\1"}
    step("RT-10 IPv6 lifetime", Rtm.NEWADDR, NEW, ADDR.emit(six, {**lasts, "cacheinfo": lasting(500, 1000)}))
    step(
        "RT-09 IPv6 lifetime", Rtm.GETADDR, 0, ADDR.emit({"family": AF_INET6, "index": 3}, {"address": lasts["local"]})
    )
    step("RT-11 IPv6", Rtm.DELADDR, NLM_F_ACK, ADDR.emit(six, lasts))
    step("RT-11 IPv6 again", Rtm.DELADDR, NLM_F_ACK, ADDR.emit(six, lasts))
    step("RT-08 as they are now", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({"family": AF_INET}))
    step("RT-12 routes that follow", Rtm.GETROUTE, NLM_F_DUMP, ROUTE.emit({"family": AF_INET}))

    def route(prefix: int, text: str, fields: dict[str, int] | None = None, **more: Any) -> bytes:
        base = {"family": AF_INET, "dst_len": prefix, "table": 254, "protocol": 4, "type": 1, **(fields or {})}
        return ROUTE.emit(base, {"dst": ip(text), **more})

    via: Any = {"gateway": ip("10.9.9.254")}
    link_scope = {"scope": 253}
    step("RT-14 by gateway", Rtm.NEWROUTE, NEW, route(16, "10.8.0.0", **via))
    step("RT-14 again", Rtm.NEWROUTE, NEW, route(16, "10.8.0.0", **via))
    step("RT-14 again, no EXCL", Rtm.NEWROUTE, NLM_F_ACK | NLM_F_CREATE, route(16, "10.8.0.0", **via))
    step("RT-14 no CREATE", Rtm.NEWROUTE, NLM_F_ACK, route(16, "10.7.0.0", **via))
    step("RT-14 by device", Rtm.NEWROUTE, NEW, route(24, "10.6.1.0", link_scope, oif=3, priority=50))
    step("RT-14 unreachable gateway", Rtm.NEWROUTE, NEW, route(16, "10.5.0.0", gateway=ip("172.16.0.1")))
    step("RT-14 own gateway", Rtm.NEWROUTE, NEW, route(16, "10.5.0.0", gateway=ip("10.9.9.1")))
    step("RT-14 bad device", Rtm.NEWROUTE, NEW, route(16, "10.5.0.0", link_scope, oif=99))
    step("RT-14 neither", Rtm.NEWROUTE, NEW, route(16, "10.5.0.0"))
    step("RT-14 host bits", Rtm.NEWROUTE, NEW, route(16, "10.5.0.1", **via))
    step("RT-14 long prefix", Rtm.NEWROUTE, NEW, route(33, "10.5.0.0", **via))
    step("RT-14 foreign source", Rtm.NEWROUTE, NEW, route(16, "10.5.0.0", prefsrc=ip("1.2.3.4"), **via))
    step(
        "RT-14 everything",
        Rtm.NEWROUTE,
        NEW,
        route(16, "10.4.0.0", priority=7, prefsrc=ip("10.9.9.2"), metrics={"mtu": 1300, "advmss": 1000}, **via),
    )
    step("RT-14 black hole", Rtm.NEWROUTE, NEW, route(16, "10.3.0.0", {"type": 6}))
    step("RT-14 unreachable", Rtm.NEWROUTE, NEW, route(16, "10.2.0.0", {"type": 7}))
    step("RT-14 prohibited", Rtm.NEWROUTE, NEW, route(16, "10.1.0.0", {"type": 8}))
    ways = [
        {"oif": 3, "hops": 0, "gateway": ip("10.9.9.253")},
        {"oif": 3, "hops": 2, "gateway": ip("10.9.9.252")},
    ]
    step("RT-14 multipath", Rtm.NEWROUTE, NEW, route(16, "10.10.0.0", multipath=ways))
    step("RT-14 other table", Rtm.NEWROUTE, NEW, route(16, "10.11.0.0", {"table": 0}, table=1000, **via))
    step(
        "RT-14 append",
        Rtm.NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND,
        route(16, "10.8.0.0", gateway=ip("10.9.9.251")),
    )
    step(
        "RT-14 replace",
        Rtm.NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        route(24, "10.6.1.0", priority=50, gateway=ip("10.9.9.250")),
    )
    step("RT-12 all of them", Rtm.GETROUTE, NLM_F_DUMP, ROUTE.emit({"family": AF_INET}))
    for name, target in (
        ("gateway", "10.8.1.1"),
        ("subnet", "10.9.9.77"),
        ("own", "10.9.9.1"),
        ("broadcast", "10.9.9.255"),
        ("black hole", "10.3.1.1"),
        ("unreachable", "10.2.1.1"),
        ("prohibited", "10.1.1.1"),
        ("source and MTU", "10.4.1.1"),
    ):
        step(f"RT-13 to {name}", Rtm.GETROUTE, 0, ROUTE.emit({"family": AF_INET, "dst_len": 32}, {"dst": ip(target)}))
    step("RT-14 delete by the wrong gateway", Rtm.DELROUTE, NLM_F_ACK, route(16, "10.8.0.0", gateway=ip("10.9.9.1")))
    step("RT-14 delete", Rtm.DELROUTE, NLM_F_ACK, route(16, "10.8.0.0", **via))
    step("RT-14 delete the other", Rtm.DELROUTE, NLM_F_ACK, route(16, "10.8.0.0"))
    step("RT-14 delete once more", Rtm.DELROUTE, NLM_F_ACK, route(16, "10.8.0.0"))
    step(
        "RT-14 IPv6",
        Rtm.NEWROUTE,
        NEW,
        ROUTE.emit(
            {"family": AF_INET6, "dst_len": 64, "table": 254, "protocol": 4, "type": 1},
            {"dst": ip6("fd01"), "gateway": ip6("fd00")[:15] + b"\x09"},
        ),
    )
    step(
        "RT-14 IPv6 again",
        Rtm.NEWROUTE,
        NEW,
        ROUTE.emit(
            {"family": AF_INET6, "dst_len": 64, "table": 254, "protocol": 4, "type": 1},
            {"dst": ip6("fd01"), "gateway": ip6("fd00")[:15] + b"\x09"},
        ),
    )
    step(
        "RT-14 IPv6 delete",
        Rtm.DELROUTE,
        NLM_F_ACK,
        ROUTE.emit({"family": AF_INET6, "dst_len": 64, "table": 254}, {"dst": ip6("fd01")}),
    )
    step(
        "RT-14 IPv6 delete again",
        Rtm.DELROUTE,
        NLM_F_ACK,
        ROUTE.emit({"family": AF_INET6, "dst_len": 64, "table": 254}, {"dst": ip6("fd01")}),
    )

    def neigh(text: str, state: int, **more: Any) -> bytes:
        return NEIGH.emit({"family": AF_INET, "index": more.pop("index", 3), "state": state}, {"dst": ip(text), **more})

    step("neighbour", Rtm.NEWNEIGH, NEW, neigh("10.9.9.70", 0x80, lladdr=MAC_B))
    step("neighbour again", Rtm.NEWNEIGH, NEW, neigh("10.9.9.70", 0x80, lladdr=MAC_B))
    step("neighbour no CREATE", Rtm.NEWNEIGH, NLM_F_ACK, neigh("10.9.9.71", 0x80, lladdr=MAC_B))
    step("neighbour stale", Rtm.NEWNEIGH, NEW, neigh("10.9.9.72", 0x04, lladdr=MAC_B))
    step("neighbour short MAC", Rtm.NEWNEIGH, NEW, neigh("10.9.9.73", 0x80, lladdr=b"\2"))
    step("neighbour no device", Rtm.NEWNEIGH, NEW, neigh("10.9.9.73", 0x80, lladdr=MAC_B, index=99))
    step("neighbours", Rtm.GETNEIGH, NLM_F_DUMP, NEIGH.emit({"family": AF_INET}))
    step("neighbour get", Rtm.GETNEIGH, 0, neigh("10.9.9.70", 0))
    step("neighbour get none", Rtm.GETNEIGH, 0, neigh("10.9.9.99", 0))
    step("neighbour delete", Rtm.DELNEIGH, NLM_F_ACK, neigh("10.9.9.70", 0))
    step("neighbour delete again", Rtm.DELNEIGH, NLM_F_ACK, neigh("10.9.9.99", 0))

    def rule(**more: Any) -> bytes:
        fields = {"family": AF_INET, "action": 1, "src_len": 32 if "src" in more else 0}
        return RULE.emit(fields, more)

    step("rules", Rtm.GETRULE, NLM_F_DUMP, RULE.emit({"family": AF_INET}))
    step("rules of IPv6", Rtm.GETRULE, NLM_F_DUMP, RULE.emit({"family": AF_INET6}))
    step("rule", Rtm.NEWRULE, NEW, rule(src=ip("10.9.9.2"), table=1000, priority=100))
    step("rule again", Rtm.NEWRULE, NEW, rule(src=ip("10.9.9.2"), table=1000, priority=100))
    step("rule without priority", Rtm.NEWRULE, NEW, rule(src=ip("10.9.9.2"), table=1001))
    step("rule by mark", Rtm.NEWRULE, NEW, rule(fwmark=7, table=1002, priority=90))
    step("rule by a part of the mark", Rtm.NEWRULE, NEW, rule(fwmark=0x10, fwmask=0xF0, table=1002, priority=91))
    step("rules now", Rtm.GETRULE, NLM_F_DUMP, RULE.emit({"family": AF_INET}))
    step(
        "rule decides",
        Rtm.GETROUTE,
        0,
        ROUTE.emit({"family": AF_INET, "dst_len": 32, "src_len": 32}, {"dst": ip("10.11.1.1"), "src": ip("10.9.9.2")}),
    )
    step("rule by another mark", Rtm.DELRULE, NLM_F_ACK, rule(fwmark=8))
    step("rule by mark delete", Rtm.DELRULE, NLM_F_ACK, rule(fwmark=7))
    step("rule delete", Rtm.DELRULE, NLM_F_ACK, rule(src=ip("10.9.9.2"), table=1000, priority=100))
    step("rule delete again", Rtm.DELRULE, NLM_F_ACK, rule(src=ip("10.9.9.2"), table=1000, priority=100))

    step("stats no mask", Rtm.GETSTATS, NLM_F_ACK, STATISTICS.emit({"index": 1}))
    step("stats", Rtm.GETSTATS, 0, STATISTICS.emit({"index": 1, "filter_mask": 1}))
    step("stats of none", Rtm.GETSTATS, NLM_F_ACK, STATISTICS.emit({"index": 99, "filter_mask": 1}))

    client.option(NETLINK_EXT_ACK, 1)
    step("RT-E8 no device", Rtm.NEWADDR, NEW, address(24, "10.9.9.3", 999))
    step("RT-E8 assigned", Rtm.NEWADDR, NEW, address(24, "10.9.9.1"))
    step("RT-E8 no address", Rtm.DELADDR, NLM_F_ACK, address(24, "10.9.9.9"))
    step("RT-E8 unknown kind", Rtm.NEWLINK, NEW, LINK.emit({}, {"ifname": "x", "linkinfo": {"kind": "nokind"}}))
    step("RT-E8 MTU", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 67}))
    step("RT-E8 MTU above", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 65536}))
    step("RT-E8 gateway", Rtm.NEWROUTE, NEW, route(16, "10.5.0.0", gateway=ip("172.16.0.1")))
    step("RT-E8 host bits", Rtm.NEWROUTE, NEW, route(16, "10.5.0.1", **via))
    step("RT-05 offset of a long name", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifname": "x" * 16}))
    short = LINK.emit({"index": 3}) + b"\6\0\4\0\1\0\0\0"
    step("RT-05 short number", Rtm.SETLINK, NLM_F_ACK, short)
    long = LINK.emit({"index": 3}) + b"\x0c\0\4\0" + (1400).to_bytes(4, "little") + bytes(4)
    step("RT-05 long number", Rtm.SETLINK, NLM_F_ACK, long)
    step("RT-05 unknown attribute", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}) + b"\4\0\xff\x0f")
    step("NL-15 impossible length ends the list", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}) + b"\xff\0\4\0")
    step("NL-15 too short a length ends the list", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}) + b"\1\0\4\0")
    client.option(NETLINK_CAP_ACK, 1)
    step("RT-E7 capped", Rtm.NEWADDR, NEW, address(24, "10.9.9.3", 999))
    client.option(NETLINK_GET_STRICT_CHK, 1)
    step("RT-03 index", Rtm.GETLINK, NLM_F_DUMP, LINK.emit({"index": 1}))
    step("RT-03 values", Rtm.GETLINK, NLM_F_DUMP, LINK.emit({"flags": 1}))
    step("RT-03 short header", Rtm.GETLINK, NLM_F_DUMP, b"\0\0\0\0")
    step("RT-06 filter", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({"family": AF_INET, "index": 1}))
    step("RT-06 values", Rtm.GETADDR, NLM_F_DUMP, ADDR.emit({"family": AF_INET, "prefixlen": 1}))
    step("RT-12 filter", Rtm.GETROUTE, NLM_F_DUMP, ROUTE.emit({"family": AF_INET, "table": 255}))
    client.option(NETLINK_GET_STRICT_CHK, 0)
    client.option(NETLINK_CAP_ACK, 0)
    client.option(NETLINK_EXT_ACK, 0)
    step("RT-11 secondary", Rtm.DELADDR, NLM_F_ACK, address(24, "10.9.9.2"))
    step("RT-11 again", Rtm.DELADDR, NLM_F_ACK, address(24, "10.9.9.2"))
    step("RT-11 primary", Rtm.DELADDR, NLM_F_ACK, address(24, "10.9.9.1"))
    step("RT-11 routes after", Rtm.GETROUTE, NLM_F_DUMP, ROUTE.emit({"family": AF_INET}))
    step("RT-16 lo", Rtm.DELLINK, NLM_F_ACK, LINK.emit({"index": 1}))
    step("RT-16 none", Rtm.DELLINK, NLM_F_ACK, LINK.emit({"index": 99}))
    step("RT-16 nothing", Rtm.DELLINK, NLM_F_ACK, LINK.emit({}))
    step("RT-16 one end", Rtm.DELLINK, NLM_F_ACK, LINK.emit({"index": 3}))
    step("RT-16 and the other", Rtm.DELLINK, NLM_F_ACK, LINK.emit({"index": 2}))
    client.sock.close()
    return heard, client.numbers


if __name__ == "__main__":
    import socket

    sys.stdout.write(repr(run(socket)))
