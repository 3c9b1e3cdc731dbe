"""Fast Open at the socket: options (section 2.3) and MSG_FASTOPEN (section 1.3), on the kernel's sockets and on ours.

The kernel's listeners take part only if tcp_fastopen has bit 1, which it has not by default: what needs a server that
takes data runs on ours alone.
"""

from __future__ import annotations

import errno
import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.socket.ip.fastopen_options import TCP_FASTOPEN_NO_COOKIE
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.tests.kernel_twin import World, code

TCP = kernel.IPPROTO_TCP
MSG_FASTOPEN = 0x20000000
FASTOPEN, FASTOPEN_CONNECT, FASTOPEN_KEY = 23, 30, 33
SYN_DATA = 32  # TCPI_OPT_SYN_DATA


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def gw() -> Iterator[Stack]:
    """A stack whose listeners take part."""
    with Network() as network:
        stack = network.stack("gw")
        stack.netns.tcp.config.fastopen = 3
        yield stack


# -- options ----------------------------------------------------------------------------------------------------------


def test_opt_fastopen_is_a_limit_up_to_somaxconn(world: World) -> None:
    """0 by default; any number, cut to 4096; not negative; not once connected, but while listening."""
    with world.socket.socket() as sock:
        assert sock.getsockopt(TCP, FASTOPEN) == 0
        for value, stored in [(1, 1), (255, 255), (65536, 4096), (0, 0)]:
            sock.setsockopt(TCP, FASTOPEN, value)
            assert sock.getsockopt(TCP, FASTOPEN) == stored
        assert code(sock.setsockopt, TCP, FASTOPEN, -1) == errno.EINVAL
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setsockopt(TCP, FASTOPEN, 7)
        assert sock.getsockopt(TCP, FASTOPEN) == 7
    client, served = world.pair()
    with client, served:
        assert code(client.setsockopt, TCP, FASTOPEN, 1) == errno.EINVAL


@pytest.mark.parametrize("name", [FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE])
def test_opt_fastopen_connect_and_no_cookie_are_0_or_1(world: World, name: int) -> None:
    with world.socket.socket() as sock:
        assert sock.getsockopt(TCP, name) == 0
        sock.setsockopt(TCP, name, 1)
        assert sock.getsockopt(TCP, name) == 1
        for value in (-1, 2, 256):
            assert code(sock.setsockopt, TCP, name, value) == errno.EINVAL
    client, served = world.pair()
    with client, served:
        assert code(client.setsockopt, TCP, name, 1) == errno.EINVAL


def test_opt_fastopen_connect_is_not_for_listeners(world: World) -> None:
    with world.listener() as listener:
        assert code(listener.setsockopt, TCP, FASTOPEN_CONNECT, 1) == errno.EINVAL
        listener.setsockopt(TCP, TCP_FASTOPEN_NO_COOKIE, 1)


def test_opt_fastopen_key_is_16_or_32_bytes(world: World) -> None:
    with world.socket.socket() as sock:
        for size in (16, 32):
            sock.setsockopt(TCP, FASTOPEN_KEY, bytes(range(size)))
            assert sock.getsockopt(TCP, FASTOPEN_KEY, 64) == bytes(range(size))
        for size in (1, 15, 17, 31, 33):
            assert code(sock.setsockopt, TCP, FASTOPEN_KEY, bytes(size)) == errno.EINVAL


@pytest.mark.parametrize(("either", "at_once"), [(0, False), (1, True)], ids=["with a cookie", "without"])
def test_opt_tcp_fastopen_no_cookie_lets_data_go_first(gw: Stack, either: int, at_once: bool) -> None:
    """TCP_FASTOPEN_NO_COOKIE at both ends: the first SYN carries data that is taken; else it asks for one."""
    with gw.socket.socket() as listener, gw.socket.socket() as client:
        for sock in (listener, client):
            sock.setsockopt(TCP, TCP_FASTOPEN_NO_COOKIE, either)
        listener.setsockopt(TCP, FASTOPEN, 5)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert client.sendto(b"hello", MSG_FASTOPEN, listener.getsockname()) == 5
        with listener.accept()[0] as served:
            assert served.recv(5, kernel.MSG_WAITALL) == b"hello"
            for sock in (client, served):
                assert bool(sock.getsockopt(TCP, kernel.TCP_INFO, 8)[5] & SYN_DATA) is at_once


def test_opt_fastopen_is_not_inherited(gw: Stack) -> None:
    with gw.socket.socket() as listener:
        listener.setsockopt(TCP, FASTOPEN, 5)
        listener.setsockopt(TCP, FASTOPEN_KEY, bytes(16))
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with gw.socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as served:
            assert served.getsockopt(TCP, FASTOPEN) == 0
            assert client.getsockopt(TCP, FASTOPEN) == 0


def test_opt_fastopen_key_is_the_namespaces_once_there_is_one(gw: Stack) -> None:
    """Made when the first socket turns Fast Open on."""
    with gw.socket.socket() as sock:
        assert sock.getsockopt(TCP, FASTOPEN_KEY, 64) == b""
        sock.setsockopt(TCP, FASTOPEN, 1)
        assert len(sock.getsockopt(TCP, FASTOPEN_KEY, 64)) == 16


# -- MSG_FASTOPEN -----------------------------------------------------------------------------------------------------


def test_msg_fastopen_connects_and_sends(world: World) -> None:
    """Without a cookie it is connect, then send; a blocking one returns when all is on its way."""
    with world.listener() as listener, world.socket.socket() as client:
        client.settimeout(None)
        assert client.sendto(b"hello", MSG_FASTOPEN, listener.getsockname()) == 5
        assert client.getpeername() == listener.getsockname()
        with listener.accept()[0] as served:
            assert served.recv(5, kernel.MSG_WAITALL) == b"hello"


def test_msg_fastopen_without_waiting_is_in_progress(world: World) -> None:
    """No cookie, no bytes taken: EINPROGRESS; meanwhile EALREADY; then EISCONN."""
    with world.listener() as listener, world.socket.socket() as client:
        client.setblocking(False)
        assert code(client.sendto, b"hello", MSG_FASTOPEN, listener.getsockname()) == errno.EINPROGRESS
        world.settle(client, OUT)
        client.connect(listener.getsockname())
        assert code(client.sendto, b"x", MSG_FASTOPEN, listener.getsockname()) == errno.EISCONN
        assert client.send(b"hello") == 5


def test_msg_fastopen_needs_a_port_and_no_listener(world: World) -> None:
    with world.socket.socket() as sock:
        assert code(sock.sendto, b"x", MSG_FASTOPEN, ("127.0.0.1", 0)) == errno.ECONNREFUSED
    with world.listener() as listener:
        assert code(listener.sendto, b"x", MSG_FASTOPEN, ("127.0.0.1", 9)) == errno.EISCONN


def test_msg_fastopen_is_refused_as_connect_is(world: World) -> None:
    with world.socket.socket() as sock:
        assert code(sock.sendto, b"x", MSG_FASTOPEN, world.refused_address()) == errno.ECONNREFUSED


def test_msg_fastopen_may_be_switched_off(gw: Stack) -> None:
    """Without bit 0 of tcp_fastopen: EOPNOTSUPP, for TCP_FASTOPEN_CONNECT too."""
    gw.netns.tcp.config.fastopen = 0
    with gw.socket.socket() as sock:
        assert code(sock.sendto, b"x", MSG_FASTOPEN, ("127.0.0.1", 9)) == errno.EOPNOTSUPP
        assert code(sock.setsockopt, TCP, FASTOPEN_CONNECT, 1) == errno.EOPNOTSUPP


# -- with a server that takes part ------------------------------------------------------------------------------------


def serving(gw: Stack) -> Any:
    """A listener that this stack has a cookie for."""
    listener = gw.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setsockopt(TCP, FASTOPEN, 16)
    listener.listen()
    with gw.socket.socket() as client:
        client.sendto(b"", MSG_FASTOPEN, listener.getsockname())
        listener.accept()[0].close()
    return listener


def test_msg_fastopen_with_a_cookie_takes_the_data_along(gw: Stack) -> None:
    """A call that does not wait tells how much went with the SYN."""
    with serving(gw) as listener, gw.socket.socket() as client:
        client.setblocking(False)
        assert client.sendto(b"GET /", MSG_FASTOPEN, listener.getsockname()) == 5
        with listener.accept()[0] as served:
            assert served.recv(9) == b"GET /"
            served.sendall(b"200 OK")
            client.settimeout(10)
            assert client.recv(9) == b"200 OK"
    assert gw.netns.tcp.mib["TcpExtTCPFastOpenActive"] == gw.netns.tcp.mib["TcpExtTCPFastOpenPassive"] == 1


def test_msg_fastopen_sends_the_rest_after_the_handshake(gw: Stack) -> None:
    data = bytes(range(256)) * 400
    with serving(gw) as listener, gw.socket.socket() as client:
        assert client.sendto(data, MSG_FASTOPEN, listener.getsockname()) == len(data)
        with listener.accept()[0] as served:
            assert served.recv(len(data), kernel.MSG_WAITALL) == data
    assert gw.netns.tcp.mib["TcpExtTCPFastOpenActive"] == 1


def test_fastopen_connect_waits_for_the_first_data(gw: Stack) -> None:
    """connect() succeeds at once and sends nothing; the socket is writable; the first send makes the connection."""
    with serving(gw) as listener, gw.socket.socket() as client:
        client.setsockopt(TCP, FASTOPEN_CONNECT, 1)
        client.connect(listener.getsockname())
        assert client._sock.poll() & (IN | OUT | RDHUP | HUP | ERR) == OUT
        assert code(client.connect, listener.getsockname()) == errno.EISCONN
        assert code(client.getpeername) == errno.ENOTCONN
        listener.setblocking(False)
        assert code(listener.accept) == errno.EAGAIN
        client.sendall(b"GET /")
        listener.settimeout(10)
        with listener.accept()[0] as served:
            assert served.recv(9) == b"GET /"
            served.sendall(b"200 OK")
            assert client.recv(9) == b"200 OK"
        assert client.getpeername() == listener.getsockname()
    assert gw.netns.tcp.mib["TcpExtTCPFastOpenActive"] == 1


def test_msg_fastopen_by_sendmsg(world: World) -> None:
    """As by sendto: it connects and sends what was gathered; control messages nobody knows are EINVAL."""
    with world.listener() as listener, world.socket.socket() as client:
        assert client.sendmsg([b"he", b"llo"], [], MSG_FASTOPEN, listener.getsockname()) == 5
        with listener.accept()[0] as served:
            assert served.recv(5, kernel.MSG_WAITALL) == b"hello"
    with world.listener() as listener, world.socket.socket() as client:
        bad = (kernel.SOL_SOCKET, 99, b"1234")
        assert code(client.sendmsg, [b"x"], [bad], MSG_FASTOPEN, listener.getsockname()) == errno.EINVAL


@pytest.mark.parametrize("call", ["send", "sendall", "sendmsg", "sendto"])
def test_opt_fastopen_connect_lets_a_waiting_send_take_everything(gw: Stack, call: str) -> None:
    """The SYN takes what it can, the rest follows the handshake: a call that waits returns when all is queued.

    So measured on Linux, too, with tcp_fastopen 3.
    """
    data = bytes(range(256)) * 400
    with serving(gw) as listener, gw.socket.socket() as client:
        client.setsockopt(TCP, FASTOPEN_CONNECT, 1)
        client.connect(listener.getsockname())
        taken = {
            "send": lambda: client.send(data),
            "sendall": lambda: client.sendall(data),
            "sendmsg": lambda: client.sendmsg([data[:9], data[9:]]),
            "sendto": lambda: client.sendto(data, 0, listener.getsockname()),
        }[call]()
        assert taken == (None if call == "sendall" else len(data))
        assert client.getpeername() == listener.getsockname()  # the handshake is over
        with listener.accept()[0] as served:
            assert served.recv(len(data), kernel.MSG_WAITALL) == data
    assert gw.netns.tcp.mib["TcpExtTCPFastOpenActive"] == 1


def test_opt_fastopen_connect_without_waiting_takes_what_the_syn_does(gw: Stack) -> None:
    """And with nothing to say: EINPROGRESS; the connection is on its way."""
    with serving(gw) as listener:
        for data in (bytes(100_000), b""):
            with gw.socket.socket() as client:
                client.setsockopt(TCP, FASTOPEN_CONNECT, 1)
                client.connect(listener.getsockname())
                client.setblocking(False)
                if data:
                    assert 0 < client.send(data) < len(data)
                else:
                    assert code(client.send, data) == errno.EINPROGRESS
                listener.accept()[0].close()


def test_opt_fastopen_connect_tells_a_waiting_send_of_refusal(gw: Stack) -> None:
    """ECONNREFUSED, as connect would have said."""
    with gw.socket.socket() as client:
        with serving(gw) as listener:
            address = listener.getsockname()
        client.setsockopt(TCP, FASTOPEN_CONNECT, 1)
        client.connect(address)
        assert code(client.send, b"GET /") == errno.ECONNREFUSED


def test_fastopen_connect_without_a_cookie_connects_and_asks_for_one(gw: Stack) -> None:
    with gw.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setsockopt(TCP, FASTOPEN, 16)
        listener.listen()
        for expected in (0, 1):
            with gw.socket.socket() as client:
                client.setsockopt(TCP, FASTOPEN_CONNECT, 1)
                client.connect(listener.getsockname())
                client.sendall(b"GET /")
                with listener.accept()[0] as served:
                    assert served.recv(5, kernel.MSG_WAITALL) == b"GET /"
            assert gw.netns.tcp.mib["TcpExtTCPFastOpenActive"] == expected


def test_fastopen_connect_may_be_given_up(gw: Stack) -> None:
    """Nothing was sent, nothing is left."""
    with serving(gw) as listener:
        address = listener.getsockname()
        for end in ("close", "shutdown"):
            client = gw.socket.socket()
            client.setsockopt(TCP, FASTOPEN_CONNECT, 1)
            client.connect(address)
            if end == "shutdown":
                client.shutdown(kernel.SHUT_RDWR)
            client.close()
        listener.setblocking(False)
        assert code(listener.accept) == errno.EAGAIN
