"""RTM_*NEIGH and RTM_GETNEIGHTBL: the neighbour caches of all links, and their parameters."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stack.iface.changes import ChangeKind
from stack.link import neighbour as cache
from stack.link.neighbour import Neighbour, NeighbourState
from stack.scheduler import NS_PER_MS
from stack.socket.netlink.kernel import Request
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import NLM_F_CREATE, NLM_F_DUMP_FILTERED, NLM_F_EXCL, NLM_F_REPLACE
from stack.wire.netlink.message import Message
from stack.wire.netlink.neighbour import NEIGH, NEIGHTBL, NTF_PROXY, NTF_ROUTER
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6, AF_UNSPEC, Rtm

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

RTN_UNICAST: Final = 1
_TICK: Final = 10 * NS_PER_MS  # times in struct nda_cacheinfo are hundredths of a second
_NO_ARP: Final = 0x40  # NUD_NOARP


# --- showing ----------------------------------------------------------------------------------------------------------


def show(entry: Neighbour, index: int, now: int = 0) -> bytes:
    """A NEWNEIGH's or DELNEIGH's body."""
    ticks = max(now - entry.updated, 0) // _TICK
    attributes: dict[str, Any] = {
        "dst": entry.address,
        "lladdr": entry.mac,
        "probes": entry.probes,
        "cacheinfo": {"confirmed": ticks, "used": ticks, "updated": ticks, "refcnt": 0},
    }
    fields = {
        "family": AF_INET if len(entry.address) == 4 else AF_INET6,
        "index": index,
        "state": int(entry.state) or int(NeighbourState.FAILED),
        "flags": NTF_ROUTER if entry.is_router else 0,
        "type": RTN_UNICAST,
    }
    return NEIGH.emit(fields, attributes)


# --- asking -----------------------------------------------------------------------------------------------------------


def get(netns: NetNamespace, request: Request) -> None:
    message = request.parse(NEIGH)
    family = message.fields["family"]
    if family not in (AF_INET, AF_INET6):
        raise NetlinkError(errno.EAFNOSUPPORT, "Invalid address family in neighbor get request")
    if "dst" not in message.attributes:
        raise NetlinkError(errno.EINVAL, "Network address not specified")
    address = _address(message)
    if not message.fields["index"]:
        raise NetlinkError(errno.EINVAL, "No device specified")
    iface = netns.ip.interfaces.get(message.fields["index"])
    if iface is None:
        raise NetlinkError(errno.ENODEV, "Unknown device ifindex")
    entry = iface.neighbours.get(address)
    if entry is None:
        raise NetlinkError(errno.ENOENT)
    request.reply(Rtm.NEWNEIGH, show(entry, iface.index, netns.scheduler.now))


def dump(netns: NetNamespace, request: Request) -> None:
    index = 0
    family = request.body[0]
    if len(request.body) >= NEIGH.header_length:
        message = request.parse(NEIGH)
        index = message.attributes.get("ifindex", 0)
        if message.fields["flags"] & NTF_PROXY:  # there are no proxy entries
            family = -1
    request.dump(
        _dump(netns, family, index),
        generation=lambda: netns.changes.counts[ChangeKind.NEW_NEIGHBOUR],
        flags=NLM_F_DUMP_FILTERED if index else 0,
    )


def _dump(netns: NetNamespace, family: int, index: int) -> Iterator[tuple[int, bytes]]:
    widths = {AF_INET: (4,), AF_INET6: (16,), AF_UNSPEC: (4, 16)}.get(family, ())
    for width in widths:
        for number, iface in sorted(netns.ip.interfaces.items()):
            if index and number != index:
                continue
            for entry in iface.neighbours:
                if len(entry.address) == width and entry.state != NeighbourState.DEAD:
                    yield Rtm.NEWNEIGH, show(entry, number, netns.scheduler.now)


def dump_tables(netns: NetNamespace, request: Request) -> None:
    request.dump(_dump_tables(netns, request.body[0]), generation=lambda: 0)


def _dump_tables(netns: NetNamespace, family: int) -> Iterator[tuple[int, bytes]]:
    for mine, name, width in ((AF_INET, "arp_cache", 4), (AF_INET6, "ndisc_cache", 16)):
        if family not in (AF_UNSPEC, mine):
            continue
        entries = sum(
            len(entry.address) == width for iface in netns.ip.interfaces.values() for entry in iface.neighbours
        )
        yield (
            Rtm.NEWNEIGHTBL,
            NEIGHTBL.emit(
                {"family": mine},
                {
                    "name": name,
                    "thresh3": cache.MAX_ENTRIES,
                    "config": {"key_len": width, "entries": entries},
                    "parms": _parameters(None),
                },
            ),
        )
        for number in sorted(netns.ip.interfaces):
            yield Rtm.NEWNEIGHTBL, NEIGHTBL.emit({"family": mine}, {"name": name, "parms": _parameters(number)})


def _parameters(index: int | None) -> dict[str, Any]:
    """Of one interface, or the defaults. They are the same everywhere; times in milliseconds."""
    return {
        "ifindex": index,
        "queue_len": cache.MAX_PENDING_PACKETS,
        "queue_lenbytes": cache.MAX_PENDING_BYTES,
        "ucast_probes": cache.MAX_UNICAST_SOLICIT,
        "mcast_probes": cache.MAX_MULTICAST_SOLICIT,
        "base_reachable_time": cache.BASE_REACHABLE_TIME // NS_PER_MS,
        "delay_probe_time": cache.DELAY_FIRST_PROBE_TIME // NS_PER_MS,
        "retrans_time": cache.RETRANS_TIME // NS_PER_MS,
    }


# --- changing ---------------------------------------------------------------------------------------------------------


def new(netns: NetNamespace, request: Request) -> None:
    message = request.parse(NEIGH)
    iface, address = _target(netns, message)
    attributes = message.attributes
    mac = attributes.get("lladdr")
    if mac is not None and len(mac) < len(iface.mac):
        raise NetlinkError(errno.EINVAL, "Invalid link address")
    state = message.fields["state"]
    known = iface.neighbours.get(address)
    if known is None:
        if not request.flags & NLM_F_CREATE:
            raise NetlinkError(errno.ENOENT)
    elif request.flags & NLM_F_EXCL:
        raise NetlinkError(errno.EEXIST)
    elif not request.flags & NLM_F_REPLACE and known.mac is not None and mac != known.mac:
        mac = known.mac
    if state not in _STATES:
        raise NetlinkError(errno.EINVAL, "States other than permanent, reachable, stale, failed and none are made here")
    if state not in (0, NeighbourState.FAILED) and mac is None:
        raise NetlinkError(errno.EINVAL, "No link layer address given")
    iface.neighbours.configure(address, None if mac is None else mac[: len(iface.mac)], _STATES[state])


#: What a request may ask for, and what it becomes. NUD_NONE leaves the address to be asked for when it is needed.
_STATES: Final = {
    0: NeighbourState.STALE,
    int(NeighbourState.REACHABLE): NeighbourState.REACHABLE,
    int(NeighbourState.STALE): NeighbourState.STALE,
    int(NeighbourState.FAILED): NeighbourState.FAILED,
    _NO_ARP: NeighbourState.PERMANENT,
    int(NeighbourState.PERMANENT): NeighbourState.PERMANENT,
}


def delete(netns: NetNamespace, request: Request) -> None:
    message = request.parse(NEIGH)
    iface, address = _target(netns, message)
    entry = iface.neighbours.get(address)
    if entry is None:
        raise NetlinkError(errno.ENOENT)
    iface.neighbours.forget(address)


def _target(netns: NetNamespace, message: Message) -> tuple[Interface, bytes]:
    fields = message.fields
    if "dst" not in message.attributes:
        raise NetlinkError(errno.EINVAL, "Network address not specified")
    iface = None
    if fields["index"]:
        iface = netns.ip.interfaces.get(fields["index"])
        if iface is None:
            raise NetlinkError(errno.ENODEV)
    if fields["family"] not in (AF_INET, AF_INET6):
        raise NetlinkError(errno.EAFNOSUPPORT)
    address = _address(message)
    if fields["flags"] & NTF_PROXY:
        raise NetlinkError(errno.EOPNOTSUPP, "Proxy entries are not supported")
    if iface is None:
        raise NetlinkError(errno.EINVAL, "Device not specified")
    return iface, address


def _address(message: Message) -> bytes:
    width = 4 if message.fields["family"] == AF_INET else 16
    address: bytes = message.attributes["dst"]
    if len(address) < width:
        raise NetlinkError(errno.EINVAL, "Invalid network address")
    return address[:width]
