"""The card's receive offload (C) against its model (Python): the same bursts become the same superframes and trains."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from stack.link.device import FOLLOWS, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM
from stack.testing import builders
from stack.testing.coalescing import coalesce
from stack.testing.trains import mark
from vhost_user.driver import NetDriver, NetFrame
from vhost_user.net import NetDevice
from vhost_user.server import Server

OURS, GUEST = bytes.fromhex("525400770001"), bytes.fromhex("525400770002")
HOSTS = {
    4: (bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))),
    6: (b"\xfd" + bytes(14) + b"\x0f", b"\xfd" + bytes(14) + b"\x02"),
}


class Cards:
    """Two equal cards: the same frames go into both."""

    def __init__(self, stack: ExitStack) -> None:
        server = stack.enter_context(Server())
        self.devices = NetDevice(mtu=9000), NetDevice(mtu=9000)
        self.drivers: list[NetDriver] = []
        self.followers = 0  #: frames marked so far
        for device in self.devices:
            stack.callback(device.close)
            ours, theirs = socket.socketpair()
            server.adopt(device, ours)
            self.drivers.append(stack.enter_context(NetDriver(theirs, tx_size=256)))
            device.receive(1)

    def compare(self, frames: list[NetFrame | bytes]) -> int:
        """How many frames were joined with the one before."""
        for driver in self.drivers:
            assert driver.send(frames) == len(frames)
        plain, joining = self.devices
        single = plain.receive(256)
        frames_in = sum(len(frame[0]) for frame in single)
        joined, count, size = joining.receive_coalesced(256)
        assert (count, size) == (len(single), frames_in)
        assert [(bytes(view), *facts) for view, *facts in joined] == [
            (bytes(view), *facts) for view, *facts in mark(coalesce(single))
        ]
        assert not any(frame[1] & FOLLOWS for frame in single)
        self.followers += sum(frame[1] & FOLLOWS != 0 for frame in joined)
        assert plain.drops == joining.drops
        return len(single) - len(joined)


@pytest.fixture(scope="module")
def cards() -> Iterator[Cards]:
    with ExitStack() as stack:
        yield Cards(stack)


class Flow:
    """Frames of one flow, one after the other; what `next` is told differs from the one before."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.version = rng.choice((4, 6))
        self.proto = rng.choice((6, 17))
        self.partial = rng.random() < 0.5
        self.superframes = self.partial and self.proto == 6 and rng.random() < 0.7
        self.size = rng.choice((1, 7, 22, 48, 100, 536, 1448) if not self.superframes else (1000, 1449, 2900))
        self.acks = self.proto == 6 and not self.superframes and rng.random() < 0.3  #: and sends nothing
        if self.acks:
            self.size = 0
        self.ack = rng.choice((5, 0xFFFFFF00))
        self.options = bytes(4 * rng.randrange(0, 4))
        self.seq = rng.choice((1, 0xFFFFFF00))
        self.ident = rng.choice((7, 0xFFFE))
        self.fragment = rng.choice((0, 0x4000))
        self.ports = rng.randrange(1024, 1026), 9

    def next(self) -> NetFrame | bytes:
        rng = self.rng

        def rarely(usual: int, *others: int) -> int:
            return rng.choice(others) if rng.random() < 0.04 else usual

        size = max(rarely(self.size, 0, 1, self.size - 1, self.size + 1, self.size // 2), 0)
        if self.acks:
            self.ack = (self.ack + rarely(2896, 0, -1, 1 << 31, (1 << 31) - 1)) & 0xFFFFFFFF
        data = rng.randbytes(size)
        src, dst = HOSTS[self.version]
        total = (20 + len(self.options) if self.proto == 6 else 8) + size
        checksum = builders.partial_checksum(src, dst, self.proto, total) if self.partial else None
        if rng.random() < 0.02:
            checksum = 0
        if self.proto == 6:
            segment = builders.tcp(
                src,
                dst,
                *self.ports,
                seq=(self.seq + rarely(0, 1, -1, size)) & 0xFFFFFFFF,
                ack=self.ack if self.acks else rarely(5, 6),
                flags=rarely(
                    builders.ACK, builders.ACK | builders.PSH, 0, builders.FIN | builders.ACK, 0x30, 0x50, 0x90
                ),
                window=rarely(100, 101),
                options=bytes((rarely(0, 1),)) + self.options[1:] if self.options else b"",
                payload=data,
                urgent=rarely(0, 1),
                checksum=checksum,
            )
        else:
            segment = builders.udp(src, dst, *self.ports, data, checksum=checksum)
        self.seq = (self.seq + size) & 0xFFFFFFFF
        tos = rarely(0, 3, 8)
        if self.version == 4:
            packet = builders.ipv4(
                src,
                dst,
                self.proto,
                segment,
                tos=tos,
                ttl=rarely(64, 63),
                identification=(self.ident + rarely(0, 1)) & 0xFFFF,
                flags_fragment=rarely(self.fragment, 0x4000, 0, 0x2000, 1),
                options=bytes(rarely(0, 4)),
                header_checksum=7 if rng.random() < 0.01 else None,
            )
            self.ident = (self.ident + 1) & 0xFFFF
        else:
            packet = builders.ipv6(
                src, dst, self.proto, segment, traffic_class=tos, hop_limit=rarely(64, 63), flow=rarely(0, 5)
            )
        frame = builders.ethernet(
            bytes((rarely(OURS[0], 1),)) + OURS[1:],
            GUEST,
            rarely(0x0800 if self.version == 4 else 0x86DD, 0x0806),
            packet + bytes(rarely(0, 1, 9)),
            vlan=5 if rng.random() < 0.01 else None,
        )
        if not self.partial:
            return frame
        gso = 0 if not self.superframes else GSO_TCPV4 if self.version == 4 else GSO_TCPV6
        return NetFrame(
            frame,
            NEEDS_CSUM,
            gso_type=gso,
            gso_size=rarely(1448, 1400) if gso else 0,
            csum_start=rarely(34 if self.version == 4 else 54, 14),
            csum_offset=16 if self.proto == 6 else 6,
        )


@pytest.mark.parametrize("seed", range(6))
def test_what_the_card_joins_is_what_the_model_joins(cards: Cards, seed: int) -> None:
    """Random flows with something wrong now and then: byte for byte the same frames, facts and drops."""
    rng = random.Random(seed)
    joined, before = 0, cards.followers
    for _ in range(60):
        flows = [Flow(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        flow = flows[0]
        burst = []
        for _ in range(rng.choice((1, 2, 5, 30, 150))):
            flow = rng.choice(flows) if rng.random() < 0.1 else flow
            burst.append(flow.next())
        joined += cards.compare(burst)
    assert joined > 200
    assert cards.followers > before + 60


def test_long_runs(cards: Cards) -> None:
    """At most 64 datagrams, and at most what an IP length can say; one more begins another run."""
    src, dst = HOSTS[4]
    datagram = builders.ethernet(
        OURS, GUEST, 0x0800, builders.ipv4(src, dst, 17, builders.udp(src, dst, 1, 2, b"x" * 22))
    )
    assert cards.compare([datagram] * 200) == 200 - 4
    segments: list[NetFrame | bytes] = []
    for number in range(60):
        segment = builders.tcp(src, dst, 1, 2, seq=number * 1460, payload=bytes(1460))
        segments.append(builders.ethernet(OURS, GUEST, 0x0800, builders.ipv4(src, dst, 6, segment)))
    assert cards.compare(segments) == 60 - 2
    jumbo = [
        builders.ethernet(OURS, GUEST, 0x0800, builders.ipv4(src, dst, 17, builders.udp(src, dst, 1, 2, bytes(8000))))
    ]
    assert cards.compare([*jumbo * 20]) == 20 - 3


@pytest.mark.parametrize("version", [4, 6])
def test_bare_acknowledgments_are_a_train(cards: Cards, version: int) -> None:
    """... for as long as each acknowledges more than the one before, whatever its window is."""
    src, dst = HOSTS[version]
    burst: list[NetFrame | bytes] = []
    for ack, window in ((0xFFFFFFF0, 1), (5, 1), (1000, 7), (1000, 8), (1001, 8), (1000, 8), (1 << 31 | 1000, 8)):
        segment = builders.tcp(src, dst, 1, 2, seq=7, ack=ack, window=window)
        packet = builders.ipv4(src, dst, 6, segment) if version == 4 else builders.ipv6(src, dst, 6, segment)
        burst.append(builders.ethernet(OURS, GUEST, 0x0800 if version == 4 else 0x86DD, packet))
    before = cards.followers
    assert cards.compare(burst) == 0
    assert cards.followers == before + 3  # not one that says the same again, or less, or half the numbers more


def test_superframes_of_a_bulk_transfer_are_a_train(cards: Cards) -> None:
    """Eight of the longest are one burst, and seven of them continue the first; so they say."""
    src, dst = HOSTS[4]
    data = bytes(65483)
    burst: list[NetFrame | bytes] = []
    for number in range(8):
        checksum = builders.partial_checksum(src, dst, 6, 20 + len(data))
        flags = builders.ACK | (builders.PSH if number & 1 else 0)
        segment = builders.tcp(src, dst, 1, 2, seq=number * len(data), flags=flags, payload=data, checksum=checksum)
        frame = builders.ethernet(OURS, GUEST, 0x0800, builders.ipv4(src, dst, 6, segment, identification=number))
        burst.append(NetFrame(frame, NEEDS_CSUM, GSO_TCPV4, gso_size=1460, csum_start=34, csum_offset=16))
    before = cards.followers
    assert cards.compare(burst) == 0
    assert cards.followers == before + 7
