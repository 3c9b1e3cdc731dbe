"""The hybrid Unix-socket protocol, as Firecracker, Cloud Hypervisor and vhost-device-vsock speak it, and what they got
wrong (reference sections 4.4 and 8): real sockets of the kernel at one end, a modelled guest at the other.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stack.scheduler import NS_PER_S
from stack.services.host_address import host_address
from stack.services.host_listen import BACK_OFF
from stack.services.vsock_client import LINE_LIMIT, LINE_TIMEOUT, parse_connect
from stack.tests.gateway_rig import GatewayRig, gateway_rig, said
from stack.vsock.connection import CONNECT_TIMEOUT
from stack.wire.vsock import SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, Op


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[GatewayRig]:
    with gateway_rig(tmp_path) as rig:
        yield rig


# -- the line -----------------------------------------------------------------------------------------------------


def test_connect_is_answered_ok_and_then_the_socket_is_the_stream(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 1234\n")
    stream = rig.stream
    assert stream.guest_port == 1234
    assert said(client) == b"OK %d\n" % stream.host_port
    client.sendall(b"from the host")
    rig.settle()
    assert stream.received == b"from the host"
    stream.write(b"from the guest")
    rig.settle()
    assert said(client) == b"from the guest"


def test_a_line_may_come_in_as_many_pieces_as_it_has_bytes(rig: GatewayRig) -> None:
    client = rig.client()
    for byte in b"CONNECT 77\n":
        assert said(client) is None
        client.sendall(bytes([byte]))
        rig.settle()
    assert said(client) == b"OK %d\n" % rig.stream.host_port


def test_data_right_behind_the_line_reach_the_guest(rig: GatewayRig) -> None:
    """vhost-device-vsock's buffered reader swallows them."""
    data = random.Random(1).randbytes(100_000)
    client = rig.client(b"CONNECT 77\nhello ")
    client.sendall(data)
    rig.settle()
    assert rig.stream.received == b"hello " + data


def test_a_program_that_says_all_and_leaves_before_the_answer_is_heard(rig: GatewayRig) -> None:
    rig.scripted = True
    client = rig.client(b"CONNECT 77\nlast words")
    client.close()
    rig.settle()
    rig.scripted = False
    rig.settle()
    assert rig.stream.received == b"last words"
    assert rig.stream.shutdown == SHUTDOWN_BOTH


@pytest.mark.parametrize("line", [b"CONNECT 5", b"connect 5", b"CONNECT  5 ", b"CONNECT\t5\r", b"Connect 0005"])
def test_what_others_accept_is_accepted(line: bytes) -> None:
    assert parse_connect(line) == 5


def test_the_largest_port_is_32_bits_wide() -> None:
    assert parse_connect(b"CONNECT 4294967295") == 2**32 - 1


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT 4294967296\n",
        b"CONNECT -1\n",
        b"CONNECT +1\n",
        b"CONNECT 1 2\n",
        b"CONNECT 0x10\n",
        b"CONNECT 1_0\n",
        "CONNECT \u0661\n".encode(),
        b"LISTEN 5\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT 5" + b" " * LINE_LIMIT + b"\n",
        b"C" * LINE_LIMIT,
        b"C" * 100_000,
        b"\0" * 10 + b"\n",
    ],
)
def test_any_other_line_closes_the_socket_and_never_reaches_the_guest(rig: GatewayRig, line: bytes) -> None:
    client = rig.client(line)
    assert said(client) in (b"<end>", b"<reset>")  # Unix sockets reset if what was sent is unread
    assert rig.guest.streams == {}
    assert rig.gateway.open_streams == 0
    assert rig.gateway.drops.total == 1


def test_the_end_of_input_in_the_middle_of_the_line_ends_it_and_costs_nothing_more(rig: GatewayRig) -> None:
    """Cloud Hypervisor #6798: a closed client without newline made its thread spin."""
    client = rig.client(b"CONNECT 5")
    client.close()
    rig.settle()
    assert (rig.gateway.open_streams, rig.gateway.drops["line-unfinished"]) == (0, 1)
    assert rig.settle() == 0


def test_a_line_that_is_never_finished_times_out(rig: GatewayRig) -> None:
    client = rig.client(b"CONN")
    rig.wait(LINE_TIMEOUT - 1)
    assert said(client) is None
    rig.wait(1)
    assert said(client) == b"<end>"
    assert rig.gateway.drops["line-timeout"] == 1


def test_the_lines_time_limit_ends_with_the_line(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True) as rig:
        client = rig.client(b"CONN")
        rig.wait(LINE_TIMEOUT - 1)
        client.sendall(b"ECT 5\n")
        rig.settle()
        rig.wait(CONNECT_TIMEOUT // 2)  # the guest takes its time
        assert said(client) is None
        (request,) = rig.transport.take()
        rig.transport.feed(Op.RESPONSE, request[2], 5)
        rig.settle()
        assert said(client) == b"OK %d\n" % request[2]


def test_a_long_stream_does_not_time_out(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    rig.wait(100 * LINE_TIMEOUT)
    client.sendall(b"still here")
    rig.settle()
    assert rig.stream.received == b"still here"


# -- refusals -----------------------------------------------------------------------------------------------------


def test_a_refused_connect_closes_the_socket_without_ok(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True) as rig:
        client = rig.client(b"CONNECT 9\n")
        (request,) = rig.transport.take()
        assert (request[5], request[3]) == (Op.REQUEST, 9)
        rig.transport.feed(Op.RST, request[2], 9)
        rig.settle()
        assert said(client) == b"<end>"
        assert rig.gateway.drops["refused"] == 1


def test_a_guest_that_does_not_answer_is_given_up_on(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True) as rig:
        client = rig.client(b"CONNECT 9\n")
        rig.wait(CONNECT_TIMEOUT)
        assert said(client) == b"<end>"
        assert rig.gateway.open_streams == 0


def test_a_guest_that_accepts_and_closes_at_once_is_no_refusal(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True) as rig:
        client = rig.client(b"CONNECT 9\n")
        (request,) = rig.transport.take()
        for op in (Op.RESPONSE, Op.RW, Op.SHUTDOWN):
            rig.transport.feed(
                op,
                request[2],
                9,
                payload=b"bye" if op == Op.RW else b"",
                flags=SHUTDOWN_BOTH if op == Op.SHUTDOWN else 0,
            )
        rig.settle()
        assert said(client) == b"OK %d\nbye<end>" % request[2]


def test_the_guest_is_refused_where_nobody_listens(tmp_path: Path) -> None:
    """vhost-device-vsock never answers, and the guest hangs until its timeout."""
    with gateway_rig(tmp_path, scripted=True) as rig:
        rig.transport.feed(Op.REQUEST, 5000, 1)
        rig.settle()
        assert rig.transport.ops() == ["RST"]
        assert rig.gateway.drops["connect-ENOENT"] == 1
        server = rig.server(5000)
        server.close()  # a stale file
        rig.transport.feed(Op.REQUEST, 5000, 1)
        rig.settle()
        assert rig.transport.ops() == ["RST"]
        assert rig.gateway.drops["connect-ECONNREFUSED"] == 1


def test_a_full_queue_of_the_server_refuses(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True) as rig:
        rig.server(5000, backlog=0)
        for port in range(5):
            rig.transport.feed(Op.REQUEST, 5000, port)
        rig.settle()
        assert rig.transport.ops() == ["RST"] * 4 + ["RESPONSE"]  # refusals go first, as all answers do
        assert rig.gateway.drops["connect-EAGAIN"] == 4


# -- guest to host ------------------------------------------------------------------------------------------------


def test_the_guest_connects_to_the_socket_named_after_the_port(rig: GatewayRig) -> None:
    server = rig.server(5000)
    stream = rig.guest.connect(5000, 1)
    rig.settle()
    assert stream.state == "connected"
    host = rig.accept(server)
    stream.write(b"ping")
    rig.settle()
    assert said(host) == b"ping"
    host.sendall(b"pong")
    rig.settle()
    assert stream.received == b"pong"


def test_a_socket_of_the_stack_comes_before_the_hosts(rig: GatewayRig) -> None:
    server = rig.server(5000)
    listener = rig.engine.listen(5000)
    rig.guest.connect(5000, 1)
    rig.settle()
    assert listener.ready == 1
    with pytest.raises(BlockingIOError):
        server.accept()


# -- ends ---------------------------------------------------------------------------------------------------------


def test_the_hosts_half_close_leaves_the_other_direction_open(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    rig.settle()
    stream = rig.stream
    assert (bytes(stream.received), stream.shutdown) == (b"question", SHUTDOWN_SEND)
    stream.write(b"answer")
    stream.send(Op.SHUTDOWN, flags=SHUTDOWN_SEND)
    rig.settle()
    assert said(client) == b"OK %d\nanswer<end>" % stream.host_port
    assert rig.gateway.open_streams == 0


def test_the_guests_half_close_leaves_the_other_direction_open(rig: GatewayRig) -> None:
    """rust-vmm/vhost-device #874: without it systemd's vmm.notify_socket does not work."""
    server = rig.server(5000)
    stream = rig.guest.connect(5000, 1)
    rig.settle()
    host = rig.accept(server)
    stream.write(b"READY=1")
    stream.send(Op.SHUTDOWN, flags=SHUTDOWN_SEND)
    rig.settle()
    assert said(host) == b"READY=1<end>"
    host.sendall(b"late answer")
    host.shutdown(socket.SHUT_WR)
    rig.settle()
    assert stream.received == b"late answer"
    assert stream.shutdown & SHUTDOWN_SEND
    assert rig.gateway.open_streams == 0


def test_a_guest_that_will_not_receive_breaks_the_hosts_pipe(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    rig.stream.send(Op.SHUTDOWN, flags=SHUTDOWN_RECEIVE)
    rig.settle()
    with pytest.raises(BrokenPipeError):
        client.sendall(b"x")
    rig.stream.write(b"still sending")
    rig.settle()
    assert said(client) == b"OK %d\nstill sending" % rig.stream.host_port


def test_a_host_that_is_gone_ends_the_stream_while_the_guest_sends(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    stream = rig.stream
    said(client)
    client.close()
    rig.settle()
    assert stream.shutdown == SHUTDOWN_BOTH
    stream.write(b"too late")
    stream.send(Op.RST)
    rig.settle()
    assert (rig.gateway.open_streams, len(rig.port.connections)) == (0, 0)


def test_what_was_sent_before_the_end_arrives_before_it(rig: GatewayRig) -> None:
    """Reference section 8: a first read of zero (#963) and data lost on close."""
    server = rig.server(5000)
    stream = rig.guest.connect(5000, 1)
    rig.settle()
    host = rig.accept(server)
    stream.write(b"x" * 60_000)
    stream.send(Op.SHUTDOWN, flags=SHUTDOWN_BOTH)
    rig.settle()
    assert said(host) == b"x" * 60_000 + b"<end>"


def test_a_driver_reset_ends_every_stream_and_keeps_the_gateway(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    assert said(client) is not None
    rig.transport.generation += 1
    rig.transport.changed()
    rig.guest.streams.clear()
    rig.settle()
    assert said(client) == b"<end>"
    again = rig.client(b"CONNECT 6\n")
    assert said(again) == b"OK %d\n" % rig.stream.host_port


# -- back-pressure and bounds -------------------------------------------------------------------------------------


def test_a_client_that_never_reads_stops_the_guest_and_nobody_else(rig: GatewayRig) -> None:
    rig.client(b"CONNECT 5\n")
    stream = rig.stream
    sent = 0
    for _ in range(1000):
        sent += stream.write(b"x" * 65536)
        rig.settle()
    # What the kernel's socket buffers took, and one receive buffer: no more, however long it goes on.
    assert sent < 4 << 20
    assert stream.free == 0
    (held,) = rig.port.connections.values()
    assert held.readable <= rig.gateway.buffer
    other = rig.client(b"CONNECT 6\n")
    quick = next(each for each in rig.guest.streams.values() if each.guest_port == 6)
    said(other)
    for _ in range(100):
        assert quick.write(b"y" * 60_000) == 60_000
        rig.settle()
        assert said(other) == b"y" * 60_000


def test_a_guest_that_never_reads_stops_the_host(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    sent = 0
    for _ in range(1000):
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            break
        rig.settle()
    else:
        raise AssertionError("the host was never stopped")
    stream = rig.stream
    assert len(stream.received) == stream.buf_alloc  # exactly the credit, the rest stays in the host's kernel
    while stream.unread:
        stream.consume(stream.unread)
        rig.settle()
    assert len(stream.received) == sent


def test_a_guest_with_a_huge_buffer_cannot_make_us_hold_more_than_ours(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, guest_buffer=0xFFFFFFFF) as rig:
        client = rig.client(b"CONNECT 5\n")
        rig.transport.room = 0  # and it posts no receive buffers
        sent = 0
        for _ in range(1000):
            try:
                sent += client.send(b"x" * 65536)
            except BlockingIOError:
                break
            rig.settle()
        (connection,) = rig.port.connections.values()
        assert connection.unacknowledged <= rig.gateway.buffer
        assert sent < 2 << 20


def test_bytes_arrive_as_they_were_sent_whatever_the_sizes(rig: GatewayRig) -> None:
    rng = random.Random(7)
    client = rig.client(b"CONNECT 5\n")
    stream = rig.stream
    said(client)
    up, down = bytearray(), bytearray()
    got = bytearray()
    for _ in range(300):
        piece = rng.randbytes(rng.choice((1, 63, 1000, 4096, 50_000)))
        up += piece[: stream.write(piece)]
        piece = rng.randbytes(rng.choice((1, 63, 1000, 4096, 50_000)))
        with suppress(BlockingIOError):
            down += piece[: client.send(piece)]
        rig.settle()
        if rng.random() < 0.7:
            got += said(client) or b""
        if rng.random() < 0.7:
            stream.consume(rng.randrange(200_000))
        rig.settle()
    stream.consume(1 << 30)
    rig.settle()
    stream.consume(1 << 30)
    rig.settle()
    got += said(client) or b""
    rig.settle()
    got += said(client) or b""
    assert got == up
    assert stream.received == down


def test_more_host_programs_than_streams_wait_for_their_turn(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, stream_limit=2) as rig:
        first, _, third = (rig.client(b"CONNECT %d\n" % port) for port in (1, 2, 3))
        assert rig.gateway.open_streams == 2
        assert said(third) is None
        first.close()
        rig.settle()
        for stream in tuple(rig.guest.streams.values()):
            if stream.shutdown == SHUTDOWN_BOTH:
                stream.send(Op.RST)
        rig.settle()
        assert said(third) is not None


def test_all_streams_together_are_promised_no_more_memory_than_there_is(tmp_path: Path) -> None:
    """Everyone sends all he may and no host program reads: what is held stays below the limit, the rest is refused."""
    with gateway_rig(tmp_path, memory_limit=4 << 20) as rig:
        rig.server(5000, backlog=100)
        streams = [rig.guest.connect(5000, port) for port in range(40)]
        rig.settle()
        for _ in range(200):
            for stream in streams:
                if stream.state == "connected":
                    stream.write(b"x" * 65536)
            rig.settle()
        held = sum(connection.readable for connection in rig.port.connections.values())
        assert held <= rig.engine.reserved <= 4 << 20
        states = [stream.state for stream in streams]
        # Three of a mebibyte; then, over half of the limit, those of Linux's size.
        assert (states.count("connected"), states.count("reset")) == (7, 33)
        for server_side in range(7):
            assert streams[server_side].state == "connected"


def test_a_flood_of_requests_costs_a_bounded_number_of_sockets(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True, stream_limit=10) as rig:
        rig.server(5000, backlog=1000)
        gc.collect()  # what others left goes now, not in between
        before = len(os.listdir("/proc/self/fd"))
        for port in range(500):
            rig.transport.feed(Op.REQUEST, 5000, port)
        rig.settle()
        assert len(os.listdir("/proc/self/fd")) == before + 10
        ops = rig.transport.ops()
        assert (ops.count("RESPONSE"), ops.count("RST")) == (10, 490)
        assert rig.gateway.drops["stream-limit"] == 490


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free number is the first one that must not be had.
    probe = os.open("/dev/null", os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_the_listener_rests_and_comes_back(rig: GatewayRig) -> None:
    client = socket.socket(socket.AF_UNIX)
    with client:
        client.connect(rig.path)
        client.setblocking(False)
        client.sendall(b"CONNECT 5\n")
        with no_descriptor_left():
            assert rig.settle() < 5  # it does not spin
            rig.wait(BACK_OFF)
        assert said(client) is None
        rig.wait(BACK_OFF)
        assert said(client) == b"OK %d\n" % rig.stream.host_port


def test_without_descriptors_the_guest_is_refused(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True) as rig:
        rig.server(5000)
        rig.transport.feed(Op.REQUEST, 5000, 1)
        with no_descriptor_left():
            rig.settle()
        assert rig.transport.ops() == ["RST"]
        assert rig.gateway.drops["connect-EMFILE"] == 1


# -- lying guests -------------------------------------------------------------------------------------------------


def test_a_guest_that_sends_more_than_granted_is_reset_and_its_host_sees_the_end(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    stream = rig.stream
    for _ in range(200):
        stream.send(Op.RW, payload=b"x" * 65536)
    rig.settle()
    assert stream.state == "reset"
    assert rig.gateway.open_streams <= 1  # what came in time is still being read
    while b"<end>" not in (said(client) or b""):
        rig.settle()
    rig.settle()
    assert rig.gateway.open_streams == 0


@pytest.mark.parametrize("op", [Op.REQUEST, Op.RESPONSE, Op.INVALID, 8, 65535])
def test_packets_that_have_no_place_end_the_stream_and_no_other(rig: GatewayRig, op: int) -> None:
    client, other = rig.client(b"CONNECT 5\n"), rig.client(b"CONNECT 6\n")
    bad, good = rig.guest.streams.values()
    bad.send(op)
    rig.settle()
    assert (said(client) or b"").endswith(b"<end>")
    assert said(other) == b"OK %d\n" % good.host_port
    good.write(b"fine")
    rig.settle()
    assert said(other) == b"fine"


def test_a_reset_while_the_host_is_still_being_asked_is_heard(tmp_path: Path) -> None:
    """A TCP server that does not answer; the guest loses patience first."""
    with gateway_rig(tmp_path, scripted=True) as rig:
        silent = socket.create_server(("127.0.0.1", 0), backlog=0)
        filling = socket.create_connection(silent.getsockname())
        with silent, filling:
            rig.gateway.forward(80, host_address(f"tcp:127.0.0.1:{silent.getsockname()[1]}"))
            for port in range(3):  # the kernel drops what its queue cannot hold
                rig.transport.feed(Op.REQUEST, 80, port)
            rig.settle()
            waiting = rig.gateway.open_streams
            answered = rig.transport.ops()
            for port in range(3):
                rig.transport.feed(Op.RST, 80, port)
            rig.settle()
            assert answered.count("RESPONSE") < 3
            assert waiting == 3
            assert rig.gateway.open_streams <= answered.count("RESPONSE")
            assert rig.gateway.drops["guest-left"] >= 1
            rig.wait(NS_PER_S)
