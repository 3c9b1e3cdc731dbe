"""Which interface a socket is bound to: SO_BINDTODEVICE of listeners and connections, link-local addresses (RFC 4007).

Measured on Linux with two pairs of veth; what needs no second interface runs there, too.
"""

from __future__ import annotations

import errno
import socket as kernel
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.link import cable
from stack.tests.kernel_twin import LOOPBACK, World, code

DEVICE, IFINDEX = kernel.SO_BINDTODEVICE, 62
FAMILIES = (kernel.SOCK_STREAM, kernel.SOCK_DGRAM)
OWN, PEER = "fe80::1", "fe80::2"
ONLY_HERE = {("gw", 0): ["fe80::a/64"]}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


class Links:
    """gw on two links, eth0 and eth1, whose other ends, left and right, have the same addresses; so has gw."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.gw = network.stack("gw")
        self.peers = [self._link(number, name) for number, name in enumerate(("left", "right"))]
        self.index = [self.gw.socket.if_nametoindex(name) for name in ("eth0", "eth1")]

    def _link(self, number: int, name: str) -> Stack:
        peer = self.network.stack(name)
        for stack, device, host in zip((self.gw, peer), cable(self.network.scheduler), (1, 2), strict=True):
            stack.add_interface(
                device,
                name=f"eth{number}" if stack is self.gw else "eth0",
                addresses=[f"10.0.{number}.{host}/24", f"fe80::{host}/64", *ONLY_HERE.get((stack.name, number), ())],
            )
        return peer

    def socket(self, stack: Stack, kind: int = kernel.SOCK_STREAM, family: int = kernel.AF_INET6) -> Any:
        sock = stack.socket.socket(family, kind)
        sock.settimeout(10)
        return sock


@pytest.fixture
def links() -> Iterator[Links]:
    from stack.testing.clock import ManualClock

    with Network(clock=ManualClock()) as network:
        made = Links(network)
        network.advance(5 * 10**9)
        yield made


def device(sock: Any) -> bytes:
    return bytes(sock.getsockopt(kernel.SOL_SOCKET, DEVICE, 16))


def test_opt_so_bindtodevice_of_a_listener_on_lo(world: World) -> None:
    """SO_BINDTODEVICE, SO_BINDTOIFINDEX: a listener bound to lo takes connections through it; they are bound, too."""
    lo = world.socket.if_nametoindex("lo")
    for option, value in ((DEVICE, b"lo"), (IFINDEX, lo)):
        with world.socket.socket() as listener, world.socket.socket() as client:
            listener.setsockopt(kernel.SOL_SOCKET, option, value)
            listener.bind((LOOPBACK, 0))
            listener.listen()
            client.connect(listener.getsockname())
            served, _ = listener.accept()
            with served:
                assert device(served) == b"lo\0"
                assert served.getsockopt(kernel.SOL_SOCKET, IFINDEX) == lo
                assert device(client) == b""
                client.send(b"x")
                assert served.recv(9) == b"x"


def test_opt_so_bindtodevice_listeners_of_two_links(links: Links) -> None:
    """Two listeners of one port on different interfaces each hear their own; one without interface the others; who is
    bound to an interface goes before who is not.
    """
    gw = links.gw
    left, right, both = (links.socket(gw, family=kernel.AF_INET) for _ in range(3))
    with left, right, both:
        for sock in (left, right, both):
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_REUSEPORT, 1)
        left.setsockopt(kernel.SOL_SOCKET, DEVICE, b"eth0")
        right.setsockopt(kernel.SOL_SOCKET, IFINDEX, links.index[1])
        for sock, port in ((left, 80), (right, 80), (both, 81)):
            sock.bind(("", port))
            sock.listen()
        for number, sock in ((0, left), (1, right)):
            with links.socket(links.peers[number], family=kernel.AF_INET) as client:
                client.connect((f"10.0.{number}.1", 80))
                served, address = sock.accept()
                with served:
                    assert address == client.getsockname()
                    assert device(served) == f"eth{number}\0".encode()
        left.close()
        with links.socket(links.peers[0], family=kernel.AF_INET) as client:
            assert code(client.connect, ("10.0.0.1", 80)) == errno.ECONNREFUSED
        with links.socket(links.peers[0], family=kernel.AF_INET) as client:
            client.connect(("10.0.0.1", 81))
            served, _ = both.accept()
            with served:
                assert device(served) == b""


def test_opt_so_bindtodevice_of_a_connection(links: Links) -> None:
    """A connection bound to an interface takes no segment through another one; unbound again it goes on."""
    with links.socket(links.peers[0], family=kernel.AF_INET) as listener:
        listener.bind(("", 80))
        listener.listen()
        with links.socket(links.gw, family=kernel.AF_INET) as client:
            client.setsockopt(kernel.SOL_SOCKET, DEVICE, b"eth0")
            client.connect(("10.0.0.2", 80))
            served, _ = listener.accept()
            with served:
                served.send(b"one")
                assert client.recv(9) == b"one"
                client.setsockopt(kernel.SOL_SOCKET, DEVICE, b"")
                served.send(b"two")
                assert client.recv(9) == b"two"
        with links.socket(links.gw, family=kernel.AF_INET) as client:
            client.connect(("10.0.0.2", 80))
            served, _ = listener.accept()
            with served:
                client.setsockopt(kernel.SOL_SOCKET, DEVICE, b"eth1")
                served.send(b"lost")
                client.settimeout(1)
                with pytest.raises(TimeoutError):
                    client.recv(9)


def test_opt_so_bindtodevice_our_own_addresses_count_as_their_interface(links: Links) -> None:
    """What a socket sends to an address of its own host counts as come in through the interface that has it."""
    gw = links.gw
    for kind in FAMILIES:
        with links.socket(gw, kind, kernel.AF_INET) as server, links.socket(gw, kind, kernel.AF_INET) as client:
            server.setsockopt(kernel.SOL_SOCKET, DEVICE, b"eth1")
            server.bind(("10.0.1.1", 0))
            if kind == kernel.SOCK_STREAM:
                server.listen()
            client.setsockopt(kernel.SOL_SOCKET, DEVICE, b"eth1")
            client.connect(server.getsockname())
            client.send(b"x")
            served = server.accept()[0] if kind == kernel.SOCK_STREAM else server
            assert served.recv(9) == b"x"
            served.close()
        with links.socket(gw, kind, kernel.AF_INET) as server, links.socket(gw, kind, kernel.AF_INET) as client:
            server.setsockopt(kernel.SOL_SOCKET, DEVICE, b"lo")
            server.bind(("10.0.1.1", 0))
            if kind == kernel.SOCK_STREAM:
                server.listen()
                assert code(client.connect, server.getsockname()) == errno.ECONNREFUSED
            else:
                client.connect(server.getsockname())
                client.send(b"x")
                assert code(client.recv, 9) == errno.ECONNREFUSED


@pytest.mark.parametrize("kind", FAMILIES)
def test_addr_link_local_needs_its_link(links: Links, kind: int) -> None:
    """A link-local address is bound to, and connected to, with its link named, else EINVAL; the socket is bound to that
    interface from then on, and a peer must be on the same.
    """
    gw, (eth0, eth1) = links.gw, links.index
    with links.socket(gw, kind) as sock:
        assert code(sock.bind, (OWN, 0)) == errno.EINVAL
        assert code(sock.connect, (PEER, 80)) == errno.EINVAL
        assert code(sock.bind, (OWN, 0, 0, 99)) == errno.ENODEV
        sock.bind((OWN, 0, 0, eth0))
        assert sock.getsockname() == (OWN, sock.getsockname()[1], 0, eth0)
        assert device(sock) == b"eth0\0"
        assert code(sock.connect, (PEER, 80, 0, eth1)) == errno.EINVAL
    with links.socket(gw, kind) as sock, links.socket(links.peers[1], kind) as server:
        server.bind(("::", 80))
        if kind == kernel.SOCK_STREAM:
            server.listen()
        sock.setsockopt(kernel.SOL_SOCKET, DEVICE, b"eth1")
        sock.connect((PEER, 80))
        assert sock.getpeername() == (PEER, 80, 0, eth1)
    with links.socket(gw, kind) as sock:
        sock.connect((f"{PEER}%eth0", 80)) if kind == kernel.SOCK_DGRAM else None
        assert device(sock) == (b"eth0\0" if kind == kernel.SOCK_DGRAM else b"")


@pytest.mark.parametrize("kind", FAMILIES)
def test_addr_link_local_peers_on_two_links_are_two(links: Links, kind: int) -> None:
    """The same addresses and ports on two links are two connections: each has its own peer and its own data."""
    servers, clients = [], []
    for number, peer in enumerate(links.peers):
        server = links.socket(peer, kind)
        server.bind(("::", 80))
        if kind == kernel.SOCK_STREAM:
            server.listen()
        client = links.socket(links.gw, kind)
        client.bind((OWN, 5000, 0, links.index[number]))
        client.connect((PEER, 80, 0, links.index[number]))
        servers.append(server)
        clients.append(client)
    for number, client in enumerate(clients):
        assert client.getpeername() == (PEER, 80, 0, links.index[number])
        client.send(f"to {number}".encode())
    for number, (server, client) in enumerate(zip(servers, clients, strict=True)):
        served, address = (server.accept()[0], None) if kind == kernel.SOCK_STREAM else (server, None)
        data, address = served.recvfrom(9)
        assert data == f"to {number}".encode()
        if kind == kernel.SOCK_STREAM:
            address = served.getpeername()
            assert device(served) == b"eth0\0"
        assert address[:2] == (OWN, 5000)
        assert address[3] == links.peers[number].socket.if_nametoindex("eth0")
        served.sendto(f"from {number}".encode(), address)
        assert client.recv(9) == f"from {number}".encode()
        served.close()
        server.close()
        client.close()


def test_addr_link_local_servers_hear_both_links(links: Links) -> None:
    """A listener of "::" accepts peers with one address on two links, even from one port: two connections, named with
    their links.
    """
    with links.socket(links.gw) as listener:
        listener.bind(("::", 80))
        listener.listen()
        clients = []
        for peer in links.peers:
            client = links.socket(peer)
            client.bind((PEER, 6000, 0, peer.socket.if_nametoindex("eth0")))
            client.connect((OWN, 80))
            clients.append(client)
        accepted = [listener.accept() for _ in clients]
        assert [address for _, address in accepted] == [(PEER, 6000, 0, index) for index in links.index]
        for number, (served, address) in enumerate(accepted):
            assert served.getpeername() == address
            assert device(served) == f"eth{number}\0".encode()
            clients[number].send(f"from {number}".encode())
            assert served.recv(9) == f"from {number}".encode()
            served.close()
            clients[number].close()


def test_addr_link_local_of_our_own(links: Links) -> None:
    """Our own link-local address is reached over its link, and not over another one."""
    with links.socket(links.gw) as listener:
        listener.bind(("fe80::a", 80, 0, links.index[0]))
        listener.listen()
        with links.socket(links.gw) as client:
            client.connect(("fe80::a", 80, 0, links.index[0]))
            served, address = listener.accept()
            assert address == client.getsockname()
            served.close()
        with links.socket(links.gw) as client:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - nobody there answers, neither neighbour nor peer
                client.connect(("fe80::a", 80, 0, links.index[1]))
            assert caught.value.errno in (errno.EHOSTUNREACH, None)
