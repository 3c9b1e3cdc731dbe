"""Multicast options of TCP sockets: as on Linux they join and leave, though nothing is received."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator

import pytest

from stack import Network
from stack.tests.kernel_twin import World, code
from stack.tests.test_opt_multicast import storage

IP, IPV6 = kernel.IPPROTO_IP, kernel.IPPROTO_IPV6
GROUP, SOURCE = kernel.inet_aton("239.1.2.3"), kernel.inet_aton("192.0.2.4")
HERE = kernel.inet_aton("127.0.0.1")
INVALID, MISSING, NOBUFS, NODEV = errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENODEV


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def request(group: str, source: str | None = None, *, index: int = 1) -> bytes:
    """struct group_req, or group_source_req; the index is that of `lo`."""
    return struct.pack("@II", index, 0) + storage(group) + (b"" if source is None else storage(source))


def chosen(group: str, mode: int, *sources: str, count: int | None = None) -> bytes:
    """struct group_filter"""
    told = len(sources) if count is None else count
    return request(group) + struct.pack("@II", mode, told) + b"".join(map(storage, sources))


G4, S4, G6, S6 = "239.1.2.3", "192.0.2.4", "ff15::1", "2001:db8::1"

#: (level, option): what setsockopt answers to each, on a socket in no group.
ANSWERS: dict[tuple[int, int], list[tuple[bytes, int | None]]] = {
    (IP, 35): [(b"", errno.EPROTO), (GROUP + HERE, errno.EPROTO), (b"x" * 200, errno.EPROTO)],
    (IP, 36): [(b"", errno.EPROTO), (GROUP + HERE, errno.EPROTO)],
    (IP, 37): [(GROUP + HERE, INVALID), (GROUP + HERE + SOURCE, INVALID)],
    (IP, 38): [(GROUP + HERE, INVALID), (GROUP + HERE + SOURCE, INVALID)],
    (IP, 39): [(GROUP + HERE, INVALID), (SOURCE + HERE + SOURCE, INVALID), (GROUP + HERE + SOURCE, None)],
    (IP, 40): [(GROUP + HERE, INVALID), (GROUP + HERE + SOURCE, INVALID)],
    (IP, 41): [
        (GROUP + HERE, INVALID),
        (GROUP + HERE + struct.pack("@II", 1, 1) + SOURCE, INVALID),
        (GROUP + HERE + struct.pack("@II", 1, 3) + SOURCE, INVALID),
        (GROUP + HERE + struct.pack("@II", 1, 100) + SOURCE * 100, NOBUFS),
        (GROUP + HERE + struct.pack("@II", 1, 0), MISSING),
    ],
    (IP, 42): [(b"x", INVALID), (request(G6), INVALID), (request(G4, index=99), NODEV), (request(G4), None)],
    (IP, 43): [(request(G4), INVALID), (request(G4, S4), INVALID), (request(G6, S6), MISSING)],
    (IP, 44): [(request(G4), INVALID), (request(G4, S4), INVALID), (request(G4, S4, index=99), NODEV)],
    (IP, 45): [(request(G4), MISSING), (request(G4, index=99), MISSING), (request(G6), INVALID)],
    (IP, 46): [(request(G4), INVALID), (request(G4, S4), None), (request(G4, S4) + b"x", INVALID)],
    (IP, 47): [(request(G4, S4), INVALID), (request(G4, S6), MISSING)],
    (IP, 48): [
        (request(G4), INVALID),
        (chosen(G4, 1, S4), INVALID),
        (chosen(G4, 1), MISSING),
        (chosen(G4, 1, S4, count=3), INVALID),
        (chosen(G4, 1, *[S4] * 70), NOBUFS),
        (chosen(G6, 1, S6), MISSING),
    ],
    (IPV6, 20): [(b"x" * 19, INVALID), (kernel.inet_pton(kernel.AF_INET6, G6) + struct.pack("@i", 1), errno.EPROTO)],
    (IPV6, 21): [(b"x" * 19, INVALID), (kernel.inet_pton(kernel.AF_INET6, G6) + struct.pack("@i", 1), errno.EPROTO)],
    (IPV6, 42): [(b"x", INVALID), (request(G4), MISSING), (request(G6, index=99), NODEV), (request(G6), None)],
    (IPV6, 43): [(request(G6), INVALID), (request(G6, S6), INVALID), (request(G4, S4), MISSING)],
    (IPV6, 44): [(request(G6, S6), INVALID), (request(G6, S6, index=99), NODEV)],
    (IPV6, 45): [(request(G6), MISSING), (request(G6, index=99), MISSING), (request(G4), MISSING)],
    (IPV6, 46): [(request(G6), INVALID), (request(G6, S6), None), (request(G6, S6, index=99), NODEV)],
    (IPV6, 47): [(request(G6, S6), INVALID), (request(G6, S4), MISSING)],
    (IPV6, 48): [
        (request(G6), INVALID),
        (chosen(G6, 1, S6), INVALID),
        (chosen(G6, 1), MISSING),
        (chosen(G6, 1, *[S6] * 70), NOBUFS),
        (chosen(G4, 1), INVALID),
    ],
}


@pytest.mark.parametrize(("level", "number"), ANSWERS)
def test_opt_multicast_options_of_tcp(world: World, level: int, number: int) -> None:
    """IP_ADD_MEMBERSHIP and IPV6_JOIN_GROUP are EPROTO on TCP, the options with sources and MCAST_* are as on UDP."""
    for family in (kernel.AF_INET, kernel.AF_INET6) if level == IP else (kernel.AF_INET6,):
        for data, expected in ANSWERS[level, number]:
            with world.socket.socket(family) as sock:
                if expected is None:
                    sock.setsockopt(level, number, data)
                else:
                    assert code(sock.setsockopt, level, number, data) == expected, data[:16]
        with world.socket.socket(family) as sock:
            refused = INVALID if number in (41, 48) else errno.ENOPROTOOPT
            assert code(sock.getsockopt, level, number, 4) == refused


def test_opt_mcast_block_and_leave_of_tcp(world: World) -> None:
    """MCAST_JOIN_GROUP on a TCP socket: a second one is EADDRINUSE, sources may be blocked, leaving ends it."""
    with world.socket.socket() as sock:
        sock.setsockopt(IP, 42, request(G4))
        assert code(sock.setsockopt, IP, 42, request(G4)) == errno.EADDRINUSE
        sock.setsockopt(IP, 43, request(G4, S4))
        assert code(sock.setsockopt, IP, 43, request(G4, S4)) == MISSING
        sock.setsockopt(IP, 44, request(G4, S4))
        sock.setsockopt(IP, 48, chosen(G4, 1, S4))
        sock.setsockopt(IP, 45, request(G4))
        assert code(sock.setsockopt, IP, 45, request(G4)) == MISSING


def test_opt_mcast_join_group_of_tcp_ends_with_the_socket() -> None:
    """A closed TCP socket is in no group any more."""
    with Network() as network:
        stack = network.stack("gw")
        with stack.socket.socket() as sock:
            sock.setsockopt(IP, 42, request(G4))
            groups = sock._sock.groups
            assert len(groups) == 1
        assert not len(groups)
