"""Superframes of a driver into a reader's buffer, all the way: every byte where it belongs, whichever way it came."""

from __future__ import annotations

import random

import pytest

from qemu.guest.bench import rig, rig_guest
from stack import Network
from stack.link.device import GSO_TCPV4
from stack.tcp.buffers import ReceiveQueue
from vhost_user.driver import Burst, NetDriver


def test_what_lands_in_a_buffer_is_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    landed: list[int] = []
    original = ReceiveQueue.land

    def land(queue: ReceiveQueue, ground: memoryview, size: int) -> None:
        landed.append(size)
        original(queue, ground, size)

    monkeypatch.setattr(ReceiveQueue, "land", land)
    rng = random.Random(5)
    with rig.served_card() as (stack, path):
        sockets = stack.socket
        listener = sockets.socket()
        listener.bind((rig.GATEWAY, 5000))
        listener.listen(1)
        with NetDriver(str(path)) as driver:
            peer = rig_guest.Peer(driver, 5000)
            connection, _ = listener.accept()
            connection.settimeout(30)
            network = stack.network
            assert isinstance(network, Network)
            network.runner.stop()  # from here on nobody looks at the ring but who reads
            buffer = bytearray(300_000)
            sent = read = 0
            for _ in range(40):
                size = rng.choice((16_384, 30_000, 60_000, 65_483, 65_483, 1000))
                burst: list[rig_guest.Segment] = []
                for number in range(rng.randrange(1, 9)):
                    if (number + 1) * size > peer.snd_una + peer.window - peer.snd_nxt:
                        break
                    gso = (GSO_TCPV4, 54, 1460) if size > 1460 else (0, 0, 0)
                    part = rig_guest.Segment(peer, stream(sent, size), gso)
                    part.number(peer.snd_nxt + len(burst) * size, peer.rcv_nxt)
                    burst.append(part)
                    sent += size
                count = len(burst)
                ready = Burst([(part.header, part.data) for part in burst])
                assert ready.send(driver.tx(), timeout=5) == count
                peer.snd_nxt += count * size
                while read < sent:
                    got = connection.recv_into(buffer, rng.choice((300_000, 300_000, 262_144, 50_000)))
                    assert buffer[:got] == stream(read, got)
                    read += got
                while peer.snd_una < peer.snd_nxt:
                    network.poll(network.clock())
                    peer.hear(0.001)
            connection.close()
        listener.close()
    assert sum(landed) > 1_000_000
    assert sum(landed) < read  # and some went the usual way


def stream(first: int, size: int) -> bytes:
    """`size` bytes of it from number `first` on."""
    start = first % 65521
    block = b"".join(number.to_bytes(2, "big") for number in range(65521))[: 65521 * 2]
    return (block[start:65521] + block[:65521] * (size // 65521 + 1))[:size]
