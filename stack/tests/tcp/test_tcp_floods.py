"""Floods of segments meet limits that `Stack.stats` shows, and who came in peace is served meanwhile.

The flood of SYNs is in `test_tcp_syn_cookies`; SO_REUSEPORT, which spreads load over listeners, is here too.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from stack.tcp import Connection, Listener, TcpOptions, TcpState
from stack.testing import builders
from stack.tests.tcp.script import Script
from stack.tests.tcp.world import B6, A, B, World
from stack.wire.tcp import ACK, PSH, RST, SYN, HeaderOptions

ROUNDS = 3000
MASK = 0xFFFFFFFF


class Scene:
    """A victim with a listener, a friend with an old connection, and frames from nowhere on the friend's cable."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(8)
        self.listener = world.b.tcp.listen(world.b.tcp.ports.bind(B, 80), 64)
        self.near, self.far = world.pair_on(self.listener)
        assert self.served()

    @property
    def tcp(self) -> Any:
        """The victim's counters."""
        return self.world.network.stacks["b"].stats["tcp"]

    @property
    def limits(self) -> Any:
        found: Any = self.world.network.stacks["b"].stats["limits"]
        for name, one in found.items():
            assert one["used"] <= one["most"], name
        return found

    def inject(
        self, src: bytes, port: int, flags: int, *, seq: int = 0, ack: int = 0, data: bytes = b"", options: bytes = b""
    ) -> None:
        segment = builders.tcp(
            src, B, port, 80, seq=seq & MASK, ack=ack & MASK, flags=flags, payload=data, options=options
        )
        mac = self.world.b.interfaces["eth0"].mac
        self.world.a.interfaces["eth0"].send_frame(mac, 0x0800, builders.ipv4(src, B, 6, segment))

    def to_the_old(self, flags: int, *, ahead: int = 0, ack: int = 0, data: bytes = b"") -> None:
        """Into the friend's connection, `ahead` of where it is; ports and timestamp were guessed."""
        receiver, sender = self.far.receiver, self.far.sender
        seq, answered = receiver.rcv_nxt + ahead, sender.snd_una + ack
        options = HeaderOptions(timestamps=(receiver.ts_recent, 0)).emit()
        self.inject(A, self.near.local[1], flags, seq=seq, ack=answered, data=data, options=options)

    def flood(self, send: Callable[[int], None], rounds: int = ROUNDS) -> None:
        for number in range(rounds):
            send(number)
            if number % 250 == 249:
                self.world.advance()
        self.world.run_until(lambda: False, 0.01)

    def stranger(self) -> tuple[bytes, int]:
        return B[:3] + bytes((self.rng.randrange(3, 255),)), self.rng.randrange(1024, 65536)

    def transfer(self, near: Connection, far: Connection, size: int = 20_000) -> bool:
        data = self.rng.randbytes(size)
        near.write(data)
        if not self.world.run_until(lambda: far.readable == size, 30):
            return False
        return far.read(size) == data

    def served(self) -> bool:
        """The old connection works both ways, and a new one can be made."""
        near, far = self.world.pair_on(self.listener)
        good = self.transfer(self.near, self.far) and self.transfer(self.far, self.near) and self.transfer(near, far)
        near.close()
        far.close()
        self.world.run_until(lambda: near.state is not TcpState.ESTABLISHED, 5)
        return good


@pytest.fixture
def scene() -> Any:
    with World(4) as world:
        yield Scene(world)


def test_acks_from_nowhere_are_reset_and_forgotten(scene: Scene) -> None:
    """Nothing is kept for them, and they make no connection."""
    before = scene.tcp["TcpPassiveOpens"]

    def send(_: int) -> None:
        source, port = scene.stranger()
        scene.inject(source, port, ACK, seq=scene.rng.getrandbits(32), ack=scene.rng.getrandbits(32))

    scene.flood(send)
    assert scene.tcp["TcpOutRsts"] > ROUNDS // 2
    assert scene.tcp["TcpPassiveOpens"] == before
    assert scene.limits["tcp-half-open"]["used"] == 0
    assert scene.served()


@pytest.mark.parametrize("flags", [RST, SYN, SYN | ACK, ACK])
def test_blind_segments_into_a_connection_are_challenged_no_more_than_the_limit(scene: Scene, flags: int) -> None:
    """RFC 5961: resets and SYNs in the window, ACKs of what was never sent; a thousand answers a second for all."""
    scene.flood(lambda number: scene.to_the_old(flags, ahead=number + 1, ack=1_000_000 if flags == ACK else 0))
    assert 0 < scene.tcp["TcpExtTCPChallengeACK"] <= 1000
    assert scene.tcp["drops"]["challenge-limit"] >= ROUNDS - 1000 - 600  # or lost on the way to us
    assert scene.far.state is TcpState.ESTABLISHED
    assert scene.served()


def test_resets_of_half_open_connections_must_be_exact(scene: Scene) -> None:
    """A flood of resets against a handshake: the request survives unless one hits."""
    world = scene.world
    near = world.connect()
    assert world.run_until(lambda: bool(scene.listener.half_open), 5)
    request = scene.listener.half_open[0]
    for ahead in range(1, 2000):
        scene.inject(A, near.local[1], RST, seq=request.irs + 1 + ahead)
    assert world.run_until(lambda: bool(scene.listener.ready), 5)
    assert scene.tcp["TcpExtEmbryonicRsts"] == 0
    far = scene.listener.accept()
    assert far is not None
    assert scene.transfer(near, far)


def test_segments_out_of_order_fill_a_buffer_and_no_more(scene: Scene) -> None:
    """Every second byte of the window: the farthest ones go, the limit is counted, the gap can still be filled."""
    scene.flood(lambda number: scene.to_the_old(ACK | PSH, ahead=1 + 2 * number, data=b"x"))
    receiver = scene.far.receiver
    held = len(receiver.reassembly)
    assert 100 < held <= receiver.pin_limit // 257
    assert scene.tcp["TcpExtOfoPruned"] > 5
    assert scene.tcp["drops"]["out-of-order-limit"] == scene.tcp["TcpExtOfoPruned"]
    near, far = scene.world.pair_on(scene.listener)
    assert scene.transfer(near, far)
    assert scene.transfer(scene.far, scene.near)
    data = b"y" * 20_000  # in order now, over everything that was made up
    scene.near.write(data)
    assert scene.world.run_until(lambda: scene.far.readable == len(data), 30)
    assert set(scene.far.read(len(data))) <= set(b"xy")
    assert len(receiver.reassembly) == 0


def test_fins_and_nonsense_to_a_listener(scene: Scene) -> None:
    """Every combination of flags from nowhere: counted, and no more half-open connections than the queue holds."""

    def send(number: int) -> None:
        source, port = scene.stranger()
        scene.inject(source, port, number & 0x3F, seq=scene.rng.getrandbits(32), data=b"?" * (number % 3))

    scene.flood(send)
    drops = scene.tcp["drops"]
    assert drops["syn-and-fin"] > 100
    assert drops["no-connection"] > 100
    assert scene.limits["tcp-half-open"]["used"] <= 65
    assert scene.served()


def test_connections_opened_and_closed_in_a_row_leave_time_waits_up_to_the_limit() -> None:
    with World(4) as world:
        scene = Scene(world)
        for tcp in (world.a.tcp, world.b.tcp):
            tcp.config.time_wait_max = 50
        for _ in range(80):
            near, far = world.pair_on(scene.listener)
            far.close()
            near.close()
            assert world.run_until(lambda: far.state in (TcpState.TIME_WAIT, TcpState.CLOSED), 5)  # noqa: B023 - at once
        assert scene.limits["tcp-time-waits"] == {"used": 50, "most": 50}
        assert scene.tcp["TcpExtTCPTimeWaitOverflow"] >= 30
        assert scene.served()


# --- SO_REUSEPORT (row TCP-04) ---------------------------------------------------------------------------------------


def sharing(s: Script, count: int, options: TcpOptions | None = None) -> list[Listener]:
    claims = [s.tcp.ports.bind(bytes(4), 80, reuse_port=True) for _ in range(count)]
    return [s.tcp.listen(claim, 4, options=options) for claim in claims]


def arrive(s: Script, number: int) -> None:
    s.peer, s.peer_port = bytes((10, 0, 2 + number // 60_000, 15)), 1024 + number
    s.send(SYN, seq=0, options=HeaderOptions(mss=1460))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_tcp_04_flows_are_spread_evenly(count: int) -> None:
    """Each listener gets its share of two thousand peers, within a fifth."""
    s = Script(syncookies=1)
    listeners = sharing(s, count)
    for listener in listeners:
        listener.backlog = 4096
    for number in range(2000):
        arrive(s, number)
    got = [listener.pending for listener in listeners]
    assert sum(got) == 2000
    assert all(abs(one - 2000 / count) < 400 / count for one in got), got


def test_tcp_04_a_flow_keeps_to_its_listener() -> None:
    """A SYN again, the last ACK and whatever comes later meet the same one."""
    s = Script()
    listeners = sharing(s, 4)
    arrive(s, 7)
    s.expect(SYN | ACK)
    arrive(s, 7)
    s.expect(SYN | ACK)
    assert Counter(listener.pending for listener in listeners) == {0: 3, 1: 1}
    s.send(ACK, seq=1, ack=1)
    assert Counter(listener.ready for listener in listeners) == {0: 3, 1: 1}


def test_tcp_04_a_listener_that_leaves_takes_only_its_own() -> None:
    """Its half-open connections are reset; the others' stay; new flows go to who is left."""
    s = Script()
    listeners = sharing(s, 3)
    for number in range(12):
        arrive(s, number)
    s.drain()
    before = [listener.pending for listener in listeners]
    listeners[1].close()
    assert [sent.header.flags for sent in s.drain()] == [RST | ACK] * before[1]
    assert [listener.pending for listener in listeners] == [before[0], 0, before[2]]
    for number in range(100, 140):
        arrive(s, number)
    assert listeners[1].pending == 0
    s.drain()


def test_tcp_04_a_specific_address_goes_before_the_group() -> None:
    s = Script()
    listeners = sharing(s, 2)
    own = s.tcp.listen(s.tcp.ports.bind(s.us, 80, reuse_port=True), 99)
    for number in range(20):
        arrive(s, number)
    assert own.pending == 20
    assert not any(listener.pending for listener in listeners)


def test_tcp_04_cookies_are_the_groups() -> None:
    """A cookie sent for one listener is good where its ACK ends up, after one has left too."""
    s = Script(syncookies=2)
    listeners = sharing(s, 3)
    isns = []
    for number in range(4):
        arrive(s, number)
        isns.append(s.expect(SYN | ACK).header.seq)
    listeners[0].close()
    for number, s.iss in enumerate(isns):
        s.peer_port = 1024 + number
        s.send(ACK, seq=1, ack=1)
    assert sum(listener.ready for listener in listeners) == 4
    assert s.tcp.mib["TcpExtSyncookiesRecv"] == 4


def test_tcp_04_ipv6_too() -> None:
    s = Script(six=True)
    claims = [s.tcp.ports.bind(bytes(16), 80, reuse_port=True) for _ in range(2)]
    listeners = [s.tcp.listen(claim, 99) for claim in claims]
    for number in range(100):
        s.peer, s.peer_port = B6[:-2] + number.to_bytes(2, "big"), 5000
        s.send(SYN, seq=0)
    assert min(listener.pending for listener in listeners) > 25
