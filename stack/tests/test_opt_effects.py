"""What options of IPPROTO_IP and IPPROTO_IPV6 do, one by one, on the kernel's sockets and on ours (section 2.2)."""

from __future__ import annotations

import errno
import os
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.tests.kernel_twin import LOOPBACK, World, code
from stack.tests.test_opt_datagram import datagram, number, pair, told
from stack.wire.checksum import checksum, pseudo_sum

IP, IPV6, SOL = kernel.IPPROTO_IP, kernel.IPPROTO_IPV6, kernel.SOL_SOCKET
HERE = {kernel.AF_INET: LOOPBACK, kernel.AF_INET6: "::1"}
BOTH = (kernel.AF_INET, kernel.AF_INET6)
HERE4, HERE6 = kernel.inet_aton(LOOPBACK), bytes(15) + b"\1"

#: Where a Stack and the kernel part.
DIFFERENCES = {
    "IPV6_2292PKTOPTIONS": "Linux also sets sticky options by it; a Stack has it to be read only",
}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def needs_root(world: World) -> None:
    if world.network is None and os.geteuid():
        pytest.skip("the kernel lets only root make raw sockets")


def raw(world: World, family: int, protocol: int = kernel.IPPROTO_RAW) -> Any:
    needs_root(world)
    sock = world.socket.socket(family, kernel.SOCK_RAW, protocol)
    sock.settimeout(10)
    return sock


def tcp(world: World, family: kernel.AddressFamily) -> tuple[Any, Any, Any]:
    listener = world.socket.socket(family)
    listener.bind((HERE[family], 0))
    listener.listen()
    client = world.socket.socket(family)
    client.settimeout(10)
    client.connect(listener.getsockname())
    served, _ = listener.accept()
    served.settimeout(10)
    return listener, client, served


# -- options in the header --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "came", "echo"),
    [
        ("0707040000000000", "0707087f00000100", "0707087f00000100"),
        ("070b04000000000000000000", "070b0c7f0000017f00000100", "070b0c7f0000017f00000100"),
        ("01010101", "01010101", ""),
        ("0107070400000000", "010707087f000001", "0707087f00000100"),
        ("94040000", "94040000", ""),
        ("820b00000000000000000000", "820b00000000000000000000", ""),
    ],
)
def test_opt_ip_retopts_are_what_a_reply_would_carry(world: World, sent: str, came: str, echo: str) -> None:
    """IP_RETOPTS tells the records of the options that came, IP_RECVOPTS all of them; sender and receiver have written
    themselves into those of IP_OPTIONS that record.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(IP, 6, 1)
        receiver.setsockopt(IP, 7, 1)
        sender.setsockopt(IP, 4, bytes.fromhex(sent))
        assert sender.getsockopt(IP, 4, 40).hex() == sent
        sender.send(b"x")
        assert told(receiver) == [(IP, 6, bytes.fromhex(came)), (IP, 7, bytes.fromhex(echo))]


@pytest.mark.parametrize("flags", [0, 1])
def test_opt_ip_options_timestamps(world: World, flags: int) -> None:
    """IP_OPTIONS with a timestamp option: sender and receiver write the time, with their addresses if asked for."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(IP, 6, 1)
        sender.setsockopt(IP, 4, bytes((68, 20, 5, flags)) + bytes(16))
        sender.send(b"x")
        [(_, _, data)] = told(receiver)
        entries = 8 if flags else 4
        assert data[:4] == bytes((68, 20, 5 + 2 * entries, flags))
        if flags:
            assert data[4:8] == data[12:16] == HERE4
        first, second = (int.from_bytes(data[at : at + 4], "big") for at in ((8, 16) if flags else (4, 8)))
        assert first <= second <= first + 10_000


def test_opt_ip_nodefrag_leaves_fragments_as_they_are(world: World) -> None:
    """IP_NODEFRAG: raw sockets only, ENOPROTOOPT else; fragments leave as they were written either way."""
    with raw(world, kernel.AF_INET) as sock, datagram(world) as receiver:
        receiver.bind((LOOPBACK, 0))
        assert code(receiver.setsockopt, IP, 22, 1) == errno.ENOPROTOOPT
        assert (receiver.getsockopt(IP, 22), sock.getsockopt(IP, 22)) == (0, 0)
        for value in (1, 0):
            sock.setsockopt(IP, 22, value)
            assert sock.getsockopt(IP, 22) == value
            send_fragments4(sock, receiver.getsockname()[1], 16)
            assert receiver.recv(99) == bytes(40)


def send_fragments4(sock: Any, port: int, cut: int) -> None:
    """A datagram of 40 bytes in two fragments, the first with `cut` bytes."""
    whole = struct.pack("!HHHH", 9, port, 48, 0) + bytes(40)
    for at, more in ((0, 0x2000), (cut, 0)):
        part = whole[:cut] if more else whole[cut:]
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(part), 7000 + cut, more | at // 8, 64, 17, 0, HERE4, HERE4
        )
        sock.sendto(header + part, (LOOPBACK, 0))


def send_fragments6(sock: Any, port: int, cut: int) -> None:
    whole = bytearray(struct.pack("!HHHH", 9, port, 48, 0) + bytes(40))
    whole[6:8] = checksum(whole, pseudo_sum(HERE6, HERE6, 17, len(whole))).to_bytes(2, "big")
    for at, more in ((0, 1), (cut, 0)):
        part = bytes(whole[:cut] if more else whole[cut:])
        fragment = struct.pack("!BBHI", 17, 0, at | more, 7000 + cut)
        header = struct.pack("!IHBB16s16s", 6 << 28, len(fragment + part), 44, 64, HERE6, HERE6)
        sock.sendto(header + fragment + part, ("::1", 0))


@pytest.mark.parametrize(("cut", "largest"), [(16, 32), (24, 24), (32, 32)])
def test_opt_ip_recvfragsize_and_ipv6_recvfragsize(world: World, cut: int, largest: int) -> None:
    """IP_RECVFRAGSIZE, IPV6_RECVFRAGSIZE: the length, with headers, of the longest fragment a datagram came in; nothing
    of what came whole.
    """
    for family, level, option, headers, send in (
        (kernel.AF_INET, IP, 25, 20, send_fragments4),
        (kernel.AF_INET6, IPV6, 77, 48, send_fragments6),
    ):
        with raw(world, family) as sock, datagram(world, family) as receiver:
            receiver.bind((HERE[family], 0))
            receiver.setsockopt(level, option, 1)
            send(sock, receiver.getsockname()[1], cut)
            assert told(receiver) == [(level, option, number(largest + headers))]
            receiver.sendto(b"x", receiver.getsockname())
            assert told(receiver) == []


def extension(*, good: bool = True) -> bytes:
    """RFC 4884: version 2 with one object of eight bytes."""
    body = struct.pack("!BBHHBBI", 0x20, 0, 0, 8, 1, 1, 0x12345678)
    return body[:2] + checksum(body).to_bytes(2, "big") + body[4:] if good else body[:2] + b"\x12\x34" + body[4:]


@pytest.mark.parametrize(("wanted", "good"), [(0, True), (1, True), (1, False)])
def test_opt_ip_recverr_rfc4884_and_ipv6_recverr_rfc4884(world: World, wanted: int, good: bool) -> None:
    """IP_RECVERR_RFC4884, IPV6_RECVERR_RFC4884: an entry of the error queue (IP_RECVERR, IPV6_RECVERR) tells where in
    its data the ICMP message's extensions begin, and whether they make sense.
    """
    for family, level in zip(BOTH, (IP, IPV6), strict=True):
        six = family == kernel.AF_INET6
        with raw(world, family, 58 if six else 1) as icmp, datagram(world, family) as sock:
            sock.bind((HERE[family], 0))
            sock.connect((HERE[family], 9))
            sock.setsockopt(level, 25 if six else 11, 1)
            sock.setsockopt(level, 31 if six else 26, wanted)
            udp = struct.pack("!HHHH", sock.getsockname()[1], 9, 108, 0)
            if six:
                quoted = struct.pack("!IHBB16s16s", 6 << 28, 108, 17, 64, HERE6, HERE6) + udp
                message = bytearray(bytes((1, 4, 0, 0, 16, 0, 0, 0)))
            else:
                quoted = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 128, 1, 0, 64, 17, 0, HERE4, HERE4) + udp
                message = bytearray(bytes((3, 3, 0, 0, 0, 32, 0, 0)))
            message += quoted.ljust(128, b"d") + extension(good=good)
            if not six:
                message[2:4] = checksum(message).to_bytes(2, "big")
            icmp.sendto(bytes(message), (HERE[family], 0))
            data, [(_, _, entry)], _, _ = receive_error(world, sock)
            offset = 128 - len(quoted)
            assert data[offset:] == extension(good=good)
            told_at, told_flags = struct.unpack_from("@HB", entry, 12)
            assert (told_at, told_flags) == ((offset, int(not good)) if wanted else (0, 0))


def receive_error(world: World, sock: Any) -> Any:
    for _ in range(1000):
        try:
            return sock.recvmsg(300, 300, kernel.MSG_ERRQUEUE)
        except BlockingIOError:
            world.settle(sock, 8)
    raise AssertionError("no entry")


def test_opt_ip_checksum_and_passsec_tell_nothing(world: World) -> None:
    """IP_CHECKSUM needs a card that sums whole packets, IP_PASSSEC a security module: without them nothing is told."""
    sender, receiver = pair(world)
    with sender, receiver:
        for option in (23, 18):
            receiver.setsockopt(IP, option, 1)
            assert receiver.getsockopt(IP, option) == 1
        sender.send(b"x")
        assert told(receiver) == []


def test_opt_ip_protocol_is_the_number_it_goes_by(world: World) -> None:
    """IP_PROTOCOL: read-only; of a raw socket its protocol, of others their port."""
    with datagram(world) as sock:
        sock.bind((LOOPBACK, 0))
        assert sock.getsockopt(IP, 52) == sock.getsockname()[1]
        assert code(sock.setsockopt, IP, 52, 1) == errno.ENOPROTOOPT
    with raw(world, kernel.AF_INET, 17) as sock:
        assert sock.getsockopt(IP, 52) == 17


# -- who may be how far away ------------------------------------------------------------------------------------------


def hops(family: int) -> tuple[int, int]:
    return (IP, kernel.IP_TTL) if family == kernel.AF_INET else (IPV6, kernel.IPV6_UNICAST_HOPS)


@pytest.mark.parametrize("family", BOTH)
def test_opt_ip_minttl_and_ipv6_minhopcount(world: World, family: kernel.AddressFamily) -> None:
    """IP_MINTTL, IPV6_MINHOPCOUNT (RFC 5082): a TCP socket drops segments that have come farther; what is sent again
    from nearer arrives. UDP sockets take it and do nothing.
    """
    option = (IP, 21) if family == kernel.AF_INET else (IPV6, 73)
    listener, client, served = tcp(world, family)
    with listener, client, served:
        served.setsockopt(*option, 255)
        client.send(b"from afar")
        served.settimeout(0.1)
        with pytest.raises(TimeoutError):
            served.recv(99)
        client.setsockopt(*hops(family), 255)
        served.settimeout(10)
        assert served.recv(99) == b"from afar"
        client.send(b"near")
        assert served.recv(99) == b"near"
        listener.setsockopt(*option, 255)
        with world.socket.socket(family) as far:
            far.settimeout(0.1)
            with pytest.raises(TimeoutError):
                far.connect(listener.getsockname())
        with world.socket.socket(family) as near:
            near.setsockopt(*hops(family), 255)
            near.settimeout(10)
            near.connect(listener.getsockname())
    sender, receiver = pair(world, family)
    with sender, receiver:
        receiver.setsockopt(*option, 255)
        sender.send(b"x")
        assert receiver.recv(9) == b"x"


# -- what a TCP socket tells of packets -------------------------------------------------------------------------------


def laid_out(data: bytes) -> list[tuple[int, int, bytes]]:
    """The control messages in a buffer."""
    found = []
    while len(data) >= 16:
        length, level, kind = struct.unpack_from("@Nii", data)
        found.append((level, kind, data[16:length]))
        data = data[(length + 7) & ~7 :]
    return found


def test_opt_ip_pktoptions_of_tcp(world: World) -> None:
    """IP_PKTOPTIONS: of an accepted connection the interface, TTL and TOS its handshake came with, as IP_PKTINFO,
    IP_RECVTTL and IP_RECVTOS ask; less room cuts. ENOPROTOOPT for others.
    """
    lo = world.socket.if_nametoindex("lo")
    with world.socket.socket() as listener, world.socket.socket() as client:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        client.setsockopt(IP, kernel.IP_TTL, 33)
        client.setsockopt(IP, kernel.IP_TOS, 0x20)
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            assert served.getsockopt(IP, 9, 200) == b""
            for option in (8, 12, 13):
                served.setsockopt(IP, option, 1)
                client.setsockopt(IP, option, 1)
            expected = [(IP, 8, struct.pack("@i4s4s", lo, HERE4, HERE4)), (IP, 2, number(33)), (IP, 1, number(0x20))]
            assert laid_out(served.getsockopt(IP, 9, 200)) == expected
            assert laid_out(served.getsockopt(IP, 9, 20)) == [(IP, 8, number(lo))]
            fresh = [(IP, 8, struct.pack("@i4s4s", 0, HERE4, HERE4)), (IP, 2, number(1)), (IP, 1, number(0))]
            assert laid_out(client.getsockopt(IP, 9, 200)) == fresh
            assert code(served.setsockopt, IP, 9, b"") == errno.ENOPROTOOPT
    with datagram(world) as sock:
        assert code(sock.getsockopt, IP, 9, 200) == errno.ENOPROTOOPT


def test_opt_ipv6_2292pktoptions_of_tcp(world: World) -> None:
    """IPV6_2292PKTOPTIONS of a TCP socket: of the latest segment what IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT,
    IPV6_RECVTCLASS, IPV6_2292PKTINFO and IPV6_2292HOPLIMIT ask for.
    """
    lo = world.socket.if_nametoindex("lo")
    listener, client, served = tcp(world, kernel.AF_INET6)
    with listener, client, served:
        for option in (49, 51, 66, 2, 8):
            served.setsockopt(IPV6, option, 1)
        for limit, tos in ((33, 0x20), (44, 0x40)):
            client.setsockopt(IPV6, kernel.IPV6_UNICAST_HOPS, limit)
            client.setsockopt(IPV6, kernel.IPV6_TCLASS, tos)
            client.send(b"x")
            assert served.recv(9) == b"x"
            info = HERE6 + number(lo)
            assert laid_out(served.getsockopt(IPV6, 6, 300)) == [
                *((IPV6, 50, info), (IPV6, 52, number(limit)), (IPV6, 67, number(tos))),
                *((IPV6, 2, info), (IPV6, 8, number(limit))),
            ]


def test_opt_ipv6_2292pktinfo_and_2292hoplimit_of_datagrams(world: World) -> None:
    """IPV6_2292PKTINFO, IPV6_2292HOPLIMIT: as IPV6_RECVPKTINFO and IPV6_RECVHOPLIMIT, under their old numbers (RFC
    2292), which also set them for one datagram.
    """
    sender, receiver = pair(world, kernel.AF_INET6)
    info = HERE6 + number(world.socket.if_nametoindex("lo"))
    with sender, receiver:
        receiver.setsockopt(IPV6, 2, 1)
        receiver.setsockopt(IPV6, 8, 1)
        sender.sendmsg([b"x"], [(IPV6, 2, info), (IPV6, 8, number(7))])
        assert told(receiver) == [(IPV6, 2, info), (IPV6, 8, number(7))]


def test_opt_ipv6_recvhopopts_and_recvdstopts_are_asked_for_one_by_one(world: World) -> None:
    """IPV6_RECVHOPOPTS tells of hop-by-hop options, IPV6_RECVDSTOPTS of destination options, neither of the other's."""
    needs_root(world)
    sender, receiver = pair(world, kernel.AF_INET6)
    padding = bytes((0, 0, 1, 4, 0, 0, 0, 0))
    with sender, receiver:
        for option in (54, 59):
            sender.setsockopt(IPV6, option, padding)
        for option, kind, following in ((53, 54, b"\x3c"), (58, 59, b"\x11")):
            receiver.setsockopt(IPV6, option, 1)
            sender.send(b"x")
            assert told(receiver) == [(IPV6, kind, following + padding[1:])]
            receiver.setsockopt(IPV6, option, 0)


def test_opt_ipv6_flowinfo_send_makes_addresses_carry_labels(world: World) -> None:
    """IPV6_FLOWINFO_SEND: the flow label of an address goes into packets, and getpeername shows it; without it the
    label is passed over.
    """
    with datagram(world, kernel.AF_INET6) as receiver:
        receiver.bind(("::1", 0))
        receiver.setsockopt(IPV6, 11, 1)
        port = receiver.getsockname()[1]
        for on in (0, 1):
            with datagram(world, kernel.AF_INET6) as sender:
                sender.setsockopt(IPV6, 70, 0)
                sender.setsockopt(IPV6, 33, on)
                sender.sendto(b"x", ("::1", port, 0x12345))
                assert told(receiver) == [(IPV6, 11, b"\0\x01\x23\x45")] * on
                sender.connect(("::1", port, 0x12346))
                sender.send(b"x")
                assert told(receiver) == [(IPV6, 11, b"\0\x01\x23\x46")] * on
                assert sender.getpeername() == ("::1", port, 0x12346 * on, 0)


def test_opt_ipv6_freebind_and_ipv6_transparent(world: World) -> None:
    """IPV6_FREEBIND and IPV6_TRANSPARENT: an address that is not ours may be bound to, by TCP as by UDP."""
    needs_root(world)
    for option in (78, 75):
        for kind in (kernel.SOCK_DGRAM, kernel.SOCK_STREAM):
            with world.socket.socket(kernel.AF_INET6, kind) as sock:
                assert code(sock.bind, ("2001:db8::88", 0)) == errno.EADDRNOTAVAIL
                sock.setsockopt(IPV6, option, 1)
                sock.bind(("2001:db8::88", 0))
                assert sock.getsockname()[0] == "2001:db8::88"
