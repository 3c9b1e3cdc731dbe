"""What IPPROTO_IP, IPPROTO_IPV6 and IPPROTO_UDP options of UDP sockets do, one by one (sections 2.2 and 2.4)."""

from __future__ import annotations

import errno
import os
import socket as kernel
import struct
from collections.abc import Iterator

import pytest

from stack import Credentials, Network, Stack
from stack.socket.poll import ERR
from stack.tests.kernel_twin import LOOPBACK, World, code
from stack.tests.test_opt_datagram import datagram, empty, heard, number, pair, receivers, tapped, told, two_ways

IP, IPV6, UDP = kernel.IPPROTO_IP, kernel.IPPROTO_IPV6, kernel.IPPROTO_UDP
BOTH = (kernel.AF_INET, kernel.AF_INET6)
#: A raw-capable kernel test needs root.
ROOT = os.geteuid() == 0


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def needs_root(world: World) -> None:
    if world.network is None and not ROOT:
        pytest.skip("the kernel lets only root do this")


# -- what a packet is sent with, and what its receiver is told --------------------------------------------------------


def test_opt_ip_ttl_and_recvttl(world: World) -> None:
    """IP_TTL goes into the packet, -1 is the default; IP_RECVTTL tells it; a control message is for one datagram."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(IP, 12, 1)
        for value, expected in ((9, 9), (255, 255), (-1, 64)):
            sender.setsockopt(IP, kernel.IP_TTL, value)
            sender.send(b"x")
            assert told(receiver) == [(IP, 2, number(expected))]
        sender.sendmsg([b"x"], [(IP, 2, number(7))])
        sender.send(b"x")
        assert [told(receiver), told(receiver)] == [[(IP, 2, number(7))], [(IP, 2, number(64))]]


def test_opt_ip_tos_and_recvtos(world: World) -> None:
    """IP_TOS goes into the packet with all eight bits; IP_RECVTOS tells it in one byte."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(IP, 13, 1)
        sender.setsockopt(IP, kernel.IP_TOS, 0x13)
        sender.send(b"x")
        assert told(receiver) == [(IP, 1, b"\x13")]
        sender.sendmsg([b"x"], [(IP, 1, b"\x20")])
        sender.sendmsg([b"x"], [(IP, 1, number(0x21))])
        assert [told(receiver), told(receiver)] == [[(IP, 1, b"\x20")], [(IP, 1, b"\x21")]]


def test_opt_ip_pktinfo(world: World) -> None:
    """IP_PKTINFO tells interface and destination; as a control message it sets source and interface."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(IP, 8, 1)
        sender.send(b"x")
        lo = world.socket.if_nametoindex("lo")
        local = kernel.inet_aton(LOOPBACK)
        assert told(receiver) == [(IP, 8, struct.pack("@i4s4s", lo, local, local))]
        with datagram(world) as other:
            other.bind(("0.0.0.0", 0))
            info = struct.pack("@i4s4s", 0, kernel.inet_aton("127.0.0.5"), bytes(4))
            other.sendmsg([b"x"], [(IP, 8, info)], 0, receiver.getsockname())
            assert receiver.recvfrom(9)[1] == ("127.0.0.5", other.getsockname()[1])
            info = struct.pack("@i4s4s", 9999, bytes(4), bytes(4))
            assert code(other.sendmsg, [b"x"], [(IP, 8, info)], 0, receiver.getsockname()) in (
                errno.ENODEV,
                errno.ENETUNREACH,
            )


def test_opt_ip_recvorigdstaddr(world: World) -> None:
    """IP_RECVORIGDSTADDR tells the address and port a datagram was for."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(IP, 20, 1)
        sender.send(b"x")
        port = struct.pack("!H", receiver.getsockname()[1])
        assert told(receiver) == [(IP, 20, struct.pack("@H", kernel.AF_INET) + port + b"\x7f\0\0\1" + bytes(8))]


def test_opt_ip_options_and_recvopts(world: World) -> None:
    """IP_OPTIONS go into the header, padded; IP_RECVOPTS tells them; a control message brings its own."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(IP, 6, 1)
        sender.setsockopt(IP, 4, b"\x01\x01\x01")
        assert sender.getsockopt(IP, 4, 40) == b"\x01\x01\x01\0"
        sender.send(b"x")
        assert told(receiver) == [(IP, 6, b"\x01\x01\x01\0")]
        sender.setsockopt(IP, 4, b"")
        sender.send(b"x")
        assert told(receiver) == []
        sender.sendmsg([b"x"], [(IP, 7, b"\x01\x01\x01\x01")])
        assert told(receiver) == [(IP, 6, b"\x01\x01\x01\x01")]
        for bad in (b"\x07\x02", b"\x44\x03\x05", bytes(41), b"\x82\x60\x00"):
            assert code(sender.setsockopt, IP, 4, bad) == errno.EINVAL


def test_opt_ip_order_of_control_messages(world: World) -> None:
    """All that is asked for comes at once, in Linux's order."""
    sender, receiver = pair(world)
    with sender, receiver:
        for level, option in ((IP, 20), (IP, 13), (IP, 12), (IP, 8), (UDP, 104), (1, 29)):
            receiver.setsockopt(level, option, 1)
        sender.setsockopt(UDP, 103, 2)
        sender.send(b"xyz")
        assert [each[:2] for each in told(receiver)] == [(1, 29), (UDP, 104), (IP, 8), (IP, 2), (IP, 1), (IP, 20)]


def test_opt_ip_mtu_and_mtu_discover(world: World) -> None:
    """IP_MTU: the path's to the peer, ENOTCONN without one."""
    sender, receiver = pair(world)
    with sender, receiver:
        assert code(receiver.getsockopt, IP, kernel.IP_MTU if hasattr(kernel, "IP_MTU") else 14) == errno.ENOTCONN
        assert sender.getsockopt(IP, 14) in (65535, 65536)
        for value in range(6):
            sender.setsockopt(IP, 10, value)
            assert sender.getsockopt(IP, 10) == value


def test_opt_ip_mtu_discover_on_the_wire() -> None:
    """DONT never sets DF, WANT does where the packet fits and fragments where not, DO and PROBE refuse what does not
    fit; PROBE and the later ones do not believe the path's MTU, INTERFACE does not fragment.
    """
    with Network() as network:
        gw, others = two_ways(network)
        socks = receivers(others)
        frames = tapped(gw, network)
        with gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            sock.connect(("10.0.0.2", 5000))
            sock.send(b"who has it?")

            def sent(size: int) -> list[int] | int | None:
                """The flags and offset words of what leaves, or the errno."""
                frames.clear()
                try:
                    sock.send(bytes(size))
                except OSError as error:
                    return error.errno
                heard(socks)
                return [struct.unpack_from("!H", frame, 20)[0] for frame in frames]

            whole, df, more, rest = 0, 0x4000, 0x2000, 185
            expected = {0: ([whole], [more, rest]), 1: ([df], [more, rest]), 2: ([df], errno.EMSGSIZE)}
            expected |= {3: ([df], errno.EMSGSIZE), 4: ([whole], errno.EMSGSIZE), 5: ([whole], [more, rest])}
            for mode, (fitting, too_long) in expected.items():
                sock.setsockopt(IP, 10, mode)
                assert (sent(1472), sent(1473)) == (fitting, too_long), mode
            with network.lock:
                gw.netns.ip.update_path_mtu(kernel.inet_aton("10.0.0.2"), 1000)
            assert sock.getsockopt(IP, 14) == 1000
            believed = {0: 2, 1: 2, 2: errno.EMSGSIZE, 3: 1, 4: 1, 5: 1}
            for mode, outcome in believed.items():
                sock.setsockopt(IP, 10, mode)
                got = sent(1400)
                assert (len(got) if isinstance(got, list) else got) == outcome, mode
        heard(socks)
        for each in socks:
            each.close()


def test_opt_ip_freebind_and_transparent(world: World) -> None:
    """IP_FREEBIND and IP_TRANSPARENT: an address that is not ours may be bound to, and sent from."""
    needs_root(world)
    for option in (15, 19):
        with datagram(world) as sock:
            assert code(sock.bind, ("192.0.2.88", 0)) == errno.EADDRNOTAVAIL
            sock.setsockopt(IP, option, 1)
            sock.bind(("192.0.2.88", 0))
            assert sock.getsockname()[0] == "192.0.2.88"


def test_opt_ip_freebind_sends_from_there() -> None:
    """What is bound to a foreign address has it as source on the wire."""
    with Network() as network:
        gw, others = two_ways(network)
        socks = receivers(others)
        with gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            sock.setsockopt(IP, 15, 1)
            sock.bind(("10.0.0.77", 4000))
            sock.sendto(b"x", ("10.0.0.2", 5000))
        assert socks[0].recvfrom(9) == (b"x", ("10.0.0.77", 4000))
        for each in socks:
            each.close()


def test_opt_ip_bind_address_no_port(world: World) -> None:
    """IP_BIND_ADDRESS_NO_PORT: binding to port 0 leaves the port open until it is needed."""
    with datagram(world) as sock, datagram(world) as target:
        target.bind((LOOPBACK, 0))
        sock.setsockopt(IP, 24, 1)
        sock.bind((LOOPBACK, 0))
        assert sock.getsockname() == (LOOPBACK, 0)
        sock.connect(target.getsockname())
        assert sock.getsockname()[0] == LOOPBACK
        assert sock.getsockname()[1] != 0
        sock.send(b"x")
        assert target.recvfrom(9) == (b"x", sock.getsockname())


def test_opt_ip_local_port_range(world: World) -> None:
    """IP_LOCAL_PORT_RANGE: ephemeral ports come from within; all taken is EADDRINUSE; a reversed one is EINVAL."""
    for first in range(40_000, 60_000, 1000):  # where no other program has one of the two
        with datagram(world) as one, datagram(world) as two, datagram(world) as three:
            for sock in (one, two, three):
                sock.setsockopt(IP, 51, struct.pack("@I", first + 1 << 16 | first))
            try:
                one.bind((LOOPBACK, 0))
                two.bind((LOOPBACK, 0))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            assert {one.getsockname()[1], two.getsockname()[1]} == {first, first + 1}
            assert code(three.bind, (LOOPBACK, 0)) == errno.EADDRINUSE
            assert code(three.setsockopt, IP, 51, struct.pack("@I", first << 16 | first + 1)) == errno.EINVAL
            break
    else:
        pytest.fail("no two ports were to be had")


def test_opt_ip_unicast_if() -> None:
    """IP_UNICAST_IF: packets to unicast addresses leave through that interface, control messages go before."""
    with Network() as network:
        gw, others = two_ways(network)
        gw.add_route("0.0.0.0/0", "10.0.1.2", metric=50)
        socks = receivers(others)
        index = gw.socket.if_nametoindex("eth1")
        with gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            sock.sendto(b"zero ", ("192.0.2.9", 5000))
            sock.setsockopt(IP, 50, struct.pack("!I", index))
            assert sock.getsockopt(IP, 50, 4) == struct.pack("!I", index)
            sock.sendto(b"one ", ("192.0.2.9", 5000))
            info = struct.pack("@i4s4s", gw.socket.if_nametoindex("eth0"), bytes(4), bytes(4))
            sock.sendmsg([b"again"], [(IP, 8, info)], 0, ("192.0.2.9", 5000))
            assert code(sock.setsockopt, IP, 50, struct.pack("!I", 99)) == errno.EADDRNOTAVAIL
        assert heard(socks) == [b"zero again", b"one "]
        for each in socks:
            each.close()


def test_opt_ip_recverr_reports_soft_errors() -> None:
    """IP_RECVERR: what a plain socket never hears of, host unreachable from a neighbour that is silent, is told with
    the router's, here our own, address.
    """
    from stack.testing.clock import ManualClock

    with Network(clock=ManualClock()) as network:
        gw, _ = two_ways(network)
        sock = gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
        with sock:
            for wanted in (0, 1):
                sock.setsockopt(IP, 11, wanted)
                sock.connect(("10.0.0.99", 9))
                sock.send(b"hello")
                network.advance(5 * 10**9)
                assert bool(sock._sock.poll() & ERR) == bool(wanted)
            data, ancillary, _, address = sock.recvmsg(9, 99, kernel.MSG_ERRQUEUE)
            assert (data, address) == (b"hello", ("10.0.0.99", 9))
            assert struct.unpack_from("@IBBB", ancillary[0][2]) == (errno.EHOSTUNREACH, 2, 3, 1)
            assert ancillary[0][2][20:24] == kernel.inet_aton("10.0.0.1")


# -- IPv6 -------------------------------------------------------------------------------------------------------------


def test_opt_ipv6_unicast_hops_and_recvhoplimit(world: World) -> None:
    """IPV6_UNICAST_HOPS goes into the packet, IPV6_RECVHOPLIMIT tells it, IPV6_HOPLIMIT sets it for one datagram."""
    sender, receiver = pair(world, kernel.AF_INET6)
    with sender, receiver:
        receiver.setsockopt(IPV6, 51, 1)
        sender.setsockopt(IPV6, kernel.IPV6_UNICAST_HOPS, 9)
        sender.send(b"x")
        sender.sendmsg([b"x"], [(IPV6, 52, number(7))])
        sender.sendmsg([b"x"], [(IPV6, 52, number(-1))])
        assert [told(receiver) for _ in range(3)] == [[(IPV6, 52, number(each))] for each in (9, 7, 9)]
        assert code(sender.sendmsg, [b"x"], [(IPV6, 52, number(256))]) == errno.EINVAL


def test_opt_ipv6_tclass_and_recvtclass(world: World) -> None:
    """IPV6_TCLASS goes into the packet, IPV6_RECVTCLASS tells it, and the control message sets it for one datagram."""
    sender, receiver = pair(world, kernel.AF_INET6)
    with sender, receiver:
        receiver.setsockopt(IPV6, 66, 1)
        sender.setsockopt(IPV6, 67, 0x13)
        sender.send(b"x")
        sender.sendmsg([b"x"], [(IPV6, 67, number(0x20))])
        assert [told(receiver), told(receiver)] == [[(IPV6, 67, number(0x13))], [(IPV6, 67, number(0x20))]]
        assert code(sender.sendmsg, [b"x"], [(IPV6, 67, number(256))]) == errno.EINVAL


def test_opt_ipv6_recvpktinfo(world: World) -> None:
    """IPV6_RECVPKTINFO tells destination and interface, of mapped datagrams too; IPV6_PKTINFO sets the source, which
    must be ours.
    """
    sender, receiver = pair(world, kernel.AF_INET6)
    lo = world.socket.if_nametoindex("lo")
    here = kernel.inet_pton(kernel.AF_INET6, "::1")
    with sender, receiver:
        receiver.setsockopt(IPV6, 49, 1)
        sender.sendmsg([b"x"], [(IPV6, 50, here + struct.pack("@I", lo))])
        assert told(receiver) == [(IPV6, 50, here + struct.pack("@i", lo))]
        foreign = kernel.inet_pton(kernel.AF_INET6, "2001:db8::9") + bytes(4)
        assert code(sender.sendmsg, [b"x"], [(IPV6, 50, foreign)]) == errno.EINVAL
        assert code(sender.sendmsg, [b"x"], [(IPV6, 50, bytes(19))]) == errno.EINVAL
        assert code(sender.sendmsg, [b"x"], [(IPV6, 50, bytes(16) + struct.pack("@I", 9999))]) == errno.ENODEV
    with datagram(world, kernel.AF_INET6) as both, datagram(world) as four:
        both.bind(("::", 0))
        both.setsockopt(IPV6, 49, 1)
        four.sendto(b"x", (LOOPBACK, both.getsockname()[1]))
        mapped = bytes(10) + b"\xff\xff\x7f\0\0\1"
        assert told(both) == [(IPV6, 50, mapped + struct.pack("@i", lo))]


def test_opt_ipv6_flowinfo_and_autoflowlabel(world: World) -> None:
    """IPV6_FLOWINFO tells traffic class and flow label; IPV6_AUTOFLOWLABEL gives every flow a label, the same for each
    of its packets.
    """
    sender, receiver = pair(world, kernel.AF_INET6)
    with sender, receiver:
        receiver.setsockopt(IPV6, 11, 1)
        sender.setsockopt(IPV6, 70, 0)
        sender.send(b"x")
        assert told(receiver) == []
        sender.setsockopt(IPV6, 67, 1)
        sender.send(b"x")
        assert told(receiver) == [(IPV6, 11, b"\0\x10\0\0")]
        sender.setsockopt(IPV6, 67, 0)
        sender.setsockopt(IPV6, 70, 1)
        sender.send(b"x")
        sender.send(b"x")
        one, two = told(receiver), told(receiver)
        assert one == two
        assert int.from_bytes(one[0][2], "big") & 0xFFFFF
        assert len(one[0][2]) == 4


def test_opt_ipv6_extension_headers(world: World) -> None:
    """IPV6_HOPOPTS, IPV6_DSTOPTS: what is set, or sent as a control message, goes along and is told to who asks."""
    needs_root(world)
    sender, receiver = pair(world, kernel.AF_INET6)
    padding = bytes((0, 0, 1, 4, 0, 0, 0, 0))
    with sender, receiver:
        for option in (53, 58):
            receiver.setsockopt(IPV6, option, 1)
        sender.setsockopt(IPV6, 59, padding)
        assert sender.getsockopt(IPV6, 59, 100) == padding
        sender.send(b"x")
        assert told(receiver) == [(IPV6, 59, b"\x11" + padding[1:])]
        sender.setsockopt(IPV6, 59, b"")
        sender.sendmsg([b"x"], [(IPV6, 54, padding), (IPV6, 59, padding)])
        assert told(receiver) == [(IPV6, 54, b"\x3c" + padding[1:]), (IPV6, 59, b"\x11" + padding[1:])]
        sender.send(b"plain")
        assert told(receiver) == []
        for bad in (bytes(7), bytes((0, 1)) + bytes(6)):
            assert code(sender.setsockopt, IPV6, 59, bad) == errno.EINVAL


def test_opt_ipv6_extension_headers_need_a_capability() -> None:
    """IPV6_HOPOPTS and IPV6_DSTOPTS: EPERM without CAP_NET_RAW."""
    with (
        Network() as network,
        Stack("user", network=network, credentials=Credentials.user(1000)) as user,
        user.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as sock,
    ):
        header = bytes((0, 0, 1, 4, 0, 0, 0, 0))
        for option in (54, 59):
            assert code(sock.setsockopt, IPV6, option, header) == errno.EPERM
            assert code(sock.sendmsg, [b"x"], [(IPV6, option, header)], 0, ("::1", 9)) == errno.EPERM


def test_opt_ipv6_rthdr_and_recvrthdr() -> None:
    """IPV6_RTHDR: a header with nothing left to route goes along, set or per message; IPV6_RECVRTHDR tells of it.

    Type 0 (RFC 5095) and one with something left are EINVAL. No capability is needed.
    """
    header = bytes((0, 0, 4, 0, 0, 0, 0, 0))
    with Network() as network, Stack("user", network=network, credentials=Credentials.user(1000)) as user:
        sender, receiver = (user.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) for _ in range(2))
        with sender, receiver:
            receiver.bind(("::1", 0))
            receiver.setsockopt(IPV6, 56, 1)
            sender.connect(receiver.getsockname())
            sender.setsockopt(IPV6, 57, header)
            assert sender.getsockopt(IPV6, 57, 100) == header
            sender.send(b"x")
            assert told(receiver) == [(IPV6, 57, b"\x11" + header[1:])]
            sender.setsockopt(IPV6, 57, b"")
            sender.sendmsg([b"x"], [(IPV6, 57, header)])
            assert told(receiver) == [(IPV6, 57, b"\x11" + header[1:])]
            sender.send(b"plain")
            assert told(receiver) == []
            for bad in (bytes(8), bytes((0, 0, 4, 1, 0, 0, 0, 0)), bytes((0, 1)) + header[2:]):
                assert code(sender.setsockopt, IPV6, 57, bad) == errno.EINVAL
                assert code(sender.sendmsg, [b"x"], [(IPV6, 57, bad)]) == errno.EINVAL


def test_opt_ipv6_dontfrag_mtu_and_pathmtu(world: World) -> None:
    """IPV6_DONTFRAG: too long for the path is EMSGSIZE instead of fragments; IPV6_MTU shortens the path; IPV6_PATHMTU
    tells it.
    """
    sender, receiver = pair(world, kernel.AF_INET6)
    with sender, receiver:
        path = sender.getsockopt(IPV6, 24)
        assert path in (65535, 65536)
        assert struct.unpack_from("@I", sender.getsockopt(IPV6, 61, 32), 28)[0] == path
        sender.setsockopt(IPV6, 24, 1280)
        sender.send(bytes(2000))
        assert len(receiver.recv(3000)) == 2000
        sender.setsockopt(IPV6, 62, 1)
        assert code(sender.send, bytes(2000)) == errno.EMSGSIZE
        sender.sendmsg([bytes(2000)], [(IPV6, 62, number(0))])
        assert len(receiver.recv(3000)) == 2000
        sender.send(bytes(1232))
        assert len(receiver.recv(3000)) == 1232


def test_opt_ipv6_recvpathmtu(world: World) -> None:
    """IPV6_RECVPATHMTU: after a datagram that was too long for the path, an empty message tells its MTU, once."""
    sender, receiver = pair(world, kernel.AF_INET6)
    with sender, receiver:
        for option, value in ((24, 1280), (62, 1), (60, 1)):
            sender.setsockopt(IPV6, option, value)
        assert code(sender.send, bytes(2000)) == errno.EMSGSIZE
        sender.setblocking(False)  # poll does not tell of it
        data, ancillary, flags, address = sender.recvmsg(99, 99)
        assert (data, flags, address) == (b"", 0, ("::1", 0, 0, 0))
        ((level, kind, info),) = ancillary
        assert (level, kind) == (IPV6, 61)
        assert (info[8:24], info[28:32]) == (kernel.inet_pton(kernel.AF_INET6, "::1"), struct.pack("@I", 1280))
        assert empty(sender)


def test_opt_ipv6_recvorigdstaddr(world: World) -> None:
    """IPV6_RECVORIGDSTADDR tells the address and port a datagram was for."""
    sender, receiver = pair(world, kernel.AF_INET6)
    with sender, receiver:
        receiver.setsockopt(IPV6, 74, 1)
        sender.send(b"x")
        ((level, kind, data),) = told(receiver)
        assert (level, kind) == (IPV6, 74)
        assert data[2:4] == struct.pack("!H", receiver.getsockname()[1])
        assert data[8:24] == kernel.inet_pton(kernel.AF_INET6, "::1")


def test_opt_ipv6_addr_preferences_of_opposites_one(world: World) -> None:
    """IPV6_ADDR_PREFERENCES: of temporary, public and either at most one."""
    with datagram(world, kernel.AF_INET6) as sock:
        assert sock.getsockopt(IPV6, 72) == 0x500
        sock.setsockopt(IPV6, 72, 2)
        assert sock.getsockopt(IPV6, 72) & 3 == 2
        assert code(sock.setsockopt, IPV6, 72, 3) == errno.EINVAL


def test_opt_ipv6_link_local_addresses_need_their_link() -> None:
    """A link-local peer is on the link its scope names: without one EINVAL; senders' addresses come with theirs."""
    with Network() as network:
        gw, others = two_ways(network)
        with (
            gw.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as sock,
            others[1].socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as peer,
        ):
            peer.bind(("::", 5000))
            address = "fe80::2"
            assert code(sock.connect, (address, 5000)) == errno.EINVAL
            scope = gw.socket.if_nametoindex("eth1")
            sock.sendto(b"x", (address, 5000, 0, scope))
            data, source = peer.recvfrom(9)
            assert data == b"x"
            assert source[3] == others[1].socket.if_nametoindex("eth0")
            peer.sendto(b"back", source)
            assert sock.recv(9) == b"back"
            sock.connect((address + "%eth1", 5000))
            assert sock.getpeername() == (address, 5000, 0, scope)
            sock.send(b"connected")
            assert peer.recv(20) == b"connected"


# -- UDP --------------------------------------------------------------------------------------------------------------


def test_opt_udp_cork(world: World) -> None:
    """UDP_CORK: what is sent is one datagram, which leaves when the option is cleared."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.setsockopt(UDP, 1, 1)
        sender.send(b"one")
        sender.send(b"two")
        assert empty(receiver)
        sender.setsockopt(UDP, 1, 0)
        assert receiver.recv(20) == b"onetwo"
        sender.send(b"alone")
        assert receiver.recv(20) == b"alone"


@pytest.mark.parametrize("family", BOTH, ids=["v4", "v6"])
def test_opt_udp_segment_cuts_what_is_sent(world: World, family: int) -> None:
    """UDP_SEGMENT: data is cut into datagrams of that size, the last one shorter; a control message does it once; more
    than 128 of them are EINVAL, too long for the path is EMSGSIZE.
    """
    sender, receiver = pair(world, family)
    with sender, receiver:
        sender.setsockopt(UDP, 103, 4)
        sender.send(b"abcdefghij")
        assert [receiver.recv(99) for _ in range(3)] == [b"abcd", b"efgh", b"ij"]
        sender.send(b"abc")
        assert receiver.recv(99) == b"abc"
        sender.setsockopt(UDP, 103, 0)
        sender.sendmsg([b"abc", b"de"], [(UDP, 103, struct.pack("@H", 3))])
        assert [receiver.recv(99) for _ in range(2)] == [b"abc", b"de"]
        sender.send(b"whole again")
        assert receiver.recv(99) == b"whole again"
        sender.setsockopt(UDP, 103, 100)
        assert code(sender.send, bytes(12_801)) == errno.EINVAL
        assert sender.send(bytes(6400)) == 6400
        assert sum(len(receiver.recv(999)) for _ in range(64)) == 6400
        assert code(sender.setsockopt, UDP, 103, 65536) == errno.EINVAL
        assert code(sender.send, bytes(65508 if family == kernel.AF_INET else 65528)) == errno.EMSGSIZE


@pytest.mark.parametrize("family", BOTH, ids=["v4", "v6"])
def test_opt_udp_gro_keeps_them_together(world: World, family: int) -> None:
    """UDP_GRO: what was sent with UDP_SEGMENT comes as one, and a control message tells the pieces' size; short of
    room it is cut like any datagram.
    """
    sender, receiver = pair(world, family)
    with sender, receiver:
        receiver.setsockopt(UDP, 104, 1)
        sender.sendmsg([b"abcdefghij"], [(UDP, 103, struct.pack("@H", 4))])
        data, ancillary, flags, _ = receiver.recvmsg(99, 99)
        assert (data, ancillary, flags) == (b"abcdefghij", [(UDP, 104, number(4))], 0)
        sender.send(b"plain")
        assert receiver.recvmsg(99, 99)[:2] == (b"plain", [])
        sender.sendmsg([b"abcdefghij"], [(UDP, 103, struct.pack("@H", 4))])
        data, ancillary, flags, _ = receiver.recvmsg(5, 99)
        assert (data, ancillary, flags) == (b"abcde", [(UDP, 104, number(4))], kernel.MSG_TRUNC)


def test_opt_udp_no_check6(world: World) -> None:
    """UDP_NO_CHECK6_TX sends no checksum over IPv6, which only who set UDP_NO_CHECK6_RX takes (RFC 6936)."""
    sender, receiver = pair(world, kernel.AF_INET6)
    with sender, receiver:
        sender.setsockopt(UDP, 101, 1)
        sender.send(b"lost")
        assert empty(receiver)
        receiver.setsockopt(UDP, 102, 1)
        sender.send(b"taken")
        assert receiver.recv(9) == b"taken"
        sender.setsockopt(UDP, 101, 0)
        sender.send(b"with")
        assert receiver.recv(9) == b"with"
        sender.setsockopt(UDP, 101, 1)
        assert code(sender.sendmsg, [b"x" * 9], [(UDP, 103, struct.pack("@H", 5))]) == errno.EINVAL


def test_opt_udp_encap_kinds(world: World) -> None:
    """UDP_ENCAP: ESP in UDP and L2TP are known, others ENOPROTOOPT."""
    with datagram(world) as sock:
        for value in (2, 0):
            sock.setsockopt(UDP, 100, value)
            assert sock.getsockopt(UDP, 100) == value
        assert code(sock.setsockopt, UDP, 100, 9) == errno.ENOPROTOOPT
