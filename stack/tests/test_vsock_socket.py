"""AF_VSOCK sockets of a Stack, in virtual time, against a model guest (rows VS-01..VS-18, section 2.6)."""

from __future__ import annotations

import errno
import random
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from stack import Network, Stack
from stack.testing.clock import ManualClock
from stack.testing.vsock import GUEST_CID, ModelGuest, ModelStream, ScriptedGuest
from stack.vsock.transport import VsockTx
from stack.wire.vsock import Op

AF_VSOCK, SOCK_STREAM = socket.AF_VSOCK, socket.SOCK_STREAM
ANY = 0xFFFFFFFF
SIOCINQ, SIOCOUTQ = 0x541B, 0x5411
BUFFER_SIZE, BUFFER_MIN, BUFFER_MAX, TIMEOUT_OLD, TIMEOUT_NEW = 0, 1, 2, 6, 8


class LiveGuest(ScriptedGuest):
    """A scripted guest whose model answers whatever the host transmits, at once."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelGuest(self)
        self.answers = True
        self.refuses = False

    def feed(self, *args: Any, **fields: Any) -> None:
        super().feed(*args, **fields)
        self.changed()

    def transmit(self, burst: Sequence[VsockTx]) -> int:
        count = super().transmit(burst)
        if self.refuses:
            for packet in self.take():
                if packet[5] == Op.REQUEST:
                    self.feed(Op.RST, packet[2], packet[3])
        elif self.answers:
            self.model.run()
        return count


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(1))
        self.stack: Stack = self.network.stack("host")
        self.guest = LiveGuest()
        self.stack.add_vsock(self.guest)
        self.open: list[Any] = []

    def socket(self) -> Any:
        made = self.stack.socket.socket(AF_VSOCK, SOCK_STREAM)
        self.open.append(made)
        return made

    def settle(self) -> None:
        """Run what is due now."""
        while self.network.poll(self.clock()) == self.clock():
            pass

    def listening(self, port: int = 5000) -> Any:
        listener = self.socket()
        listener.bind((ANY, port))
        listener.listen(8)
        return listener

    def accepted(self) -> tuple[Any, ModelStream]:
        """A connection the guest opened."""
        listener = self.listening()
        stream = self.guest.model.connect(5000, 77)
        self.guest.changed()
        connection, address = listener.accept()
        self.open.append(connection)
        assert address == (GUEST_CID, 77)
        return connection, stream

    def connected(self, port: int = 99) -> tuple[Any, ModelStream]:
        """A connection the host opened."""
        made = self.socket()
        made.connect((GUEST_CID, port))
        return made, self.guest.model.streams[made.getsockname()[1], port]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for each in made.open:
        each.close()
    made.network.close()
    assert made.guest.model.broken == []


def refused(expected: int) -> Any:
    return pytest.raises(OSError, match=f"Errno {expected}\\]")


def bits(made: Any) -> int:
    """The poll bits of a socket, as its phase computes them."""
    return int(made._sock.poll())


def test_vs_03_05_06_07_18_an_unconnected_socket_answers_as_linux_does(world: World) -> None:
    """VS-03, VS-05, VS-06, VS-07, VS-18, as measured."""
    made = world.socket()
    assert made.getsockname() == (ANY, ANY)
    with refused(errno.ENOTCONN):
        made.getpeername()
    with refused(errno.EINVAL):
        made.listen(1)
    with refused(errno.EINVAL):
        made.accept()
    for data in (b"x", b""):
        with refused(errno.ENOTCONN):
            made.send(data)
    with refused(errno.ENOTCONN):
        made.recv(1)
    assert made.recv(0) == b""
    with refused(errno.ENOTCONN):
        made.shutdown(socket.SHUT_RDWR)
    with refused(errno.EOPNOTSUPP):
        made.sendto(b"x", (GUEST_CID, 1))


def test_vs_03_bind(world: World) -> None:
    """VS-03: our CID or any; once; a port is taken once."""
    made = world.socket()
    for cid in (0, GUEST_CID, 77):
        with refused(errno.EADDRNOTAVAIL):
            made.bind((cid, 1))
    made.bind((ANY, ANY))
    cid, port = made.getsockname()
    assert cid == ANY
    assert 1024 <= port < ANY
    with refused(errno.EINVAL):
        made.bind((ANY, ANY))
    other = world.socket()
    with refused(errno.EADDRINUSE):
        other.bind((2, port))
    other.bind((2, 7777))
    assert other.getsockname() == (2, 7777)
    other.close()
    world.socket().bind((ANY, 7777))


@pytest.mark.parametrize("address", ["text", 5, (1,), (1, 2, 3), ("a", 1), None])
def test_addresses_that_are_none_are_type_errors(world: World, address: object) -> None:
    with pytest.raises(TypeError):
        world.socket().bind(address)


def test_which_sockets_there_are(world: World) -> None:
    """CORE-02, as measured: protocol first, then type."""
    make = world.stack.socket.socket
    for kind, protocol, expected in (
        (SOCK_STREAM, 1, errno.EPROTONOSUPPORT),
        (socket.SOCK_DGRAM, 0, errno.ENODEV),
        (socket.SOCK_DGRAM, 1, errno.EPROTONOSUPPORT),
        (socket.SOCK_RAW, 0, errno.ESOCKTNOSUPPORT),
        (socket.SOCK_SEQPACKET, 1, errno.EPROTONOSUPPORT),
    ):
        with refused(expected):
            make(AF_VSOCK, kind, protocol)
    for kind in (SOCK_STREAM, socket.SOCK_SEQPACKET):
        made = make(AF_VSOCK, kind, 40)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == kind
        made.close()


def test_connect_send_receive_close(world: World) -> None:
    made, stream = world.connected()
    assert made.getpeername() == (GUEST_CID, 99)
    assert made.getsockname()[0] == 2
    with refused(errno.EISCONN):
        made.connect((GUEST_CID, 99))
    with refused(errno.EISCONN):
        made.sendto(b"x", (GUEST_CID, 99))
    made.sendall(b"ping" * 50_000)
    world.settle()
    assert bytes(stream.received) == b"ping" * 50_000
    stream.write(b"pong")
    assert made.recv(10, socket.MSG_PEEK) == b"pong"
    assert made.recv(2) == b"po"
    target = bytearray(8)
    assert made.recv_into(target) == 2
    with refused(errno.EOPNOTSUPP):
        made.send(b"!", socket.MSG_OOB)
    made.close()
    world.settle()
    assert stream.shutdown == 3


def test_accept_inherits_options(world: World) -> None:
    listener = world.listening()
    listener.setsockopt(AF_VSOCK, BUFFER_SIZE, struct.pack("Q", 10_000))
    listener.setsockopt(AF_VSOCK, TIMEOUT_NEW, struct.pack("ll", 5, 0))
    world.guest.model.connect(5000, 77)
    assert bits(listener) & select.POLLIN == 0
    world.settle()
    assert bits(listener) & select.POLLIN
    child, address = listener.accept()
    assert address == (GUEST_CID, 77)
    assert child.getsockname() == (2, 5000)
    assert child.getsockopt(AF_VSOCK, BUFFER_SIZE, 8) == struct.pack("Q", 10_000)
    assert child.getsockopt(AF_VSOCK, TIMEOUT_NEW, 16) == struct.pack("ll", 5, 0)
    assert world.guest.model.streams[5000, 77].peer_buf_alloc == 10_000
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    with refused(errno.EINVAL):
        listener.connect((GUEST_CID, 1))
    with refused(errno.ENOTCONN):
        listener.recv(1)
    child.close()


def test_vs_04_nobody_home(world: World) -> None:
    """VS-04: no such guest, refused, no answer - and trying again is allowed."""
    made = world.socket()
    with refused(errno.ENODEV):
        made.connect((77, 1))
    world.guest.refuses = True
    with refused(errno.ECONNRESET):
        made.connect((GUEST_CID, 1))
    world.guest.refuses, world.guest.answers = False, False
    began = world.clock()
    with refused(errno.ETIMEDOUT):
        made.connect((GUEST_CID, 1))
    assert world.clock() - began == 2_000_000_000
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    made.setsockopt(AF_VSOCK, TIMEOUT_OLD, struct.pack("ll", 0, 500_000))
    with refused(errno.ETIMEDOUT):
        made.connect((GUEST_CID, 1))
    assert world.clock() - began == 2_500_000_000
    world.guest.take()
    world.guest.answers = True
    made.connect((GUEST_CID, 1))


def test_vs_04_17_connecting_without_blocking(world: World) -> None:
    """EINPROGRESS, then EALREADY, then POLLOUT; or POLLERR with the reason in SO_ERROR."""
    world.guest.answers = False
    made = world.socket()
    made.bind((ANY, 4444))
    made.setblocking(False)
    assert bits(made) == select.POLLOUT | select.POLLWRNORM
    with pytest.raises(BlockingIOError) as under_way:
        made.connect((GUEST_CID, 1))
    assert under_way.value.errno == errno.EINPROGRESS
    assert bits(made) == 0
    with refused(errno.EALREADY):
        made.connect((GUEST_CID, 1))
    with refused(errno.ENOTCONN):
        made.send(b"x")
    with refused(errno.ENOTCONN):
        made.recv(1)
    world.settle()
    world.clock.advance(2_000_000_000)
    world.settle()
    assert bits(made) & ~select.POLLWRNORM == select.POLLOUT | select.POLLERR
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert made.getsockname() == (ANY, 4444), "still bound"
    world.guest.take()
    world.guest.answers = True
    with pytest.raises(BlockingIOError):
        made.connect((GUEST_CID, 1))
    world.settle()
    assert bits(made) & select.POLLOUT
    made.send(b"x")


def test_closing_while_connecting_gives_the_attempt_up(world: World) -> None:
    world.guest.answers = False
    made = world.socket()
    made.setblocking(False)
    with pytest.raises(BlockingIOError):
        made.connect((GUEST_CID, 1))
    made.close()
    world.settle()
    assert world.guest.ops() in (["REQUEST", "RST"], [])
    assert not world.stack.vsock.guests[GUEST_CID].connections


def test_a_full_peer_blocks_the_sender(world: World) -> None:
    made, stream = world.connected()
    made.setblocking(False)
    assert made.send(bytes(1 << 20)) == 1 << 18
    with pytest.raises(BlockingIOError):
        made.send(b"x")
    world.settle()
    assert not bits(made) & select.POLLOUT
    stream.consume(1000)
    world.settle()
    assert bits(made) & select.POLLOUT
    assert made.send(bytes(5000)) == 1000


def test_ioctl_inq_and_outq_of_vsock(world: World) -> None:
    """SIOCINQ is what can be read, SIOCOUTQ what has not reached the guest's memory; EOPNOTSUPP unconnected."""

    def ask(made: Any, request: int) -> int:
        return int(struct.unpack("i", made.ioctl(request, bytes(4)))[0])

    made, stream = world.accepted()
    assert (ask(made, SIOCINQ), ask(made, SIOCOUTQ)) == (0, 0)
    stream.write(b"12345")
    world.settle()
    assert ask(made, SIOCINQ) == 5
    made.recv(2)
    assert ask(made, SIOCINQ) == 3
    world.guest.room = 1
    assert [made.send(bytes(size)) for size in (700, 500, 30)] == [700, 500, 30]
    world.settle()
    assert ask(made, SIOCOUTQ) == 530
    world.guest.room = None
    world.guest.changed()
    world.settle()
    assert ask(made, SIOCOUTQ) == 0
    for other in (world.socket(), world.listening(5001)):
        for request in (SIOCINQ, SIOCOUTQ):
            with refused(errno.EOPNOTSUPP):
                ask(other, request)


def test_vs_06_13_17_the_guests_end(world: World) -> None:
    """VS-06, VS-13, VS-17: what is unread, end of stream, EPIPE; no error."""
    made, stream = world.accepted()
    stream.write(b"rest")
    stream.send(Op.SHUTDOWN, flags=2)
    world.settle()
    assert bits(made) & (select.POLLIN | select.POLLRDHUP | select.POLLHUP) == select.POLLIN | select.POLLRDHUP
    made.send(b"still")
    assert made.recv(10) == b"rest"
    assert made.recv(10) == b""
    stream.send(Op.RST)
    del world.guest.model.streams[5000, 77]
    world.settle()
    everything = select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLHUP
    assert bits(made) & (everything | select.POLLERR) == everything
    with pytest.raises(BrokenPipeError):
        made.send(b"x")
    assert made.recv(10) == b""
    assert made.getpeername() == (GUEST_CID, 77)


def test_vs_06_07_17_our_end(world: World) -> None:
    made, stream = world.connected()
    made.shutdown(socket.SHUT_WR)
    world.settle()
    assert stream.shutdown == 2
    with pytest.raises(BrokenPipeError):
        made.send(b"x")
    stream.write(b"answer")
    assert made.recv(10) == b"answer"
    made.shutdown(socket.SHUT_RD)
    world.settle()
    assert stream.shutdown == 3
    assert made.recv(10) == b""
    assert bits(made) & select.POLLHUP


def test_vs_13_a_guest_that_breaks_the_rules_is_econnreset(world: World) -> None:
    made, stream = world.connected()
    stream.write(b"kept")
    stream.send(Op.RESPONSE)
    world.settle()
    assert bits(made) & select.POLLERR
    assert made.recv(10) == b"kept"
    with pytest.raises(ConnectionResetError):
        made.recv(10)
    assert made.recv(10) == b""


def test_a_blocked_reader_is_woken_by_data_and_times_out_without(world: World) -> None:
    made, stream = world.connected()
    made.settimeout(1.5)
    began = world.clock()
    with pytest.raises(TimeoutError):
        made.recv(1)
    assert world.clock() - began == 1_500_000_000
    stream.write(b"now")
    assert made.recv(10) == b"now"


#: (option, value set, then: buffer, minimum, maximum), as measured on Linux (linux-measured/vsock.txt).
MEASURED = [
    (BUFFER_SIZE, 0, 128, 128, 262144),
    (BUFFER_SIZE, 127, 128, 128, 262144),
    (BUFFER_SIZE, 256, 256, 128, 262144),
    (BUFFER_SIZE, 262145, 262144, 128, 262144),
    (BUFFER_SIZE, 8589934592, 262144, 128, 262144),
    (BUFFER_MIN, 0, 262144, 0, 262144),
    (BUFFER_MIN, 262145, 262144, 262145, 262144),
    (BUFFER_MIN, 8589934592, 262144, 8589934592, 262144),
    (BUFFER_MAX, 0, 0, 128, 0),
    (BUFFER_MAX, 64, 64, 128, 64),
    (BUFFER_MAX, 65536, 65536, 128, 65536),
    (BUFFER_MAX, 8589934592, 262144, 128, 8589934592),
]


@pytest.mark.parametrize(("option", "value", "size", "low", "high"), MEASURED)
def test_buffer_options_are_clamped_as_measured(
    world: World, option: int, value: int, size: int, low: int, high: int
) -> None:
    made = world.socket()
    made.setsockopt(AF_VSOCK, option, struct.pack("Q", value))
    read = [struct.unpack("Q", made.getsockopt(AF_VSOCK, each, 8))[0] for each in (BUFFER_SIZE, BUFFER_MIN, BUFFER_MAX)]
    assert read == [size, low, high]


@pytest.mark.parametrize("option", [BUFFER_SIZE, BUFFER_MIN, BUFFER_MAX, TIMEOUT_OLD, TIMEOUT_NEW])
def test_short_option_buffers_are_einval(world: World, option: int) -> None:
    made = world.socket()
    size = 8 if option < 3 else 16
    with refused(errno.EINVAL):
        made.setsockopt(AF_VSOCK, option, bytes(4))
    with refused(errno.EINVAL):
        made.getsockopt(AF_VSOCK, option, 4)
    assert len(made.getsockopt(AF_VSOCK, option, 64)) == size


def test_options_as_ints_are_64_bits_wide_as_in_cpython(world: World) -> None:
    made = world.socket()
    made.setsockopt(AF_VSOCK, BUFFER_MAX, 1 << 33)
    made.setsockopt(AF_VSOCK, BUFFER_SIZE, 1 << 20)
    assert made.getsockopt(AF_VSOCK, BUFFER_SIZE) == 1 << 20
    assert made.getsockopt(AF_VSOCK, BUFFER_MAX) == 1 << 33
    for option in (TIMEOUT_OLD, TIMEOUT_NEW):
        with refused(errno.EINVAL):
            made.setsockopt(AF_VSOCK, option, 5)
        with refused(errno.EINVAL):
            made.getsockopt(AF_VSOCK, option)


@pytest.mark.parametrize("option", [3, 5, 7, 99])
def test_options_of_other_transports_are_enoprotoopt(world: World, option: int) -> None:
    made = world.socket()
    with refused(errno.ENOPROTOOPT):
        made.getsockopt(AF_VSOCK, option, 8)
    with refused(errno.ENOPROTOOPT):
        made.setsockopt(AF_VSOCK, option, bytes(8))


@pytest.mark.parametrize("value", [(0, 1_000_000), (-1, 0), (4611686018427387904, 0)])
def test_impossible_connect_timeouts_are_erange(world: World, value: tuple[int, int]) -> None:
    made = world.socket()
    with refused(errno.ERANGE):
        made.setsockopt(AF_VSOCK, TIMEOUT_NEW, struct.pack("ll", *value))
    assert made.getsockopt(AF_VSOCK, TIMEOUT_OLD, 16) == struct.pack("ll", 2, 0)


def test_connect_timeout_of_zero_is_the_default(world: World) -> None:
    made = world.socket()
    made.setsockopt(AF_VSOCK, TIMEOUT_NEW, struct.pack("ll", 1, 500_000))
    assert made.getsockopt(AF_VSOCK, TIMEOUT_OLD, 16) == struct.pack("ll", 1, 500_000)
    made.setsockopt(AF_VSOCK, TIMEOUT_NEW, struct.pack("ll", 0, 0))
    assert made.getsockopt(AF_VSOCK, TIMEOUT_OLD, 16) == struct.pack("ll", 2, 0)


def test_the_buffer_of_a_connected_socket_is_told_to_the_guest(world: World) -> None:
    made, stream = world.connected()
    made.setsockopt(AF_VSOCK, BUFFER_SIZE, struct.pack("Q", 5000))
    world.settle()
    assert stream.peer_buf_alloc == 5000
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 3)
    stream.write(b"ab")
    world.settle()
    assert not bits(made) & select.POLLIN
    stream.write(b"c")
    world.settle()
    assert bits(made) & select.POLLIN


def test_closing_a_listener_resets_what_nobody_accepted(world: World) -> None:
    listener = world.listening()
    stream = world.guest.model.connect(5000, 77)
    world.settle()
    assert stream.state == "connected"
    listener.close()
    world.settle()
    assert stream.state == "reset"
    world.listening()
