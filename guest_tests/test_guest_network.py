"""The guest's kernel and this process's stack understand each other: DHCP, ping, TCP, UDP, HTTP, both ways."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qemu.guest import Guest

MIB = 1 << 20


@contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_guest_took_a_lease_and_a_default_route(guest: Guest) -> None:
    assert guest.address == "10.0.2.15"
    routes = guest.run("ip route", check=True).stdout
    assert f"default via {guest.gateway} dev eth0" in routes


def test_the_guest_sees_the_offloads_that_were_offered(guest: Guest) -> None:
    # /sys/.../features: one character a bit, in the order of the feature bits (virtio_net: CSUM 0 ... HOST_TSO6 12)
    bits = guest.run("cat /sys/class/net/eth0/device/features", check=True).stdout.strip()
    for bit in (0, 1, 7, 8, 9, 11, 12, 13, 15, 28, 29, 32):
        assert bits[bit] == "1", f"feature bit {bit} is missing in {bits}"


@pytest.mark.parametrize("size", [0, 56, 1472, 4000])  # 1472 fills an MTU of 1500, 4000 is fragmented both ways
def test_the_guest_pings_its_gateway(size: int, guest: Guest) -> None:
    out = guest.run(["ping", "-c", "3", "-i", "0.05", "-s", str(size), guest.gateway], check=True).stdout
    assert "3 packets transmitted, 3 packets received" in out


def test_a_datagram_of_the_guest_is_answered(guest: Guest) -> None:
    sockets = guest.stack.socket
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind((guest.gateway, 69))
        transfer = guest.spawn(["tftp", "-g", "-l", "-", "-r", "some/file", guest.gateway])
        request, client = sock.recvfrom(600)
        assert client[0] == guest.address
        assert request.startswith(b"\0\1some/file\0octet\0")  # RFC 1350: a read request
        sock.sendto(b"\0\3\0\1what is in it\n", client)  # the first block, and as it is short the last
        acknowledgement, _ = sock.recvfrom(600)
        assert acknowledgement == b"\0\4\0\1"
        assert transfer.communicate(timeout=10).stdout == "what is in it\n"


def test_the_gateway_hears_of_the_guests_closed_udp_ports(guest: Guest) -> None:
    sockets = guest.stack.socket
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((guest.address, 9))
        sock.send(b"nobody is there")
        with pytest.raises(ConnectionRefusedError):  # the guest's ICMP port unreachable
            sock.recv(100)


def test_a_closed_port_refuses_a_connection_at_once_both_ways(guest: Guest) -> None:
    with pytest.raises(ConnectionRefusedError):
        guest.stack.socket.create_connection((guest.address, 9), timeout=5)
    refused = guest.run(["nc", guest.gateway, "9"], timeout=5)
    assert not refused.succeeded
    assert "refused" in refused.stderr


def test_an_http_server_of_the_standard_library_serves_the_guest(guest: Guest) -> None:
    seen: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.client_address[0]))
            body = b"served from Python\n" * 1000
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with (
        guest.stack.installed(),
        running(http.server.ThreadingHTTPServer((guest.gateway, 8080), Handler)),
    ):
        out = guest.run(["wget", "-q", "-O", "-", f"http://{guest.gateway}:8080/some/path"], check=True).stdout
    assert out == "served from Python\n" * 1000
    assert seen == [("/some/path", guest.address)]


@pytest.fixture(scope="module")
def httpd(guest: Guest) -> Iterator[str]:
    """busybox httpd in the guest; the digest of /file, 4 MiB of noise."""
    guest.run(f"mkdir -p /www && head -c {4 * MIB} /dev/urandom > /www/file", check=True)
    digest = guest.run("sha256sum /www/file", check=True).stdout.split()[0]
    server = guest.spawn(["httpd", "-f", "-p", "80", "-h", "/www"])
    guest.run("until nc 127.0.0.1 80 < /dev/null; do sleep 0.02; done", check=True)
    yield digest
    server.kill()


def test_http_client_downloads_from_the_guest(guest: Guest, httpd: str) -> None:
    with guest.stack.installed():
        connection = http.client.HTTPConnection(guest.address, 80, timeout=20)
        connection.request("GET", "/file")
        body = connection.getresponse().read()
        connection.close()
    assert hashlib.sha256(body).hexdigest() == httpd


def test_urllib_downloads_from_the_guest(guest: Guest, httpd: str) -> None:
    with guest.stack.installed(), urllib.request.urlopen(f"http://{guest.address}/file", timeout=20) as answer:
        assert hashlib.sha256(answer.read()).hexdigest() == httpd


def test_many_connections_at_once_do_not_mix_up_their_bytes(guest: Guest, httpd: str) -> None:
    digests: list[str] = []

    def download() -> None:
        with guest.stack.socket.create_connection((guest.address, 80), timeout=30) as sock:
            sock.sendall(b"GET /file HTTP/1.0\r\n\r\n")
            data = bytearray()
            while piece := sock.recv(1 << 16):
                data += piece
        digests.append(hashlib.sha256(bytes(data).partition(b"\r\n\r\n")[2]).hexdigest())

    threads = [threading.Thread(target=download) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert digests == [httpd] * 8


def test_bulk_out_of_the_guest_arrives_intact(guest: Guest) -> None:
    sockets = guest.stack.socket
    with sockets.create_server((guest.gateway, 5001)) as listener:
        listener.settimeout(20)
        command = guest.spawn(f"head -c {32 * MIB} /dev/urandom | tee /tmp/sent | nc {guest.gateway} 5001")
        connection, _ = listener.accept()
        digest, size = hashlib.sha256(), 0
        with connection:
            connection.settimeout(20)
            while piece := connection.recv(1 << 18):
                digest.update(piece)
                size += len(piece)
        command.kill()
    assert size == 32 * MIB
    assert guest.run("sha256sum /tmp/sent && rm /tmp/sent", check=True).stdout.split()[0] == digest.hexdigest()


def test_bulk_into_the_guest_arrives_intact(guest: Guest) -> None:
    data = hashlib.shake_256(b"bulk").digest(8 * MIB)
    receiver = guest.spawn("nc -l -p 5002 | sha256sum")
    guest.run("until grep -q ':138A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done", check=True)
    with guest.stack.socket.create_connection((guest.address, 5002), timeout=20) as sock:
        sock.sendall(data)
    result = receiver.communicate(timeout=30)
    assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_half_a_connection_closed_still_carries_the_other_half(guest: Guest) -> None:
    server = guest.spawn("nc -l -p 5003 -e sh -c 'cat > /tmp/half; wc -c < /tmp/half'")
    try:
        guest.run("until grep -q ':138B ' /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done", check=True)
        with guest.stack.socket.create_connection((guest.address, 5003), timeout=10) as sock:
            sock.sendall(b"x" * 100_000)
            sock.shutdown(guest.stack.socket.SHUT_WR)
            assert sock.recv(100).strip() == b"100000"
            assert sock.recv(100) == b""
    finally:
        server.kill()
