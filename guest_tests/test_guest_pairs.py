"""A guest with two CPUs and a card with two queue pairs; two guests whose cards move frames between themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qemu.guest import Guest
from stack import Network
from stack.link import Switch

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(smp=2, queues=2, vsock=False) as guest:
        yield guest


def taken(guest: Guest) -> list[int]:
    """Chains of each ring so far: receive and transmit of the first pair, of the second."""
    return [ring.counters.chains for ring in guest.net.rings]


def test_the_driver_enables_a_pair_for_each_cpu(guest: Guest) -> None:
    assert guest.run("ls /sys/class/net/eth0/queues", check=True).stdout.split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
    assert all(ring.live for ring in guest.net.rings)


def test_each_cpu_has_its_pair_and_gets_its_answers_there(guest: Guest) -> None:
    """virtio 1.3 section 5.1.6.5.5: Linux sends through the pair of the CPU that sends (XPS); answers follow."""
    sockets = guest.stack.socket
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.bind((guest.gateway, 69))
        for cpu, mask in ((0, 1), (1, 2), (0, 1)):
            guest.run(["ping", "-c", "1", "-W", "5", guest.gateway], check=True)
            transfer = guest.spawn(f"taskset {mask} tftp -g -l - -r file {guest.gateway}")
            _, peer = sock.recvfrom(2000)
            before = taken(guest)
            for _ in range(101):
                sock.sendto(b"\0\5\0\1no such file\0", peer)  # RFC 1350: an error; the first one ends it
            moved = [now - then for now, then in zip(taken(guest), before, strict=True)]
            assert transfer.communicate(timeout=30).returncode != 0
            assert moved[2 * cpu] >= 101, moved
            assert moved[2 - 2 * cpu] < 20, moved


def test_bulk_through_both_pairs_arrives_whole(guest: Guest) -> None:
    """Two TCP connections at a time, one of each CPU, both ways."""
    sockets = guest.stack.socket
    size = 4 << 20
    with sockets.create_server((guest.gateway, 4001)) as server:
        server.settimeout(30)
        senders = [
            guest.spawn(f"head -c {size} /dev/zero | taskset {mask} nc {guest.gateway} 4001 | wc -c") for mask in (1, 2)
        ]
        connections = [server.accept()[0] for _ in senders]
        before = taken(guest)
        for connection in connections:
            connection.settimeout(60)
            total = 0
            while total < size:
                piece = connection.recv(1 << 18)
                assert piece
                total += len(piece)
            connection.sendall(b"x" * size)
            connection.close()
        assert [sender.communicate(timeout=60).stdout.strip() for sender in senders] == [str(size)] * 2
        assert all(now > then for now, then in zip(taken(guest), before, strict=True))
        assert not any(ring.broken for ring in guest.net.rings)


def test_one_cpu_enables_one_pair_and_the_other_stays_out() -> None:
    with Guest(smp=1, queues=2, vsock=False) as guest:
        assert [ring.enabled for ring in guest.net.rings] == [True, True, False, False]
        guest.run(["ping", "-c", "3", "-i", "0.05", guest.gateway], check=True)
        assert taken(guest)[2:] == [0, 0]


def test_guests_on_a_switch_exchange_frames_the_switch_does_not_see() -> None:
    with Network() as network:
        network.start()
        switch = Switch(network.scheduler)
        options: dict[str, Any] = {"network": network, "switch": switch, "vsock": False}
        with Guest(**options) as left, Guest(**options) as right:
            for number, guest in enumerate((left, right), 1):
                guest.run(f"ip link set eth0 up; ip addr add 192.168.9.{number}/24 dev eth0", check=True)
            left.run(["ping", "-c", "2", "-i", "0.2", "-W", "5", "192.168.9.2"], check=True)
            seen = 0
            real = switch.forward_received

            def look(port: Any, burst: Any) -> None:
                nonlocal seen
                seen += len(burst)
                real(port, burst)

            switch.forward_received = look  # type: ignore[method-assign, assignment] # a spy
            before = left.net.frames_in + right.net.frames_in
            right.run("head -c 3000000 /dev/urandom > /tmp/file; httpd -p 5000 -h /tmp", check=True)
            got = left.run("wget -q -O - http://192.168.9.2:5000/file | md5sum", check=True).stdout
            assert got == right.run("md5sum < /tmp/file", check=True).stdout
            frames = left.net.frames_in + right.net.frames_in - before
            assert frames > 60
            assert seen < frames / 4, (seen, frames)
