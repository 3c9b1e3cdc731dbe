"""Rows TCP-18 to TCP-39 clause by clause: sending, receiving, ending, urgent data, the poll matrix; on the kernel's
sockets and ours. More of them: `test_socket_twin_transfer.py`, `test_stream_options_twin.py`; in virtual time:
`tcp/test_tcp_close.py`, `tcp/test_tcp_patience.py`, `tcp/test_tcp_option_effects.py`, `tcp/test_tcp_urgent.py`.
"""

from __future__ import annotations

import errno
import fcntl
import random
import select
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.link.cable import cable
from stack.scheduler import NS_PER_S
from stack.socket.poll import ERR, HUP, IN, OUT, PRI, RDHUP
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import LOOPBACK, UNIX_URGENT, World, code

DIFFERENCES = {
    "TCP-34": "an urgent byte with nothing before it to read (POLLPRI alone) does not show in a socket's descriptor, "
    "`sock.poll()` tells it: out-of-band data of a kernel's socketpair would be readable, too",
}

SOL = kernel.SOL_SOCKET
TCP = kernel.IPPROTO_TCP
RESET = struct.pack("ii", 1, 0)  # SO_LINGER that makes close() a RST


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def urgent(world: World, sock: Any) -> bool:
    """POLLPRI."""
    if world.network is not None:
        return bool(sock._sock.poll() & PRI)
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    return bool(sum(bits for _, bits in poll.poll(0)) & PRI)


def at_mark(world: World, sock: Any) -> int:
    """SIOCATMARK."""
    if world.network is not None:
        return int(sock._sock.at_mark())
    return int(struct.unpack("i", fcntl.ioctl(sock, 0x8905, bytes(4)))[0])


def unread(world: World, sock: Any) -> int:
    """SIOCINQ."""
    if world.network is not None:
        return int(sock._sock.input_queue())
    return int(struct.unpack("i", fcntl.ioctl(sock, 0x541B, bytes(4)))[0])


def sent_urgent(world: World, data: bytes, *, inline: bool = False) -> tuple[Any, Any]:
    """A pair whose served end has `data`, the last byte of it urgent; nothing blocks."""
    client, served = world.pair()
    served.setsockopt(SOL, kernel.SO_OOBINLINE, inline)
    served.setblocking(False)
    client.send(data, kernel.MSG_OOB)
    before = len(data) if inline else len(data) - 1
    world.until(lambda: urgent(world, served) and unread(world, served) == before)
    return client, served


def take(sock: Any) -> int | None:
    """Send a megabyte: how much was taken, None for EAGAIN."""
    try:
        return int(sock.send(bytes(1 << 20)))
    except BlockingIOError:
        return None


# -- shutting down ----------------------------------------------------------------------------------------------------


def test_tcp_18_shutdown_twice_then_enotconn(world: World) -> None:
    """SHUT_RDWR twice is fine; once both directions are closed it is ENOTCONN; so it is before connecting."""
    with world.socket.socket() as fresh:
        assert code(fresh.shutdown, kernel.SHUT_WR) == errno.ENOTCONN
    client, served = world.pair()
    with client, served:
        client.shutdown(kernel.SHUT_RDWR)
        client.shutdown(kernel.SHUT_RDWR)
        served.shutdown(kernel.SHUT_RDWR)
        world.settle(client, HUP)
        world.settle(served, HUP)
        assert code(served.shutdown, kernel.SHUT_RDWR) == errno.ENOTCONN


def test_tcp_18_write_shut_down_sends_the_rest_first(world: World) -> None:
    """SHUT_WR: what was written arrives, then the end; writing is EPIPE, reading goes on."""
    client, served = world.pair()
    with client, served:
        client.sendall(b"last words")
        client.shutdown(kernel.SHUT_WR)
        assert code(client.send, b"x") == errno.EPIPE
        assert served.recv(20, kernel.MSG_WAITALL) == b"last words"
        served.sendall(b"answer")
        assert client.recv(10) == b"answer"


# -- sending and receiving --------------------------------------------------------------------------------------------


def test_tcp_19_send_where_nothing_can_be_sent(world: World) -> None:
    """Unconnected and listening: EPIPE, even for nothing."""
    with world.socket.socket() as sock, world.listener() as listener:
        for each in (sock, listener):
            assert code(each.send, b"x") == errno.EPIPE
            assert code(each.send, b"") == errno.EPIPE


def test_tcp_19_partial_sends_and_eagain(world: World) -> None:
    """Without waiting send takes a part, then EAGAIN; every byte taken arrives."""
    client, served = world.pair()
    with client, served:
        client.setblocking(False)
        taken = 0
        while (part := take(client)) is not None:
            taken += part
        assert taken % (1 << 20)
        client.shutdown(kernel.SHUT_WR)
        received = 0
        while data := served.recv(1 << 20):
            received += len(data)
        assert received == taken


def test_tcp_20_buffered_data_before_the_reset(world: World) -> None:
    """What had arrived is read first, then ECONNRESET once, then the end."""
    client, served = world.pair()
    with client, served:
        client.sendall(b"before")
        world.settle(served, IN)
        client.setsockopt(SOL, kernel.SO_LINGER, RESET)
        client.close()
        world.settle(served, ERR)
        assert served.recv(20) == b"before"
        assert code(served.recv, 20) == errno.ECONNRESET
        assert served.recv(20) == b""


def test_tcp_21_reset_in_close_wait_is_epipe(world: World) -> None:
    """A RST after the peer's FIN: what failed is our sending. Poll: IN, OUT, RDHUP, HUP, ERR; ERR goes when read."""
    client, served = world.pair()
    with client, served:
        client.shutdown(kernel.SHUT_WR)
        world.settle(served, RDHUP)
        served.send(b"unread")
        world.settle(client, IN)
        client.close()
        assert world.settle(served, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert served.getsockopt(SOL, kernel.SO_ERROR) == errno.EPIPE
        assert world.bits(served) == IN | OUT | RDHUP | HUP


def test_tcp_22_linger_zero_resets_the_peer(world: World) -> None:
    """SO_LINGER {1, 0}: RST at once, also with everything read and sent."""
    client, served = world.pair()
    with served:
        client.setsockopt(SOL, kernel.SO_LINGER, RESET)
        client.close()
        assert world.settle(served, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert served.getsockopt(SOL, kernel.SO_ERROR) == errno.ECONNRESET


def test_tcp_23_time_wait_lasts_sixty_seconds() -> None:
    """The end that closed first keeps the port for 60 s of (virtual) time; SO_REUSEADDR lets a server back at once."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        socket = network.stack("gw").socket
        listener = socket.create_server((LOOPBACK, 0))
        address = listener.getsockname()
        client = socket.create_connection(address)
        served, _ = listener.accept()
        served.close()
        client.close()
        listener.close()
        with socket.socket() as plain, socket.socket() as again:
            assert code(plain.bind, address) == errno.EADDRINUSE
            again.setsockopt(SOL, kernel.SO_REUSEADDR, 1)
            again.bind(address)
        start = network.clock()
        with socket.socket() as waiting:
            waiting.settimeout(59)
            waiting.bind((LOOPBACK, 0))
            waiting.listen()
            with pytest.raises(TimeoutError):
                waiting.accept()
            with socket.socket() as plain:
                assert code(plain.bind, address) == errno.EADDRINUSE
            waiting.settimeout(2)
            with pytest.raises(TimeoutError):
                waiting.accept()
        with socket.socket() as plain:
            plain.bind(address)
        assert network.clock() - start == 61 * NS_PER_S


def test_tcp_24_buffers_begin_small_and_are_limited(world: World) -> None:
    """SO_SNDBUF 16384 and SO_RCVBUF 131072 at first; setting doubles, within minimum and wmem_max, rmem_max."""
    with world.socket.socket() as sock:
        assert sock.getsockopt(SOL, kernel.SO_SNDBUF) == 16_384
        assert sock.getsockopt(SOL, kernel.SO_RCVBUF) == 131_072
        for number, least in ((kernel.SO_SNDBUF, 4608), (kernel.SO_RCVBUF, 2304)):
            for given, shown in ((0, least), (100_000, 200_000)):
                sock.setsockopt(SOL, number, given)
                assert sock.getsockopt(SOL, number) == shown
            sock.setsockopt(SOL, number, 1 << 30)
            limit = sock.getsockopt(SOL, number)
            sock.setsockopt(SOL, number, -1)
            assert sock.getsockopt(SOL, number) == limit
            if world.network is not None:
                assert limit == 2 * (4 << 20)


def test_tcp_25_cork_more_and_nodelay_lose_no_byte(world: World) -> None:
    """Held or not, in the order written."""
    client, served = world.pair()
    with client, served:
        client.setsockopt(TCP, kernel.TCP_CORK, 1)
        client.send(b"a")
        client.send(b"b", kernel.MSG_MORE)
        client.setsockopt(TCP, kernel.TCP_CORK, 0)
        client.send(b"c", kernel.MSG_MORE)
        client.setsockopt(TCP, kernel.TCP_NODELAY, 1)
        client.send(b"d")
        assert served.recv(4, kernel.MSG_WAITALL) == b"abcd"


def two_stacks(network: Network) -> tuple[Any, Any, Any]:
    """Client and accepted socket on two Stacks, and the server's interface."""
    left, right = cable(network.scheduler)
    one, other = network.stack("one"), network.stack("other")
    one.add_interface(left, addresses=["10.0.0.1/24"])
    interface = other.add_interface(right, addresses=["10.0.0.2/24"])
    server = other.socket.create_server(("10.0.0.2", 80))
    client = one.socket.create_connection(("10.0.0.2", 80))
    served, _ = server.accept()
    server.close()
    return client, served, interface


def test_tcp_26_keepalive_ends_a_blocked_recv() -> None:
    """A peer that vanished: ETIMEDOUT after KEEPIDLE and KEEPCNT times KEEPINTVL."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        client, served, interface = two_stacks(network)
        with client, served:
            for number, value in ((kernel.TCP_KEEPIDLE, 100), (kernel.TCP_KEEPINTVL, 7), (kernel.TCP_KEEPCNT, 3)):
                client.setsockopt(TCP, number, value)
            client.setsockopt(SOL, kernel.SO_KEEPALIVE, 1)
            client.settimeout(None)
            network.call(interface.set_up, (False,))
            start = network.clock()
            assert code(client.recv, 1) in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
            assert (network.clock() - start) // NS_PER_S == 121


def test_tcp_27_user_timeout_ends_a_blocked_recv() -> None:
    """Data unacknowledged for TCP_USER_TIMEOUT milliseconds: ETIMEDOUT."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        client, served, interface = two_stacks(network)
        with client, served:
            client.setsockopt(TCP, kernel.TCP_USER_TIMEOUT, 3000)
            client.settimeout(None)
            network.call(interface.set_up, (False,))
            client.send(b"unheard")
            start = network.clock()
            assert code(client.recv, 1) in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
            assert 3 * NS_PER_S <= network.clock() - start < 4 * NS_PER_S


# -- options that are rows --------------------------------------------------------------------------------------------


def test_tcp_30_window_clamp(stack: Stack) -> None:
    """TCP_WINDOW_CLAMP is an upper bound of the window that is offered."""
    with stack.socket.socket() as listener, stack.socket.socket() as client:
        listener.setsockopt(TCP, kernel.TCP_WINDOW_CLAMP, 5000)
        listener.bind((LOOPBACK, 0))
        listener.listen()
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            client.setblocking(False)
            client.send(bytes(100_000))
            assert client._sock.phase.connection.sender.snd_wnd <= 5000
            served.recv(1 << 20)
            assert served._sock.phase.connection.receiver.window <= 5000


def test_tcp_31_congestion_control_is_per_socket(world: World) -> None:
    """By name: get what was set, on this socket only."""
    with world.socket.socket() as one, world.socket.socket() as other:
        before = other.getsockopt(TCP, kernel.TCP_CONGESTION, 16)
        for name in (b"reno", b"cubic"):
            one.setsockopt(TCP, kernel.TCP_CONGESTION, name)
            assert one.getsockopt(TCP, kernel.TCP_CONGESTION, 16) == name.ljust(16, b"\0")
        assert other.getsockopt(TCP, kernel.TCP_CONGESTION, 16) == before


def test_tcp_32_inq_control_message(world: World) -> None:
    """recvmsg tells how many bytes are left: level 6, type 36, an int."""
    client, served = world.pair()
    with client, served:
        served.setsockopt(TCP, 36, 1)
        client.sendall(b"12345")
        world.settle(served, IN)
        assert served.recvmsg(2, 100) == (b"12", [(6, 36, struct.pack("i", 3))], 0, None)


def test_tcp_33_maxseg_before_and_after_connecting(world: World) -> None:
    """TCP_MAXSEG shows 536 unconnected, takes 0 or 88 to 32767, and on a connection shows what that works with."""
    with world.listener() as listener, world.socket.socket() as sock:
        assert sock.getsockopt(TCP, kernel.TCP_MAXSEG) == 536
        for bad in (-1, 1, 87, 32_768):
            assert code(sock.setsockopt, TCP, kernel.TCP_MAXSEG, bad) == errno.EINVAL
        for good in (88, 32_767, 1000):
            sock.setsockopt(TCP, kernel.TCP_MAXSEG, good)
            assert sock.getsockopt(TCP, kernel.TCP_MAXSEG) == good
        sock.connect(listener.getsockname())
        assert sock.getsockopt(TCP, kernel.TCP_MAXSEG) == 988
        listener.accept()[0].close()


def test_tcp_37_info_of_every_kind_of_socket(world: World) -> None:
    """Closed 7, listening 10, connected 1; after the peer's FIN 8; read-only."""
    with world.socket.socket() as sock, world.listener() as listener:
        assert sock.getsockopt(TCP, kernel.TCP_INFO, 1) == b"\7"
        assert listener.getsockopt(TCP, kernel.TCP_INFO, 1) == b"\n"
        assert code(sock.setsockopt, TCP, kernel.TCP_INFO, 1) == errno.ENOPROTOOPT
    client, served = world.pair()
    with client, served:
        assert client.getsockopt(TCP, kernel.TCP_INFO, 1) == b"\1"
        client.shutdown(kernel.SHUT_WR)
        world.settle(served, RDHUP)
        assert served.getsockopt(TCP, kernel.TCP_INFO, 1) == b"\x08"


# -- urgent data ------------------------------------------------------------------------------------------------------


def shown(served: Any) -> int:
    """What its descriptor shows poll(2), of what reading and urgent data are."""
    poll = select.poll()
    poll.register(served, select.POLLIN | select.POLLPRI)
    return sum(bits for _, bits in poll.poll(0))


def test_tcp_34_a_descriptor_does_not_show_a_lone_urgent_byte(world: World) -> None:
    """A lone urgent byte is POLLPRI, not POLLIN. Difference: our fileno() shows neither, `sock.poll()` does.

    Out-of-band data of the kernel's socketpair, which could stand for it, is always POLLIN as well.
    """
    client, served = sent_urgent(world, b"!")
    with client, served:
        assert shown(served) == (PRI if world.network is None else 0)
        assert urgent(world, served)


@pytest.mark.skipif(not UNIX_URGENT, reason="the kernel's Unix sockets have no urgent data, and so no mirror of ours")
def test_tcp_34_a_descriptor_shows_urgent_data(world: World) -> None:
    """Behind bytes to read, urgent data is POLLPRI of the descriptor, for poll, select and epoll, until it is taken;
    bytes stay readable, and more of them are an edge.
    """
    client, served = sent_urgent(world, b"ab!")
    with client, served, select.epoll() as edges:
        assert shown(served) == IN | PRI
        assert select.select([served], [], [served], 0) == ([served], [], [served])
        edges.register(served, select.EPOLLIN | select.EPOLLPRI | select.EPOLLET)
        assert edges.poll(0) == [(served.fileno(), IN | PRI)]
        assert edges.poll(0) == []
        for more in (b"c", b"d"):
            client.send(more)
            assert edges.poll(10) == [(served.fileno(), IN | PRI)]
        assert shown(served) == IN | PRI
        assert served.recv(1, kernel.MSG_OOB) == b"!"
        assert shown(served) == IN
        assert served.recv(10) + served.recv(10) == b"abcd"
        assert shown(served) == 0
        client.send(b"e!", kernel.MSG_OOB)
        seen = 0

        def both() -> bool:
            nonlocal seen
            for _, bits in edges.poll(0):
                seen |= bits
            return seen == IN | PRI

        world.until(both)
        assert seen == IN | PRI
        served.recv(1, kernel.MSG_OOB)
        assert shown(served) == IN
        assert served.recv(10) == b"e"
        assert shown(served) == 0


def test_tcp_34_one_byte_out_of_band(world: World) -> None:
    """MSG_OOB gives the last byte once, then EINVAL; POLLPRI while it is there; reads stop at the mark, without it."""
    client, served = sent_urgent(world, b"abc")
    with client, served:
        assert urgent(world, served)
        assert (world.bits(served), at_mark(world, served), unread(world, served)) == (IN | OUT, 0, 2)
        assert served.recv(10) == b"ab"
        assert (world.bits(served), at_mark(world, served), unread(world, served)) == (OUT, 1, 0)
        assert served.recv(1, kernel.MSG_OOB | kernel.MSG_PEEK) == b"c"
        assert served.recvmsg(10, 0, kernel.MSG_OOB) == (b"c", [], kernel.MSG_OOB, None)
        assert code(served.recv, 1, kernel.MSG_OOB) == errno.EINVAL
        assert not urgent(world, served)
        assert at_mark(world, served) == 1
        client.send(b"def")
        assert world.settle(served, IN) == IN | OUT
        assert served.recv(10, kernel.MSG_PEEK) == b"def"
        assert served.recv(10) == b"def"
        assert at_mark(world, served) == 0


def test_tcp_34_inline(world: World) -> None:
    """SO_OOBINLINE: the byte stays in the stream, reads stop before it, MSG_OOB is EINVAL."""
    client, served = sent_urgent(world, b"ab", inline=True)
    with client, served:
        client.send(b"cd")
        world.until(lambda: unread(world, served) == 4)
        assert unread(world, served) == 4
        assert served.recv(10) == b"a"
        assert at_mark(world, served) == 1
        assert code(served.recv, 1, kernel.MSG_OOB) == errno.EINVAL
        assert urgent(world, served)
        assert served.recv(10) == b"bcd"
        assert (at_mark(world, served), urgent(world, served)) == (0, False)


def test_tcp_34_without_urgent_data(world: World) -> None:
    """EINVAL on a connection, ENOTCONN on a listener, EPIPE for sending where nothing can be sent; no mark anywhere."""
    client, served = world.pair()
    with client, served, world.socket.socket() as fresh, world.listener() as listener:
        served.setblocking(False)
        assert code(served.recv, 1, kernel.MSG_OOB) == errno.EINVAL
        assert at_mark(world, served) == at_mark(world, fresh) == 0
        assert code(listener.recv, 1, kernel.MSG_OOB) == errno.ENOTCONN
        assert code(fresh.send, b"x", kernel.MSG_OOB) == errno.EPIPE


def test_tcp_34_only_the_last_byte_is_out_of_band(world: World) -> None:
    """A second urgent byte makes the first an ordinary one, unless that was next to be read: then it is gone."""
    client, served = sent_urgent(world, b"123a")
    with client, served:
        client.send(b"456b", kernel.MSG_OOB)
        world.until(lambda: unread(world, served) == 7)
        assert served.recv(10) == b"123a456"
        assert served.recv(1, kernel.MSG_OOB) == b"b"
        assert code(served.recv, 10) == errno.EAGAIN
    client, served = sent_urgent(world, b"a")
    with client, served:
        client.send(b"b", kernel.MSG_OOB)
        world.until(lambda: bool(served.recv(1, kernel.MSG_OOB | kernel.MSG_PEEK) == b"b"))
        assert served.recv(1, kernel.MSG_OOB) == b"b"
        assert code(served.recv, 10) == errno.EAGAIN


def test_tcp_34_reading_past_the_mark_loses_the_byte(world: World) -> None:
    """At the mark a read goes on behind it; if nothing is there, EAGAIN, and the byte is lost all the same."""
    client, served = sent_urgent(world, b"a")
    with client, served:
        assert world.bits(served) == OUT
        assert code(served.recv, 10) == errno.EAGAIN
        assert code(served.recv, 1, kernel.MSG_OOB) == errno.EINVAL
    client, served = sent_urgent(world, b"12a")
    with client, served:
        client.send(b"rest")
        world.settle(served, IN)
        assert served.recv(4, kernel.MSG_WAITALL) == b"12"
        world.until(lambda: bool(served.recv(10, kernel.MSG_PEEK) == b"rest"))
        assert served.recv(2) == b"re"
        assert code(served.recv, 1, kernel.MSG_OOB) == errno.EINVAL


# -- the poll matrix --------------------------------------------------------------------------------------------------


def test_tcp_39_poll_matrix(world: World) -> None:
    """Every line of the table: unconnected, bound, listening, pending, connected, data, shut down on either side."""
    with world.socket.socket() as sock:
        assert world.bits(sock) == OUT | HUP
        sock.bind((LOOPBACK, 0))
        assert world.bits(sock) == OUT | HUP
    with world.listener() as listener:
        assert world.bits(listener) == 0
        client = world.socket.create_connection(listener.getsockname(), timeout=10)
        assert world.settle(listener, IN) == IN
        client.close()
        assert world.settle(listener, IN) == IN
        served, _ = listener.accept()
        with served:
            assert world.settle(served, RDHUP) == IN | OUT | RDHUP
    for ends, here, there in (
        ((kernel.SHUT_RD,), IN | OUT | RDHUP, OUT),
        ((kernel.SHUT_WR,), OUT, IN | OUT | RDHUP),
        ((kernel.SHUT_RDWR,), IN | OUT | RDHUP | HUP, IN | OUT | RDHUP),
    ):
        client, served = world.pair()
        with client, served:
            assert world.bits(client) == world.bits(served) == OUT
            for how in ends:
                client.shutdown(how)
            world.settle(served, there)
            assert (world.bits(client), world.bits(served)) == (here, there)


def test_tcp_39_writing_to_a_shut_down_peer_resets_both(world: World) -> None:
    """After a local SHUT_RDWR, data from the peer is answered by RST: ERR on both sides."""
    client, served = world.pair()
    with client, served:
        client.shutdown(kernel.SHUT_RDWR)
        world.settle(served, RDHUP)
        served.send(b"too late")
        assert world.settle(served, ERR) == IN | OUT | RDHUP | HUP | ERR
        assert world.settle(client, ERR) == IN | OUT | RDHUP | HUP | ERR


def test_tcp_39_refused(world: World) -> None:
    """A refused connect that did not wait: 0x201D; after SO_ERROR without ERR."""
    with world.socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(world.refused_address())
        assert world.settle(sock, ERR) == 0x201D
        sock.getsockopt(SOL, kernel.SO_ERROR)
        assert world.bits(sock) == 0x201D & ~ERR
