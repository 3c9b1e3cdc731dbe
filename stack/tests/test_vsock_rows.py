"""AF_VSOCK sockets against a model guest: rows that need a peer and stand nowhere else; messages, linger, privilege."""

from __future__ import annotations

import errno
import random
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Credentials, Network
from stack.testing.clock import ManualClock
from stack.testing.vsock import GUEST_CID, ModelGuest, ModelStream, ScriptedGuest
from stack.wire.vsock import HEADER, TYPE_SEQPACKET, TYPE_STREAM, Op

AF_VSOCK, STREAM, SEQPACKET = socket.AF_VSOCK, socket.SOCK_STREAM, socket.SOCK_SEQPACKET
ANY = 0xFFFFFFFF
SECOND = 1_000_000_000


class Host:
    """A stack with one guest whose kernel is a model; virtual time."""

    def __init__(self, credentials: Credentials | None = None) -> None:
        from stack import Stack

        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(1))
        self.stack = Stack("host", network=self.network, credentials=credentials)
        self.guest = ScriptedGuest()
        self.model = ModelGuest(self.guest)
        self.stack.add_vsock(self.guest)
        self.open: list[Any] = []

    def socket(self, kind: int = STREAM) -> Any:
        made = self.stack.socket.socket(AF_VSOCK, kind)
        self.open.append(made)
        return made

    def settle(self) -> None:
        while True:
            self.guest.changed()
            while self.network.poll(self.clock()) == self.clock():
                pass
            if not self.model.run():
                return

    def connected(self, kind: int = STREAM) -> tuple[Any, ModelStream]:
        made = self.socket(kind)
        made.setblocking(False)
        with pytest.raises(BlockingIOError):
            made.connect((GUEST_CID, 99))
        self.settle()
        made.settimeout(5)
        return made, self.model.streams[made.getsockname()[1], 99]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    for each in made.open:
        each.close()
    made.network.close()
    assert made.model.broken == []


def refused(expected: int) -> Any:
    return pytest.raises(OSError, match=f"Errno {expected}\\]")


def bits(made: Any) -> int:
    return int(made._sock.poll()) & (select.POLLIN | select.POLLOUT | select.POLLERR | select.POLLHUP)


def test_vs_09_10_the_header_and_the_operations_are_those_of_the_specification() -> None:
    """VS-09, VS-10: 44 bytes, packed, little-endian; eight operations, two types."""
    fields = (0x0102030405060708, 2, 0x11121314, 0x21222324, 5, 1, int(Op.RW), 3, 0x31323334, 0x41424344)
    packed = HEADER.pack(*fields)
    assert packed == bytes.fromhex(
        "0807060504030201 0200000000000000 14131211 24232221 05000000 0100 0500 03000000 34333231 44434241"
    )
    assert len(packed) == 44
    assert [op.name for op in Op] == [
        "INVALID",
        "REQUEST",
        "RESPONSE",
        "RST",
        "SHUTDOWN",
        "RW",
        "CREDIT_UPDATE",
        "CREDIT_REQUEST",
    ]
    assert [int(op) for op in Op] == list(range(8))
    assert (TYPE_STREAM, TYPE_SEQPACKET) == (1, 2)


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_vs_19_a_socket_is_made_without_any_guest_and_its_connect_is_enodev(kind: int) -> None:
    """Without any guest a socket can be made; its connect is ENODEV."""
    network = Network(clock=ManualClock(), rng=random.Random(1))
    with network.stack("alone").socket.socket(AF_VSOCK, kind) as made, refused(errno.ENODEV):
        made.connect((GUEST_CID, 1))
    network.close()


def test_vs_21_we_are_the_mirror_of_the_guests_kernel(host: Host) -> None:
    """VS-21: CID 2; REQUEST is answered with RESPONSE or RST; every packet carries our credit."""
    listener = host.socket()
    listener.bind((ANY, 5000))
    listener.listen(1)
    accepted = host.model.connect(5000, 1)
    turned_away = host.model.connect(5001, 1)
    host.settle()
    assert (accepted.state, accepted.peer_buf_alloc) == ("connected", 1 << 18)
    assert turned_away.state == "reset"
    child, address = listener.accept()
    assert (child.getsockname(), address) == ((2, 5000), (GUEST_CID, 1))
    child.close()


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
@pytest.mark.parametrize("port", [0, 1, 22, 1023])
def test_vs_03_sec_02_reserved_ports_are_for_who_may_bind_services(kind: int, port: int) -> None:
    """VS-03, SEC-02: EACCES without CAP_NET_BIND_SERVICE; from 1024 on anybody may."""
    for credentials, allowed in ((Credentials(), True), (Credentials(uid=1000, capabilities=frozenset()), False)):
        host = Host(credentials)
        made = host.socket(kind)
        if allowed:
            made.bind((ANY, port))
        else:
            with refused(errno.EACCES):
                made.bind((ANY, port))
            made.bind((ANY, 1024))
        made.close()
        host.network.close()


def test_vs_06_messages_through_the_socket_interface(host: Host) -> None:
    """Section 1.3, VS-06: boundaries, MSG_PEEK, MSG_TRUNC, MSG_EOR, MSG_WAITALL, sendmsg; sendto is refused."""
    made, stream = host.connected(SEQPACKET)
    assert made.send(b"one") == 3
    assert made.sendmsg([b"t", b"w", b"o"], [], socket.MSG_EOR) == 3
    assert made.send(b"") == 0
    host.settle()
    assert stream.messages == [(b"one", False), (b"two", True)]
    with refused(errno.EISCONN):
        made.sendto(b"x", (GUEST_CID, 99))
    with refused(errno.EOPNOTSUPP):
        made.send(b"x", socket.MSG_OOB)
    with refused(errno.EOPNOTSUPP):
        made.recv(1, socket.MSG_OOB)
    for message in (b"a" * 100, b"b" * 10, b"c" * 10, b"d" * 10):
        stream.write_message(message, end_of_record=message[:1] == b"b")
    host.settle()
    assert made.recv(5, socket.MSG_PEEK) == b"aaaaa"
    assert made.recvmsg(5)[:3] == (b"aaaaa", [], socket.MSG_TRUNC)
    assert made.recvmsg(50)[:3] == (b"b" * 10, [], socket.MSG_EOR)
    assert made.recv(50, socket.MSG_WAITALL) == b"c" * 10
    target = bytearray(50)
    assert made.recvfrom_into(target) == (10, None)
    assert target[:10] == b"d" * 10


def test_vs_17_poll_of_messages_speaks_of_whole_ones(host: Host) -> None:
    """VS-17 for SEQPACKET: a beginning cannot be read; room too small for the message that waits is no room."""
    made, stream = host.connected(SEQPACKET)
    assert bits(made) == select.POLLOUT
    stream.send(Op.RW, payload=b"begin")
    host.settle()
    assert bits(made) == select.POLLOUT
    stream.tx_cnt += 5
    stream.write_message(b"end")
    host.settle()
    assert bits(made) == select.POLLOUT | select.POLLIN
    assert made.recv(100) == b"beginend"
    made.setblocking(False)
    made.send(bytes(200_000))
    with pytest.raises(BlockingIOError):
        made.send(bytes(100_000))
    host.settle()
    assert bits(made) == 0
    made.send(bytes(1000))
    assert bits(made) == select.POLLOUT
    stream.consume(200_000)


def test_a_message_nobody_can_take_is_emsgsize_at_once(host: Host) -> None:
    made, _ = host.connected(SEQPACKET)
    with refused(errno.EMSGSIZE):
        made.send(bytes((1 << 18) + 1))


def test_a_receive_buffer_too_small_loses_the_rest_and_only_that(host: Host) -> None:
    made, stream = host.connected(SEQPACKET)
    made.setblocking(False)
    stream.write_message(b"abc")
    host.settle()
    assert made.recv(1) == b"a"
    with pytest.raises(BlockingIOError):
        made.recv(1)


@pytest.mark.parametrize("seconds", [1, 5])
def test_vs_08_linger_waits_until_the_guest_has_everything_or_time_is_up(host: Host, seconds: int) -> None:
    """VS-08, SO_LINGER as since Linux 6.16: until what was written is the guest's."""
    made, _ = host.connected()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    host.guest.room = 0
    made.send(bytes(100_000))
    host.settle()
    scheduler = host.network.scheduler

    def room_comes() -> None:
        host.guest.room = None
        host.guest.changed()

    timer = scheduler.timer(room_comes)
    timer.arm_in(3 * SECOND)
    before = host.clock()
    made.close()
    assert host.clock() - before == min(seconds, 3) * SECOND
    timer.cancel()
    room_comes()
    host.settle()


def test_linger_of_zero_and_linger_with_nothing_to_wait_for_do_not_wait(host: Host) -> None:
    """Unlike TCP's, a vsock's linger of 0 s is no abort."""
    for seconds in (0, 10):
        made, stream = host.connected()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
        made.send(b"last words")
        before = host.clock()
        made.close()
        host.settle()
        assert host.clock() == before
        assert (bytes(stream.received), stream.shutdown) == (b"last words", 3)
        stream.send(Op.RST)
        del host.model.streams[stream.host_port, 99]
        host.guest.changed()
        host.settle()


def test_vs_08_close_waits_eight_seconds_for_the_guest_and_no_longer(host: Host) -> None:
    """VS-08: the port is taken for as long, and free after it."""
    made, stream = host.connected()
    made.close()
    host.settle()
    assert (stream.shutdown, stream.state) == (3, "connected")
    host.network.advance(8 * SECOND - 1)
    host.settle()
    assert stream.state == "connected"
    host.network.advance(1)
    host.settle()
    assert stream.state == "reset"
    assert host.stack.vsock.reserved == 0


def test_a_low_water_mark_above_what_was_granted_has_the_guest_told(host: Host) -> None:
    """SO_RCVLOWAT, VS-12: otherwise both would wait."""
    made, stream = host.connected()
    stream.write(bytes(1000))
    host.settle()
    made.recv(1000)
    host.settle()
    assert stream.peer_fwd_cnt == 0, "not worth a packet"
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 18)
    host.settle()
    assert stream.peer_fwd_cnt == 1000
    while stream.write(bytes(65536)):
        pass
    host.settle()
    assert bits(made) & select.POLLIN
