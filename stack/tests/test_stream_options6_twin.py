"""Options of level IPPROTO_IPV6 of TCP sockets on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.socket.ip.options6 import (
    IPV6_ADDR_PREFERENCES,
    IPV6_DONTFRAG,
    IPV6_MTU,
    IPV6_MULTICAST_ALL,
    IPV6_MULTICAST_HOPS,
    IPV6_MULTICAST_IF,
    IPV6_MULTICAST_LOOP,
    IPV6_PATHMTU,
    IPV6_RECVERR_RFC4884,
    IPV6_RECVFRAGSIZE,
    IPV6_RECVORIGDSTADDR,
    IPV6_RECVPATHMTU,
)
from stack.tests.kernel_twin import World, code, has_ipv6_loopback

IPV6 = kernel.IPPROTO_IPV6


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def answer(sock: Any, number: int, *value: Any) -> int | None:
    """What setting it, or else getting it, comes to: an errno counts as negative."""
    try:
        result = sock.setsockopt(IPV6, number, *value) if value else sock.getsockopt(IPV6, number)
    except OSError as error:
        return -int(error.errno or 0)
    return None if value else int(result)


FLAG = [0, None, 0, None, 1, None, 1, None, 1, -errno.EINVAL]
FLAG_OF_A_BYTE = [*FLAG[:-1], None]
REFUSED = -errno.ENOPROTOOPT


@pytest.mark.parametrize(
    ("number", "answers"),
    [
        (IPV6_RECVPATHMTU, FLAG),
        (IPV6_RECVORIGDSTADDR, FLAG),
        (IPV6_DONTFRAG, FLAG_OF_A_BYTE),
        (IPV6_RECVFRAGSIZE, FLAG_OF_A_BYTE),
        (IPV6_MULTICAST_ALL, [1, *FLAG[1:]]),
        (IPV6_MULTICAST_LOOP, [1, None, 0, None, 1, -errno.EINVAL, 1, -errno.EINVAL, 1, -errno.EINVAL]),
        (IPV6_RECVERR_RFC4884, [0, None, 0, None, 1, -errno.EINVAL, 1, -errno.EINVAL, 1, -errno.EINVAL]),
        (IPV6_MULTICAST_HOPS, [1, *([REFUSED, 1] * 4)]),
        (IPV6_MULTICAST_IF, [0, *([REFUSED, 0] * 4)]),
    ],
)
def test_opt_ipv6_options_of_datagrams_of_tcp(world: World, number: int, answers: list[int | None]) -> None:
    """Options that are about datagrams are taken by TCP sockets of AF_INET6, with their defaults and ranges, and do
    nothing; IPV6_MULTICAST_IF and IPV6_MULTICAST_HOPS can be read only.
    """
    with world.socket.socket(kernel.AF_INET6) as sock:
        found = [answer(sock, number)]
        for value in (0, 1, 2, -1):
            found += [answer(sock, number, value), answer(sock, number)]
        found.append(answer(sock, number, b"\1"))
        assert found[: len(answers)] == answers


def test_opt_ipv6_mtu_of_tcp(world: World) -> None:
    """IPV6_MTU and IPV6_PATHMTU of a TCP socket: ENOTCONN until it is connected, then the path's; less than 1280 cannot
    be set.
    """
    if not has_ipv6_loopback():
        pytest.skip("no ::1 on this machine")
    with (
        world.socket.create_server(("::1", 0), family=kernel.AF_INET6) as listener,
        world.socket.socket(kernel.AF_INET6) as client,
    ):
        assert code(client.getsockopt, IPV6, IPV6_MTU) == errno.ENOTCONN
        assert code(client.getsockopt, IPV6, IPV6_PATHMTU, 32) == errno.ENOTCONN
        assert code(client.setsockopt, IPV6, IPV6_MTU, 1279) == errno.EINVAL
        client.setsockopt(IPV6, IPV6_MTU, 1280)
        client.connect(listener.getsockname())
        mtu = client.getsockopt(IPV6, IPV6_MTU)
        assert mtu >= 1280
        told = client.getsockopt(IPV6, IPV6_PATHMTU, 32)
        assert struct.unpack_from("@I", told, 28)[0] == mtu
        assert code(client.setsockopt, IPV6, IPV6_PATHMTU, told) == errno.ENOPROTOOPT


def test_opt_ipv6_addr_preferences_of_tcp(world: World) -> None:
    """IPV6_ADDR_PREFERENCES of a TCP socket: of temporary, public and either at most one."""
    with world.socket.socket(kernel.AF_INET6) as sock:
        assert answer(sock, IPV6_ADDR_PREFERENCES) == 0x500
        sock.setsockopt(IPV6, IPV6_ADDR_PREFERENCES, 2)
        assert sock.getsockopt(IPV6, IPV6_ADDR_PREFERENCES) & 3 == 2
        assert answer(sock, IPV6_ADDR_PREFERENCES, 3) == -errno.EINVAL
