"""What is taken from a user reaches the guest, whatever the guest is doing meanwhile: VS-08, and packets cut in two.

In virtual time. The oracle for the order is virtio 1.3 section 5.10.6.6: a stream's bytes, then its end.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest

from stack.errors import NetError
from stack.scheduler import NS_PER_S, Scheduler
from stack.testing.vsock import GUEST_CID, ScriptedGuest
from stack.vsock import SeqpacketConnection, VsockConnection, VsockEngine, VsockState
from stack.vsock.connection import CLOSE_TIMEOUT
from stack.vsock.transport import VsockTx
from stack.wire.vsock import TYPE_SEQPACKET, TYPE_STREAM, Op

GUEST_PORT = 1234


class NarrowGuest(ScriptedGuest):
    """Takes `space` bytes of payload (None: any), then nothing; a packet may leave in part, as from a real ring."""

    space: int | None = None

    def transmit(self, burst: Sequence[VsockTx]) -> int:
        self.partial = 0
        for count, packet in enumerate(burst):
            size = len(packet[9])
            if self.space is not None:
                if self.space <= 0 or size > self.space:
                    self.partial = max(0, self.space)
                    self.space = 0
                    if self.partial:
                        self.sent.append((*packet[:6], 0, *packet[7:9], bytes(packet[9][: self.partial])))
                    return count
                self.space -= size or 1
            self.sent.append((*packet[:9], bytes(packet[9])))
        return len(burst)


class World:
    def __init__(self, kind: int = TYPE_STREAM) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler)
        self.guest = NarrowGuest()
        self.port = self.engine.add_guest(self.guest)
        self.connection = self.engine.connect(GUEST_CID, GUEST_PORT, kind=kind)
        self.host_port = self.connection.local[1]
        self.turn()
        self.feed(Op.RESPONSE, kind)
        assert self.connection.connected
        self.guest.take()

    def turn(self) -> None:
        self.scheduler.run_timers()
        while self.port.service(64):
            pass
        self.scheduler.run_deferred()

    def feed(self, op: int, kind: int = TYPE_STREAM) -> None:
        self.guest.feed(op, self.host_port, GUEST_PORT, kind=kind)
        self.turn()

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.scheduler.now += NS_PER_S
            self.turn()

    def came(self) -> tuple[bytes, list[str]]:
        """The payload and the operations without one that the guest has got since the last call."""
        packets = self.guest.take()
        payload = b"".join(bytes(packet[9]) for packet in packets)
        return payload, [Op(packet[5]).name for packet in packets if packet[5] != Op.RW]


def ended(connection: VsockConnection) -> bool:
    return connection.state is VsockState.CLOSED


DATA = (bytes(range(251)) * 800)[:200_000]


@pytest.mark.parametrize("stall", ["paused", "no buffers"])
def test_vs_08_what_was_written_before_close_reaches_a_guest_that_stands_still_for_an_hour(stall: str) -> None:
    """close() keeps what was written until the guest has it, however long it is paused or out of buffers."""
    world = World()
    world.guest.space = 70_000
    world.connection.write(DATA)
    world.connection.close()
    world.turn()
    if stall == "paused":
        world.guest.carrier = False
        world.guest.changed()
    world.pass_time(3600)
    assert not ended(world.connection)
    world.guest.carrier, world.guest.space = True, None
    world.guest.changed()
    world.turn()
    assert world.came() == (DATA, ["SHUTDOWN"])


def test_vs_08_the_eight_seconds_are_over_once_the_guest_has_everything_and_says_nothing() -> None:
    """A guest that took the data and does not answer SHUTDOWN is reset, and the port is free."""
    world = World()
    world.guest.space = 70_000
    world.connection.write(DATA)
    world.connection.close()
    world.pass_time(20)
    world.guest.space = None
    world.guest.changed()
    world.turn()
    assert world.came() == (DATA, ["SHUTDOWN"])
    world.pass_time(CLOSE_TIMEOUT // NS_PER_S)
    assert world.came() == (b"", ["RST"])
    assert ended(world.connection)
    assert world.engine.reserved == 0
    assert world.host_port not in world.engine.ports


@pytest.mark.parametrize("end", ["reset", "removed"])
def test_vs_08_a_guest_that_is_gone_is_not_waited_for(end: str) -> None:
    world = World()
    world.guest.space = 0
    world.connection.write(DATA)
    world.connection.close()
    world.pass_time(30)
    if end == "reset":
        world.guest.generation += 1
        world.guest.changed()
    else:
        world.engine.remove_guest(GUEST_CID)
    world.turn()
    assert ended(world.connection)
    assert world.engine.reserved == 0
    assert world.host_port not in world.engine.ports


@pytest.mark.parametrize("space", [1, 1000, 65_536, 100_001])
def test_a_packet_that_left_in_part_goes_on_where_it_was_cut(space: int) -> None:
    """No byte twice, none left out; what is written meanwhile stays behind it."""
    world = World()
    world.guest.space = space
    world.connection.write(DATA[:120_000])
    world.turn()
    world.connection.write(DATA[120_000:])
    got = b""
    for _ in range(len(DATA)):
        payload, _ = world.came()
        got += payload
        assert world.connection.unsent == (len(got) < len(DATA))
        if len(got) == len(DATA):
            break
        world.guest.space = max(space, 700)
        world.guest.changed()
        world.turn()
    assert got == DATA


def test_a_message_that_left_in_part_keeps_its_end() -> None:
    """virtio 1.3 section 5.10.6.6.1: SEQ_EOM and SEQ_EOR are on the last piece, whoever cut it."""
    world = World(TYPE_SEQPACKET)
    assert isinstance(world.connection, SeqpacketConnection)
    world.guest.space = 100
    assert world.connection.send_message(DATA[:5000], end_of_record=True)
    world.turn()
    world.guest.space = None
    world.turn()
    sent = world.guest.take()
    assert [(packet[6], len(packet[9])) for packet in sent] == [(0, 100), (3, 4900)]
    assert b"".join(bytes(packet[9]) for packet in sent) == DATA[:5000]


def test_the_rest_of_a_packet_dies_with_its_generation() -> None:
    world = World()
    world.guest.space = 1000
    world.connection.write(DATA)
    world.turn()
    world.guest.take()
    world.guest.generation += 1
    world.guest.space = None
    world.guest.changed()
    world.turn()
    assert world.came() == (b"", [])
    with pytest.raises(NetError) as reset:
        world.connection.write(b"x")
    assert reset.value.errno == errno.EPIPE
    assert world.connection.take_error() == errno.ECONNRESET
