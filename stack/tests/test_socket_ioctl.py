"""Section 1.5, ioctl requests of sockets, on the kernel's sockets and on ours."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket as kernel
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Network, Stack
from stack.link import cable
from stack.socket import ioctl as requests
from stack.tests.kernel_twin import LOOPBACK, World, code

DIFFERENCES = {
    "IOCTL_VM_SOCKETS_GET_LOCAL_CID": "Linux answers it on /dev/vsock, a Stack on its AF_VSOCK sockets",
    "ioctls": "0x89F0 to 0x89FF are EOPNOTSUPP on Linux, for drivers of cards; on a Stack ENOTTY, as every unknown one",
}

INET, INET6, UNIX, NETLINK, PACKET, VSOCK = 2, 10, 1, 16, 17, 40
STREAM, DGRAM, RAW = 1, 2, 3
LO = b"lo".ljust(40, b"\0")
NOBODY = b"nobody0".ljust(40, b"\0")
INT = struct.Struct("i")

Ask = Callable[..., Any]


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def ask(world: World) -> Ask:
    """fcntl.ioctl, or the method."""
    return fcntl.ioctl if world.network is None else lambda sock, *arguments: sock.ioctl(*arguments)


def number(answer: bytes) -> int:
    return int(INT.unpack_from(answer, 16)[0])


@pytest.mark.parametrize(
    ("family", "kind"),
    [(INET, STREAM), (INET, DGRAM), (INET6, STREAM), (UNIX, STREAM), (UNIX, DGRAM), (NETLINK, RAW), (VSOCK, STREAM)],
)
def test_ioctl_about_interfaces_on_any_socket(world: World, ask: Ask, family: int, kind: int) -> None:
    """SIOCGIFINDEX, NAME, MTU, FLAGS, METRIC, HWADDR and TXQLEN work on any socket; ENODEV for unknown names."""
    with world.socket.socket(family, kind, 0) as sock:
        index = number(ask(sock, requests.SIOCGIFINDEX, LO))
        assert index == world.socket.if_nametoindex("lo")
        named = ask(sock, requests.SIOCGIFNAME, struct.pack("16xi20x", index))
        assert named[:16] == b"lo".ljust(16, b"\0")
        assert number(ask(sock, requests.SIOCGIFMTU, LO)) == 65536
        flags = struct.unpack_from("H", ask(sock, requests.SIOCGIFFLAGS, LO), 16)[0]
        assert flags & 0x49 == 0x49  # UP, LOOPBACK, RUNNING
        assert number(ask(sock, requests.SIOCGIFMETRIC, LO)) == 0
        assert number(ask(sock, requests.SIOCGIFTXQLEN, LO)) == 1000
        hardware = ask(sock, requests.SIOCGIFHWADDR, LO)
        assert struct.unpack_from("H6s", hardware, 16) == (772, bytes(6))
        for request in (requests.SIOCGIFINDEX, requests.SIOCGIFMTU, requests.SIOCGIFFLAGS, requests.SIOCGIFHWADDR):
            assert code(ask, sock, request, NOBODY) == errno.ENODEV
        assert code(ask, sock, requests.SIOCGIFNAME, struct.pack("16xi20x", 9999)) == errno.ENODEV


def test_ioctl_addresses(world: World, ask: Ask) -> None:
    """SIOCGIFADDR, DSTADDR, BRDADDR and NETMASK are of IPv4: ENOTTY on other families' sockets, ENODEV for unknown
    names; lo has no broadcast address.
    """
    with world.socket.socket() as sock:
        expected = {
            requests.SIOCGIFADDR: "127.0.0.1",
            requests.SIOCGIFDSTADDR: "127.0.0.1",
            requests.SIOCGIFBRDADDR: "0.0.0.0",
            requests.SIOCGIFNETMASK: "255.0.0.0",
        }
        for request, text in expected.items():
            family, raw = struct.unpack_from("H2x4s", ask(sock, request, LO), 16)
            assert (family, kernel.inet_ntoa(raw)) == (INET, text)
            assert code(ask, sock, request, NOBODY) == errno.ENODEV
    for family, kind in ((UNIX, STREAM), (NETLINK, RAW), (INET6, DGRAM)):
        with world.socket.socket(family, kind, 0) as sock:
            for request in expected:
                assert code(ask, sock, request, LO) == errno.ENOTTY


def test_ioctl_addresses_of_a_real_link() -> None:
    """Index, name, hardware address, broadcast and mask of a card; EADDRNOTAVAIL without an IPv4 address."""
    with Network() as network:
        stack = network.stack("gw")
        left, right = cable(network.scheduler)
        stack.add_interface(left, name="eth0", addresses=["10.1.2.3/20"], mac=bytes.fromhex("020000000001"))
        stack.add_interface(right, name="eth1", addresses=["fd00::1/64"])
        with stack.socket.socket() as sock:
            answers = {
                request: kernel.inet_ntoa(sock.ioctl(request, b"eth0".ljust(40, b"\0"))[20:24])
                for request in (0x8915, 0x8917, 0x8919, 0x891B)
            }
            assert list(answers.values()) == ["10.1.2.3", "10.1.2.3", "10.1.15.255", "255.255.240.0"]
            hardware = sock.ioctl(requests.SIOCGIFHWADDR, b"eth0".ljust(40, b"\0"))
            assert struct.unpack_from("H6s", hardware, 16) == (1, bytes.fromhex("020000000001"))
            assert number(sock.ioctl(requests.SIOCGIFMTU, b"eth0".ljust(40, b"\0"))) == 1500
            assert code(sock.ioctl, requests.SIOCGIFADDR, b"eth1".ljust(40, b"\0")) == errno.EADDRNOTAVAIL


def test_ioctl_gifconf(world: World, ask: Ask) -> None:
    """SIOCGIFCONF lists (name, address) of what has IPv4 addresses, 40 bytes each; a short buffer gets whole entries
    only, no buffer the length it would take.
    """
    with world.socket.socket() as sock:
        needed, _ = struct.unpack("i4xQ", ask(sock, requests.SIOCGIFCONF, struct.pack("i4xQ", 0, 0)))
        assert needed >= 40
        assert needed % 40 == 0
        entries = array.array("B", bytes(needed + 40))
        address, _ = entries.buffer_info()
        length, _ = struct.unpack("i4xQ", ask(sock, requests.SIOCGIFCONF, struct.pack("i4xQ", len(entries), address)))
        assert length == needed
        name, family, raw = struct.unpack_from("16sH2x4s", entries)
        assert (name.rstrip(b"\0"), family, kernel.inet_ntoa(raw)) == (b"lo", INET, "127.0.0.1")
        length, _ = struct.unpack("i4xQ", ask(sock, requests.SIOCGIFCONF, struct.pack("i4xQ", 39, address)))
        assert length == 0
        length, _ = struct.unpack("i4xQ", ask(sock, requests.SIOCGIFCONF, struct.pack("i4xQ", 79, address)))
        assert length == 40


def test_ioctl_inq_and_outq_of_tcp(world: World, ask: Ask) -> None:
    """FIONREAD is what is to be read, SIOCOUTQ what the peer has not acknowledged; EINVAL on a listening socket."""
    one, other = world.pair()
    with one, other:
        assert INT.unpack(ask(other, requests.FIONREAD, bytes(4))) == (0,)
        one.send(b"12345")
        world.settle(other, 1)
        assert INT.unpack(ask(other, requests.FIONREAD, bytes(4))) == (5,)
        other.recv(2)
        assert INT.unpack(ask(other, requests.FIONREAD, bytes(4))) == (3,)
        other.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 2304)
        one.setblocking(False)
        written = one.send(bytes(200_000))
        assert 0 < INT.unpack(ask(one, requests.SIOCOUTQ, bytes(4)))[0] <= written + 5
    with world.listener() as listener:
        for request in (requests.FIONREAD, requests.SIOCOUTQ):
            assert code(ask, listener, request, bytes(4)) == errno.EINVAL
    with world.socket.socket() as fresh:
        assert INT.unpack(ask(fresh, requests.FIONREAD, bytes(4))) == (0,)


def test_ioctl_atmark(world: World, ask: Ask) -> None:
    """SIOCATMARK is 1 where the urgent byte is next."""
    one, other = world.pair()
    with one, other:
        one.send(b"ab")
        one.send(b"!", kernel.MSG_OOB)

        def urgent() -> bool:
            with suppress(OSError):
                return bool(other.recv(1, kernel.MSG_OOB | kernel.MSG_PEEK))
            return False

        world.until(urgent)
        assert INT.unpack(ask(other, requests.SIOCATMARK, bytes(4))) == (0,)
        assert other.recv(10) == b"ab"
        assert INT.unpack(ask(other, requests.SIOCATMARK, bytes(4))) == (1,)
        other.settimeout(None)  # with one, Python waits for POLLIN first
        assert other.recv(1, kernel.MSG_OOB) == b"!"


def test_ioctl_inq_of_udp(world: World, ask: Ask) -> None:
    """FIONREAD of UDP is the length of the first datagram; nothing is ever waiting to be sent."""
    with world.socket.socket(INET, DGRAM) as one, world.socket.socket(INET, DGRAM) as other:
        other.bind((LOOPBACK, 0))
        assert INT.unpack(ask(other, requests.FIONREAD, bytes(4))) == (0,)
        for data in (b"12345", b"12"):
            one.sendto(data, other.getsockname())
        world.settle(other, 1)
        assert INT.unpack(ask(other, requests.FIONREAD, bytes(4))) == (5,)
        assert other.recv(10) == b"12345"
        world.settle(other, 1)
        assert INT.unpack(ask(other, requests.FIONREAD, bytes(4))) == (2,)
        assert INT.unpack(ask(one, requests.SIOCOUTQ, bytes(4))) == (0,)


def test_ioctl_inq_and_outq_of_unix(world: World, ask: Ask) -> None:
    """FIONREAD counts bytes; SIOCOUTQ what the kernel's buffers take for them: 768 for a small message."""
    one, other = world.socket.socketpair(UNIX, STREAM)
    with one, other:
        one.send(b"12345")
        assert INT.unpack(ask(other, requests.FIONREAD, bytes(4))) == (5,)
        assert INT.unpack(ask(one, requests.SIOCOUTQ, bytes(4))) == (768,)
        other.recv(10)
        assert INT.unpack(ask(one, requests.SIOCOUTQ, bytes(4))) == (0,)


def test_ioctl_unknown(world: World, ask: Ask) -> None:
    """What a socket does not know is ENOTTY: unknown requests, FIONREAD on netlink, SIOCATMARK on UDP."""
    for family, kind in ((INET, STREAM), (INET, DGRAM), (UNIX, STREAM), (NETLINK, RAW), (VSOCK, STREAM)):
        with world.socket.socket(family, kind, 0) as sock:
            assert code(ask, sock, 0x1234, bytes(40)) == errno.ENOTTY
    with world.socket.socket(NETLINK, RAW, 0) as sock:
        for request in (requests.FIONREAD, requests.SIOCOUTQ, requests.SIOCATMARK):
            assert code(ask, sock, request, bytes(4)) == errno.ENOTTY
    with world.socket.socket(INET, DGRAM) as sock:
        assert code(ask, sock, requests.SIOCATMARK, bytes(4)) == errno.ENOTTY


def test_ioctl_arguments(world: World, ask: Ask) -> None:
    """Bytes come back as bytes; a writable buffer is changed in place, unless that is not wanted."""
    with world.socket.socket() as sock:
        buffer = bytearray(LO)
        assert ask(sock, requests.SIOCGIFINDEX, buffer) == 0
        assert number(bytes(buffer)) == world.socket.if_nametoindex("lo")
        buffer = bytearray(LO)
        answer = ask(sock, requests.SIOCGIFINDEX, buffer, False)
        assert number(answer) == world.socket.if_nametoindex("lo")
        assert buffer == LO


def test_ioctl_of_files(world: World, ask: Ask) -> None:
    """FIONBIO, FIOCLEX and FIONCLEX are any file's."""
    with world.socket.socket() as sock:
        ask(sock, 0x5421, INT.pack(1))
        assert not os.get_blocking(sock.fileno())
        ask(sock, 0x5421, INT.pack(0))
        assert os.get_blocking(sock.fileno())
        ask(sock, 0x5450)
        assert sock.get_inheritable()
        ask(sock, 0x5451)
        assert not sock.get_inheritable()


def test_ioctl_local_cid() -> None:
    """IOCTL_VM_SOCKETS_GET_LOCAL_CID is answered on AF_VSOCK sockets: 2, the host's (Linux has /dev/vsock for it)."""
    with Network() as network:
        stack: Stack = network.stack("gw")
        module = stack.socket
        with module.socket(module.AF_VSOCK, module.SOCK_STREAM) as sock:
            answer = sock.ioctl(module.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
            assert struct.unpack("I", answer) == (module.VMADDR_CID_HOST,)
        with module.socket() as sock:
            assert code(sock.ioctl, module.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4)) == errno.ENOTTY


def test_ioctl_through_fcntl_while_installed() -> None:
    """Programs that say fcntl.ioctl(sock, ...) reach the Stack's sockets while it is installed, and the kernel's files
    as ever.
    """
    with Network() as network:
        stack = network.stack("gw")
        before = fcntl.ioctl
        with stack.installed(), stack.socket.socket() as sock:
            assert number(fcntl.ioctl(sock, requests.SIOCGIFINDEX, LO)) == 1
            assert number(fcntl.ioctl(sock.fileno(), requests.SIOCGIFMTU, LO)) == 65536
            reading, writing = os.pipe()
            os.write(writing, b"12")
            assert INT.unpack(fcntl.ioctl(reading, requests.FIONREAD, bytes(4))) == (2,)
            os.close(reading)
            os.close(writing)
        assert fcntl.ioctl is before
