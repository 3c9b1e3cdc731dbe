"""Addresses of each family, rows CORE-13 and CORE-19 and section 1.2 (ADDR), on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack.tests.kernel_twin import (
    DGRAM,
    INET,
    INET6,
    LOOPBACK,
    NETLINK,
    RAW,
    STREAM,
    UNIX,
    VSOCK,
    World,
    code,
    twin,
)


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from twin(request.param)


@pytest.fixture
def pair(world: World) -> Iterator[tuple[Any, Any]]:
    one, other = world.pair()
    with one, other:
        yield one, other


def test_core_13_addresses(world: World, pair: tuple[Any, Any]) -> None:
    """Each family's addresses come out as they went in."""
    one, other = pair
    assert one.getsockname() == other.getpeername()
    assert one.getsockname()[0] == LOOPBACK
    with world.socket.socket(INET6, DGRAM) as sock:
        sock.bind(("::1", 0))
        address = sock.getsockname()
        assert (address[0], address[2:]) == ("::1", (0, 0))
    with world.socket.socket(UNIX, DGRAM) as sock:
        assert sock.getsockname() == ""
        sock.bind("\0guestwire-core-13")
        assert sock.getsockname() == b"\0guestwire-core-13"
    with world.socket.socket(NETLINK, RAW, 0) as sock:
        sock.bind((0, 1))
        port, groups = sock.getsockname()
        assert port
        assert groups == 1
    with world.socket.socket(VSOCK, STREAM) as sock:
        assert sock.getsockname() == (0xFFFFFFFF, 0xFFFFFFFF)


def test_core_19_bind_twice(world: World, tmp_path: Any) -> None:
    """A second bind() is EINVAL."""
    for kind in (STREAM, DGRAM):
        with world.socket.socket(INET, kind) as sock:
            sock.bind((LOOPBACK, 0))
            assert code(sock.bind, (LOOPBACK, 0)) == errno.EINVAL
    with world.socket.socket(UNIX, STREAM) as sock:
        sock.bind("\0guestwire-core-19")
        assert code(sock.bind, "\0guestwire-other") == errno.EINVAL
    with world.socket.socket(VSOCK, STREAM) as sock:
        sock.bind((0xFFFFFFFF, 34567))
        assert code(sock.bind, (0xFFFFFFFF, 34568)) == errno.EINVAL
    with world.socket.socket(NETLINK, RAW, 0) as sock:
        sock.bind((0, 0))
        sock.bind(sock.getsockname())


def test_addr_inet(world: World) -> None:
    """AF_INET: the address is a pair of host and port."""
    with world.socket.socket() as sock:
        for wrong in (None, "text", 5, (LOOPBACK,), (LOOPBACK, 0, 0), (LOOPBACK, "0"), (5, 0), [LOOPBACK, 0]):
            with pytest.raises(TypeError):
                sock.bind(wrong)
        for port in (-1, 65536, 1 << 40):
            with pytest.raises(OverflowError):
                sock.bind((LOOPBACK, port))
        assert code(sock.bind, ("192.0.2.77", 0)) == errno.EADDRNOTAVAIL
        sock.bind((LOOPBACK.encode(), 0))


def test_addr_inet6(world: World) -> None:
    """AF_INET6: host and port, and perhaps flow label and scope; a bound specific address sets IPV6_V6ONLY."""
    with world.socket.socket(INET6, STREAM) as sock:
        for wrong in (None, ("::1",), ("::1", 0, 0, 0, 0), ("::1", "0"), (b"::1", 0, "x")):
            with pytest.raises(TypeError):
                sock.bind(wrong)
        for wrong_number in (("::1", -1), ("::1", 65536), ("::1", 0, 1 << 20), ("::1", 0, -1)):
            with pytest.raises(OverflowError):
                sock.bind(wrong_number)
        with pytest.raises(kernel.gaierror):
            sock.bind((LOOPBACK, 0))
        with pytest.raises(OSError, match="address family mismatched"):
            sock.bind(("<broadcast>", 0))
        sock.bind(("::1", 0, 0, 0))


def test_addr_unix(world: World) -> None:
    """AF_UNIX: a path of at most 107 bytes, or a name behind a NUL of at most 107; nothing else is an address."""
    with world.socket.socket(UNIX, STREAM) as sock:
        for wrong in (None, 5, ("path",)):
            with pytest.raises(TypeError):
                sock.bind(wrong)
        for long in ("x" * 109, "\0" + "x" * 108):
            with pytest.raises(OSError, match="too long"):
                sock.bind(long)
        name = "\0" + "x" * 107
        sock.bind(name)
        assert sock.getsockname() == name.encode()


def test_addr_netlink_and_vsock(world: World) -> None:
    """AF_NETLINK and AF_VSOCK: pairs of numbers, each cut to 32 bits."""
    for family, kind in ((NETLINK, RAW), (VSOCK, STREAM)):
        with world.socket.socket(family, kind, 0) as sock:
            for wrong in (None, "text", (1,), (1, 2, 3), ("1", 2)):
                with pytest.raises(TypeError):
                    sock.bind(wrong)
    with world.socket.socket(VSOCK, STREAM) as sock:
        sock.bind((-1, 0x1_0000_8765))
        assert sock.getsockname() == (0xFFFFFFFF, 0x8765)
