"""RTM_*LINK: what a link looks like, and how it is made, changed and removed (rows RT-01..RT-05, RT-15, RT-16)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.iface import kinds
from stack.iface.changes import Change, ChangeKind
from stack.iface.facts import InterfaceFlags
from stack.netns import check_name
from stack.socket.netlink.kernel import Request
from stack.wire.ethernet import MAC_LENGTH
from stack.wire.ipv4 import MIN_MTU
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from stack.wire.netlink.link import LINK
from stack.wire.netlink.message import Message
from stack.wire.netlink.rtnetlink import AF_UNSPEC, Rtm

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

ALL_BITS: Final = 0xFFFFFFFF
# IF_OPER_*
OPER_UNKNOWN: Final = 0
OPER_DOWN: Final = 2
OPER_LOWERLAYERDOWN: Final = 3
OPER_UP: Final = 6

_GSO_MAX_SEGS: Final = 65535
_GSO_MAX_SIZE: Final = 65536  # bytes
_U32: Final = 0xFFFFFFFF
_DEVICE_MTU: Final = 65535  # bytes; the most any kind of link here carries
_UP: Final = int(InterfaceFlags.UP)
_RUNNING: Final = int(InterfaceFlags.RUNNING)
_PROMISC: Final = int(InterfaceFlags.PROMISC)
_ALLMULTI: Final = int(InterfaceFlags.ALLMULTI)
_LISTENING: Final = InterfaceFlags.PROMISC | InterfaceFlags.ALLMULTI


# --- showing ----------------------------------------------------------------------------------------------------------


def oper_state(iface: Interface) -> int:
    """RFC 2863's, as Linux has it: lo and dummies never say."""
    if not iface.up:
        return OPER_DOWN
    if iface.loopback or iface.kind == "dummy":
        return OPER_UNKNOWN
    if iface.carrier:
        return OPER_UP
    return OPER_DOWN if iface.link is None else OPER_LOWERLAYERDOWN


def counters(iface: Interface) -> dict[str, int]:
    """The fields of struct rtnl_link_stats64 that are not zero."""
    stats = iface.stats
    drops = iface.drops
    return {
        "rx_packets": stats.rx_packets,
        "tx_packets": stats.tx_packets,
        "rx_bytes": stats.rx_bytes,
        "tx_bytes": stats.tx_bytes,
        "rx_errors": drops["too-short"],
        "tx_errors": drops["device-error"],
        "rx_dropped": drops["unknown-ethertype"],
        "tx_dropped": drops["queue-full"],
        "rx_length_errors": drops["too-short"],
        "rx_otherhost_dropped": drops["other-host"],
    }


def show(iface: Interface, *, change: int = 0, gone: bool = False) -> bytes:
    """A NEWLINK's or DELLINK's body, in Linux's order."""
    numbers = counters(iface)
    peer = iface.link
    up_count = (iface.carrier_changes + iface.carrier) // 2
    down_count = (iface.carrier_changes + (not iface.carrier)) // 2
    attributes: dict[str, Any] = {
        "ifname": iface.name,
        "txqlen": iface.tx_queue_length,
        "operstate": oper_state(iface),
        "linkmode": 0,
        "netns_immutable": int(iface.loopback),
        "mtu": iface.mtu,
        "min_mtu": 0 if iface.loopback else MIN_MTU,
        "max_mtu": 0 if iface.loopback else iface.device.mtu,
        "group": iface.group,
        "promiscuity": iface.promiscuous,
        "allmulti": iface.all_multicast,
        "num_tx_queues": 1,
        "gso_max_segs": _GSO_MAX_SEGS,
        "gso_max_size": _GSO_MAX_SIZE,
        "gro_max_size": _GSO_MAX_SIZE,
        "gso_ipv4_max_size": _GSO_MAX_SIZE,
        "gro_ipv4_max_size": _GSO_MAX_SIZE,
        "tso_max_size": _GSO_MAX_SIZE,
        "tso_max_segs": _GSO_MAX_SEGS,
        "max_pacing_offload_horizon": 0,
        "num_rx_queues": 1,
        "master": None if iface.master is None else iface.master.index,
        "carrier": int(iface.carrier),
        "ifalias": iface.alias or None,
        "carrier_changes": iface.carrier_changes,
        "carrier_up_count": up_count,
        "carrier_down_count": down_count,
        "headroom": 0,
        "tailroom": 0,
        "proto_down": 0,
        "address": iface.mac,
        "broadcast": iface.broadcast_mac,
        "stats64": numbers,
        "stats": {name: value & _U32 for name, value in numbers.items()},
        "xdp": {"attached": 0},
        "qdisc": "noqueue" if iface.loopback or iface.kind else "pfifo_fast",
        "map": {},
    }
    info: dict[str, Any] = {}
    if iface.kind:
        info["kind"] = iface.kind
        if iface.kind_data:
            info["data"] = iface.kind_data
    if iface.master is not None:
        info["slave_kind"] = iface.master.kind
    if info:
        attributes["linkinfo"] = info
    attributes["link"] = None if peer is None else peer.index
    attributes["devlink_port"] = attributes["dpll_pin"] = {}
    fields = {
        "family": AF_UNSPEC,
        "type": iface.link_type,
        "index": iface.index,
        "flags": int(iface.flags) & ~(_UP | _RUNNING if gone else 0),
        "change": change,
    }
    return LINK.emit(fields, attributes)


def changed_bits(change: Change) -> int:
    """ifi_change of the message about `change`."""
    if change.kind is ChangeKind.DEL_LINK or change.detail == "new":
        return ALL_BITS
    if change.detail in ("up", "down"):
        return _UP
    return _UP | _RUNNING if change.detail == "closing" else 0


# --- asking -----------------------------------------------------------------------------------------------------------


def find(netns: NetNamespace, message: Message) -> Interface | None:
    """By index, else by name. None: there is no such link, or none was named."""
    index = message.fields["index"]
    if index > 0:
        return netns.ip.interfaces.get(index)
    name = message.attributes.get("ifname") or message.attributes.get("alt_ifname")
    return None if name is None else netns.interfaces.get(name)


def named(message: Message) -> bool:
    """The message says which link it is about."""
    attributes = message.attributes
    return message.fields["index"] > 0 or "ifname" in attributes or "alt_ifname" in attributes


def get(netns: NetNamespace, request: Request) -> None:
    message = request.parse(LINK)
    if request.strict:
        fields = message.fields
        if fields["type"] or fields["flags"] or fields["change"]:
            raise NetlinkError(errno.EINVAL, "Invalid values in header for get link request")
    if not named(message):
        raise NetlinkError(errno.EINVAL)
    iface = find(netns, message)
    if iface is None:
        raise NetlinkError(errno.ENODEV)
    request.reply(Rtm.NEWLINK, show(iface))


def dump(netns: NetNamespace, request: Request) -> None:
    request.dump(_dump(netns, request), generation=lambda: netns.changes.counts[ChangeKind.NEW_LINK])


def _dump(netns: NetNamespace, request: Request) -> Iterator[tuple[int, bytes]]:
    master = kind = None
    if len(request.body) < LINK.header_length:  # an old client's struct rtgenmsg, or junk
        if request.strict:
            raise NetlinkError(errno.EINVAL, "Invalid header for link dump")
    else:
        if request.strict:
            fields = LINK.parse_fields(request.body)
            if fields["type"] or fields["flags"] or fields["change"]:
                raise NetlinkError(errno.EINVAL, "Invalid values in header for link dump request")
            if fields["index"]:
                raise NetlinkError(errno.EINVAL, "Filter by device index not supported for link dumps")
        attributes = request.parse(LINK).attributes
        master = attributes.get("master")
        kind = attributes.get("linkinfo", {}).get("kind")
    for index, iface in sorted(netns.ip.interfaces.items()):
        if master is not None and (iface.master is None or iface.master.index != master):
            continue
        if kind is not None and iface.kind != kind:
            continue
        if index in netns.ip.interfaces:
            yield Rtm.NEWLINK, show(iface)


# --- changing ---------------------------------------------------------------------------------------------------------


def new(netns: NetNamespace, request: Request) -> None:
    """RTM_NEWLINK: make a link, or change one that is there."""
    message = request.parse(LINK)
    attributes = message.attributes
    index = message.fields["index"]
    if index < 0:
        raise NetlinkError(errno.EINVAL, "ifindex can't be negative")
    info = attributes.get("linkinfo", {})
    kind = info.get("kind", "")
    iface = find(netns, message)
    if iface is not None:
        if request.flags & NLM_F_EXCL:
            raise NetlinkError(errno.EEXIST)
        if request.flags & NLM_F_REPLACE:
            raise NetlinkError(errno.EOPNOTSUPP)
        if "data" in info:  # none of our kinds changes what it was made with
            raise NetlinkError(errno.EOPNOTSUPP)
        _apply(netns, iface, message)
        return
    if not request.flags & NLM_F_CREATE:
        raise NetlinkError(errno.ENODEV)
    if kind not in kinds.kinds():
        raise NetlinkError(errno.EOPNOTSUPP, "Unknown device type")
    _create(netns, kind, message)


def _create(netns: NetNamespace, kind: str, message: Message) -> None:
    attributes = message.attributes
    name = attributes.get("ifname") or _free_name(netns, kind)
    _check_name(netns, None, name)
    wanted = _wanted(message.fields["index"], attributes)
    data = dict(attributes.get("linkinfo", {}).get("data", {}))
    if "peer" in data:
        peer = data["peer"]
        data["peer"] = _wanted(peer["index"], peer)
        if "ifname" in peer:
            _check_name(netns, None, peer["ifname"])
            if peer["ifname"] == name:
                raise NetlinkError(errno.EEXIST)
            data["peer"]["name"] = peer["ifname"]
    wanted["data"] = data
    if "link" in attributes:
        below = netns.ip.interfaces.get(attributes["link"])
        if below is None:
            raise NetlinkError(errno.ENODEV)
        wanted["link"] = below
    # Everything that could fail after the link exists is looked at before.
    _check_common(netns, message)
    iface = kinds.create(netns, kind, name, wanted)
    try:
        settings = Message(
            message.fields, {k: v for k, v in attributes.items() if k not in ("address", "mtu", "ifname")}
        )
        _apply(netns, iface, settings)
    except (NetError, NetlinkError):
        netns.remove_interface(iface)
        raise


def _wanted(index: int, attributes: dict[str, Any]) -> dict[str, Any]:
    """As `stack.iface.kinds` names it."""
    wanted: dict[str, Any] = {}
    if index:
        wanted["index"] = index
    if "address" in attributes:
        wanted["mac"] = attributes["address"][:MAC_LENGTH]
        if len(wanted["mac"]) < MAC_LENGTH or wanted["mac"][0] & 1 or not any(wanted["mac"]):
            raise NetlinkError(errno.EADDRNOTAVAIL if len(wanted["mac"]) == MAC_LENGTH else errno.EINVAL)
    if "mtu" in attributes:
        wanted["mtu"] = attributes["mtu"]
        if not MIN_MTU <= attributes["mtu"] <= _DEVICE_MTU:
            raise NetlinkError(errno.EINVAL)
    return wanted


def change(netns: NetNamespace, request: Request) -> None:
    """RTM_SETLINK: change a link that is there."""
    message = request.parse(LINK)
    if not named(message):
        raise NetlinkError(errno.EINVAL)
    iface = find(netns, message)
    if iface is None:
        raise NetlinkError(errno.ENODEV)
    _apply(netns, iface, message)


def delete(netns: NetNamespace, request: Request) -> None:
    message = request.parse(LINK)
    if not named(message):
        raise NetlinkError(errno.EINVAL)
    iface = find(netns, message)
    if iface is None:
        raise NetlinkError(errno.ENODEV)
    if not iface.kind:
        raise NetlinkError(errno.EOPNOTSUPP)
    netns.remove_interface(iface)


def _apply(netns: NetNamespace, iface: Interface, message: Message) -> None:
    """Check every setting, then make them all: a refused request has changed nothing."""
    attributes = message.attributes
    name = attributes.get("ifname") if message.fields["index"] > 0 else None
    if name is not None and name != iface.name:
        _check_name(netns, iface, name)
    _check_common(netns, message)
    mtu = attributes.get("mtu")
    if mtu is not None:
        _check_mtu(iface, mtu)
    mac = _mac(iface, attributes.get("address"))
    if "master" in attributes:  # the one step that may still refuse comes first
        netns.set_master(iface, _master(netns, attributes["master"]))
    if mac is not None:
        iface.set_mac(mac)
    if mtu is not None:
        iface.set_mtu(mtu)
    if name is not None:
        netns.rename(iface, name)
    _set_plain(netns, iface, attributes)
    flags, mask = message.fields["flags"], message.fields["change"]
    if flags and not mask:
        mask = ALL_BITS
    asked = iface.asked
    iface.asked = asked & ~mask | _LISTENING & flags & mask
    iface.promiscuous += bool(iface.asked & _PROMISC) - bool(asked & _PROMISC)
    iface.all_multicast += bool(iface.asked & _ALLMULTI) - bool(asked & _ALLMULTI)
    if mask & _UP:
        netns.set_up(iface, bool(flags & _UP))


def _set_plain(netns: NetNamespace, iface: Interface, attributes: dict[str, Any]) -> None:
    """What is but stored and shown, and the length of the queue."""
    before = iface.group, iface.alias, iface.tx_queue_length
    iface.group = attributes.get("group", iface.group)
    iface.tx_queue_length = attributes.get("txqlen", iface.tx_queue_length)
    if "ifalias" in attributes:
        iface.alias = attributes["ifalias"]
    if before != (iface.group, iface.alias, iface.tx_queue_length):
        netns.changes.append(ChangeKind.NEW_LINK, iface, iface.index, "settings")


def _check_mtu(iface: Interface, mtu: int) -> None:
    if mtu < MIN_MTU or mtu > _MTU_MAX:
        raise NetlinkError(errno.EINVAL, "mtu less than device minimum")
    if mtu > iface.device.mtu:
        raise NetlinkError(errno.EINVAL, "mtu greater than device maximum")


def _mac(iface: Interface, mac: bytes | None) -> bytes | None:
    """A hardware address that `iface` can have."""
    if mac is None:
        return None
    if len(mac) < len(iface.mac):
        raise NetlinkError(errno.EINVAL)
    mac = mac[: len(iface.mac)]
    if iface.loopback:
        raise NetlinkError(errno.EOPNOTSUPP)
    if mac[0] & 1 or not any(mac):
        raise NetlinkError(errno.EADDRNOTAVAIL)
    return mac


def _master(netns: NetNamespace, index: int) -> Interface | None:
    """IFLA_MASTER: 0 is none."""
    if not index:
        return None
    above = netns.ip.interfaces.get(index)
    if above is None:
        raise NetlinkError(errno.EINVAL)
    if above.ports is None:
        raise NetlinkError(errno.EOPNOTSUPP)
    return above


#: Settings Linux has and links here have not.
_UNSUPPORTED: Final = ("broadcast", "carrier", "linkmode", "map", "operstate", "proto_down")

#: MTUs are ints: what looks negative is too small, not too large.
_MTU_MAX: Final = 0x7FFFFFFF


def _check_common(netns: NetNamespace, message: Message) -> None:
    """Settings of ours that this place has not got are refused, not forgotten."""
    attributes = message.attributes
    for name in _UNSUPPORTED:
        if name in attributes:
            raise NetlinkError(errno.EOPNOTSUPP, f"{name} of a link cannot be set here")
    for name in ("net_ns_pid", "net_ns_fd"):
        if name in attributes:
            raise NetlinkError(errno.EINVAL, "there are no namespaces by process or descriptor here")
    if attributes.get("master") and attributes["master"] not in netns.ip.interfaces:
        raise NetlinkError(errno.EINVAL)


def _check_name(netns: NetNamespace, iface: Interface | None, name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        raise NetlinkError(errno.EINVAL) from None
    if name in netns.interfaces and netns.interfaces[name] is not iface:
        raise NetlinkError(errno.EEXIST)


def _free_name(netns: NetNamespace, kind: str) -> str:
    number = 0
    while f"{kind}{number}" in netns.interfaces:
        number += 1
    return f"{kind}{number}"
