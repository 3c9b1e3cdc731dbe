"""The option table (row OPT-00 and section 2): every row by rule, and value by value against the kernel's sockets."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.socket.ip.datagram_options import DATAGRAM6_OPTIONS, DATAGRAM_OPTIONS
from stack.socket.ip.options import IP_MTU
from stack.socket.ip.stream_options import STREAM_OPTIONS, TCP_CONGESTION, defer_accept
from stack.socket.options import Kind, Option

TABLES = {kernel.SOCK_STREAM: STREAM_OPTIONS, kernel.SOCK_DGRAM: DATAGRAM_OPTIONS}
V6 = kernel.IPPROTO_IPV6
ROWS = [
    *(pytest.param(kind, row, id=f"{kind.name}-{row.name}") for kind, table in TABLES.items() for row in table),
    *(
        pytest.param(kernel.SOCK_DGRAM, row, id=f"SOCK_DGRAM-{row.name}")
        for row in DATAGRAM6_OPTIONS
        if row.level == V6
    ),
]


def credentials() -> Credentials:
    """May we do with the kernel's sockets what needs a capability? Our Stack is to be allowed as much."""
    with kernel.socket() as sock:
        try:
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_MARK, 0)
        except PermissionError:
            return Credentials.user(1000)
    return Credentials()


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield Stack("gw", network=network, credentials=credentials())


def made(module: Any, kind: int, level: int) -> Any:
    return module.socket(kernel.AF_INET6 if level == V6 else kernel.AF_INET, kind)


def outcome(call: Any, *args: Any) -> Any:
    """What a call answers, or the errno it raises."""
    try:
        return call(*args)
    except OSError as error:
        return f"errno {errno.errorcode.get(error.errno or 0)}"


#: Where this machine's configuration, and not Linux itself, decides, or TCP's own choice does.
CONFIGURED = {
    *("SO_SNDBUF", "SO_RCVBUF", "SO_RCVLOWAT", "TCP_CONGESTION", "TCP_INFO", "SO_PROTOCOL", "SO_COOKIE"),
    *("SO_NETNS_COOKIE", "IPV6_MULTICAST_IF", "IP_PROTOCOL", "IP_MSFILTER", "MCAST_MSFILTER"),
    *("TCP_CC_INFO", "TCP_TIMESTAMP", "TCP_FASTOPEN_KEY"),
}


@pytest.mark.parametrize(("kind", "row"), ROWS)
def test_opt_00_default_is_the_kernels(stack: Stack, kind: int, row: Option) -> None:
    with made(stack.socket, kind, row.level) as ours, made(kernel, kind, row.level) as theirs:
        answer = outcome(ours.getsockopt, row.level, row.number)
        if row.name not in CONFIGURED:
            assert answer == outcome(theirs.getsockopt, row.level, row.number)


@pytest.mark.parametrize(("kind", "row"), [p for p in ROWS if p.values[1].kind in (Kind.INT, Kind.BOOL)])  # type: ignore[union-attr]
def test_opt_00_integers_are_taken_and_refused_as_by_the_kernel(stack: Stack, kind: int, row: Option) -> None:
    for value in (
        -(2**31),
        -2,
        -1,
        0,
        1,
        2,
        5,
        6,
        7,
        87,
        88,
        127,
        128,
        255,
        256,
        536,
        1152,
        4096,
        32767,
        32768,
        100_000,
    ):
        with made(stack.socket, kind, row.level) as ours, made(kernel, kind, row.level) as theirs:
            asked = (row.level, row.number)
            answers = [
                (outcome(sock.setsockopt, *asked, value), outcome(sock.getsockopt, *asked)) for sock in (ours, theirs)
            ]
            if row.name == "IPV6_MULTICAST_IF" and value > 0:
                continue  # whether there is an interface of that number
            if row.name in CONFIGURED:
                assert answers[0][0] == answers[1][0], f"{row.name} = {value}"
            else:
                assert answers[0] == answers[1], f"{row.name} = {value}"


@pytest.mark.parametrize(("kind", "row"), ROWS)
def test_opt_00_lengths(stack: Stack, kind: int, row: Option) -> None:
    """OPT-00: too short is EINVAL, longer is fine, what is read is cut to the room there is."""
    for data in (b"", b"\1", b"\1\0\0", struct.pack("i", 1) + b"more"):
        if row.kind is Kind.NAME:
            continue
        with made(stack.socket, kind, row.level) as ours, made(kernel, kind, row.level) as theirs:
            results = [outcome(sock.setsockopt, row.level, row.number, data) for sock in (ours, theirs)]
            assert results[0] == results[1], f"{row.name} = {data!r}"
    if row.readable and row.name not in CONFIGURED:
        for room in (1, 2, 4, 64):
            with made(stack.socket, kind, row.level) as ours, made(kernel, kind, row.level) as theirs:
                results = [outcome(sock.getsockopt, row.level, row.number, room) for sock in (ours, theirs)]
                assert results[0] == results[1], f"{row.name}, {room} bytes"


@pytest.mark.parametrize("kind", TABLES)
def test_opt_00_unknown_options_and_levels(stack: Stack, kind: int) -> None:
    with stack.socket.socket(kernel.AF_INET, kind) as ours, kernel.socket(kernel.AF_INET, kind) as theirs:
        for level in (kernel.SOL_SOCKET, kernel.IPPROTO_IP, 270, 40, 17 if kind == kernel.SOCK_STREAM else 6):
            for sock in (ours, theirs):
                results = [
                    (outcome(sock.getsockopt, level, 9999), outcome(sock.setsockopt, level, 9999, 1))
                    for sock in (ours, theirs)
                ]
            assert results[0] == results[1], f"level {level}"


def test_opt_so_linger_values(stack: Stack) -> None:
    for value in ((1, 5), (7, 0), (0, 9)):
        packed = struct.pack("ii", *value)
        with stack.socket.socket() as ours, kernel.socket() as theirs:
            for sock in (ours, theirs):
                sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_LINGER, packed)
            asked = (kernel.SOL_SOCKET, kernel.SO_LINGER, 8)
            assert ours.getsockopt(*asked) == theirs.getsockopt(*asked)


def test_opt_so_sndtimeo_has_microseconds(stack: Stack) -> None:
    """SO_RCVTIMEO: microseconds out of range are EDOM, negative seconds mean not to wait at all."""
    for value in ((0, 1_000_000), (0, -1), (-5, 0), (3, 0)):
        packed = struct.pack("ll", *value)
        with stack.socket.socket() as ours, kernel.socket() as theirs:
            results = [
                (
                    outcome(sock.setsockopt, kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, packed),
                    sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_SNDTIMEO, 16),
                )
                for sock in (ours, theirs)
            ]
            assert results[0] == results[1], value


def test_opt_tcp_defer_accept_rounds_up() -> None:
    """The measured row: sums of 1, 2, 4 ... seconds, each at most 120."""
    steps = [0, 1, 3, 7, 15, 31, 63, 127, 247, 367, 487, 607]
    for lower, upper in pairwise(steps):
        assert defer_accept(None, lower + 1) == upper  # type: ignore[arg-type]
        assert defer_accept(None, upper) == upper  # type: ignore[arg-type]
    assert defer_accept(None, 10**9) == 29887  # type: ignore[arg-type]
    assert defer_accept(None, -1) == 0  # type: ignore[arg-type]


def test_opt_tcp_congestion_by_name(stack: Stack) -> None:
    with stack.socket.socket() as sock:
        asked = (kernel.IPPROTO_TCP, TCP_CONGESTION)
        name = sock.getsockopt(*asked, 16)
        assert len(name) == 16
        assert name.rstrip(b"\0").decode() == stack.netns.tcp.config.congestion
        assert sock.getsockopt(*asked, 3) == name[:3]
        sock.setsockopt(*asked, b"reno")
        assert outcome(sock.setsockopt, *asked, b"nonesuch") == "errno ENOENT"
        assert outcome(sock.setsockopt, *asked, b"") == "errno EINVAL"


def test_sec_02_04_what_an_unprivileged_stack_may_not(stack: Stack) -> None:
    """SEC-02, SEC-04."""
    user = Stack("user", network=stack.network, credentials=Credentials.user(1000))
    with user.socket.socket() as sock:
        assert outcome(sock.bind, ("127.0.0.1", 80)) == "errno EACCES"
        assert outcome(sock.setsockopt, kernel.SOL_SOCKET, kernel.SO_PRIORITY, 7) == "errno EPERM"
        assert outcome(sock.setsockopt, kernel.SOL_SOCKET, kernel.SO_PRIORITY, 6) is None
        assert outcome(sock.setsockopt, kernel.SOL_SOCKET, kernel.SO_DEBUG, 1) == "errno EACCES"
        assert outcome(sock.setsockopt, kernel.SOL_SOCKET, 33, 1 << 20) == "errno EPERM"
    user.close()


def test_options_reach_the_connection(stack: Stack) -> None:
    """What is set before connecting and while connected is what TCP works with."""
    with stack.socket.create_server(("127.0.0.1", 0)) as server, stack.socket.socket() as client:
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_MAXSEG, 1000)
        client.setsockopt(kernel.IPPROTO_IP, kernel.IP_TTL, 9)
        client.connect(server.getsockname())
        assert client.getsockopt(kernel.IPPROTO_TCP, kernel.TCP_MAXSEG) == 988  # less timestamps, row TCP-33
        assert client.getsockopt(kernel.IPPROTO_IP, IP_MTU) == 65535
        connection = client._sock.phase.connection
        assert connection.options.ttl == 9
        assert not connection.options.nodelay
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY, 1)
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_USER_TIMEOUT, 1500)
        assert connection.options.nodelay
        assert connection.options.user_timeout == 1_500_000_000
        info = client.getsockopt(kernel.IPPROTO_TCP, kernel.TCP_INFO, 104)
        assert info[0] == 1  # TCP_ESTABLISHED
        server.accept()[0].close()


def test_opt_ipv6_v6only_cannot_change_once_bound(stack: Stack) -> None:
    with stack.socket.socket(kernel.AF_INET6) as sock:
        sock.bind(("::1", 0))
        assert sock.getsockopt(V6, kernel.IPV6_V6ONLY) == 1
        assert outcome(sock.setsockopt, V6, kernel.IPV6_V6ONLY, 0) == "errno EINVAL"
