"""rtnetlink, row by row (RT-01..RT-16, RT-E3..RT-E15): what `script.py` asks is answered by a Stack as written here,
and by a kernel's network namespace the same, where there is one to be had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from stack import Credentials, Network, Stack
from stack.socket.netlink.endpoint import SOL_NETLINK
from stack.socket.netlink.options import NETLINK_CAP_ACK, NETLINK_EXT_ACK
from stack.tests.netlink import script
from stack.tests.netlink.script import AF_NETLINK, SOCK_RAW, ip
from stack.tests.netlink.test_netlink_twin import comparable, kernel, plain, settled
from stack.wire.netlink import ack, header
from stack.wire.netlink.attribute import NLA_TYPE_MASK, attributes
from stack.wire.netlink.header import NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTI, NLM_F_REQUEST
from stack.wire.netlink.link import LINK
from stack.wire.netlink.rtnetlink import AF_INET, AF_INET6, Rtm

_CAPPED: Final = 0x100
_TLVS: Final = 0x200
_FILTERED: Final = 0x20
#: An ack of an error of nothing: the header that was asked with comes back, and no more of it.
FINE: Final = ("ACK", _CAPPED, "0", "", None, 36)
DONE: Final = ("DONE", NLM_F_MULTI, "0", "", None, 20)


class Told:
    """What was heard, by step; with a kernel to compare with, each step that is looked at is the kernel's."""

    def __init__(self, ours: dict[str, list[Any]], theirs: dict[str, list[Any]] | None) -> None:
        self._ours = ours
        self._theirs = theirs

    def __getitem__(self, label: str) -> list[Any]:
        heard = plain(self._ours[label])
        if self._theirs is not None:
            assert settled(label, heard) == settled(label, self._theirs[label]), label
        assert isinstance(heard, list)
        return heard

    def error(self, label: str) -> str:
        """The one answer's errno by name; it echoes the request whole."""
        ((name, flags, code, text, _, length),) = self[label]
        assert (name, flags, text) == ("ACK", 0, "")
        assert length > 36
        return str(code)

    def fine(self, *labels: str) -> None:
        for label in labels:
            assert self[label] == [FINE], label


@pytest.fixture(scope="module")
def told() -> Told:
    with Network() as network:
        ours, _ = script.run(network.stack("gw").socket)
    return Told(ours, kernel("script")[0] if comparable() else None)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def values(message: Any) -> dict[str, Any]:
    """Fields and attributes of a message as `script` tells it."""
    return {**message[2], **dict(message[3])}


# -- links ------------------------------------------------------------------------------------------------------------


def test_rt_01_a_dump_of_links(told: Told) -> None:
    """Every link is told in a NEWLINK of its own, by ascending index, and then DONE; an old rtgenmsg asks as well."""
    for label in ("RT-01 dump of links", "RT-01 dump by rtgenmsg"):
        (link, done) = told[label]
        assert link[:2] == ("NEWLINK", NLM_F_MULTI)
        assert (values(link)["index"], values(link)["ifname"]) == (1, "lo")
        assert done == DONE
    *links, done = told["RT-15 both"]
    assert [values(link)["index"] for link in links] == [1, 2, 3]
    assert done == DONE


def test_rt_02_one_link(told: Told) -> None:
    """A link is found by index or by name; an unknown one is ENODEV, asking for none EINVAL."""
    for label in ("RT-02 by index", "RT-02 by name"):
        (link,) = told[label]
        assert link[:2] == ("NEWLINK", 0)
        assert (values(link)["index"], values(link)["ifname"]) == (1, "lo")
    assert told.error("RT-02 unknown index") == told.error("RT-02 unknown name") == "ENODEV"
    assert told.error("RT-02 neither") == "EINVAL"


def test_rt_03_strict_checking_of_headers(told: Told) -> None:
    """With NETLINK_GET_STRICT_CHK a header that says what a dump cannot use ends it with EINVAL and words."""
    for label, text in (
        ("RT-03 index", "Filter by device index not supported for link dumps"),
        ("RT-03 values", "Invalid values in header for link dump request"),
        ("RT-03 short header", "Invalid header for link dump"),
    ):
        assert told[label] == [("DONE", NLM_F_MULTI | _TLVS, "EINVAL", text, None, 0)]


#: What a Linux 6.18 said of its lo, by number, in order; AF_SPEC (26) is left out here, see docs/netlink.md.
LO: Final = [
    *(3, 13, 16, 17, 67, 4, 50, 51, 27, 30, 61, 31, 40, 41, 58, 63, 64, 59, 60, 66, 32, 33, 35, 47, 48, 68, 69, 39),
    *(1, 2, 23, 7, 43, 6, 14, 62, 65),
]


def test_rt_04_the_attributes_of_lo_in_order(stack: Stack) -> None:
    """A NEWLINK has Linux's attributes in Linux's order, and for lo its values."""
    with stack.socket.socket(AF_NETLINK, SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        sock.send(header.pack(Rtm.GETLINK, NLM_F_REQUEST, 1, 0, LINK.emit({"index": 1})))
        body = sock.recv(65536)[header.HEADER_LENGTH :]
    found = [number & NLA_TYPE_MASK for number, _, _ in attributes(memoryview(body)[LINK.header_length :])]
    assert found == LO
    said = LINK.parse(body)
    assert said.fields == {"family": 0, "type": 772, "index": 1, "flags": 0x10049, "change": 0}
    for name, value in (
        ("ifname", "lo"), ("txqlen", 1000), ("mtu", 65536), ("min_mtu", 0), ("max_mtu", 0), ("netns_immutable", 1),
        ("carrier", 1), ("carrier_changes", 0), ("address", bytes(6)), ("broadcast", bytes(6)), ("qdisc", "noqueue"),
        ("operstate", 0), ("group", 0), ("promiscuity", 0), ("proto_down", 0),
    ):  # fmt: skip
        assert said.attributes[name] == value, name
    assert said.attributes["stats64"]["rx_packets"] == said.attributes["stats"]["rx_packets"]


def test_rt_05_attributes_that_are_wrong(told: Told) -> None:
    """A name too long or a number too short is ERANGE and where it stands; strange and overlong ones are let pass."""
    assert told.error("RT-05 long name") == "ERANGE"
    for label in ("RT-05 offset of a long name", "RT-05 short number"):
        assert told[label] == [("ACK", _TLVS, "ERANGE", "Attribute failed policy validation", 32, 0)]
    told.fine("RT-05 long number", "RT-05 unknown attribute")


# -- addresses --------------------------------------------------------------------------------------------------------


def test_rt_06_a_dump_of_addresses(told: Told) -> None:
    """IPv4 addresses come before IPv6 ones, one family if one is asked for, and strictly, those of one link."""
    four, six, done = told["RT-06 dump of addresses"]
    assert (values(four)["family"], values(six)["family"], done) == (AF_INET, AF_INET6, DONE)
    assert told["RT-06 of IPv4"] == [four, DONE]
    assert told["RT-06 of IPv6"] == [six, DONE]
    filtered, done = told["RT-06 filter"]
    assert (filtered[1], done[1]) == (NLM_F_MULTI | _FILTERED, NLM_F_MULTI | _FILTERED)
    assert values(filtered)["index"] == 1
    ((name, _, code, text, *_),) = told["RT-06 values"]
    assert (name, code, text) == ("DONE", "EINVAL", "ipv4: Invalid values in header for address dump request")


def test_rt_07_one_address(told: Told) -> None:
    """There is no asking for one IPv4 address (EOPNOTSUPP); of IPv6 it must be named (EINVAL)."""
    assert told.error("RT-07 one IPv4") in ("EOPNOTSUPP", "ENOTSUP")
    assert told.error("RT-07 one IPv6") == "EINVAL"


def test_rt_08_what_is_said_of_an_ipv4_address(told: Told) -> None:
    """ADDRESS, LOCAL, BROADCAST if any, LABEL, FLAGS, CACHEINFO; permanent, and secondary if it is."""
    *addresses, done = told["RT-08 as they are now"]
    assert done == DONE
    lo, first, second = addresses
    assert [name for name, _ in lo[3]] == ["address", "local", "label", "flags"]
    assert (values(lo)["scope"], values(lo)["flags"]) == (254, 0x80)
    assert [name for name, _ in first[3]] == ["address", "local", "broadcast", "label", "flags"]
    assert (values(first)["address"], values(first)["broadcast"]) == (ip("10.9.9.1"), ip("10.9.9.255"))
    assert (values(second)["label"], values(second)["flags"]) == ("va:x", 0x81)


def test_rt_09_what_is_said_of_an_ipv6_address(told: Told) -> None:
    """ADDRESS, CACHEINFO, FLAGS, and PROTO where the kernel gave it itself; without PERMANENT if it does not last."""
    lo, _ = told["RT-06 of IPv6"]
    assert [name for name, _ in lo[3]] == ["address", "flags", "proto"]
    assert (values(lo)["address"], values(lo)["proto"], values(lo)["prefixlen"]) == (bytes(15) + b"\1", 1, 128)
    (lasting,) = told["RT-09 IPv6 lifetime"]
    assert not values(lasting)["flags"] & 0x80


def test_rt_10_new_addresses(told: Told) -> None:
    """NEWADDR gives one; again it is EEXIST, with EXCL or without; bad links, prefixes, lifetimes are refused."""
    told.fine("RT-10 address", "RT-10 secondary", "RT-10 IPv6", "RT-10 lifetime", "RT-10 deprecated", "RT-10 for ever")
    for label in ("RT-10 again", "RT-10 again, no EXCL", "RT-10 IPv6 again"):
        assert told.error(label) == "EEXIST"
    for label in ("RT-10 unknown index", "RT-10 IPv6 unknown index"):
        assert told.error(label) == "ENODEV"
    for label in (
        "RT-10 bad prefix", "RT-10 no local address", "RT-10 IPv6 none", "RT-10 preferred after it is valid",
        "RT-10 valid for no time",
    ):  # fmt: skip
        assert told.error(label) == "EINVAL"
    lasting = {values(each)["address"]: values(each)["flags"] for each in told["RT-10 lifetimes"][:-1]}
    assert lasting[ip("10.9.8.1")] == 0
    assert lasting[ip("10.9.8.2")] == 0x21, "deprecated, and second in its subnet"
    now = {values(each)["address"]: values(each)["flags"] for each in told["RT-10 lifetimes now"][:-1]}
    assert now[ip("10.9.8.1")] == 0x80


def test_rt_11_addresses_taken_away(told: Told) -> None:
    """DELADDR takes one, the first of a subnet with all of it; a missing one is EADDRNOTAVAIL; its routes go too."""
    told.fine("RT-11 secondary", "RT-11 primary", "RT-11 with its secondary", "RT-11 IPv6")
    for label in ("RT-11 again", "RT-11 which is gone", "RT-11 IPv6 again"):
        assert told.error(label) == "EADDRNOTAVAIL"
    left = {values(each)["dst"] for each in told["RT-11 routes after"][:-1]}
    assert not left & {ip("10.9.9.0"), ip("10.9.9.1"), ip("10.9.9.2"), ip("10.9.9.255")}
    assert ip("10.3.0.0") in left, "what needs no link stays"


# -- routes -----------------------------------------------------------------------------------------------------------


def test_rt_12_a_dump_of_routes(told: Told) -> None:
    """Each line of each table, with TABLE, DST, PREFSRC, OIF, GATEWAY, PRIORITY where there are any."""
    local = told["RT-12 dump of routes"]
    assert {values(each)["table"] for each in local[:-1]} == {255}
    assert [name for name, _ in local[0][3]] == ["table", "dst", "prefsrc", "oif"]
    follow = {(values(each)["dst"], values(each)["type"]) for each in told["RT-12 routes that follow"][:-1]}
    assert {(ip("10.9.9.0"), 1), (ip("10.9.9.1"), 2), (ip("10.9.9.2"), 2), (ip("10.9.9.255"), 3)} <= follow
    everything = {values(each)["dst"]: values(each) for each in told["RT-12 all of them"][:-1]}
    assert everything[ip("10.8.0.0")]["gateway"]
    assert everything[ip("10.6.1.0")]["priority"] == 50
    assert everything[ip("10.11.0.0")]["table"] == 1000
    assert [hop["gateway"] for hop in everything[ip("10.10.0.0")]["multipath"]] == [ip("10.9.9.253"), ip("10.9.9.252")]
    assert everything[ip("10.4.0.0")]["metrics"] == {"mtu": 1300, "advmss": 1000}
    for each in told["RT-12 filter"][:-1]:
        assert (each[1], values(each)["table"]) == (NLM_F_MULTI | _FILTERED, 255)


def test_rt_13_where_packets_would_go(told: Told) -> None:
    """GETROUTE of an address tells the one way there, CLONED; none is ENETUNREACH, refusals are their own errors."""
    (lo,) = told["RT-13 to lo"]
    assert (values(lo)["type"], values(lo)["flags"], values(lo)["oif"]) == (2, 0x80000200, 1)
    (far,) = told["RT-13 to gateway"]
    assert (values(far)["type"], values(far)["flags"], values(far)["table"]) == (1, 0x200, 254)
    assert (values(far)["gateway"], values(far)["prefsrc"]) == (ip("10.9.9.254"), ip("10.9.9.1"))
    (near,) = told["RT-13 to subnet"]
    assert "gateway" not in values(near)
    (own,) = told["RT-13 to own"]
    assert (values(own)["type"], values(own)["oif"]) == (2, 1)
    (everybody,) = told["RT-13 to broadcast"]
    assert values(everybody)["type"] == 3
    (special,) = told["RT-13 to source and MTU"]
    assert (values(special)["prefsrc"], values(special)["metrics"]["mtu"]) == (ip("10.9.9.2"), 1300)
    for label, code in (
        ("nowhere", "ENETUNREACH"), ("to black hole", "EINVAL"), ("to unreachable", "EHOSTUNREACH"),
        ("to prohibited", "EACCES"),
    ):  # fmt: skip
        assert told.error(f"RT-13 {label}") == code


def test_rt_14_routes_made_and_taken_away(told: Told) -> None:
    """NEWROUTE makes, replaces, appends; again is EEXIST; gateways must be in reach, links there, prefixes clean."""
    told.fine(
        "RT-14 by gateway", "RT-14 by device", "RT-14 own gateway", "RT-14 everything", "RT-14 black hole",
        "RT-14 unreachable", "RT-14 prohibited", "RT-14 multipath", "RT-14 other table", "RT-14 append",
        "RT-14 replace", "RT-14 delete", "RT-14 delete the other", "RT-14 IPv6", "RT-14 IPv6 delete",
    )  # fmt: skip
    for code, labels in {
        "EEXIST": ("again", "again, no EXCL", "IPv6 again"),
        "ENOENT": ("no CREATE",),
        "ENETUNREACH": ("unreachable gateway",),
        "ENODEV": ("bad device", "neither"),
        "EINVAL": ("host bits", "long prefix", "foreign source"),
        "ESRCH": ("delete by the wrong gateway", "delete once more", "IPv6 delete again"),
    }.items():
        for label in labels:
            assert told.error(f"RT-14 {label}") == code, label


# -- links made and changed -------------------------------------------------------------------------------------------


def test_rt_15_links_made_and_changed(told: Told) -> None:
    """NEWLINK and SETLINK make, raise, rename, bound the MTU; what cannot be has Linux's errno and changes nothing."""
    told.fine(
        "RT-15 veth", "RT-15 up, no carrier", "RT-15 carrier", "RT-15 MTU", "RT-15 MTU by NEWLINK", "RT-15 rename",
        "RT-15 rename back", "RT-15 alias", "RT-15 queue", "RT-15 group",
    )  # fmt: skip
    for code, labels in {
        "EOPNOTSUPP": ("unknown kind", "no kind", "master takes no ports", "REPLACE"),
        "ENODEV": ("no CREATE", "SETLINK of none"),
        "EEXIST": ("veth again", "taken name", "EXCL"),
        "EADDRNOTAVAIL": ("group MAC",),
        "EINVAL": (
            "MTU too small", "MTU too large", "MTU negative", "no name", "master is none", "short MAC",
            "SETLINK of nothing",
        ),
    }.items():  # fmt: skip
        for label in labels:
            assert told.error(f"RT-15 {label}").replace("ENOTSUP", "EOPNOTSUPP") == code, label
    (link,) = told["RT-15 as it is now"]
    now = values(link)
    assert (now["ifname"], now["mtu"], now["ifalias"], now["txqlen"], now["group"]) == ("va", 1500, "left", 500, 7)
    assert (now["flags"] & 0x10041, now["operstate"], now["linkinfo"]["kind"]) == (0x10041, 6, "veth")


def test_rt_16_links_taken_away(told: Told) -> None:
    """DELLINK takes a link, a veth's peer with it; lo is EOPNOTSUPP, a missing one ENODEV, none EINVAL."""
    told.fine("RT-16 one end")
    assert told.error("RT-16 and the other") == told.error("RT-16 none") == "ENODEV"
    assert told.error("RT-16 lo") in ("EOPNOTSUPP", "ENOTSUP")
    assert told.error("RT-16 nothing") == "EINVAL"


# -- the envelope -----------------------------------------------------------------------------------------------------


def test_nl_16_rt_e3_control_messages(told: Told) -> None:
    """Messages of types below 16 are nobody's request, and acknowledged if they ask for it."""
    told.fine("RT-E3 control type")


def test_rt_e4_unknown_types(told: Told) -> None:
    """A type from 16 on that is nothing is EOPNOTSUPP."""
    assert told.error("RT-E4 unknown type") in ("EOPNOTSUPP", "ENOTSUP")


def test_rt_e5_answers_go_to_who_asked(stack: Stack) -> None:
    """An answer has the asker's port and the request's number, whatever port the request claims to come from."""
    with stack.socket.socket(AF_NETLINK, SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        sock.bind((4711, 0))
        sock.send(header.pack(Rtm.GETLINK, NLM_F_REQUEST | NLM_F_ACK, 99, 12345, LINK.emit({"index": 1})))
        for _ in range(2):
            (found, _), = header.split(sock.recv(65536))  # fmt: skip
            assert (found.pid, found.seq) == (4711, 99)


def test_rt_e6_an_answer_and_its_acknowledgement(told: Told) -> None:
    """With ACK an answer is followed by an error of 0, a datagram of its own, with the request's header alone."""
    link, acknowledged = told["RT-E6 and acked"]
    assert link[:2] == ("NEWLINK", 0)
    assert acknowledged == FINE


def test_rt_e7_an_error_echoes_what_was_asked(stack: Stack, told: Told) -> None:
    """An error has the whole request behind it; with NETLINK_CAP_ACK only its header, and says so."""
    ((name, flags, code, *_),) = told["RT-E7 capped"]
    assert (name, flags, code) == ("ACK", _CAPPED | _TLVS, "ENODEV")
    request = header.pack(Rtm.GETLINK, NLM_F_REQUEST, 7, 0, LINK.emit({"index": 99}))
    with stack.socket.socket(AF_NETLINK, SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        for capped, length in ((0, 20 + len(request)), (1, 36)):
            sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, capped)
            sock.send(request)
            (found, whole), = header.split(sock.recv(65536))  # fmt: skip
            assert (found.length, found.flags) == (length, _CAPPED if capped else 0)
            assert bytes(whole[20:36]) == request[:16]


def test_rt_e8_extended_acknowledgements(told: Told) -> None:
    """With NETLINK_EXT_ACK an error has words, and the place of the attribute that was wrong."""
    for label, code, text in (
        ("no device", "ENODEV", "ipv4: Device not found"),
        ("assigned", "EEXIST", "ipv4: Address already assigned"),
        ("no address", "EADDRNOTAVAIL", "ipv4: Address not found"),
        ("unknown kind", "EOPNOTSUPP", "Unknown device type"),
        ("MTU", "EINVAL", "mtu less than device minimum"),
        ("MTU above", "EINVAL", "mtu greater than device maximum"),
        ("gateway", "ENETUNREACH", "Nexthop has invalid gateway"),
        ("host bits", "EINVAL", "Invalid prefix for given prefix length"),
    ):
        ((name, flags, found, words, *_),) = told[f"RT-E8 {label}"]
        assert (name, flags, found.replace("ENOTSUP", "EOPNOTSUPP"), words) == ("ACK", _TLVS, code, text)


def test_rt_e9_a_dump_is_not_acknowledged(told: Told) -> None:
    """DONE ends a dump, and ACK adds nothing to it."""
    assert told["RT-E9 a dump is not acked"] == told["RT-01 dump of links"]


def test_rt_e10_a_dump_that_cannot_be(told: Told) -> None:
    """A strict dump that is refused is DONE with the error in it, and its words with EXT_ACK."""
    for label in ("RT-03 index", "RT-03 values", "RT-03 short header", "RT-06 values"):
        ((name, flags, code, text, *_),) = told[label]
        assert (name, flags, code) == ("DONE", NLM_F_MULTI | _TLVS, "EINVAL")
        assert text


def test_rt_e12_several_messages_in_one_datagram(stack: Stack) -> None:
    """They are worked off in order, each answered in a datagram of its own; an error does not stop those behind it."""
    with stack.socket.socket(AF_NETLINK, SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        requests = [
            header.pack(Rtm.GETLINK, NLM_F_REQUEST, number, 0, LINK.emit({"index": index}))
            for number, index in enumerate((1, 99, 1))
        ]
        sock.send(b"".join(requests))
        heard = [next(header.split(sock.recv(65536)))[0] for _ in requests]
        assert [(each.seq, each.type) for each in heard] == [
            (0, Rtm.NEWLINK), (1, header.NLMSG_ERROR), (2, Rtm.NEWLINK)
        ]  # fmt: skip


def test_rt_e13_lengths_that_lie(stack: Stack) -> None:
    """A message shorter than its header or longer than the datagram ends it, and nothing is said."""
    good = header.pack(Rtm.GETLINK, NLM_F_REQUEST, 1, 0, LINK.emit({"index": 1}))
    with stack.socket.socket(AF_NETLINK, SOCK_RAW, 0) as sock:
        sock.settimeout(0)
        for length in (0, 15, 2 * len(good) + 1, 0xFFFFFFFF):
            sock.send(length.to_bytes(4, "little") + good[4:] + good)
            with pytest.raises(BlockingIOError):
                sock.recv(65536)
        sock.send(good + b"\xff\0\0\0")
        assert next(header.split(sock.recv(65536)))[0].type == Rtm.NEWLINK


def test_rt_e14_sec_04_changes_want_cap_net_admin(stack: Stack) -> None:
    """NEW, DEL and SET of every kind are -EPERM with the request's echo; GET is answered."""
    with stack.acting(Credentials.user(1000)), stack.socket.socket(AF_NETLINK, SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        for name in ("LINK", "ADDR", "ROUTE", "NEIGH", "RULE"):
            for verb in ("NEW", "DEL") + (("SET",) if name == "LINK" else ()):
                request = header.pack(Rtm[verb + name], NLM_F_REQUEST, 1, 0, bytes(28))
                sock.send(request)
                (found, whole), = header.split(sock.recv(65536))  # fmt: skip
                outcome = ack.parse(found.type, found.flags, bytes(whole[16:]))
                assert (found.type, outcome.errno) == (header.NLMSG_ERROR, 1), verb + name
                assert bytes(whole[20 : 20 + len(request)]) == request
            sock.send(header.pack(Rtm["GET" + name], NLM_F_REQUEST | NLM_F_DUMP, 2, 0, bytes(16)))
            kinds = []
            while header.NLMSG_DONE not in kinds:
                kinds += [found.type for found, _ in header.split(sock.recv(65536))]
            assert header.NLMSG_ERROR not in kinds


def test_rt_e15_bodies_that_are_too_short(told: Told) -> None:
    """A body without its whole fixed header is EINVAL."""
    assert told.error("RT-E15 short body") == "EINVAL"


def test_nl_15_lists_of_attributes_that_lie(told: Told) -> None:
    """An attribute longer than what is left, or shorter than its header, ends the list: a warning, no error."""
    for label in ("impossible length", "too short a length"):
        ((_, _, code, text, *_),) = told[f"NL-15 {label} ends the list"]
        assert (code, text) == ("0", "bytes leftover after parsing attributes")


# -- neighbours, rules, statistics ------------------------------------------------------------------------------------


def test_rt_neighbours(told: Told) -> None:
    """NEWNEIGH, GETNEIGH and DELNEIGH, with Linux's errors."""
    told.fine("neighbour", "neighbour stale", "neighbour delete")
    for label, code in (
        ("again", "EEXIST"), ("no CREATE", "ENOENT"), ("short MAC", "EINVAL"), ("no device", "ENODEV"),
        ("get none", "ENOENT"), ("delete again", "ENOENT"),
    ):  # fmt: skip
        assert told.error(f"neighbour {label}") == code
    (one,) = told["neighbour get"]
    assert (values(one)["state"], values(one)["dst"]) == (0x80, ip("10.9.9.70"))
    assert [values(each)["state"] for each in told["neighbours"][:-1]] == [0x80, 0x04]


def test_rt_rules(told: Told) -> None:
    """NEWRULE, GETRULE and DELRULE by source, priority and mark; the first three are the kernel's own."""
    told.fine("rule", "rule without priority", "rule by mark", "rule by a part of the mark", "rule by mark delete")
    told.fine("rule delete")
    assert told.error("rule again") == "EEXIST"
    assert told.error("rule delete again") == told.error("rule by another mark") == "ENOENT"
    assert [values(each)["table"] for each in told["rules"][:-1]] == [255, 254, 253]
    marks = [(values(each).get("fwmark"), values(each).get("fwmask")) for each in told["rules now"][:-1]]
    assert (7, 0xFFFFFFFF) in marks
    assert (0x10, 0xF0) in marks
    (decided,) = told["rule decides"]
    assert values(decided)["gateway"] == ip("10.9.9.254")
