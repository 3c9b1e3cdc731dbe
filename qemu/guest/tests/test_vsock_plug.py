"""vhost-device-vsock's options have their effect, seen from a driver's side."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qemu.guest.vms import ServedVsock, parse_vm
from qemu.guest.vsock_plug import VsockPlug
from stack import Network
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
