"""Section 1.16 on the kernel's sockets as well: what an ordinary user may not, by the same bodies (rows SEC).

The kernel's side becomes that user for a while (seteuid: its capabilities are not effective then), where the tests run
as root; as an ordinary user it is one all the time.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket as kernel
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stack import Credentials
from stack.tests.kernel_twin import LOOPBACK
from stack.tests.unix_world import DGRAM, SEQPACKET, STREAM, UnixWorld, identity, kernel_world, outcome, stack_world

SOL = kernel.SOL_SOCKET
INET, INET6, NETLINK, VSOCK = kernel.AF_INET, kernel.AF_INET6, kernel.AF_NETLINK, 40
RAW = kernel.SOCK_RAW
NOBODY, SOMEBODY = 65534, 65533

DIFFERENCES = {
    "SEC-02": "the kernel's lowest port for all is a setting, ip_unprivileged_port_start: asked where it is 1024",
}


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[UnixWorld]:
    if request.param == "ours":
        with stack_world(credentials=Credentials()) as made:
            yield made
        return
    directory = tempfile.mkdtemp()  # pytest's own are closed to other users
    os.chmod(directory, 0o755)
    try:
        with kernel_world(Path(directory)) as made:
            yield made
    finally:
        shutil.rmtree(directory)


@contextmanager
def being(world: UnixWorld, uid: int = NOBODY) -> Iterator[None]:
    """An ordinary user."""
    if world.stack is not None:
        with world.stack.acting(Credentials.user(uid)):
            yield
        return
    if os.geteuid():
        if uid != NOBODY:
            pytest.skip("one ordinary user cannot become another")
        yield
        return
    group = os.getegid()
    try:
        os.setegid(uid)
        os.seteuid(uid)
    except OSError:
        os.setegid(group)
        pytest.skip("there is no ordinary user to become in this user namespace")
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def code(call: Any, *args: Any) -> int | None:
    """The errno a call fails with, None if it does not."""
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return None


def needs_root(world: UnixWorld) -> None:
    if not world.ours and os.geteuid():
        pytest.skip("what root may is asked by root")


def test_sec_01_names_of_the_node(world: UnixWorld) -> None:
    """sethostname() is EPERM for an ordinary user, before anything is said about the name's length."""
    with being(world):
        for name in (world.socket.gethostname(), "x" * 65):
            assert code(world.socket.sethostname, name) == errno.EPERM


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_sec_02_ports_of_services(world: UnixWorld, kind: int) -> None:
    """IP ports 1..1023 are EACCES for an ordinary user, over IPv4 and IPv6; 0 and 1024 are not."""
    lowest = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not world.ours and (not lowest.exists() or int(lowest.read_text()) != 1024):
        pytest.skip("this kernel has another lowest port for everybody")
    with being(world):
        for family, host in ((INET, LOOPBACK), (INET6, "::1")):
            for port in (1, 1023):
                assert code(world.keep(world.socket.socket(family, kind)).bind, (host, port)) == errno.EACCES
            for port in (1024, 0):
                answer = outcome(world.keep(world.socket.socket(family, kind)).bind, (host, port))
                assert answer in (None, "EADDRINUSE")


def test_sec_02_vs_03_vsock_ports_of_services(world: UnixWorld) -> None:
    """Vsock ports up to 1023 are EACCES for an ordinary user, 1024 is not."""
    if not world.ours:
        try:
            kernel.socket(VSOCK, STREAM).close()
        except OSError:
            pytest.skip("this kernel has no AF_VSOCK")
    with being(world):
        for kind in (STREAM, SEQPACKET):
            for port in (1, 1023):
                assert code(world.keep(world.socket.socket(VSOCK, kind)).bind, (0xFFFFFFFF, port)) == errno.EACCES
            last = world.keep(world.socket.socket(VSOCK, kind))
            assert outcome(last.bind, (0xFFFFFFFF, 1024)) in (None, "EADDRINUSE")


@pytest.mark.parametrize(
    ("level", "number", "value", "error"),
    [
        (SOL, kernel.SO_PRIORITY, 7, errno.EPERM),
        (SOL, kernel.SO_PRIORITY, -1, errno.EPERM),
        (SOL, kernel.SO_PRIORITY, 6, None),
        (SOL, 32, 1 << 16, errno.EPERM),  # SO_SNDBUFFORCE
        (SOL, 33, 1 << 16, errno.EPERM),  # SO_RCVBUFFORCE
        (SOL, kernel.SO_MARK, 1, errno.EPERM),
        (SOL, kernel.SO_DEBUG, 1, errno.EACCES),
        (SOL, kernel.SO_DEBUG, 0, None),
        (0, 19, 1, errno.EPERM),  # IP_TRANSPARENT
        (0, 19, 0, None),
    ],
)
def test_sec_04_options_of_administrators(
    world: UnixWorld, level: int, number: int, value: int, error: int | None
) -> None:
    """Options that take CAP_NET_ADMIN are refused to an ordinary user; what switches them off is not."""
    with being(world):
        for kind in (STREAM, DGRAM):
            sock = world.keep(world.socket.socket(INET, kind))
            assert code(sock.setsockopt, level, number, value) == error


def test_sec_04_congestion_control(world: UnixWorld) -> None:
    """A congestion control that is not in tcp_allowed_congestion_control is EPERM for an ordinary user."""
    if world.ours:
        restricted = ["bbr"]
    else:
        names = [
            set(Path(f"/proc/sys/net/ipv4/tcp_{which}_congestion_control").read_text().split())
            for which in ("available", "allowed")
        ]
        restricted = sorted(names[0] - names[1])
    with being(world):
        sock = world.keep(world.socket.socket())
        for name in restricted:
            assert code(sock.setsockopt, kernel.IPPROTO_TCP, kernel.TCP_CONGESTION, name.encode()) == errno.EPERM
        sock.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_CONGESTION, b"reno")


def test_sec_04_changes_of_links(world: UnixWorld) -> None:
    """Rtnetlink answers NEW, DEL and SET requests of an ordinary user with -EPERM, GET ones with what is asked for; its
    groups 30 and 31 are EPERM.
    """

    def ask(kind: int, body: bytes) -> tuple[int, int]:
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, 5, 1, 0) + body)
        reply = sock.recv(65536)
        answered = struct.unpack_from("=H", reply, 4)[0]
        return answered, struct.unpack_from("=i", reply, 16)[0]

    with being(world):
        sock = world.keep(world.socket.socket(NETLINK, RAW, 0), blocking=True)
        link = struct.pack("=BxHiII", 0, 0, 1, 0, 0)
        for kind in (16, 17, 19, 20, 21, 24, 25):  # NEWLINK, DELLINK, SETLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE
            assert ask(kind, link) == (2, -errno.EPERM), kind
        assert ask(18, link)[0] == 16  # GETLINK
        for group in (30, 31):
            assert code(world.keep(world.socket.socket(NETLINK, RAW, 0)).setsockopt, 270, 1, group) == errno.EPERM


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET, DGRAM])
def test_sec_05_unx_07_udg_01_permission_of_paths(world: UnixWorld, kind: int) -> None:
    """connect() and sendto() take write permission on the socket, and search permission on its directory: EACCES."""
    needs_root(world)
    directory = world.path()
    world.files.mkdir(directory)
    world.files.chmod(directory, 0o755)
    server = world.make(kind)
    server.bind(name := directory + "/s")
    if kind != DGRAM:
        server.listen(9)
    for path, mode, error in (
        (name, 0o755, errno.EACCES),
        (name, 0o702, None),
        (directory, 0o744, errno.EACCES),
        (directory, 0o711, None),
    ):
        world.files.chmod(path, mode)
        with being(world):
            client = world.make(kind)
            assert code(client.connect, name) == error, (path, oct(mode))
            if kind == DGRAM:
                assert code(world.make(DGRAM).sendto, b"x", name) == error, (path, oct(mode))


def test_sec_05_unx_02_permission_to_make(world: UnixWorld) -> None:
    """bind() takes write permission on the directory: EACCES; the socket is its maker's."""
    needs_root(world)
    directory = world.path()
    world.files.mkdir(directory)
    for mode, error in ((0o755, errno.EACCES), (0o777, None)):
        world.files.chmod(directory, mode)
        with being(world):
            assert code(world.make().bind, directory + "/s") == error
    assert world.files.stat(directory + "/s").st_uid == NOBODY


def test_sec_06_ctrl_04_other_peoples_credentials(world: UnixWorld) -> None:
    """An ordinary user that sends another's pid, uid or gid gets EPERM; its own are told as they are."""
    with being(world):
        one, other = world.make_pair(DGRAM)
        other.setsockopt(SOL, kernel.SO_PASSCRED, 1)
        mine = (None, None, None) if world.ours else (os.getpid(), os.geteuid(), os.getegid())
        if world.stack is not None:
            who = world.stack.credentials
            mine = (who.pid, who.uid, who.gid)
        pid, uid, gid = mine
        for wrong in ((1 if pid != 1 else 2, uid, gid), (pid, SOMEBODY, gid), (pid, uid, SOMEBODY)):
            message = [(SOL, kernel.SCM_CREDENTIALS, identity(*wrong))]
            assert code(one.sendmsg, [b"x"], message) == errno.EPERM
        message = [(SOL, kernel.SCM_CREDENTIALS, identity(*mine))]
        one.sendmsg([b"x"], message)
        assert other.recvmsg(9, 100)[:2] == (b"x", message)


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_sec_06_ctrl_08_who_is_captured(world: UnixWorld, kind: int) -> None:
    """SO_PEERCRED has the effective ids of who listened, and of who connected, whoever asks later."""
    needs_root(world)
    listener = world.make(kind)
    listener.bind(world.abstract())
    with being(world, SOMEBODY):
        listener.listen(1)
    with being(world):
        client = world.make(kind)
        client.connect(listener.getsockname())
    served = world.keep(listener.accept()[0])
    for sock, uid in ((client, SOMEBODY), (served, NOBODY), (listener, SOMEBODY)):
        assert struct.unpack("=iII", sock.getsockopt(SOL, kernel.SO_PEERCRED, 12))[1:] == (uid, uid)


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_sec_07_shared_ports_of_others(world: UnixWorld, kind: int) -> None:
    """SO_REUSEPORT shares a port with sockets of the same user: another's is EADDRINUSE, also with SO_REUSEADDR."""

    def sharing(*options: int) -> Any:
        sock = world.keep(world.socket.socket(INET, kind))
        for option in options:
            sock.setsockopt(SOL, option, 1)
        return sock

    needs_root(world)
    with being(world):
        first = sharing(kernel.SO_REUSEPORT)
        first.bind((LOOPBACK, 0))
        assert code(sharing(kernel.SO_REUSEPORT).bind, first.getsockname()) is None
    with being(world, SOMEBODY):
        assert code(sharing(kernel.SO_REUSEPORT).bind, first.getsockname()) == errno.EADDRINUSE
        both = sharing(kernel.SO_REUSEPORT, kernel.SO_REUSEADDR)
        assert code(both.bind, first.getsockname()) == errno.EADDRINUSE


def test_sec_08_messages_to_other_ports(world: UnixWorld) -> None:
    """An ordinary user's rtnetlink socket may send to the kernel, not to another's port nor to a group: EPERM."""
    target = world.keep(world.socket.socket(NETLINK, RAW, 0))
    target.bind((0, 0))
    port = target.getsockname()[0]
    with being(world):
        sock = world.keep(world.socket.socket(NETLINK, RAW, 0))
        for address in ((port, 0), (0, 1)):
            assert code(sock.sendto, b"x" * 16, address) == errno.EPERM
        assert code(sock.connect, (port, 0)) == errno.EPERM
        assert sock.sendto(struct.pack("=IHHII", 16, 99, 1, 1, 0), (0, 0)) == 16


def test_sec_09_names_and_ports_come_back(world: UnixWorld) -> None:
    """Closing gives back ports, abstract names and descriptors in messages nobody has read."""
    before = None
    name = world.abstract()
    port = 0
    for _ in range(3):
        with world.socket.socket(INET, DGRAM) as udp:
            udp.bind((LOOPBACK, port))
            port = udp.getsockname()[1]
        with world.socket.socket(kernel.AF_UNIX, STREAM) as sock:
            sock.bind(name)
            sock.listen()
        one, other = world.socket.socketpair()
        with one, other:
            reading, writing = os.pipe()
            one.sendmsg([b"x"], [(SOL, kernel.SCM_RIGHTS, struct.pack("@i", reading))])
            os.close(reading)
            assert os.write(writing, b"x") == 1
        assert code(os.write, writing, b"x") == errno.EPIPE
        os.close(writing)
        count = len(os.listdir("/proc/self/fd"))
        assert count == (before or count)
        before = count


def test_sec_10_lengths_before_anything_is_taken(world: UnixWorld) -> None:
    """A buffer too small, constant, or a negative length is refused, and nothing is lost of what waits."""
    one, other = world.make_pair()
    one.send(b"12345")
    for error, call, *arguments in (
        (ValueError, other.recv_into, bytearray(2), 3),
        (TypeError, other.recv_into, b"constant"),
        (ValueError, other.recv, -1),
        (OSError, other.getsockopt, SOL, kernel.SO_RCVBUF, 4096),
        (OSError, other.setsockopt, SOL, kernel.SO_RCVTIMEO, b"short"),
    ):
        with pytest.raises(error):
            call(*arguments)
    assert other.recv(9) == b"12345"
