"""Short connections take short ways at their ends, which come to the same as the long ones: same frames at the same
times, same books.

`stack.tcp.opening` and `stack.tcp.closing`. Each seed is played with and without them. The seed decides about lines,
who says what and ends first, what is set on the sockets, and what becomes of the connections.
"""

from __future__ import annotations

import dataclasses
import gc
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack.core import Stack
from stack.link.impairment import Impairment
from stack.scheduler import NS_PER_MS, NS_PER_S, NS_PER_US
from stack.tcp import express, opening, pcb
from stack.tcp.request import Request
from stack.testing.simulation import Program, Simulation, accepted, connected, received, sent, until
from stack.tests.test_short_ways import without_short_ways

CONNECTIONS = 12
IP_MINTTL = 21  # <linux/in.h>
OUTCOMES = (OSError, ConnectionError)


def chance(sim: Simulation, probability: float) -> bool:
    return sim.rng.random() < probability


def choice(sim: Simulation, *values: Any) -> Any:
    return values[sim.rng.randrange(0, len(values))]


def line(sim: Simulation) -> Impairment:
    if chance(sim, 0.6):
        return Impairment(delay_ns=choice(sim, NS_PER_US, 20 * NS_PER_US))
    return Impairment(
        loss=choice(sim, 0.0, 0.05),
        duplicate=choice(sim, 0.0, 0.1),
        reorder=choice(sim, 0.0, 0.1),
        corrupt=choice(sim, 0.0, 0.02),
        delay_ns=choice(sim, 10 * NS_PER_US, NS_PER_MS),
    )


#: What a socket, a listener too, may be told: level, number, values.
OPTIONS: tuple[tuple[int, int, tuple[Any, ...]], ...] = (
    (socket.IPPROTO_IP, socket.IP_TOS, (0, 8, 16)),
    (socket.IPPROTO_IP, IP_MINTTL, (0, 64, 65)),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, (4096, 100_000, 1 << 20)),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, (0, 1)),
    (socket.IPPROTO_TCP, socket.TCP_QUICKACK, (0, 1)),
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG, (500, 1000)),
    (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, (0, 1)),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, (b"reno", b"cubic")),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, (0, 1)),
)
#: ... and the system: field of TcpConfig, values.
CONFIGURATION: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("timestamps", (True, False)),
    ("ecn", (0, 1, 2)),
    ("sack", (True, False)),
    ("window_scaling", (True, False)),
    ("syncookies", (0, 1, 2)),
    ("fastopen", (0, 3)),
    ("rcvbuf", (65536, 131072)),
)


def meddle(sim: Simulation, node: Stack, sock: Any) -> None:
    """Now and then something changes."""
    what = sim.rng.randrange(0, 40)
    if what < len(OPTIONS):
        level, number, values = OPTIONS[what]
        sock.setsockopt(level, number, choice(sim, *values))
    elif what - len(OPTIONS) < len(CONFIGURATION):
        name, values = CONFIGURATION[what - len(OPTIONS)]
        setattr(node.netns.tcp.config, name, choice(sim, *values))
    elif what == 20:
        with sim.network.lock:
            node.netns.interfaces["eth0"].set_mtu(choice(sim, 900, 1500))
            sim.network.finish()


def ending(sim: Simulation, node: Stack, sock: Any) -> Program[int]:
    """The rest of a connection, one way or the other."""
    heard = 0
    how = sim.rng.randrange(0, 8)
    if how == 0:
        sock.setsockopt(node.socket.SOL_SOCKET, node.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    elif how < 4:
        sock.shutdown(node.socket.SHUT_WR)
        heard = len((yield from received(sock)))
    elif how == 4:
        yield from until(sim, sim.clock() + choice(sim, NS_PER_US, NS_PER_MS, 300 * NS_PER_MS))
    elif how == 5:
        heard = len((yield from received(sock)))
    return heard


def client(sim: Simulation, node: Stack) -> Program[list[Any]]:
    module = node.socket
    story: list[Any] = []
    for _ in range(CONNECTIONS):
        with module.socket() as sock:
            sock.setblocking(False)
            meddle(sim, node, sock)
            try:
                yield from connected(sock, ("10.0.0.2", 80))
                for _ in range(choice(sim, 0, 1, 1, 1, 2)):
                    yield from sent(sock, bytes(choice(sim, 1, 1, 100, 5000)))
                    if chance(sim, 0.7):
                        story.append(len((yield from received(sock, 1))))
                meddle(sim, node, sock)
                story.append((yield from ending(sim, node, sock)))
            except OUTCOMES as error:
                story.append(-(error.errno or 1))
        if chance(sim, 0.3):
            yield from until(sim, sim.clock() + choice(sim, NS_PER_US, NS_PER_MS, 2 * NS_PER_S))
    return story


def answering(sim: Simulation, node: Stack, sock: Any) -> Program[Any]:
    with sock:
        heard = 0
        sock.setblocking(False)
        try:
            meddle(sim, node, sock)
            told = "" if sock._sock.connection is None else repr(sock._sock.connection.info())
            if chance(sim, 0.9):
                heard = len((yield from received(sock, 1)))
            if heard or chance(sim, 0.2):
                yield from sent(sock, bytes(choice(sim, 1, 1, 100, 20_000)))
            meddle(sim, node, sock)
            heard += yield from ending(sim, node, sock)
        except OUTCOMES as error:
            return -(error.errno or 1)
        return heard, told


def server(sim: Simulation, node: Stack) -> Program[None]:
    with node.socket.socket() as listener:
        listener.bind(("", 80))
        listener.listen(choice(sim, 0, 8))
        listener.setblocking(False)
        for number in range(2 * CONNECTIONS):
            meddle(sim, node, listener)
            sock = yield from accepted(listener)
            # One at a time: which of two connections answers first within a turn is another matter.
            sim.spawn(f"server {number}", answering(sim, node, sock))


def played(seed: int) -> tuple[Any, ...]:
    """Everything that can be seen of one run."""
    with Simulation(seed, coalescing=bool(seed & 1)) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        sim.link(one, other, there=line(sim), back=line(sim), addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
        sim.spawn("server", server(sim, other))
        sim.spawn("client", client(sim, one))
        try:
            sim.run(limit=400_000 * NS_PER_MS)
            ended = ""
        except (TimeoutError, AssertionError) as error:  # the server waits for more than come: also alike
            ended = str(error)
        books = [
            (
                dataclasses.astuple(node.netns.tcp.stats),
                dict(node.netns.tcp.drops),
                node.netns.tcp.mib.snapshot(),
                dict(node.netns.ip.drops),
                [(dataclasses.astuple(each.stats), dict(each.drops)) for each in node.netns.interfaces.values()],
                len(node.netns.tcp.flows) <= len(node.netns.tcp.connections) + len(node.netns.tcp.syn_queue),
            )
            for node in (one, other)
        ]
        return sim.digest, sim.frames, sim.clock(), ended, sim.results, books


@pytest.fixture
def uncollected() -> Iterator[None]:
    """A connection in TIME-WAIT that nobody holds sees its end or not: that depends on when garbage is collected."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("seed", [*range(40), *[pytest.param(seed, marks=pytest.mark.long) for seed in range(40, 400)]])
def test_connections_are_the_same_by_the_short_ways_and_by_the_long_ones(seed: int) -> None:
    short = played(seed)
    with pytest.MonkeyPatch.context() as patch:
        without_short_ways(patch)
        long = played(seed)
    assert short == long


def test_the_usual_connection_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[str] = Counter()

    def counted(where: Any, name: str) -> None:
        whole = getattr(where, name)

        def call(*args: Any) -> Any:
            result = whole(*args)
            taken[name] += result is not False
            return result

        monkeypatch.setattr(where, name, call)

    counted(opening.Opening, "answered")
    counted(express, "take_fin")
    counted(express, "take_last_ack")
    counted(pcb, "send_fin")

    def asking(sim: Simulation, node: Stack) -> Program[int]:
        heard = 0
        for _ in range(CONNECTIONS):
            with node.socket.socket() as sock:
                sock.setblocking(False)
                yield from connected(sock, ("10.0.0.2", 80))
                yield from sent(sock, b"?")
                heard += len((yield from received(sock, 1)))
        return heard

    def serving(node: Stack) -> Program[int]:
        with node.socket.socket() as listener:
            listener.bind(("", 80))
            listener.listen(8)
            listener.setblocking(False)
            for _ in range(CONNECTIONS):
                sock = yield from accepted(listener)
                with sock:
                    sock.setblocking(False)
                    while data := (yield from received(sock, 1)):
                        yield from sent(sock, data)
        return CONNECTIONS

    with Simulation(1) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        slow = Impairment(delay_ns=NS_PER_MS // 4)
        sim.link(one, other, there=slow, back=slow, addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
        sim.spawn("server", serving(other))
        sim.spawn("client", asking(sim, one))
        sim.run()
        assert sim.results["client"] == CONNECTIONS
        sim.settle(NS_PER_MS)
        assert not other.netns.tcp.flows
    assert taken["answered"] == CONNECTIONS
    assert taken["take_fin"] >= CONNECTIONS
    assert taken["take_last_ack"] == CONNECTIONS
    assert taken["send_fin"] >= CONNECTIONS


def handshake(sim: Simulation, count: int = 1) -> tuple[Stack, Stack, Any, list[Any]]:
    """Two stacks, a listener of the second, and sockets of the first whose SYNs have been answered and no more."""
    one, other = sim.stack("one"), sim.stack("other")
    slow = Impairment(delay_ns=NS_PER_MS)
    sim.link(one, other, there=slow, back=slow, addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
    listener = other.socket.socket()
    listener.bind(("", 80))
    listener.listen(64)
    with one.socket.socket() as known:  # so that neighbours are
        known.setblocking(False)
        sim.spawn("known", connected(known, ("10.0.0.2", 80)))
        sim.run()
        sim.settle(10 * NS_PER_MS)
        accepted_first, _ = listener.accept()
        accepted_first.close()
    sim.settle(10 * NS_PER_MS)
    asking = [one.socket.socket() for _ in range(count)]
    for sock in asking:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(("10.0.0.2", 80))
    sim.settle(3 * NS_PER_MS // 2)
    return one, other, listener, asking


def half_open(node: Stack) -> list[Request]:
    return [each for each in node.netns.tcp.demux.minisocks.values() if isinstance(each, Request)]


def close_all(*socks: Any) -> None:
    for sock in socks:
        sock.close()


def test_a_connection_is_made_while_its_last_ack_is_under_way() -> None:
    with Simulation(3) as sim:
        _, other, listener, asking = handshake(sim)
        tcp = other.netns.tcp
        (request,) = half_open(other)
        assert request.opening is not None
        made = request.opening.connection
        assert made is not None
        assert not tcp.connections
        sim.settle(2 * NS_PER_MS)
        answering, _ = listener.accept()
        assert answering._sock.connection is made
        close_all(answering, listener, *asking)


def test_it_is_made_anew_if_the_listener_was_told_something_meanwhile() -> None:
    with Simulation(3) as sim:
        _, other, listener, asking = handshake(sim)
        (request,) = half_open(other)
        assert request.opening is not None
        made = request.opening.connection
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sim.settle(2 * NS_PER_MS)
        answering, _ = listener.accept()
        assert answering._sock.connection is not made
        assert answering.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert answering._sock.connection.options.nodelay
        close_all(answering, listener, *asking)


def test_it_is_made_anew_if_the_configuration_has_changed() -> None:
    with Simulation(3) as sim:
        _, other, listener, asking = handshake(sim)
        (request,) = half_open(other)
        assert request.opening is not None
        made = request.opening.connection
        other.netns.tcp.config.rcvbuf = 70_000
        sim.settle(2 * NS_PER_MS)
        answering, _ = listener.accept()
        assert answering._sock.connection is not made
        assert answering._sock.connection.rcvbuf == 70_000
        close_all(answering, listener, *asking)


def test_none_is_made_for_a_flood() -> None:
    """More than a few half open: a SYN costs what it did."""
    with Simulation(3) as sim:
        _, other, listener, asking = handshake(sim, count=20)
        requests = half_open(other)
        assert len(requests) == 20
        assert sum(each.opening is not None for each in requests) <= opening.FEW
        assert len(other.netns.tcp.flows) <= opening.FEW
        close_all(listener, *asking)


def test_what_was_made_goes_with_the_request() -> None:
    with Simulation(3) as sim:
        one, other, listener, asking = handshake(sim)
        tcp = other.netns.tcp
        assert len(tcp.flows) == 1
        with sim.network.lock:
            one.netns.interfaces["eth0"].set_up(False)
            sim.network.finish()
        sim.settle(200 * NS_PER_S)  # the SYN|ACK went again until that was given up
        assert not half_open(other)
        assert not tcp.flows
        close_all(listener, *asking)
    with Simulation(3) as sim:
        _, other, listener, asking = handshake(sim)
        assert len(other.netns.tcp.flows) == 1
        listener.close()
        sim.settle(NS_PER_US)
        assert not other.netns.tcp.flows
        close_all(*asking)
