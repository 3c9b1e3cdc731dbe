"""Raw sockets, the kernel's and ours: what they get, what they send, what they refuse (raw(7), row UDP-18)."""

from __future__ import annotations

import errno
import fcntl
import os
import socket as kernel
import struct
import warnings
from collections.abc import Iterator
from typing import Any, Final

import pytest

from stack.credentials import Credentials
from stack.testing.builders import inet_checksum
from stack.tests.kernel_twin import World as Twin
from stack.tests.kernel_twin import code
from stack.tests.packet_world import (
    HUP,
    IN,
    ME4,
    ME6,
    OUT,
    PEER4,
    PEER6,
    RDHUP,
    OurWorld,
    World,
    worlds,
)

INET: Final = kernel.AF_INET
INET6: Final = kernel.AF_INET6
RAW: Final = kernel.SOCK_RAW
LO4: Final = "127.0.0.1"
LO6: Final = "::1"
TEST: Final = 253  # RFC 3692: for experimentation and testing
OTHER: Final = 254
HDRINCL: Final = 255  # IPPROTO_RAW
SOL_RAW: Final = 255


@pytest.fixture(params=["kernel", "ours"], scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from worlds(request)


@pytest.fixture
def world(node: World) -> Iterator[World]:
    yield node
    node.tidy()


def raw(world: World, proto: int = TEST, family: int = INET) -> Any:
    return world.socket(family, RAW, proto)


def header(
    *,
    words: int = 5,
    total: int = 0,
    ident: int = 0,
    fragment: int = 0,
    proto: int = TEST,
    src: str = "0.0.0.0",
    dst: str = LO4,
    version: int = 4,
) -> bytes:
    """An IPv4 header with a checksum of nothing in particular."""
    addresses = kernel.inet_aton(src), kernel.inet_aton(dst)
    return struct.pack("!BBHHHBBH4s4s", version << 4 | words, 0, total, ident, fragment, 9, proto, 0xDEAD, *addresses)


def echo(ident: int, sequence: int, data: bytes = b"", kind: int = 8) -> bytes:
    message = struct.pack("!BBHHH", kind, 0, 0, ident, sequence) + data
    return message[:2] + inet_checksum(message).to_bytes(2, "big") + message[4:]


# -- making -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "anyone"), [(INET, "0.0.0.0"), (INET6, "::")])
def test_udp_18_raw_socket_protocols(world: World, family: int, anyone: str) -> None:
    """UDP-18: any protocol but 0 (EPROTONOSUPPORT) up to 262; the protocol stands where ports stand elsewhere."""
    for proto in (1, 6, 17, 58, TEST, 255, 262):
        sock = raw(world, proto, family)
        assert (sock.type, sock.proto) == (RAW, proto)
        assert sock.getsockname()[:2] == (anyone, proto)
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_PROTOCOL) == proto
    assert code(world.socket, family, RAW, 0) == errno.EPROTONOSUPPORT
    for proto in (263, 1 << 20):
        assert code(world.socket, family, RAW, proto) == errno.EINVAL


def test_sec_03_raw_and_packet_sockets_need_cap_net_raw() -> None:
    """SEC-03: without CAP_NET_RAW SOCK_RAW and AF_PACKET are EPERM; a protocol of 0 is told first."""
    world = OurWorld()
    try:
        with world.stack.acting(Credentials.user(1000)):
            for family in (INET, INET6):
                assert code(world.socket, family, RAW, TEST) == errno.EPERM
                assert code(world.socket, family, RAW, 0) == errno.EPROTONOSUPPORT
            for kind in (RAW, kernel.SOCK_DGRAM, kernel.SOCK_STREAM):
                assert code(world.socket, kernel.AF_PACKET, kind) == errno.EPERM
        own = Credentials.user(1000).unshare_user()
        with world.stack.acting(own):
            assert code(world.socket, INET, RAW, TEST) == errno.EPERM  # its capabilities are not for this namespace
    finally:
        world.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can show what an ordinary user may not")
def test_sec_03_the_kernel_says_the_same() -> None:
    """SEC-03 on the kernel, for a process without capabilities."""
    wanted = {
        (INET, RAW, TEST): errno.EPERM,
        (INET6, RAW, TEST): errno.EPERM,
        (INET, RAW, 0): errno.EPROTONOSUPPORT,
        (kernel.AF_PACKET, RAW, 0): errno.EPERM,
        (kernel.AF_PACKET, kernel.SOCK_STREAM, 0): errno.EPERM,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads; the child does little
        pid = os.fork()
    if not pid:
        outcome = 2
        try:
            os.setresuid(65534, 65534, 65534)
            outcome = 0 if all(_refusal(*key) == value for key, value in wanted.items()) else 1
        finally:
            os._exit(outcome)
    outcome = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if outcome == 2:
        pytest.skip("there is no ordinary user to become in this user namespace")
    assert outcome == 0


def _refusal(family: int, kind: int, proto: int) -> int | None:
    try:
        kernel.socket(family, kind, proto).close()
    except OSError as error:
        return error.errno
    return None


def test_raw_fresh_socket(world: World) -> None:
    """Unconnected: send is EDESTADDRREQ, getpeername and shutdown ENOTCONN; no listening; writable at once."""
    sock = raw(world)
    assert world.bits(sock) == OUT
    assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEADDR) == 1
    assert code(sock.send, b"x") == errno.EDESTADDRREQ
    assert code(sock.getpeername) == errno.ENOTCONN
    assert code(sock.listen, 1) == errno.EOPNOTSUPP
    sock.settimeout(None)
    assert code(sock.accept) == errno.EOPNOTSUPP
    for flags_of in (sock.send, sock.recv):
        assert code(flags_of, *((b"x",) if flags_of == sock.send else (1,)), kernel.MSG_OOB) == errno.EOPNOTSUPP


def test_raw_shutdown(world: World) -> None:
    """Unconnected it is ENOTCONN, and done all the same; a shut socket still sends; both ways shut is a hang-up."""
    sock = raw(world)
    assert code(sock.shutdown, kernel.SHUT_RD) == errno.ENOTCONN
    assert world.bits(sock) == IN | OUT | RDHUP
    sock.settimeout(None)
    assert sock.recv(1) == b""
    sock.connect((LO4, 0))
    sock.shutdown(kernel.SHUT_WR)
    assert world.bits(sock) == IN | OUT | RDHUP | HUP
    assert sock.send(b"x") == 1
    assert len(sock.recv(100)) == 21  # what is there is read before the end


# -- receiving over IPv4 ----------------------------------------------------------------------------------------------


def test_udp_18_raw_ipv4_packets_come_with_their_header(world: World) -> None:
    """UDP-18: the whole packet, header included; the address tells the sender, its port is 0."""
    sock = raw(world)
    assert sock.sendto(b"payload", (LO4, 77)) == 7
    data, address = sock.recvfrom(100)
    assert (data[0], data[9], data[20:], address) == (0x45, TEST, b"payload", (LO4, 0))
    assert inet_checksum(data[:20]) == 0
    assert struct.unpack_from("!H", data, 2)[0] == 27
    assert data[6] == 0x40  # not to be cut, as by default
    assert sock.sendto(b"", (LO4, 0)) == 0
    assert len(sock.recv(100)) == 20


def test_raw_everybody_gets_a_copy(world: World) -> None:
    """Every raw socket of the protocol gets each packet, and no other does."""
    one, two, other = raw(world), raw(world), raw(world, OTHER)
    one.sendto(b"x", (LO4, 0))
    assert one.recv(100) == two.recv(100)
    assert world.nothing(other)


def test_raw_bound_and_connected(world: World) -> None:
    """bind selects by destination, connect by source; bind again and anew, but not once connected (EINVAL)."""
    sock, sender = raw(world), raw(world)
    sock.bind((LO4, 99))
    assert sock.getsockname() == (LO4, TEST)
    sender.sendto(b"no", (ME4, 0))
    sender.sendto(b"yes", (LO4, 0))
    assert sock.recv(100)[20:] == b"yes"
    assert world.nothing(sock)
    sock.bind((ME4, 0))
    assert code(sock.bind, ("192.0.2.1", 0)) == errno.EADDRNOTAVAIL
    assert sock.getsockname() == (ME4, TEST)
    sock.bind(("0.0.0.0", 0))
    sock.connect((LO4, 5))
    assert sock.getpeername() == (LO4, 5)
    assert sock.getsockname() == (LO4, TEST)
    assert code(sock.bind, ("0.0.0.0", 0)) == errno.EINVAL
    sender.sendto(b"from another address", (ME4, 0))
    sender.sendto(b"from the peer", (LO4, 0))
    assert sock.recv(100)[20:] == b"from the peer"
    assert world.nothing(sock)
    liar = raw(world, HDRINCL)
    liar.sendto(header(src=LO4, dst=ME4) + b"to another address of ours", (ME4, 0))
    assert world.nothing(sock)
    assert sock.send(b"to the peer") == 11
    assert sock.recv(100)[20:] == b"to the peer"


def test_raw_and_the_protocol_itself(world: World) -> None:
    """A raw socket for UDP sees datagrams that UDP delivers, too."""
    sniffer = raw(world, 17)
    with world.socket(INET, kernel.SOCK_DGRAM) as receiver, world.socket(INET, kernel.SOCK_DGRAM) as sender:
        receiver.bind((LO4, 0))
        sender.sendto(b"datagram", receiver.getsockname())
        assert sniffer.recv(100)[28:] == b"datagram"
        assert receiver.recv(100) == b"datagram"


def test_raw_truncation(world: World) -> None:
    """MSG_TRUNC as for datagrams; MSG_PEEK leaves the packet; MSG_WAITALL changes nothing."""
    sock = raw(world)
    sock.sendto(b"payload", (LO4, 0))
    assert len(sock.recv(20, kernel.MSG_PEEK)) == 20
    data, _, flags, _ = sock.recvmsg(22, 0, kernel.MSG_PEEK)
    assert (data[20:], flags) == (b"pa", kernel.MSG_TRUNC)
    assert sock.recv_into(bytearray(5), 5, kernel.MSG_TRUNC) == 27
    sock.sendto(b"payload", (LO4, 0))
    assert len(sock.recv(100, kernel.MSG_WAITALL)) == 27


def test_raw_fragments_arrive_whole(world: World) -> None:
    """What is too long for the link is cut, unless IP_MTU_DISCOVER says DO; receivers see the whole."""
    watcher = world.packet(RAW, 0x0800, "vb")
    sock = raw(world)
    assert sock.sendto(bytes(3000), (PEER4, 0)) == 3000
    assert sum(len(watcher.recv(2000)) - 34 for _ in range(3)) == 3000
    sock.setsockopt(0, 10, 2)  # IP_PMTUDISC_DO
    assert code(sock.sendto, bytes(1481), (PEER4, 0)) == errno.EMSGSIZE
    assert sock.sendto(bytes(1480), (PEER4, 0)) == 1480
    sock.setsockopt(0, 10, 1)
    fresh = raw(world)
    assert fresh.sendto(bytes(65515), (LO4, 0)) == 65515
    assert len(fresh.recv(70000)) == 65535
    assert code(fresh.sendto, bytes(65516), (LO4, 0)) == errno.EMSGSIZE


def test_raw_routes(world: World) -> None:
    """No route is ENETUNREACH; a broadcast address wants SO_BROADCAST (EACCES)."""
    sock = raw(world)
    assert code(sock.sendto, b"x", ("192.0.2.1", 0)) == errno.ENETUNREACH
    assert code(sock.sendto, b"x", ("10.9.0.255", 0)) == errno.EACCES
    assert code(sock.connect, ("10.9.0.255", 0)) == errno.EACCES
    sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_BROADCAST, 1)
    assert sock.sendto(b"x", ("10.9.0.255", 0)) == 1
    sock.bind((LO4, 0))
    assert code(sock.sendto, b"x" * 70000, (LO4, 0)) == errno.EMSGSIZE


# -- headers written by the user --------------------------------------------------------------------------------------


def test_udp_18_hdrincl_what_is_filled_in(world: World) -> None:
    """UDP-18, OPT IP 3: checksum and total length always, source and identification if they are 0."""
    sock, receiver = raw(world, HDRINCL), raw(world)
    assert sock.getsockopt(0, 3) == 1
    assert sock.sendto(header(total=9) + b"DATA", (LO4, 0)) == 24
    data, address = receiver.recvfrom(100)
    assert inet_checksum(data[:20]) == 0
    assert (data[2:4], data[8:10], data[12:16], data[20:]) == (b"\0\x18", b"\x09\xfd", b"\x7f\0\0\1", b"DATA")
    assert data[4:6] != b"\0\0"
    assert address == (LO4, 0)
    sock.sendto(header(ident=77, src=ME4) + b"DATA", (LO4, 0))
    data, address = receiver.recvfrom(100)
    assert (data[4:6], address) == (b"\0\x4d", (ME4, 0))
    sock.sendto(header(fragment=0x4000) + b"DATA", (LO4, 0))
    assert receiver.recv(100)[4:8] == b"\0\0\x40\0"  # DF: an identification of 0 stays
    sock.sendto(header(words=6) + b"\1\1\1\0DATA", (LO4, 0))
    data = receiver.recv(100)
    assert (data[0], inet_checksum(data[:24]), data[24:]) == (0x46, 0, b"DATA")


def test_opt_ip_hdrincl_lies_are_sent(world: World) -> None:
    """A foreign source is sent; the address of the call decides where to, whatever the header says."""
    sock, receiver = raw(world, HDRINCL), raw(world)
    sock.sendto(header(src="198.51.100.7") + b"DATA", (LO4, 0))
    assert receiver.recvfrom(100)[1] == ("198.51.100.7", 0)
    watcher = world.packet(RAW, 0x0800, "vb")
    sock.sendto(header(dst="203.0.113.9") + b"DATA", (PEER4, 0))
    assert watcher.recv(100)[30:34] == kernel.inet_aton("203.0.113.9")
    assert sock.sendto(header(version=6) + b"DATA", (LO4, 0)) == 24


@pytest.mark.parametrize("packet", [b"", b"x" * 19, header(words=4) + b"DATA", header(words=15), header(words=0)])
def test_hdrincl_headers_that_are_none(world: World, packet: bytes) -> None:
    """Too short, or a header length that cannot be: EINVAL."""
    assert code(raw(world, HDRINCL).sendto, packet, (LO4, 0)) == errno.EINVAL


def test_hdrincl_is_not_fragmented(world: World) -> None:
    """What is longer than the link's MTU is EMSGSIZE."""
    sock = raw(world, HDRINCL)
    assert sock.sendto(header(dst=PEER4) + bytes(1480), (PEER4, 0)) == 1500
    assert code(sock.sendto, header(dst=PEER4) + bytes(1481), (PEER4, 0)) == errno.EMSGSIZE


def test_udp_18_hdrincl_option(world: World) -> None:
    """OPT IP 3: settable on any raw socket and back; elsewhere it reads as 0 and is ENOPROTOOPT to set."""
    sock = raw(world)
    assert sock.getsockopt(0, 3) == 0
    sock.setsockopt(0, 3, 1)
    assert sock.getsockopt(0, 3) == 1
    sock.sendto(header() + b"DATA", (LO4, 0))
    assert sock.recv(100)[20:] == b"DATA"
    sock.setsockopt(0, 3, 0)
    sock.sendto(b"DATA", (LO4, 0))
    assert sock.recv(100)[20:] == b"DATA"
    for kind in (kernel.SOCK_STREAM, kernel.SOCK_DGRAM):
        plain = world.socket(INET, kind)
        assert plain.getsockopt(0, 3) == 0
        assert code(plain.setsockopt, 0, 3, 1) == errno.ENOPROTOOPT


# -- ICMP -------------------------------------------------------------------------------------------------------------


def test_raw_icmp_sees_requests_and_replies(world: World) -> None:
    """A raw ICMP socket sees every message, and the host answers echo requests all the same."""
    sock = raw(world, 1)
    sock.sendto(echo(7, 1, b"hey"), (LO4, 0))
    assert sock.recv(100)[20:] == echo(7, 1, b"hey")
    assert sock.recv(100)[20:] == echo(7, 1, b"hey", kind=0)


def test_opt_icmp_filter_of_raw_sockets(world: World) -> None:
    """ICMP_FILTER: a mask of types not to see; short values change the beginning, long ones are cut."""
    sock = raw(world, 1)
    assert sock.getsockopt(SOL_RAW, 1, 4) == bytes(4)
    sock.setsockopt(SOL_RAW, 1, struct.pack("@I", 0xFFFFFFFF & ~(1 << 0)))
    sock.sendto(echo(7, 1), (LO4, 0))
    assert sock.recv(100)[20] == 0
    assert world.nothing(sock)
    sock.setsockopt(SOL_RAW, 1, bytes(8))
    assert sock.getsockopt(SOL_RAW, 1, 8) == bytes(4)
    sock.setsockopt(SOL_RAW, 1, b"\xff")
    assert sock.getsockopt(SOL_RAW, 1, 4) == b"\xff\0\0\0"
    assert sock.getsockopt(SOL_RAW, 1, 2) == b"\xff\0"
    other = raw(world)
    assert code(other.setsockopt, SOL_RAW, 1, bytes(4)) == errno.EOPNOTSUPP
    assert code(other.getsockopt, SOL_RAW, 1) == errno.EOPNOTSUPP
    assert code(sock.setsockopt, SOL_RAW, 9, 1) == errno.ENOPROTOOPT
    assert code(sock.getsockopt, SOL_RAW, 9) == errno.ENOPROTOOPT


def test_raw_errors_reach_connected_sockets(world: World) -> None:
    """A final ICMP error is the connected socket's pending error, once; an unconnected one does not hear of it."""
    connected, unconnected = raw(world, 17), raw(world, 17)
    connected.connect((LO4, 0))
    port = _closed_port(world)
    connected.send(struct.pack("!HHHH", 1000, port, 8, 0))
    world.await_error(connected)
    assert code(connected.recv, 100) == errno.ECONNREFUSED
    assert connected.recv(100)[20:22] == struct.pack("!H", 1000)
    assert unconnected.recv(100)[20:22] == struct.pack("!H", 1000)
    assert world.nothing(connected)


def _closed_port(world: World) -> int:
    with world.socket(INET, kernel.SOCK_DGRAM) as sock:
        sock.bind((LO4, 0))
        port: int = sock.getsockname()[1]
    world.let_go()
    return port


def test_raw_sockets_make_a_protocol_known(world: World) -> None:
    """Without a raw socket a protocol nobody has is reported to its sender; with one it is not."""
    watcher = raw(world, 1)
    sender = raw(world, HDRINCL)
    sender.sendto(header(proto=OTHER) + b"12345678", (LO4, 0))
    assert watcher.recv(100)[20:22] == b"\x03\x02"
    taker = raw(world, OTHER)
    sender.sendto(header(proto=OTHER) + b"12345678", (LO4, 0))
    assert taker.recv(100)[20:] == b"12345678"
    assert world.nothing(watcher)
    taker.close()
    world.let_go()
    sender.sendto(header(proto=OTHER) + b"12345678", (LO4, 0))
    assert watcher.recv(100)[20:22] == b"\x03\x02"


# -- IPv6 -------------------------------------------------------------------------------------------------------------


def test_udp_18_raw_ipv6_packets_come_without_header(world: World) -> None:
    """UDP-18, RFC 3542 3: the payload alone; the port of a destination must be 0 or the protocol (EINVAL)."""
    sock = raw(world, TEST, INET6)
    assert sock.sendto(b"payload", (LO6, 0)) == 7
    assert sock.recvfrom(100) == (b"payload", (LO6, 0, 0, 0))
    assert sock.sendto(b"payload", (LO6, TEST)) == 7
    assert sock.recv(100) == b"payload"
    assert code(sock.sendto, b"payload", (LO6, OTHER)) == errno.EINVAL
    assert code(sock.sendto, b"payload", (f"::ffff:{LO4}", 0)) == errno.ENETUNREACH


def test_raw_ipv6_bound_and_connected(world: World) -> None:
    """As for IPv4; a mapped address is EADDRNOTAVAIL."""
    sock, sender = raw(world, TEST, INET6), raw(world, TEST, INET6)
    assert code(sock.bind, (f"::ffff:{LO4}", 0)) == errno.EADDRNOTAVAIL
    assert code(sock.bind, ("2001:db8::1", 0)) == errno.EADDRNOTAVAIL
    sock.bind((LO6, 9))
    assert sock.getsockname() == (LO6, TEST, 0, 0)
    sender.sendto(b"no", (ME6, 0))
    sender.sendto(b"yes", (LO6, 0))
    assert sock.recv(100) == b"yes"
    assert world.nothing(sock)
    sock.connect((LO6, 0))
    assert sock.send(b"connected") == 9
    assert sock.recv(100) == b"connected"
    assert code(sock.bind, (LO6, 0)) == errno.EINVAL


def test_opt_ipv6_checksum_is_made_and_verified(world: World) -> None:
    """RFC 3542 3.1: IPV6_CHECKSUM names an even offset where a checksum is put, and verified in what arrives."""
    sock, receiver = raw(world, TEST, INET6), raw(world, TEST, INET6)
    assert sock.getsockopt(41, 7) == -1
    for value in (1, 3):
        assert code(sock.setsockopt, 41, 7, value) == errno.EINVAL
    sock.setsockopt(41, 7, 2)
    assert sock.getsockopt(41, 7) == sock.getsockopt(SOL_RAW, 7) == 2
    for sent, summed in ((b"abcd", b"\x9d\x9a"), (b"abcde", b"\x38\x99")):
        sock.sendto(sent, (LO6, 0))
        assert receiver.recv(100) == sock.recv(100) == sent[:2] + summed + sent[4:]
    assert code(sock.sendto, b"abc", (LO6, 0)) == errno.EINVAL
    receiver.sendto(b"with a wrong one", (LO6, 0))
    assert receiver.recv(100) == b"with a wrong one"
    assert world.nothing(sock)
    sock.setsockopt(SOL_RAW, 7, -7)
    assert sock.getsockopt(41, 7) == -1
    datagram = world.socket(INET6, kernel.SOCK_DGRAM)
    assert code(datagram.setsockopt, 41, 7, 2) == errno.ENOPROTOOPT
    assert code(datagram.getsockopt, 41, 7) == errno.ENOPROTOOPT


def test_raw_icmpv6_checksum_is_always_made(world: World) -> None:
    """RFC 3542 3.1: on ICMPv6 sockets the checksum is the system's and cannot be switched off."""
    sock = raw(world, 58, INET6)
    assert sock.getsockopt(41, 7) == 2
    assert code(sock.setsockopt, 41, 7, -1) == errno.EINVAL
    sock.sendto(b"\x80\0\0\0\0\x07\0\x01hey", (LO6, 0))
    request, reply = sock.recv(100), sock.recv(100)
    assert (request[:2], request[4:]) == (b"\x80\0", b"\0\x07\0\x01hey")
    assert (reply[:2], reply[4:]) == (b"\x81\0", b"\0\x07\0\x01hey")
    assert request[2:4] != b"\0\0"


def test_opt_icmpv6_filter_of_raw_sockets(world: World) -> None:
    """RFC 3542 3.2: ICMPV6_FILTER is a mask of 256 types not to see."""
    sock = raw(world, 58, INET6)
    assert sock.getsockopt(58, 1, 40) == bytes(32)
    sock.setsockopt(58, 1, b"\xff" * 32)
    sock.setsockopt(58, 1, b"\0")
    assert sock.getsockopt(58, 1, 32) == b"\0" + b"\xff" * 31
    only_replies = bytearray(b"\xff" * 32)
    only_replies[129 // 8] ^= 1 << 129 % 8
    sock.setsockopt(58, 1, bytes(only_replies))
    sock.sendto(b"\x80\0\0\0\0\x07\0\x01hey", (LO6, 0))
    assert sock.recv(100)[0] == 129
    assert world.nothing(sock)
    other = raw(world, TEST, INET6)
    assert code(other.setsockopt, 58, 1, bytes(32)) == errno.EOPNOTSUPP
    assert code(other.getsockopt, 58, 1) == errno.EOPNOTSUPP
    assert code(sock.setsockopt, 58, 2, bytes(32)) == errno.ENOPROTOOPT


def test_opt_ipv6_hdrincl_packets_go_as_they_are(world: World) -> None:
    """IPPROTO_RAW over IPv6 sends packets as they are: EINVAL if shorter than a header, EMSGSIZE beyond the MTU."""
    sock, receiver = raw(world, HDRINCL, INET6), raw(world, TEST, INET6)
    assert sock.getsockopt(41, 36) == 1

    def packet(src: str, length: int = 4, data: bytes = b"DATA", dst: str = LO6) -> bytes:
        addresses = kernel.inet_pton(INET6, src), kernel.inet_pton(INET6, dst)
        return struct.pack("!IHBB16s16s", 6 << 28, length, TEST, 7, *addresses) + data

    assert sock.sendto(packet(LO6), (LO6, 0)) == 44
    assert receiver.recvfrom(100) == (b"DATA", (LO6, 0, 0, 0))
    sock.sendto(packet(LO6, length=2), (LO6, 0))
    assert receiver.recv(100) == b"DA"
    assert code(sock.sendto, b"x" * 39, (LO6, 0)) == errno.EINVAL
    assert sock.sendto(packet(ME6, 1460, bytes(1460), PEER6), (PEER6, 17)) == 1500
    assert code(sock.sendto, packet(ME6, 1461, bytes(1461), PEER6), (PEER6, 0)) == errno.EMSGSIZE
    assert code(sock.sendto, packet(LO6), (LO6, 300)) == errno.EINVAL
    plain = raw(world, TEST, INET6)
    plain.setsockopt(41, 36, 1)
    plain.sendto(packet(LO6), (LO6, 0))
    assert receiver.recv(100) == b"DATA"
    datagram = world.socket(INET6, kernel.SOCK_DGRAM)
    assert code(datagram.setsockopt, 41, 36, 1) == errno.ENOPROTOOPT


def test_raw_ipv6_fragments(world: World) -> None:
    """What is too long is cut by the sender, the only one who may."""
    watcher = world.packet(RAW, 0x86DD, "vb")
    raw(world, TEST, INET6).sendto(bytes(3000), (PEER6, 0))
    assert [watcher.recv(2000)[20] for _ in range(3)] == [44, 44, 44]


# -- memory -----------------------------------------------------------------------------------------------------------


def test_raw_receive_memory_is_bounded(world: World) -> None:
    """What does not fit into SO_RCVBUF is lost; the rest arrives in order."""
    sock, sender = raw(world), raw(world)
    sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 4000)
    for number in range(100):
        sender.sendto(bytes((number,)) + bytes(99), (LO4, 0))
        sender.recv(200)
    got = []
    while not _empty(sock):
        got.append(sock.recv(200)[20])
    assert got == list(range(len(got)))
    assert 1 <= len(got) <= 20


def test_raw_and_packet_sockets_tell_what_waits(world: World) -> None:
    """FIONREAD is the first packet's length, 0 without one; SIOCOUTQ is 0."""
    sock, packet = raw(world), world.packet(RAW, 0x0800, "lo")
    assert _asked(world, sock, 0x541B) == _asked(world, packet, 0x541B) == 0
    sock.sendto(b"abc", (LO4, 0))
    sock.sendto(b"longer than that", (LO4, 0))
    Twin.until(lambda: _asked(world, sock, 0x541B) > 0 and _asked(world, packet, 0x541B) > 0)
    assert _asked(world, sock, 0x541B) == 23
    assert _asked(world, packet, 0x541B) == 37
    assert _asked(world, sock, 0x5411) == 0


def _asked(world: World, sock: Any, question: int) -> int:
    answer = fcntl.ioctl(sock, question, bytes(4)) if world.is_kernel else sock.ioctl(question, bytes(4))
    return int(struct.unpack("@i", answer)[0])


def _empty(sock: Any) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(1, kernel.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(10)
    return False


def test_raw_unknown_levels(world: World) -> None:
    """Levels of other protocols: EOPNOTSUPP to read, ENOPROTOOPT to set; over IPv6 ENOPROTOOPT, also IPPROTO_IP."""
    sock = raw(world)
    for level in (6, 17, 41):
        assert code(sock.getsockopt, level, 1) == errno.EOPNOTSUPP
        assert code(sock.setsockopt, level, 1, 1) == errno.ENOPROTOOPT
    six = raw(world, TEST, INET6)
    for level in (0, 6, 17):
        for number in (1, 2):
            assert code(six.getsockopt, level, number) == errno.ENOPROTOOPT
            assert code(six.setsockopt, level, number, 1) == errno.ENOPROTOOPT


# -- control messages and the error queue -----------------------------------------------------------------------------


def test_raw_control_messages(world: World) -> None:
    """IP_PKTINFO, IP_RECVTTL, IP_RECVTOS tell of what arrives; IP_TTL, IP_TOS and IP_PKTINFO go with what is sent."""
    sock = raw(world)
    for number in (8, 12, 13):
        sock.setsockopt(0, number, 1)
    info = struct.pack("@i4s4s", 0, kernel.inet_aton(ME4), bytes(4))
    sent = [(0, 2, struct.pack("@i", 9)), (0, 1, struct.pack("@i", 0x20)), (0, 8, info)]
    assert sock.sendmsg([b"data"], sent, 0, (LO4, 0)) == 4
    data, ancillary, flags, address = sock.recvmsg(100, 200)
    assert (data[1], data[8], flags, address) == (0x20, 9, 0, (ME4, 0))
    lo = struct.pack("@i", world.index("lo"))
    loopback = kernel.inet_aton(LO4)
    assert ancillary == [(0, 8, lo + loopback * 2), (0, 2, struct.pack("@i", 9)), (0, 1, b"\x20")]
    assert code(sock.sendmsg, [b"data"], [(0, 2, b"x")], 0, (LO4, 0)) == errno.EINVAL


def test_raw_error_queue(world: World) -> None:
    """With IP_RECVERR an unconnected socket has errors pending too, and MSG_ERRQUEUE tells which packet's they are."""
    sock = raw(world, 17)
    sock.setsockopt(0, 11, 1)
    port = _closed_port(world)
    packet = struct.pack("!HHHH", 1000, port, 8, 0)
    sock.sendto(packet, (LO4, 0))
    world.await_error(sock)
    assert code(sock.recv, 100) == errno.ECONNREFUSED
    data, ancillary, flags, address = sock.recvmsg(100, 200, kernel.MSG_ERRQUEUE)
    assert (data, flags, address) == (packet, kernel.MSG_ERRQUEUE, (LO4, 0))
    assert [(level, kind) for level, kind, _ in ancillary] == [(0, 11)]
    assert ancillary[0][2][:8] == struct.pack("@IBBBB", errno.ECONNREFUSED, 2, 3, 3, 0)
    sock.settimeout(None)
    assert code(sock.recv, 1, kernel.MSG_ERRQUEUE) == errno.EAGAIN


def test_raw_groups(world: World) -> None:
    """A joined group's packets arrive, one's own among them if IP_MULTICAST_LOOP is on."""
    receiver, sender = raw(world), raw(world)
    group, me = kernel.inet_aton("239.1.2.3"), kernel.inet_aton(ME4)
    receiver.setsockopt(0, 35, group + me)
    sender.setsockopt(0, 32, me)
    sender.sendto(b"to the group", ("239.1.2.3", 0))
    data, address = receiver.recvfrom(100)
    assert (data[20:], address) == (b"to the group", (ME4, 0))
    sender.setsockopt(0, 34, 0)
    sender.sendto(b"not to ourselves", ("239.1.2.3", 0))
    assert world.nothing(receiver)
