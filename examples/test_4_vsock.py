"""vsock both ways, without /dev/vhost-vsock: CID 2 is the test, the guest's CID is the guest."""

from qemu.guest import Guest


def test_the_guest_calls(guest: Guest) -> None:
    with guest.vsock.listen(9999) as listener:
        listener.settimeout(10)
        guest.spawn(["@pipe", "vsock", "2", "9999"])  # as socat would: busybox knows no vsock
        connection, (cid, _) = listener.accept()
        connection.close()
    assert cid == guest.vsock.cid


def test_the_guest_is_called(guest: Guest) -> None:
    assert guest.vsock.cid >= 3
    server = guest.spawn(["@pipe", "vsock", "listen", "7"], stdin=True)
    assert server.read_line(timeout=10) == '{"listening": true}'
    with guest.vsock.connect(7, timeout=10) as connection:
        connection.sendall(b"hello\n")
        assert server.read_line(timeout=10) == "hello"
