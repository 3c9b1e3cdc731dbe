"""No wake-up is lost between a device that sleeps and a guest that sleeps, on two processors.

Virtio 1.3 sections 2.7.7 and 2.7.10. Every frame sent comes back. Both sides suppress notifications while they work
and sleep as soon as they run dry, on rings so small that both also run full. One notification too few and everybody
sleeps until the timeout.
"""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from vhost_user.features import NetFeature
from vhost_user.net import NetDevice
from vhost_user.server import Server

from .device_rig import broadcast

PATIENCE_MS = 20_000


def frame(number: int) -> bytes:
    return broadcast(14) + number.to_bytes(4, "big") + bytes(50)


@pytest.mark.parametrize("size", [2, 16, 256])
@pytest.mark.parametrize("without", [0, NetFeature.EVENT_IDX])
def test_everybody_wakes_up(size: int, without: int, tmp_path: Path) -> None:
    _run(tmp_path / "net", size, without, 3000, seed=size)


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4, 8, 64, 1024])
@pytest.mark.parametrize("without", [0, NetFeature.EVENT_IDX])
def test_everybody_wakes_up_a_hundred_thousand_times(size: int, without: int, tmp_path: Path) -> None:
    _run(tmp_path / "net", size, without, 100_000, seed=size)


def _run(path: Path, size: int, without: int, count: int, *, seed: int) -> None:
    device = NetDevice()
    command = [sys.executable, "-m", "vhost_user.tests.echo_guest", str(path), str(size), str(int(without))]
    with Server() as server:
        server.listen(device, path=path)
        with subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2]) as guest:
            try:
                _echo(device, count, Random(seed))
                device.transmit([((broadcast(14) + b"stop" + bytes(50),), 0, 0, 0, 0, 0, 0)])
                assert guest.wait(timeout=PATIENCE_MS / 1000) == 0
            finally:
                guest.kill()
    device.close()


def _rings(device: NetDevice) -> str:
    """Who did not hear of what."""
    state = [f"ring {ring.index}: {ring.room()} available, {ring.counters}" for ring in device.rings]
    return "; ".join([*state, f"carrier {device.carrier}", f"drops {device.drops}"])


def _echo(device: NetDevice, count: int, rng: Random) -> None:
    poller = select.poll()
    poller.register(device.fileno(), select.POLLIN)
    sent = received = naps = 0
    while received < count:
        progress = False
        for view, *_ in device.receive(rng.randrange(1, 64)):  # first: it is where changes are seen
            assert bytes(view) == frame(received)
            received += 1
            progress = True
        if device.carrier and sent < count:
            burst = [((frame(n),), 0, 0, 0, 0, 0, 0) for n in range(sent, min(count, sent + rng.randrange(1, 40)))]
            accepted = device.transmit(burst)
            sent += accepted
            progress |= accepted > 0
        if received == count or (progress and rng.random() < 0.7):
            continue
        if not device.arm():
            assert poller.poll(PATIENCE_MS), f"asleep for ever: {sent} sent, {received} came back; {_rings(device)}"
            naps += 1
        device.suppress()
    assert naps > 1
