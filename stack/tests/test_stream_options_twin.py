"""TCP's socket options on the kernel's sockets and on ours (section 2.3): values, states, errors, control messages.

What they do on the wire: `tcp/test_tcp_option_effects.py`.
"""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.link import cable
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.socket.ip.options import IP_BIND_ADDRESS_NO_PORT
from stack.socket.ip.signature_options import TCP_MD5SIG
from stack.socket.ip.stream_info import explain
from stack.socket.ip.stream_options import (
    TCP_CC_INFO,
    TCP_INQ,
    TCP_RTO_MAX_MS,
    TCP_SAVE_SYN,
    TCP_SAVED_SYN,
    TCP_THIN_DUPACK,
    TCP_TIMESTAMP,
    TCP_ULP,
    TCP_ZEROCOPY_RECEIVE,
)
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import World, code, has_ipv6_loopback

TCP = kernel.IPPROTO_TCP
SOL = kernel.SOL_SOCKET


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


def ours(stack: Stack) -> tuple[Any, Any, Any]:
    """Client, accepted socket, and the client's connection."""
    network: Any = stack.network
    client, served = World(stack.socket, network).pair()
    return client, served, client._sock.phase.connection


REACHES = [  # option, value, field of TcpOptions, value there
    ("TCP_NODELAY", 1, "nodelay", True),
    ("TCP_CORK", 1, "cork", True),
    ("TCP_MAXSEG", 900, "maxseg", 900),
    ("TCP_KEEPIDLE", 11, "keepalive_idle", 11 * NS_PER_S),
    ("TCP_KEEPINTVL", 12, "keepalive_interval", 12 * NS_PER_S),
    ("TCP_KEEPCNT", 13, "keepalive_count", 13),
    ("TCP_SYNCNT", 3, "syn_retries", 3),
    ("TCP_LINGER2", 14, "fin_timeout", 14 * NS_PER_S),
    ("TCP_WINDOW_CLAMP", 40_000, "window_clamp", 40_000),
    ("TCP_QUICKACK", 0, "quickack", False),
    ("TCP_THIN_LINEAR_TIMEOUTS", 1, "thin_linear", True),
    ("TCP_USER_TIMEOUT", 1234, "user_timeout", 1234 * NS_PER_MS),
    ("TCP_NOTSENT_LOWAT", 5000, "notsent_lowat", 5000),
    ("TCP_INQ", 1, "inq", True),
    ("TCP_TX_DELAY", 5000, "tx_delay", 5 * NS_PER_MS),
    ("TCP_RTO_MAX_MS", 2000, "rto_max", 2 * NS_PER_S),
    ("TCP_RTO_MIN_US", 20_000, "rto_min", 20 * NS_PER_MS),
    ("TCP_DELACK_MAX_US", 8000, "delayed_ack_max", 8 * NS_PER_MS),
    ("SO_KEEPALIVE", 1, "keepalive", True),
    ("SO_OOBINLINE", 1, "oob_inline", True),
    ("SO_RCVLOWAT", 77, "rcvlowat", 77),
    ("SO_SNDBUF", 50_000, "sndbuf", 50_000),
    ("SO_RCVBUF", 60_000, "rcvbuf", 60_000),
    ("SO_MAX_PACING_RATE", 1_000_000, "max_pacing_rate", 1_000_000),
]
#: Where Python 3.11's module has no name.
NUMBERS = {
    "TCP_THIN_LINEAR_TIMEOUTS": 16,
    "TCP_INQ": 36,
    "TCP_TX_DELAY": 37,
    "TCP_RTO_MAX_MS": 44,
    "TCP_RTO_MIN_US": 45,
    "TCP_DELACK_MAX_US": 46,
    "SO_MAX_PACING_RATE": 47,
}


def number(name: str) -> tuple[int, int]:
    return (TCP if name.startswith("TCP") else SOL), NUMBERS.get(name) or int(getattr(kernel, name))


@pytest.mark.parametrize(("name", "value", "field", "inner"), REACHES)
def test_opt_values_reach_tcp_before_and_after_connecting_and_by_accept(
    stack: Stack, name: str, value: int, field: str, inner: object
) -> None:
    """No option is merely stored: TCP works with it, in its own unit, and so does an accepted socket (row TCP-16)."""
    option = number(name)
    client, served, connection = ours(stack)
    with client, served:
        client.setsockopt(*option, value)
        assert getattr(connection.options, field) == inner
    with stack.socket.socket() as listener, stack.socket.socket() as early:
        for sock in (listener, early):
            sock.setsockopt(*option, value)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        early.connect(listener.getsockname())
        assert getattr(early._sock.phase.connection.options, field) == inner
        child, _ = listener.accept()
        with child:
            assert getattr(child._sock.phase.connection.options, field) == inner


def test_opt_inq_tells_what_is_left(world: World) -> None:
    """Row TCP-32: a control message (6, 36, int) with every recvmsg; at the end of the stream it says 1."""
    client, served = world.pair()
    with client, served:
        assert code(served.setsockopt, TCP, TCP_INQ, 2) == errno.EINVAL
        served.setsockopt(TCP, TCP_INQ, 1)
        client.sendall(b"abcdefghi")
        world.settle(served, IN)
        assert served.recvmsg(4, 100)[:2] == (b"abcd", [(6, 36, struct.pack("i", 5))])
        assert served.recvmsg(2, 100, kernel.MSG_PEEK)[:2] == (b"ef", [(6, 36, struct.pack("i", 5))])
        assert served.recvmsg(100, 100)[:2] == (b"efghi", [(6, 36, struct.pack("i", 0))])
        client.close()
        world.settle(served, RDHUP)
        assert served.recvmsg(10, 100)[:2] == (b"", [(6, 36, struct.pack("i", 1))])


def test_opt_inq_without_room_is_cut(world: World) -> None:
    client, served = world.pair()
    with client, served:
        served.setsockopt(TCP, TCP_INQ, 1)
        client.sendall(b"abc")
        world.settle(served, IN)
        data, ancillary, flags, _ = served.recvmsg(3)
        assert (data, ancillary, flags) == (b"abc", [], kernel.MSG_CTRUNC)


def test_opt_info_is_280_bytes_and_cut_to_the_room(world: World) -> None:
    """Row TCP-37: struct tcp_info of Linux 6.18; read-only."""
    client, served = world.pair()
    with client, served:
        whole = client.getsockopt(TCP, kernel.TCP_INFO, 512)
        if world.network is not None or len(whole) == 280:
            assert len(whole) == 280
        assert len(client.getsockopt(TCP, kernel.TCP_INFO, 104)) == 104
        assert client.getsockopt(TCP, kernel.TCP_INFO, 1) == b"\1"
        assert code(client.setsockopt, TCP, kernel.TCP_INFO, 1) == errno.ENOPROTOOPT
        client.sendall(bytes(1000))
        received = served.recv(1000, kernel.MSG_WAITALL)
        assert len(received) == 1000
        served.sendall(b"answer")
        assert client.recv(10) == b"answer"
        info = explain(client.getsockopt(TCP, kernel.TCP_INFO, 512))
        assert info["state"] == 1
        assert info["options"] & 7 == 7  # timestamps, SACK, window scaling
        assert (info["bytes_sent"], info["bytes_retrans"], info["bytes_received"]) == (1000, 0, 6)
        assert info["bytes_acked"] in (1000, 1001)  # Linux counts its own SYN
        assert (info["data_segs_out"], info["data_segs_in"]) == (1, 1)
        assert info["total_retrans"] == info["lost"] == info["unacked"] == info["notsent_bytes"] == 0
        assert info["segs_out"] >= 3
        assert info["segs_in"] >= 3
        assert 200_000 <= info["rto"] <= 1_000_000
        assert info["rtt"] > 0
        assert info["reordering"] >= 3
        if world.network is not None:  # a kernel remembers what earlier connections found on the same path
            assert info["reordering"] == 3
            assert info["snd_ssthresh"] == 0x7FFFFFFF
        assert info["snd_cwnd"] >= 2  # RFC 6928 on a path with an MSS of 64 KiB; Linux says 10 there, too
        assert info["max_pacing_rate"] == (1 << 64) - 1
        assert explain(served.getsockopt(TCP, kernel.TCP_INFO, 512))["bytes_received"] == 1000


def test_opt_info_of_unconnected_and_listening_sockets(world: World) -> None:
    """Closed: defaults. Listening: how many wait to be accepted, and how many may."""
    with world.socket.socket() as sock:
        info = explain(sock.getsockopt(TCP, kernel.TCP_INFO, 512))
        assert (info["state"], info["rto"], info["snd_mss"], info["snd_cwnd"]) == (7, 1_000_000, 536, 10)
    with world.listener(7) as listener, world.socket.create_connection(listener.getsockname()) as client:
        world.settle(listener, IN)
        info = explain(listener.getsockopt(TCP, kernel.TCP_INFO, 512))
        assert (info["state"], info["unacked"], info["sacked"]) == (10, 1, 7)
        assert client.getsockopt(TCP, kernel.TCP_INFO, 1) == b"\1"


def test_opt_cc_info_is_of_the_algorithm(world: World) -> None:
    """Twenty bytes of BBR's, nothing of the others'."""
    client, served = world.pair()
    with client, served:
        for name, length in ((b"reno", 0), (b"bbr", 20), (b"cubic", 0)):
            try:
                client.setsockopt(TCP, kernel.TCP_CONGESTION, name)
            except FileNotFoundError:
                continue  # this kernel has none
            assert len(client.getsockopt(TCP, TCP_CC_INFO, 64)) == length
        assert code(client.setsockopt, TCP, TCP_CC_INFO, 1) == errno.ENOPROTOOPT


def test_opt_congestion_by_name(world: World) -> None:
    """Row TCP-31: sixteen bytes of name, cut to the room; unknown ENOENT, empty EINVAL; at any time."""
    client, served = world.pair()
    with client, served:
        client.setsockopt(TCP, kernel.TCP_CONGESTION, b"reno")
        assert client.getsockopt(TCP, kernel.TCP_CONGESTION, 64) == b"reno".ljust(16, b"\0")
        assert client.getsockopt(TCP, kernel.TCP_CONGESTION, 3) == b"ren"
        assert code(client.setsockopt, TCP, kernel.TCP_CONGESTION, b"nonesuch") == errno.ENOENT
        assert code(client.setsockopt, TCP, kernel.TCP_CONGESTION, b"") == errno.EINVAL
        assert client.getsockopt(TCP, kernel.TCP_CONGESTION, 4) == b"reno"


def test_opt_congestion_not_allowed_to_users(stack: Stack) -> None:
    """Neither in tcp_allowed_congestion_control nor privileged: EPERM."""
    user = Stack("user", network=stack.network, credentials=Credentials.user(1000))
    with user.socket.socket() as sock:
        assert code(sock.setsockopt, TCP, kernel.TCP_CONGESTION, b"bbr") == errno.EPERM
        sock.setsockopt(TCP, kernel.TCP_CONGESTION, b"reno")
    user.close()


def test_opt_rto_and_delack_bounds_are_ticks(world: World) -> None:
    """4 ms each on a kernel with HZ = 250: rounded up, at least two."""
    with world.socket.socket() as sock:
        for option in (45, 46):
            for given, kept in ((4001, 8000), (8001, 12_000), (200_000, 200_000)):
                sock.setsockopt(TCP, option, given)
                assert sock.getsockopt(TCP, option) == kept
            for bad in (0, 4000, 200_001):
                assert code(sock.setsockopt, TCP, option, bad) == errno.EINVAL
        sock.setsockopt(TCP, TCP_RTO_MAX_MS, 1001)
        assert sock.getsockopt(TCP, TCP_RTO_MAX_MS) == 1004
        for bad in (999, 120_001):
            assert code(sock.setsockopt, TCP, TCP_RTO_MAX_MS, bad) == errno.EINVAL


def test_opt_tcp_ulp_zerocopy_receive_and_others_that_are_not_there(world: World) -> None:
    """MD5SIG without a key, upper layer protocols, zero-copy receive, a clock that only repair may set."""
    with world.socket.socket() as sock:
        assert code(sock.getsockopt, TCP, TCP_MD5SIG) == errno.ENOPROTOOPT
        assert code(sock.setsockopt, TCP, TCP_MD5SIG, 1) == errno.EINVAL
        assert sock.getsockopt(TCP, TCP_ULP, 16) == b""
        assert code(sock.setsockopt, TCP, TCP_ULP, b"nonesuch") == errno.ENOENT
        assert code(sock.setsockopt, TCP, TCP_ULP, b"") == errno.EINVAL
        assert code(sock.getsockopt, TCP, TCP_ZEROCOPY_RECEIVE) == errno.EINVAL
        assert code(sock.setsockopt, TCP, TCP_TIMESTAMP, 1) == errno.EPERM
        first = sock.getsockopt(TCP, TCP_TIMESTAMP)
        assert (sock.getsockopt(TCP, TCP_TIMESTAMP) - first) & 0xFFFFFFFF < 10_000
        sock.setsockopt(TCP, TCP_THIN_DUPACK, 1)  # taken and ignored
        assert sock.getsockopt(TCP, TCP_THIN_DUPACK) == 0


def test_opt_save_syn_keeps_the_headers_of_the_syn_until_read(world: World) -> None:
    """IP and TCP headers, from IP's first byte; too little room is EINVAL; once read they are gone."""
    with world.listener() as listener:
        listener.setsockopt(TCP, TCP_SAVE_SYN, 1)
        for bad in (-1, 3):
            assert code(listener.setsockopt, TCP, TCP_SAVE_SYN, bad) == errno.EINVAL
        with world.socket.create_connection(listener.getsockname(), timeout=10) as client:
            served, _ = listener.accept()
            with served:
                assert code(served.getsockopt, TCP, TCP_SAVED_SYN, 20) == errno.EINVAL
                saved = served.getsockopt(TCP, TCP_SAVED_SYN, 200)
                assert saved[0] == 0x45
                assert saved[9] == TCP
                assert saved[12:20] == bytes((127, 0, 0, 1)) * 2
                ports = client.getsockname()[1], listener.getsockname()[1]
                assert struct.unpack_from("!HH", saved, 20) == ports
                assert saved[33] & 0x3F == 2  # SYN
                assert len(saved) == 20 + (saved[32] >> 4 << 2)
                assert served.getsockopt(TCP, TCP_SAVED_SYN, 200) == b""
                assert code(served.setsockopt, TCP, TCP_SAVED_SYN, 1) == errno.ENOPROTOOPT
            assert client.getsockopt(TCP, TCP_SAVED_SYN, 200) == b""


def test_opt_save_syn_2_keeps_the_link_header_too(world: World) -> None:
    """Over the loopback interface: 14 bytes of Ethernet without addresses, then IP's header and TCP's."""
    with world.listener() as listener:
        listener.setsockopt(TCP, TCP_SAVE_SYN, 2)
        assert listener.getsockopt(TCP, TCP_SAVE_SYN) == 2
        with world.socket.create_connection(listener.getsockname(), timeout=10):
            served, _ = listener.accept()
            with served:
                assert served.getsockopt(TCP, TCP_SAVE_SYN) == 2
                assert code(served.getsockopt, TCP, TCP_SAVED_SYN, 14 + 20 + 20) == errno.EINVAL
                saved = served.getsockopt(TCP, TCP_SAVED_SYN, 200)
                assert saved[:14] == bytes(12) + b"\x08\0"
                assert saved[14] == 0x45
                assert saved[14 + 9] == TCP
                assert len(saved) == 14 + 20 + (saved[14 + 32] >> 4 << 2)
                assert served.getsockopt(TCP, TCP_SAVED_SYN, 200) == b""


def test_opt_window_clamp_needs_a_closed_socket_to_be_lifted(world: World) -> None:
    """Row TCP-30: 0 only before connecting; at least 1152."""
    with world.socket.socket() as sock:
        sock.setsockopt(TCP, kernel.TCP_WINDOW_CLAMP, 7)
        assert sock.getsockopt(TCP, kernel.TCP_WINDOW_CLAMP) == 1152
        sock.setsockopt(TCP, kernel.TCP_WINDOW_CLAMP, 0)
        assert sock.getsockopt(TCP, kernel.TCP_WINDOW_CLAMP) == 0
    client, served = world.pair()
    with client, served:
        assert code(client.setsockopt, TCP, kernel.TCP_WINDOW_CLAMP, 0) == errno.EINVAL
        client.setsockopt(TCP, kernel.TCP_WINDOW_CLAMP, 5000)
        assert client.getsockopt(TCP, kernel.TCP_WINDOW_CLAMP) == 5000


def test_opt_quickack_reads_as_the_mode_it_is_in(world: World) -> None:
    client, served = world.pair()
    with client, served:
        assert client.getsockopt(TCP, kernel.TCP_QUICKACK) == 1
        client.setsockopt(TCP, kernel.TCP_QUICKACK, 0)
        assert client.getsockopt(TCP, kernel.TCP_QUICKACK) == 0
        client.setsockopt(TCP, kernel.TCP_QUICKACK, 1)
        assert client.getsockopt(TCP, kernel.TCP_QUICKACK) == 1


def arrived(sock: Any) -> bytes:
    """What there is to be read, whatever the low-water mark."""
    with suppress(BlockingIOError):
        return bytes(sock.recv(100, kernel.MSG_PEEK | kernel.MSG_DONTWAIT))
    return b""


def test_opt_rcvlowat_is_what_poll_and_a_blocking_recv_wait_for(world: World) -> None:
    """Fewer bytes: not readable; recv that may wait does; what may not takes what is there. The end always shows."""
    client, served = world.pair()
    with client, served:
        served.settimeout(None)
        served.setsockopt(SOL, kernel.SO_RCVLOWAT, 4)
        client.sendall(b"ab")
        world.until(lambda: arrived(served) == b"ab")
        assert world.bits(served) == OUT
        assert served.recv(10, kernel.MSG_DONTWAIT) == b"ab"
        client.sendall(b"abcd")
        assert world.settle(served, IN) == IN | OUT
        assert served.recv(10) == b"abcd"
        client.sendall(b"xy")
        assert served.recv(2) == b"xy"  # all that was asked for
        served.setsockopt(SOL, kernel.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
        client.sendall(b"z")
        world.until(lambda: arrived(served) == b"z")
        assert served.recv(10) == b"z"  # the time is over
        client.sendall(b"!")
        client.close()
        assert world.settle(served, RDHUP) == IN | OUT | RDHUP
        served.setsockopt(SOL, kernel.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        assert served.recv(10) == b"!"
        assert served.recv(10) == b""


def test_opt_notsent_lowat_fills_no_buffer(world: World) -> None:
    """Less is taken than the buffer holds, while the peer does not read."""
    taken = []
    for lowat in (0, 1):
        client, served = world.pair()
        with client, served:
            client.setblocking(False)
            if lowat:
                client.setsockopt(TCP, kernel.TCP_NOTSENT_LOWAT, lowat)
            total = 0

            def full() -> bool:
                """What the peer's side has taken since the last send may have made room again."""
                nonlocal total
                with suppress(BlockingIOError):
                    while True:
                        total += client.send(bytes(65_536))  # noqa: B023 - called within this turn of the loop
                return not world.bits(client) & OUT  # noqa: B023

            world.until(full)
            assert not world.bits(client) & OUT
            taken.append(total)
    assert taken[1] < taken[0]


def test_opt_sndbuf_and_rcvbuf_double_and_show_what_tuning_came_to(world: World) -> None:
    """Row TCP-24: 16384 and 131072 at first, doubled when set, not below the minimum; a connection shows its own."""
    with world.socket.socket() as sock:
        assert sock.getsockopt(SOL, kernel.SO_SNDBUF) == 16_384
        assert sock.getsockopt(SOL, kernel.SO_RCVBUF) == 131_072
        sock.setsockopt(SOL, kernel.SO_SNDBUF, 20_000)
        sock.setsockopt(SOL, kernel.SO_RCVBUF, 1)
        assert sock.getsockopt(SOL, kernel.SO_SNDBUF) == 40_000
        assert sock.getsockopt(SOL, kernel.SO_RCVBUF) == 2304
    client, served = world.pair()
    with client, served:
        assert client.getsockopt(SOL, kernel.SO_SNDBUF) > 16_384
        assert client.getsockopt(SOL, kernel.SO_RCVBUF) == 131_072
        client.setsockopt(SOL, kernel.SO_RCVBUF, 70_000)
        assert client.getsockopt(SOL, kernel.SO_RCVBUF) == 140_000


def test_opt_max_pacing_rate_is_a_rate(world: World) -> None:
    with world.socket.socket() as sock:
        assert sock.getsockopt(SOL, 47, 8) == b"\xff" * 8
        sock.setsockopt(SOL, 47, 100_000)
        assert sock.getsockopt(SOL, 47) == 100_000


def test_opt_poll_hides_nothing_behind_the_low_water_mark(world: World) -> None:
    """A reset shows whatever SO_RCVLOWAT says."""
    client, served = world.pair()
    with client, served:
        served.setsockopt(SOL, kernel.SO_RCVLOWAT, 1000)
        client.setsockopt(SOL, kernel.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert world.settle(served, HUP) == IN | OUT | RDHUP | HUP | ERR
        served.settimeout(None)
        assert code(served.recv, 2000) == errno.ECONNRESET


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_opt_ip_bind_address_no_port_of_tcp(world: World, host: str) -> None:
    """IP_BIND_ADDRESS_NO_PORT on a TCP socket: bind() to port 0 settles the address and may be called again; connect()
    or listen() finds the port.
    """
    if ":" in host and not has_ipv6_loopback():
        pytest.skip("no ::1 on this machine")
    family = kernel.AF_INET6 if ":" in host else kernel.AF_INET
    with world.socket.socket(family) as listener, world.socket.socket(family) as client:
        for sock in (listener, client):
            sock.setsockopt(kernel.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((host, 0))
            assert sock.getsockname()[:2] == (host, 0)
            sock.bind((host, 0))
        assert code(client.bind, ("2001:db8::1" if ":" in host else "203.0.113.77", 0)) == errno.EADDRNOTAVAIL
        listener.listen()
        assert listener.getsockname()[0] == host
        port = listener.getsockname()[1]
        assert port
        client.connect(("127.0.0.1" if host == "0.0.0.0" else host, port))
        assert client.getsockname()[0] == ("127.0.0.1" if host == "0.0.0.0" else host)
        assert client.getsockname()[1]
        for sock in (listener, client):
            assert code(sock.bind, (host, 0)) == errno.EINVAL


def test_opt_ip_bind_address_no_port_of_tcp_keeps_the_address(world: World) -> None:
    """The address bound without a port is the one connected from."""
    with world.listener() as listener, world.socket.socket() as client:
        client.setsockopt(kernel.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        client.bind(("127.0.0.5", 0))
        client.connect(listener.getsockname())
        served, address = listener.accept()
        with served:
            assert address == client.getsockname()
            assert address[0] == "127.0.0.5"


def test_opt_so_dontroute_of_tcp_reaches_hosts_on_the_link_only() -> None:
    """SO_DONTROUTE on a TCP socket: connecting to what is behind a gateway is ENETUNREACH, to what is on the link not;
    over IPv6 it changes nothing, as on Linux.
    """
    with Network(clock=ManualClock()) as network:
        gw = network.stack("gw")
        near, _far = cable(network.scheduler)
        gw.add_interface(near, name="eth0", addresses=["10.0.0.1/24", "2001:db8::1/64"])
        gw.add_route("0.0.0.0/0", "10.0.0.254")
        gw.add_route("::/0", "2001:db8::fe")
        for direct in (0, 1):
            outcomes = []
            for host in ("198.51.100.1", "10.0.0.9", "127.0.0.1", "2001:db8:1::1"):
                with gw.socket.socket(kernel.AF_INET6 if ":" in host else kernel.AF_INET) as sock:
                    sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_DONTROUTE, direct)
                    sock.setblocking(False)
                    outcomes.append(code(sock.connect, (host, 9)))
            under_way = errno.EINPROGRESS
            assert outcomes == [errno.ENETUNREACH if direct else under_way, under_way, under_way, under_way]
