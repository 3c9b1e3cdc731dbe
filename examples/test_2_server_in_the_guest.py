"""A server in the guest, reached from the test: through sockets of its own, or by any other program."""

import urllib.request

from qemu.guest import Guest


def test_a_web_server(guest: Guest) -> None:
    guest.write("/www/index.html", "hello from the guest")
    guest.spawn("httpd -f -p 80 -h /www", ready=guest.listening(80))

    with guest.connect(80, timeout=10) as connection:  # a socket of the gateway's: no port of this machine is used
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"hello from the guest" in connection.makefile("rb").read()

    with guest.forward(80) as (host, port):  # for what knows nothing of us
        assert urllib.request.urlopen(f"http://{host}:{port}/", timeout=10).read() == b"hello from the guest"
