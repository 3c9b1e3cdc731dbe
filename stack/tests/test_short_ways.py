"""The short ways of a conversation come to the same as the long ones: same frames at the same times, same books.

`stack.tcp.express` and `conversation.hear` on the way in; `conversation.say`, `send_lone` and `Interface.send_alone` on
the way out. Each seed is played with and
without them. The seed decides about lines, sizes, pauses, and what is changed in the middle of it: addresses, MTU,
TOS, who else listens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from stack.core import Stack
from stack.errors import DropReason
from stack.iface.changes import ChangeLog
from stack.iface.interface import Interface
from stack.link.device import Buffer, Offload, TxFacts, TxFrame
from stack.link.impairment import Impairment, SplitMix64
from stack.link.offload import ALL_OFFLOADS
from stack.scheduler import NS_PER_MS, NS_PER_US, Scheduler
from stack.socket.ip import stream
from stack.tcp import Connection, conversation, express, pcb
from stack.tcp.output import emit_acks
from stack.tcp.pcb import Pcb
from stack.testing.links import RecorderDevice
from stack.testing.simulation import Program, Simulation, accepted, connected, received, sent, until

SIZES = (1, 1, 1, 2, 17, 500, 536, 1448, 1460, 1461, 3000, 20_000)
ROUNDS = 60
OUTCOMES = (OSError, ConnectionError)


def chance(sim: Simulation, probability: float) -> bool:
    return sim.rng.random() < probability


def choice(sim: Simulation, *values: Any) -> Any:
    return values[sim.rng.randrange(0, len(values))]


def line(sim: Simulation) -> Impairment:
    if chance(sim, 0.5):
        return Impairment(delay_ns=choice(sim, NS_PER_US, 20 * NS_PER_US))
    return Impairment(
        loss=choice(sim, 0.0, 0.02),
        duplicate=choice(sim, 0.0, 0.05),
        reorder=choice(sim, 0.0, 0.05),
        corrupt=choice(sim, 0.0, 0.01),
        delay_ns=choice(sim, 10 * NS_PER_US, NS_PER_MS),
    )


def meddle(sim: Simulation, node: Stack, sock: Any) -> Any:
    """Something a remembered flow depends on changes, or nothing does. What has to be kept until the end."""
    module = node.socket
    interface = node.netns.interfaces["eth0"]
    what = sim.rng.randrange(0, 9)
    if what == 0:
        sock.setsockopt(module.IPPROTO_IP, module.IP_TOS, choice(sim, 0, 8, 16))
    elif what == 1:
        raw = module.socket(module.AF_INET, module.SOCK_RAW, module.IPPROTO_TCP)
        raw.setblocking(False)
        return raw
    elif what == 2:
        with sim.network.lock:
            interface.set_mtu(choice(sim, 600, 1500))
            sim.network.finish()
    elif what == 3:
        sock.setsockopt(module.IPPROTO_TCP, module.TCP_NODELAY, 1)
    elif what == 4:
        sock.setsockopt(module.SOL_SOCKET, module.SO_KEEPALIVE, 1)
    elif what == 5:
        with sim.network.lock:
            interface.set_mac(bytes((2, 0, 0, 0, sim.rng.randrange(0, 256), sim.rng.randrange(0, 256))))
            sim.network.finish()
    elif what == 6:
        packet = module.socket(module.AF_PACKET, module.SOCK_RAW, 0x0300)
        packet.setblocking(False)
        return packet
    return None


def overheard(sock: Any) -> int:
    """What one who listened besides has heard, packets or frames, for an end."""
    count = 0
    if sock is not None:
        with sock, suppress(BlockingIOError):
            while sock.recv(65536):
                count += 1
    return count


def talk(sim: Simulation, node: Stack, sock: Any, *, first: bool) -> Program[Any]:
    """Questions and answers, now and then two at a time; the end when either has had enough."""
    kept: list[Any] = []
    done = heard = 0
    try:
        for _ in range(ROUNDS):
            if first:
                data = bytes(choice(sim, *SIZES))
                yield from sent(sock, len(data).to_bytes(4, "big") + data)
            size = int.from_bytes((yield from received(sock, 4)), "big")
            done += len((yield from received(sock, size)))
            if not first:
                if chance(sim, 0.05):
                    yield from until(sim, sim.clock() + choice(sim, NS_PER_MS, 50 * NS_PER_MS, 400 * NS_PER_MS))
                answer = bytes(choice(sim, *SIZES))
                yield from sent(sock, len(answer).to_bytes(4, "big") + answer)
            if chance(sim, 0.05):
                kept.append(meddle(sim, node, sock))
            if chance(sim, 0.1) and kept:
                heard += overheard(kept.pop())
        told = sock._sock.connection.info()
        sock.shutdown(node.socket.SHUT_WR)
        yield from received(sock)
        heard += sum(map(overheard, kept))
        kept.clear()
        return done, heard, repr(told)
    except OUTCOMES as error:
        done = -(error.errno or 1)
        return done, heard
    finally:
        for rest in kept:
            overheard(rest)
        sock.close()


def narrow(sim: Simulation, node: Stack, sock: Any) -> None:
    """Now and then buffers are small: a window or a send buffer of less than a segment."""
    module = node.socket
    if chance(sim, 0.2):
        sock.setsockopt(module.SOL_SOCKET, module.SO_RCVBUF, 2304)
    if chance(sim, 0.2):
        sock.setsockopt(module.SOL_SOCKET, module.SO_SNDBUF, 4608)
    if chance(sim, 0.3):
        sock.setsockopt(module.IPPROTO_TCP, module.TCP_QUICKACK, 0)


def client(sim: Simulation, node: Stack, stamped: bool) -> Program[Any]:
    with node.socket.socket() as sock:
        sock.setblocking(False)
        narrow(sim, node, sock)
        node.netns.tcp.config.timestamps = stamped
        try:
            yield from connected(sock, ("10.0.0.2", 80))
        except OUTCOMES as error:
            return -(error.errno or 1)
        return (yield from talk(sim, node, sock, first=True))


def server(sim: Simulation, node: Stack, count: int) -> Program[None]:
    listener = node.socket.socket()
    narrow(sim, node, listener)
    listener.bind(("", 80))
    listener.listen(8)
    listener.setblocking(False)
    with listener:
        for number in range(count):
            sock = yield from accepted(listener)
            sim.spawn(f"server {number}", talk(sim, node, sock, first=False))


def played(seed: int) -> tuple[Any, ...]:
    """Everything that can be seen of one run."""
    with Simulation(seed, coalescing=bool(seed & 1)) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        sim.link(one, other, there=line(sim), back=line(sim), addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
        # One at a time: which of two connections answers first within a turn is another matter.
        sim.spawn("server", server(sim, other, 1))
        sim.spawn("client", client(sim, one, chance(sim, 0.5)))
        try:
            sim.run(limit=400_000 * NS_PER_MS)
            ended = ""
        except (TimeoutError, AssertionError) as error:  # a lost handshake leaves the other side waiting: also alike
            ended = str(error)
        books = [
            (
                dataclasses.astuple(node.netns.tcp.stats),
                dict(node.netns.tcp.drops),
                dict(node.netns.ip.drops),
                [(dataclasses.astuple(each.stats), dict(each.drops)) for each in node.netns.interfaces.values()],
            )
            for node in (one, other)
        ]
        return sim.digest, sim.frames, sim.clock(), ended, sim.results, books


def queued(interface: Interface, parts: tuple[Buffer, ...], facts: TxFacts, length: int) -> None:
    """`Interface.send_alone` as the long way."""
    interface.enqueue((parts, *facts), length)


def long_acknowledgment(connection: Pcb, count: int) -> None:
    emit_acks(connection, connection.sender.bare_seq, count)


def without_short_ways(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(express, "install", lambda _: None)
    patch.setattr(pcb, "send_lone", lambda _: False)
    patch.setattr(stream, "say", lambda *_: False)
    patch.setattr(pcb, "send_fin", lambda _: False)
    patch.setattr(pcb, "acknowledge", long_acknowledgment)
    patch.setattr(Interface, "send_alone", queued)


@pytest.mark.parametrize("seed", [*range(24), *[pytest.param(seed, marks=pytest.mark.long) for seed in range(24, 300)]])
def test_a_conversation_is_the_same_by_the_short_ways_and_by_the_long_ones(seed: int) -> None:
    short = played(seed)
    with pytest.MonkeyPatch.context() as patch:
        without_short_ways(patch)
        long = played(seed)
    assert short == long


def test_most_of_a_conversation_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[str] = Counter()

    def counted(where: Any, name: str) -> None:
        whole = getattr(where, name)

        def call(*args: Any) -> Any:
            result = whole(*args)
            taken[name] += result is not False
            return result

        monkeypatch.setattr(where, name, call)

    counted(express, "hear")
    counted(stream, "say")
    counted(pcb, "send_lone")
    counted(Interface, "send_alone")
    counted(Interface, "enqueue")
    monkeypatch.setattr("stack.tests.test_short_ways.SIZES", (1, 17, 500))
    monkeypatch.setattr("stack.tests.test_short_ways.line", lambda _: Impairment(delay_ns=NS_PER_US))
    monkeypatch.setattr("stack.tests.test_short_ways.meddle", lambda *_: None)
    *_, ended, results, _ = played(2)
    assert not ended
    assert results["client"][0] > 0
    messages = 2 * ROUNDS
    assert taken["hear"] > 0.6 * messages  # not while the first segments are acknowledged at once
    assert taken["say"] > 0.6 * messages
    assert taken["say"] + taken["send_lone"] >= messages
    assert taken["send_alone"] >= messages
    assert taken["enqueue"] < 0.5 * messages  # where a frame goes if something else is to leave, too


@pytest.mark.parametrize("seed", range(12))
def test_what_is_remembered_as_usual_still_is(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever moves a connection otherwise than a conversation does makes it forget: asked again, the answer is the
    same."""
    looked = 0

    def checked(short: Callable[..., bool]) -> Callable[..., bool]:
        def call(connection: Connection, *args: Any) -> bool:
            nonlocal looked
            if connection.usual:
                looked += 1
                assert conversation.usual(connection)
            return short(connection, *args)

        return call

    monkeypatch.setattr(express, "hear", checked(conversation.hear))
    monkeypatch.setattr(stream, "say", checked(conversation.say))
    played(seed)
    assert looked


def _option(level: str, name: str, value: Any) -> Callable[[Any, Any], object]:
    def act(sock: Any, _: Any) -> object:
        module = sock.surface.stack.socket
        return sock.setsockopt(getattr(module, level, 6), getattr(module, name), value)

    return act


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(_option("IPPROTO_TCP", "TCP_CORK", 1), id="cork"),
        pytest.param(_option("IPPROTO_TCP", "TCP_QUICKACK", 1), id="quick acknowledgments"),
        pytest.param(_option("IPPROTO_TCP", "TCP_USER_TIMEOUT", 1000), id="user time-out"),
        pytest.param(_option("IPPROTO_TCP", "TCP_NOTSENT_LOWAT", 1000), id="low water of what is not sent"),
        pytest.param(_option("IPPROTO_TCP", "TCP_CONGESTION", b"bbr"), id="pacing"),
        pytest.param(lambda sock, _: sock.setsockopt(1, 35, 1), id="times of arrival"),
        pytest.param(lambda sock, _: sock.setsockopt(1, 37, 1 << 1 | 1 << 4), id="times of departure"),
        pytest.param(lambda sock, _: sock.send(b"more", sock.surface.stack.socket.MSG_MORE), id="MSG_MORE"),
        pytest.param(lambda sock, _: sock.send(b"urgent", sock.surface.stack.socket.MSG_OOB), id="urgent data"),
        pytest.param(lambda _, peer: peer.send(b"urgent", peer.surface.stack.socket.MSG_OOB), id="the peer's"),
        pytest.param(lambda sock, _: sock.send(bytes(1 << 20)), id="more than the window takes"),
        pytest.param(lambda _, peer: peer.send(bytes(10_000)), id="superframes"),
        pytest.param(lambda sock, _: sock.shutdown(1), id="an end"),
        pytest.param(lambda _, peer: peer.shutdown(1), id="the peer's end"),
        pytest.param(lambda _, peer: peer.close(), id="a reset"),
    ],
)
def test_what_makes_a_connection_peculiar_is_noticed(act: Callable[[Any, Any], object]) -> None:
    with Simulation(3) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        sim.link(one, other, addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
        listener = other.socket.socket()
        listener.bind(("10.0.0.2", 80))
        listener.listen(1)
        asking = one.socket.socket()
        asking.setblocking(False)
        sim.spawn("connect", connected(asking, ("10.0.0.2", 80)))
        sim.run()
        answering, _ = listener.accept()
        for sock in (asking, answering):
            sock.setsockopt(one.socket.IPPROTO_TCP, one.socket.TCP_QUICKACK, 0)
        for ask, answer in ((asking, answering), (answering, asking)) * 3:
            ask.send(b"question")
            sim.settle(NS_PER_MS)
            assert answer.recv(100) == b"question"
        connection = answering._sock.connection
        assert connection.usual
        act(answering, asking)
        for _ in range(20):
            assert not connection.usual or conversation.usual(connection)
            sim.settle(NS_PER_MS)
        for sock in (listener, asking, answering):
            sock.close()


def test_a_flow_is_forgotten_with_the_address_it_came_to() -> None:
    """What a packet has to be asked is asked again after any change of the configuration: this one is not for us."""
    with Simulation(1) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        sim.link(one, other, addresses=(["10.0.0.1/24"], ["10.0.0.2/24", "10.0.0.3/24"]))
        listener = other.socket.socket()
        listener.bind(("10.0.0.2", 80))
        listener.listen(1)
        asking = one.socket.socket()
        asking.setblocking(False)
        sim.spawn("connect", connected(asking, ("10.0.0.2", 80)))
        sim.run()
        answering, _ = listener.accept()
        for _ in range(3):
            asking.send(b"question")
            sim.settle(NS_PER_MS)
            assert answering.recv(100) == b"question"
        stats, drops = other.netns.tcp.stats, other.netns.ip.drops
        predicted = stats.fast_in
        assert other.netns.tcp.flows
        with sim.network.lock:
            interface = other.netns.interfaces["eth0"]
            other.netns.remove_address(interface, bytes((10, 0, 0, 2)))
            sim.network.finish()
        asking.send(b"question")
        sim.settle(NS_PER_MS)
        assert stats.fast_in == predicted
        assert drops[DropReason.NOT_FOR_US] == 1
        for sock in (listener, asking, answering):
            sock.close()


def test_connections_that_are_over_leave_no_flow_behind() -> None:
    with Simulation(2) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        sim.link(one, other, addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
        sim.spawn("server", server(sim, other, 1))
        sim.spawn("client", client(sim, one, stamped=True))
        sim.run()
        assert one.netns.tcp.stats.fast_in > ROUNDS
        assert not one.netns.tcp.flows
        assert not other.netns.tcp.flows


@pytest.mark.parametrize("seed", range(20))
def test_frames_that_leave_alone_leave_the_same_books(seed: int) -> None:
    """Also when the device refuses, changes its mind, or others had queued something before."""

    def books(send_alone: Callable[..., None]) -> tuple[Any, ...]:
        rng = SplitMix64(seed)
        scheduler = Scheduler(rng=rng)
        device = RecorderDevice(room=2)
        interface = Interface(scheduler, device, name="eth0", index=2, changes=ChangeLog())
        told: list[int] = []

        def send(frame: TxFrame) -> None:
            if scheduler.sole:
                send_alone(interface, frame[0], frame[1:], 60)
            else:
                interface.enqueue(frame, 60)

        for number in range(100):
            what = rng.randrange(0, 12)
            frame = ((bytes((number,)) * 60,), 0, 0, 0, 0, 0, 0)
            if what < 8:
                scheduler.defer(lambda frame=frame: send(frame))  # type: ignore[misc]  # a default is no argument
            if what in (1, 9):
                interface.enqueue((frame[0] * 2, 0, 0, 0, 0, 0, 0), 120)
            if what == 10:
                device.room = (device.room or 0) + 3
                device.changed()
                interface.service(8)
            if what == 11:
                device.offloads = Offload.NONE if rng.random() < 0.3 else ALL_OFFLOADS
                device.changed()
                interface.when_drained(lambda number=number: told.append(number))  # type: ignore[misc]  # the same
            scheduler.run_deferred()
        stats = dataclasses.astuple(interface.stats)
        return device.take(), device.bursts, stats, interface.sent_bursts, interface.queued, interface.backlog, told

    assert books(Interface.send_alone) == books(queued)
