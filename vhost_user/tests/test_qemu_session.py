"""The session layer against the real thing: QEMU with vhost-user net and vsock, its registers driven from here.

No guest runs (see qtest_machine); QEMU itself does the talking: negotiation, rings up, vm stop and cont, set_link,
driver reset, reconnect after our restart, migration's dirty log is left to the recorded orders. Needs no KVM.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhost_user.device import Device
from vhost_user.net import NetDevice
from vhost_user.server import Server
from vhost_user.vsock import VsockDevice

from .qtest_machine import NET, PATIENCE, VSOCK, Machine, VirtioMmio
from .raw_front_end import guest_mappings, open_fds

VERSION_1 = 1 << 32
MRG_RXBUF = 1 << 15
EVENT_IDX = 1 << 29
MQ = 1 << 22
CTRL_VQ = 1 << 17

HEADER = bytes(12)  #: virtio_net_hdr without any offload
FRAME = bytes.fromhex("ffffffffffff 525400123456 88b5") + b"hello from the driver".ljust(60, b".")
CID = 77


def wait_for(device: Device, what: str, condition: Callable[[], bool]) -> None:
    """Sleep on the device's own descriptor, as a Network does, until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    with select.epoll() as outer:
        outer.register(device.fileno(), select.EPOLLIN)
        while True:
            device.clear_events()
            device.refresh()
            if condition():
                return
            left = deadline - time.monotonic()
            assert left > 0, f"{what} within {PATIENCE} s"
            outer.poll(left)


def rings_up(device: Device) -> list[bool]:
    return [ring.live for ring in device.rings]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def net() -> Iterator[NetDevice]:
    device = NetDevice()
    yield device
    device.close()


def net_arguments(path: Path, *, queues: int = 1, reconnect: bool = True) -> list[str]:
    return [
        *["-chardev", f"socket,id=c,path={path}{',reconnect=1' if reconnect else ''}"],
        *["-netdev", f"vhost-user,id=n,chardev=c,queues={queues}"],
        *["-device", f"virtio-net-device,id=card,netdev=n{',mq=on' if queues > 1 else ''}"],
    ]


def start_net(machine: Machine, device: NetDevice, *, size: int = 256) -> VirtioMmio:
    driver = machine.virtio(NET)
    driver.start(VERSION_1 | MRG_RXBUF, {0: size, 1: size}, at=0x200000)
    wait_for(device, "carrier", lambda: device.carrier)
    return driver


def exchange(driver: VirtioMmio, device: NetDevice) -> None:
    """A frame each way."""
    done = driver.rings[1].used()
    driver.rings[1].add(HEADER + FRAME)
    got: list[bytes] = []

    def received() -> bool:
        got.extend(bytes(frame[0]) for frame in device.receive(64))
        device.arm()
        return bool(got)

    wait_for(device, "a frame from the driver", received)
    assert got == [FRAME]
    assert driver.rings[1].used() == (done + 1) & 0xFFFF
    place = driver.rings[0].add(None)
    count = driver.rings[0].used()
    assert device.transmit([((FRAME[:14], FRAME[14:]), 0, 0, 0, 0, 0, 0)]) == 1
    assert driver.rings[0].used() == (count + 1) & 0xFFFF
    assert driver.machine.read(place, 12 + len(FRAME))[12:] == FRAME


def test_net_negotiates_runs_and_ends_in_order(
    server: Server, net: NetDevice, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fds, mapped = open_fds(), guest_mappings()
    listening = server.listen(net, path=tmp_path / "net.sock")
    with Machine(tmp_path, net_arguments(tmp_path / "net.sock")) as machine:
        driver = start_net(machine, net)
        assert rings_up(net) == [True, True]
        exchange(driver, net)
        assert machine.quit() == 0
        wait_for(net, "carrier lost", lambda: not net.carrier)
    listening.close()
    assert server.stats().broken == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (open_fds(), guest_mappings()) == (fds, mapped)
    assert "vhost" not in machine.log.read_text()  # and QEMU had nothing to complain of


def test_net_survives_vm_stop_cont_and_set_link(server: Server, net: NetDevice, tmp_path: Path) -> None:
    server.listen(net, path=tmp_path / "net.sock")
    with Machine(tmp_path, net_arguments(tmp_path / "net.sock")) as machine:
        driver = start_net(machine, net)
        exchange(driver, net)
        link = {"name": "card"}
        for stop, arguments, go, back in (
            ("stop", {}, "cont", {}),
            ("set_link", {**link, "up": False}, "set_link", {**link, "up": True}),
        ):
            machine.qmp(stop, **arguments)
            wait_for(net, "carrier lost", lambda: not net.carrier)
            assert rings_up(net) == [False, False]
            machine.qmp(go, **back)
            wait_for(net, "carrier back", lambda: net.carrier)
            exchange(driver, net)


@pytest.mark.parametrize("size", [2, 64, 1024])
def test_net_driver_reset_and_ring_sizes(server: Server, net: NetDevice, tmp_path: Path, size: int) -> None:
    server.listen(net, path=tmp_path / "net.sock")
    with Machine(tmp_path, net_arguments(tmp_path / "net.sock")) as machine:
        for _ in range(3):
            driver = start_net(machine, net, size=size)
            assert [ring.num for ring in net.rings] == [size, size]
            exchange(driver, net)
            driver.reset()
            wait_for(net, "carrier lost", lambda: not net.carrier)


def test_net_reconnects_to_a_new_server_and_goes_on_at_the_used_index(net: NetDevice, tmp_path: Path) -> None:
    """QEMU's `reconnect=1`: features re-negotiated, memory and rings given again, base = used index."""
    path = tmp_path / "net.sock"
    first = Server()
    first.listen(net, path=path)
    with first, Machine(tmp_path, net_arguments(path)) as machine:
        driver = start_net(machine, net)
        for _ in range(3):
            exchange(driver, net)
        first.close()
        assert not net.connected
        for _ in range(2):
            with Server() as again:
                again.listen(net, path=path)
                wait_for(net, "carrier back", lambda: net.carrier)
                exchange(driver, net)
                assert again.stats().broken == 0
            wait_for(net, "carrier lost", lambda: not net.carrier)


def test_net_with_two_pairs(server: Server, tmp_path: Path) -> None:
    """All four rings configured and kicked at DRIVER_OK, the second pair disabled until the guest asks for it."""
    net = NetDevice(queues=2)
    server.listen(net, path=tmp_path / "net.sock")
    with Machine(tmp_path, net_arguments(tmp_path / "net.sock", queues=2)) as machine:
        driver = machine.virtio(NET)
        driver.start(VERSION_1 | MRG_RXBUF | MQ | CTRL_VQ, dict.fromkeys(range(5), 64), at=0x200000)
        wait_for(net, "four rings started", lambda: [ring.started for ring in net.rings] == [True] * 4)
        wait_for(net, "one pair enabled", lambda: rings_up(net) == [True, True, False, False])
        control = driver.rings[4]
        control.add_chain([bytes([4, 0]), (2).to_bytes(2, "little"), None])  # CTRL_MQ, VQ_PAIRS_SET, 2
        wait_for(net, "both pairs enabled", lambda: rings_up(net) == [True] * 4)
        machine.quit()
    net.close()


def test_vsock_tells_its_cid_runs_resets_and_ends(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vsock = VsockDevice(CID)
    server.listen(vsock, path=tmp_path / "vsock.sock")
    arguments = [
        "-chardev",
        f"socket,id=v,path={tmp_path / 'vsock.sock'}",
        "-device",
        "vhost-user-vsock-device,chardev=v",
    ]
    with Machine(tmp_path, arguments) as machine:
        driver = machine.virtio(VSOCK)
        assert int.from_bytes(driver.config(0, 8), "little") == CID
        generation = vsock.generation
        for size in (128, 8):  # the second start brings no memory message and another size
            driver.start(VERSION_1 | EVENT_IDX, {0: size, 1: size, 2: size}, at=0x200000)
            wait_for(vsock, "carrier", lambda: vsock.carrier)
            assert [ring.num for ring in vsock.rings] == [size, size]
            machine.qmp("stop")
            wait_for(vsock, "rings stopped", lambda: rings_up(vsock) == [False, False])
            machine.qmp("cont")
            wait_for(vsock, "rings back", lambda: rings_up(vsock) == [True, True])
            driver.reset()
            wait_for(vsock, "carrier lost", lambda: not vsock.carrier)
        assert vsock.generation > generation
        machine.quit()
    vsock.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_second_qemu_on_a_busy_device_does_not_disturb_the_first(
    server: Server, net: NetDevice, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused, QEMU 7.2 connects again at once and for ever. It must cost next to nothing, and one log line."""
    path = tmp_path / "net.sock"
    server.listen(net, path=path)
    (tmp_path / "second").mkdir()
    with Machine(tmp_path, net_arguments(path)) as machine:
        driver = start_net(machine, net)
        start = time.monotonic()
        other = Machine(tmp_path / "second", net_arguments(path, reconnect=False))
        try:
            while server.stats().refused < 3:
                exchange(driver, net)
                assert time.monotonic() - start < PATIENCE
                assert other.process.poll() is None
        finally:
            other.close()
        seconds = time.monotonic() - start
        exchange(driver, net)
        assert server.stats().refused <= 2 * (seconds + 2)
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
            f"net: front-end (process {other.process.pid}) refused: the device is busy with another front-end"
        ]


def test_qemu_killed_at_any_moment_leaves_nothing(server: Server, net: NetDevice, tmp_path: Path) -> None:
    path = tmp_path / "net.sock"
    server.listen(net, path=path)
    fds, mapped = len(open_fds()), guest_mappings()
    for turn in range(3):
        directory = tmp_path / f"turn{turn}"
        os.mkdir(directory)
        with Machine(directory, net_arguments(path)) as machine:
            driver = start_net(machine, net)
            if turn:
                exchange(driver, net)
        wait_for(net, "carrier lost", lambda: not net.carrier)
        server._call(lambda: None)  # a barrier: the control thread is done with the connection
    assert (len(open_fds()), guest_mappings()) == (fds, mapped)


def test_net_migration_logs_dirty_pages_and_goes_on(server: Server, net: NetDevice, tmp_path: Path) -> None:
    """SET_LOG_BASE, then VHOST_F_LOG_ALL and SET_VRING_ADDR flags=1 on running rings; both ways back as well.

    The migration is held up by a bandwidth of next to nothing until frames have been logged.
    """
    server.listen(net, path=tmp_path / "net.sock")
    with Machine(tmp_path, net_arguments(tmp_path / "net.sock")) as machine:
        driver = start_net(machine, net)
        machine.write(0x400000, os.urandom(0x100000))  # something to take a while over
        machine.qmp("migrate-set-parameters", **{"max-bandwidth": 4096})
        machine.qmp("migrate", uri="exec:cat >/dev/null")
        wait_for_migration(machine, {"active"})
        assert net._log is not None
        exchange(driver, net)
        assert any(dirty_log(net)), "the pages of the frames and of the used rings are marked"
        machine.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
        wait_for_migration(machine, {"completed"})
        wait_for(net, "carrier lost", lambda: not net.carrier)
        machine.qmp("cont")
        wait_for(net, "carrier back", lambda: net.carrier)
        exchange(driver, net)
    server._call(lambda: None)
    assert server.stats().broken == 0


def wait_for_migration(machine: Machine, states: set[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while (state := machine.qmp("query-migrate")["status"]) not in states:
        assert state not in {"failed", "cancelled"}
        assert time.monotonic() < deadline, f"migration is {state}"


def dirty_log(net: NetDevice) -> bytes:
    """The bits of the log now in force."""
    from vhost_user._vring import ffi

    assert net._log is not None
    handle = net._log.handle
    return bytes(ffi.buffer(handle.bits, handle.size))
