"""A driver that sleeps until a chain is used, and interrupts that are for nothing (virtio 1.3 section 2.7.7)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vhost_user.driver.memory import MIB, GuestMemory
from vhost_user.driver.ring import USED_ELEMENT, DriverRing


@pytest.fixture
def ring() -> Iterator[DriverRing]:
    memory = GuestMemory([(0, MIB)])
    ring = DriverRing(memory, 0, 4, writable=True, buffers=4, buffer_size=64)
    ring.post()
    yield ring
    ring.close()
    memory.close()


class LateDevice:
    """Interrupts each time the driver has asked for it, and uses a chain only the `last` time."""

    def __init__(self, ring: DriverRing, last: int) -> None:
        self.ring, self.last, self.asked = ring, last, 0
        self.arm = ring.arm

    def __call__(self, after: int = 1) -> bool:
        due = self.arm(after)
        self.asked += 1
        if self.asked == self.last:
            self.ring.memory.write(self.ring.used + 4, USED_ELEMENT.pack(0, 10))
            self.ring.set_used_index(1)
        os.eventfd_write(self.ring.call_fd, 1)
        return due


def test_an_interrupt_for_nothing_is_slept_through(ring: DriverRing, monkeypatch: pytest.MonkeyPatch) -> None:
    device = LateDevice(ring, last=3)
    monkeypatch.setattr(ring, "arm", device)
    assert ring.wait(None)
    assert device.asked == 3
    assert ring.pending == 1


def test_no_time_to_sleep_is_one_look(ring: DriverRing, monkeypatch: pytest.MonkeyPatch) -> None:
    device = LateDevice(ring, last=2)
    monkeypatch.setattr(ring, "arm", device)
    assert not ring.wait(0.0)
    assert device.asked == 1
    assert ring.wait(0.0)
