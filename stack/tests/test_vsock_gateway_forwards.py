"""Ports of a guest's vsock forwarded to servers of the host, and the host's listeners to ports of the guest."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.services.host_address import host_address, unix_address
from stack.services.host_sockets import HostSockets
from stack.tests.gateway_rig import GatewayRig, gateway_rig, said
from stack.vsock.connection import CONNECT_TIMEOUT
from stack.wire.vsock import SHUTDOWN_SEND, Op


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[GatewayRig]:
    with gateway_rig(tmp_path) as rig:
        yield rig


@pytest.fixture(params=["127.0.0.1", "::1"])
def tcp_server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        server = socket.create_server((request.param, 0), family=family)
    except OSError as error:
        pytest.skip(f"{request.param}: {error}")
    with server:
        server.setblocking(False)
        yield server


def address_of(server: socket.socket) -> str:
    host, port = server.getsockname()[:2]
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def test_a_port_forwarded_to_a_tcp_server(rig: GatewayRig, tcp_server: socket.socket) -> None:
    rig.gateway.forward(80, host_address(address_of(tcp_server)))
    stream = rig.guest.connect(80, 1)
    rig.settle()
    assert stream.state == "connected"
    host = rig.accept(tcp_server)
    stream.write(b"GET /\n")
    stream.send(Op.SHUTDOWN, flags=SHUTDOWN_SEND)
    rig.settle()
    assert said(host) == b"GET /\n<end>"
    host.sendall(b"page")
    host.close()
    rig.settle()
    assert stream.received == b"page"
    assert stream.shutdown & SHUTDOWN_SEND


def test_the_guest_is_answered_when_the_server_has_answered_and_not_before(tmp_path: Path) -> None:
    refusing = socket.socket()
    with refusing, gateway_rig(tmp_path, scripted=True) as rig:
        refusing.bind(("127.0.0.1", 0))  # bound, so that nobody else takes the port, and not listening
        rig.gateway.forward(80, host_address(address_of(refusing)))
        rig.transport.feed(Op.REQUEST, 80, 1)
        rig.settle()
        assert rig.transport.ops() == ["RST"]
        assert rig.gateway.drops["connect-ECONNREFUSED"] == 1


def test_a_port_forwarded_to_a_unix_server(rig: GatewayRig, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "elsewhere"))
        server.listen()
        server.setblocking(False)
        rig.gateway.forward(22, host_address(f"unix:{tmp_path}/elsewhere"))
        stream = rig.guest.connect(22, 1)
        rig.settle()
        stream.write(b"SSH-2.0")
        rig.settle()
        assert said(rig.accept(server)) == b"SSH-2.0"


def test_a_port_forwarded_to_the_kernels_own_vsock(rig: GatewayRig) -> None:
    """Where the kernel has a loopback transport; CID 1 is itself (VMADDR_CID_LOCAL)."""
    try:
        server = socket.socket(socket.AF_VSOCK)
        with server:
            server.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            server.listen()
            with socket.socket(socket.AF_VSOCK) as probe:
                probe.settimeout(0.2)
                probe.connect((1, server.getsockname()[1]))
    except OSError as error:
        pytest.skip(f"no vsock loopback in this kernel: {error}")
    with socket.socket(socket.AF_VSOCK) as server:
        server.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        server.listen()
        server.setblocking(False)
        rig.gateway.forward(7, host_address(f"vsock:1:{server.getsockname()[1]}"))
        stream = rig.guest.connect(7, 1)
        rig.settle()
        stream.write(b"over two vsocks")
        rig.settle()
        assert said(rig.accept(server)) == b"over two vsocks"


def test_a_family_the_kernel_lacks_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AF_VSOCK in containers: EAFNOSUPPORT from socket(), ENODEV from connect()."""
    with gateway_rig(tmp_path, scripted=True) as rig:
        target = host_address("vsock:99:1")

        def refuse(_: object) -> socket.socket:
            raise OSError(97, os.strerror(97))

        monkeypatch.setattr(type(target), "open", refuse)
        rig.gateway.forward(7, target)
        rig.transport.feed(Op.REQUEST, 7, 1)
        rig.settle()
        assert rig.transport.ops() == ["RST"]
        assert rig.gateway.drops["connect-EAFNOSUPPORT"] == 1


def test_a_tcp_listener_of_the_host_for_a_port_of_the_guest(rig: GatewayRig) -> None:
    listener = rig.gateway.expose(host_address("tcp:127.0.0.1:0"), 22)
    client = rig.client(b"no line is expected\n", address=listener.address)
    assert rig.stream.guest_port == 22
    assert rig.stream.received == b"no line is expected\n"
    rig.stream.write(b"and none is said")
    rig.settle()
    assert said(client) == b"and none is said"


def test_a_refusal_by_the_guest_resets_the_hosts_tcp_client(tmp_path: Path) -> None:
    with gateway_rig(tmp_path, scripted=True) as rig:
        listener = rig.gateway.expose(host_address("tcp:127.0.0.1:0"), 22)
        client = rig.client(address=listener.address)
        assert said(client) is None
        rig.wait(CONNECT_TIMEOUT)
        assert said(client) == b"<reset>"


def test_a_driver_reset_resets_the_hosts_tcp_client(rig: GatewayRig) -> None:
    listener = rig.gateway.expose(host_address("tcp:127.0.0.1:0"), 22)
    client = rig.client(address=listener.address)
    rig.transport.generation += 1
    rig.transport.changed()
    rig.guest.streams.clear()
    rig.settle()
    assert said(client) == b"<reset>"


def test_a_socket_file_that_somebody_replaced_is_not_ours_to_remove(rig: GatewayRig) -> None:
    os.unlink(rig.path)
    with open(rig.path, "w") as file:
        file.write("theirs")
    rig.gateway.close()
    assert os.path.exists(rig.path)


def test_a_unix_listener_of_the_host_and_its_file(rig: GatewayRig, tmp_path: Path) -> None:
    path = str(tmp_path / "ssh")
    rig.gateway.expose(unix_address(path), 22)
    rig.client(b"x", address=path)
    assert rig.stream.received == b"x"
    rig.gateway.close()
    assert not os.path.exists(path)
    assert not os.path.exists(rig.path)


def test_a_stale_socket_file_is_replaced_a_live_one_and_any_other_file_are_not(tmp_path: Path) -> None:
    stale = tmp_path / "v"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    with gateway_rig(tmp_path) as rig:
        rig.client(b"CONNECT 1\n")
        assert rig.stream.guest_port == 1
        with pytest.raises(OSError, match="in use"):
            unix_address(rig.path).listen()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="in use"):
        unix_address(tmp_path / "file").listen()
    assert (tmp_path / "file").read_text() == "precious"


def test_closing_leaves_nothing_and_ends_every_stream(rig: GatewayRig) -> None:
    clients = [rig.client(line) for line in (b"CONNECT 1\n", b"CONNECT 2\n", b"CONN")]
    rig.gateway.close()
    rig.settle()
    assert rig.gateway.open_streams == 0
    assert rig.guest.resets == 2
    assert all((said(client) or b"").endswith((b"<end>", b"<reset>")) for client in clients)
    rig.gateway.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no address"),
        ("tcp", "no number"),
        ("unix:", "is no address"),
        ("http://x", "is no address"),
        ("tcp:127.0.0.1", "no number"),
        ("tcp:127.0.0.1:65536", "no number"),
        ("tcp:127.0.0.1:-1", "no number"),
        ("tcp:127.0.0.1:\u0661", "no number"),
        ("tcp:nowhere.invalid:80", "cannot be found"),
        ("vsock:3", "no number"),
        ("vsock:4294967296:1", "no number"),
        ("unix:" + "x" * 108, "Unix sockets allow 1 to 107"),
    ],
)
def test_addresses_that_are_none_say_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        host_address(text)


def test_abstract_names_have_no_file() -> None:
    address = host_address("unix:@name")
    assert (address.address, address.path) == ("\0name", None)


def test_a_hint_never_reaches_another_socket_with_the_same_number() -> None:
    """The relatives of CVE-2018-14625: a connection's object is gone while its event waits in the same batch."""
    hosts = HostSockets()
    pairs = [socket.socketpair() for _ in range(3)]
    hinted: list[str] = []

    class Recorder:
        def __init__(self, name: str, action: object = None) -> None:
            self.name, self.action = name, action

        def hint(self, *, hung_up: bool) -> None:
            hinted.append(self.name)
            if callable(self.action):
                self.action()

        def run(self) -> bool:
            return False

    late = Recorder("late")

    def replace() -> None:
        """The first task that is hinted closes the second's socket, and a new one gets its number."""
        (sock, task), number = victims.pop(), -1
        for name in ("a", "b"):
            if hinted == [name] and task.name == name:
                sock, task = victims.pop()
        number = sock.fileno()
        hosts.remove(sock, task)
        sock.close()
        fresh = socket.socketpair()
        pairs.append(fresh)
        assert number in (fresh[0].fileno(), fresh[1].fileno())
        hosts.add(fresh[0] if fresh[0].fileno() == number else fresh[1], late)
        for _, other in victims:
            other.action = None
        for task in tasks:
            task.action = None

    tasks = [Recorder("a", replace), Recorder("b", replace)]
    victims = [(pairs[0][0], tasks[0]), (pairs[1][0], tasks[1])]
    for (sock, _), task in zip(pairs[:2], tasks, strict=True):
        hosts.add(sock, task)
    hosts.service(64)
    assert len(hinted) == 1  # the other's hint was for a socket that is gone
    hosts.service(64)
    assert hinted[1:] == ["late"]  # its own hint, in its own time
    hosts.close()
    for pair in pairs:
        for sock in pair:
            sock.close()
