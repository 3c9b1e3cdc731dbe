"""Options of level SOL_SOCKET that few programs set, on the kernel's sockets and on ours (section 2.1).

What most programs set: `test_opt_datagram` and `test_stream_options_twin`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket as kernel
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.link import cable
from stack.socket.options_device import SO_BINDTOIFINDEX, SO_TIMESTAMPING_NEW
from stack.socket.options_socket import (
    SO_BPF_EXTENSIONS,
    SO_BSDCOMPAT,
    SO_BUF_LOCK,
    SO_BUSY_POLL,
    SO_INCOMING_CPU,
    SO_INCOMING_NAPI_ID,
    SO_NETNS_COOKIE,
    SO_NOFCS,
    SO_PREFER_BUSY_POLL,
    SO_RCVMARK,
    SO_RCVPRIORITY,
    SO_RCVTIMEO_NEW,
    SO_SNDLOWAT,
    SO_SNDTIMEO_NEW,
    SO_TXREHASH,
    SO_TXTIME,
    SO_WIFI_STATUS,
)
from stack.tests.kernel_twin import LOOPBACK, World, code

SOL = kernel.SOL_SOCKET
ROOT = os.geteuid() == 0
#: Of a SOCK_DGRAM and a SOCK_STREAM socket alike.
KINDS = pytest.mark.parametrize("kind", [kernel.SOCK_DGRAM, kernel.SOCK_STREAM], ids=["udp", "tcp"])
CLOCK_MONOTONIC = 1
TIMEVAL = struct.Struct("@ll")


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def pair(world: World) -> tuple[Any, Any]:
    """A sender connected to a receiver of datagrams."""
    receiver = world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    receiver.bind((LOOPBACK, 0))
    receiver.settimeout(10)
    sender = world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    return sender, receiver


# -- what does nothing, and says so -----------------------------------------------------------------------------------


@KINDS
def test_opt_so_bsdcompat_is_taken_and_stays_off(world: World, kind: int) -> None:
    """SO_BSDCOMPAT is accepted and forgotten: it reads 0 whatever was set."""
    with world.socket.socket(kernel.AF_INET, kind) as sock:
        for value in (1, 0, -5):
            sock.setsockopt(SOL, SO_BSDCOMPAT, value)
            assert sock.getsockopt(SOL, SO_BSDCOMPAT) == 0


@KINDS
def test_opt_so_sndlowat_is_always_1(world: World, kind: int) -> None:
    """SO_SNDLOWAT reads 1 and cannot be set: ENOPROTOOPT, EINVAL for less than an int."""
    with world.socket.socket(kernel.AF_INET, kind) as sock:
        assert sock.getsockopt(SOL, SO_SNDLOWAT) == 1
        assert code(sock.setsockopt, SOL, SO_SNDLOWAT, 2) == errno.ENOPROTOOPT
        assert code(sock.setsockopt, SOL, SO_SNDLOWAT, b"\1") == errno.EINVAL


def test_opt_so_wifi_status_tells_nothing_without_a_radio(world: World) -> None:
    """SO_WIFI_STATUS is kept, and a datagram that came by no radio brings no control message."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, SO_WIFI_STATUS, 7)
        assert receiver.getsockopt(SOL, SO_WIFI_STATUS) == 1
        sender.send(b"x")
        assert receiver.recvmsg(9, 200)[:2] == (b"x", [])


@KINDS
def test_opt_so_busy_poll_is_not_negative(world: World, kind: int) -> None:
    """SO_BUSY_POLL is a time in microseconds: negative is EINVAL; 0 is the default."""
    with world.socket.socket(kernel.AF_INET, kind) as sock:
        assert sock.getsockopt(SOL, SO_BUSY_POLL) == 0
        assert code(sock.setsockopt, SOL, SO_BUSY_POLL, -1) == errno.EINVAL
        if ROOT or world.network is not None:
            sock.setsockopt(SOL, SO_BUSY_POLL, 50)
            assert sock.getsockopt(SOL, SO_BUSY_POLL) == 50


def test_opt_so_prefer_busy_poll_is_the_administrators(world: World) -> None:
    """SO_PREFER_BUSY_POLL: a bool that needs CAP_NET_ADMIN to be switched on, EPERM, and none to be switched off."""
    if ROOT or world.network is not None:
        with world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            sock.setsockopt(SOL, SO_PREFER_BUSY_POLL, 3)
            assert sock.getsockopt(SOL, SO_PREFER_BUSY_POLL) == 1
    with (
        Network() as network,
        Stack("user", network=network, credentials=Credentials.user(1000)) as user,
        user.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock,
    ):
        assert code(sock.setsockopt, SOL, SO_PREFER_BUSY_POLL, 1) == errno.EPERM
        sock.setsockopt(SOL, SO_PREFER_BUSY_POLL, 0)


@KINDS
def test_opt_so_bpf_extensions_are_counted(world: World, kind: int) -> None:
    """SO_BPF_EXTENSIONS tells how far classic filters may reach beyond the packet; it is read-only."""
    with world.socket.socket(kernel.AF_INET, kind) as sock:
        assert sock.getsockopt(SOL, SO_BPF_EXTENSIONS) == 64
        assert code(sock.setsockopt, SOL, SO_BPF_EXTENSIONS, 1) == errno.ENOPROTOOPT


@KINDS
def test_opt_so_incoming_cpu_and_napi_id_of_a_socket_nothing_came_to(world: World, kind: int) -> None:
    """SO_INCOMING_CPU is -1 until something came or it is set; SO_INCOMING_NAPI_ID is 0 and read-only."""
    with world.socket.socket(kernel.AF_INET, kind) as sock:
        assert sock.getsockopt(SOL, SO_INCOMING_CPU) == -1
        sock.setsockopt(SOL, SO_INCOMING_CPU, 5)
        assert sock.getsockopt(SOL, SO_INCOMING_CPU) == 5
        assert sock.getsockopt(SOL, SO_INCOMING_NAPI_ID) == 0
        assert code(sock.setsockopt, SOL, SO_INCOMING_NAPI_ID, 1) == errno.ENOPROTOOPT


@pytest.mark.parametrize("kind", [kernel.SOCK_RAW, kernel.SOCK_DGRAM], ids=["raw", "dgram"])
@pytest.mark.parametrize("side", ["kernel", "ours"])
def test_opt_so_nofcs_is_for_cards_that_can(side: str, kind: int) -> None:
    """SO_NOFCS: a frame without checksum of the link is EPROTONOSUPPORT where the link cannot leave it out: on `lo`."""
    if side == "kernel" and not ROOT:
        pytest.skip("AF_PACKET sockets of the kernel are root's")
    with Network() as network:
        module: Any = kernel if side == "kernel" else network.stack("gw").socket
        with module.socket(kernel.AF_PACKET, kind, 0) as sock:
            target = ("lo", 0x88B5, 0, 0, bytes(6))
            assert sock.sendto(bytes(60), target) == 60
            sock.setsockopt(SOL, SO_NOFCS, 1)
            assert sock.getsockopt(SOL, SO_NOFCS) == 1
            assert code(sock.sendto, bytes(60), target) == errno.EPROTONOSUPPORT
            sock.setsockopt(SOL, SO_NOFCS, 0)
            assert sock.sendto(bytes(60), target) == 60


# -- time-outs and times ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("new", "old"), [(SO_RCVTIMEO_NEW, 20), (SO_SNDTIMEO_NEW, 21)], ids=["receive", "send"])
def test_opt_so_rcvtimeo_new_and_sndtimeo_new_are_the_old_ones(world: World, new: int, old: int) -> None:
    """SO_RCVTIMEO_NEW and SO_SNDTIMEO_NEW set and show the same time as the old numbers, with the same errors."""
    with world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
        sock.setsockopt(SOL, new, TIMEVAL.pack(3, 500_000))
        assert sock.getsockopt(SOL, old, 16) == TIMEVAL.pack(3, 500_000)
        sock.setsockopt(SOL, old, TIMEVAL.pack(2, 0))
        assert sock.getsockopt(SOL, new, 16) == TIMEVAL.pack(2, 0)
        assert code(sock.setsockopt, SOL, new, TIMEVAL.pack(0, 1_000_000)) == errno.EDOM
        assert code(sock.setsockopt, SOL, new, bytes(15)) == errno.EINVAL


def test_opt_so_rcvtimeo_new_ends_a_blocking_receive(world: World) -> None:
    """SO_RCVTIMEO_NEW: a receive that waited so long is EAGAIN; less than no time means not to wait."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.settimeout(None)
        for waits in ((0, 1000), (-1, 0)):
            receiver.setsockopt(SOL, SO_RCVTIMEO_NEW, TIMEVAL.pack(*waits))
            assert code(receiver.recv, 1) == errno.EAGAIN


def test_opt_so_sndtimeo_new_ends_a_blocking_send(world: World) -> None:
    """SO_SNDTIMEO_NEW: a send that found no room for so long is EAGAIN."""
    client, served = world.pair()
    with client, served:
        client.settimeout(None)
        client.setsockopt(SOL, SO_SNDTIMEO_NEW, TIMEVAL.pack(0, 1000))
        for _ in range(100):
            try:
                client.send(bytes(1 << 20))
            except BlockingIOError:
                break
        else:
            pytest.fail("a hundred megabytes were taken from a sender whose peer reads nothing")


def test_opt_so_timestamping_new_has_its_own_message(world: World) -> None:
    """SO_TIMESTAMPING_NEW: three times in a control message of its own number."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, SO_TIMESTAMPING_NEW, 8 | 16)  # RX_SOFTWARE, SOFTWARE
        assert receiver.getsockopt(SOL, SO_TIMESTAMPING_NEW) == 24
        for _ in range(2000):  # the kernel switches its clock on a little later
            sender.send(b"x")
            messages = receiver.recvmsg(9, 200)[1]
            if messages or world.network is not None:
                break
            select.select([], [], [], 0.001)
        ((level, kind, data),) = messages
        assert (level, kind, len(data)) == (SOL, SO_TIMESTAMPING_NEW, 48)


def test_opt_so_txtime_allows_scm_txtime(world: World) -> None:
    """SO_TXTIME names a clock and flags; only then a time to send at may come with a datagram, 8 bytes, else EINVAL.

    Nothing between these sockets holds packets back, so a time that has passed is sent at once.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        early = [(SOL, SO_TXTIME, struct.pack("@Q", 12_345))]
        assert code(sender.sendmsg, [b"x"], early) == errno.EINVAL
        assert code(sender.setsockopt, SOL, SO_TXTIME, struct.pack("@iI", CLOCK_MONOTONIC, 4)) == errno.EINVAL
        assert code(sender.setsockopt, SOL, SO_TXTIME, bytes(7)) == errno.EINVAL
        sender.setsockopt(SOL, SO_TXTIME, struct.pack("@iI", CLOCK_MONOTONIC, 0))
        assert sender.getsockopt(SOL, SO_TXTIME, 8) == struct.pack("@iI", CLOCK_MONOTONIC, 0)
        assert sender.sendmsg([b"now"], early) == 3
        assert receiver.recv(9) == b"now"
        assert code(sender.sendmsg, [b"x"], [(SOL, SO_TXTIME, struct.pack("@I", 1))]) == errno.EINVAL


# -- where, and what of -----------------------------------------------------------------------------------------------


def test_opt_so_bindtoifindex_is_so_bindtodevice_by_number(world: World) -> None:
    """SO_BINDTOIFINDEX: the same setting as SO_BINDTODEVICE; negative is EINVAL, 0 any interface."""
    with world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
        lo = world.socket.if_nametoindex("lo")
        assert sock.getsockopt(SOL, SO_BINDTOIFINDEX) == 0
        sock.setsockopt(SOL, SO_BINDTOIFINDEX, lo)
        assert sock.getsockopt(SOL, kernel.SO_BINDTODEVICE, 16) == b"lo\0"
        assert code(sock.setsockopt, SOL, SO_BINDTOIFINDEX, -1) == errno.EINVAL
        if ROOT or world.network is not None:
            sock.setsockopt(SOL, SO_BINDTOIFINDEX, 0)
            assert sock.getsockopt(SOL, kernel.SO_BINDTODEVICE, 16) == b""


def test_opt_so_bindtoifindex_hears_one_interface_only() -> None:
    """SO_BINDTOIFINDEX: what arrives through another interface is not for this socket."""
    with Network() as network:
        left, right = network.stack("left"), network.stack("right")
        for net in ("10.1.0.", "10.2.0."):
            ends = cable(network.scheduler)
            left.add_interface(ends[0], addresses=[f"{net}1/24"])
            right.add_interface(ends[1], addresses=[f"{net}2/24"])
        with (
            right.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as bound,
            left.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sender,
        ):
            bound.bind(("0.0.0.0", 0))
            bound.settimeout(10)
            port = bound.getsockname()[1]
            bound.setsockopt(SOL, SO_BINDTOIFINDEX, right.socket.if_nametoindex("eth1"))
            sender.sendto(b"other", ("10.1.0.2", port))
            sender.sendto(b"mine", ("10.2.0.2", port))
            assert bound.recv(9) == b"mine"
            bound.setsockopt(SOL, SO_BINDTOIFINDEX, 0)
            sender.sendto(b"any", ("10.1.0.2", port))
            assert bound.recv(9) == b"any"


def test_opt_so_netns_cookie_is_the_namespaces(world: World) -> None:
    """SO_NETNS_COOKIE: eight bytes, the same for all sockets of a namespace; other lengths EINVAL, set ENOPROTOOPT."""
    with (
        world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as one,
        world.socket.socket(kernel.AF_UNIX, kernel.SOCK_STREAM) as other,
    ):
        cookie = one.getsockopt(SOL, SO_NETNS_COOKIE, 8)
        assert cookie != bytes(8)
        assert other.getsockopt(SOL, SO_NETNS_COOKIE, 8) == cookie
        assert code(one.getsockopt, SOL, SO_NETNS_COOKIE) == errno.EINVAL
        assert code(one.setsockopt, SOL, SO_NETNS_COOKIE, bytes(8)) == errno.ENOPROTOOPT


def test_opt_so_netns_cookie_tells_namespaces_apart() -> None:
    """SO_NETNS_COOKIE: two Stacks have two."""
    with Network() as network:
        cookies = set()
        for name in ("one", "two"):
            with network.stack(name).socket.socket() as sock:
                cookies.add(sock.getsockopt(SOL, SO_NETNS_COOKIE, 8))
        assert len(cookies) == 2


def noted(messages: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    """What SO_MARK and SO_PRIORITY messages say, in this order."""
    assert [each[:2] for each in messages] == [(SOL, kernel.SO_MARK), (SOL, kernel.SO_PRIORITY)]
    return tuple(int.from_bytes(data, sys.byteorder) for _, _, data in messages)


def listening(world: World, family: int, kind: int) -> tuple[Any, Any]:
    """A sender and a receiver that is told of marks and priorities."""
    protocol = 253 if kind == kernel.SOCK_RAW else 0  # for experiments, RFC 3692
    receiver = world.socket.socket(family, kind, protocol)
    receiver.bind(("127.0.0.1" if family == kernel.AF_INET else "::1", 0))
    receiver.settimeout(10)
    for option in (SO_RCVMARK, SO_RCVPRIORITY):
        assert code_of(receiver.setsockopt, SOL, option, 1) in (None, errno.ENOPROTOOPT)
    sender = world.socket.socket(family, kind, protocol)
    sender.connect(receiver.getsockname())
    return sender, receiver


def code_of(call: Any, *args: Any) -> int | None:
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("family", [kernel.AF_INET, kernel.AF_INET6], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", [kernel.SOCK_DGRAM, kernel.SOCK_RAW], ids=["udp", "raw"])
def test_opt_so_rcvmark_and_rcvpriority_tell_what_a_local_sender_set(world: World, family: int, kind: int) -> None:
    """SO_RCVMARK, SO_RCVPRIORITY: control messages with the sender's SO_MARK and SO_PRIORITY, as sockets set them or as
    one call asked; 0 without; IP_TOS of a call has its priority.
    """
    if world.network is None and not ROOT:
        pytest.skip("raw sockets and marks of the kernel are root's")
    with contextlib.ExitStack() as stack:
        sender, receiver = (stack.enter_context(sock) for sock in listening(world, family, kind))
        if code_of(receiver.getsockopt, SOL, SO_RCVPRIORITY) is not None:
            pytest.skip("this kernel is older than 6.14")
        sender.send(b"plain")
        assert noted(receiver.recvmsg(99, 500)[1]) == (0, 0)
        sender.setsockopt(SOL, kernel.SO_MARK, 7)
        sender.setsockopt(SOL, kernel.SO_PRIORITY, 5)
        sender.send(b"both")
        assert noted(receiver.recvmsg(99, 500)[1]) == (7, 5)
        one = [(SOL, kernel.SO_MARK, struct.pack("@i", -2)), (SOL, kernel.SO_PRIORITY, struct.pack("@i", 3))]
        sender.sendmsg([b"x"], one)
        assert noted(receiver.recvmsg(99, 500)[1]) == (0xFFFFFFFE, 3)
        if family == kernel.AF_INET:
            sender.sendmsg([b"x"], [(kernel.IPPROTO_IP, kernel.IP_TOS, b"\x10")])
            assert noted(receiver.recvmsg(99, 500)[1]) == (7, 6)
        receiver.setsockopt(SOL, SO_RCVMARK, 0)
        sender.send(b"half")
        assert [each[1] for each in receiver.recvmsg(99, 500)[1]] == [kernel.SO_PRIORITY]


@pytest.mark.parametrize("side", ["kernel", "ours"])
def test_opt_so_rcvmark_and_rcvpriority_of_packet_sockets(side: str) -> None:
    """SO_RCVMARK, SO_RCVPRIORITY: a packet socket on `lo` is told of other packet sockets' too."""
    if side == "kernel" and not ROOT:
        pytest.skip("AF_PACKET sockets of the kernel are root's")
    ethertype = 0x88B5  # for experiments, IEEE 802
    with Network() as network:
        module: Any = kernel if side == "kernel" else network.stack("gw").socket
        with (
            module.socket(kernel.AF_PACKET, kernel.SOCK_DGRAM, kernel.htons(ethertype)) as receiver,
            module.socket(kernel.AF_PACKET, kernel.SOCK_DGRAM, 0) as sender,
        ):
            receiver.bind(("lo", ethertype))
            receiver.settimeout(10)
            for option in (SO_RCVMARK, SO_RCVPRIORITY):
                if code_of(receiver.setsockopt, SOL, option, 1) == errno.ENOPROTOOPT:
                    pytest.skip("this kernel is older than 6.14")
            sender.setsockopt(SOL, kernel.SO_MARK, 99)
            sender.setsockopt(SOL, kernel.SO_PRIORITY, 4)
            sender.sendto(b"x", ("lo", ethertype, 0, 0, bytes(6)))
            assert noted(receiver.recvmsg(99, 500)[1]) == (99, 4)


def test_opt_so_rcvmark_is_0_for_what_came_over_a_wire() -> None:
    """SO_RCVMARK, SO_RCVPRIORITY: marks stay on their host."""
    with Network() as network:
        left, right = network.stack("left"), network.stack("right")
        ends = cable(network.scheduler)
        left.add_interface(ends[0], addresses=["10.1.0.1/24"])
        right.add_interface(ends[1], addresses=["10.1.0.2/24"])
        with (
            left.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sender,
            right.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as receiver,
        ):
            receiver.bind(("0.0.0.0", 0))
            receiver.settimeout(10)
            receiver.setsockopt(SOL, SO_RCVMARK, 1)
            receiver.setsockopt(SOL, SO_RCVPRIORITY, 1)
            sender.setsockopt(SOL, kernel.SO_MARK, 7)
            sender.setsockopt(SOL, kernel.SO_PRIORITY, 5)
            sender.sendto(b"x", ("10.1.0.2", receiver.getsockname()[1]))
            assert noted(receiver.recvmsg(99, 500)[1]) == (0, 0)


# -- buffers and flows ------------------------------------------------------------------------------------------------


@KINDS
def test_opt_so_buf_lock_is_two_bits(world: World, kind: int) -> None:
    """SO_BUF_LOCK: bit 0 for SO_SNDBUF, bit 1 for SO_RCVBUF, set with them or by itself; anything else EINVAL."""
    with world.socket.socket(kernel.AF_INET, kind) as sock:
        assert sock.getsockopt(SOL, SO_BUF_LOCK) == 0
        sock.setsockopt(SOL, kernel.SO_RCVBUF, 50_000)
        assert sock.getsockopt(SOL, SO_BUF_LOCK) == 2
        sock.setsockopt(SOL, SO_BUF_LOCK, 1)
        assert sock.getsockopt(SOL, SO_BUF_LOCK) == 1
        for value in (-1, 4):
            assert code(sock.setsockopt, SOL, SO_BUF_LOCK, value) == errno.EINVAL


def _streamed(sender: Any, receiver: Any, amount: int) -> None:
    """Send `amount` bytes and read them, in turns that never wait for each other."""
    receiver.settimeout(10)
    chunk = bytes(32 << 10)
    for _ in range(amount // len(chunk)):
        sender.sendall(chunk)
        left = len(chunk)
        while left:
            left -= len(receiver.recv(left))


@pytest.mark.parametrize(("lock", "grows"), [(None, True), (3, False), (0, True)], ids=["unset", "locked", "unlocked"])
def test_opt_so_buf_lock_keeps_buffers_as_they_are(world: World, lock: int | None, grows: bool) -> None:
    """SO_BUF_LOCK: a locked receive buffer is not tuned by traffic, an unlocked one is again."""
    with world.listener() as listener:
        client = world.socket.socket()
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with client, served:
            if lock is not None:
                served.setsockopt(SOL, kernel.SO_RCVBUF, served.getsockopt(SOL, kernel.SO_RCVBUF) // 2)
                served.setsockopt(SOL, SO_BUF_LOCK, lock)
            before = served.getsockopt(SOL, kernel.SO_RCVBUF)
            _streamed(client, served, 4 << 20)
            after = served.getsockopt(SOL, kernel.SO_RCVBUF)
            if not grows:
                assert after == before
            elif world.network is not None:
                assert after > before
            else:  # when the kernel tunes depends on the speed of its loopback
                assert after >= before


def test_opt_so_txrehash_is_for_tcp(world: World) -> None:
    """SO_TXREHASH: 1 for TCP, which may set 0, 1 or -1 (the default); EINVAL else; EOPNOTSUPP for other sockets."""
    with world.socket.socket() as stream, world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as datagram:
        assert stream.getsockopt(SOL, SO_TXREHASH) == 1
        for value, shown in ((0, 0), (1, 1), (-1, 1)):
            stream.setsockopt(SOL, SO_TXREHASH, value)
            assert stream.getsockopt(SOL, SO_TXREHASH) == shown
        for value in (-2, 2):
            assert code(stream.setsockopt, SOL, SO_TXREHASH, value) == errno.EINVAL
        for value in (-2, 0, 1):
            assert code(datagram.setsockopt, SOL, SO_TXREHASH, value) == errno.EOPNOTSUPP
