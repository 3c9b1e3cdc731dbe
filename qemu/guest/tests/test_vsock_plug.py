"""vhost-device-vsock's options have their effect, seen from a driver's side."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qemu.guest.errors import SetupError
from qemu.guest.vms import ServedVsock, parse_vm
from qemu.guest.vsock_plug import VsockPlug
from stack import Network
from stack.services.host_address import HostAddress
from vhost_user import Server
from vhost_user.driver import VsockDriver
from vhost_user.driver.errors import DriverError
from vhost_user.driver.vsock import OP_REQUEST, OP_RESPONSE, OP_RST, VsockPacket


@contextmanager
def served(*words: str) -> Iterator[list[ServedVsock]]:
    """The guests of these `--vm` options, as `guestwire serve` has them."""
    with Network() as network, Server() as server, ExitStack() as undo:
        network.start()
        stack = network.stack("gw")
        guests = [parse_vm(each) for each in words]
        for each in guests:
            plug = VsockPlug(stack, each.config)
            undo.callback(plug.close)
            assert each.socket is not None
            server.listen(plug.device, path=each.socket)
        yield guests


def answer(driver: VsockDriver) -> VsockPacket:
    packets = driver.recv(8, timeout=5)
    assert packets, "no answer"
    return packets[0]


@pytest.mark.parametrize("size", [4096, 65536])
def test_tx_buffer_size_is_what_a_guest_may_send_ahead(tmp_path: Path, size: int) -> None:
    words = f"guest-cid=3,socket={tmp_path}/s,uds-path={tmp_path}/v,tx-buffer-size={size}"
    with socket.socket(socket.AF_UNIX) as listener, served(words) as (guest,):
        listener.bind(f"{tmp_path}/v_8")
        listener.listen()
        with VsockDriver(str(guest.socket)) as driver:
            driver.send([driver.packet(OP_REQUEST, 50, 8)])
            reply = answer(driver)
            assert (reply.op, reply.buf_alloc) == (OP_RESPONSE, size)
            listener.accept()[0].close()


@pytest.mark.parametrize(("size", "works"), [(128, True), (256, False)])
def test_queue_size_is_the_largest_ring_taken(tmp_path: Path, size: int, works: bool) -> None:
    """A driver with a larger one is hung up on."""
    with served(f"guest-cid=3,socket={tmp_path}/s,queue-size=128") as (guest,), ExitStack() as undo:
        if works:
            undo.enter_context(VsockDriver(str(guest.socket), rx_size=size))
        else:
            undo.enter_context(pytest.raises(DriverError, match=r"SET_VRING_NUM|closed the connection"))
            VsockDriver(str(guest.socket), rx_size=size).close()


def test_forward_listen_makes_ports_of_the_hosts_kernel_the_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each port, on every CID of the host; Unix sockets stand in for a kernel's AF_VSOCK, which few hosts have."""

    def listen(address: HostAddress, backlog: int = 128) -> socket.socket:
        assert (address.family, address.address[0]) == (socket.AF_VSOCK, socket.VMADDR_CID_ANY)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(f"{tmp_path}/{address.address[1]}")
        sock.listen(backlog)
        return sock

    monkeypatch.setattr(HostAddress, "listen", listen)
    with served(f"socket={tmp_path}/s,forward-cid=1,forward-listen=9001+9002") as (guest,):
        for port in (9001, 9002):
            with VsockDriver(str(guest.socket)) as driver, socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{tmp_path}/{port}")
                request = answer(driver)
                assert (request.op, request.dst_cid, request.dst_port) == (OP_REQUEST, 3, port)


def test_a_host_without_vsock_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(address: HostAddress, backlog: int = 128) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(HostAddress, "listen", listen)
    message = "forward-listen: cannot listen on vsock:4294967295:9001: Address family not supported"
    with pytest.raises(SetupError, match=message), served(f"socket={tmp_path}/s,forward-cid=1,forward-listen=9001"):
        pass


@pytest.mark.parametrize(("groups", "reached"), [("b+c", True), ("c", False)])
def test_guests_with_a_group_in_common_reach_each_other(tmp_path: Path, groups: str, reached: bool) -> None:
    words = (f"guest-cid=3,socket={tmp_path}/3,groups=a+b", f"guest-cid=4,socket={tmp_path}/4,groups={groups}")
    with served(*words), VsockDriver(f"{tmp_path}/3") as driver, VsockDriver(f"{tmp_path}/4") as sibling:
        driver.send([driver.packet(OP_REQUEST, 50, 8)._replace(dst_cid=4)])
        if reached:
            request = answer(sibling)
            assert (request.op, request.src_cid, request.dst_port) == (OP_REQUEST, 3, 8)
        else:
            assert answer(driver).op == OP_RST
