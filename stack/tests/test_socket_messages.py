"""Flags of send and receive calls, batches, control messages and the error queue of UDP sockets, on the kernel's and
on ours (sections 1.3 and 1.4 of the socket semantics, rows MM-01 to MM-04).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stack import Network
from stack.socket.poll import ERR, IN, OUT
from stack.tests.kernel_twin import LOOPBACK, World, code

IP_RECVERR, IPV6_RECVERR = 11, 25
MSG_PROBE, MSG_ZEROCOPY, MSG_WAITFORONE = 0x10, 0x4000000, 0x10000
UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
FAMILIES = pytest.mark.parametrize("family", [kernel.AF_INET, kernel.AF_INET6], ids=["v4", "v6"])
LOCAL: dict[int, str] = {kernel.AF_INET: LOOPBACK, kernel.AF_INET6: "::1"}
NOW = kernel.MSG_DONTWAIT


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def datagram(world: World, family: int = kernel.AF_INET) -> Any:
    sock = world.socket.socket(family, kernel.SOCK_DGRAM)
    sock.settimeout(10)
    return sock


def pair(world: World, family: int = kernel.AF_INET) -> tuple[Any, Any]:
    """A sender connected to a receiver."""
    receiver = datagram(world, family)
    receiver.bind((LOCAL[family], 0))
    sender = datagram(world, family)
    sender.connect(receiver.getsockname())
    return sender, receiver


def settled(world: World, sock: Any) -> Any:
    world.settle(sock, IN)
    return sock


def empty(world: World, sock: Any) -> bool:
    sock.settimeout(None)
    try:
        return code(sock.recv, 1, NOW) == errno.EAGAIN
    finally:
        sock.settimeout(10)


# -- flags ------------------------------------------------------------------------------------------------------------


def test_msg_peek_does_not_consume(world: World) -> None:
    """MSG_PEEK: the datagram stays, again and again; truncation is told as for a real receive."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.send(b"hello")
        assert receiver.recv(10, kernel.MSG_PEEK) == b"hello"
        data, _, flags, _ = receiver.recvmsg(2, 0, kernel.MSG_PEEK)
        assert (data, flags) == (b"he", kernel.MSG_TRUNC)
        assert receiver.recv(10) == b"hello"
        assert empty(world, receiver)


def test_msg_trunc_tells_the_real_length(world: World) -> None:
    """MSG_TRUNC in: the call answers the length of the datagram; out: it did not fit."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.send(b"hello")
        target = bytearray(2)
        assert receiver.recv_into(target, 2, kernel.MSG_TRUNC | kernel.MSG_PEEK) == 5
        assert target == b"he"
        assert receiver.recvmsg(2, 0, 0)[2] == kernel.MSG_TRUNC


def test_msg_dontwait_does_not_wait(world: World) -> None:
    """MSG_DONTWAIT: EAGAIN where a blocking call would wait; what is there is received."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.settimeout(None)
        for call in (
            lambda: receiver.recv(1, NOW),
            lambda: receiver.recvfrom(1, NOW),
            lambda: receiver.recvmsg(1, 0, NOW),
            lambda: receiver.recv_into(bytearray(1), 1, NOW),
        ):
            assert code(call) == errno.EAGAIN
        assert sender.send(b"x", NOW) == 1
        settled(world, receiver)
        assert receiver.recv(1, NOW) == b"x"


def test_msg_waitall_is_one_datagram(world: World) -> None:
    """MSG_WAITALL: a datagram is never waited for to be longer."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.send(b"abc")
        assert receiver.recv(10, kernel.MSG_WAITALL) == b"abc"


def test_msg_more_collects_one_datagram(world: World) -> None:
    """MSG_MORE: what is sent is kept until a send without it, which sends all as one; other addresses are not looked
    at meanwhile; what gets too long is EMSGSIZE and gone; closing gives it up.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        assert sender.send(b"one", kernel.MSG_MORE) == 3
        assert empty(world, receiver)
        sender.send(b"two", kernel.MSG_MORE)
        sender.sendto(b"three", (LOOPBACK, 1))
        assert receiver.recv(20) == b"onetwothree"
        sender.send(b"", kernel.MSG_MORE)
        assert empty(world, receiver)
        sender.send(b"")
        assert receiver.recv(20) == b""
        sender.send(b"m", kernel.MSG_MORE)
        assert code(sender.send, bytes(65507), kernel.MSG_MORE) == errno.EMSGSIZE
        sender.send(b"after")
        assert receiver.recv(20) == b"after"
        sender.send(b"lost", kernel.MSG_MORE)
        sender.close()
        assert empty(world, receiver)


def test_msg_confirm_and_probe(world: World) -> None:
    """MSG_CONFIRM is a hint; with MSG_PROBE nothing is sent, only the way is looked for."""
    sender, receiver = pair(world)
    with sender, receiver:
        for flags in (MSG_PROBE, kernel.MSG_CONFIRM | MSG_PROBE):
            assert sender.send(b"", flags) == 0
            assert sender.send(b"x", flags) == 1
        assert empty(world, receiver)
        sender.send(b"y", kernel.MSG_CONFIRM)
        assert receiver.recv(5) == b"y"


def test_msg_flags_without_meaning_here(world: World) -> None:
    """MSG_EOR, MSG_NOSIGNAL, MSG_DONTROUTE to a host on the link, MSG_FASTOPEN and flags of the kernel's own are
    taken and change nothing.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        for flag in (0x80, kernel.MSG_NOSIGNAL, kernel.MSG_DONTROUTE, 0x200, 0x400, 0x1000, 0x40000, 0x20000000):
            assert sender.send(b"x", flag) == 1
            assert receiver.recv(5, kernel.MSG_NOSIGNAL) == b"x"


def test_msg_cmsg_cloexec_is_echoed(world: World) -> None:
    """MSG_CMSG_CLOEXEC comes back among the out flags."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.send(b"hello")
        assert receiver.recvmsg(2, 0, 0x40000000)[2] == 0x40000000 | kernel.MSG_TRUNC


def test_msg_dontroute_reaches_hosts_on_the_link_only() -> None:
    """MSG_DONTROUTE: behind a gateway is ENETUNREACH."""
    with Network() as network:
        gw = network.stack("gw")
        from stack.link import cable

        near, _far = cable(network.scheduler)
        gw.add_interface(near, name="eth0", addresses=["10.0.0.1/24"])
        gw.add_route("0.0.0.0/0", "10.0.0.254")
        with gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            assert sock.sendto(b"x", ("192.0.2.1", 9)) == 1
            assert code(sock.sendto, b"x", kernel.MSG_DONTROUTE, ("192.0.2.1", 9)) == errno.ENETUNREACH
            assert sock.sendto(b"x", kernel.MSG_DONTROUTE, ("10.0.0.9", 9)) == 1
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_DONTROUTE, 1)
            assert code(sock.sendto, b"x", ("192.0.2.1", 9)) == errno.ENETUNREACH


# -- the error queue --------------------------------------------------------------------------------------------------


@FAMILIES
def test_msg_errqueue_tells_of_refusals(world: World, family: int) -> None:
    """MSG_ERRQUEUE: data, destination, errno, origin, type, code and offender of an ICMP error; poll says ERR until it
    is read, and reading clears the pending error; empty is EAGAIN, whether the socket blocks or not.
    """
    level, option = (kernel.IPPROTO_IP, IP_RECVERR) if family == kernel.AF_INET else (kernel.IPPROTO_IPV6, IPV6_RECVERR)
    nobody = world.deaf_address(LOCAL[family])
    with datagram(world, family) as sender:
        sender.connect(nobody)
        sender.settimeout(None)
        assert code(sender.recvmsg, 10, 100, kernel.MSG_ERRQUEUE) == errno.EAGAIN
        sender.setsockopt(level, option, 1)
        sender.send(b"hello")
        assert world.settle(sender, ERR) == OUT | ERR
        data, ancillary, flags, address = sender.recvmsg(100, 1000, kernel.MSG_ERRQUEUE)
        assert (data, flags, address) == (b"hello", kernel.MSG_ERRQUEUE, nobody)
        ((got_level, got_type, body),) = ancillary
        assert (got_level, got_type) == (level, option)
        kind, icmp_code = (3, 3) if family == kernel.AF_INET else (1, 4)
        origin = 2 if family == kernel.AF_INET else 3
        assert struct.unpack_from("@IBBBBII", body) == (errno.ECONNREFUSED, origin, kind, icmp_code, 0, 0, 0)
        assert struct.unpack_from("@H", body, 16)[0] == family
        offender = body[20:24] if family == kernel.AF_INET else body[24:40]
        assert kernel.inet_ntop(family, offender) == LOCAL[family]
        assert world.bits(sender) == OUT
        assert sender.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0
        assert code(sender.recvmsg, 10, 100, kernel.MSG_ERRQUEUE) == errno.EAGAIN


def test_msg_errqueue_unconnected_and_cut(world: World) -> None:
    """An unconnected socket hears of errors, too; data and control messages are cut to their room."""
    nobody = world.deaf_address()
    with datagram(world) as other:
        other.setsockopt(kernel.IPPROTO_IP, IP_RECVERR, 1)
        other.sendto(b"unconnected", nobody)
        world.settle(other, ERR)
        data, ancillary, flags, address = other.recvmsg(4, 20, kernel.MSG_ERRQUEUE)
        assert (data, address) == (b"unco", nobody)
        assert flags == kernel.MSG_ERRQUEUE | kernel.MSG_TRUNC | kernel.MSG_CTRUNC
        assert ancillary == [(0, IP_RECVERR, struct.pack("@I", errno.ECONNREFUSED))]


def test_msg_errqueue_pending_error_is_the_next_entrys(world: World) -> None:
    """With several entries, reading one leaves the next one's errno pending."""
    with datagram(world) as sender:
        sender.connect(world.deaf_address())
        sender.setsockopt(kernel.IPPROTO_IP, IP_RECVERR, 1)
        for data in (b"1", b"2"):
            sender.send(data)
            world.until(lambda: bool(sender.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNREFUSED))
        assert sender.recvmsg(9, 99, kernel.MSG_ERRQUEUE)[0] == b"1"
        assert sender.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.ECONNREFUSED
        assert sender.recvmsg(9, 99, kernel.MSG_ERRQUEUE)[0] == b"2"
        assert sender.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0


def test_msg_errqueue_too_long_here(world: World) -> None:
    """A datagram that IP_PMTUDISC_DO does not let out is EMSGSIZE, and a local entry tells the MTU."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.setsockopt(kernel.IPPROTO_IP, IP_RECVERR, 1)
        assert code(sender.send, bytes(65508)) == errno.EMSGSIZE
        data, ancillary, flags, address = sender.recvmsg(9, 99, kernel.MSG_ERRQUEUE)
        assert (data, flags, address) == (b"", kernel.MSG_ERRQUEUE, receiver.getsockname())
        fields = struct.unpack_from("@IBBBBII", ancillary[0][2])
        assert fields[:5] == (errno.EMSGSIZE, 1, 0, 0, 0)
        assert fields[5] in (65535, 65536)
        assert ancillary[0][2][16:18] == b"\0\0"
        assert sender.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == 0


def test_msg_zerocopy_notices(world: World) -> None:
    """MSG_ZEROCOPY: with SO_ZEROCOPY each send is numbered, and the error queue tells which memory is free, unread
    notices as one range; without the option the flag means nothing.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        sender.send(b"x", MSG_ZEROCOPY)
        assert receiver.recv(9) == b"x"
        assert world.bits(sender) == OUT
        sender.setsockopt(kernel.SOL_SOCKET, 60, 1)
        for _ in range(2):
            sender.send(b"x", MSG_ZEROCOPY)
            assert receiver.recv(9) == b"x"
        assert world.settle(sender, ERR) == OUT | ERR
        data, ancillary, flags, address = sender.recvmsg(9, 99, kernel.MSG_ERRQUEUE)
        assert (data, flags, address) == (b"", kernel.MSG_ERRQUEUE, None)
        assert struct.unpack_from("@IBBBBII", ancillary[0][2]) == (0, 5, 0, 1, 0, 0, 1)
        assert world.bits(sender) == OUT


# -- control messages -------------------------------------------------------------------------------------------------


def test_msg_ctrunc_says_what_did_not_fit(world: World) -> None:
    """MSG_CTRUNC: a control message that does not fit is cut, those behind it are left out."""
    sender, receiver = pair(world)
    with sender, receiver:
        for option in (8, 12, 13):  # IP_PKTINFO, IP_RECVTTL, IP_RECVTOS
            receiver.setsockopt(kernel.IPPROTO_IP, option, 1)
        for room in range(0, 100, 2):
            sender.send(b"x")
            _, ancillary, flags, _ = receiver.recvmsg(9, room)
            assert bool(flags & kernel.MSG_CTRUNC) == (room < kernel.CMSG_SPACE(12) + kernel.CMSG_SPACE(4) + 17)
            sizes = [len(data) for _, _, data in ancillary]
            expected = []
            left = room
            for size in (12, 4, 1):
                if left < 16:
                    break
                expected.append(min(size, left - 16))
                if left < 16 + size:
                    break
                left -= kernel.CMSG_SPACE(size)
            assert sizes == expected, f"{room} bytes"


BAD_MESSAGES = [
    *[(0, 2, struct.pack("@i", value)) for value in (-1, 0, 256)],  # IP_TTL
    (0, 2, b"\1"),
    *[(0, 1, struct.pack("@i", value)) for value in (-1, 256)],  # IP_TOS
    *[(0, 8, bytes(size)) for size in (0, 11, 13)],  # IP_PKTINFO
    (0, 99, b"\1"),
    (0, 7, b"\2"),  # IP_RETOPTS
    (1, 99, b""),
    (1, 36, b"\0"),  # SO_MARK
    (1, 37, struct.pack("@I", 1 << 4)),  # SO_TIMESTAMPING: not one to ask for with a message
    (1, 61, bytes(8)),  # SCM_TXTIME without SO_TXTIME
    (UDP, UDP_SEGMENT, b"\1"),
    (UDP, UDP_SEGMENT, bytes(4)),
    (UDP, 99, b""),
]
GOOD_MESSAGES = [
    (0, 2, struct.pack("@i", 7)),
    (0, 1, b"\x10"),
    (0, 1, struct.pack("@i", 0x10)),
    (0, 8, struct.pack("@i4s4s", 0, bytes(4), bytes(4))),
    (0, 8, struct.pack("@i4s4s", 1, kernel.inet_aton(LOOPBACK), bytes(4))),
    (0, 7, b""),
    (0, 7, b"\1\1\1\1"),
    (1, 12, struct.pack("@i", 3)),  # SO_PRIORITY
    (1, 1, b""),  # SCM_RIGHTS
    (1, 2, b""),  # SCM_CREDENTIALS
    (6, 99, b"another level's"),
    (41, 50, b"another level's"),
    (UDP, UDP_SEGMENT, struct.pack("@H", 1000)),
]


@pytest.mark.parametrize("message", BAD_MESSAGES, ids=repr)
def test_mm_03_bad_control_messages(world: World, message: tuple[int, int, bytes]) -> None:
    """Wrong types, lengths and values are EINVAL, and nothing is sent."""
    sender, receiver = pair(world)
    with sender, receiver:
        refusals = (errno.EINVAL, errno.EPERM) if message[:2] == (1, 36) else (errno.EINVAL,)
        assert code(sender.sendmsg, [b"x"], [message]) in refusals  # SO_MARK needs a capability before it is looked at
        assert empty(world, receiver)


@pytest.mark.parametrize("message", GOOD_MESSAGES, ids=repr)
def test_mm_03_good_control_messages(world: World, message: tuple[int, int, bytes]) -> None:
    """What is right, or another level's, lets the datagram pass."""
    sender, receiver = pair(world)
    with sender, receiver:
        assert sender.sendmsg([b"a", b"b"], [message]) == 2
        assert receiver.recv(9) == b"ab"


def test_mm_03_address_and_buffers(world: World) -> None:
    """Sendmsg joins its buffers, and its address counts even on a connected socket."""
    sender, receiver = pair(world)
    with sender, receiver, datagram(world) as third:
        third.bind((LOOPBACK, 0))
        assert sender.sendmsg([b"one", bytearray(b"two"), memoryview(b"three")], (), 0, third.getsockname()) == 11
        assert third.recv(20) == b"onetwothree"
        assert sender.sendmsg([]) == 0
        assert receiver.recv(20) == b""


def test_mm_04_what_recvmsg_answers(world: World) -> None:
    """Recvmsg gives data, control messages, flags and the sender's address; recvmsg_into fills its buffers in order."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.send(b"hello")
        assert receiver.recvmsg(10, 100) == (b"hello", [], 0, sender.getsockname())
        sender.send(b"hello")
        first, second = bytearray(2), bytearray(9)
        assert receiver.recvmsg_into([first, second]) == (5, [], 0, sender.getsockname())
        assert (bytes(first), bytes(second[:3])) == (b"he", b"llo")


# -- batches: Python has no sendmmsg; the kernel's is called through ctypes -------------------------------------------


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(IoVec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class MMsgHdr(ctypes.Structure):
    _fields_ = (("header", MsgHdr), ("length", ctypes.c_uint))


def kernel_batch(call: str, sock: Any, sizes: list[int], flags: int, *rest: Any) -> list[int]:
    """The kernel's sendmmsg or recvmmsg with messages of these sizes: the length of each, or OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    vectors = [(IoVec * 1)(IoVec(bytes(size), size)) for size in sizes]
    messages = (MMsgHdr * len(sizes))(*(MMsgHdr(MsgHdr(iov=iov, iovlen=1)) for iov in vectors))
    count = getattr(libc, call)(sock.fileno(), messages, len(sizes), flags, *rest)
    if count < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return [each.length for each in messages[:count]]


def send_batch(world: World, sock: Any, sizes: list[int], flags: int = 0) -> list[int]:
    if world.network is None:
        return kernel_batch("sendmmsg", sock, sizes, flags)
    lengths: list[int] = sock.sendmmsg([bytes(size) for size in sizes], flags)
    return lengths


def receive_batch(world: World, sock: Any, count: int, flags: int = 0) -> list[int]:
    if world.network is None:
        return kernel_batch("recvmmsg", sock, [100] * count, flags, None)
    return [len(each[0]) for each in sock.recvmmsg(count, 100, 0, flags)]


def test_mm_01_sendmmsg(world: World) -> None:
    """Each message is sent and its length told; at most 1024 of them; the first error ends the batch and is raised
    only if nothing was sent before it.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        sender.settimeout(None)
        receiver.settimeout(None)
        receiver.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 4 << 20)
        assert send_batch(world, sender, [1, 0, 3]) == [1, 0, 3]
        assert [len(receiver.recv(9)) for _ in range(3)] == [1, 0, 3]
        assert send_batch(world, sender, [1, 2, 70000, 4]) == [1, 2]
        assert [len(receiver.recv(9)) for _ in range(2)] == [1, 2]
        assert empty(world, receiver)
        assert code(send_batch, world, sender, [70000, 1]) == errno.EMSGSIZE
        assert len(send_batch(world, sender, [1] * 1100)) == 1024


def waiting(sock: Any) -> int:
    """SO_MEMINFO: what the datagrams that wait are charged, by the kernel more than 512 bytes each."""
    return int(struct.unpack_from("@I", sock.getsockopt(kernel.SOL_SOCKET, 55, 36))[0])


def test_mm_02_recvmmsg(world: World) -> None:
    """What waits is received up to the number asked for; nothing there and MSG_DONTWAIT is EAGAIN; MSG_WAITFORONE
    waits for the first only; an error after a message becomes the pending one.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        sender.settimeout(None)
        receiver.settimeout(None)
        assert code(receive_batch, world, receiver, 3, NOW) == errno.EAGAIN
        send_batch(world, sender, [1, 2, 3, 4, 5])
        world.until(lambda: world.network is not None or waiting(receiver) >= 5 * 512)
        assert receive_batch(world, receiver, 2) == [1, 2]
        assert receive_batch(world, receiver, 9, NOW) == [3, 4, 5]
        send_batch(world, sender, [6, 7])
        world.until(lambda: world.network is not None or waiting(receiver) >= 2 * 512)
        assert receive_batch(world, receiver, 9, MSG_WAITFORONE) == [6, 7]


def test_mm_02_time_limits() -> None:
    """A time limit is looked at after each message, not before; a negative one is EINVAL; control messages come too."""
    with Network() as network:
        world = World(network.stack("gw").socket, network)
        sender, receiver = pair(world)
        with sender, receiver:
            receiver.setsockopt(kernel.IPPROTO_IP, 12, 1)
            sender.sendmmsg([b"1", b"2"])
            assert len(receiver.recvmmsg(5, 10, 0, 0, 0.0)) == 1
            (message,) = receiver.recvmmsg(1, 10, 100)
            assert message == (b"2", [(0, 2, struct.pack("@i", 64))], 0, sender.getsockname())
            assert code(receiver.recvmmsg, 1, 10, 0, 0, -1.0) == errno.EINVAL


def test_mm_01_addresses_and_control_messages() -> None:
    """Each message of a batch may have an address and control messages of its own."""
    with Network() as network:
        world = World(network.stack("gw").socket, network)
        one, two, sender = datagram(world), datagram(world), datagram(world)
        with one, two, sender:
            for sock in (one, two):
                sock.bind((LOOPBACK, 0))
                sock.setsockopt(kernel.IPPROTO_IP, 12, 1)
            ttl = [(0, 2, struct.pack("@i", 9))]
            batch = [([b"a", b"b"], ttl, one.getsockname()), ([b"c"], (), two.getsockname()), ([b"d"],)]
            assert sender.sendmmsg(batch) == [2, 1]
            assert one.recvmsg(9, 99)[:2] == (b"ab", [(0, 2, struct.pack("@i", 9))])
            assert two.recvmsg(9, 99)[:2] == (b"c", [(0, 2, struct.pack("@i", 64))])


def test_mm_02_an_error_after_a_message_is_kept() -> None:
    """It becomes SO_ERROR."""
    with Network() as network:
        world = World(network.stack("gw").socket, network)
        sender, receiver = pair(world)
        with sender, receiver:
            sender.send(b"x")
            phase = receiver._sock.phase
            receive = type(phase).receive

            def failing(self: Any, size: int, flags: int) -> Any:  # called when nothing more waits
                self.endpoint.error = errno.EHOSTUNREACH
                return receive(self, size, flags)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(phase), "receive", failing)
                assert len(receiver.recvmmsg(3, 10)) == 1
            assert receiver.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR) == errno.EHOSTUNREACH


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 6, UDP, 41]),
            st.integers(0, 80) | st.sampled_from([UDP_SEGMENT, UDP_GRO]),
            st.binary(max_size=40),
        ),
        max_size=4,
    ),
    st.binary(max_size=300),
    st.sampled_from([kernel.AF_INET, kernel.AF_INET6]),
)
def test_any_control_messages_are_taken_or_refused(
    messages: list[tuple[int, int, bytes]], data: bytes, family: int
) -> None:
    """Whatever is handed over, it is sent or it is an OSError; never anything else."""
    with Network() as network:
        world = World(network.stack("gw").socket, network)
        sender, receiver = pair(world, family)
        with sender, receiver:
            try:
                assert sender.sendmsg([data], messages) == len(data)
            except OSError as error:
                assert error.errno in (errno.EINVAL, errno.EPERM, errno.ENODEV, errno.EMSGSIZE, errno.ENETUNREACH)  # noqa: PT017
