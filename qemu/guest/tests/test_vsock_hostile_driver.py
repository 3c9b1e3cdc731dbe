"""Every row of the hostile list for vsock (reference section 4.4), sent by a driver through real rings to real sockets.

Structure is the device's business and tested there (vhost_user/tests/test_vsock_device.py); here is what packets mean.
After each attack an ordinary connection of the same guest still works.
"""

from __future__ import annotations

import errno
import random
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stack import Network
from stack.testing.clock import ManualClock
from stack.vsock.guest import YOUNG
from vhost_user import Server, VsockDevice
from vhost_user.driver import VsockDriver, VsockPacket
from vhost_user.driver.vsock import (
    ALL_FEATURES,
    OP_CREDIT_REQUEST,
    OP_CREDIT_UPDATE,
    OP_REQUEST,
    OP_RESPONSE,
    OP_RST,
    OP_RW,
    OP_SHUTDOWN,
    SEQ_EOM,
    SEQ_EOR,
    TYPE_SEQPACKET,
    TYPE_STREAM,
)
from vhost_user.features import VsockFeature

CID = 3
PORT = 5000
ANY = 0xFFFFFFFF


class Rig:
    """A stack, a device, and a driver in the guest's place; virtual time, no thread but the control thread."""

    def __init__(self, **driver: Any) -> None:
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(1))
        self.stack = self.network.stack("host")
        self.device = VsockDevice(CID)
        self.stack.add_vsock(self.device)
        self.server = Server()
        ours, theirs = socket.socketpair()
        self.server.adopt(self.device, ours)
        self.guest = VsockDriver(theirs, **driver)
        self.open: list[Any] = []
        self.port = self.stack.vsock.guests[CID]
        self.settle()

    def close(self) -> None:
        for each in self.open:
            each.close()
        self.guest.close()
        self.network.close()
        self.device.close()
        self.server.close()

    def settle(self) -> None:
        for _ in range(10_000):
            if self.network.poll(self.clock()) != self.clock():
                return
        raise AssertionError("it goes on for ever")

    def send(self, *packets: VsockPacket) -> None:
        left = list(packets)
        while left:
            left = left[self.guest.send(left) :]
            self.settle()

    def answers(self) -> list[VsockPacket]:
        """What the device has for the guest by now."""
        got: list[VsockPacket] = []
        while True:
            self.settle()
            packets = self.guest.recv()
            if not packets:
                return got
            got += [packet._replace(payload=bytes(packet.payload)) for packet in packets]

    def ops(self) -> list[int]:
        return [packet.op for packet in self.answers()]

    def packet(self, op: int, payload: bytes = b"", *, src: int = 1, dst: int = PORT, **fields: int) -> VsockPacket:
        return self.guest.packet(op, src, dst, payload, **fields)

    def listen(self, kind: int = socket.SOCK_STREAM, port: int = PORT, backlog: int = 4096) -> Any:
        made = self.stack.socket.socket(socket.AF_VSOCK, kind)
        made.setblocking(False)
        made.bind((ANY, port))
        made.listen(backlog)
        self.open.append(made)
        return made

    def connected(self, kind: int = socket.SOCK_STREAM, *, alloc: int = 1 << 18) -> Any:
        """A connection the guest opened from port 1 to PORT."""
        listener = self.listen(kind)
        wire = TYPE_SEQPACKET if kind == socket.SOCK_SEQPACKET else TYPE_STREAM
        self.send(self.packet(OP_REQUEST, type=wire, buf_alloc=alloc))
        assert self.ops() == [OP_RESPONSE]
        made, _ = listener.accept()
        made.setblocking(False)
        self.open.append(made)
        return made

    def works(self) -> bool:
        """An ordinary connection, beginning to end."""
        listener = self.listen(port=9)
        self.send(self.packet(OP_REQUEST, src=9, dst=9))
        assert self.ops() == [OP_RESPONSE]
        self.send(self.packet(OP_RW, b"alive", src=9, dst=9))
        made, _ = listener.accept()
        alive: bool = made.recv(10) == b"alive"
        made.close()
        listener.close()
        assert self.ops() == [OP_SHUTDOWN]
        self.send(self.packet(OP_RST, src=9, dst=9))
        return alive


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def tables_are_empty(rig: Rig) -> bool:
    return not rig.port.connections and rig.stack.vsock.reserved == 0


# -- types, operations, destinations ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 3, 9, 0xFFFF])
def test_unknown_types_are_refused_in_their_own_type(rig: Rig, kind: int) -> None:
    rig.listen()
    rig.send(rig.packet(OP_REQUEST, type=kind), rig.packet(OP_RST, type=kind))
    (answer,) = rig.answers()
    assert (answer.type, answer.op, answer.src_port, answer.dst_port) == (kind, OP_RST, PORT, 1)
    assert rig.works()


def test_seqpacket_that_was_not_negotiated_is_refused() -> None:
    rig = Rig(features=ALL_FEATURES & ~VsockFeature.SEQPACKET)
    try:
        rig.listen(socket.SOCK_SEQPACKET)
        rig.send(rig.packet(OP_REQUEST, type=TYPE_SEQPACKET))
        assert rig.ops() == [OP_RST]
        made = rig.stack.socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
        with made, pytest.raises(OSError, match=f"Errno {errno.ESOCKTNOSUPPORT}"):
            made.connect((CID, 1))
        assert rig.works()
    finally:
        rig.close()


def test_streams_that_were_given_up_are_refused() -> None:
    """NO_IMPLIED_STREAM without STREAM: messages only."""
    rig = Rig(features=ALL_FEATURES & ~VsockFeature.STREAM)
    try:
        rig.listen()
        rig.send(rig.packet(OP_REQUEST))
        assert rig.ops() == [OP_RST]
        rig.open.pop().close()
        made = rig.connected(socket.SOCK_SEQPACKET)
        rig.send(rig.packet(OP_RW, b"message", type=TYPE_SEQPACKET, flags=SEQ_EOM | SEQ_EOR))
        assert made.recvmsg(100)[:3] == (b"message", [], socket.MSG_EOR)
    finally:
        rig.close()


@pytest.mark.parametrize("op", [0, 8, 99, 0xFFFF, OP_REQUEST, OP_RESPONSE])
def test_operations_without_a_place_end_the_connection(rig: Rig, op: int) -> None:
    """Unknown ones, and a duplicate REQUEST: RST, ECONNRESET, nothing left in the tables."""
    made = rig.connected()
    rig.send(rig.packet(op))
    assert rig.ops() == [OP_RST]
    with pytest.raises(ConnectionResetError):
        made.recv(1)
    assert tables_are_empty(rig)
    assert rig.works()


@pytest.mark.parametrize("op", [0, 8, 99, OP_RESPONSE, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST])
def test_packets_of_dead_connections_are_refused(rig: Rig, op: int) -> None:
    made = rig.connected()
    made.close()
    rig.send(rig.packet(OP_RST))
    assert rig.ops() == [OP_SHUTDOWN]
    rig.send(rig.packet(op, b"x" if op == OP_RW else b""))
    assert rig.ops() == [OP_RST]
    assert tables_are_empty(rig)


@pytest.mark.parametrize("dst", [0, 1, 4, 0xFFFFFFFF, 1 << 32 | 2, 2**64 - 1])
def test_other_destinations_are_refused_at_once(rig: Rig, dst: int) -> None:
    """A guest must not wait for its time-out; the answer comes from whom it asked."""
    rig.listen()
    rig.send(VsockPacket(CID, dst, 1, PORT, OP_REQUEST), VsockPacket(CID, dst, 1, PORT, OP_RST))
    (answer,) = rig.answers()
    assert (answer.src_cid, answer.dst_cid, answer.op) == (dst, CID, OP_RST)
    assert rig.works()


@pytest.mark.parametrize("src", [0, 1, 2, 4, 0xFFFFFFFF, 1 << 32 | CID])
def test_packets_in_anothers_name_are_dropped_without_a_word(rig: Rig, src: int) -> None:
    made = rig.connected()
    rig.send(VsockPacket(src, 2, 1, PORT, OP_RW, b"forged"), VsockPacket(src, 2, 1, PORT, OP_RST))
    assert rig.ops() == []
    with pytest.raises(BlockingIOError):
        made.recv(1)
    assert rig.device.drops == {"rx-src-cid": 2}


# -- lengths ------------------------------------------------------------------------------------------------------


def test_lengths_that_lie_cost_the_packet_and_nothing_else(rig: Rig) -> None:
    """Longer than the chain, longer than 64 KiB, none at all, a payload on a control packet."""
    made = rig.connected()
    rig.send(
        rig.packet(OP_RW, b"x" * 10)._replace(length=11),
        rig.packet(OP_RW, b"x" * 10)._replace(length=65537),
        rig.packet(OP_RW, b"x" * 10)._replace(length=2**32 - 1),
        rig.packet(OP_RW, b""),
        rig.packet(OP_CREDIT_UPDATE, b"y" * 5000),
        rig.packet(OP_RW, b"good"),
    )
    assert made.recv(100) == b"good"
    assert rig.device.drops == {"rx-payload": 1, "rx-long": 2}
    assert rig.works()


# -- credit -------------------------------------------------------------------------------------------------------


def test_more_than_was_granted_resets_that_connection_and_keeps_what_was_in_order(rig: Rig) -> None:
    made = rig.connected()
    rig.send(*[rig.packet(OP_RW, bytes(65536))] * 5)
    assert OP_RST in rig.ops()
    assert rig.port.drops["violation: it sent more than it was granted"] == 1
    assert sum(len(made.recv(1 << 17)) for _ in range(2)) == 1 << 18
    with pytest.raises(ConnectionResetError):
        made.recv(1)
    assert rig.works()


@pytest.mark.parametrize("forwarded", [1, 1000, 1 << 20, 0x7FFFFFFF])
def test_a_count_ahead_of_what_was_sent_is_a_lie(rig: Rig, forwarded: int) -> None:
    made = rig.connected()
    rig.send(rig.packet(OP_CREDIT_UPDATE, fwd_cnt=forwarded))
    assert rig.ops() == [OP_RST]
    with pytest.raises(ConnectionResetError):
        made.recv(1)
    assert rig.works()


def test_a_lie_in_the_very_request_is_refused(rig: Rig) -> None:
    rig.listen()
    rig.send(rig.packet(OP_REQUEST, fwd_cnt=1))
    assert rig.ops() == [OP_RST]
    assert tables_are_empty(rig)


def test_a_buffer_smaller_than_what_is_under_way_is_no_credit(rig: Rig) -> None:
    """CVE-2026-23069: an underflow would be four gigabytes of it."""
    made = rig.connected(alloc=10_000)
    assert made.send(bytes(20_000)) == 10_000
    rig.send(rig.packet(OP_CREDIT_UPDATE, buf_alloc=10))
    with pytest.raises(BlockingIOError):
        made.send(b"x")
    rig.send(rig.packet(OP_CREDIT_UPDATE, buf_alloc=10, fwd_cnt=10_000))
    assert made.send(bytes(100)) == 10
    assert sum(len(packet.payload) for packet in rig.answers()) == 10_010


def test_a_buffer_without_end_makes_us_hold_no_more_than_our_own(rig: Rig) -> None:
    made = rig.connected(alloc=ANY)
    assert made.send(bytes(1 << 20)) == 1 << 18
    with pytest.raises(BlockingIOError):
        made.send(b"x")


# -- floods -------------------------------------------------------------------------------------------------------


def test_a_flood_of_requests_stops_at_the_limits(rig: Rig) -> None:
    """1024 connections a guest; the rest is refused, and the memory comes back."""
    listener = rig.listen()
    rig.send(*[rig.packet(OP_REQUEST, src=port) for port in range(1500)])
    ops = rig.ops()
    assert (ops.count(OP_RESPONSE), ops.count(OP_RST)) == (1024, 476)
    listener.close()
    assert tables_are_empty(rig)
    assert rig.ops() == [OP_RST] * 1024
    assert rig.works()


def test_a_short_backlog_refuses_and_forgets(rig: Rig) -> None:
    """The accept queue counts right also after connections in it were reset by the guest."""
    listener = rig.listen(backlog=3)
    for _ in range(5):
        rig.send(*[rig.packet(OP_REQUEST, src=port) for port in range(4)])
        assert rig.ops() == [OP_RESPONSE] * 4
        rig.send(rig.packet(OP_REQUEST, src=99), *[rig.packet(OP_RST, src=port) for port in range(4)])
        assert rig.ops() == [OP_RST]
        for _ in range(4):
            made, _ = listener.accept()
            assert made.recv(1) == b""
            made.close()
    assert tables_are_empty(rig)


def test_a_storm_of_rst_is_never_answered(rig: Rig) -> None:
    """Cloud Hypervisor 8692."""
    made = rig.connected()
    rig.send(*[rig.packet(OP_RST, src=port) for port in range(2, 1500)])
    rig.send(*[rig.packet(OP_RST, type=kind) for kind in (0, 2, 7)])
    assert rig.ops() == []
    rig.send(rig.packet(OP_RW, b"still here"))
    assert made.recv(100) == b"still here"
    rig.send(*[rig.packet(OP_RST)] * 100)
    assert rig.ops() == []


def test_what_is_in_one_burst_behind_the_end_finds_nobody(rig: Rig) -> None:
    """Data, RST, data, REQUEST of the same ports at once: no packet meets a connection that is gone."""
    first = rig.connected()
    rig.send(
        rig.packet(OP_RW, b"last"),
        rig.packet(OP_RST),
        rig.packet(OP_RW, b"nobody's"),
        rig.packet(OP_REQUEST),
    )
    assert rig.ops() == [OP_RST, OP_RESPONSE]
    rig.send(rig.packet(OP_RW, b"new"))
    second, _ = rig.open[0].accept()
    rig.open.append(second)
    assert (first.recv(100), first.recv(100), second.recv(100)) == (b"last", b"", b"new")
    assert rig.works()


def test_unread_bytes_do_not_keep_what_came_with_them(rig: Rig) -> None:
    """One packet in five is for a stream nobody reads, the others for one that is read at once."""
    listener = rig.listen()
    rig.send(rig.packet(OP_REQUEST, src=1), rig.packet(OP_REQUEST, src=2))
    assert rig.ops() == [OP_RESPONSE] * 2
    unread, _ = listener.accept()
    eager, _ = listener.accept()
    rig.open += [unread, eager]
    eager.setblocking(False)
    forwarded = 0
    for _ in range(40):
        rig.send(rig.packet(OP_RW, bytes(5000), src=1), *[rig.packet(OP_RW, bytes(60_000), src=2)] * 4)
        while forwarded < eager._sock.phase.connection.credit.received:
            forwarded += len(eager.recv(1 << 20))
        rig.answers()
    connection = unread._sock.phase.connection
    assert connection.readable == 40 * 5000
    views = [piece for piece in connection._incoming._pieces if type(piece) is memoryview]
    kept = {id(view.obj): len(memoryview(view.obj)) for view in views}
    assert sum(kept.values()) <= (YOUNG + 1) << 18, "of the last bursts alone"
    assert unread.recv(1 << 20) == bytes(40 * 5000)


def test_a_guest_that_never_takes_its_answers_is_still_listened_to() -> None:
    """Firecracker 2057, vhost-device 494: a receive ring without buffers stops what goes there, and nothing else."""
    rig = Rig(rx_size=2, tx_size=4)
    try:
        listener = rig.listen()
        rig.send(rig.packet(OP_REQUEST))
        made, _ = listener.accept()
        made.setblocking(False)
        rig.open.append(made)
        data = bytes(range(256)) * 400
        sent = made.send(data)
        assert sent == len(data)
        for _ in range(20):
            rig.send(*[rig.packet(OP_RW, b"z" * 1000)] * 5, *[rig.packet(OP_RW, src=7)] * 50)
            assert len(made.recv(10_000)) == 5000
        got = b"".join(bytes(packet.payload) for packet in rig.answers() if packet.dst_port == 1)
        assert got == data
        assert rig.works()
    finally:
        rig.close()


# -- the guest comes and goes -------------------------------------------------------------------------------------


def ends(rig: Rig, how: Callable[[], None]) -> None:
    """`how` ends connections with ECONNRESET, at once, and keeps listeners."""
    made = rig.connected()
    rig.send(rig.packet(OP_RW, b"unread"))
    how()
    rig.settle()
    assert made.recv(100) == b"unread"
    with pytest.raises(ConnectionResetError):
        made.recv(1)
    assert made.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        made.send(b"x")
    assert not rig.port.connections


def test_a_driver_reset_ends_connections_and_keeps_listeners(rig: Rig) -> None:
    """VS-14."""

    def reset() -> None:
        rig.guest.reset()
        rig.guest.start()

    ends(rig, reset)
    rig.send(rig.packet(OP_REQUEST))
    assert rig.ops() == [OP_RESPONSE]


def test_a_guest_that_dies_ends_connections_at_once_and_the_next_one_finds_the_listeners(rig: Rig) -> None:
    def die() -> None:
        rig.guest.close()
        for _ in range(100):
            if not rig.device.connected:
                return
            select.select([rig.device.fileno()], [], [], 0.1)  # until the control thread has seen it
            rig.settle()

    ends(rig, die)
    ours, theirs = socket.socketpair()
    rig.server.adopt(rig.device, ours)
    rig.guest = VsockDriver(theirs)
    rig.settle()
    rig.send(rig.packet(OP_REQUEST))
    assert rig.ops() == [OP_RESPONSE]


def test_a_pause_keeps_connections_however_long(rig: Rig) -> None:
    """QMP stop and cont: same rings, same indexes."""
    made = rig.connected()
    rig.guest.stop()
    rig.settle()
    assert made.send(b"while it sleeps") == 15
    rig.network.advance(3600 * 10**9)
    rig.guest.start()
    rig.settle()
    assert b"".join(packet.payload for packet in rig.answers()) == b"while it sleeps"
    rig.send(rig.packet(OP_RW, b"awake"))
    assert made.recv(100) == b"awake"


def test_a_guest_is_taken_away_and_given_back_at_run_time(rig: Rig) -> None:
    made = rig.connected()
    rig.stack.remove_vsock(CID)
    with pytest.raises(ConnectionResetError):
        made.recv(1)
    with pytest.raises(KeyError, match="CID 3"):
        rig.stack.remove_vsock(CID)
    rig.settle()
    other = rig.stack.socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    with other, pytest.raises(OSError, match=f"Errno {errno.ENODEV}"):
        other.connect((CID, 1))
    rig.guest.reset()
    rig.guest.start()
    rig.stack.add_vsock(rig.device)
    rig.settle()
    rig.send(rig.packet(OP_REQUEST))
    assert rig.ops() == [OP_RESPONSE]


def test_another_cid_is_the_guests_from_its_next_start(rig: Rig) -> None:
    made = rig.connected()
    rig.device.set_guest_cid(44)
    rig.guest.reset()
    rig.guest.start()
    rig.settle()
    with pytest.raises(ConnectionResetError):
        made.recv(1)
    assert list(rig.stack.vsock.guests) == [44]
    rig.guest.guest_cid = 44
    rig.send(rig.packet(OP_REQUEST))
    (answer,) = rig.answers()
    assert (answer.dst_cid, answer.op) == (44, OP_RESPONSE)


def test_the_same_cid_in_two_networks_never_clashes() -> None:
    one, two = Rig(), Rig()
    try:
        assert one.works()
        assert two.works()
    finally:
        one.close()
        two.close()


# -- siblings through rings ---------------------------------------------------------------------------------------


def test_two_drivers_of_a_group_talk_to_each_other_and_one_without_does_not(rig: Rig) -> None:
    guests = {}
    try:
        for cid, groups in ((10, ("a", "b")), (11, ("b",)), (12, ("c",))):
            device = VsockDevice(cid)
            rig.stack.add_vsock(device, groups=groups)
            ours, theirs = socket.socketpair()
            rig.server.adopt(device, ours)
            guests[cid] = (VsockDriver(theirs), device)
        rig.settle()
        ten, eleven = guests[10][0], guests[11][0]
        ten.send([VsockPacket(10, 11, 1, 2, OP_REQUEST), VsockPacket(10, 12, 1, 2, OP_REQUEST)])
        rig.settle()
        (refusal,) = ten.recv()
        assert (refusal.src_cid, refusal.op) == (12, OP_RST)
        (request,) = eleven.recv()
        assert request[:5] == (10, 11, 1, 2, OP_REQUEST)
        eleven.send([VsockPacket(11, 10, 2, 1, OP_RESPONSE), VsockPacket(11, 10, 2, 1, OP_RW, b"welcome")])
        rig.settle()
        assert [(packet.src_cid, packet.op, bytes(packet.payload)) for packet in ten.recv()] == [
            (11, OP_RESPONSE, b""),
            (11, OP_RW, b"welcome"),
        ]
    finally:
        for driver, device in guests.values():
            rig.stack.remove_vsock(device.guest_cid)
            driver.close()
            device.close()
