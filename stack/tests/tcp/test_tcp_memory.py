"""Many connections that nobody reads beside one that is read: each stays within its buffer, the stream flows."""

from __future__ import annotations

from stack.tcp.receiver import PIN_SLACK
from stack.tests.tcp.world import World

UNREAD = 200
STREAM = 16 << 20  # bytes


def test_unread_connections_stay_within_their_limits_beside_a_bulk_stream() -> None:
    with World(1) as world:
        listener = world.listen()
        listener.backlog = UNREAD
        senders = [world.connect() for _ in range(UNREAD)]
        assert world.run_until(lambda: listener.ready == UNREAD, 10)
        unread = [accepted for _ in range(UNREAD) if (accepted := listener.accept())]
        near, far = world.pair_on(listener)
        data = bytes(1 << 16)
        received = 0
        while received < STREAM:
            for sender in senders:
                while sender.write(data):
                    pass
            while near.write(data):
                pass
            assert world.advance()
            while piece := far.read(1 << 20):
                received += len(piece)
        initial = world.b.tcp.config.rcvbuf
        for connection in unread:
            receiver = connection.receiver
            assert connection.rcvbuf == initial  # no growth without a reader
            assert initial - 1500 <= receiver.queue.length <= initial
            assert receiver.queue.charge + receiver.reassembly.length <= initial + PIN_SLACK + 1024
        assert far.rcvbuf > initial
        for connection, sender in zip(unread, senders, strict=True):
            assert connection.readable
            assert sender.unacknowledged <= world.a.tcp.config.sndbuf_max
