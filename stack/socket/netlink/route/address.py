"""RTM_*ADDR: what an address looks like, and how it is given and taken (rows RT-06..RT-11)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stack.iface.address import (
    IFA_DEPRECATED,
    IFA_PERMANENT,
    SCOPE_HOST,
    SCOPE_LINK,
    InterfaceAddress,
    broadcast_of,
)
from stack.iface.changes import ChangeKind
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.socket.netlink.kernel import Request
from stack.wire.ipv6 import is_link_local
from stack.wire.netlink.address import ADDR, FOREVER, IFA_F_PERMANENT, IFAPROT_KERNEL_LO
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import NLM_F_DUMP_FILTERED, NLM_F_EXCL, NLM_F_REPLACE
from stack.wire.netlink.message import Message
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6, Rtm

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

_TICK: Final = 10 * NS_PER_MS  # cstamp and tstamp count hundredths of a second
_U32: Final = 0xFFFFFFFF
#: What an IPv4 request may say about itself.
_SETTABLE: Final = 0x02 | 0x04 | 0x80 | 0x200  # NODAD, OPTIMISTIC, PERMANENT, NOPREFIXROUTE


# --- showing ----------------------------------------------------------------------------------------------------------


def show(iface: Interface, address: InterfaceAddress) -> bytes:
    """A NEWADDR's or DELADDR's body, in Linux's order."""
    cache = {
        "preferred": _left(iface, address.preferred_until),
        "valid": _left(iface, address.valid_until),
        "cstamp": address.created // _TICK & _U32,
        "tstamp": address.changed // _TICK & _U32,
    }
    ipv4 = len(address.address) == 4
    attributes: dict[str, Any] = {"address": address.address}
    if ipv4:
        attributes["local"] = address.address
        attributes["broadcast"] = address.broadcast if address.shows_broadcast else None
        attributes["label"] = address.label or iface.name
        attributes["proto"] = address.protocol or None
        attributes["flags"] = address.flags
        attributes["cacheinfo"] = cache
    else:
        attributes["cacheinfo"] = cache
        attributes["flags"] = address.flags
        attributes["proto"] = (IFAPROT_KERNEL_LO if iface.loopback else address.protocol) or None
    fields = {
        "family": AF_INET if ipv4 else AF_INET6,
        "prefixlen": address.prefix_length,
        "flags": address.flags & 0xFF,
        "scope": address.scope,
        "index": iface.index,
    }
    return ADDR.emit(fields, attributes)


def _left(iface: Interface, until: int | None) -> int:
    """Seconds of a lifetime that are left."""
    return FOREVER if until is None else max(0, until - iface.scheduler.now) // NS_PER_S


# --- asking -----------------------------------------------------------------------------------------------------------


def get(netns: NetNamespace, request: Request) -> None:
    """One address: only IPv6 has that (row RT-07)."""
    if request.body[0] != AF_INET6:
        raise NetlinkError(errno.EOPNOTSUPP)
    message = request.parse(ADDR)
    wanted = message.attributes.get("address") or message.attributes.get("local")
    if wanted is None:
        raise NetlinkError(errno.EINVAL)
    index = message.fields["index"]
    if index and index not in netns.ip.interfaces:
        raise NetlinkError(errno.ENODEV)
    for iface in netns.ip.interfaces.values():
        for address in iface.addresses:
            if address.address == wanted and (not index or iface.index == index):
                request.reply(Rtm.NEWADDR, show(iface, address))
                return
    raise NetlinkError(errno.EADDRNOTAVAIL)


def dump(netns: NetNamespace, request: Request) -> None:
    flags = 0
    if request.strict and len(request.body) >= ADDR.header_length and ADDR.parse_fields(request.body)["index"]:
        flags = NLM_F_DUMP_FILTERED
    request.dump(_dump(netns, request), generation=lambda: netns.changes.counts[ChangeKind.NEW_ADDRESS], flags=flags)


def _dump(netns: NetNamespace, request: Request) -> Iterator[tuple[int, bytes]]:
    family = request.body[0]
    index = 0
    if request.strict:
        prefix = "ipv6" if family == AF_INET6 else "ipv4"
        if len(request.body) < ADDR.header_length:
            raise NetlinkError(errno.EINVAL, f"{prefix}: Invalid header for address dump request")
        fields = ADDR.parse_fields(request.body)
        if fields["prefixlen"] or fields["flags"] or fields["scope"]:
            raise NetlinkError(errno.EINVAL, f"{prefix}: Invalid values in header for address dump request")
        index = fields["index"]
        if index and index not in netns.ip.interfaces:
            raise NetlinkError(errno.ENODEV)
    widths = {AF_INET: (4,), AF_INET6: (16,)}.get(family, (4, 16))
    for width in widths:
        for number, iface in sorted(netns.ip.interfaces.items()):
            if index and number != index:
                continue
            for address in tuple(iface.addresses):
                if len(address.address) == width and address in iface.addresses:
                    yield Rtm.NEWADDR, show(iface, address)


# --- changing ---------------------------------------------------------------------------------------------------------


def new(netns: NetNamespace, request: Request) -> None:
    message = request.parse(ADDR)
    family = message.fields["family"]
    if family == AF_INET:
        _new4(netns, request, message)
    elif family == AF_INET6:
        _new6(netns, request, message)
    else:
        raise NetlinkError(errno.EOPNOTSUPP)


def _new4(netns: NetNamespace, request: Request, message: Message) -> None:
    fields, attributes = message.fields, message.attributes
    if fields["prefixlen"] > 32:
        raise NetlinkError(errno.EINVAL, "ipv4: Invalid prefix length")
    local = _bytes(attributes, "local", 4)
    if local is None:
        raise NetlinkError(errno.EINVAL, "ipv4: Local address is not supplied")
    iface = netns.ip.interfaces.get(fields["index"])
    if iface is None:
        raise NetlinkError(errno.ENODEV, "ipv4: Device not found")
    peer = _bytes(attributes, "address", 4)
    if peer not in (None, local):
        raise NetlinkError(errno.EOPNOTSUPP, "ipv4: Addresses with a peer are not supported")
    lifetime = _lifetime(attributes, "ipv4")
    prefixlen, scope = fields["prefixlen"], fields["scope"]
    broadcast = _bytes(attributes, "broadcast", 4)
    address = InterfaceAddress(
        local,
        prefixlen,
        broadcast if broadcast is not None else broadcast_of(local, prefixlen),
        scope,
        attributes.get("flags", fields["flags"]) & _SETTABLE | IFA_F_PERMANENT,
        label=attributes.get("label", ""),
        shows_broadcast=broadcast is not None,
        protocol=attributes.get("proto", 0),
    )
    netns.lifetimes.set(address, *lifetime)
    same = next((each for each in iface.addresses if each.address == local), None)
    if same is not None and same.prefix_length == prefixlen:
        if request.flags & NLM_F_EXCL or not request.flags & NLM_F_REPLACE:
            raise NetlinkError(errno.EEXIST, "ipv4: Address already assigned")
        _update(netns, iface, same, address)
        return
    if same is not None:
        raise NetlinkError(errno.EEXIST, "ipv4: Address already assigned")
    for each in iface.addresses:
        if each.network == address.network and each.prefix_length == prefixlen and each.scope != scope:
            raise NetlinkError(errno.EINVAL, "ipv4: Invalid scope value")
    netns.give_address(iface, address)
    netns.lifetimes.watch()


def _new6(netns: NetNamespace, request: Request, message: Message) -> None:
    fields, attributes = message.fields, message.attributes
    local = _bytes(attributes, "local", 16) or _bytes(attributes, "address", 16)
    if local is None:
        raise NetlinkError(errno.EINVAL)
    if fields["prefixlen"] > 128:
        raise NetlinkError(errno.EINVAL, "ipv6: Invalid prefix length")
    iface = netns.ip.interfaces.get(fields["index"])
    if iface is None:
        raise NetlinkError(errno.ENODEV, "ipv6: Unable to find the interface")
    lifetime = _lifetime(attributes, "ipv6")
    if local[0] == 0xFF or not any(local):
        raise NetlinkError(errno.EADDRNOTAVAIL, "ipv6: Cannot assign requested address")
    scope = SCOPE_LINK if is_link_local(local) else SCOPE_HOST if local == bytes(15) + b"\1" else 0
    flags = attributes.get("flags", fields["flags"]) & _SETTABLE | IFA_F_PERMANENT
    address = InterfaceAddress(local, fields["prefixlen"], None, scope, flags, protocol=attributes.get("proto", 0))
    netns.lifetimes.set(address, *lifetime)
    same = next((each for each in iface.addresses if each.address == local), None)
    if same is None:
        netns.give_address(iface, address)
        netns.lifetimes.watch()
    elif request.flags & NLM_F_EXCL or not request.flags & NLM_F_REPLACE:
        raise NetlinkError(errno.EEXIST, "ipv6: address already assigned")
    else:
        _update(netns, iface, same, address)


def _update(netns: NetNamespace, iface: Interface, old: InterfaceAddress, new: InterfaceAddress) -> None:
    """NLM_F_REPLACE changes what is said about an address, never the address."""
    old.protocol = new.protocol
    kept = IFA_PERMANENT | IFA_DEPRECATED
    old.flags = old.flags & ~kept | new.flags & kept
    old.preferred_until, old.valid_until = new.preferred_until, new.valid_until
    netns.ip.invalidate()
    netns.lifetimes.watch()
    old.changed = netns.scheduler.now
    netns.changes.append(ChangeKind.NEW_ADDRESS, old, iface.index)


def delete(netns: NetNamespace, request: Request) -> None:
    message = request.parse(ADDR)
    fields, attributes = message.fields, message.attributes
    if fields["family"] == AF_INET:
        width, missing, gone = 4, "ipv4: Device not found", "ipv4: Address not found"
    elif fields["family"] == AF_INET6:
        width, missing, gone = 16, "ipv6: Unable to find the interface", "ipv6: address not found"
    else:
        raise NetlinkError(errno.EOPNOTSUPP)
    local, address = _bytes(attributes, "local", width), _bytes(attributes, "address", width)
    if width == 16:
        if local is None and address is None:
            raise NetlinkError(errno.EINVAL)
        if fields["prefixlen"] > 128:
            raise NetlinkError(errno.EINVAL, "ipv6: Invalid prefix length")
    iface = netns.ip.interfaces.get(fields["index"])
    if iface is None:
        raise NetlinkError(errno.ENODEV, missing)
    label = attributes.get("label")
    for each in iface.addresses:
        if len(each.address) != width or (local is not None and each.address != local):
            continue
        if label is not None and label != (each.label or iface.name):
            continue
        if address is not None and (each.address != address or each.prefix_length != fields["prefixlen"]):
            continue
        if local is not None and width == 16 and each.prefix_length != fields["prefixlen"]:
            continue
        netns.remove_address(iface, each.address)
        return
    raise NetlinkError(errno.EADDRNOTAVAIL, gone)


def _bytes(attributes: dict[str, Any], name: str, width: int) -> bytes | None:
    value: bytes | None = attributes.get(name)
    if value is None:
        return None
    if len(value) < width:
        raise NetlinkError(errno.ERANGE, "Attribute failed policy validation")
    return value[:width]


def _lifetime(attributes: dict[str, Any], prefix: str) -> tuple[int | None, int | None]:
    """Preferred and valid lifetime, seconds; None: for ever. The routes of addresses have the priorities they have."""
    if attributes.get("rt_priority"):
        raise NetlinkError(errno.EOPNOTSUPP, f"{prefix}: the priority of an address's route cannot be set here")
    cache = attributes.get("cacheinfo")
    if cache is None:
        return None, None
    if not cache["valid"] or cache["preferred"] > cache["valid"]:
        raise NetlinkError(errno.EINVAL, f"{prefix}: address lifetime invalid")
    preferred, valid = (None if cache[name] == FOREVER else cache[name] for name in ("preferred", "valid"))
    return preferred, valid
