"""What the groups of NETLINK_ROUTE hear of each change: the same on a kernel and on a Stack.

IPv6 has groups of its own and is not listened to: the kernel's duplicate address detection tells of it when it pleases.
"""

from __future__ import annotations

import sys
from typing import Any

from stack.tests.netlink.script import AF_NETLINK, MAC_A, MAC_B, NEW, SOCK_RAW, TYPES, VOLATILE, Client, ip
from stack.wire.netlink import header
from stack.wire.netlink.address import ADDR
from stack.wire.netlink.header import NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_REPLACE
from stack.wire.netlink.link import LINK
from stack.wire.netlink.neighbour import NEIGH
from stack.wire.netlink.route import ROUTE
from stack.wire.netlink.rtnetlink import AF_INET, Group, Rtm
from stack.wire.netlink.rule import RULE

GROUPS = (Group.LINK, Group.NEIGH, Group.IPV4_IFADDR, Group.IPV4_ROUTE, Group.IPV4_RULE)
QUIET = 0.1  # seconds
LINK_QUIET = 1.2  # seconds: the kernel's link watch, which acts once a second, is done by then


def run(module: Any, quiet: float = QUIET, link_quiet: float = LINK_QUIET) -> dict[str, list[Any]]:
    client = Client(module)
    ear = module.socket(AF_NETLINK, SOCK_RAW, 0)
    ear.bind((0, sum(1 << group - 1 for group in GROUPS)))
    heard: dict[str, list[Any]] = {}

    def listen(patience: float) -> list[Any]:
        told: list[Any] = []
        ear.settimeout(patience)
        while True:
            try:
                data, (port, groups) = ear.recvfrom(65536)
            except (TimeoutError, BlockingIOError):
                return told
            for found, whole in header.split(data):
                message = TYPES[found.type].parse(whole[header.HEADER_LENGTH :])
                kept = {name: value for name, value in message.attributes.items() if name not in VOLATILE}
                asked = found.pid == client.sock.getsockname()[0], found.seq == client.seq
                if message.fields["family"] != 10:
                    told.append((Rtm(found.type).name, found.flags, port, groups, asked, message.fields, kept))

    def step(label: str, kind: int, flags: int, body: bytes) -> None:
        answers = client.ask(kind, flags, body)
        watched = any(word in label for word in ("up", "down", "link gone"))
        heard[label] = [answers, *listen(link_quiet if watched else quiet)]

    up, down = {"flags": 1, "change": 1}, {"flags": 0, "change": 1}
    step("lo up", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 1, **up}))
    heard.clear()  # a fresh kernel's lo has been down, a Stack's has not
    pair = {
        "ifname": "va",
        "address": MAC_A,
        "linkinfo": {"kind": "veth", "data": {"peer": {"ifname": "vb", "address": MAC_B}}},
    }
    step("new link", Rtm.NEWLINK, NEW, LINK.emit({}, pair))
    step("up without carrier", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3, **up}))
    step("up with carrier", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 2, **up}))
    address = ADDR.emit(
        {"family": AF_INET, "prefixlen": 24, "index": 3}, {"local": ip("10.9.9.1"), "address": ip("10.9.9.1")}
    )
    second = ADDR.emit(
        {"family": AF_INET, "prefixlen": 24, "index": 3}, {"local": ip("10.9.9.2"), "address": ip("10.9.9.2")}
    )
    step("new address", Rtm.NEWADDR, NEW, address)
    step("new address of the same subnet", Rtm.NEWADDR, NEW, second)
    base = {"family": AF_INET, "dst_len": 16, "table": 254, "protocol": 4, "type": 1}
    route = ROUTE.emit(base, {"dst": ip("10.8.0.0"), "gateway": ip("10.9.9.254")})
    other = ROUTE.emit(base, {"dst": ip("10.8.0.0"), "gateway": ip("10.9.9.253")})
    step("new route", Rtm.NEWROUTE, NEW, route)
    step("replaced route", Rtm.NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, other)
    step("route gone", Rtm.DELROUTE, NLM_F_ACK, other)
    neighbour = NEIGH.emit({"family": AF_INET, "index": 3, "state": 0x80}, {"dst": ip("10.9.9.70"), "lladdr": MAC_B})
    step("new neighbour", Rtm.NEWNEIGH, NEW, neighbour)
    step("neighbour gone", Rtm.DELNEIGH, NLM_F_ACK, neighbour)
    rule = RULE.emit({"family": AF_INET, "action": 1}, {"table": 1000, "priority": 100})
    step("new rule", Rtm.NEWRULE, NEW, rule)
    step("rule gone", Rtm.DELRULE, NLM_F_ACK, rule)
    step("MTU", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 1400}))
    step("MTU as it is", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 1400}))
    step("refused", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"mtu": 10}))
    step("echo of an address gone", Rtm.DELADDR, NLM_F_ECHO, second)
    step("down", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3, **down}))
    step("renamed", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3}, {"ifname": "vx"}))
    step("up again", Rtm.SETLINK, NLM_F_ACK, LINK.emit({"index": 3, **up}))
    step("address gone", Rtm.DELADDR, NLM_F_ACK, address)
    step("address back", Rtm.NEWADDR, NEW, address)
    step("link gone", Rtm.DELLINK, NLM_F_ACK, LINK.emit({"index": 3}))
    client.sock.close()
    ear.close()
    return heard


if __name__ == "__main__":
    import socket

    sys.stdout.write(repr(run(socket)))
