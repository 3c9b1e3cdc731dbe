"""`Server.stats` shows each ring's work, burst sizes in powers of two, for as long as its device has a front-end."""

from __future__ import annotations

from pathlib import Path

from vhost_user import NetDevice, Server
from vhost_user.driver import NetDriver

FRAME = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(50)


def test_bursts_of_each_ring_are_counted_by_size(tmp_path: Path) -> None:
    device = NetDevice()
    with Server() as server:
        server.listen(device, path=tmp_path / "net")
        assert server.stats().rings == ()
        with NetDriver(str(tmp_path / "net")) as driver:
            device.receive(1)
            for count in (1, 3, 7, 7):
                assert driver.send([FRAME] * count) == count
                assert len(device.receive(64)) == count
            assert device.transmit([((FRAME,), 0, 0, 0, 0, 0, 0)] * 5) == 5
            to_guest, from_guest = server.stats().rings
        device.close()
    assert (to_guest.device, to_guest.index, from_guest.index) == (device.name, 0, 1)
    assert from_guest.counters.burst_sizes == (1, 1, 2, *[0] * 13)
    assert from_guest.counters.bursts == sum(from_guest.counters.burst_sizes) == 4
    assert from_guest.counters.chains == 18
    assert to_guest.counters.burst_sizes == (0, 0, 1, *[0] * 13)
