"""sendmmsg to a device with USO: the datagrams of a run leave as one superframe, and are the same datagrams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Network, Stack
from stack.link.device import GSO_UDP_L4, Offload, RxFrame
from stack.link.offload import ALL_OFFLOADS, as_transmit, segment
from stack.testing.clock import ManualClock
from stack.testing.links import RecorderDevice
from stack.tests.ip_rig import PEER_MAC, fields4

PEERS = ("10.0.2.15", "10.0.2.16")


class Host:
    """A stack on a device that records, and a socket."""

    def __init__(self, offloads: Offload) -> None:
        self.network = Network(clock=ManualClock(), rng=random.Random(3))
        self.stack: Stack = self.network.stack("gw")
        self.device = RecorderDevice(offloads=offloads)
        iface = self.stack.add_interface(self.device, addresses=["10.0.2.2/24"])
        for peer in PEERS:
            iface.neighbours.set_permanent(bytes(map(int, peer.split("."))), PEER_MAC)
        module = self.stack.socket
        self.sock: Any = module.socket(module.AF_INET, module.SOCK_DGRAM)
        self.sock.bind(("10.0.2.2", 5000))
        self.sock.connect((PEERS[0], 9))
        self.network.poll(self.network.clock())
        self.device.sent.clear()

    def wire(self) -> list[Any]:
        """What left, cut as the device would have cut it."""
        frames: list[RxFrame] = self.device.sent
        self.device.sent = []
        pieces = [b"".join(piece[0]) for frame in frames for piece in segment(as_transmit(frame))]
        packets = [piece[14:] for piece in pieces if piece[12:14] == b"\x08\x00" and piece[23] == 17]
        return [(packet[16:20], packet[6:9], fields4(packet)["payload"]) for packet in packets]


@contextmanager
def hosts(*offloads: Offload) -> Iterator[list[Host]]:
    made = [Host(each) for each in offloads]
    try:
        yield made
    finally:
        for host in made:
            host.sock.close()
            host.network.close()


MESSAGES = st.lists(
    st.tuples(st.sampled_from([0, 1, 20, 20, 20, 20, 19, 500, 1472, 1473]), st.sampled_from([None, None, *PEERS])),
    max_size=90,
)


@settings(max_examples=60, deadline=None)
@given(MESSAGES)
def test_mm_01_sendmmsg_through_uso_is_the_same_on_the_wire(messages: list[tuple[int, str | None]]) -> None:
    """Any sizes to any peers: a device that cuts superframes puts the same datagrams on the wire as another."""
    batch = [
        ([bytes((number & 0xFF,)) * size], (), None if peer is None else (peer, 9))
        for number, (size, peer) in enumerate(messages)
    ]
    with hosts(ALL_OFFLOADS, Offload.NONE) as (joining, plain):
        results = [host.sock.sendmmsg(batch) if batch else [] for host in (joining, plain)]
        assert results[0] == results[1] == [size for size, _ in messages]
        assert joining.wire() == plain.wire()


def test_mm_01_a_run_is_one_frame_where_the_device_cuts() -> None:
    """64 datagrams in one; not while a packet socket looks on, not with options of their own."""
    data = [b"x" * 22] * 64
    with hosts(ALL_OFFLOADS) as (host,):
        module: Any = host.stack.socket
        assert host.sock.sendmmsg(data) == [22] * 64
        ((view, _, gso_type, gso_size, _, _),) = host.device.sent
        assert (len(view), gso_type, gso_size) == (42 + 64 * 22, GSO_UDP_L4, 22)
        host.device.sent.clear()
        with module.socket(module.AF_PACKET, module.SOCK_RAW, 0x0300):
            host.sock.sendmmsg(data)
            assert len(host.device.sent) == 64
        host.device.sent.clear()
        host.sock.sendmmsg([([each], [(module.IPPROTO_IP, module.IP_TTL, b"\x09\0\0\0")]) for each in data])
        assert len(host.device.sent) == 64


@pytest.mark.parametrize("family", [4, 6])
def test_mm_01_over_loopback(family: int) -> None:
    """A run to ourselves arrives datagram by datagram."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        module: Any = network.stack("gw").socket
        number, address = (module.AF_INET, "127.0.0.1") if family == 4 else (module.AF_INET6, "::1")
        with module.socket(number, module.SOCK_DGRAM) as one, module.socket(number, module.SOCK_DGRAM) as other:
            one.bind((address, 7))
            other.connect((address, 7))
            data = [bytes((each,)) * (100 - each // 90) for each in range(91)]
            assert other.sendmmsg(data) == list(map(len, data))
            assert [message[0] for message in one.recvmmsg(200, 200, 0, module.MSG_DONTWAIT)] == data
