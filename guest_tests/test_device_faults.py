"""A Linux guest beside a card that misbehaves on purpose: what it says, what it survives, what it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from qemu.guest import Guest

#: Answers a ping or gives up.
PING = "ping -c 1 -W {seconds} {gateway} >/dev/null"


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(template=True, reconnect=True) as guest:
        assert guest.address
        yield guest


def reaches(guest: Guest, seconds: int = 1) -> bool:
    return guest.run(PING.format(seconds=seconds, gateway=guest.gateway)).succeeded


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came to be"


@pytest.mark.parametrize("fault", ["rx.stall", "tx.hold"])
def test_a_card_that_stops_for_a_while_is_survived(guest: Guest, fault: str) -> None:
    assert reaches(guest, 5)
    with guest.net.faults.lasting(fault):
        assert not reaches(guest)
    eventually(lambda: reaches(guest))


def test_lost_interrupts_are_made_up_for_by_the_next_one(guest: Guest) -> None:
    with guest.net.faults.lasting("irq.lost"):
        assert not reaches(guest)
    eventually(lambda: reaches(guest))


def test_short_buffers_are_dropped_and_told_of(guest: Guest) -> None:
    """Each is an error on the interface's counters."""
    guest.net.faults.strike("used.short", 3)
    eventually(lambda: reaches(guest))
    assert guest.run("cat /sys/class/net/eth0/statistics/rx_length_errors").stdout.strip() == "3"


@pytest.mark.parametrize("fault", ["disconnect", "backend.crash"])
def test_a_back_end_that_went_away_and_came_back_is_survived(guest: Guest, fault: str) -> None:
    assert guest.net.faults.strike(fault) == 1
    eventually(lambda: reaches(guest))


def test_a_descriptor_that_does_not_exist_ends_the_queue_and_nothing_else(guest: Guest) -> None:
    """The last test of this guest: its card is given up until the driver is bound anew."""
    assert guest.net.faults.strike("used.bad_id") == 1
    assert not reaches(guest)
    assert "id 65535 out of range" in guest.run("dmesg").stdout
    device = guest.run("basename $(readlink /sys/class/net/eth0/device)", check=True).stdout.strip()
    driver = "/sys/bus/virtio/drivers/virtio_net"
    guest.run(f"echo {device} > {driver}/unbind; echo {device} > {driver}/bind", check=True)
    guest.run(f"ip addr add {guest.address}/24 dev eth0; ip link set eth0 up", check=True)
    eventually(lambda: reaches(guest))
