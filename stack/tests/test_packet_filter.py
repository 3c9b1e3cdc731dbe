"""Packet sockets of ours beyond what the kernel can be held against: a card's filter, costs, moves, hostile frames."""

from __future__ import annotations

import errno
import random
import socket as kernel
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Network, Stack
from stack.iface.kinds import create
from stack.link.device import DATA_VALID, GSO_NONE, GSO_TCPV4, NEEDS_CSUM, Offload
from stack.testing import builders
from stack.testing.clock import ManualClock
from stack.tests.ip_rig import ME, MY_MAC, PEER, PEER_MAC, ScriptedDevice
from stack.tests.kernel_twin import code
from stack.wire import ethernet

RAW: Final = kernel.SOCK_RAW
ALL: Final = 3
OURS: Final = 0x88B5
OTHER_HOST: Final = bytes.fromhex("020000000077")
GROUP: Final = bytes.fromhex("01005e010203")


class Lan:
    """A Stack with eth0 (10.0.2.2/24) on a scripted device."""

    def __init__(self, network: Network, offloads: Offload | None = None) -> None:
        self.network = network
        self.stack: Stack = network.stack("gw")
        self.device = ScriptedDevice() if offloads is None else ScriptedDevice(offloads=offloads)
        self.eth = self.stack.add_interface(self.device, "eth0", ["10.0.2.2/24"])
        self.turn()
        self.device.sent.clear()
        self._open: list[Any] = []

    def socket(self, family: int, kind: int, proto: int = 0) -> Any:
        sock = self.stack.socket.socket(family, kind, proto)
        sock.setblocking(False)
        self._open.append(sock)
        return sock

    def close(self) -> None:
        for sock in self._open:
            sock.close()

    def packet(self, protocol: int = ALL, kind: int = RAW, device: str = "eth0") -> Any:
        sock = self.socket(kernel.AF_PACKET, kind)
        sock.bind((device, protocol))
        return sock

    def turn(self) -> None:
        for _ in range(5):
            self.network.poll(self.network.scheduler.now)

    def receive(self, *frames: bytes, flags: int = 0, gso: int = 0) -> None:
        for frame in frames:
            self.device.inbox.append((memoryview(frame), flags, GSO_TCPV4 if gso else GSO_NONE, gso, 34, 16))
        with self.network.lock:
            self.eth.service(256)
            self.network.finish()
        self.turn()


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Network(clock=ManualClock(), rng=random.Random(5)) as network:
        made = Lan(network)
        yield made
        made.close()


def frame(dst: bytes, payload: bytes = b"hello") -> bytes:
    return builders.ethernet(dst, PEER_MAC, OURS, payload)


def heard(sock: Any) -> list[tuple[bytes, Any]]:
    """Everything that waits."""
    found = []
    while True:
        try:
            found.append(sock.recvfrom(70000))
        except BlockingIOError:
            return found


def kinds(sock: Any) -> list[int]:
    return [address[2] for _, address in heard(sock)]


# -- a card's filter --------------------------------------------------------------------------------------------------


def mreq(index: int, kind: int, address: bytes = b"") -> bytes:
    return struct.pack("=iHH8s", index, kind, len(address), address)


def test_packet_card_shows_what_is_for_us(lan: Lan) -> None:
    """A device that was plugged in filters as a card does: our own address, broadcasts, and groups that were joined."""
    sock = lan.packet(OURS)
    joined = ethernet.multicast_mac4(kernel.inet_aton("224.0.0.1"))
    lan.receive(frame(MY_MAC), frame(OTHER_HOST), frame(b"\xff" * 6), frame(GROUP), frame(joined))
    assert kinds(sock) == [0, 1, 2]


def test_packet_promiscuous_sees_everything(lan: Lan) -> None:
    """PACKET_MR_PROMISC of any socket opens the interface for all of them; the last to leave closes it."""
    sock, other = lan.packet(OURS), lan.packet(0)
    other.setsockopt(263, 1, mreq(lan.eth.index, 1))
    assert lan.eth.promiscuous == 1
    lan.receive(frame(OTHER_HOST), frame(GROUP))
    assert kinds(sock) == [3, 2]
    other.close()
    lan.receive(frame(OTHER_HOST), frame(GROUP))
    assert kinds(sock) == []


@pytest.mark.parametrize(
    ("wish", "shown"), [((0, GROUP), [2]), ((2, b""), [2, 2]), ((3, OTHER_HOST), [3])], ids=["group", "all", "unicast"]
)
def test_packet_memberships_open_the_filter(lan: Lan, wish: tuple[int, bytes], shown: list[int]) -> None:
    """PACKET_MR_MULTICAST one group, PACKET_MR_ALLMULTI all of them, PACKET_MR_UNICAST one more address."""
    sock = lan.packet(OURS)
    sock.setsockopt(263, 1, mreq(lan.eth.index, *wish))
    another = bytes.fromhex("01005e7f0001")
    lan.receive(frame(OTHER_HOST), frame(GROUP), frame(another))
    assert kinds(sock) == shown
    sock.setsockopt(263, 2, mreq(lan.eth.index, *wish))
    lan.receive(frame(OTHER_HOST), frame(GROUP), frame(another))
    assert kinds(sock) == []


def test_packet_groups_of_ip_open_the_filter(lan: Lan) -> None:
    """What IP joined, packet sockets see, and no more once it is left."""
    sock = lan.packet(OURS)
    member = lan.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    wish = kernel.inet_aton("239.1.2.3") + kernel.inet_aton("10.0.2.2")
    member.setsockopt(0, 35, wish)
    lan.receive(frame(GROUP))
    assert kinds(sock) == [2]
    member.setsockopt(0, 36, wish)
    lan.receive(frame(GROUP))
    assert kinds(sock) == []


def test_packet_bridge_ports_are_open(lan: Lan) -> None:
    """A port of a bridge shows everything to ETH_P_ALL, and nothing to those of one protocol."""
    everything, some = lan.packet(ALL), lan.packet(OURS)
    netns = lan.stack.netns
    with lan.network.lock:
        bridge = create(netns, "bridge", "br0", {})
        netns.set_up(bridge, True)
        netns.set_master(lan.eth, bridge)
        lan.network.finish()
    heard(everything)
    lan.receive(frame(OTHER_HOST))
    assert kinds(everything) == [3]
    assert kinds(some) == []


# -- superframes ------------------------------------------------------------------------------------------------------


def test_packet_superframes_are_shown_whole(lan: Lan) -> None:
    """A superframe is one frame, as GSO packets are on Linux; PACKET_VNET_HDR and auxiliary data tell what it is."""
    sock = lan.packet(ALL)
    sock.setsockopt(263, 15, 1)
    sock.setsockopt(263, 8, 1)
    tcp = builders.tcp(PEER, ME, 1, 2, payload=bytes(6000))
    whole = builders.ethernet(MY_MAC, PEER_MAC, 0x0800, builders.ipv4(PEER, ME, 6, tcp))
    lan.receive(whole, flags=NEEDS_CSUM, gso=1448)
    data, ancillary, _, _ = sock.recvmsg(70000, 100)
    assert data[10:] == whole
    assert struct.unpack("=BBHHHH", data[:10]) == (1, 1, 54, 1448, 34, 16)
    assert struct.unpack_from("=III", ancillary[0][2]) == (1 | 8 | 0x100, len(whole), len(whole))
    heard(sock)
    lan.receive(frame(MY_MAC), flags=DATA_VALID)
    data, ancillary, _, _ = sock.recvmsg(70000, 100)
    assert (data[0], struct.unpack_from("=I", ancillary[0][2])[0]) == (2, 1 | 0x80)


def test_packet_tag_taken_off_moves_the_facts(lan: Lan) -> None:
    """The offload facts of a frame that lost its tag are those of the frame that is shown."""
    sock = lan.packet(ALL)
    sock.setsockopt(263, 15, 1)
    tcp = builders.tcp(PEER, ME, 1, 2, payload=b"data")
    whole = builders.ethernet(MY_MAC, PEER_MAC, 0x0800, builders.ipv4(PEER, ME, 6, tcp), vlan=7)
    lan.device.inbox.append((memoryview(whole), NEEDS_CSUM, GSO_NONE, 0, 38, 16))
    lan.receive()
    data = sock.recv(100)
    assert (struct.unpack("=BBHHHH", data[:10])[4:], data[22:24]) == ((34, 16), b"\x08\0")


def test_packet_superframes_are_sent_and_cut(lan: Lan) -> None:
    """With PACKET_VNET_HDR a superframe may be sent; a device that cannot cut it gets the pieces."""
    sender = lan.packet(0)
    sender.setsockopt(263, 15, 1)
    tcp = builders.tcp(ME, PEER, 1, 2, payload=bytes(3000))
    whole = builders.ethernet(PEER_MAC, MY_MAC, 0x0800, builders.ipv4(ME, PEER, 6, tcp))
    facts = struct.pack("=BBHHHH", 1, 1, 54, 1448, 34, 16)
    assert sender.send(facts + whole) == len(whole) + 10
    lan.turn()
    assert [(b"".join(each[0]), each[2], each[4]) for each in lan.device.sent] == [(whole, 1, 1448)]
    lan.device.sent.clear()
    lan.device.offloads = Offload.NONE
    lan.device.max_superframe = 1514
    lan.device.changed()
    assert sender.send(facts + whole) == len(whole) + 10
    lan.turn()
    assert [sum(map(len, each[0])) for each in lan.device.sent] == [54 + 1448, 54 + 1448, 54 + 104]
    assert code(sender.send, struct.pack("=BBHHHH", 1, 1, 54, 0, 34, 16) + whole) == errno.EINVAL


# -- interfaces come and go -------------------------------------------------------------------------------------------


def test_packet_new_interfaces_are_heard(lan: Lan) -> None:
    """An unbound socket hears interfaces that come later, and none that moved away."""
    sock = lan.socket(kernel.AF_PACKET, RAW, kernel.htons(OURS))
    second = ScriptedDevice(mac=OTHER_HOST)
    late = lan.stack.add_interface(second, "eth1")
    second.inbox.append((memoryview(frame(OTHER_HOST)), 0, 0, 0, 0, 0))
    with lan.network.lock:
        late.service(10)
        lan.network.finish()
    assert [address[:3] for _, address in heard(sock)] == [("eth1", OURS, 0)]
    lan.stack.move_interface("eth1", lan.stack.add_netns("elsewhere"))
    assert late.taps == []
    assert len(lan.eth.taps) == 1


def test_packet_removed_interface(lan: Lan) -> None:
    """A socket bound to an interface that is removed has ENETDOWN pending and no interface any more."""
    sock = lan.packet(OURS)
    sock.setsockopt(263, 1, mreq(lan.eth.index, 1))
    index = lan.eth.index
    lan.stack.remove_interface("eth0")
    assert code(sock.recv, 1) == errno.ENETDOWN
    with lan.network.lock:  # somebody else gets its number
        again = create(lan.stack.netns, "dummy", "d0", {"index": index})
        lan.stack.netns.set_up(again, True)
        lan.network.finish()
    assert again.index == index
    assert again.taps == []
    assert sock.getsockname() == ("", OURS, 0, 0, b"")
    assert code(sock.send, frame(PEER_MAC)) == errno.ENXIO
    sock.close()
    assert lan.eth.taps == []
    assert lan.eth.promiscuous == 0


def test_packet_full_queue(lan: Lan) -> None:
    """When the interface's queue is full a send is ENOBUFS, as on Linux."""
    lan.device.accept = 0
    sock = lan.packet(0)
    lan.eth.tx_queue_length = 3
    lan.turn()
    for _ in range(3):
        sock.send(frame(PEER_MAC))
    assert code(sock.send, frame(PEER_MAC)) == errno.ENOBUFS


# -- costs ------------------------------------------------------------------------------------------------------------


def test_packet_nobody_pays_for_absent_listeners(lan: Lan) -> None:
    """Without a packet or raw socket there is no tap, no observer and no handler but the protocols' own."""
    netns = lan.stack.netns
    before = dict(netns.ip.handlers4), dict(netns.ip.handlers6), len(netns.changes.observers)
    assert lan.eth.taps == []
    open_sockets = [
        lan.packet(OURS),
        lan.socket(kernel.AF_INET, RAW, 6),
        lan.socket(kernel.AF_INET6, RAW, 58),
        lan.socket(kernel.AF_INET, RAW, 253),
    ]
    assert len(lan.eth.taps) == 1
    assert netns.lo.taps == []  # nobody listens there
    assert netns.ip.handlers4[6] is not before[0][6]
    for sock in open_sockets:
        sock.close()
    assert lan.eth.taps == []
    assert (netns.ip.handlers4, netns.ip.handlers6, len(netns.changes.observers)) == before


def test_packet_socket_without_protocol_has_no_tap(lan: Lan) -> None:
    """One that only sends costs nothing on receive."""
    sock = lan.packet(0)
    assert lan.eth.taps == []
    sock.close()


# -- bad input --------------------------------------------------------------------------------------------------------


@given(
    st.binary(max_size=200),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([0, 1, 3, 4, 5, 0x81, 255]),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
)
@settings(max_examples=150, deadline=None)
def test_packet_hostile_frames(data: bytes, flags: int, gso: int, size: int, start: int, offset: int) -> None:
    """Whatever a device brings, with whatever facts, is shown or not, and never an exception."""
    with Network(clock=ManualClock(), rng=random.Random(5)) as network:
        lan = Lan(network)
        sock, cooked = lan.packet(ALL), lan.packet(ALL, kernel.SOCK_DGRAM)
        sock.setsockopt(263, 15, 1)
        sock.setsockopt(263, 1, mreq(lan.eth.index, 1))
        for lead in (
            b"",
            MY_MAC + PEER_MAC,
            MY_MAC + PEER_MAC + b"\x81\0",
            b"\xff" * 6 + PEER_MAC + b"\x88\xa8\0\5\x81\0",
        ):
            lan.device.inbox.append((memoryview(lead + data), flags, gso, size, start, offset))
        with network.lock:
            lan.eth.service(256)
            network.finish()
        whole = [len(each) for each, _ in heard(sock)]
        assert all(10 + 14 <= each <= 10 + 22 + len(data) for each in whole)
        heard(cooked)
        lan.close()


@given(st.binary(max_size=80), st.binary(min_size=10, max_size=10))
@settings(max_examples=100, deadline=None)
def test_packet_hostile_sends(data: bytes, facts: bytes) -> None:
    """Whatever is sent with whatever facts is sent, or refused with an errno, or dropped and counted."""
    with Network(clock=ManualClock(), rng=random.Random(5)) as network:
        lan = Lan(network, offloads=Offload.NONE)
        sock = lan.packet(0)
        sock.setsockopt(263, 15, 1)
        with suppress(OSError):
            assert sock.send(facts + data) == len(facts) + len(data)
        lan.turn()
        lan.close()
