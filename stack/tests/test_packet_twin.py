"""AF_PACKET sockets, the kernel's and ours: what they see, what they send, what they refuse (packet(7)).

The differences: none that these tests know of, on `lo` and between links of kind veth. A device that was plugged into a
Stack filters as a network card does, which a veth does not; see `test_packet_filter`.
"""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any, Final

import pytest

from stack.socket.packet.options import (
    PACKET_ADD_MEMBERSHIP,
    PACKET_AUXDATA,
    PACKET_DROP_MEMBERSHIP,
    PACKET_IGNORE_OUTGOING,
    PACKET_ORIGDEV,
    PACKET_QDISC_BYPASS,
    PACKET_STATISTICS,
    PACKET_VNET_HDR,
    PACKET_VNET_HDR_SZ,
    SOL_PACKET,
)
from stack.tests.kernel_twin import code
from stack.tests.packet_world import ERR, IN, ME4, OUT, PEER4, World, worlds

RAW: Final = kernel.SOCK_RAW
DGRAM: Final = kernel.SOCK_DGRAM
ALL: Final = 3  # ETH_P_ALL
OURS: Final = 0x88B5  # IEEE 802 local experimental ethertype 1
OTHER: Final = 0x88B6
ETHER: Final = 1
STRANGER: Final = bytes.fromhex("020000000001")
NOBODY: Final = bytes.fromhex("020000000077")
GROUP: Final = bytes.fromhex("01005e000107")
AUXDATA: Final = struct.Struct("=IIIHHHH")


@pytest.fixture(params=["kernel", "ours"], scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from worlds(request, ipv6=False)


@pytest.fixture
def world(node: World) -> Iterator[World]:
    yield node
    node.tidy()


def frame(dst: bytes, protocol: int = OURS, payload: bytes = b"hello", src: bytes = STRANGER) -> bytes:
    return dst + src + protocol.to_bytes(2, "big") + payload


# -- making and binding -----------------------------------------------------------------------------------------------


def test_packet_socket_types(world: World) -> None:
    """SOCK_RAW and SOCK_DGRAM; others are ESOCKTNOSUPPORT; SO_PROTOCOL does not tell the protocol."""
    for kind in (RAW, DGRAM):
        sock = world.packet(kind, ALL)
        assert (sock.family, sock.type) == (kernel.AF_PACKET, kind)
        assert sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_PROTOCOL) == 0
    for kind in (kernel.SOCK_STREAM, kernel.SOCK_SEQPACKET):
        assert code(world.socket, kernel.AF_PACKET, kind) == errno.ESOCKTNOSUPPORT


def test_packet_sockets_lack_what_streams_have(world: World) -> None:
    """connect, listen, accept, shutdown and getpeername are EOPNOTSUPP; sending without an interface is ENXIO."""
    sock = world.packet(RAW, ALL)
    assert code(sock.connect, ("lo", 0)) == errno.EOPNOTSUPP
    assert code(sock.listen, 1) == errno.EOPNOTSUPP
    sock.settimeout(None)
    assert code(sock.accept) == errno.EOPNOTSUPP
    assert code(sock.shutdown, kernel.SHUT_RD) == errno.EOPNOTSUPP
    assert code(sock.getpeername) == errno.EOPNOTSUPP
    assert code(sock.send, bytes(60)) == errno.ENXIO
    assert world.bits(sock) & ~IN == OUT


def test_packet_bind_and_name(world: World) -> None:
    """The name tells interface, protocol, hardware type and address; protocol 0 keeps the one there was; bind again."""
    sock = world.packet(RAW, ALL)
    assert sock.getsockname() == ("", ALL, 0, 0, b"")
    sock.bind(("va", 0))
    assert sock.getsockname() == ("va", ALL, 0, ETHER, world.mac("va"))
    sock.bind(("lo", 0x86DD))
    assert sock.getsockname() == ("lo", 0x86DD, 0, 772, bytes(6))
    assert code(sock.bind, ("", ALL)) == errno.ENODEV
    assert code(sock.bind, ("nowhere", ALL)) == errno.ENODEV


BAD_ADDRESSES: Final = [
    "lo",
    None,
    (),
    ("lo",),
    ("lo", 0, 0, 0, b"", 0),
    (b"lo", 0),
    (0, 0),
    ("lo", "x"),
    ("lo", 1.5),
    ("lo", 1 << 40),
    ("lo", -1),
    ("lo", 0x10000),
    ("lo", 0, "x"),
    ("lo", 0, 1 << 31),
    ("lo", 0, 0, None),
    ("lo", 0, 0, 0, "text"),
    ("lo", 0, 0, 0, None),
    ("lo", 0, 0, 0, 7),
    ("lo", 0, 0, 0, b"123456789"),
    ("l\0o", 0),
    ("a-name-longer-than-any-interface-has", 0),
    ("nowhere", 0x10000),
    ("nowhere", 0, 0, 0, b"123456789"),
]


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=repr)
def test_packet_addresses_of_the_wrong_shape(address: Any) -> None:
    """TypeError, ValueError, OverflowError or ENODEV, in the order CPython finds them."""
    from stack.tests.packet_world import KernelWorld, OurWorld

    caught = []
    for made in (KernelWorld, OurWorld):
        world = _standing(made)
        sock = world.packet(RAW)
        try:
            sock.bind(address)
        except (TypeError, ValueError, OverflowError) as error:
            caught.append(type(error).__name__)
        except OSError as error:
            caught.append(errno.errorcode[error.errno or 0])
        else:
            caught.append("taken")
        world.tidy()
    assert caught[0] == caught[1]


# -- receiving --------------------------------------------------------------------------------------------------------


def test_packet_raw_and_dgram_receive(world: World) -> None:
    """SOCK_RAW gets the frame with its link header, SOCK_DGRAM without; the address tells who sent it to whom."""
    raw, cooked = world.packet(RAW, OURS, "va"), world.packet(DGRAM, OURS, "va")
    sender = world.packet(RAW, 0, "vb")
    for dst, kind in ((world.mac("va"), 0), (b"\xff" * 6, 1), (GROUP, 2), (NOBODY, 3)):
        sent = frame(dst)
        assert sender.send(sent) == len(sent)
        assert raw.recvfrom(100) == (sent, ("va", OURS, kind, ETHER, STRANGER))
        assert cooked.recvfrom(100) == (sent[14:], ("va", OURS, kind, ETHER, STRANGER))


def test_packet_protocol_filter(world: World) -> None:
    """A protocol selects incoming frames; ETH_P_ALL takes every one and outgoing ones too, as PACKET_OUTGOING."""
    some, everything = world.packet(RAW, OURS, "va"), world.packet(RAW, ALL, "va")
    ours, theirs = world.packet(RAW, 0, "va"), world.packet(RAW, 0, "vb")
    theirs.send(frame(world.mac("va"), OTHER, b"another protocol"))
    ours.send(frame(NOBODY, OURS, b"out", src=world.mac("va")))
    theirs.send(frame(world.mac("va"), OURS, b"in"))
    assert some.recv(100)[14:] == b"in"
    assert world.nothing(some)
    heard = [everything.recvfrom(100) for _ in range(3)]
    assert [(data[14:], address[2]) for data, address in heard] == [(b"another protocol", 0), (b"out", 4), (b"in", 0)]
    assert heard[1][1] == ("va", OURS, 4, ETHER, world.mac("va"))


def test_packet_own_frames(world: World) -> None:
    """Who sends a frame does not see it go out; on `lo` it sees it come in."""
    sock = world.packet(RAW, ALL, "lo")
    other = world.packet(RAW, ALL, "lo")
    sent = frame(bytes(6), payload=b"own", src=bytes(6))
    sock.send(sent)
    assert sock.recvfrom(100) == (sent, ("lo", OURS, 0, 772, bytes(6)))
    assert world.nothing(sock)
    assert [other.recvfrom(100)[1][2] for _ in range(2)] == [4, 0]


def test_packet_ignore_outgoing(world: World) -> None:
    """PACKET_IGNORE_OUTGOING: only what comes in; 0 or 1, anything else is EINVAL."""
    sock, other = world.packet(RAW, ALL, "lo"), world.packet(RAW, 0, "lo")
    for value in (-1, 2):
        assert code(sock.setsockopt, SOL_PACKET, PACKET_IGNORE_OUTGOING, value) == errno.EINVAL
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    assert sock.getsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING) == 1
    other.send(frame(bytes(6)))
    assert sock.recvfrom(100)[1][2] == 0
    assert world.nothing(sock)


def test_packet_without_protocol_receives_nothing(world: World) -> None:
    """Protocol 0 is none: such a socket is for sending."""
    sock = world.packet(RAW, 0, "lo")
    sock.send(frame(bytes(6)))
    assert world.nothing(sock)


def test_packet_unbound_hears_every_interface(world: World) -> None:
    """Unbound: all interfaces; bound: one."""
    everywhere = world.packet(RAW, OURS)
    here = world.packet(RAW, OURS, "va")
    world.packet(RAW, 0, "lo").send(frame(bytes(6)))
    world.packet(RAW, 0, "vb").send(frame(world.mac("va")))
    assert [everywhere.recvfrom(100)[1][0] for _ in range(2)] == ["lo", "va"]
    assert here.recvfrom(100)[1][0] == "va"
    assert world.nothing(here)


def test_packet_sees_what_ip_sends(world: World) -> None:
    """A UDP datagram's frame, going out, and on `lo` coming in, headers and all."""
    sock = world.packet(RAW, ALL, "lo")
    with world.socket(kernel.AF_INET, DGRAM) as receiver, world.socket(kernel.AF_INET, DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(b"datagram", receiver.getsockname())
        heard = [sock.recvfrom(2000) for _ in range(2)]
    assert [address for _, address in heard] == [("lo", 0x0800, kind, 772, bytes(6)) for kind in (4, 0)]
    data = heard[0][0]
    assert data == heard[1][0]
    assert (data[:14], data[14], data[23], data[-8:]) == (bytes(12) + b"\x08\0", 0x45, 17, b"datagram")


def test_packet_length_instead_of_type(world: World) -> None:
    """IEEE 802.3 frames: ETH_P_802_2, and ETH_P_802_3 if the payload begins with 0xffff."""
    sock, sender = world.packet(RAW, ALL, "va"), world.packet(RAW, 0, "vb")
    for payload, protocol in ((b"hello", 4), (b"\xff\xffhello", 1)):
        sender.send(frame(world.mac("va"), 5, payload))
        assert sock.recvfrom(100)[1][1] == protocol


def test_packet_truncation(world: World) -> None:
    """What does not fit is lost and MSG_TRUNC tells; with MSG_TRUNC the true length is returned; MSG_PEEK leaves it."""
    sock, sender = world.packet(RAW, OURS, "va"), world.packet(RAW, 0, "vb")
    for _ in range(2):
        sender.send(frame(world.mac("va"), payload=bytes(50)))
    assert len(sock.recv(20, kernel.MSG_PEEK)) == 20
    data, _, flags, _ = sock.recvmsg(20)
    assert (len(data), flags) == (20, kernel.MSG_TRUNC)
    assert sock.recv_into(bytearray(20), 20, kernel.MSG_TRUNC) == 64
    assert world.nothing(sock)


def test_packet_receive_flags(world: World) -> None:
    """MSG_OOB and MSG_WAITALL are EINVAL; the error queue is empty: EAGAIN."""
    sock = world.packet(RAW, OURS, "va")
    sock.settimeout(None)
    assert code(sock.recv, 1, kernel.MSG_OOB) == errno.EINVAL
    assert code(sock.recv, 1, kernel.MSG_WAITALL) == errno.EINVAL
    assert code(sock.recv, 1, kernel.MSG_ERRQUEUE) == errno.EAGAIN


# -- VLAN tags, facts beside the frame --------------------------------------------------------------------------------


def test_packet_auxdata(world: World) -> None:
    """PACKET_AUXDATA: status, lengths, offset of the network header, as a control message."""
    sock, sender = world.packet(RAW, OURS, "va"), world.packet(RAW, 0, "vb")
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sender.send(frame(world.mac("va")))
    _, ancillary, flags, _ = sock.recvmsg(100, 100)
    assert flags == 0
    assert ancillary == [(SOL_PACKET, PACKET_AUXDATA, AUXDATA.pack(1, 19, 19, 0, 14, 0, 0))]


def test_packet_time_stamps(world: World) -> None:
    """SO_TIMESTAMP, SO_TIMESTAMPNS tell when a frame passed, before the auxiliary data; SO_RXQ_OVFL what was lost."""
    sock, sender = world.packet(RAW, OURS, "va"), world.packet(RAW, 0, "vb")
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    for option, unit in ((29, 1_000_000), (35, 1_000_000_000)):
        sock.setsockopt(kernel.SOL_SOCKET, option, 1)
        sender.send(frame(world.mac("va")))
        _, ancillary, _, _ = sock.recvmsg(100, 200)
        assert [(level, kind) for level, kind, _ in ancillary] == [
            (kernel.SOL_SOCKET, option),
            (SOL_PACKET, PACKET_AUXDATA),
        ]
        seconds, fraction = struct.unpack("@qq", ancillary[0][2])
        assert seconds > 0
        assert 0 <= fraction < unit
    sock.setsockopt(kernel.SOL_SOCKET, 35, 0)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 0)
    sock.setsockopt(kernel.SOL_SOCKET, 40, 1)
    sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 0)
    for _ in range(10):
        sender.send(frame(world.mac("va")))
    lost = 10
    while not world.nothing_peeked(sock):
        assert sock.recvmsg(100, 200)[1] == []
        lost -= 1
    sender.send(frame(world.mac("va")))
    assert sock.recvmsg(100, 200)[1] == [(kernel.SOL_SOCKET, 40, struct.pack("@I", lost))]


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
def test_packet_vlan_tag_is_told_beside(world: World, tpid: int) -> None:
    """The outermost tag of an incoming frame is taken off and told in the auxiliary data."""
    raw, cooked = world.packet(RAW, ALL, "va"), world.packet(DGRAM, ALL, "va")
    raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sender = world.packet(RAW, 0, "vb")
    sender.send(frame(world.mac("va"), tpid, b"\x20\x05\x88\xb5hello"))
    data, ancillary, _, address = raw.recvmsg(100, 100)
    assert (data, address[1]) == (frame(world.mac("va")), OURS)
    assert ancillary == [(SOL_PACKET, PACKET_AUXDATA, AUXDATA.pack(0x51, 19, 19, 0, 14, 0x2005, tpid))]
    assert cooked.recvfrom(100) == (b"hello", ("va", OURS, 0, ETHER, STRANGER))


def test_packet_inner_vlan_tag_stays(world: World) -> None:
    """Of two tags the inner one stays in the frame; SOCK_DGRAM is told the protocol behind it."""
    raw, cooked = world.packet(RAW, ALL, "va"), world.packet(DGRAM, ALL, "va")
    world.packet(RAW, 0, "vb").send(frame(world.mac("va"), 0x88A8, b"\x20\x05\x81\0\0\x07\x88\xb5hello"))
    data, address = raw.recvfrom(100)
    assert (data[12:], address[1]) == (b"\x81\0\0\x07\x88\xb5hello", 0x8100)
    data, address = cooked.recvfrom(100)
    assert (data, address[1]) == (b"\0\x07\x88\xb5hello", OURS)


def test_packet_tagged_frames_for_one_protocol(world: World) -> None:
    """A tag that no link here stands for makes the frame another host's to who asked for a protocol."""
    sock, sender = world.packet(RAW, OURS, "va"), world.packet(RAW, 0, "vb")
    sender.send(frame(world.mac("va"), 0x8100, b"\0\x05\x88\xb5hello"))
    assert sock.recvfrom(100)[1][2] == 3
    sender.send(frame(world.mac("va"), 0x8100, b"\0\0\x88\xb5hello"))  # priority only
    assert sock.recvfrom(100)[1][2] == 0


def test_packet_outgoing_tags_stay(world: World) -> None:
    """An outgoing frame shows its tag; its network header is behind it."""
    raw, cooked = world.packet(RAW, ALL, "va"), world.packet(DGRAM, ALL, "va")
    raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sent = frame(NOBODY, 0x8100, b"\0\x05\x88\xb5out", src=world.mac("va"))
    world.packet(RAW, 0, "va").send(sent)
    data, ancillary, _, address = raw.recvmsg(100, 100)
    assert (data, address[1:3]) == (sent, (0x8100, 4))
    assert AUXDATA.unpack(ancillary[0][2])[4] == 18
    data, address = cooked.recvfrom(100)
    assert (data, address[1:3]) == (b"out", (OURS, 4))


def test_packet_vnet_header(world: World) -> None:
    """PACKET_VNET_HDR puts the offload facts before each frame, PACKET_VNET_HDR_SZ bytes: an unfinished checksum."""
    sock = world.packet(RAW, ALL, "lo")
    assert sock.getsockopt(SOL_PACKET, PACKET_VNET_HDR) == 0
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    assert sock.getsockopt(SOL_PACKET, PACKET_VNET_HDR_SZ) == 10
    with world.socket(kernel.AF_INET, DGRAM) as receiver, world.socket(kernel.AF_INET, DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(b"datagram", receiver.getsockname())
        data, ancillary, _, _ = sock.recvmsg(2000, 100)
    flags, gso_type, _, gso_size, start, offset = struct.unpack_from("=BBHHHH", data)
    assert (flags, gso_type, gso_size, start, offset) == (1, 0, 0, 34, 6)
    assert len(data) == 10 + 14 + 20 + 8 + 8
    assert AUXDATA.unpack(ancillary[0][2])[:3] == (9, 50, 50)
    cooked = world.packet(DGRAM, ALL)
    assert code(cooked.setsockopt, SOL_PACKET, PACKET_VNET_HDR, 1) == errno.EINVAL
    assert code(sock.setsockopt, SOL_PACKET, PACKET_VNET_HDR_SZ, 11) == errno.EINVAL
    assert code(sock.recv, 9) == errno.EINVAL


def test_packet_vnet_header_sent(world: World) -> None:
    """With offload facts before it, a frame's checksum is finished on its way; facts that lie are EINVAL."""
    sender = world.packet(RAW, 0, "vb")
    sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    peer, me = kernel.inet_aton(PEER4), kernel.inet_aton(ME4)
    with world.socket(kernel.AF_INET, DGRAM) as receiver:
        receiver.bind((ME4, 0))
        pseudo = 0x0A09 * 2 + 1 + 2 + 17 + 12
        udp = struct.pack("!HHHH", 9, receiver.getsockname()[1], 12, pseudo) + b"data"
        ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 32, 1, 0, 64, 17, 0, peer, me))
        total = sum(struct.unpack("!10H", ip))
        ip[10:12] = ((total & 0xFFFF) + (total >> 16) ^ 0xFFFF).to_bytes(2, "big")
        whole = frame(world.mac("va"), 0x0800, bytes(ip) + udp)
        assert sender.send(struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 6) + whole) == len(whole) + 10
        assert receiver.recv(100) == b"data"
    assert code(sender.send, bytes(9)) == errno.EINVAL
    assert code(sender.send, struct.pack("=BBHHHH", 1, 0, 0, 0, 200, 6) + whole) == errno.EINVAL
    assert code(sender.send, struct.pack("=BBHHHH", 1, 9, 54, 1000, 34, 16) + whole) == errno.EINVAL


# -- sending ----------------------------------------------------------------------------------------------------------


def test_packet_send_limits(world: World) -> None:
    """A frame has 14 bytes at least (EINVAL) and the MTU more at most (EMSGSIZE), four more if it is tagged."""
    sock = world.packet(RAW, 0, "va")
    assert sock.send(bytes(14)) == 14
    assert code(sock.send, b"") == errno.EINVAL
    assert sock.send(bytes(1514)) == 1514
    assert code(sock.send, bytes(1515)) == errno.EMSGSIZE
    tagged = bytes(12) + b"\x81\0" + bytes(1504)
    assert sock.send(tagged) == 1518
    assert code(sock.send, tagged + b"x") == errno.EMSGSIZE


def test_packet_dgram_send(world: World) -> None:
    """SOCK_DGRAM gets a header from its address: target, own address, protocol; without a target it is EINVAL."""
    receiver = world.packet(RAW, ALL, "vb")
    sock = world.packet(DGRAM, OURS, "va")
    assert sock.sendto(b"payload", ("va", OTHER, 0, 0, NOBODY)) == 7
    assert receiver.recv(100) == frame(NOBODY, OTHER, b"payload", src=world.mac("va"))
    assert sock.sendto(b"", ("va", OURS, 0, 0, NOBODY)) == 0
    assert receiver.recv(100) == frame(NOBODY, OURS, b"", src=world.mac("va"))
    assert code(sock.send, b"payload") == errno.EINVAL
    assert sock.sendto(bytes(1500), ("va", OURS, 0, 0, NOBODY)) == 1500
    assert code(sock.sendto, bytes(1501), ("va", OURS, 0, 0, NOBODY)) == errno.EMSGSIZE
    loop = world.packet(DGRAM, OURS, "lo")
    assert loop.send(b"no target needed") == 16
    assert loop.recv(100) == b"no target needed"


def test_packet_raw_sendto(world: World) -> None:
    """SOCK_RAW sends through the interface of the address; other sockets are told the address's protocol."""
    watcher, receiver = world.packet(RAW, ALL, "va"), world.packet(RAW, ALL, "vb")
    sock = world.packet(RAW)
    sent = frame(NOBODY, src=world.mac("va"))
    assert sock.sendto(sent, ("va", 0x1234)) == len(sent)
    assert receiver.recvfrom(100) == (sent, ("vb", OURS, 3, ETHER, world.mac("va")))
    assert watcher.recvfrom(100)[1][1:3] == (0x1234, 4)


# -- links that go down -----------------------------------------------------------------------------------------------


def test_packet_interface_goes_down(world: World) -> None:
    """A socket bound to an interface that goes down has ENETDOWN pending, once; up again it goes on."""
    sock = world.packet(RAW, OURS, "va")
    silent = world.packet(RAW, 0, "va")
    everywhere = world.packet(RAW, OURS)
    world.set_up("va", False)
    try:
        assert world.bits(sock) == OUT | ERR
        assert world.bits(silent) == OUT
        assert world.bits(everywhere) == OUT
        assert code(sock.recv, 1) == errno.ENETDOWN
        assert world.nothing(sock)
        assert code(sock.send, frame(NOBODY)) == errno.ENETDOWN
        again = world.packet(RAW, OURS, "va")  # may be bound, and is told
        assert again.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ENETDOWN
    finally:
        world.set_up("va", True)
    world.packet(RAW, 0, "vb").send(frame(world.mac("va")))
    assert sock.recv(100) == frame(world.mac("va"))


# -- options ----------------------------------------------------------------------------------------------------------


def mreq(world: World, kind: int, address: bytes = b"", device: str = "va") -> bytes:
    return struct.pack("=iHH8s", world.index(device), kind, len(address), address)


@pytest.mark.parametrize(("kind", "counts"), [(1, (1, 0)), (2, (0, 1))], ids=["promiscuous", "allmulti"])
def test_packet_memberships_are_counted(world: World, kind: int, counts: tuple[int, int]) -> None:
    """PACKET_ADD_MEMBERSHIP twice is once for the interface, to be left by PACKET_DROP_MEMBERSHIP twice, or close."""
    one, other = world.packet(), world.packet()
    for _ in range(2):
        one.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, mreq(world, kind))
    assert world.counts("va") == counts
    other.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, mreq(world, kind))
    assert world.counts("va") == (counts[0] * 2, counts[1] * 2)
    one.setsockopt(SOL_PACKET, PACKET_DROP_MEMBERSHIP, mreq(world, kind))
    assert world.counts("va") == (counts[0] * 2, counts[1] * 2)
    one.setsockopt(SOL_PACKET, PACKET_DROP_MEMBERSHIP, mreq(world, kind))
    one.setsockopt(SOL_PACKET, PACKET_DROP_MEMBERSHIP, mreq(world, kind))  # nothing to drop is no error
    assert world.counts("va") == counts
    other.close()
    assert world.counts("va") == (0, 0)


def test_packet_what_sockets_want_is_not_shown(world: World) -> None:
    """IFF_PROMISC and IFF_ALLMULTI show what the administrator asked for; what sockets want is counted beside it."""
    sock = world.packet()
    for kind in (1, 2):
        sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, mreq(world, kind))
    assert _listening_flags(world) == 0
    _ask(world, 0x300)
    assert _listening_flags(world) == 0x300
    assert world.counts("va") == (2, 2)
    sock.close()
    assert world.counts("va") == (1, 1)
    _ask(world, 0)
    assert (_listening_flags(world), world.counts("va")) == (0, (0, 0))


def _ask(world: World, flags: int) -> None:
    """RTM_NEWLINK as `ip link set va promisc on allmulticast on` sends it."""
    sock = world.socket(kernel.AF_NETLINK, RAW)
    sock.send(struct.pack("@IHHIIBxHiII", 32, 16, 5, 1, 0, 0, 0, world.index("va"), flags, 0x300))
    assert struct.unpack_from("@i", sock.recv(1000), 16)[0] == 0
    sock.close()


def _listening_flags(world: World) -> int:
    """IFF_PROMISC and IFF_ALLMULTI of va, as RTM_GETLINK tells them."""
    sock = world.socket(kernel.AF_NETLINK, RAW)
    sock.send(struct.pack("@IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, world.index("va"), 0, 0))
    flags: int = struct.unpack_from("@I", sock.recv(65536), 24)[0]
    sock.close()
    return flags & 0x300


def test_packet_membership_errors(world: World) -> None:
    """ENODEV for an interface that is not there, EINVAL for a short request or a wrong address; not to be read."""
    sock = world.packet()
    assert (
        code(sock.setsockopt, SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8s", 9999, 1, 0, b"")) == errno.ENODEV
    )
    assert code(sock.setsockopt, SOL_PACKET, PACKET_ADD_MEMBERSHIP, bytes(15)) == errno.EINVAL
    assert code(sock.setsockopt, SOL_PACKET, PACKET_ADD_MEMBERSHIP, 1) == errno.EINVAL
    for kind in (0, 3):
        assert code(sock.setsockopt, SOL_PACKET, PACKET_ADD_MEMBERSHIP, mreq(world, kind, b"12345678")) == errno.EINVAL
        assert code(sock.setsockopt, SOL_PACKET, PACKET_ADD_MEMBERSHIP, mreq(world, kind, b"12345")) == errno.EINVAL
    assert code(sock.getsockopt, SOL_PACKET, PACKET_ADD_MEMBERSHIP) == errno.ENOPROTOOPT


def test_packet_statistics(world: World) -> None:
    """PACKET_STATISTICS: frames that were for the socket and how many of them were lost; asking resets it."""
    sock, sender = world.packet(RAW, OURS, "va"), world.packet(RAW, 0, "vb")
    sender.send(frame(world.mac("va")))
    sender.send(frame(world.mac("va"), OTHER))
    assert sock.recv(100)
    assert struct.unpack("=II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)) == (1, 0)
    assert struct.unpack("=II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)) == (0, 0)
    assert code(sock.setsockopt, SOL_PACKET, PACKET_STATISTICS, 1) == errno.ENOPROTOOPT


def test_packet_receive_memory_is_bounded(world: World) -> None:
    """What does not fit into SO_RCVBUF is lost and counted, and the rest arrives in order."""
    sock, sender = world.packet(RAW, OURS, "va"), world.packet(RAW, 0, "vb")
    sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 4000)
    for number in range(100):
        sender.send(frame(world.mac("va"), payload=bytes((number,)) + bytes(99)))
    seen, lost = struct.unpack("=II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    assert seen == 100
    assert 80 <= lost < 100
    assert [sock.recv(200)[14] for _ in range(100 - lost)] == list(range(100 - lost))
    assert world.nothing(sock)


def test_packet_options_without_effect(world: World) -> None:
    """PACKET_ORIGDEV and PACKET_QDISC_BYPASS are kept: no link here hides another, and there is no queue to bypass."""
    sock = world.packet()
    for number in (PACKET_ORIGDEV, PACKET_QDISC_BYPASS):
        assert sock.getsockopt(SOL_PACKET, number) == 0
        sock.setsockopt(SOL_PACKET, number, 7)
        assert sock.getsockopt(SOL_PACKET, number) == 1
    assert code(sock.setsockopt, SOL_PACKET, PACKET_QDISC_BYPASS, bytes(5)) == errno.EINVAL
    sock.setsockopt(SOL_PACKET, PACKET_ORIGDEV, bytes(5))
    assert sock.getsockopt(SOL_PACKET, PACKET_ORIGDEV) == 0


def test_packet_unknown_options(world: World) -> None:
    """ENOPROTOOPT on level SOL_PACKET and on other levels."""
    sock = world.packet()
    for number in (3, 4, 16, 25, 99):
        assert code(sock.getsockopt, SOL_PACKET, number) == errno.ENOPROTOOPT
        assert code(sock.setsockopt, SOL_PACKET, number, 1) == errno.ENOPROTOOPT
    for level in (0, 6, 41):
        assert code(sock.getsockopt, level, 1) == errno.ENOPROTOOPT
        assert code(sock.setsockopt, level, 1, 1) == errno.ENOPROTOOPT


_WORLDS: dict[Any, World] = {}


def _standing(made: Any) -> World:
    """One world of each sort for all the addresses."""
    if made not in _WORLDS:
        try:
            _WORLDS[made] = made()
        except RuntimeError as error:
            pytest.skip(str(error))
    return _WORLDS[made]


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_standing_worlds() -> Iterator[None]:
    yield
    while _WORLDS:
        _WORLDS.popitem()[1].close()  # type: ignore[attr-defined]  # both have it
