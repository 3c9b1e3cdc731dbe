"""vsock beyond one stream: messages, other guests, and a guest that is paused or whose driver starts anew."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qemu.guest import Guest
from stack import Network

MIB = 1 << 20
ANY = 0xFFFFFFFF


def listening(guest: Guest, port: int, kind: int = socket.SOCK_SEQPACKET) -> Any:
    made = guest.stack.socket.socket(socket.AF_VSOCK, kind)
    made.settimeout(20)
    made.bind((ANY, port))
    made.listen(4)
    return made


def until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_a_linux_guest_takes_seqpacket(guest: Guest) -> None:
    """VS-15: QEMU 7.2 passes bit 1 on, and Linux acknowledges it; streams are implied."""
    assert guest.vsock.device.seqpacket
    assert guest.vsock.device.stream


@pytest.mark.parametrize("size", [1, 64, 4096, 65536, 200_000])
def test_messages_keep_their_boundaries_both_ways(size: int, guest: Guest) -> None:
    with listening(guest, 6100) as listener:
        load = guest.load("rr", "2", 6100, family="seqpacket", count=3, size=size, response=size)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            for _ in range(3):
                message = connection.recv(2 * size)
                assert len(message) == size
                connection.send(message)
    assert load.result(timeout=30)["count"] == 3


def test_many_messages_to_the_guest_and_back(guest: Guest) -> None:
    """The guest's kernel answers each message; a lost boundary would stop it for ever."""
    load = guest.load("echo", "listen", 6101, family="seqpacket", count=1, size=3000, response=5000)
    load.wait_listening()
    with guest.stack.socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET) as made:
        made.settimeout(20)
        made.connect((guest.vsock.cid, 6101))
        for _ in range(20):
            for _ in range(8):
                made.send(bytes(3000), socket.MSG_EOR)
            for _ in range(8):
                assert len(made.recv(10_000)) == 5000


def test_bulk_in_messages_arrives_whole(guest: Guest) -> None:
    total = 8 * MIB
    with listening(guest, 6102) as listener:
        load = guest.load("send", "2", 6102, family="seqpacket", bytes=total)
        connection, _ = listener.accept()
        sizes = []
        with connection:
            connection.settimeout(20)
            while message := connection.recv(1 << 18):
                sizes.append(len(message))
        assert load.result(timeout=30)["bytes"] == total
        assert sizes == [131072] * (total // 131072)
        load = guest.load("recv", "2", 6102, family="seqpacket", size=262144)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            for _ in range(total // 200_000):
                connection.send(bytes(200_000))
        assert load.result(timeout=30)["bytes"] == total // 200_000 * 200_000


def test_types_do_not_mix(guest: Guest) -> None:
    with listening(guest, 6103):
        complaint = guest.run(["@load", "send", "vsock", "2", "6103", "bytes=1"], timeout=10)
        assert "reset" in complaint.stderr.lower()


@pytest.mark.parametrize("direction", ["to the host", "to the guest"])
def test_a_pause_in_the_middle_of_a_transfer_loses_nothing(direction: str, guest: Guest) -> None:
    """QMP stop and cont look like a reset until the rings start again: where they start tells."""
    total, device = 8 * MIB, guest.vsock.device
    generation = device.generation
    with listening(guest, 6104, socket.SOCK_STREAM) as listener:
        if direction == "to the host":
            load = guest.load("send", "2", 6104, family="vsock", bytes=total)
        else:
            load = guest.load("recv", "2", 6104, family="vsock")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            done = 0
            for paused_at in (MIB, 4 * MIB, total):
                while done < paused_at:
                    if direction == "to the host":
                        piece = connection.recv(1 << 16)
                        assert piece
                        done += len(piece)
                    else:
                        connection.sendall(bytes(1 << 16))
                        done += 1 << 16
                guest.qmp.execute("stop")
                until(lambda: not device.carrier)
                guest.qmp.execute("cont")
                until(lambda: device.carrier)
            if direction == "to the host":
                assert connection.recv(1) == b""
        assert load.result(timeout=30)["bytes"] == done
    assert device.generation == generation


def rebind(guest: Guest) -> None:
    """The guest's driver lets go of its device and takes it again."""
    driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
    script = f"d=$(basename {driver}/virtio*); echo $d > {driver}/unbind; echo $d > {driver}/bind"
    assert guest.run(["sh", "-c", script], timeout=20).succeeded


def test_a_driver_that_starts_anew_ends_connections_and_keeps_listeners() -> None:
    """VS-14, by the rings: QEMU cannot be asked to send TRANSPORT_RESET."""
    with Guest(net=False) as guest, listening(guest, 6105, socket.SOCK_STREAM) as listener:
        guest.load("recv", "2", 6105, family="vsock")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.sendall(b"remembered")
            generation = guest.vsock.device.generation
            rebind(guest)
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
            until(lambda: guest.vsock.device.generation == generation + 1)
        load = guest.load("send", "2", 6105, family="vsock", bytes=5)
        again, _ = listener.accept()
        with again:
            again.settimeout(20)
            assert (len(again.recv(100)), again.recv(100)) == (5, b"")
        load.result(timeout=20)


def test_another_cid_is_taken_when_the_driver_binds_again() -> None:
    with Guest(net=False, cid=50) as guest, listening(guest, 6106, socket.SOCK_STREAM) as listener:
        assert guest.vsock.device.set_guest_cid(51), "QEMU gave us a channel and was told"
        assert guest.vsock.cid == 50
        rebind(guest)
        until(lambda: guest.vsock.cid == 51)
        load = guest.load("send", "2", 6106, family="vsock", bytes=5)
        connection, peer = listener.accept()
        with connection:
            assert peer[0] == 51
            connection.settimeout(20)
            assert (len(connection.recv(100)), connection.recv(100)) == (5, b"")
        load.result(timeout=20)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Guest, Guest]]:
    """Two guests of one group, on one stack."""
    with Network() as network:
        host = network.stack("host")
        common: dict[str, Any] = {"stack": host, "net": False, "vsock_groups": ("friends",)}
        with Guest(cid=40, **common) as one, Guest(cid=41, **common) as two:
            yield one, two


@pytest.mark.parametrize("family", ["vsock", "seqpacket"])
def test_two_guests_of_a_group_talk_to_each_other(family: str, pair: tuple[Guest, Guest]) -> None:
    one, two = pair
    server = two.load("echo", "listen", 7000, family=family, count=1, size=1000, response=1000)
    server.wait_listening()
    client = one.load("rr", "41", 7000, family=family, count=50, size=1000, response=1000)
    assert client.result(timeout=30)["count"] == 50
    assert server.result(timeout=30)["connections"] == 1


def test_bulk_between_two_guests_in_both_directions_at_once(pair: tuple[Guest, Guest]) -> None:
    """vhost-device-vsock 384: both send and neither waits for the other."""
    total = 8 * MIB
    receivers, senders = [], []
    for here, port in ((pair[0], 7100), (pair[1], 7101)):
        load = here.load("recv", "listen", port, family="vsock")
        load.wait_listening()
        receivers.append(load)
    for here, there, port in ((pair[0], 41, 7101), (pair[1], 40, 7100)):
        senders.append(here.load("send", str(there), port, family="vsock", bytes=total))
    for load in (*receivers, *senders):
        assert load.result(timeout=60)["bytes"] == total


def test_a_sibling_without_a_listener_refuses_at_once(pair: tuple[Guest, Guest]) -> None:
    complaint = pair[0].run(["@load", "send", "vsock", "41", "7999", "bytes=1"], timeout=10)
    assert "reset" in complaint.stderr.lower()
