"""Row IF-14: an interface of the stack on a virtio-net device, with a driver at its other end instead of a guest.

Receive queue 0 and transmit queue 1, 12-byte headers with num_buffers (VERSION_1); and what crosses the seam between
device and interface: carrier, MTU, offloads, refused frames.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

import pytest

from stack import Network, Stack
from stack.iface.facts import InterfaceFlags
from stack.iface.interface import Interface
from stack.link.device import GSO_TCPV4, NEEDS_CSUM, Offload
from stack.testing import builders
from stack.testing.clock import ManualClock
from vhost_user.driver import NetDriver
from vhost_user.driver.net import ALL_FEATURES, NetFrame
from vhost_user.features import NetFeature
from vhost_user.net import NetDevice
from vhost_user.server import Server

HOST_IP, GUEST_IP = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 15))
GUEST_MAC = bytes.fromhex("525400123456")


class Card:
    """A stack whose eth0 is a NetDevice, and the driver it serves."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(3))
        self.gateway: Stack = self.network.stack("gw")
        self.device = NetDevice()
        self.eth: Interface = self.gateway.add_interface(self.device, addresses=["10.0.2.2/24"])
        self.server = Server()

    def plug(self, *, features: int = ALL_FEATURES, rx_size: int = 256) -> NetDriver:
        """A driver, set up and running."""
        ours, theirs = socket.socketpair()
        self.server.adopt(self.device, ours)
        guest = NetDriver(theirs, features=features, rx_size=rx_size)
        self.poll()
        return guest

    def poll(self) -> None:
        for _ in range(20):
            if self.network.poll(self.clock()) != self.clock():
                return

    def exchange(self, guest: NetDriver, *frames: NetFrame | bytes) -> list[NetFrame]:
        """Send from the guest, let the stack work, and return what came back."""
        assert guest.send(frames) == len(frames)
        self.poll()
        return guest.recv()


@pytest.fixture
def card() -> Iterator[Card]:
    made = Card()
    with made.server:
        yield made
        made.network.close()
        made.device.close()


def to_host(ethertype: int, payload: bytes) -> bytes:
    return builders.ethernet(NetDevice().mac, GUEST_MAC, ethertype, payload)


def ask_arp() -> bytes:
    question = builders.arp(1, GUEST_MAC, GUEST_IP, bytes(6), HOST_IP)
    return builders.ethernet(b"\xff" * 6, GUEST_MAC, 0x0806, question)


def test_carrier_and_offloads_come_with_the_driver_and_go_with_it(card: Card) -> None:
    assert not card.eth.flags & InterfaceFlags.RUNNING
    with card.plug() as guest:
        assert card.eth.flags & InterfaceFlags.RUNNING
        assert card.eth.offloads & Offload.TSO4
        assert card.eth.max_superframe == 65549
        assert guest.has(NetFeature.VERSION_1)
    with card.plug(features=ALL_FEATURES & ~(NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6)):
        assert card.eth.flags & InterfaceFlags.RUNNING
        assert not card.eth.offloads & (Offload.TSO4 | Offload.TSO6)


def test_arp_and_echo_over_the_rings(card: Card) -> None:
    """Transmit queue 1 in, receive queue 0 out; a frame of one buffer says so in its header."""
    with card.plug() as guest:
        guest.recv()
        (answer,) = card.exchange(guest, ask_arp())
        assert bytes(answer.data)[:42] == builders.ethernet(
            GUEST_MAC, card.eth.mac, 0x0806, builders.arp(2, card.eth.mac, HOST_IP, GUEST_MAC, GUEST_IP)
        )
        assert (answer.flags, answer.gso_type, answer.num_buffers) == (0, 0, 1)
        ping = builders.ipv4(GUEST_IP, HOST_IP, 1, builders.icmp_echo(5, 6, b"data" * 20))
        (pong,) = card.exchange(guest, to_host(0x0800, ping))
        assert bytes(pong.data)[34:] == builders.icmp_echo(5, 6, b"data" * 20, reply=True)
        assert (guest.tx().index, guest.rx().index) == (1, 0)


def test_partial_checksums_cross_in_both_directions(card: Card) -> None:
    """NEEDS_CSUM from the guest is taken on trust, ours leaves the sum to the guest (CSUM, GUEST_CSUM)."""
    endpoint = card.gateway.netns.udp.bind(bytes(4), 7)
    with card.plug() as guest:
        card.exchange(guest, ask_arp())
        partial = builders.partial_checksum(GUEST_IP, HOST_IP, 17, 12)
        datagram = struct.pack("!HHHH", 9, 7, 12, partial) + b"data"
        frame = to_host(0x0800, builders.ipv4(GUEST_IP, HOST_IP, 17, datagram))
        card.exchange(guest, NetFrame(frame, flags=NEEDS_CSUM, csum_start=34, csum_offset=6))
        received = endpoint.recv()
        assert received is not None
        assert received.data == b"data"
        endpoint.send(b"back", (GUEST_IP, 9))
        card.network.poll(card.clock())
        (answer,) = guest.recv()
        assert (answer.flags & NEEDS_CSUM, answer.csum_start, answer.csum_offset) == (NEEDS_CSUM, 34, 6)


@pytest.mark.parametrize("offload", [True, False])
def test_a_superframe_reaches_the_guest_whole_or_in_right_segments(card: Card, offload: bool) -> None:
    features = ALL_FEATURES
    if not offload:
        features &= ~(NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6)
    with card.plug(features=features) as guest:
        card.exchange(guest, ask_arp())
        ip = card.gateway.netns.ip
        route = ip.route(GUEST_IP)
        payload = bytes(range(250)) * 120
        header = bytearray(builders.tcp(HOST_IP, GUEST_IP, 80, 81, seq=5))
        struct.pack_into("!H", header, 16, builders.partial_checksum(HOST_IP, GUEST_IP, 6, 20 + len(payload)))
        ip.output(
            route,
            HOST_IP,
            GUEST_IP,
            6,
            (bytes(header), payload),
            20 + len(payload),
            csum_start_offset=16,
            gso_type=GSO_TCPV4,
            gso_size=1460,
            header_length=20,
        )
        card.poll()
        frames = guest.recv()
        if offload:
            (frame,) = frames
            assert (frame.gso_type, frame.gso_size, frame.hdr_len) == (GSO_TCPV4, 1460, 54)
            assert frame.num_buffers > 1
            assert bytes(frame.data)[54:] == payload
        else:
            segments = [bytes(frame.data)[34:] for frame in frames]
            assert segments == [
                builders.tcp(HOST_IP, GUEST_IP, 80, 81, seq=5 + at, payload=payload[at : at + 1460])
                for at in range(0, len(payload), 1460)
            ]


def test_frames_a_full_ring_refuses_wait_and_arrive_in_order(card: Card) -> None:
    with card.plug(rx_size=8) as guest:
        card.exchange(guest, ask_arp())
        endpoint = card.gateway.netns.udp.bind(bytes(4), 7)
        for number in range(40):
            endpoint.send(bytes((number,)), (GUEST_IP, 9))
        card.poll()
        assert card.eth.queued > 0
        arrived: list[int] = []
        for _ in range(100):
            arrived += [bytes(frame.data)[42] for frame in guest.recv()]
            card.poll()
        assert arrived == list(range(40))
        assert card.eth.queued == 0


def test_a_card_lingers_until_there_is_a_frame_and_leaves_it_there(card: Card) -> None:
    with card.plug() as guest:
        assert card.eth.linger is not None
        card.eth.linger()
        assert card.device.receive(256) == []
        frame = builders.ethernet(card.eth.mac, GUEST_MAC, 0x88B5, b"x" * 46)
        assert guest.send([frame]) == 1
        card.eth.linger()
        assert [bytes(view) for view, *_ in card.device.receive(256)] == [frame]
