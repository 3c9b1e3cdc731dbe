"""A guest behind a line that is bad in ways a test chose: what it sends and gets arrives, or visibly does not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import pytest

from qemu.guest import Guest
from stack.link import Impairment
from stack.link.impaired import PARTITION, Moment
from stack.scheduler import NS_PER_MS

SIZE = 300_000


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(template=True) as guest:
        assert guest.address
        yield guest


def reaches(guest: Guest) -> bool:
    return guest.run(f"ping -c 1 -W 1 {guest.gateway} >/dev/null").succeeded


def test_a_transfer_over_a_bad_line_arrives_whole(guest: Guest) -> None:
    """The guest's own kernel makes up for all of it; the counters say that there was something to make up for."""
    bad = Impairment(
        loss=0.03, duplicate=0.02, reorder=0.05, corrupt=0.01, delay_ns=3 * NS_PER_MS, jitter_ns=NS_PER_MS, seed=7
    )
    data = bytes(number * 7 & 0xFF for number in range(SIZE))
    socket = guest.stack.socket
    with guest.impaired(bad, bad), socket.create_server((guest.gateway, 0)) as listener:
        listener.settimeout(60)
        port = listener.getsockname()[1]
        command = guest.spawn(f"nc {guest.gateway} {port} | md5sum")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        assert command.communicate(timeout=60).stdout.split()[0] == hashlib.md5(data).hexdigest()
        to_guest, from_guest = guest.line_stats
    assert to_guest.loss
    assert to_guest.corrupt
    assert from_guest.offered > from_guest.loss


def test_each_way_can_be_partitioned_alone(guest: Guest) -> None:
    for ways in ((PARTITION, None), (None, PARTITION)):
        with guest.impaired(*ways):
            assert not reaches(guest)
            assert guest.run("cat /sys/class/net/eth0/carrier").stdout.strip() == "1"
        assert any(reaches(guest) for _ in range(5))


def test_delay_is_what_a_ping_sees(guest: Guest) -> None:
    with guest.impaired(Impairment(delay_ns=80 * NS_PER_MS), Impairment(delay_ns=70 * NS_PER_MS)):
        said = guest.run(f"ping -c 2 -W 3 {guest.gateway} | tail -1", check=True).stdout
    least = float(said.split("=")[1].split("/")[0])
    assert least >= 150, said


def test_a_line_that_changes_by_plan(guest: Guest) -> None:
    timeline = guest.timeline([Moment(0, PARTITION, PARTITION), Moment(1.5)])
    began = time.monotonic()
    while not reaches(guest):
        assert time.monotonic() - began < 20
    assert time.monotonic() - began >= 1.4
    assert timeline.done == 2
