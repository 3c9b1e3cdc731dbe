"""What a forwarded stream does not do for each piece: ask the guest for credit, be told of room in a host's socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stack.services.host_sockets import HostSockets
from stack.services.vsock_pump import ASK_AFTER
from stack.tests.gateway_rig import GatewayRig, gateway_rig, said
from stack.vsock.transport import VsockTx
from stack.wire.vsock import Op


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[GatewayRig]:
    with gateway_rig(tmp_path) as made:
        yield made


def watched(rig: GatewayRig) -> list[int]:
    """Operations sent to the guest from now on."""
    ops: list[int] = []
    transmit = rig.transport.transmit

    def noted(burst: Sequence[VsockTx]) -> int:
        ops.extend(packet[5] for packet in burst)
        return transmit(burst)

    rig.transport.transmit = noted  # type: ignore[method-assign]
    return ops


def test_a_guest_that_does_not_say_what_it_has_read_is_asked(tmp_path: Path) -> None:
    """One-way streams to guests that send credit only when asked stall otherwise (Asterinas #2885)."""
    with gateway_rig(tmp_path, scripted=True) as rig:
        client = rig.client(b"CONNECT 5\n")
        (request,) = rig.transport.take()
        rig.transport.feed(Op.RESPONSE, request[2], 5, alloc=10)
        rig.settle()
        client.sendall(b"x" * 10)
        rig.settle()
        client.sendall(b"y" * 5)
        rig.settle()
        assert rig.transport.ops() == ["RW"], "most guests tell by themselves, and soon"
        rig.wait(ASK_AFTER)
        assert rig.transport.ops() == ["CREDIT_REQUEST"]
        rig.transport.feed(Op.CREDIT_UPDATE, request[2], 5, alloc=10, forwarded=10)
        rig.settle()
        assert rig.transport.ops() == ["RW"]


def test_a_guest_that_tells_by_itself_is_not_asked(rig: GatewayRig) -> None:
    client = rig.client(b"CONNECT 5\n")
    stream = rig.stream
    said(client)
    rig.guest.transport.take()
    asked = watched(rig)
    for _ in range(50):
        while stream.unread < stream.buf_alloc:
            client.sendall(bytes(64 << 10))
            rig.settle()
        client.sendall(bytes(64 << 10))  # has to wait for credit
        rig.settle()
        rig.wait(ASK_AFTER - 1)
        stream.consume(stream.unread)
        rig.settle()
    assert Op.CREDIT_REQUEST not in asked


def test_a_program_that_reads_wakes_nobody_while_there_is_room(rig: GatewayRig) -> None:
    """The kernel would tell of every piece it reads; asked for is only that there is room where there was none."""
    client = rig.client(b"CONNECT 5\n")
    stream = rig.stream
    said(client)
    rig.settle()
    for _ in range(3):
        assert stream.write(b"x" * 65536) == 65536
        rig.settle()
        assert said(client) == b"x" * 65536
        assert rig.gateway.hosts.service(64) == 0
    sent = got = 0
    while stream.free:
        sent += stream.write(b"y" * 65536)
        rig.settle()
    (held,) = rig.port.connections.values()
    assert held.readable, "the socket is full"
    for _ in range(1000):
        got += len(said(client) or b"")
        rig.settle()
    assert got == sent
    assert not held.readable
    assert rig.gateway.hosts.service(64) == 0
    assert stream.write(b"z") == 1
    rig.settle()
    assert said(client) == b"z"
    assert rig.gateway.hosts.service(64) == 0


def test_a_program_that_writes_wakes_nobody_while_the_guest_takes_nothing(rig: GatewayRig) -> None:
    """What it wrote is found once there is credit; and once all of it is moved, the next piece is told of again."""
    client = rig.client(b"CONNECT 5\n")
    stream = rig.stream
    said(client)
    for _ in range(3):
        begun, sent = len(stream.received), 0
        while stream.unread < stream.buf_alloc:
            client.sendall(bytes(64 << 10))
            sent += 64 << 10
            rig.settle()
        for _ in range(3):
            client.sendall(b"more")
            sent += 4
            assert rig.gateway.hosts.service(64) == 0
        for _ in range(3):
            stream.consume(stream.unread)
            rig.settle()
        assert len(stream.received) == begun + sent
        for number in range(3):
            client.sendall(b"word")
            rig.settle()
            assert len(stream.received) == begun + sent + 4 * (number + 1)
        stream.consume(stream.unread)
        rig.settle()


def test_tasks_know_how_many_share_their_turn() -> None:
    """Pumps divide by it what they move to the guest."""
    hosts, seen = HostSockets(), []

    class Noting:
        def hint(self, *, hung_up: bool) -> None:
            raise AssertionError("no socket, no hint")

        def run(self) -> bool:
            seen.append(hosts.busy)
            return False

    for many in (1, 3):
        for _ in range(many):
            hosts.mark(Noting())
        hosts.service(64)
    hosts.close()
    assert seen == [1, 3, 3, 3]
