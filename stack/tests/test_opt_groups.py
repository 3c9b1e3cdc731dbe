"""What options about multicast groups do, each by its name: who is heard, how far it goes, through which link."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from typing import Any

import pytest

from stack.tests import test_opt_multicast as names
from stack.tests.kernel_twin import LOOPBACK, World, code, has_ipv6_loopback
from stack.tests.test_opt_datagram import datagram, heard
from stack.tests.test_opt_multicast import (
    FOE,
    GROUP,
    GROUP6,
    IP,
    IPV6,
    Lan,
    group_req,
    lan,
    listener,
    mreq,
    storage,
    world,
)

__all__ = ["lan", "world"]
EVERYBODY, NOBODY = b"friendfoe", b""
ADDRESS = {IP: ("10.0.0.1", "10.0.0.2"), IPV6: ("fd00::1", "fd00::2")}  # of friend and foe


def hears(lan: Lan, sock: Any) -> bytes:
    """Who is heard of the two."""
    lan.say(GROUP if sock.family == kernel.AF_INET else GROUP6, 7000)
    return heard([sock])[0]


def test_opt_ip_add_membership_and_ip_drop_membership(lan: Lan) -> None:
    """IP_ADD_MEMBERSHIP, by address or by index: everybody is heard; IP_DROP_MEMBERSHIP: nobody any more."""
    with listener(lan) as sock:
        eth0 = lan.listener.socket.if_nametoindex("eth0")
        for request in (mreq(GROUP, "10.0.0.9"), mreq(GROUP, "0.0.0.0") + struct.pack("@i", eth0)):
            assert hears(lan, sock) == NOBODY
            sock.setsockopt(IP, names.ADD, request)
            assert hears(lan, sock) == EVERYBODY
            sock.setsockopt(IP, names.DROP, request)


def test_opt_ip_source_filters(lan: Lan) -> None:
    """IP_BLOCK_SOURCE and IP_UNBLOCK_SOURCE shut one sender out and let it in again; IP_ADD_SOURCE_MEMBERSHIP and
    IP_DROP_SOURCE_MEMBERSHIP hear single ones; IP_MSFILTER says it all at once.
    """
    group = mreq(GROUP, "10.0.0.9")
    friend = kernel.inet_aton("10.0.0.1")
    with listener(lan) as sock:
        sock.setsockopt(IP, names.ADD, group)
        for option, source, who in (
            (names.BLOCK, FOE, b"friend"),
            (names.BLOCK, friend, NOBODY),
            (names.UNBLOCK, FOE, b"foe"),
            (names.UNBLOCK, friend, EVERYBODY),
        ):
            sock.setsockopt(IP, option, group + source)
            assert hears(lan, sock) == who
        for mode, who in ((names.INCLUDE, b"friend"), (names.EXCLUDE, b"foe")):
            sock.setsockopt(IP, names.MSFILTER, group + struct.pack("@II", mode, 1) + friend)
            assert hears(lan, sock) == who
        sock.setsockopt(IP, names.DROP, group)
        for option, source, who in (
            (names.ADD_SOURCE, FOE, b"foe"),
            (names.ADD_SOURCE, friend, EVERYBODY),
            (names.DROP_SOURCE, FOE, b"friend"),
            (names.DROP_SOURCE, friend, NOBODY),
        ):
            sock.setsockopt(IP, option, group + source)
            assert hears(lan, sock) == who


@pytest.mark.parametrize("level", [IP, IPV6])
def test_opt_mcast_groups_and_sources(lan: Lan, level: int) -> None:
    """The same with whole socket addresses, on both levels: MCAST_JOIN_GROUP, MCAST_LEAVE_GROUP, MCAST_BLOCK_SOURCE,
    MCAST_UNBLOCK_SOURCE, MCAST_JOIN_SOURCE_GROUP, MCAST_LEAVE_SOURCE_GROUP, MCAST_MSFILTER.
    """
    friend, foe = (storage(address) for address in ADDRESS[level])
    request = group_req(lan.listener.socket.if_nametoindex("eth0"), GROUP if level == IP else GROUP6)
    with listener(lan, kernel.AF_INET if level == IP else kernel.AF_INET6) as sock:
        for option, source, who in (
            (names.JOIN_GROUP, b"", EVERYBODY),
            (names.BLOCK_SOURCE, foe, b"friend"),
            (names.UNBLOCK_SOURCE, foe, EVERYBODY),
            (names.GROUP_FILTER, struct.pack("@II", names.INCLUDE, 1) + foe, b"foe"),
            (names.GROUP_FILTER, struct.pack("@II", names.EXCLUDE, 1) + foe, b"friend"),
            (names.LEAVE_GROUP, b"", NOBODY),
            (names.JOIN_SOURCE, friend, b"friend"),
            (names.JOIN_SOURCE, foe, EVERYBODY),
            (names.LEAVE_SOURCE, friend, b"foe"),
            (names.LEAVE_SOURCE, foe, NOBODY),
        ):
            sock.setsockopt(level, option, request + source)
            assert hears(lan, sock) == who, option


def test_opt_ipv6_join_group_and_ipv6_leave_group(lan: Lan) -> None:
    """IPV6_JOIN_GROUP: everybody is heard; IPV6_LEAVE_GROUP: nobody any more."""
    group = kernel.inet_pton(kernel.AF_INET6, GROUP6)
    request = group + struct.pack("@i", lan.listener.socket.if_nametoindex("eth0"))
    with listener(lan, kernel.AF_INET6) as sock:
        sock.setsockopt(IPV6, names.JOIN6, request)
        assert hears(lan, sock) == EVERYBODY
        sock.setsockopt(IPV6, names.LEAVE6, request)
        assert hears(lan, sock) == NOBODY


def test_opt_ip_multicast_all_hears_what_others_joined(lan: Lan) -> None:
    """IP_MULTICAST_ALL, IPV6_MULTICAST_ALL: with 1, as it is from the start, what others joined is heard, too; with 0
    only one's own groups.
    """
    eth0 = lan.listener.socket.if_nametoindex("eth0")
    for family, level, option, group in ((kernel.AF_INET, IP, 49, GROUP), (kernel.AF_INET6, IPV6, 29, GROUP6)):
        with listener(lan, family) as member, listener(lan, family) as idle:
            member.setsockopt(level, names.JOIN_GROUP, group_req(eth0, group))
            assert idle.getsockopt(level, option) == 1
            assert hears(lan, idle) == EVERYBODY
            idle.setsockopt(level, option, 0)
            assert hears(lan, idle) == NOBODY
            idle.setsockopt(level, names.JOIN_GROUP, group_req(eth0, group))
            assert hears(lan, idle) == EVERYBODY


def test_opt_ip_multicast_all_of_ipv6_sockets(world: World) -> None:
    """IP_MULTICAST_ALL is 0 from the start on sockets of AF_INET6, TCP's as well: of IPv4 groups they hear their own
    only, and with 1 what others joined, too.
    """
    if world.network is None and not has_ipv6_loopback():
        pytest.skip("no IPv6 on this machine")
    with (
        datagram(world) as member,
        datagram(world) as sender,
        world.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as idle,
        world.socket.socket(kernel.AF_INET6) as stream,
    ):
        assert stream.getsockopt(IP, 49) == idle.getsockopt(IP, 49) == 0
        member.setsockopt(IP, names.ADD, mreq())
        sender.setsockopt(IP, 32, kernel.inet_aton(LOOPBACK))
        idle.bind(("::", 0))
        port = idle.getsockname()[1]
        idle.settimeout(10)
        sender.sendto(b"unheard", (GROUP, port))
        idle.setsockopt(IP, 49, 1)
        sender.sendto(b"all", (GROUP, port))
        assert idle.recv(9) == b"all"
        idle.setsockopt(IP, 49, 0)
        sender.sendto(b"unheard", (GROUP, port))
        idle.setsockopt(IP, names.ADD, mreq())
        sender.sendto(b"own", (GROUP, port))
        assert idle.recv(9) == b"own"


def test_opt_ip_multicast_ttl_goes_into_the_packet(world: World) -> None:
    """IP_MULTICAST_TTL: 1 by default, of packets to groups only; -1 is the default again, 256 EINVAL."""
    with datagram(world) as member, datagram(world) as sender:
        member.bind(("", 0))
        port = member.getsockname()[1]
        member.setsockopt(IP, names.ADD, mreq())
        member.setsockopt(IP, 12, 1)
        sender.setsockopt(IP, 32, kernel.inet_aton(LOOPBACK))
        for value, ttl in ((None, 1), (7, 7), (255, 255), (-1, 1)):
            if value is not None:
                sender.setsockopt(IP, 33, value)
            sender.sendto(b"x", (GROUP, port))
            assert member.recvmsg(9, 99)[1] == [(IP, 2, struct.pack("@i", ttl))]
        sender.setsockopt(IP, 33, 7)
        sender.sendto(b"x", (LOOPBACK, port))
        assert member.recvmsg(9, 99)[1] == [(IP, 2, struct.pack("@i", 64))]
        for bad in (256, -2):
            assert code(sender.setsockopt, IP, 33, bad) == errno.EINVAL


def test_opt_ipv6_multicast_hops_loop_and_if(lan: Lan) -> None:
    """IPV6_MULTICAST_HOPS goes into packets to groups; with IPV6_MULTICAST_LOOP 0 only others hear them;
    IPV6_MULTICAST_IF chooses the link.
    """
    lo, eth0 = (lan.listener.socket.if_nametoindex(name) for name in ("lo", "eth0"))
    friend = lan.senders[0]
    with (
        listener(lan, kernel.AF_INET6) as sock,
        friend.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as other,
    ):
        other.bind(("::", 7000))
        other.setblocking(False)
        other.setsockopt(IPV6, 51, 1)
        for each, index in ((sock, eth0), (other, friend.socket.if_nametoindex("eth0"))):
            each.setsockopt(IPV6, names.JOIN_GROUP, group_req(index, GROUP6))
        sock.setsockopt(IPV6, 17, eth0)
        for value, limit in ((None, 1), (9, 9), (-1, 1)):
            if value is not None:
                sock.setsockopt(IPV6, 18, value)
            sock.sendto(b"x", (GROUP6, 7000))
            assert heard([sock]) == [b"x"]
            assert other.recvmsg(9, 99)[1] == [(IPV6, 52, struct.pack("@i", limit))]
        sock.setsockopt(IPV6, 19, 0)
        sock.sendto(b"y", (GROUP6, 7000))
        assert heard([sock, other]) == [b"", b"y"]
        sock.setsockopt(IPV6, 19, 1)
        sock.setsockopt(IPV6, 17, lo)
        sock.sendto(b"z", (GROUP6, 7000))
        assert heard([other]) == [b""]
