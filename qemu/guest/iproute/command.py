"""`ip OBJECT COMMAND ...`: what the words ask for."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from qemu.guest.errors import SetupError
from qemu.guest.iproute import show
from qemu.guest.iproute.client import Client, NoDeviceError
from stack.wire.netlink.address import ADDR
from stack.wire.netlink.header import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from stack.wire.netlink.link import LINK
from stack.wire.netlink.message import Message
from stack.wire.netlink.neighbour import NEIGH
from stack.wire.netlink.route import ROUTE
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6, Group, Rtm

OBJECTS: Final = ("address", "link", "route", "neighbour", "monitor")
_NEW: Final = NLM_F_CREATE | NLM_F_EXCL
_UP: Final = 1
_PERMANENT: Final = 0x80
_ROUTE_KINDS: Final = {"unicast": 1, "local": 2, "blackhole": 6, "unreachable": 7, "prohibit": 8}
#: What `monitor` listens to, by object.
GROUPS: Final = {
    "link": (Group.LINK,),
    "address": (Group.IPV4_IFADDR, Group.IPV6_IFADDR),
    "route": (Group.IPV4_ROUTE, Group.IPV6_ROUTE),
    "neighbour": (Group.NEIGH,),
}
_TOLD: Final = {
    Rtm.NEWLINK: LINK,
    Rtm.DELLINK: LINK,
    Rtm.NEWADDR: ADDR,
    Rtm.DELADDR: ADDR,
    Rtm.NEWROUTE: ROUTE,
    Rtm.DELROUTE: ROUTE,
    Rtm.NEWNEIGH: NEIGH,
    Rtm.DELNEIGH: NEIGH,
}


@dataclass(frozen=True, slots=True)
class Style:
    family: int = 0  #: AF_INET, AF_INET6 or 0
    json: bool = False


class Words:
    """The command line, eaten from the left."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def next(self, what: str) -> str:
        """Raises SetupError if there is no more."""
        if not self._words:
            raise SetupError(f"ip: {what} is missing")
        return self._words.pop(0)

    def choose(self, among: tuple[str, ...], default: str) -> str:
        """The one of `among` that the next word is or begins."""
        if not self._words:
            return default
        word = self._words.pop(0)
        found = next((each for each in among if each.startswith(word)), None)
        if found is None:
            raise SetupError(f"ip: {word!r} is none of {', '.join(among)}")
        return found

    def __bool__(self) -> bool:
        return bool(self._words)


def groups(words: list[str]) -> int:
    """The mask of groups that the command listens to; 0 for what only asks."""
    rest = Words(list(words))
    if rest.choose(OBJECTS, "address") != "monitor":
        return 0
    names = tuple(GROUPS)
    chosen = [rest.choose((*names, "all"), "all") if rest else "all"]
    while rest:
        chosen.append(rest.choose(names, ""))
    wanted = names if "all" in chosen else chosen
    return sum(1 << group - 1 for name in wanted for group in GROUPS[name])


def run(client: Client, words: list[str], style: Style) -> Iterator[str]:
    """Do it; what is to be printed, without the last line end. Raises AnswerError, NoDeviceError, SetupError."""
    rest = Words(list(words))
    name = rest.choose(OBJECTS, "address")
    if name == "monitor":
        yield from _monitor(client, style)
        return
    shower, verbs = _HANDLERS[name]
    verb = rest.choose(("show", "list", *verbs), "show")
    if verb in ("show", "list"):
        client.look()
        yield from _output(list(shower(client, rest, style)), style)
    else:
        try:
            verbs[verb](client, rest, style)
        except ValueError as error:
            raise SetupError(f"ip: {error}") from error


def _output(items: list[tuple[list[show.Piece], list[list[show.Piece]]]], style: Style) -> Iterator[str]:
    if style.json:
        objects = []
        for pieces, below in items:
            one = show.json_of(pieces)
            if "prefixlen" not in one and "ifindex" in one and below is not _NO_ADDRESSES:
                one["addr_info"] = [show.json_of(each) for each in below]
            objects.append(one)
        yield json.dumps(objects, separators=(",", ":"))
        return
    for pieces, below in items:
        yield show.text_of(pieces)
        yield from map(show.text_of, below)


_NO_ADDRESSES: Final[list[list[show.Piece]]] = []
_Items = Iterator[tuple[list[show.Piece], list[list[show.Piece]]]]


def _filter(client: Client, rest: Words) -> int:
    """The index of the link that is asked for, 0 for all."""
    if not rest:
        return 0
    word = rest.next("a name")
    name = rest.next("a name") if word == "dev" else word
    try:
        return client.index(name)
    except NoDeviceError:
        raise SetupError(f'Device "{name}" does not exist.') from None


def _show_links(client: Client, rest: Words, _style: Style) -> _Items:
    only = _filter(client, rest)
    for index, message in client.links.items():
        if only in (0, index):
            yield show.link(client, message), _NO_ADDRESSES


def _show_addresses(client: Client, rest: Words, style: Style) -> _Items:
    only = _filter(client, rest)
    found = client.dump(Rtm.GETADDR, ADDR, style.family)
    for index, message in client.links.items():
        below = [show.address(each) for each in found if each.fields["index"] == index]
        if only in (0, index) and (below or not style.family):
            yield show.link(client, message, mode=False, family=style.family), below


def _show_routes(client: Client, rest: Words, style: Style) -> _Items:
    only = _filter(client, rest)
    for message in client.dump(Rtm.GETROUTE, ROUTE, style.family or AF_INET):
        if show.shown_route(message) and only in (0, message.attributes.get("oif")):
            yield show.route(client, message), _NO_ADDRESSES


def _show_neighbours(client: Client, rest: Words, style: Style) -> _Items:
    only = _filter(client, rest)
    for message in client.dump(Rtm.GETNEIGH, NEIGH, style.family):
        if show.shown_neighbour(message) and only in (0, message.fields["index"]):
            yield show.neighbour(client, message), _NO_ADDRESSES


def _monitor(client: Client, style: Style) -> Iterator[str]:
    client.look()
    for kind, body in client.listen():
        layout = _TOLD.get(kind)  # type: ignore[call-overload]  # any number may come
        if layout is None:
            continue
        message = layout.parse(body)
        if layout is not LINK:
            client.learn(message.attributes.get("oif", 0) if layout is ROUTE else message.fields["index"])
        gone = kind in (Rtm.DELLINK, Rtm.DELADDR, Rtm.DELROUTE, Rtm.DELNEIGH)
        if layout is LINK and not gone:
            client.links[message.fields["index"]] = message
        pieces = _told(client, layout, message)
        if style.json:
            yield json.dumps({**({"deleted": True} if gone else {}), **show.json_of(pieces)}, separators=(",", ":"))
        else:
            yield ("Deleted " if gone else "") + show.text_of(pieces)
        if layout is LINK and gone:
            client.links.pop(message.fields["index"], None)


def _told(client: Client, layout: object, message: Message) -> list[show.Piece]:
    if layout is LINK:
        return show.link(client, message, mode=False, queue=False)
    if layout is ADDR:
        index, name = message.fields["index"], client.name(message.fields["index"])
        return [("index", index, f"{index}: "), ("dev", name, name), *show.address(message)]
    return show.route(client, message) if layout is ROUTE else show.neighbour(client, message)


# --- changes ----------------------------------------------------------------------------------------------------------


def _change_address(kind: int, flags: int) -> Callable[[Client, Words, Style], None]:
    def change(client: Client, rest: Words, _style: Style) -> None:
        interface = ipaddress.ip_interface(rest.next("an address"))
        attributes: dict[str, Any] = {"local": interface.ip.packed, "address": interface.ip.packed}
        index = 0
        while rest:
            word = rest.next("")
            if word == "dev":
                index = client.index(rest.next("a name"))
            elif word in ("brd", "broadcast"):
                text = rest.next("an address")
                own = interface.network.broadcast_address if text == "+" else ipaddress.ip_address(text)
                attributes["broadcast"] = own.packed
            else:
                raise SetupError(f"ip: {word!r} is not understood after an address")
        if not index:
            raise SetupError("ip: dev NAME is missing")
        family = AF_INET if interface.version == 4 else AF_INET6
        scope = 254 if interface.ip.is_loopback else 253 if interface.ip.is_link_local and family == AF_INET6 else 0
        fields = {"family": family, "prefixlen": interface.network.prefixlen, "scope": scope, "index": index}
        client.change(kind, ADDR.emit(fields, attributes), flags)

    return change


def _change_route(kind: int, flags: int) -> Callable[[Client, Words, Style], None]:
    def change(client: Client, rest: Words, style: Style) -> None:
        target = rest.next("a destination")
        route_kind = 1
        if target in _ROUTE_KINDS:
            route_kind, target = _ROUTE_KINDS[target], rest.next("a destination")
        attributes: dict[str, Any] = {}
        while rest:
            word = rest.next("")
            value = rest.next(f"what follows {word!r}")
            if word in ("via", "src"):
                attributes["gateway" if word == "via" else "prefsrc"] = ipaddress.ip_address(value).packed
            elif word == "dev":
                attributes["oif"] = client.index(value)
            elif word in ("metric", "table", "mtu"):
                number = {"main": 254, "local": 255}.get(value) or int(value)
                name = {"metric": "priority", "table": "table"}.get(word)
                attributes.update({name: number} if name else {"metrics": {"mtu": number}})
            else:
                raise SetupError(f"ip: {word!r} is not understood after a route")
        family = style.family or (AF_INET6 if len(attributes.get("gateway", b"")) == 16 else AF_INET)
        length = 0
        if target != "default":
            network = ipaddress.ip_network(target)
            family, length = AF_INET if network.version == 4 else AF_INET6, network.prefixlen
            attributes = {"dst": network.network_address.packed, **attributes}
        link_scope = family == AF_INET and route_kind == 1 and "gateway" not in attributes
        new = kind == Rtm.NEWROUTE
        fields = {"family": family, "dst_len": length, "table": 254, "type": route_kind if new else 0}
        fields |= {"protocol": 3 if new else 0, "scope": (253 if link_scope else 0) if new else 255}
        client.change(kind, ROUTE.emit(fields, attributes), flags)

    return change


def _change_neighbour(kind: int, flags: int) -> Callable[[Client, Words, Style], None]:
    def change(client: Client, rest: Words, _style: Style) -> None:
        address = ipaddress.ip_address(rest.next("an address"))
        attributes: dict[str, Any] = {"dst": address.packed}
        index = 0
        while rest:
            word = rest.next("")
            value = rest.next(f"what follows {word!r}")
            if word == "lladdr":
                attributes["lladdr"] = bytes.fromhex(value.replace(":", ""))
            elif word == "dev":
                index = client.index(value)
            else:
                raise SetupError(f"ip: {word!r} is not understood after a neighbour")
        family = AF_INET if address.version == 4 else AF_INET6
        fields = {"family": family, "index": index, "state": _PERMANENT if kind == Rtm.NEWNEIGH else 0}
        client.change(kind, NEIGH.emit(fields, attributes), flags)

    return change


def _set_link(client: Client, rest: Words, _style: Style) -> None:
    word = rest.next("a name")
    fields = {"index": client.index(rest.next("a name") if word == "dev" else word)}
    attributes: dict[str, Any] = {}
    while rest:
        word = rest.next("")
        if word in ("up", "down"):
            fields |= {"flags": _UP if word == "up" else 0, "change": _UP}
        elif word == "nomaster":
            attributes["master"] = 0
        else:
            attributes.update(_setting(client, word, rest.next(f"what follows {word!r}")))
    client.change(Rtm.NEWLINK, LINK.emit(fields, attributes))


def _setting(client: Client, word: str, value: str) -> dict[str, Any]:
    match word:
        case "name":
            return {"ifname": value}
        case "mtu" | "txqueuelen":
            return {"mtu" if word == "mtu" else "txqlen": int(value)}
        case "address":
            return {"address": bytes.fromhex(value.replace(":", ""))}
        case "master":
            return {"master": client.index(value)}
        case "alias":
            return {"ifalias": value}
    raise SetupError(f"ip: {word!r} is not understood after a link")


def _add_link(client: Client, rest: Words, _style: Style) -> None:
    attributes: dict[str, Any] = {}
    info: dict[str, Any] = {}
    while rest:
        word = rest.next("")
        if word == "link":
            attributes["link"] = client.index(rest.next("a name"))
        elif word == "type":
            info = _kind(rest)
        elif word in ("mtu", "address"):
            attributes.update(_setting(client, word, rest.next(f"what follows {word!r}")))
        else:
            attributes["ifname"] = rest.next("a name") if word in ("name", "dev") else word
    if not info:
        raise SetupError('Not enough information: "type" argument is required')
    client.change(Rtm.NEWLINK, LINK.emit({}, {**attributes, "linkinfo": info}), _NEW)


def _kind(rest: Words) -> dict[str, Any]:
    kind = rest.next("a type")
    data: dict[str, Any] = {}
    while rest:
        word = rest.next("")
        if kind == "veth" and word == "peer":
            name = rest.next("a name")
            data["peer"] = {"ifname": rest.next("a name") if name == "name" else name}
        elif kind == "vlan" and word == "id":
            data["id"] = int(rest.next("a number"))
        elif kind == "macvlan" and word == "mode":
            modes = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
            data["mode"] = modes[rest.choose(tuple(modes), "bridge")]
        else:
            raise SetupError(f"ip: {word!r} is not understood after type {kind}")
    return {"kind": kind, **({"data": data} if data else {})}


def _delete_link(client: Client, rest: Words, _style: Style) -> None:
    word = rest.next("a name")
    client.change(Rtm.DELLINK, LINK.emit({"index": client.index(rest.next("a name") if word == "dev" else word)}))


_Verbs = dict[str, Callable[[Client, Words, Style], None]]
_HANDLERS: Final[dict[str, tuple[Callable[[Client, Words, Style], _Items], _Verbs]]] = {
    "address": (
        _show_addresses,
        {"add": _change_address(Rtm.NEWADDR, _NEW), "delete": _change_address(Rtm.DELADDR, 0)},
    ),
    "link": (_show_links, {"add": _add_link, "set": _set_link, "delete": _delete_link}),
    "route": (
        _show_routes,
        {
            "add": _change_route(Rtm.NEWROUTE, _NEW),
            "replace": _change_route(Rtm.NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE),
            "delete": _change_route(Rtm.DELROUTE, 0),
        },
    ),
    "neighbour": (
        _show_neighbours,
        {
            "add": _change_neighbour(Rtm.NEWNEIGH, _NEW),
            "replace": _change_neighbour(Rtm.NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE),
            "delete": _change_neighbour(Rtm.DELNEIGH, 0),
        },
    ),
}
