"""Multicast through sockets (row UDP-14; sections 2.1 and 2.2; RFC 3678): options on the kernel's sockets and on ours,
and what of it is reported on the wire (IGMPv3, MLDv2).
"""

from __future__ import annotations

import errno
import ipaddress
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.link import cable
from stack.tests.kernel_twin import LOOPBACK, World, code
from stack.tests.test_opt_datagram import code_of, datagram, heard, tapped

IP, IPV6 = kernel.IPPROTO_IP, kernel.IPPROTO_IPV6
GROUP, OTHER_GROUP, GROUP6 = "224.1.2.3", "224.1.2.4", "ff15::1:2:3"
FRIEND, FOE = kernel.inet_aton("10.0.0.1"), kernel.inet_aton("10.0.0.2")
ADD, DROP, UNBLOCK, BLOCK, ADD_SOURCE, DROP_SOURCE, MSFILTER = 35, 36, 37, 38, 39, 40, 41
JOIN_GROUP, BLOCK_SOURCE, UNBLOCK_SOURCE, LEAVE_GROUP, JOIN_SOURCE, LEAVE_SOURCE, GROUP_FILTER = (
    42,
    43,
    44,
    45,
    46,
    47,
    48,
)
JOIN6, LEAVE6 = 20, 21
INCLUDE, EXCLUDE = 1, 0


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def mreq(group: str = GROUP, address: str = LOOPBACK) -> bytes:
    return kernel.inet_aton(group) + kernel.inet_aton(address)


def msfilter(mode: int, *sources: bytes, group: str = GROUP) -> bytes:
    return mreq(group) + struct.pack("@II", mode, len(sources)) + b"".join(sources)


def storage(address: str) -> bytes:
    """struct sockaddr_storage"""
    family = kernel.AF_INET6 if ":" in address else kernel.AF_INET
    offset = bytes(4) if family == kernel.AF_INET6 else b""
    return (struct.pack("@HH", family, 0) + offset + kernel.inet_pton(family, address)).ljust(128, b"\0")


def group_req(index: int, group: str) -> bytes:
    return struct.pack("@I4x", index) + storage(group)


def test_opt_ip_add_and_drop_membership_errors(world: World) -> None:
    """IP_ADD_MEMBERSHIP: twice is EADDRINUSE, no group or too short EINVAL, no such interface ENODEV, the 21st ENOBUFS;
    IP_DROP_MEMBERSHIP of what was not joined is EADDRNOTAVAIL; neither can be read.
    """
    with datagram(world) as sock:
        sock.setsockopt(IP, ADD, mreq())
        assert code(sock.setsockopt, IP, ADD, mreq()) == errno.EADDRINUSE
        assert code(sock.setsockopt, IP, ADD, mreq("10.1.2.3")) == errno.EINVAL
        assert code(sock.setsockopt, IP, ADD, mreq()[:7]) == errno.EINVAL
        assert code(sock.setsockopt, IP, ADD, mreq(OTHER_GROUP, "192.0.2.5")) == errno.ENODEV
        assert code(sock.setsockopt, IP, ADD, mreq(OTHER_GROUP, "0.0.0.0") + struct.pack("@i", 9999)) == errno.ENODEV
        sock.setsockopt(IP, DROP, mreq())
        assert code(sock.setsockopt, IP, DROP, mreq()) == errno.EADDRNOTAVAIL
        for option in (ADD, DROP):
            assert code(sock.getsockopt, IP, option) == errno.ENOPROTOOPT
        index = world.socket.if_nametoindex("lo")
        sock.setsockopt(IP, ADD, mreq(GROUP, "0.0.0.0") + struct.pack("@i", index))
        sock.setsockopt(IP, DROP, mreq(GROUP, "0.0.0.0") + struct.pack("@i", index))
        joined = [code_of(sock.setsockopt, IP, ADD, mreq(f"224.1.4.{each}")) for each in range(21)]
        assert joined == [None] * 20 + [errno.ENOBUFS]


def test_opt_ip_block_source_errors(world: World) -> None:
    """IP_BLOCK_SOURCE and IP_UNBLOCK_SOURCE: of a group joined for all, each source once; else EINVAL or
    EADDRNOTAVAIL.
    """
    source = mreq() + FOE
    with datagram(world) as sock:
        assert code(sock.setsockopt, IP, BLOCK, source) == errno.EINVAL
        sock.setsockopt(IP, ADD, mreq())
        sock.setsockopt(IP, BLOCK, source)
        assert code(sock.setsockopt, IP, BLOCK, source) == errno.EADDRNOTAVAIL
        sock.setsockopt(IP, UNBLOCK, source)
        assert code(sock.setsockopt, IP, UNBLOCK, source) == errno.EADDRNOTAVAIL
        for option in (ADD_SOURCE, DROP_SOURCE):
            assert code(sock.setsockopt, IP, option, source) == errno.EINVAL
        for option in (BLOCK, UNBLOCK, ADD_SOURCE, DROP_SOURCE):
            assert code(sock.setsockopt, IP, option, source[:11]) == errno.EINVAL


def test_opt_ip_source_membership_errors(world: World) -> None:
    """IP_ADD_SOURCE_MEMBERSHIP joins for one sender, or for one more; with its last source the group is left."""
    source = mreq() + FRIEND
    with datagram(world) as sock:
        sock.setsockopt(IP, ADD_SOURCE, source)
        assert code(sock.setsockopt, IP, ADD_SOURCE, source) == errno.EADDRNOTAVAIL
        assert code(sock.setsockopt, IP, BLOCK, source) == errno.EINVAL
        assert code(sock.setsockopt, IP, DROP_SOURCE, mreq() + FOE) == errno.EADDRNOTAVAIL
        assert code(sock.setsockopt, IP, ADD, mreq()) == errno.EADDRINUSE
        sock.setsockopt(IP, DROP_SOURCE, source)
        assert code(sock.setsockopt, IP, DROP_SOURCE, source) == errno.EINVAL
        sock.setsockopt(IP, ADD_SOURCE, source)
        sock.setsockopt(IP, DROP, mreq())


def test_opt_ip_msfilter_errors(world: World) -> None:
    """IP_MSFILTER replaces the filter of a group joined: not joined, an unknown mode or too short is EINVAL, more than
    ten sources ENOBUFS; including nobody leaves.
    """
    with datagram(world) as sock:
        assert code(sock.setsockopt, IP, MSFILTER, msfilter(INCLUDE, FRIEND)) == errno.EINVAL
        sock.setsockopt(IP, ADD, mreq())
        sock.setsockopt(IP, MSFILTER, msfilter(INCLUDE, FRIEND))
        sock.setsockopt(IP, MSFILTER, msfilter(EXCLUDE, FRIEND, FOE))
        assert code(sock.setsockopt, IP, MSFILTER, msfilter(2)) == errno.EINVAL
        assert code(sock.setsockopt, IP, MSFILTER, msfilter(INCLUDE, FRIEND)[:-1]) == errno.EINVAL
        assert code(sock.setsockopt, IP, MSFILTER, msfilter(EXCLUDE, *[FOE] * 11)) == errno.ENOBUFS
        sock.setsockopt(IP, MSFILTER, msfilter(INCLUDE))
        assert code(sock.setsockopt, IP, DROP, mreq()) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(("level", "group", "source"), [(IP, GROUP, "10.0.0.1"), (IPV6, GROUP6, "2001:db8::1")])
def test_opt_mcast_of_either_version(world: World, level: int, group: str, source: str) -> None:
    """MCAST_JOIN_GROUP and its likes: the same rules for both versions, with whole socket addresses."""
    lo = world.socket.if_nametoindex("lo")
    request = group_req(lo, group)
    with datagram(world, kernel.AF_INET if level == IP else kernel.AF_INET6) as sock:
        assert code(sock.setsockopt, level, JOIN_GROUP, request[:100]) == errno.EINVAL
        sock.setsockopt(level, JOIN_GROUP, request)
        assert code(sock.setsockopt, level, JOIN_GROUP, request) == errno.EADDRINUSE
        sock.setsockopt(level, BLOCK_SOURCE, request + storage(source))
        assert code(sock.setsockopt, level, BLOCK_SOURCE, (request + storage(source))[:-1]) == errno.EINVAL
        sock.setsockopt(level, UNBLOCK_SOURCE, request + storage(source))
        assert code(sock.setsockopt, level, JOIN_SOURCE, request + storage(source)) == errno.EINVAL
        header = request + struct.pack("@II", INCLUDE, 1)
        sock.setsockopt(level, GROUP_FILTER, header + storage(source))
        sock.setsockopt(level, LEAVE_GROUP, request)
        assert code(sock.setsockopt, level, LEAVE_GROUP, request) == errno.EADDRNOTAVAIL
        sock.setsockopt(level, JOIN_SOURCE, request + storage(source))
        sock.setsockopt(level, LEAVE_SOURCE, request + storage(source))
        wrong = group_req(lo, GROUP6 if level == IP else GROUP)
        assert code(sock.setsockopt, level, JOIN_SOURCE, wrong + storage(source)) in (errno.EADDRNOTAVAIL, errno.EINVAL)


def test_opt_ipv6_join_and_leave_group_errors(world: World) -> None:
    """IPV6_JOIN_GROUP: twice is EADDRINUSE, no group or too short EINVAL, no such interface ENODEV; IPV6_LEAVE_GROUP of
    what was not joined EADDRNOTAVAIL.
    """
    group = kernel.inet_pton(kernel.AF_INET6, GROUP6)
    lo = struct.pack("@i", world.socket.if_nametoindex("lo"))
    with datagram(world, kernel.AF_INET6) as sock:
        sock.setsockopt(IPV6, JOIN6, group + lo)
        assert code(sock.setsockopt, IPV6, JOIN6, group + lo) == errno.EADDRINUSE
        assert code(sock.setsockopt, IPV6, JOIN6, group + struct.pack("@i", 9999)) == errno.ENODEV
        assert code(sock.setsockopt, IPV6, JOIN6, group) == errno.EINVAL
        for option in (JOIN6, LEAVE6):
            assert code(sock.setsockopt, IPV6, option, bytes(16) + lo) == errno.EINVAL
        sock.setsockopt(IPV6, LEAVE6, group + lo)
        assert code(sock.setsockopt, IPV6, LEAVE6, group + lo) == errno.EADDRNOTAVAIL


def test_opt_ip_multicast_if(world: World) -> None:
    """IP_MULTICAST_IF: an address of an interface, or its index; it reads as the address; others are EADDRNOTAVAIL."""
    lo = world.socket.if_nametoindex("lo")
    with datagram(world) as sock:
        assert sock.getsockopt(IP, 32, 4) == bytes(4)
        sock.setsockopt(IP, 32, kernel.inet_aton(LOOPBACK))
        assert sock.getsockopt(IP, 32, 4) == kernel.inet_aton(LOOPBACK)
        sock.setsockopt(IP, 32, bytes(4))
        assert sock.getsockopt(IP, 32, 4) == bytes(4)
        sock.setsockopt(IP, 32, mreq("0.0.0.0", "0.0.0.0") + struct.pack("@i", lo))
        assert sock.getsockopt(IP, 32, 4) == bytes(4)
        sock.setsockopt(IP, 32, mreq("0.0.0.0", LOOPBACK))
        assert sock.getsockopt(IP, 32, 4) == kernel.inet_aton(LOOPBACK)
        assert code(sock.setsockopt, IP, 32, kernel.inet_aton("192.0.2.5")) == errno.EADDRNOTAVAIL
        assert code(sock.setsockopt, IP, 32, mreq() + struct.pack("@i", 9999)) == errno.EADDRNOTAVAIL
        assert code(sock.setsockopt, IP, 32, b"abc") == errno.EINVAL


def test_udp_14_multicast_on_one_host(world: World) -> None:
    """What is sent to a group is heard by who joined it, with IP_MULTICAST_TTL as its TTL; IP_MULTICAST_LOOP 0 keeps
    it from our own sockets.
    """
    with datagram(world) as member, datagram(world) as sender:
        member.bind(("", 0))
        port = member.getsockname()[1]
        member.setsockopt(IP, ADD, mreq())
        member.setsockopt(IP, 12, 1)
        sender.setsockopt(IP, 32, kernel.inet_aton(LOOPBACK))
        sender.sendto(b"x", (GROUP, port))
        data, ancillary, _, (source, _) = member.recvmsg(9, 99)
        assert (data, ancillary, source) == (b"x", [(IP, 2, struct.pack("@i", 1))], LOOPBACK)
        sender.setsockopt(IP, 33, 5)
        sender.sendto(b"x", (GROUP, port))
        assert member.recvmsg(9, 99)[1] == [(IP, 2, struct.pack("@i", 5))]
        member.setsockopt(IP, DROP, mreq())
        sender.sendto(b"lost", (GROUP, port))
        member.settimeout(None)
        assert code(member.recv, 9, kernel.MSG_DONTWAIT) == errno.EAGAIN


# -- over a wire ------------------------------------------------------------------------------------------------------


class Lan:
    """A listener with eth0 and two senders behind one switch's worth of cable: 10.0.0.9, and 10.0.0.1 and .2."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.listener = network.stack("listener")
        self.senders: list[Stack] = []
        from stack.link import Switch

        switch = Switch(network.scheduler)
        for name, host in (("listener", 9), ("friend", 1), ("foe", 2)):
            stack = self.listener if name == "listener" else network.stack(name)
            near, far = cable(network.scheduler)
            network.attach(switch.attach(far))
            stack.add_interface(
                near, name="eth0", addresses=[f"10.0.0.{host}/24", f"fd00::{host}/64", f"fe80::{host}/64"]
            )
            stack.add_route("224.0.0.0/4", dev="eth0")
            stack.add_route("ff00::/8", dev="eth0")
            if stack is not self.listener:
                self.senders.append(stack)

    def say(self, group: str, port: int) -> None:
        """Both senders send their names to a group."""
        for stack in self.senders:
            family = kernel.AF_INET6 if ":" in group else kernel.AF_INET
            with stack.socket.socket(family, kernel.SOCK_DGRAM) as sock:
                sock.sendto(stack.name.encode(), (group, port))


@pytest.fixture
def lan() -> Iterator[Lan]:
    from stack.testing.clock import ManualClock

    with Network(clock=ManualClock()) as network:
        made = Lan(network)
        network.advance(20 * 10**9)
        yield made


def listener(lan: Lan, family: int = kernel.AF_INET) -> Any:
    sock = lan.listener.socket.socket(family, kernel.SOCK_DGRAM)
    sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR, 1)
    sock.bind(("", 7000))
    sock.setblocking(False)
    return sock


def test_udp_14_source_filters_decide_who_is_heard(lan: Lan) -> None:
    """Of two senders to a group a socket hears whom its filter lets through: all, all but one, only one."""
    with listener(lan) as sock:
        lan.say(GROUP, 7000)
        assert heard([sock]) == [b""]
        sock.setsockopt(IP, ADD, mreq(GROUP, "10.0.0.9"))
        lan.say(GROUP, 7000)
        assert heard([sock]) == [b"friendfoe"]
        sock.setsockopt(IP, BLOCK, mreq(GROUP, "10.0.0.9") + FOE)
        lan.say(GROUP, 7000)
        assert heard([sock]) == [b"friend"]
        sock.setsockopt(IP, UNBLOCK, mreq(GROUP, "10.0.0.9") + FOE)
        sock.setsockopt(IP, DROP, mreq(GROUP, "10.0.0.9"))
        sock.setsockopt(IP, ADD_SOURCE, mreq(GROUP, "10.0.0.9") + FOE)
        lan.say(GROUP, 7000)
        assert heard([sock]) == [b"foe"]
        sock.setsockopt(IP, DROP_SOURCE, mreq(GROUP, "10.0.0.9") + FOE)
        lan.say(GROUP, 7000)
        assert heard([sock]) == [b""]


def test_udp_14_each_socket_has_its_own_filter(lan: Lan) -> None:
    """Two sockets in one group hear whom each of them wants; one that joined nothing hears all, unless
    IP_MULTICAST_ALL is 0.
    """
    friend, foe, idle = listener(lan), listener(lan), listener(lan)
    with friend, foe, idle:
        friend.setsockopt(IP, ADD_SOURCE, mreq(GROUP, "10.0.0.9") + FRIEND)
        foe.setsockopt(IP, ADD_SOURCE, mreq(GROUP, "10.0.0.9") + FOE)
        lan.say(GROUP, 7000)
        assert heard([friend, foe, idle]) == [b"friend", b"foe", b"friendfoe"]
        idle.setsockopt(IP, 49, 0)
        lan.say(GROUP, 7000)
        assert heard([friend, foe, idle]) == [b"friend", b"foe", b""]


def test_opt_ipv6_multicast_all_and_filters(lan: Lan) -> None:
    """The same over IPv6: IPV6_JOIN_GROUP, MCAST_BLOCK_SOURCE, IPV6_MULTICAST_ALL."""
    eth0 = lan.listener.socket.if_nametoindex("eth0")
    group = kernel.inet_pton(kernel.AF_INET6, GROUP6) + struct.pack("@i", eth0)
    member, idle = listener(lan, kernel.AF_INET6), listener(lan, kernel.AF_INET6)
    with member, idle:
        member.setsockopt(IPV6, JOIN6, group)
        lan.say(GROUP6, 7000)
        assert heard([member, idle]) == [b"friendfoe", b"friendfoe"]
        member.setsockopt(IPV6, BLOCK_SOURCE, group_req(eth0, GROUP6) + storage("fd00::1"))
        idle.setsockopt(IPV6, 29, 0)
        lan.say(GROUP6, 7000)
        assert heard([member, idle]) == [b"foe", b""]


def records(frames: list[bytes], lan: Lan) -> list[tuple[int, str, list[str]]]:
    """(type, group, sources) of the group records in the reports among `frames`, repeats left out."""
    lan.network.advance(20 * 10**9)
    found: list[tuple[int, str, list[str]]] = []
    for frame in frames:
        if frame[12:14] == b"\x08\0" and frame[23] == 2:  # IGMP
            body, width = frame[14 + (frame[14] & 15) * 4 :], 4
            assert body[0] == 0x22
        elif frame[12:14] == b"\x86\xdd" and frame[20] == 0:  # hop-by-hop: MLD
            body, width = frame[62:], 16
            assert body[0] == 143
        else:
            continue
        at = 8
        for _ in range(struct.unpack_from("!H", body, 6)[0]):
            kind, _, count = struct.unpack_from("!BBH", body, at)
            addresses = [
                str(ipaddress.ip_address(body[at + 4 + width * each : at + 4 + width * (each + 1)]))
                for each in range(count + 1)
            ]
            record = kind, addresses[0], sorted(addresses[1:])
            if record not in found:
                found.append(record)
            at += 4 + width * (count + 1)
    frames.clear()
    return found


IS_IN, IS_EX, TO_IN, TO_EX, ALLOW, BLOCK_OLD = 1, 2, 3, 4, 5, 6


def test_udp_14_igmpv3_reports_what_sockets_want(lan: Lan) -> None:
    """Joining, blocking, one more source, leaving: each change is reported as the IGMPv3 record that says it."""
    frames = tapped(lan.listener, lan.network)
    eth0 = mreq(GROUP, "10.0.0.9")
    with listener(lan) as sock, listener(lan) as second:
        sock.setsockopt(IP, ADD, eth0)
        assert records(frames, lan) == [(TO_EX, GROUP, [])]
        sock.setsockopt(IP, BLOCK, eth0 + FOE)
        assert records(frames, lan) == [(BLOCK_OLD, GROUP, ["10.0.0.2"])]
        sock.setsockopt(IP, MSFILTER, eth0 + struct.pack("@II", INCLUDE, 1) + FRIEND)
        assert records(frames, lan) == [(TO_IN, GROUP, ["10.0.0.1"])]
        second.setsockopt(IP, ADD_SOURCE, eth0 + FOE)
        assert records(frames, lan) == [(ALLOW, GROUP, ["10.0.0.2"])]
        sock.setsockopt(IP, DROP, eth0)
        assert records(frames, lan) == [(BLOCK_OLD, GROUP, ["10.0.0.1"])]
    assert records(frames, lan) == [(BLOCK_OLD, GROUP, ["10.0.0.2"])]


def test_udp_14_mldv2_reports_what_sockets_want(lan: Lan) -> None:
    """The same in MLDv2, and closing the socket leaves."""
    frames = tapped(lan.listener, lan.network)
    request = group_req(lan.listener.socket.if_nametoindex("eth0"), GROUP6)
    with listener(lan, kernel.AF_INET6) as sock:
        sock.setsockopt(IPV6, JOIN_SOURCE, request + storage("fd00::1"))
        assert records(frames, lan) == [(ALLOW, GROUP6, ["fd00::1"])]
        sock.setsockopt(IPV6, GROUP_FILTER, request + struct.pack("@II", EXCLUDE, 1) + storage("fd00::2"))
        assert records(frames, lan) == [(TO_EX, GROUP6, ["fd00::2"])]
    assert records(frames, lan) == [(TO_IN, GROUP6, [])]


def test_udp_14_membership_before_bind_and_without(lan: Lan) -> None:
    """A socket may join before it has a port; closing it unbound leaves the group."""
    frames = tapped(lan.listener, lan.network)
    with lan.listener.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
        sock.setsockopt(IP, ADD, mreq(GROUP, "10.0.0.9"))
        assert records(frames, lan) == [(TO_EX, GROUP, [])]
        sock.bind(("", 7000))
        sock.setblocking(False)
        lan.say(GROUP, 7000)
        assert heard([sock]) == [b"friendfoe"]
    assert records(frames, lan) == [(TO_IN, GROUP, [])]
    with lan.listener.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
        sock.setsockopt(IP, ADD, mreq(GROUP, "10.0.0.9"))
        records(frames, lan)
    assert records(frames, lan) == [(TO_IN, GROUP, [])]


def test_opt_ip_multicast_loop_and_if_on_a_wire(lan: Lan) -> None:
    """IP_MULTICAST_IF chooses link and source; with IP_MULTICAST_LOOP 0 only others hear it; IP_PKTINFO tells the
    interface it left through.
    """
    with listener(lan) as sock:
        sock.setsockopt(IP, ADD, mreq(GROUP, "10.0.0.9"))
        sock.setsockopt(IP, 8, 1)
        eth0 = lan.listener.socket.if_nametoindex("eth0")
        sock.setsockopt(IP, 32, kernel.inet_aton("10.0.0.9"))
        sock.sendto(b"mine", (GROUP, 7000))
        data, ancillary, _, source = sock.recvmsg(9, 99)
        assert (data, source) == (b"mine", ("10.0.0.9", 7000))
        assert struct.unpack("@i4s4s", ancillary[0][2])[::2] == (eth0, kernel.inet_aton(GROUP))
        sock.setsockopt(IP, 34, 0)
        sock.sendto(b"theirs", (GROUP, 7000))
        assert heard([sock]) == [b""]


def test_udp_14_broadcast_on_a_wire(lan: Lan) -> None:
    """A broadcast reaches every socket bound to any address, on this host and on others; IP_PKTINFO tells ours."""
    with listener(lan) as one, listener(lan) as two, lan.senders[0].socket.socket(type=kernel.SOCK_DGRAM) as sender:
        one.setsockopt(IP, 8, 1)
        assert code(sender.sendto, b"x", ("10.0.0.255", 7000)) == errno.EACCES
        sender.setsockopt(kernel.SOL_SOCKET, kernel.SO_BROADCAST, 1)
        sender.sendto(b"all", ("10.0.0.255", 7000))
        sender.setsockopt(kernel.SOL_SOCKET, kernel.SO_BINDTODEVICE, b"eth0")
        sender.sendto(b"every", ("255.255.255.255", 7000))
        assert heard([two]) == [b"allevery"]
        data, ancillary, _, _ = one.recvmsg(9, 99)
        eth0 = lan.listener.socket.if_nametoindex("eth0")
        local, target = kernel.inet_aton("10.0.0.9"), kernel.inet_aton("10.0.0.255")
        assert (data, ancillary) == (b"all", [(IP, 8, struct.pack("@i4s4s", eth0, local, target))])
