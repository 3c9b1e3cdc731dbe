"""A tapped card from and to a driver: what is recorded is what the driver sent and got, whichever way it took."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Any, Final

from qemu.guest.bench import rig, rig_guest
from stack import Network
from stack.link.capture import INBOUND, OUTBOUND
from stack.link.capture_ring import CaptureRing
from stack.link.device import GSO_TCPV4, LinkDevice
from vhost_user import NetDevice
from vhost_user.driver import Burst, NetDriver

SHORT: Final = ("receive_coalesced", "receive_landing", "transmit_alone", "transmit_volley")
#: Longer than acknowledgments and ARP, which go on in between, bytes.
DATA: Final = 100


class Listening(rig_guest.Peer):
    """Keeps what it gets."""

    def hear_frame(self, frame: memoryview) -> int | None:
        self.__dict__.setdefault("got", []).append(bytes(frame))
        return super().hear_frame(frame)

    def take(self) -> list[bytes]:
        """The data frames since the last call."""
        got: list[bytes] = [each for each in self.__dict__.setdefault("got", []) if len(each) > DATA]
        self.__dict__["got"].clear()
        return got


def test_what_crosses_a_card_is_recorded_whichever_way_it_takes() -> None:
    taken: Counter[str] = Counter()
    rings: list[CaptureRing] = []

    def around(network: Network, device: NetDevice) -> LinkDevice:
        def counted(name: str) -> None:
            whole = getattr(device, name)

            def call(*args: Any) -> Any:
                result = whole(*args)
                taken[name] += bool(result if isinstance(result, int) else result[1])
                return result

            setattr(device, name, call)

        for name in SHORT:
            counted(name)
        rings.append(CaptureRing(network.scheduler, limit=1 << 30))
        return rings[0].tap(device, "guest")

    rng = random.Random(5)
    with rig.served_card(around=around) as (stack, path), stack.socket.socket() as listener:
        (ring,) = rings
        listener.bind((rig.GATEWAY, 5000))
        listener.listen(1)
        with NetDriver(str(path)) as driver:
            peer = Listening(driver, 5000)
            connection, _ = listener.accept()
            with connection:
                network = stack.network
                assert isinstance(network, Network)
                network.runner.stop()  # from here on nobody looks at the ring but who reads
                connection.settimeout(30)
                talk = Talk(network, connection, peer, ring)
                ways: dict[bool, Counter[str]] = {}
                for paused in (False, True, False, True):
                    ring.paused = paused
                    taken.clear()
                    for size, count in ((1460, 40), (60_000, 4), (60_000, 4), (1, 1), (1460, 3)):
                        talk.hear(rng.randbytes(size), count, recorded=not paused)
                    for size in (1, 1460, 2_000_000, 20_000):
                        talk.say(rng.randbytes(size), recorded=not paused)
                    ways[paused] = Counter(taken)
    assert set(ways[False]) == {"transmit_alone", "transmit_volley"}
    assert set(ways[True]) == set(SHORT)


class Talk:
    """Both ends of a connection, and the record."""

    def __init__(self, network: Network, connection: Any, peer: Listening, ring: CaptureRing) -> None:
        self.network = network
        self.connection = connection
        self.peer = peer
        self.ring = ring
        self.buffer = bytearray(300_000)

    def recorded(self, direction: int) -> list[bytes]:
        found = [each.data for each in self.ring.frames if each.direction == direction and len(each.data) > DATA]
        self.ring.frames.clear()
        return found

    def hear(self, data: bytes, count: int, *, recorded: bool) -> None:
        """A burst of the driver's, of at most `count` times `data`, is read."""
        peer = self.peer
        count = min(count, (peer.snd_una + peer.window - peer.snd_nxt) // len(data))
        gso = (GSO_TCPV4, 54, 1460) if len(data) > 1460 else (0, 0, 0)
        sent = []
        for number in range(count):
            part = rig_guest.Segment(peer, data, gso)
            part.number(peer.snd_nxt + number * len(data), peer.rcv_nxt)
            sent.append(part)
        assert Burst([(part.header, part.data) for part in sent]).send(peer.driver.tx(), timeout=5) == count
        peer.snd_nxt += count * len(data)
        read = 0
        while read < count * len(data):
            read += self.connection.recv_into(self.buffer)
        frames = [bytes(part.header[12:]) + part.data for part in sent if len(data) > DATA]
        assert self.recorded(INBOUND) == (frames if recorded else [])
        while peer.snd_una < peer.snd_nxt:
            self.network.poll(self.network.clock())
            peer.hear(0.001)

    def say(self, data: bytes, *, recorded: bool) -> None:
        """A write is heard by the driver."""
        peer = self.peer
        peer.take()
        self.ring.frames.clear()
        goal = peer.rcv_nxt + len(data)
        self.connection.setblocking(False)
        while peer.rcv_nxt < goal:
            with suppress(BlockingIOError):
                data = data[self.connection.send(data) :]
            peer.hear(0.001)
            peer.send(0x10)
            self.network.poll(self.network.clock())
        self.connection.settimeout(30)
        assert self.recorded(OUTBOUND) == (peer.take() if recorded else [])
