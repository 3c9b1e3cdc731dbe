"""vsock streams between the guest and this process, without any help of the host's kernel."""

from __future__ import annotations

import hashlib
import os

import pytest

from qemu.guest import Guest

MIB = 1 << 20


def test_the_guest_learned_its_cid_from_us(guest: Guest) -> None:
    assert guest.vsock.cid >= 3
    # IOCTL_VM_SOCKETS_GET_LOCAL_CID has no tool in busybox; a connection carries the CID as well.
    with guest.vsock.listen(6000) as listener:
        load = guest.load("send", "2", 6000, family="vsock", bytes=1)
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(5)
            assert peer[0] == guest.vsock.cid
            assert len(connection.recv(10)) == 1
            assert connection.recv(10) == b""
    load.result(timeout=10)


def test_the_host_connects_to_the_guest_and_gets_its_bytes_back(guest: Guest) -> None:
    load = guest.load("echo", "listen", 6001, family="vsock", count=1, size=1024, response=1024)
    load.wait_listening()
    with guest.vsock.connect(6001) as connection:
        for _ in range(20):
            message = os.urandom(1024)
            connection.sendall(message)
            answer = b""
            while len(answer) < len(message):
                answer += connection.recv(2048)
            assert hashlib.sha256(answer).digest() == hashlib.sha256(message).digest()


@pytest.mark.parametrize("size", [1, 64, 4096, 65536, 200_000])
def test_request_and_response_of_any_size(size: int, guest: Guest) -> None:
    with guest.vsock.listen(6002) as listener:
        load = guest.load("rr", "2", 6002, family="vsock", count=5, size=size, response=size)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            for _ in range(5):
                got = bytearray()
                while len(got) < size:
                    piece = connection.recv(size - len(got))
                    assert piece
                    got += piece
                connection.sendall(got)
    assert load.result(timeout=20)["count"] == 5


def test_bulk_both_ways_stays_within_the_credit_and_arrives_whole(guest: Guest) -> None:
    total = 16 * MIB
    with guest.vsock.listen(6003) as listener:
        load = guest.load("send", "2", 6003, family="vsock", bytes=total)
        connection, _ = listener.accept()
        received = 0
        with connection:
            connection.settimeout(20)
            while piece := connection.recv(1 << 18):
                received += len(piece)
        assert load.result(timeout=20)["bytes"] == received == total
        load = guest.load("recv", "2", 6003, family="vsock")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.sendall(bytes(total))
        assert load.result(timeout=30)["bytes"] == total


def test_a_port_nobody_listens_on_is_refused_at_once_both_ways(guest: Guest) -> None:
    with pytest.raises(ConnectionResetError):  # as Linux answers it (row VS-05)
        guest.vsock.connect(6999, timeout=5)
    complaint = guest.run(["@load", "send", "vsock", "2", "6999", "bytes=1"], timeout=10)
    assert not complaint.succeeded
    assert "reset" in complaint.stderr.lower()
