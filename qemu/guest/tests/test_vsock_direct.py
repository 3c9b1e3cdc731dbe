"""Streams of the host forwarded to a guest without a byte passing through Python: right under every shortage."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qemu.guest.bench.rig_vsock import Peer, Stream
from stack import Network
from stack.services.vsock_gateway import VsockGateway
from stack.vsock.guest import GuestPort
from vhost_user import Server, VsockDevice
from vhost_user.driver import VsockDriver
from vhost_user.driver.vsock import OP_CREDIT_UPDATE, OP_RESPONSE, OP_RST, OP_RW, OP_SHUTDOWN

PORT = 700
HEADER = 44  # bytes


class Reader(Peer):
    """A guest that keeps what it receives."""

    def __init__(self, driver: VsockDriver) -> None:
        super().__init__(driver, PORT)
        self.data: dict[int, bytearray] = {}

    def hear(self, timeout: float) -> int:
        return self.take(256, timeout)

    def take(self, limit: int, timeout: float) -> int:
        """Up to `limit` packets: kept, and credit given back for them."""
        packets = self.driver.recv(limit, timeout=timeout)
        for packet in packets:
            stream = self.streams[packet.dst_port]
            if packet.op == OP_RW:
                self.data.setdefault(packet.dst_port, bytearray()).extend(packet.payload)
                stream.received += len(packet.payload)
                self.say([self.packet(stream, OP_CREDIT_UPDATE)])
            elif packet.op == OP_RESPONSE:
                stream.connected = True
            elif packet.op == OP_RST or (packet.op == OP_SHUTDOWN and packet.flags & 2):  # will not send any more
                stream.ended = True
        return len(packets)


@contextmanager
def world(
    place: Path, *, rx_size: int = 128, rx_buffer: int = 4096, directly: bool = True
) -> Iterator[tuple[Reader, GuestPort]]:
    with Network() as network, Server() as server:
        network.start()
        stack = network.stack("gw")
        device = VsockDevice(3)
        if not directly:
            device.receive_from = None  # type: ignore[assignment,method-assign] # a transport need not have it
        stack.add_vsock(device)
        server.listen(device, path=place / "vsock")
        port = stack.vsock.guests[3]
        with network.lock:
            gateway = VsockGateway(port, uds_path=str(place / "uds"))
            network.attach_locked(gateway.hosts)
            network.finish()
        try:
            with VsockDriver(str(place / "vsock"), rx_size=rx_size, rx_buffer=rx_buffer) as driver:
                yield Reader(driver), port
        finally:
            with network.lock:
                network.detach_locked(gateway.hosts)
                gateway.close()


def feed(listener: socket.socket, size: int, digests: list[str]) -> None:
    """Serve one stream: `size` bytes, whose digest is kept, then the end."""
    sock, _ = listener.accept()
    with sock:
        block = bytes(number * 31 & 0xFF for number in range(77_777))
        digest = hashlib.blake2s()
        while size:
            piece = block[: min(size, len(block))]
            sock.sendall(piece)
            digest.update(piece)
            size -= len(piece)
        digests.append(digest.hexdigest())


def pour(sock: socket.socket) -> None:
    """As much as goes, until the guest resets the stream."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        sock.sendall(bytes(8 << 20))


#: (descriptors, bytes of a buffer, bytes of a stream): down to a ring that holds two bytes altogether.
RINGS = [(128, 4096, 700_000), (4, 1000, 700_000), (2, 144, 30_000), (1, HEADER + 7, 3000), (2, HEADER + 1, 400),
         (64, 65580, 700_000)]  # fmt: skip


@pytest.mark.parametrize("directly", [True, False])
@pytest.mark.parametrize(("rx_size", "rx_buffer", "size"), RINGS)
@pytest.mark.parametrize("streams", [1, 5])
def test_all_of_it_arrives_in_order(
    tmp_path: Path, rx_size: int, rx_buffer: int, size: int, streams: int, directly: bool
) -> None:
    """From the host's socket straight into the ring, or through the stream's queue as what a program sends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / f"uds_{PORT}"))
        listener.listen()
        digests: list[str] = []
        with world(tmp_path, rx_size=rx_size, rx_buffer=rx_buffer, directly=directly) as (guest, port):
            threads = [threading.Thread(target=feed, args=(listener, size, digests)) for _ in range(streams)]
            for thread in threads:
                thread.start()
            opened: list[Stream] = [guest.open() for _ in range(streams)]
            while not all(stream.ended for stream in opened):
                assert guest.take(3, 5.0), "nothing comes any more"
            for thread in threads:
                thread.join()
            got = sorted(hashlib.blake2s(guest.data[stream.port]).hexdigest() for stream in opened)
            assert got == sorted(digests)
            assert not any(name.startswith("violation") for name in port.drops)


def test_a_stream_that_is_over_before_the_guest_looks_was_accepted(tmp_path: Path) -> None:
    """Acceptance, bytes and end in one look at the ring: the stream is open, and what it brought is there."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / f"uds_{PORT}"))
        listener.listen()
        digests: list[str] = []
        with world(tmp_path) as (guest, _):
            early = guest.hear

            def late(timeout: float) -> int:
                """Only when the host has nothing more to say of the stream."""
                feed(listener, 1000, digests)
                assert any(guest.driver.rx.wait(5.0, after=3) for _ in range(10))  # a call may come early
                return early(timeout)

            guest.hear = late  # type: ignore[method-assign]  # an instance's own
            stream = guest.open()
            assert stream.connected
            assert stream.ended
            assert hashlib.blake2s(guest.data[stream.port]).hexdigest() == digests[0]


def test_a_guest_that_gives_no_credit_is_not_sent_to(tmp_path: Path) -> None:
    """Exactly what was granted, though the program has more and the ring has room."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / f"uds_{PORT}"))
        listener.listen()
        with world(tmp_path, rx_size=1024) as (guest, _):
            stream = guest.open()
            sock, _ = listener.accept()
            with sock:
                thread = threading.Thread(target=pour, args=(sock,))
                thread.start()
                got = 0
                while got < 1 << 20:  # the driver's buffer
                    packets = guest.driver.recv(256, timeout=5.0)
                    assert packets
                    got += sum(len(packet.payload) for packet in packets if packet.op == OP_RW)
                more = guest.driver.recv(256, timeout=0.1)
                assert got == 1 << 20
                assert all(packet.op != OP_RW for packet in more)
                stream.received = got
                guest.say([guest.packet(stream, OP_CREDIT_UPDATE)])
                while got < 2 << 20:
                    packets = guest.driver.recv(256, timeout=5.0)
                    assert packets
                    got += sum(len(packet.payload) for packet in packets if packet.op == OP_RW)
                guest.say([guest.packet(stream, OP_RST)])
                thread.join(5)
                assert not thread.is_alive()
