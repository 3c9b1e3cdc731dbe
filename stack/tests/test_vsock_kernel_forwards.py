"""Forwarding to and from AF_VSOCK of the host's own kernel: `vsock:CID:PORT`.

Few kernels have a vsock loopback, so there is a family of our own in its place: sockets that take AF_VSOCK's addresses
and are Unix sockets below. What the real family answers is compared where it answers at once.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.services.host_address import HostAddress, host_address
from stack.tests.gateway_rig import GatewayRig, gateway_rig, said
from stack.wire.vsock import Op

OPEN = HostAddress.open


class Kernel:
    """A kernel's AF_VSOCK: where its addresses are, and what went wrong."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.calls: list[tuple[str, Any]] = []
        self.error = 0

    def open(self, address: HostAddress) -> socket.socket:
        if address.family != socket.AF_VSOCK:
            return OPEN(address)
        if self.error == errno.EAFNOSUPPORT:
            raise OSError(self.error, os.strerror(self.error))
        return Vsock(self)

    def path(self, address: Any) -> str:
        cid, port = address
        return str(self.place / f"{cid}.{port}")


class Vsock(socket.socket):
    def __init__(self, kernel: Kernel) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.kernel = kernel

    def connect_ex(self, address: Any) -> int:
        self.kernel.calls.append(("connect", address))
        return self.kernel.error or super().connect_ex(self.kernel.path(address))

    def bind(self, address: Any) -> None:
        self.kernel.calls.append(("bind", address))
        super().bind(self.kernel.path(address))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)

    def instead(address: HostAddress) -> socket.socket:
        return kernel.open(address)

    monkeypatch.setattr(HostAddress, "open", instead)
    return kernel


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[GatewayRig]:
    place = tmp_path / "gateway"
    place.mkdir()
    with gateway_rig(place) as rig:
        yield rig


def test_a_port_of_the_guests_host_is_a_port_of_another_cid(kernel: Kernel, rig: GatewayRig) -> None:
    """The guest's (2, 7) is (16, 1234) of the host's kernel: bytes both ways, and each end by itself."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(kernel.path((16, 1234)))
        server.listen()
        server.setblocking(False)
        rig.gateway.forward(7, host_address("vsock:16:1234"))
        stream = rig.guest.connect(7, 1)
        rig.settle()
        assert kernel.calls == [("connect", (16, 1234))]
        host = rig.accept(server)
        stream.write(b"question")
        rig.settle()
        assert said(host) == b"question"
        host.sendall(b"answer")
        host.shutdown(socket.SHUT_WR)
        rig.settle()
        assert stream.received == b"answer"
        stream.write(b" and more")
        rig.settle()
        assert said(host) == b" and more"


def test_a_port_of_the_kernels_is_a_port_of_the_guest(kernel: Kernel, rig: GatewayRig) -> None:
    listener = rig.gateway.expose(host_address("vsock:4294967295:22"), 22)
    assert kernel.calls == [("bind", (0xFFFFFFFF, 22))]
    assert listener is not None
    client = rig.client(b"hello", address=kernel.path((0xFFFFFFFF, 22)))
    assert rig.stream.guest_port == 22
    assert rig.stream.received == b"hello"
    rig.stream.write(b"guest here")
    rig.settle()
    assert said(client) == b"guest here"


def test_every_port_that_is_nobodys_is_the_same_port_of_one_cid(kernel: Kernel, tmp_path: Path) -> None:
    """vhost-device-vsock's forward-cid: the guest's (2, 9000) is (1, 9000) of the host's kernel, unless it is forwarded
    elsewhere; where nobody listens the guest is refused."""
    place = tmp_path / "gateway"
    place.mkdir()
    with gateway_rig(place, forward_cid=1) as rig, socket.socket(socket.AF_UNIX) as server:
        rig.gateway.uds_path = None
        server.bind(kernel.path((1, 9000)))
        server.listen()
        server.setblocking(False)
        stream = rig.guest.connect(9000, 1)
        rig.settle()
        host = rig.accept(server)
        stream.write(b"question")
        host.sendall(b"answer")
        rig.settle()
        assert said(host) == b"question"
        assert stream.received == b"answer"
        rig.gateway.forward(9001, host_address("vsock:16:7"))
        for port in (9001, 9002):
            refused = rig.guest.connect(port, port)
            rig.settle()
            assert refused.state != "connected"
        assert kernel.calls == [("connect", (1, 9000)), ("connect", (16, 7)), ("connect", (1, 9002))]


@pytest.mark.parametrize("error", [errno.ENODEV, errno.ECONNRESET, errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EPERM])
def test_what_the_kernel_refuses_is_refused_to_the_guest_at_once_and_counted(
    kernel: Kernel, tmp_path: Path, error: int
) -> None:
    """ENODEV: no transport for that CID; EAFNOSUPPORT: no AF_VSOCK at all, as in containers."""
    with gateway_rig(tmp_path, scripted=True) as rig:
        rig.gateway.forward(7, host_address("vsock:99:1"))
        kernel.error = error
        rig.transport.feed(Op.REQUEST, 7, 1)
        rig.settle()
        assert rig.transport.ops() == ["RST"]
        assert dict(rig.gateway.drops) == {f"connect-{errno.errorcode[error]}": 1}
        assert rig.gateway.open_streams == 0


def test_an_address_that_cannot_be_listened_on_says_why(kernel: Kernel, rig: GatewayRig) -> None:
    kernel.error = errno.EAFNOSUPPORT
    with pytest.raises(OSError, match="Address family not supported"):
        rig.gateway.expose(host_address("vsock:1:22"), 22)


def test_this_kernels_own_answer_is_what_is_counted(tmp_path: Path) -> None:
    """The system calls themselves, where the kernel says at once of some CID that it cannot reach it."""
    for cid in (0, 1, 2, 3, 16):
        try:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                error = sock.connect_ex((cid, 7))
        except OSError as no_family:
            error = no_family.errno or 0
        if error not in (0, errno.EINPROGRESS):
            break
    else:
        pytest.skip("this kernel's transports try every CID")
    with gateway_rig(tmp_path, scripted=True) as rig:
        rig.gateway.forward(7, host_address(f"vsock:{cid}:7"))
        rig.transport.feed(Op.REQUEST, 7, 1)
        rig.settle()
        assert rig.transport.ops() == ["RST"]
        assert dict(rig.gateway.drops) == {f"connect-{errno.errorcode[error]}": 1}
