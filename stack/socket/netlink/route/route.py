"""RTM_*ROUTE: what a route looks like, where packets would go, and how routes are made (rows RT-12..RT-14)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.iface.address import SCOPE_HOST, SCOPE_LINK, SCOPE_UNIVERSE, network_of
from stack.iface.changes import Change, ChangeKind
from stack.ip.route import NextHop, Route, RouteEntry, RouteKind
from stack.netns import METRIC6_USER
from stack.socket.netlink.kernel import Request
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP_FILTERED,
    NLM_F_EXCL,
    NLM_F_REPLACE,
)
from stack.wire.netlink.message import Message
from stack.wire.netlink.route import (
    ROUTE,
    RT_TABLE_COMPAT,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    RTCF_BROADCAST,
    RTCF_LOCAL,
    RTM_F_CLONED,
    RTNH_F_DEAD,
    RTNH_F_LINKDOWN,
    RTNH_F_ONLINK,
)
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6, Rtm

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

RT_SCOPE_NOWHERE: Final = 255
_REFUSING: Final = frozenset({RouteKind.BLACKHOLE, RouteKind.UNREACHABLE, RouteKind.PROHIBIT})
#: What refusing IPv6 routes say in RTA_CACHEINFO.
_ERRORS: Final = {
    RouteKind.BLACKHOLE: errno.EINVAL,
    RouteKind.UNREACHABLE: errno.EHOSTUNREACH,
    RouteKind.PROHIBIT: errno.EACCES,
}


#: Attributes that would make a route mean something it does not here.
_UNSUPPORTED: Final = ("encap", "encap_type", "expires", "flow", "mark", "nh_id", "pref", "via")


# --- showing ----------------------------------------------------------------------------------------------------------


def show(entry: RouteEntry) -> bytes:
    """A NEWROUTE's or DELROUTE's body, in Linux's order."""
    ipv4 = len(entry.network) == 4
    index = 0 if entry.iface is None else entry.iface.index
    attributes: dict[str, Any] = {
        "table": entry.table,
        "dst": entry.network if entry.prefix_length else None,
    }
    ways: dict[str, Any] = {}
    flags = 0
    if entry.hops:
        ways["multipath"] = [_hop(hop) for hop in entry.hops]
    else:
        ways["gateway"] = entry.gateway
        ways["oif"] = index or None
        flags = 0 if entry.table == RT_TABLE_LOCAL else _state(entry.iface, entry.onlink)
    if ipv4:
        attributes["priority"] = entry.metric or None
        attributes["metrics"] = entry.metrics or None
        attributes["prefsrc"] = entry.src
        attributes.update(ways)
    else:
        if entry.kind in _REFUSING:
            ways["oif"] = 1  # Linux hangs them on lo
        attributes["prefsrc"] = entry.src
        attributes["metrics"] = entry.metrics or None
        attributes.update(ways)
        attributes["priority"] = entry.metric
        error = _ERRORS.get(entry.kind, 0)
        attributes["cacheinfo"] = {"error": -error}
        attributes["pref"] = 0
    fields = {
        "family": AF_INET if ipv4 else AF_INET6,
        "dst_len": entry.prefix_length,
        "table": entry.table if entry.table < 256 else RT_TABLE_COMPAT,
        "protocol": entry.protocol,
        "scope": entry.scope,
        "type": int(entry.kind),
        "flags": flags,
    }
    return ROUTE.emit(fields, attributes)


def _hop(hop: NextHop) -> dict[str, Any]:
    flags = _state(hop.iface, hop.onlink)
    return {"flags": flags, "hops": hop.weight - 1, "oif": hop.iface.index, "gateway": hop.gateway}


def _state(iface: Interface | None, onlink: bool) -> int:
    flags = RTNH_F_ONLINK if onlink else 0
    if iface is None:
        return flags
    if not iface.up:
        return flags | RTNH_F_DEAD | RTNH_F_LINKDOWN
    return flags if iface.carrier else flags | RTNH_F_LINKDOWN


def flags_of(change: Change) -> int:
    """nlmsg_flags of the message about a new route."""
    if change.detail == "replaced":
        return NLM_F_REPLACE
    return NLM_F_CREATE | (NLM_F_APPEND if change.detail == "appended" else NLM_F_EXCL)


# --- asking -----------------------------------------------------------------------------------------------------------


def get(netns: NetNamespace, request: Request) -> None:
    """Where a packet to RTA_DST would go."""
    family = request.body[0]
    if family not in (AF_INET, AF_INET6):
        raise NetlinkError(errno.EOPNOTSUPP)
    message = request.parse(ROUTE)
    attributes = message.attributes
    width = 4 if family == AF_INET else 16
    dst = _bytes(attributes, "dst", width) or bytes(width)
    src = _bytes(attributes, "src", width)
    oif = attributes.get("oif", 0)
    if oif and oif not in netns.ip.interfaces:
        raise NetlinkError(errno.ENODEV)
    if src is not None and not netns.ip.is_own_unicast(src):
        raise NetlinkError(errno.EINVAL)
    found = netns.ip.route(dst, src=src, oif=oif)
    request.reply(Rtm.NEWROUTE, _show_lookup(netns, dst, src, found))


def _show_lookup(netns: NetNamespace, dst: bytes, src: bytes | None, found: Route) -> bytes:
    ipv4 = len(dst) == 4
    flags = RTM_F_CLONED
    if ipv4 and found.kind is RouteKind.LOCAL:
        flags |= RTCF_LOCAL
    if ipv4 and found.kind is RouteKind.BROADCAST:
        flags |= RTCF_BROADCAST | RTCF_LOCAL
    table = RT_TABLE_MAIN if ipv4 or found.kind is not RouteKind.LOCAL else RT_TABLE_LOCAL
    gateway = found.next_hop if found.next_hop != found.dst else None
    attributes: dict[str, Any] = {"table": table, "dst": dst}
    if src is not None:
        attributes["src"] = src
    protocol = metric = 0
    if ipv4:
        attributes["oif"] = found.iface.index
        attributes["prefsrc"] = found.src if src is None else None
        attributes["gateway"] = gateway
        attributes["metrics"] = _metrics(netns, src, found)
        attributes["uid"] = 0
        attributes["cacheinfo"] = {"clntref": 0 if found.kind is not RouteKind.LOCAL else 2}
    else:
        entry = netns.ip.routes6.lookup(dst)
        protocol = 2 if entry is None or found.kind is RouteKind.LOCAL else entry.protocol
        metric = 0 if entry is None or found.kind is RouteKind.LOCAL else entry.metric
        attributes["prefsrc"] = found.src if src is None else None
        attributes["gateway"] = gateway
        attributes["oif"] = found.iface.index
        attributes["priority"] = metric
        attributes["cacheinfo"] = {}
        attributes["pref"] = 0
        flags = 0
    fields = {
        "family": AF_INET if ipv4 else AF_INET6,
        "dst_len": len(dst) * 8,
        "src_len": 0 if src is None else len(src) * 8,
        "table": table,
        "protocol": protocol,
        "type": int(found.kind),
        "flags": flags,
    }
    return ROUTE.emit(fields, attributes)


def _metrics(netns: NetNamespace, src: bytes | None, found: Route) -> dict[str, int] | None:
    """Those of the line that was found, with what is known of the path's MTU."""
    if found.kind is not RouteKind.UNICAST:
        return None
    entry = netns.ip.routes4.lookup(found.dst, 0, src)
    metrics = dict(entry.metrics) if entry is not None else {}
    if found.mtu < min(found.iface.mtu, _IPV4_MAX):
        metrics["mtu"] = found.mtu
    return metrics or None


_IPV4_MAX: Final = 65535  # bytes; lo's MTU is one more


@dataclass(slots=True)
class _Filter:
    """What a strict dump asks for; 0 is everything."""

    table: int = 0
    protocol: int = 0
    type: int = 0
    oif: int = 0

    def passes(self, entry: RouteEntry) -> bool:
        return (
            (not self.table or entry.table == self.table)
            and (not self.protocol or entry.protocol == self.protocol)
            and (not self.type or entry.kind == self.type)
            and (not self.oif or entry.leaves_by(self.oif))
        )


def dump(netns: NetNamespace, request: Request) -> None:
    wanted = _Filter()
    flags = 0
    error: NetlinkError | None = None
    if request.strict:
        try:
            wanted = _filter(request)
        except NetlinkError as refusal:
            error = refusal
        if wanted != _Filter():
            flags = NLM_F_DUMP_FILTERED
    request.dump(
        _dump(netns, request.body[0], wanted, error),
        generation=lambda: netns.changes.counts[ChangeKind.NEW_ROUTE],
        flags=flags,
    )


def _filter(request: Request) -> _Filter:
    if len(request.body) < ROUTE.header_length:
        raise NetlinkError(errno.EINVAL, "Invalid header for FIB dump request")
    message = request.parse(ROUTE, strict=True)
    fields, attributes = message.fields, message.attributes
    if fields["dst_len"] or fields["src_len"] or fields["tos"] or fields["scope"]:
        raise NetlinkError(errno.EINVAL, "Invalid values in header for FIB dump request")
    for name in attributes:
        if name not in ("table", "oif"):
            raise NetlinkError(errno.EINVAL, "Unsupported attribute in dump request")
    return _Filter(
        attributes.get("table", fields["table"]), fields["protocol"], fields["type"], attributes.get("oif", 0)
    )


def _dump(netns: NetNamespace, family: int, wanted: _Filter, error: NetlinkError | None) -> Iterator[tuple[int, bytes]]:
    if error is not None:
        raise error
    widths = {AF_INET: (4,), AF_INET6: (16,)}.get(family, (4, 16))
    entries = [*netns.routes, *netns.local_routes]
    for width in widths:
        mine = [entry for entry in entries if len(entry.network) == width]
        mine.sort(key=lambda each: (each.table & 0xFF, each.network, -each.prefix_length, each.metric))
        for entry in mine:
            if wanted.passes(entry):
                yield Rtm.NEWROUTE, show(entry)


# --- changing ---------------------------------------------------------------------------------------------------------


def new(netns: NetNamespace, request: Request) -> None:
    message = request.parse(ROUTE)
    entry = _entry(netns, message)
    table = netns.ip.routes4 if len(entry.network) == 4 else netns.ip.routes6
    same_line = [each for each in table if _same_line(each, entry)]
    flags = request.flags
    exact = next((each for each in same_line if each.same_as(entry)), None)
    if same_line:
        if flags & NLM_F_EXCL:
            raise NetlinkError(errno.EEXIST)
        if flags & NLM_F_REPLACE:
            if exact is same_line[0]:
                return
            if exact is not None:
                raise NetlinkError(errno.EEXIST)
            netns.replace_route(same_line[0], entry)
            return
        if exact is not None:
            raise NetlinkError(errno.EEXIST)
    if not flags & NLM_F_CREATE and not (len(entry.network) == 16 and not flags & NLM_F_REPLACE):
        raise NetlinkError(errno.ENOENT)
    netns.put_route(entry, "appended" if same_line and flags & NLM_F_APPEND else "")


def delete(netns: NetNamespace, request: Request) -> None:
    message = request.parse(ROUTE)
    fields, attributes = message.fields, message.attributes
    width, network, length = _destination(message)
    table = attributes.get("table", fields["table"]) or RT_TABLE_MAIN
    gateway = _bytes(attributes, "gateway", width)
    prefsrc = _bytes(attributes, "prefsrc", width)
    oif = attributes.get("oif", 0)
    for entry in list(netns.ip.routes4 if width == 4 else netns.ip.routes6):
        if (
            entry.table == table
            and entry.network == network
            and entry.prefix_length == length
            and (not fields["type"] or entry.kind == fields["type"] or width == 16)
            and (width == 16 or fields["scope"] in (RT_SCOPE_NOWHERE, entry.scope))
            and (not fields["protocol"] or entry.protocol == fields["protocol"])
            and (not attributes.get("priority") or entry.metric == attributes["priority"])
            and (prefsrc is None or entry.src == prefsrc)
            and (gateway is None or entry.gateway == gateway or any(hop.gateway == gateway for hop in entry.hops))
            and (not oif or entry.leaves_by(oif))
        ):
            netns.remove_route(entry)
            return
    raise NetlinkError(errno.ESRCH)


def _same_line(one: RouteEntry, other: RouteEntry) -> bool:
    """The same destination and priority in the same table: only one can count."""
    return (one.table, one.network, one.prefix_length, one.metric) == (
        other.table,
        other.network,
        other.prefix_length,
        other.metric,
    )


def _destination(message: Message) -> tuple[int, bytes, int]:
    """(address width, network, prefix length)"""
    fields, attributes = message.fields, message.attributes
    if fields["family"] not in (AF_INET, AF_INET6):
        raise NetlinkError(errno.EOPNOTSUPP)
    width = 4 if fields["family"] == AF_INET else 16
    length = fields["dst_len"]
    if length > width * 8:
        raise NetlinkError(errno.EINVAL, "Invalid prefix length")
    if fields["src_len"]:
        raise NetlinkError(errno.EINVAL, "Routes by source are made by rules here")
    if fields["tos"]:
        raise NetlinkError(errno.EOPNOTSUPP, "Routes by TOS are not supported")
    network = _bytes(attributes, "dst", width) or bytes(width)
    if network_of(network, length) != network:
        if width == 4:
            raise NetlinkError(errno.EINVAL, "Invalid prefix for given prefix length")
        network = network_of(network, length)
    return width, network, length


def _entry(netns: NetNamespace, message: Message) -> RouteEntry:
    """The line that a NEWROUTE asks for, every part of it checked."""
    fields, attributes = message.fields, message.attributes
    width, network, length = _destination(message)
    table = attributes.get("table", fields["table"]) or RT_TABLE_MAIN
    if table == RT_TABLE_LOCAL:
        raise NetlinkError(errno.EOPNOTSUPP, "The table local follows from the addresses")
    try:
        kind = RouteKind(fields["type"] or RouteKind.UNICAST)
    except ValueError:
        raise NetlinkError(errno.EINVAL, "Invalid route type") from None
    if kind not in _REFUSING and kind is not RouteKind.UNICAST:
        raise NetlinkError(errno.EOPNOTSUPP, "Routes of this type follow from the addresses")
    for name in _UNSUPPORTED:
        if attributes.get(name):
            raise NetlinkError(errno.EOPNOTSUPP, f"Routes with {name} are not supported")
    source = _bytes(attributes, "prefsrc", width)
    if source is not None and not netns.ip.is_own_unicast(source):
        raise NetlinkError(errno.EINVAL, "Invalid prefsrc address" if width == 4 else "Invalid source address")
    hops: tuple[NextHop, ...] = ()
    iface: Interface | None = None
    gateway: bytes | None = None
    onlink = bool(fields["flags"] & RTNH_F_ONLINK)
    if kind is RouteKind.UNICAST:
        if "multipath" in attributes:
            hops = tuple(_way(netns, width, each["oif"], each.get("gateway"), each) for each in attributes["multipath"])
        else:
            gateway = _bytes(attributes, "gateway", width)
            way = _way(netns, width, attributes.get("oif", 0), gateway, {"flags": RTNH_F_ONLINK if onlink else 0})
            hops = (way,)
        iface, gateway = hops[0].iface, hops[0].gateway
        if len(hops) == 1:
            hops = ()
    metric = attributes.get("priority", 0)
    scope = fields["scope"] if width == 4 else SCOPE_UNIVERSE
    if width == 4 and gateway is not None and scope >= SCOPE_LINK:
        raise NetlinkError(errno.EINVAL, "Nexthop has invalid scope")
    if scope > SCOPE_HOST:
        raise NetlinkError(errno.EINVAL, "Invalid scope")
    return RouteEntry(
        network,
        length,
        iface,
        gateway=gateway,
        metric=metric or (0 if width == 4 else METRIC6_USER),
        src=source,
        kind=kind,
        protocol=fields["protocol"],
        scope=scope,
        table=table,
        metrics=attributes.get("metrics"),
        hops=hops,
        onlink=onlink and gateway is not None,
    )


def _way(netns: NetNamespace, width: int, oif: int, gateway: bytes | None, hop: dict[str, Any]) -> NextHop:
    """One next hop. Raises NetlinkError as fib_check_nh does."""
    iface: Interface | None = None
    onlink = bool(hop.get("flags", 0) & RTNH_F_ONLINK)
    if gateway is not None and len(gateway) < width:
        raise NetlinkError(errno.EINVAL, "Invalid gateway address")
    if oif:
        iface = netns.ip.interfaces.get(oif)
        if iface is None:
            raise NetlinkError(errno.ENODEV)
        if not iface.up:
            words = "Device for nexthop is not up" if gateway is None else "Nexthop device is not up"
            raise NetlinkError(errno.ENETDOWN, words if width == 4 else "")
    if gateway is None or not any(gateway):
        if iface is None:
            raise NetlinkError(errno.ENODEV)
        return NextHop(iface, None, hop.get("hops", 0) + 1)
    gateway = gateway[:width]
    if onlink:
        if iface is None:
            raise NetlinkError(errno.EINVAL, "Nexthop device required for onlink")
        return NextHop(iface, gateway, hop.get("hops", 0) + 1, onlink=True)
    words = "Nexthop has invalid gateway"
    link_local = width == 16 and gateway[0] == 0xFE and gateway[1] & 0xC0 == 0x80
    if link_local:
        if iface is None:
            raise NetlinkError(errno.EINVAL, "Device is required for link-local gateway" if width == 16 else words)
        return NextHop(iface, gateway, hop.get("hops", 0) + 1)
    unreachable = errno.ENETUNREACH if width == 4 else errno.EHOSTUNREACH
    try:
        found = netns.ip.route(gateway, oif=oif)
    except NetError as error:
        code = unreachable if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL) else error.errno
        raise NetlinkError(code, words) from None
    if width == 4 and found.kind is RouteKind.LOCAL:
        owner = next((each for each in netns.ip.interfaces.values() if each.has_address(gateway)), found.iface)
        if not owner.up:
            raise NetlinkError(errno.ENETDOWN, "Nexthop device is not up")
        return NextHop(iface or owner, gateway, hop.get("hops", 0) + 1)  # our own address: as good as none
    if found.kind is not RouteKind.UNICAST or found.next_hop != gateway:
        raise NetlinkError(errno.EINVAL, words)
    if iface is not None and found.iface is not iface:
        raise NetlinkError(errno.EINVAL if width == 4 else unreachable, words)
    return NextHop(found.iface, gateway, hop.get("hops", 0) + 1)


def _bytes(attributes: dict[str, Any], name: str, width: int) -> bytes | None:
    value: bytes | None = attributes.get(name)
    if value is None:
        return None
    if len(value) < width:
        raise NetlinkError(errno.EINVAL, "Invalid attribute length")
    return value[:width]
