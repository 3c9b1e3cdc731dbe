"""Devices that misbehave on purpose: each fault does what it says, and nothing else, and ends when it should."""

from __future__ import annotations

import select
import socket
from pathlib import Path
from typing import Any

import pytest

from vhost_user import NetDevice, Server
from vhost_user.driver import DriverError, NetDriver
from vhost_user.driver.vsock import OP_RW
from vhost_user.faults import LASTING, STRIKES
from vhost_user.vsock import VsockTx

from .device_rig import CID, broadcast, net_rig, plain, vsock_rig

HELLO: VsockTx = (2, CID, 2000, 1000, 1, OP_RW, 0, 65536, 0, b"hello")


def quiet(device: Any) -> None:
    """Sleep as an owner would: until the device says there is nothing to do."""
    for _ in range(10):
        device.receive(64)
        if not device.arm():
            return
    raise AssertionError("the device keeps its owner busy with nothing")


def test_rx_stall_delivers_nothing_until_it_ends() -> None:
    with net_rig() as (device, guest):
        with device.faults.lasting("rx.stall"):
            quiet(device)
            assert device.transmit([plain(broadcast(100))]) == 0
            assert guest.recv() == []
            assert device.carrier
            guest.send([broadcast(200)])  # the other direction goes on
            assert len(device.receive(8)) == 1
            quiet(device)
        assert device.arm()  # its owner is told to try again
        assert device.transmit([plain(broadcast(100))]) == 1
        assert len(guest.recv()) == 1


def test_tx_hold_leaves_the_guest_s_frames_in_its_ring() -> None:
    with net_rig() as (device, guest):
        device.faults.begin("tx.hold")
        quiet(device)
        guest.send([broadcast(100), broadcast(200)])
        assert device.receive(8) == []
        quiet(device)
        assert guest.tx().in_flight == 2
        assert device.transmit([plain(broadcast(100))]) == 1
        assert len(guest.recv()) == 1
        device.faults.end("tx.hold")
        assert select.select([device.fileno()], [], [], 0)[0]
        assert [len(frame[0]) for frame in device.receive(8)] == [100, 200]


def test_irq_lost_returns_buffers_without_a_word() -> None:
    with net_rig() as (device, guest):
        with device.faults.lasting("irq.lost"):
            guest.rx().drain_calls()
            assert not guest.rx().arm()
            assert device.transmit([plain(broadcast(100))]) == 1
            assert guest.rx().drain_calls() == 0
            assert len(guest.recv()) == 1  # it was there all the time
        assert not guest.rx().arm()
        assert device.transmit([plain(broadcast(100))]) == 1
        assert guest.rx().drain_calls() == 1
        assert device.faults.active == ()


def test_used_bad_id_is_what_a_driver_must_not_believe() -> None:
    with net_rig() as (device, guest):
        assert device.faults.strike("used.bad_id") == 1
        with pytest.raises(DriverError):
            guest.recv()


def test_used_short_is_a_buffer_without_even_a_header() -> None:
    with vsock_rig() as (device, guest):
        assert device.faults.strike("used.short", 2) == 2
        with pytest.raises(DriverError, match="1 bytes has no whole header"):
            guest.recv()
        assert device.transmit([HELLO]) == 1
        assert [bytes(packet.payload) for packet in guest.recv()] == [b"hello"]


def test_vsock_stalls_and_holds_too() -> None:
    with vsock_rig() as (device, guest):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.send(b"x")
            with device.faults.lasting("rx.stall"), device.faults.lasting("tx.hold"):
                assert device.faults.active == ("rx.stall", "tx.hold")
                assert device.transmit([HELLO]) == 0
                assert device.receive_from(HELLO, ours.fileno(), 10) is None
                guest.send([guest.packet(OP_RW, 1, 2, b"held")])
                assert device.receive(8) == []
                quiet(device)
            assert device.roomy
            assert device.transmit([HELLO]) == 1
            assert device.receive_from(HELLO, ours.fileno(), 10) == 1
            assert [bytes(packet[9]) for packet in device.receive(8)] == [b"held"]


@pytest.mark.parametrize("fault", ["disconnect", "backend.crash"])
def test_the_connection_ends_and_the_next_one_is_served(fault: str, tmp_path: Path) -> None:
    device = NetDevice()
    path = tmp_path / "net"
    try:
        with Server() as server:
            server.listen(device, path=path)
            assert device.faults.strike(fault) == 0  # nobody there
            with NetDriver(path) as guest:
                device.refresh()
                guest.send([broadcast(100)])
                assert device.faults.strike(fault) == 1
                device.refresh()
                assert not bool(device.carrier)
                assert device.receive(8) == []
                # With a crash the frame was taken and never returned; in good order it is still the guest's.
                assert guest.tx().in_flight == 1
            with NetDriver(path) as guest:
                device.refresh()
                assert bool(device.carrier)
                guest.send([broadcast(100)])
                assert len(device.receive(8)) == 1
    finally:
        device.close()


def test_names_that_are_no_faults_are_refused() -> None:
    with net_rig() as (device, _):
        with pytest.raises(ValueError, match=r"no fault 'rx\.stal'; there are rx\.stall"):
            device.faults.begin("rx.stal")
        for name in LASTING:
            with pytest.raises(ValueError, match="lasts"):
                device.faults.strike(name)
        for name in STRIKES:
            with pytest.raises(ValueError, match="happens once"):
                device.faults.begin(name)


def test_without_a_driver_nothing_can_be_struck() -> None:
    device = NetDevice()
    try:
        assert [device.faults.strike(name) for name in STRIKES] == [0, 0, 0, 0]
    finally:
        device.close()
