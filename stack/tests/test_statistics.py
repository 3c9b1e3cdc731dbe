"""`Stack.stats`: every layer's counters as one read-only mapping."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from stack import Network, Stack
from stack.tcp.mib import Mib
from stack.testing.clock import ManualClock


@pytest.fixture
def gw() -> Iterator[Stack]:
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        yield network.stack("gw")


def leaves(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def exchange(gw: Stack) -> None:
    socket = gw.socket
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as served,
    ):
        client.sendall(b"x" * 1000)
        assert len(served.recv(2000)) == 1000


def test_every_layer_has_its_part(gw: Stack) -> None:
    """Interface, neighbours, IP, ICMP, UDP, TCP and the limits; vsock once it is used."""
    stats = gw.stats
    assert set(stats) == {"interface", "neighbours", "ip", "icmp", "udp", "tcp", "limits"}
    assert gw.vsock is not None
    assert set(gw.stats) - set(stats) == {"vsock"}
    assert all(isinstance(value, int) for _, value in leaves(gw.stats))


def test_it_cannot_be_written_to(gw: Stack) -> None:
    def read_only(found: Any) -> None:
        with pytest.raises(TypeError):
            found["x"] = 1
        for value in found.values():
            if isinstance(value, Mapping):
                read_only(value)

    read_only(gw.stats)


def test_it_is_of_the_moment(gw: Stack) -> None:
    """A mapping once taken does not change."""
    before = dict(leaves(gw.stats))
    stats = gw.stats
    exchange(gw)
    assert dict(leaves(stats)) == before
    assert dict(leaves(gw.stats)) != before


def test_tcp_counts_what_happened(gw: Stack) -> None:
    exchange(gw)
    tcp: Any = gw.stats["tcp"]
    assert tcp["TcpActiveOpens"] == tcp["TcpPassiveOpens"] == 1
    assert tcp["TcpInSegs"] == tcp["TcpOutSegs"] > 6
    assert tcp["TcpRetransSegs"] == tcp["TcpOutRsts"] == tcp["TcpCurrEstab"] == 0
    assert set(Mib) <= set(tcp)
    interface: Any = gw.stats["interface"]
    assert interface["lo"]["rx_packets"] == interface["lo"]["tx_packets"] > 6


def test_each_namespace_has_its_own(gw: Stack) -> None:
    exchange(gw)
    other = gw.add_netns("other")
    with gw.acting():
        gw.setns(other)
        stats: Any = gw.stats
        assert stats["tcp"]["TcpActiveOpens"] == 0
    again: Any = gw.stats
    assert again["tcp"]["TcpActiveOpens"] == 1


def test_limits_tell_what_is_used_of_what_there_is(gw: Stack) -> None:
    limits: Any = gw.stats["limits"]
    assert all(set(one) == {"used", "most"} for one in limits.values())
    assert limits["tcp-time-waits"] == {"used": 0, "most": 16384}
    with gw.socket.create_server(("127.0.0.1", 0), backlog=7) as server:
        limits = gw.stats["limits"]
        assert limits["tcp-half-open"] == limits["tcp-accept-queues"] == {"used": 0, "most": 8}
        with gw.socket.create_connection(server.getsockname()):
            limits = gw.stats["limits"]
            assert limits["tcp-accept-queues"]["used"] == 1
    limits = gw.stats["limits"]
    assert limits["tcp-time-waits"]["used"] == 0  # reset, not closed
