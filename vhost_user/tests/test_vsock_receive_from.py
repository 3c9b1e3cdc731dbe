"""Bytes from a socket of the host straight into the guest's buffers (`VsockDevice.receive_from`)."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from vhost_user.driver import GuestMemory
from vhost_user.driver.vsock import ALL_FEATURES, OP_RW
from vhost_user.features import VsockFeature
from vhost_user.vsock import VsockTx

from .device_rig import CID, vsock_rig

HEADER: VsockTx = (2, CID, 2000, 1000, 1, OP_RW, 0, 65536, 77, b"")
SHAPES: dict[str, dict[str, Any]] = {
    "header and data in one descriptor": {},
    "header apart": {"rx_pieces": (44,), "rx_buffer": 44 + 4096},
    "header in crumbs": {"rx_pieces": (1, 7, 20, 10, 3)},
    "no indirect": {"features": ALL_FEATURES & ~VsockFeature.INDIRECT_DESC},
    "whole packets": {"rx_buffer": 65536 + 44},
    "memory with holes": {"memory": [(0, 0xA0000), (1 << 20, 31 << 20), (1 << 32, 32 << 20)]},
}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_socket_has_arrives_as_packets(shape: str, ends: tuple[socket.socket, socket.socket]) -> None:
    """virtio 1.3 section 5.10.6: every buffer begins with the header, whose `len` is what that buffer holds."""
    arguments = dict(SHAPES[shape])
    if "memory" in arguments:
        arguments["memory"] = GuestMemory(arguments["memory"])
    ours, theirs = ends
    data = bytes(number * 13 & 0xFF for number in range(100_000))
    with vsock_rig(**arguments) as (device, guest):
        theirs.sendall(data)
        got = b""
        while len(got) < len(data):
            moved = device.receive_from(HEADER, ours.fileno(), 70_000)
            assert moved is not None
            packets = guest.recv(256)
            assert sum(len(packet.payload) for packet in packets) == moved
            for packet in packets:
                assert (*packet[:5], packet.buf_alloc, packet.fwd_cnt) == (2, CID, 2000, 1000, OP_RW, 65536, 77)
                got += bytes(packet.payload)
        assert got == data
        with pytest.raises(BlockingIOError):
            device.receive_from(HEADER, ours.fileno(), 70_000)
        assert guest.recv() == []
        theirs.close()
        assert device.receive_from(HEADER, ours.fileno(), 70_000) == 0
        assert guest.recv() == []
        assert device.drops == {}


def test_no_more_than_asked_for_is_taken_from_the_socket(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    with vsock_rig() as (device, guest):
        theirs.sendall(b"0123456789")
        assert device.receive_from(HEADER, ours.fileno(), 4) == 4
        assert [bytes(packet.payload) for packet in guest.recv()] == [b"0123"]
        assert ours.recv(100) == b"456789"


def test_without_buffers_nothing_is_taken_and_their_return_is_noticed(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    with vsock_rig(rx_size=2, rx_buffer=144) as (device, guest):
        for _ in range(5):
            device.receive(8)
            if not device.arm():
                break
        theirs.sendall(bytes(1000))
        assert device.receive_from(HEADER, ours.fileno(), 1000) == 200
        assert device.receive_from(HEADER, ours.fileno(), 1000) is None
        assert not bool(device.roomy)
        assert not device.arm()
        assert not select.select([device.fileno()], [], [], 0)[0]
        assert len(guest.recv(1)) == 1
        assert bool(device.roomy)
        assert select.select([device.fileno()], [], [], 0)[0]
        assert device.arm()
        assert device.receive_from(HEADER, ours.fileno(), 1000) == 100
        assert device.roomy
        assert device.receive_from(HEADER, ours.fileno(), 1000) is None
        assert len(guest.recv()) == 2
        assert device.arm()  # they came back before anybody asked to be told
        assert len(ours.recv(1000)) == 700


def test_room_that_nobody_wants_any_more_keeps_nobody_busy(ends: tuple[socket.socket, socket.socket]) -> None:
    """Whoever waited for it may be gone, reset by the guest for instance."""
    ours, theirs = ends
    with vsock_rig(rx_size=2, rx_buffer=144) as (device, guest):
        theirs.sendall(bytes(1000))
        while device.receive_from(HEADER, ours.fileno(), 1000) is not None:
            pass
        assert len(guest.recv()) == 2
        assert any(device.arm() for _ in range(10))
        assert not all(device.arm() for _ in range(10))


def test_a_socket_that_failed_is_told_and_the_ring_lives() -> None:
    with vsock_rig() as (device, guest), socket.socket() as stranger:
        with pytest.raises(OSError, match="ENOTCONN"):
            device.receive_from(HEADER, stranger.fileno(), 10)
        with pytest.raises(OSError, match="ENOTSOCK"):
            device.receive_from(HEADER, device.fileno(), 10)
        assert device.transmit([(*HEADER[:-1], b"hello")]) == 1
        assert [bytes(packet.payload) for packet in guest.recv()] == [b"hello"]


def test_without_a_driver_nothing_is_taken(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    with vsock_rig() as (device, guest):
        theirs.sendall(b"x")
        guest.close()
        while device.carrier:
            if not device.arm():
                assert select.select([device.fileno()], [], [], 10)[0]
            device.receive(8)
        assert device.receive_from(HEADER, ours.fileno(), 10) is None
        assert not device.roomy
        assert ours.recv(10) == b"x"
