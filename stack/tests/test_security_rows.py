"""Section 1.16, rows SEC-01..10: who may do what, on a Stack with ordinary users (the kernel's side is measured)."""

from __future__ import annotations

import errno
import gc
import os
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.credentials import Capability
from stack.tests.kernel_twin import LOOPBACK, code

INET, INET6, UNIX, NETLINK, VSOCK = 2, 10, 1, 16, 40
STREAM, DGRAM, RAW = 1, 2, 3
SOL = kernel.SOL_SOCKET
USER = Credentials.user(1000)
OTHER = Credentials.user(1001)


def with_only(*capabilities: Capability) -> Credentials:
    return Credentials(uid=1000, gid=1000, capabilities=frozenset(capabilities))


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def test_sec_01_uts_names(stack: Stack) -> None:
    """Setting a UTS name needs CAP_SYS_ADMIN: EPERM, before the name is looked at (UTS-03)."""
    with stack.acting(USER):
        assert code(stack.socket.sethostname, "other") == errno.EPERM
        assert code(stack.socket.sethostname, "x" * 100) == errno.EPERM
        assert code(stack.setdomainname, "other") == errno.EPERM
    assert code(stack.socket.sethostname, "x" * 65) == errno.EINVAL
    with stack.acting(with_only(Capability.SYS_ADMIN)):
        stack.socket.sethostname("other")
        assert stack.socket.gethostname() == "other"


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_sec_02_low_ports(stack: Stack, kind: int) -> None:
    """Ports 1..1023 need CAP_NET_BIND_SERVICE: EACCES; so do vsock's."""
    module = stack.socket
    for family, address in ((INET, LOOPBACK), (INET6, "::1")):
        with stack.acting(USER):
            for port, allowed in ((1, False), (1023, False), (1024, True), (0, True)):
                with module.socket(family, kind) as sock:
                    if allowed:
                        sock.bind((address, port))
                    else:
                        assert code(sock.bind, (address, port)) == errno.EACCES
        with stack.acting(with_only(Capability.NET_BIND_SERVICE)), module.socket(family, kind) as sock:
            sock.bind((address, 1023))
    with stack.acting(USER), module.socket(VSOCK, STREAM) as sock:
        assert code(sock.bind, (0xFFFFFFFF, 1023)) == errno.EACCES
        sock.bind((0xFFFFFFFF, 1024))


def test_sec_03_raw_sockets(stack: Stack) -> None:
    """SOCK_RAW of IP needs CAP_NET_RAW: EPERM."""
    module = stack.socket
    with stack.acting(USER):
        for family, protocol in ((INET, 1), (INET, 255), (INET6, 58)):
            assert code(module.socket, family, RAW, protocol) == errno.EPERM
    with stack.acting(with_only(Capability.NET_RAW)):
        module.socket(INET, RAW, 1).close()


@pytest.mark.parametrize(
    ("level", "option", "value", "error", "capability"),
    [
        (SOL, 12, 7, errno.EPERM, Capability.NET_ADMIN),  # SO_PRIORITY
        (SOL, 12, -1, errno.EPERM, Capability.NET_RAW),
        (SOL, 32, 1 << 16, errno.EPERM, Capability.NET_ADMIN),  # SO_SNDBUFFORCE
        (SOL, 33, 1 << 16, errno.EPERM, Capability.NET_ADMIN),  # SO_RCVBUFFORCE
        (SOL, 36, 5, errno.EPERM, Capability.NET_ADMIN),  # SO_MARK
        (SOL, 1, 1, errno.EACCES, Capability.NET_ADMIN),  # SO_DEBUG
        (0, 19, 1, errno.EPERM, Capability.NET_ADMIN),  # IP_TRANSPARENT
    ],
)
def test_sec_04_privileged_options(
    stack: Stack, level: int, option: int, value: int, error: int, capability: Capability
) -> None:
    """Privileged options: SO_PRIORITY outside 0..6, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_MARK and IP_TRANSPARENT are
    EPERM, SO_DEBUG EACCES.
    """
    module = stack.socket
    with stack.acting(USER), module.socket(INET, DGRAM) as sock:
        assert code(sock.setsockopt, level, option, value) == error
    with stack.acting(with_only(capability)), module.socket(INET, DGRAM) as sock:
        sock.setsockopt(level, option, value)


def test_sec_04_unprivileged_values(stack: Stack) -> None:
    """What needs no capability of those: priorities 0..6, SO_DEBUG off."""
    with stack.acting(USER), stack.socket.socket(INET, DGRAM) as sock:
        for priority in (0, 6):
            sock.setsockopt(SOL, kernel.SO_PRIORITY, priority)
        sock.setsockopt(SOL, kernel.SO_DEBUG, 0)


def test_sec_04_rtnetlink(stack: Stack) -> None:
    """Changing rtnetlink requests answer -EPERM without CAP_NET_ADMIN, asking is free; groups 30 and 31 are closed."""
    module = stack.socket

    def ask(sock: Any, kind: int, flags: int, body: bytes) -> tuple[int, int]:
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        reply = sock.recv(65536)
        answered = struct.unpack_from("=H", reply, 4)[0]
        return answered, struct.unpack_from("=i", reply, 16)[0] if answered == 2 else 0

    with stack.acting(USER), module.socket(NETLINK, RAW, 0) as sock:
        new_link = struct.pack("=BxHiII", 0, 0, 1, 1, 1)
        assert ask(sock, 16, 1 | 4, new_link) == (2, -errno.EPERM)  # RTM_NEWLINK
        assert ask(sock, 18, 1, struct.pack("=BxHiII", 0, 0, 1, 0, 0))[0] == 16  # RTM_GETLINK
        for group in (30, 31):
            assert code(sock.setsockopt, 270, 1, group) == errno.EPERM
        sock.setsockopt(270, 1, 1)
    with module.socket(NETLINK, RAW, 0) as sock:
        assert ask(sock, 16, 1 | 4, new_link) == (2, 0)
        sock.setsockopt(270, 1, 30)


def test_sec_05_unix_paths_and_names(stack: Stack) -> None:
    """A path needs write permission on its socket: EACCES; abstract names are of one network namespace."""
    module = stack.socket
    with module.socket(UNIX, STREAM) as listener:
        listener.bind("/closed")
        listener.listen()
        with stack.acting(USER), module.socket(UNIX, STREAM) as client:
            assert code(client.connect, "/closed") == errno.EACCES
        with module.socket(UNIX, STREAM) as client:
            client.connect("/closed")
    with module.socket(UNIX, STREAM) as listener:
        listener.bind("\0name")
        listener.listen()
        with stack.acting():
            stack.setns(stack.add_netns("inner"))
            with module.socket(UNIX, STREAM) as client:
                assert code(client.connect, "\0name") == errno.ECONNREFUSED
            with module.socket(UNIX, STREAM) as twin:
                twin.bind("\0name")


def test_sec_06_credentials(stack: Stack) -> None:
    """SCM_CREDENTIALS cannot be forged: EPERM; the peer's are those of when it connected or listened."""
    module = stack.socket
    with module.socket(UNIX, STREAM) as listener:
        listener.bind("\0name")
        with stack.acting(Credentials.user(1001, pid=77)):
            listener.listen()
        with stack.acting(Credentials.user(1000, pid=42)), module.socket(UNIX, STREAM) as client:
            client.connect("\0name")
            served, _ = listener.accept()
            with served:
                with stack.acting(Credentials()):
                    seen = struct.unpack("3i", served.getsockopt(SOL, kernel.SO_PEERCRED, 12))
                assert seen == (42, 1000, 1000)
                assert struct.unpack("3i", client.getsockopt(SOL, kernel.SO_PEERCRED, 12)) == (77, 1001, 1001)
                served.setsockopt(SOL, kernel.SO_PASSCRED, 1)
                for forged in ((43, 1000, 1000), (42, 0, 1000), (42, 1000, 0)):
                    message = [(SOL, kernel.SCM_CREDENTIALS, struct.pack("3i", *forged))]
                    assert code(client.sendmsg, [b"x"], message) == errno.EPERM
                message = [(SOL, kernel.SCM_CREDENTIALS, struct.pack("3i", 42, 1000, 1000))]
                client.sendmsg([b"x"], message)
                assert served.recvmsg(1, 100)[1] == message


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
def test_sec_07_port_stealing(stack: Stack, kind: int) -> None:
    """SO_REUSEPORT shares a port with the same user only: EADDRINUSE for another's."""
    module = stack.socket
    with stack.acting(USER), module.socket(INET, kind) as first:
        first.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
        first.bind((LOOPBACK, 0))
        if kind == STREAM:
            first.listen()
        with module.socket(INET, kind) as second:
            second.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
            second.bind(first.getsockname())
        with stack.acting(OTHER), module.socket(INET, kind) as thief:
            thief.setsockopt(SOL, kernel.SO_REUSEPORT, 1)
            assert code(thief.bind, first.getsockname()) == errno.EADDRINUSE


def test_sec_08_netlink_to_others(stack: Stack) -> None:
    """Without CAP_NET_ADMIN, sending to another socket or to a group is EPERM; on protocols open to users it is not."""
    module = stack.socket
    with module.socket(NETLINK, RAW, 0) as target:
        target.bind((4711, 0))
        with stack.acting(USER), module.socket(NETLINK, RAW, 0) as sock:
            assert code(sock.sendto, b"x" * 16, (4711, 0)) == errno.EPERM
            assert code(sock.sendto, b"x" * 16, (0, 1)) == errno.EPERM
            assert code(sock.connect, (4711, 0)) == errno.EPERM
        with module.socket(NETLINK, RAW, 0) as sock:
            assert sock.sendto(b"x" * 16, (4711, 0)) == 16


def test_sec_09_nothing_leaks(stack: Stack) -> None:
    """Closing a socket frees its port, its abstract name, its netlink port, and descriptors that were under way."""
    module = stack.socket
    gc.collect()  # what others left goes now, not in between
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with module.socket(INET, DGRAM) as sock:
            sock.bind((LOOPBACK, 5353))
        with module.socket(INET, STREAM) as sock:
            sock.bind((LOOPBACK, 5353))
            sock.listen()
        with module.socket(UNIX, STREAM) as sock:
            sock.bind("\0name")
            sock.listen()
        with module.socket(NETLINK, RAW, 0) as sock:
            sock.bind((4711, 0))
        with module.socket(VSOCK, STREAM) as sock:
            sock.bind((0xFFFFFFFF, 5353))
        one, other = module.socketpair(UNIX, STREAM)
        reading, writing = os.pipe()
        with one, other:
            module.send_fds(one, [b"x"], [reading])
            os.close(reading)
        assert code(os.write, writing, b"x") == errno.EPIPE
        os.close(writing)
    assert len(os.listdir("/proc/self/fd")) <= before  # what others left may have gone meanwhile


def test_sec_10_lengths_are_checked_first(stack: Stack) -> None:
    """A buffer that is too small, or none at all, is refused before anything is taken (partial copies: CORE-18)."""
    one, other = stack.socket.socketpair(UNIX, STREAM)
    with one, other:
        one.send(b"12345")
        with pytest.raises(ValueError, match="too small"):
            other.recv_into(bytearray(2), 3)
        with pytest.raises(TypeError):
            other.recv_into(b"constant")
        with pytest.raises(ValueError, match="negative"):
            other.recv(-1)
        assert code(other.setsockopt, SOL, kernel.SO_RCVTIMEO, b"short") == errno.EINVAL
        with pytest.raises(OSError, match="out of range"):
            other.getsockopt(SOL, kernel.SO_RCVBUF, 4096)
        assert other.recv(10) == b"12345"
