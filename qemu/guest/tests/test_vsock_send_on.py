"""Streams of a guest forwarded to the host without a byte passing through Python: right whatever the socket takes."""

from __future__ import annotations

import errno
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from qemu.guest.bench.rig_vsock import Peer
from stack import Network
from stack.services import vsock_pump
from stack.services.vsock_gateway import VsockGateway
from stack.vsock.guest import GuestPort
from vhost_user import Server, VsockDevice
from vhost_user.driver import VsockDriver
from vhost_user.driver.vsock import OP_CREDIT_UPDATE, OP_RST, OP_RW, OP_SHUTDOWN

PORT = 700


@contextmanager
def world(place: Path, **options: Any) -> Iterator[tuple[Peer, GuestPort, VsockDevice]]:
    with Network() as network, Server() as server:
        stack = network.stack("gw")
        device = VsockDevice(3)
        stack.add_vsock(device)
        server.listen(device, path=place / "vsock")
        port = stack.vsock.guests[3]
        with network.lock:
            gateway = VsockGateway(port, uds_path=str(place / "uds"))
            network.attach_locked(gateway.hosts)
            network.finish()
        try:
            with VsockDriver(str(place / "vsock"), **options) as driver:
                yield Peer(driver, PORT), port, device
        finally:
            with network.lock:
                network.detach_locked(gateway.hosts)
                gateway.close()


@contextmanager
def listening(place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / f"uds_{PORT}"))
        listener.listen()
        listener.settimeout(20)
        yield listener


def watched(device: VsockDevice) -> list[int]:
    """Bytes that went straight, call by call."""
    moved: list[int] = []
    send_on = device.send_on

    def counted(fd: int, limit: int, enough: int) -> tuple[int, int, bytes, int, int]:
        answer = send_on(fd, limit, enough)
        moved.append(answer[1])
        return answer

    device.send_on = counted  # type: ignore[method-assign]
    return moved


def take(listener: socket.socket, pieces: Callable[[], int], taken: dict[bytes, bytes]) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(20)
        data = bytearray()
        while some := sock.recv(pieces()):
            data += some
        taken[bytes(data[:4])] = bytes(data)


SHAPES: dict[str, dict[str, Any]] = {
    "header apart": {"tx_pieces": (44,)},
    "header in crumbs": {"tx_pieces": (1, 7, 20, 10, 3)},
    "one descriptor": {"tx_pieces": ()},
    "tiny ring": {"tx_size": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize("room", [1, 512 << 10])
def test_every_byte_arrives_once_and_in_order_however_little_the_socket_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, streams: int, room: int
) -> None:
    """`room` 1 is the least a Unix socket can hold, two packets of a kilobyte or so: most packets leave in part."""
    monkeypatch.setattr(vsock_pump, "SOCKET_BUFFER", room)
    rng = random.Random(streams)
    contents = [bytes([0, 0, 0, number]) + rng.randbytes(600_000) for number in range(streams)]
    taken: dict[bytes, bytes] = {}
    with listening(tmp_path) as listener, world(tmp_path, **SHAPES[shape]) as (guest, port, device):
        moved = watched(device)
        sizes = [1, 100, 4096, 30_000, 65_536, 1 << 20]
        readers = [
            threading.Thread(target=take, args=(listener, lambda: rng.choice(sizes), taken)) for _ in range(streams)
        ]
        for reader in readers:
            reader.start()
        left = {guest.open(): content for content in contents}
        while left:
            packets = []
            for stream, content in list(left.items()):
                size = min(stream.allowed - stream.sent, rng.choice([1, 700, 20_000, 65_536]))
                if size > 0:
                    packets.append(guest.packet(stream, OP_RW, content[:size]))
                    stream.sent += min(size, len(content))
                    left[stream] = content[size:]
                    if not left[stream]:
                        packets.append(guest.packet(stream, OP_SHUTDOWN, flags=2))
                        del left[stream]
            if packets:
                guest.say(packets)
            guest.hear(0.0 if packets else 5.0)
        for reader in readers:
            reader.join(20)
        for content in contents:
            got = taken.get(content[:4], b"")
            assert len(got) == len(content)
            at = next((i for i, (a, b) in enumerate(zip(got, content, strict=True)) if a != b), None)
            assert at is None, f"differs from byte {at}"
        if room > 1:  # how often a socket that holds two packets is found with room is luck
            assert sum(moved) > 1000, "some of it went straight"
        assert dict(port.drops) == {}


def settled(condition: Callable[[], object], guest: Peer) -> None:
    for _ in range(200):
        if condition():
            return
        guest.hear(0.02)
    raise AssertionError("it does not happen")


def test_a_guest_that_sends_more_than_it_was_granted_is_reset_though_it_goes_straight(tmp_path: Path) -> None:
    """Reference 4.4: over-sending is a violation whoever takes the bytes; what was granted arrives."""
    with listening(tmp_path) as listener, world(tmp_path) as (guest, port, _):
        stream = guest.open()
        sock, _ = listener.accept()
        with sock:
            for _ in range(64):  # four megabytes; nobody reads
                guest.say([guest.packet(stream, OP_RW, bytes(65_536))])
            settled(lambda: stream.ended, guest)
            assert dict(port.drops)["violation: it sent more than it was granted"] == 1
            sock.settimeout(5)
            size = 0
            while some := sock.recv(1 << 20):
                size += len(some)
            assert 0 < size <= 4 << 20


def test_a_count_that_cannot_be_true_is_seen_in_packets_that_go_straight(tmp_path: Path) -> None:
    with listening(tmp_path) as listener, world(tmp_path) as (guest, port, device):
        moved = watched(device)
        stream = guest.open()
        sock, _ = listener.accept()
        with sock:
            guest.say([guest.packet(stream, OP_RW, b"fine")])
            sock.settimeout(5)
            assert sock.recv(100) == b"fine"
            settled(lambda: port.sinks, guest)
            stream.received = 1000  # it was sent nothing
            guest.say([guest.packet(stream, OP_RW, b"lie")])
            settled(lambda: stream.ended, guest)
            assert moved
            assert dict(port.drops) == {"violation: it claims to have consumed more than was sent": 1}


def test_a_program_that_hangs_up_is_told_to_the_guest_and_its_number_is_nobodys(tmp_path: Path) -> None:
    """The descriptor of a closed socket may be another's a moment later: nothing must go there."""
    with listening(tmp_path) as listener, world(tmp_path) as (guest, port, _):
        stream = guest.open()
        sock, _ = listener.accept()
        guest.say([guest.packet(stream, OP_RW, b"x")])
        sock.settimeout(5)
        assert sock.recv(10) == b"x"
        sock.close()
        for _ in range(50):
            if not stream.ended:
                guest.say([guest.packet(stream, OP_RW, bytes(1000))])
            guest.hear(0.02)
        settled(lambda: stream.ended, guest)
        assert not port.sinks
        again = guest.open()
        other, _ = listener.accept()
        with other:
            other.settimeout(5)
            guest.say([guest.packet(stream, OP_RW, b"stray"), guest.packet(again, OP_RW, b"mine")])
            assert other.recv(100) == b"mine"


def test_a_pause_in_the_middle_neither_loses_nor_repeats_what_goes_straight(tmp_path: Path) -> None:
    """Rings that stop and go on where they were, as QMP `stop` and `cont` have it; the program is slow meanwhile."""
    data = random.Random(1).randbytes(400_000)
    with listening(tmp_path) as listener, world(tmp_path, tx_pieces=()) as (guest, port, device):
        moved = watched(device)
        stream = guest.open()
        sock, _ = listener.accept()
        got = bytearray()
        with sock:
            sock.setblocking(False)
            for at in range(0, len(data), 20_000):
                piece = data[at : at + 20_000]
                while stream.allowed - stream.sent < len(piece):
                    guest.hear(1)
                guest.say([guest.packet(stream, OP_RW, piece)])
                stream.sent += len(piece)
                if at == 0:
                    settled(lambda: port.sinks, guest)
                elif at == 20_000:
                    settled(lambda: sum(moved), guest)
                guest.driver.stop()
                with suppress(BlockingIOError):
                    got += sock.recv(5000)
                guest.driver.start()
            sock.settimeout(20)
            while len(got) < len(data):
                got += sock.recv(1 << 20)
        assert got == data
        assert sum(moved) > 0
        assert dict(port.drops) == {}


def test_a_driver_that_starts_anew_ends_what_goes_straight_and_its_number_is_nobodys(tmp_path: Path) -> None:
    """VS-14: the program sees the end; the same ports again are another stream, for another socket."""
    with listening(tmp_path) as listener, world(tmp_path) as (guest, port, device):
        moved = watched(device)
        stream = guest.open()
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(20)
            guest.say([guest.packet(stream, OP_RW, b"x")])
            assert sock.recv(10) == b"x"
            settled(lambda: port.sinks, guest)
            guest.say([guest.packet(stream, OP_RW, b"y")])
            assert sock.recv(10) == b"y"
            guest.driver.reset()
            guest.driver.start()
            again = guest.open()
            other, _ = listener.accept()
            assert sock.recv(10) == b""
            with other:
                other.settimeout(20)
                guest.say([guest.packet(stream, OP_RW, b"stray"), guest.packet(again, OP_RW, b"mine")])
                assert other.recv(100) == b"mine"
            assert set(port.sinks) <= set(port.connections.values())
            assert moved


def test_the_device_leaves_what_is_not_meant(tmp_path: Path) -> None:
    """`limit`, another stream, a socket that takes nothing: packets stay for `receive`, in order."""
    ours, theirs = socket.socketpair()
    device = VsockDevice(3)
    with Server() as server, ours, theirs:
        server.listen(device, path=tmp_path / "vsock")
        with VsockDriver(str(tmp_path / "vsock")) as driver:
            while not device.carrier:
                device.arm()
            driver.send([driver.packet(OP_RW, 1, 2, b"one", buf_alloc=77, fwd_cnt=5)])
            driver.send([driver.packet(OP_RW, 1, 2, b"two", buf_alloc=78, fwd_cnt=6)])
            driver.send([driver.packet(OP_RW, 9, 2, b"other"), driver.packet(OP_CREDIT_UPDATE, 1, 2)])
            assert device.next_data() == (3, 2, 1, 2, 1)
            assert device.send_on(ours.fileno(), 2, 1000)[0] == 0
            assert device.send_on(ours.fileno(), 100, 1000) == (2, 6, b"", 78, 6)
            assert theirs.recv(100) == b"onetwo"
            assert device.next_data() == (3, 2, 9, 2, 1)
            ours.setblocking(False)
            with suppress(BlockingIOError):
                while ours.send(bytes(4096)):
                    pass
            with pytest.raises(BlockingIOError):
                device.send_on(ours.fileno(), 100, 1000)
            theirs.close()
            with pytest.raises(OSError, match="EPIPE") as broken:
                device.send_on(ours.fileno(), 100, 1000)
            assert broken.value.errno == errno.EPIPE
            assert [bytes(packet[9]) for packet in device.receive(8)] == [b"other", b""]
            driver.send([driver.packet(OP_RST, 1, 2)])
            assert device.next_data() is None
            assert device.packets_in == 4
    device.close()


def echo(listener: socket.socket) -> None:
    sock, _ = listener.accept()
    with sock:
        while data := sock.recv(10_000):
            sock.sendall(data)


@pytest.mark.parametrize("rings", [(2, 144, 2), (1, 45, 1), (4, 1000, 4), (128, 4096, 128)])
def test_both_rings_full_in_both_directions_never_lock_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rings: tuple[int, int, int]
) -> None:
    """VS-12: a guest that only sends until it cannot, then only reads; its echo comes back whole."""
    monkeypatch.setattr(vsock_pump, "SOCKET_BUFFER", 1)
    rx_size, rx_buffer, tx_size = rings
    size = min(300_000, 1500 * rx_size * (rx_buffer - 44))
    data = random.Random(1).randbytes(size)
    with (
        listening(tmp_path) as listener,
        world(tmp_path, rx_size=rx_size, rx_buffer=rx_buffer, tx_size=tx_size, tx_pieces=()) as (guest, port, _),
    ):
        thread = threading.Thread(target=echo, args=(listener,))
        thread.start()
        stream = guest.open()
        got = bytearray()

        def said(op: int, payload: bytes = b"") -> bool:
            reported = stream.reported
            if guest.driver.send([guest.packet(stream, op, payload)]):
                return True
            stream.reported = reported  # the ring is full: nobody was told
            return False

        while len(got) < size:
            while stream.sent < size and (room := min(stream.allowed - stream.sent, 5000)) > 0:
                piece = data[stream.sent : stream.sent + room]
                if not said(OP_RW, piece):
                    break
                stream.sent += len(piece)
            for packet in guest.driver.recv(256, timeout=0.01):
                stream.allowed = stream.sent - (stream.sent - packet.fwd_cnt & 0xFFFFFFFF) + packet.buf_alloc
                if packet.op == OP_RW:
                    got += packet.payload
                    stream.received += len(packet.payload)
            if stream.received > stream.reported:
                said(OP_CREDIT_UPDATE)
        assert got == data
        guest.say([guest.packet(stream, OP_SHUTDOWN, flags=3)])
        thread.join(10)
        assert not thread.is_alive()
        assert dict(port.drops) == {}
