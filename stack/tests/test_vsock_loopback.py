"""AF_VSOCK within one host: CID 1, and CID 2 from the host's side (VS-20), the same bodies on the kernel if it can.

The kernel's side needs vsock_loopback (`modprobe vsock_loopback`); without it there is one skipped test that says so.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.testing.clock import ManualClock

AF_VSOCK, STREAM, SEQPACKET = socket.AF_VSOCK, socket.SOCK_STREAM, socket.SOCK_SEQPACKET
ANY, LOCAL, HOST = 0xFFFFFFFF, 1, 2
BUFFER_SIZE = 0


def kernel_has_loopback() -> bool:
    try:
        with socket.socket(AF_VSOCK, STREAM) as made:
            made.bind((LOCAL, ANY))
    except OSError:
        return False
    return True


class Place:
    """Where sockets are made: `socket` stands for the module."""

    def __init__(self, module: Any) -> None:
        self.socket = module
        self.open: list[Any] = []

    def make(self, kind: int = STREAM) -> Any:
        made = self.socket.socket(AF_VSOCK, kind)
        made.settimeout(10)
        self.open.append(made)
        return made

    def listening(self, kind: int = STREAM, cid: int = ANY, backlog: int = 8) -> tuple[Any, int]:
        made = self.make(kind)
        made.bind((cid, ANY))
        made.listen(backlog)
        return made, made.getsockname()[1]

    def pair(self, kind: int = STREAM, cid: int = LOCAL) -> tuple[Any, Any]:
        listener, port = self.listening(kind)
        client = self.make(kind)
        client.connect((cid, port))
        server, _ = listener.accept()
        self.open.append(server)
        server.settimeout(10)
        return client, server


@pytest.fixture(params=["stack", "kernel"] if kernel_has_loopback() else ["stack"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "kernel":
        made = Place(socket)
        yield made
        for each in made.open:
            each.close()
        return
    network = Network(clock=ManualClock(), rng=random.Random(1))
    made = Place(network.stack("host").socket)
    yield made
    for each in made.open:
        each.close()
    network.close()


def test_these_bodies_run_on_the_kernel_too() -> None:
    if not kernel_has_loopback():
        pytest.skip("this kernel has no vsock loopback (vsock_loopback is not loaded)")


def bits(made: Any) -> int:
    """What poll(2) says now, without the bits nobody asked for."""
    if isinstance(made, socket.socket):
        poller = select.poll()
        poller.register(made, 0xFFFF & ~select.POLLPRI)
        return dict(poller.poll(0)).get(made.fileno(), 0) & (0x1F | select.POLLRDHUP)
    return int(made._sock.poll()) & (0x1F | select.POLLRDHUP)


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_vs_06_20_what_one_end_sends_the_other_gets(place: Place, kind: int) -> None:
    """Within one host, CID 1, bytes and messages go both ways."""
    client, server = place.pair(kind)
    client.sendall(b"ping")
    assert server.recv(100) == b"ping"
    server.sendall(b"pong")
    assert client.recv(100) == b"pong"
    assert client.getpeername()[0] == LOCAL
    assert server.getpeername()[0] == LOCAL
    assert server.getsockname()[0] == LOCAL


def test_vs_20_cid_2_from_the_host_is_the_host(place: Place) -> None:
    client, server = place.pair(cid=HOST)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert client.getpeername()[0] == HOST


def test_vs_03_05_a_listener_bound_to_one_cid_hears_of_that_alone(place: Place) -> None:
    """VS-03, VS-05."""
    _, port = place.listening(cid=LOCAL)
    place.make().connect((LOCAL, port))
    with pytest.raises(ConnectionResetError):
        place.make().connect((HOST, port))


def test_vs_04_13_nobody_listens(place: Place) -> None:
    """VS-04, VS-13: RST while connecting; trying again is allowed, and works once somebody does."""
    made = place.make()
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            made.connect((LOCAL, 0xFFFF0000))
    _, port = place.listening()
    made.connect((LOCAL, port))


def test_types_do_not_mix(place: Place) -> None:
    _, port = place.listening(SEQPACKET)
    with pytest.raises(ConnectionResetError):
        place.make(STREAM).connect((LOCAL, port))


def test_message_boundaries_truncation_and_record_ends(place: Place) -> None:
    """MSG_TRUNC, MSG_EOR, MSG_PEEK and MSG_WAITALL on SEQPACKET (section 1.3)."""
    client, server = place.pair(SEQPACKET)
    for data, flags in ((b"abcdef", 0), (b"second", socket.MSG_EOR), (b"third", 0)):
        client.send(data, flags)
    assert server.recvmsg(3, 0, socket.MSG_PEEK)[:3] == (b"abc", [], socket.MSG_TRUNC)
    data, _, flags, _ = server.recvmsg(3)
    assert (data, flags & socket.MSG_TRUNC) == (b"abc", socket.MSG_TRUNC)
    data, _, flags, _ = server.recvmsg(100)
    assert (data, flags & (socket.MSG_EOR | socket.MSG_TRUNC)) == (b"second", socket.MSG_EOR)
    target = bytearray(10)
    assert server.recv_into(target, 10, socket.MSG_WAITALL) == 5
    assert target[:5] == b"third"


def test_a_message_beyond_the_buffer_is_emsgsize(place: Place) -> None:
    client, server = place.pair(SEQPACKET)
    with pytest.raises(OSError, match=f"Errno {errno.EMSGSIZE}"):
        client.send(bytes((1 << 18) + 1))
    client.setblocking(False)
    assert client.send(bytes(100_000)) == 100_000
    assert len(server.recv(1 << 20)) == 100_000


def test_vs_06_peeking_leaves_what_it_saw(place: Place) -> None:
    client, server = place.pair()
    client.sendall(b"abc")
    assert server.recv(2, socket.MSG_PEEK) == b"ab"
    assert server.recv(10, socket.MSG_PEEK) == b"abc"
    assert server.recv(10) == b"abc"


def test_the_low_water_mark_holds_back_poll_and_recv(place: Place) -> None:
    """SO_RCVLOWAT."""
    client, server = place.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 3)
    client.sendall(b"ab")
    assert not bits(server) & select.POLLIN
    client.sendall(b"c")
    assert bits(server) & select.POLLIN
    assert server.recv(10) == b"abc"


def test_vs_07_13_17_half_closes_each_by_itself(place: Place) -> None:
    """VS-07, VS-13, VS-17: the poll matrix of shutdowns."""
    client, server = place.pair()
    assert bits(client) == select.POLLOUT
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    assert bits(server) & (select.POLLIN | select.POLLRDHUP | select.POLLOUT) == (
        select.POLLIN | select.POLLRDHUP | select.POLLOUT
    )
    with pytest.raises(BrokenPipeError):
        client.send(b"x")
    server.sendall(b"still")
    assert client.recv(10) == b"still"
    server.shutdown(socket.SHUT_WR)
    assert client.recv(10) == b""
    assert bits(client) & select.POLLHUP


def test_vs_06_13_a_peer_that_will_not_receive_breaks_the_pipe(place: Place) -> None:
    client, server = place.pair()
    server.shutdown(socket.SHUT_RD)
    with pytest.raises(BrokenPipeError):
        client.send(b"x")


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_vs_08_13_close_is_end_of_stream_after_what_was_sent(place: Place, kind: int) -> None:
    """VS-08, VS-13."""
    client, server = place.pair(kind)
    client.sendall(b"last words")
    client.close()
    assert server.recv(100) == b"last words"
    assert server.recv(100) == b""
    with pytest.raises(BrokenPipeError):
        server.send(b"x")


def test_vs_17_poll_of_every_phase(place: Place) -> None:
    """Fresh OUT, listening nothing, with somebody waiting IN, connected OUT."""
    assert bits(place.make()) == select.POLLOUT
    listener, port = place.listening()
    assert bits(listener) == 0
    client = place.make()
    client.connect((LOCAL, port))
    assert bits(listener) == select.POLLIN
    assert bits(client) == select.POLLOUT


def test_vs_05_the_backlog_is_bounded(place: Place) -> None:
    """VS-05: backlog + 1 wait; the next one is refused."""
    _, port = place.listening(backlog=1)
    made = [place.make() for _ in range(3)]
    made[0].connect((LOCAL, port))
    made[1].connect((LOCAL, port))
    with pytest.raises(ConnectionResetError):
        made[2].connect((LOCAL, port))


def test_vs_12_the_buffer_bounds_what_can_be_sent_ahead(place: Place) -> None:
    """VS-12, section 2.6: SO_VM_SOCKETS_BUFFER_SIZE of the receiver."""
    listener, port = place.listening()
    listener.setsockopt(AF_VSOCK, BUFFER_SIZE, struct.pack("Q", 10_000))
    client = place.make()
    client.connect((LOCAL, port))
    client.setblocking(False)
    assert client.send(bytes(50_000)) == 10_000
    with pytest.raises(BlockingIOError):
        client.send(b"x")
    assert not bits(client) & select.POLLOUT


def test_vs_04_connecting_without_blocking_is_told_by_poll(place: Place) -> None:
    """VS-04."""
    _, port = place.listening()
    made = place.make()
    made.setblocking(False)
    assert made.connect_ex((LOCAL, port)) in (0, errno.EINPROGRESS)
    assert bits(made) == select.POLLOUT
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert made.connect_ex((LOCAL, port)) == errno.EISCONN


# -- what only this stack promises -------------------------------------------------------------------------------


def test_more_than_the_buffers_hold_crosses_between_threads() -> None:
    """Real time, two threads, one process: no packet of the loopback waits for anybody to poll."""
    with Stack("host") as host:
        place = Place(host.socket)
        for kind in (STREAM, SEQPACKET):
            client, server = place.pair(kind)
            data = random.Random(1).randbytes(1 << 20)

            def send(sock: Any = client, data: bytes = data) -> None:
                for at in range(0, len(data), 50_000):
                    sock.sendall(data[at : at + 50_000])
                sock.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            got = bytearray()
            while piece := server.recv(1 << 17):
                got += piece
            sender.join(10)
            assert got == data
        for each in place.open:
            each.close()


def test_closing_the_stack_ends_everything() -> None:
    network = Network(clock=ManualClock(), rng=random.Random(1))
    stack = network.stack("host")
    place = Place(stack.socket)
    client, _ = place.pair()
    engine = stack.vsock
    stack.close()
    assert engine.reserved == 0
    assert client._sock.phase.connection.error == errno.ECONNRESET
    for each in place.open:
        each.close()
    network.close()
