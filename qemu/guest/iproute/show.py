"""Links, addresses, routes and neighbours in the words of iproute2 6: lines, and objects for ``-json``.

Each function gives one object as a list of (key of the JSON output, value, text) and the text is their concatenation;
so both forms have the same order and nothing is said in only one of them unless iproute2 does so.
"""

from __future__ import annotations

import socket
from typing import Any, Final

from qemu.guest.iproute.client import Client
from stack.wire.netlink.address import FOREVER, IFA_F_PERMANENT
from stack.wire.netlink.message import Message
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6

#: IFF_*, in the order iproute2 names them. RUNNING is not named; its lack is NO-CARRIER.
_LINK_FLAGS: Final = (
    *((0x8, "LOOPBACK"), (0x2, "BROADCAST"), (0x10, "POINTOPOINT"), (0x1000, "MULTICAST"), (0x80, "NOARP")),
    *((0x200, "ALLMULTI"), (0x100, "PROMISC"), (0x400, "MASTER"), (0x800, "SLAVE"), (0x4, "DEBUG")),
    *((0x8000, "DYNAMIC"), (0x4000, "AUTOMEDIA"), (0x2000, "PORTSEL"), (0x20, "NOTRAILERS"), (0x1, "UP")),
    *((0x10000, "LOWER_UP"), (0x20000, "DORMANT"), (0x40000, "ECHO")),
)
_UP: Final = 0x1
_RUNNING: Final = 0x40
_STATES: Final = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")
_LINK_TYPES: Final = {1: "ether", 772: "loopback"}
_SCOPES: Final = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_PROTOCOLS: Final = {0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp"}
_BOOT: Final = 3  # RTPROT_BOOT, what `ip route add` sets, is not said
_ROUTE_TYPES: Final = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
_HOP_FLAGS: Final = ((1, "dead"), (4, "onlink"), (2, "pervasive"), (8, "offload"), (16, "linkdown"))
_ADDRESS_FLAGS: Final = (
    *((0x02, "nodad"), (0x04, "optimistic"), (0x08, "dadfailed"), (0x10, "home"), (0x20, "deprecated")),
    *((0x40, "tentative"), (0x100, "mngtmpaddr"), (0x200, "noprefixroute"), (0x400, "autojoin")),
    (0x800, "stable-privacy"),
)
_NEIGHBOUR_STATES: Final = (
    *((0x01, "INCOMPLETE"), (0x02, "REACHABLE"), (0x04, "STALE"), (0x08, "DELAY"), (0x10, "PROBE")),
    *((0x20, "FAILED"), (0x40, "NOARP"), (0x80, "PERMANENT")),
)
_NOARP: Final = 0x40
_ROUTER: Final = 0x80
_TABLE_MAIN: Final = 254
_PREFERENCES: Final = {0: "medium", 1: "high", 3: "low"}

#: (key, value, text): no key, text only; no text, JSON only.
Piece = tuple[str, Any, str]


def text_of(pieces: list[Piece]) -> str:
    return "".join(text for _, _, text in pieces)


def json_of(pieces: list[Piece]) -> dict[str, Any]:
    return {key: value for key, value, _ in pieces if key}


def link(client: Client, message: Message, *, mode: bool = True, queue: bool = True, family: int = 0) -> list[Piece]:
    """Two lines; with a `family` only the first, and shorter.

    `mode`: as `ip link` has it and `ip addr` has not; `queue`: as both have it and `ip monitor` has not.
    """
    fields, attributes = message.fields, message.attributes
    name = attributes["ifname"]
    pieces: list[Piece] = [("ifindex", fields["index"], f"{fields['index']}: ")]
    lower, far = attributes.get("link"), attributes.get("link_netnsid")
    down = False
    suffix = ""
    if lower is not None:
        if far is not None:
            pieces.append(("link_index", lower, ""))
            suffix = f"@if{lower}"
        elif lower:
            pieces.append(("link", client.name(lower), ""))
            suffix = f"@{client.name(lower)}"
            below = client.links.get(lower)
            down = below is not None and not below.fields["flags"] & _UP
        else:
            pieces.append(("link", None, ""))
            suffix = "@NONE"
    flags = _flags(fields["flags"]) + (["M-DOWN"] if down else [])
    pieces += [("ifname", name, f"{name}{suffix}: "), ("flags", flags, f"<{','.join(flags)}> ")]
    for key in ("mtu", "qdisc"):
        if key in attributes and (key == "mtu" or family != AF_INET6):
            pieces.append((key, attributes[key], f"{key} {attributes[key]} "))
    if "master" in attributes and family != AF_INET6:
        pieces.append(("master", client.name(attributes["master"]), f"master {client.name(attributes['master'])} "))
    if "operstate" in attributes:
        state = _STATES[attributes["operstate"]] if attributes["operstate"] < len(_STATES) else "UNKNOWN"
        pieces.append(("operstate", state, f"state {state} "))
    if mode and "linkmode" in attributes:
        words = "DORMANT" if attributes["linkmode"] else "DEFAULT"
        pieces.append(("linkmode", words, f"mode {words} "))
    if "group" in attributes and family != AF_INET6:
        group = str(attributes["group"] or "default")
        pieces.append(("group", group, f"group {group} "))
    if queue and attributes.get("txqlen"):
        pieces.append(("txqlen", attributes["txqlen"], f"qlen {attributes['txqlen']}"))
    if family:
        return pieces
    kind = _LINK_TYPES.get(fields["type"], str(fields["type"]))
    pieces.append(("link_type", kind, f"\n    link/{kind} "))
    if "address" in attributes:
        pieces.append(("address", _mac(attributes["address"]), _mac(attributes["address"])))
    if "broadcast" in attributes:
        pieces.append(("broadcast", _mac(attributes["broadcast"]), f" brd {_mac(attributes['broadcast'])}"))
    if far is not None:
        pieces.append(("link_netnsid", far, f" link-netnsid {far}"))
    if mode and attributes.get("ifalias"):
        pieces.append(("ifalias", attributes["ifalias"], f"\n    alias {attributes['ifalias']}"))
    return pieces


def address(message: Message) -> list[Piece]:
    """Two lines, indented, as below a link."""
    fields, attributes = message.fields, message.attributes
    family = "inet" if fields["family"] == AF_INET else "inet6"
    flags = attributes.get("flags", fields["flags"])
    own: bytes = attributes.get("local") or attributes["address"]
    peer = attributes.get("address", own)
    pieces: list[Piece] = [("family", family, f"    {family} ")]
    if own == peer:
        pieces.append(("local", _ip(own), _ip(own)))
    else:
        pieces += [("local", _ip(own), _ip(own)), ("address", _ip(peer), f" peer {_ip(peer)}")]
    pieces.append(("prefixlen", fields["prefixlen"], f"/{fields['prefixlen']} "))
    if attributes.get("rt_priority"):
        pieces.append(("metric", attributes["rt_priority"], f"metric {attributes['rt_priority']} "))
    if "broadcast" in attributes:
        pieces.append(("broadcast", _ip(attributes["broadcast"]), f"brd {_ip(attributes['broadcast'])} "))
    scope = _SCOPES.get(fields["scope"], str(fields["scope"]))
    pieces.append(("scope", scope, f"scope {scope} "))
    words = ["secondary" if family == "inet" else "temporary"] if flags & 1 else []
    words += [word for bit, word in _ADDRESS_FLAGS if flags & bit and bit < IFA_F_PERMANENT]
    words += [] if flags & IFA_F_PERMANENT else ["dynamic"]
    words += [word for bit, word in _ADDRESS_FLAGS if flags & bit and bit > IFA_F_PERMANENT]
    pieces += [(word, True, f"{word} ") for word in words]
    if "label" in attributes:
        pieces.append(("label", attributes["label"], attributes["label"]))
    info = attributes.get("cacheinfo")
    if info is not None:
        for key, before in (("valid", "\n       "), ("preferred", " ")):
            life = info[key]
            said = "forever" if life == FOREVER else f"{life}sec"
            pieces.append((f"{key}_life_time", life, f"{before}{key}_lft {said}"))
    return pieces


def route(client: Client, message: Message) -> list[Piece]:
    """One line; it ends with a blank where iproute2's does."""
    fields, attributes = message.fields, message.attributes
    pieces: list[Piece] = []
    kind = _ROUTE_TYPES.get(fields["type"], str(fields["type"]))
    if kind != "unicast":
        pieces.append(("type", kind, f"{kind} "))
    whole = 32 if fields["family"] == AF_INET else 128
    length = fields["dst_len"]
    if "dst" in attributes:
        target = _ip(attributes["dst"]) + (f"/{length}" if length != whole else "")
    else:
        target = f"0/{length}" if length else "default"
    pieces.append(("dst", target, f"{target} "))
    if "gateway" in attributes:
        pieces.append(("gateway", _ip(attributes["gateway"]), f"via {_ip(attributes['gateway'])} "))
    if "oif" in attributes:
        pieces.append(("dev", client.name(attributes["oif"]), f"dev {client.name(attributes['oif'])} "))
    table = attributes.get("table", fields["table"])
    if table != _TABLE_MAIN:
        said = {255: "local", 253: "default"}.get(table, str(table))
        pieces.append(("table", said, f"table {said} "))
    if fields["protocol"] != _BOOT:
        protocol = _PROTOCOLS.get(fields["protocol"], str(fields["protocol"]))
        pieces.append(("protocol", protocol, f"proto {protocol} "))
    if fields["scope"]:
        scope = _SCOPES.get(fields["scope"], str(fields["scope"]))
        pieces.append(("scope", scope, f"scope {scope} "))
    if "prefsrc" in attributes:
        pieces.append(("prefsrc", _ip(attributes["prefsrc"]), f"src {_ip(attributes['prefsrc'])} "))
    if "priority" in attributes:
        pieces.append(("metric", attributes["priority"], f"metric {attributes['priority']} "))
    flags = [word for bit, word in _HOP_FLAGS if fields["flags"] & bit]
    pieces.append(("flags", flags, "".join(f"{word} " for word in flags)))
    metrics = attributes.get("metrics") or {}
    if metrics:
        pieces.append(("metrics", [metrics], "".join(f"{key} {value} " for key, value in metrics.items())))
    expires = (attributes.get("cacheinfo") or {}).get("expires", 0)
    if fields["family"] == AF_INET6 and expires:
        seconds = expires // 100  # USER_HZ
        pieces.append(("expires", seconds, f"expires {seconds}sec "))
    if "pref" in attributes:
        said = _PREFERENCES.get(attributes["pref"], str(attributes["pref"]))
        pieces.append(("pref", said, f"pref {said}"))
    for hop in attributes.get("multipath") or ():
        via = f"via {_ip(hop['gateway'])} " if "gateway" in hop else ""
        pieces.append(("", None, f"\n\tnexthop {via}dev {client.name(hop['oif'])} weight {hop['hops'] + 1} "))
    if attributes.get("multipath"):
        pieces.append(("nexthops", [_hop(client, hop) for hop in attributes["multipath"]], ""))
    return pieces


def _hop(client: Client, hop: dict[str, Any]) -> dict[str, Any]:
    via = {"gateway": _ip(hop["gateway"])} if "gateway" in hop else {}
    flags = [word for bit, word in _HOP_FLAGS if hop["flags"] & bit]
    return {**via, "dev": client.name(hop["oif"]), "weight": hop["hops"] + 1, "flags": flags}


def neighbour(client: Client, message: Message) -> list[Piece]:
    """One line."""
    fields, attributes = message.fields, message.attributes
    pieces: list[Piece] = []
    if "dst" in attributes:  # what a bridge knows of its ports is told as neighbours without addresses
        pieces.append(("dst", _ip(attributes["dst"]), f"{_ip(attributes['dst'])} "))
    pieces.append(("dev", client.name(fields["index"]), f"dev {client.name(fields['index'])} "))
    if "lladdr" in attributes:
        pieces.append(("lladdr", _mac(attributes["lladdr"]), f"lladdr {_mac(attributes['lladdr'])} "))
    if fields["flags"] & _ROUTER:
        pieces.append(("router", None, "router "))
    states = [word for bit, word in _NEIGHBOUR_STATES if fields["state"] & bit]
    pieces.append(("state", states, "".join(f"{word} " for word in states)))
    return pieces


def shown_neighbour(message: Message) -> bool:
    """Those without a state, and those nobody asks for, are not shown by default."""
    return bool(message.fields["state"] & ~_NOARP)


def shown_route(message: Message) -> bool:
    """Of the table `main`, and not a cached one."""
    return (
        message.attributes.get("table", message.fields["table"]) == _TABLE_MAIN and not message.fields["flags"] & 0x200
    )


def _flags(flags: int) -> list[str]:
    words = ["NO-CARRIER"] if flags & _UP and not flags & _RUNNING else []
    flags &= ~_RUNNING
    for bit, word in _LINK_FLAGS:
        if flags & bit:
            flags &= ~bit
            words.append(word)
    return words + ([f"{flags:x}"] if flags else [])


def _mac(raw: bytes) -> str:
    return raw.hex(":")


def _ip(raw: bytes) -> str:
    return socket.inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)
