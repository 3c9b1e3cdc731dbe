"""AF_NETLINK sockets: the same body on the kernel's and on ours (rows NL-01..NL-18)."""

from __future__ import annotations

import errno
import os
import select
import socket as kernel
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.socket.netlink.endpoint import SOL_NETLINK
from stack.socket.netlink.options import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_BROADCAST_ERROR,
    NETLINK_CAP_ACK,
    NETLINK_DROP_MEMBERSHIP,
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NETLINK_LIST_MEMBERSHIPS,
    NETLINK_NO_ENOBUFS,
    NETLINK_PKTINFO,
    SO_PASSCRED,
)
from stack.socket.poll import ERR, IN, OUT
from stack.wire.netlink import header
from stack.wire.netlink.header import (
    NETLINK_GENERIC,
    NETLINK_KOBJECT_UEVENT,
    NETLINK_ROUTE,
    NETLINK_USERSOCK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
)
from stack.wire.netlink.link import LINK
from stack.wire.netlink.rtnetlink import Rtm

AF_NETLINK = 16
RAW, DGRAM = 3, 2
SOL_SOCKET = 1


class World:
    """What differs between the two: the module, and how to ask for poll bits."""

    def __init__(self, module: Any, stack: Stack | None) -> None:
        self.module = module
        self.stack = stack
        self.pid = os.getpid() if stack is None else stack.credentials.pid
        self._open: list[Any] = []

    def socket(self, protocol: int = NETLINK_ROUTE, kind: int = RAW) -> Any:
        sock = self.module.socket(AF_NETLINK, kind, protocol)
        sock.settimeout(5)
        self._open.append(sock)
        return sock

    def bits(self, sock: Any) -> int:
        if self.stack is not None:
            return int(sock._sock.poll()) & (IN | OUT | ERR)
        poll = select.poll()
        poll.register(sock, IN | OUT)
        return sum(bits for _, bits in poll.poll(0))

    def close(self) -> None:
        for sock in self._open:
            with suppress(OSError):
                sock.close()


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        made = World(kernel, None)
        yield made
        made.close()
        return
    with Network() as network:
        stack = network.stack("gw")
        made = World(stack.socket, stack)
        yield made
        made.close()


def fails(code: int, call: Any, *args: Any) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is looked at
        call(*args)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def request(kind: int = Rtm.GETLINK, flags: int = 0, seq: int = 7, index: int = 1) -> bytes:
    return header.pack(kind, NLM_F_REQUEST | flags, seq, 0, LINK.emit({"index": index}))


def as_root(world: World) -> None:
    if world.stack is None and os.geteuid():
        pytest.skip("the kernel asks for CAP_NET_ADMIN")


def test_nl_01_types_and_protocols(world: World) -> None:
    """RAW and DGRAM are one and SO_TYPE tells which was asked for; other types are ESOCKTNOSUPPORT, protocols that are
    not there EPROTONOSUPPORT.
    """
    for kind in (RAW, DGRAM):
        assert world.socket(NETLINK_ROUTE, kind).getsockopt(SOL_SOCKET, kernel.SO_TYPE) == kind
    fails(errno.ESOCKTNOSUPPORT, world.module.socket, AF_NETLINK, kernel.SOCK_STREAM, 0)
    fails(errno.EPROTONOSUPPORT, world.module.socket, AF_NETLINK, RAW, 32)
    fails(errno.EPROTONOSUPPORT, world.module.socket, AF_NETLINK, RAW, 31)


def test_nl_02_addresses(world: World) -> None:
    """An address is a port and a mask of groups, both of 32 bits; group N is bit N-1, and higher ones have no bit."""
    as_root(world)
    sock = world.socket(NETLINK_ROUTE)
    sock.bind((0xFFFF0000, 0x80000001))
    assert sock.getsockname() == (0xFFFF0000, 0x80000001)
    groups = struct.unpack("=II", sock.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 8))
    assert groups == (0x80000001, 0)
    sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 33)
    assert sock.getsockname() == (0xFFFF0000, 0x80000001), "the 33rd group is joined, and has no place in the mask"
    assert struct.unpack("=II", sock.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 8)) == (0x80000001, 1)
    other = world.socket(NETLINK_ROUTE)
    other.bind((1 << 32 | 77, 1 << 32 | 2))
    assert other.getsockname() == (77, 2), "32 bits are all there is"


def test_nl_04_autobind_takes_the_process_id_then_a_negative_number(world: World) -> None:
    """Port 0 is the process id if that is free, else a negative number; a port that is taken is EADDRINUSE until it is
    closed.
    """
    one, two = world.socket(NETLINK_USERSOCK), world.socket(NETLINK_USERSOCK)
    one.bind((0, 0))
    two.bind((0, 0))
    assert one.getsockname() == (world.pid, 0)
    assert two.getsockname()[0] >= 2**31
    other = world.socket(NETLINK_USERSOCK)
    fails(errno.EADDRINUSE, other.bind, (world.pid, 0))
    one.close()
    other.bind((world.pid, 0))


def test_nl_05_rebinding_changes_groups_not_the_port(world: World) -> None:
    """Binding again replaces the groups; to another port it is EINVAL, and nothing changes."""
    sock = world.socket()
    assert sock.getsockname() == (0, 0)
    sock.bind((0, 5))
    port = sock.getsockname()[0]
    assert sock.getsockname() == (port, 5)
    sock.bind((port, 2))
    assert sock.getsockname() == (port, 2)
    fails(errno.EINVAL, sock.bind, (port + 1, 1))
    fails(errno.EINVAL, sock.bind, (0, 1))
    assert sock.getsockname() == (port, 2)


def test_nl_06_connecting(world: World) -> None:
    """Connecting sets where datagrams go and binds; again it changes that, and AF_UNSPEC is not needed to undo it."""
    as_root(world)
    one, two, sender = (world.socket(NETLINK_USERSOCK) for _ in range(3))
    for sock in (one, two):
        sock.bind((0, 0))
    sender.connect(one.getsockname())
    port = sender.getsockname()[0]
    assert port
    assert sender.send(b"first") == 5
    sender.connect(two.getsockname())
    assert sender.send(b"second") == 6
    assert sender.sendto(b"third", one.getsockname()) == 5
    assert one.recvfrom(10) == (b"first", (port, 0))
    assert one.recv(10) == b"third"
    assert two.recv(10) == b"second"
    sender.connect((0, 0))
    assert sender.getpeername() == (0, 0)
    fails(errno.ECONNREFUSED, sender.send, b"to the kernel, who is not there")


def test_nl_07_names(world: World) -> None:
    """Unbound is (0, 0), a connected socket has its peer and was bound by connecting."""
    as_root(world)
    sock = world.socket()
    assert sock.getpeername() == (0, 0)
    sock.connect((4242, 0x10))
    assert sock.getpeername() == (4242, 0x10)
    assert sock.getsockname()[0] != 0


def test_nl_08_sending(world: World) -> None:
    """Nothing is ENODATA, out-of-band EOPNOTSUPP, a port nobody has ECONNREFUSED, too much EMSGSIZE; sending binds,
    and there is no listening.
    """
    as_root(world)
    sock = world.socket()
    fails(errno.ENODATA, sock.send, b"")
    fails(errno.EOPNOTSUPP, sock.send, b"x", kernel.MSG_OOB)
    fails(errno.ECONNREFUSED, sock.sendto, b"x", (999999, 0))
    assert sock.send(b"x") == 1, "the kernel takes junk, and says nothing"
    assert sock.getsockname()[0] != 0, "sending binds"
    fails(errno.EMSGSIZE, sock.send, bytes(sock.getsockopt(SOL_SOCKET, kernel.SO_SNDBUF)))
    fails(errno.EOPNOTSUPP, sock.listen)
    fails(errno.EOPNOTSUPP, sock.shutdown, 2)


def test_nl_08_user_to_user(world: World) -> None:
    """A datagram for another port goes there, and says where it comes from."""
    as_root(world)
    one, two = world.socket(), world.socket()
    one.bind((0, 0))
    two.bind((0, 0))
    assert one.sendto(b"hello-user-msg!!", (two.getsockname()[0], 0)) == 16
    assert two.recvfrom(100) == (b"hello-user-msg!!", (one.getsockname()[0], 0))


def test_a_connected_socket_hears_its_peer_only(world: World) -> None:
    as_root(world)
    one, two, third = (world.socket(NETLINK_USERSOCK) for _ in range(3))
    for sock in (one, two, third):
        sock.bind((0, 0))
    two.connect(one.getsockname())
    assert one.sendto(b"yes", two.getsockname()) == 3
    fails(errno.ECONNREFUSED, third.sendto, b"no", two.getsockname())
    assert two.recv(10) == b"yes"


def test_nl_18_readiness(world: World) -> None:
    """A socket can always be written to, and be read from while something waits; nothing else is told."""
    sock = world.socket()
    assert world.bits(sock) == OUT
    sock.bind((0, 0))
    assert world.bits(sock) == OUT
    sock.send(request())
    assert world.bits(sock) == IN | OUT
    sock.recv(65536)
    assert world.bits(sock) == OUT


def test_usersock_has_no_kernel_side(world: World) -> None:
    fails(errno.ECONNREFUSED, world.socket(NETLINK_USERSOCK).send, b"x")


def test_nl_10_receiving(world: World) -> None:
    """A short buffer truncates with MSG_TRUNC, a peek leaves the datagram, the kernel is (0, 0), an empty queue
    EAGAIN.
    """
    sock = world.socket()
    sock.bind((0, 0))
    sock.send(request())
    short, _, flags, address = sock.recvmsg(20, 0, kernel.MSG_PEEK)
    assert (len(short), flags & kernel.MSG_TRUNC, address) == (20, kernel.MSG_TRUNC, (0, 0))
    whole = sock.recv(65536)
    assert whole[:20] == short
    sock.setblocking(False)
    fails(errno.EAGAIN, sock.recv, 10)


def test_nl_11_groups_by_number(world: World) -> None:
    """Groups are joined by number or by mask; each member has a copy, the sender none, and who never bound hears
    nothing.
    """
    as_root(world)
    one, two, sender = (world.socket(NETLINK_USERSOCK) for _ in range(3))
    sender.bind((0, 1 << 4))
    one.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 5)
    two.bind((0, 1 << 4 | 1))
    assert one.getsockname() == (0, 1 << 4), "joining does not bind"
    fails(errno.ECONNREFUSED, sender.sendto, b"unheard", (0, 1 << 4))  # no kernel side, but the group has heard
    assert two.recv(10) == b"unheard"
    one.setblocking(False)
    fails(errno.EAGAIN, one.recv, 10)  # who never bound is skipped
    one.bind((0, 1 << 4))
    fails(errno.ECONNREFUSED, sender.sendto, b"news", (0, 1 << 4))  # no kernel side, but the group has heard
    for sock in (one, two):
        assert sock.recvfrom(10) == (b"news", (sender.getsockname()[0], 1 << 4))
    sender.setblocking(False)
    fails(errno.EAGAIN, sender.recv, 10)
    two.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, 5)
    assert two.getsockname()[1] == 1
    fails(errno.ECONNREFUSED, sender.sendto, b"more", (0, 1 << 4))
    two.setblocking(False)
    fails(errno.EAGAIN, two.recv, 10)


def test_membership_options(world: World) -> None:
    as_root(world)
    sock = world.socket()
    for name in (NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP):
        for value in (-1, 0, 64, 127, 65536):
            fails(errno.EINVAL, sock.setsockopt, SOL_NETLINK, name, value)
        fails(errno.EINVAL, sock.setsockopt, SOL_NETLINK, name, b"\1")
        fails(errno.ENOPROTOOPT, sock.getsockopt, SOL_NETLINK, name)
    for group in (1, 30, 33):
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    sock.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, 7)  # not a member: no error
    assert sock.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 64) == struct.pack("=II", 1 | 1 << 29, 1)
    assert sock.getsockname() == (0, 1 | 1 << 29)
    sock.bind((0, 0xFFFFFFFF))
    assert sock.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 64) == struct.pack("=II", 0xFFFFFFFF, 1)
    uevents = world.socket(NETLINK_KOBJECT_UEVENT)
    uevents.bind((0, 1))
    assert uevents.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 64) == struct.pack("=I", 1)


@pytest.mark.parametrize(
    "name",
    [
        *(NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK),
        *(NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK),
    ],
)
@pytest.mark.parametrize("protocol", [NETLINK_ROUTE, NETLINK_KOBJECT_UEVENT])
def test_opt_netlink_switches_take_any_number(world: World, protocol: int, name: int) -> None:
    """The switches of SOL_NETLINK: not zero is 1; a short value is none, and too little room to read is EINVAL."""
    sock = world.socket(protocol)
    assert sock.getsockopt(SOL_NETLINK, name) == 0
    for value in (-(2**31), -1, 2, 2**31 - 1):
        sock.setsockopt(SOL_NETLINK, name, value)
        assert sock.getsockopt(SOL_NETLINK, name) == 1
    sock.setsockopt(SOL_NETLINK, name, 0)
    assert sock.getsockopt(SOL_NETLINK, name) == 0
    sock.setsockopt(SOL_NETLINK, name, b"\1")  # a short value counts as none
    assert sock.getsockopt(SOL_NETLINK, name) == 0
    fails(errno.EINVAL, sock.getsockopt, SOL_NETLINK, name, 1)


def test_unknown_options(world: World) -> None:
    sock = world.socket()
    for level, name in ((SOL_NETLINK, 99), (9999, 1), (6, 1), (0, 1)):
        fails(errno.ENOPROTOOPT, sock.getsockopt, level, name)
        fails(errno.ENOPROTOOPT, sock.setsockopt, level, name, 1)
    fails(errno.ENOPROTOOPT, sock.setsockopt, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 1)


def test_nl_12_13_what_comes_along(world: World) -> None:
    """PKTINFO tells the group, 0 for an answer; SO_PASSCRED whose it is, root with process id 0 for the kernel."""
    sock = world.socket()
    sock.bind((0, 0))
    sock.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
    sock.setsockopt(SOL_NETLINK, NETLINK_PKTINFO, 1)
    sock.send(request())
    _, ancillary, _, address = sock.recvmsg(65536, 1024)
    assert address == (0, 0)
    assert ancillary == [(SOL_NETLINK, NETLINK_PKTINFO, bytes(4)), (SOL_SOCKET, 2, bytes(12))]


def test_nl_12_the_group_of_a_multicast(world: World) -> None:
    """PKTINFO tells the number of the group a datagram was sent to."""
    as_root(world)
    ear, sender = world.socket(NETLINK_USERSOCK), world.socket(NETLINK_USERSOCK)
    ear.bind((0, 2))
    ear.setsockopt(SOL_NETLINK, NETLINK_PKTINFO, 1)
    fails(errno.ECONNREFUSED, sender.sendto, b"x", (0, 2))
    assert ear.recvmsg(10, 100)[1] == [(SOL_NETLINK, NETLINK_PKTINFO, struct.pack("=I", 2))]


def overflow(world: World, sock: Any) -> None:
    """Ask until the answers do not fit any more."""
    sock.setsockopt(SOL_SOCKET, kernel.SO_RCVBUF, 4096)
    sock.bind((0, 0))
    for _ in range(60):
        sock.send(request())


def test_nl_09_an_overrun_is_reported_once(world: World) -> None:
    """A queue that overflows drops, and says so once: POLLERR and ENOBUFS; what was queued stays, and nothing is
    queued until it is empty.
    """
    sock = world.socket()
    overflow(world, sock)
    assert world.bits(sock) == IN | OUT | ERR
    fails(errno.ENOBUFS, sock.recv, 65536)
    assert world.bits(sock) == IN | OUT
    assert struct.unpack_from("=IH", sock.recv(65536))[1] == Rtm.NEWLINK, "what was queued is still there"
    for _ in range(10):
        sock.send(request())
    assert world.bits(sock) == IN | OUT, "until the queue is empty nothing is queued, and that is not reported again"
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.recv(65536)
    sock.send(request())
    assert sock.recv(65536), "an emptied queue takes again"


def test_nl_09_no_enobufs(world: World) -> None:
    """With NETLINK_NO_ENOBUFS an overrun is not reported."""
    sock = world.socket()
    sock.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
    overflow(world, sock)
    assert world.bits(sock) == IN | OUT
    assert sock.recv(65536)


@pytest.mark.parametrize("asking", ["nobody", "sender", "receiver"])
def test_nl_09_netlink_broadcast_error_is_nothing_to_users(world: World, asking: str) -> None:
    """NETLINK_BROADCAST_ERROR is for what the kernel sends: who sends to a group is not told whose queue overran."""
    as_root(world)
    receiver, sender = world.socket(NETLINK_KOBJECT_UEVENT), world.socket(NETLINK_KOBJECT_UEVENT)
    receiver.bind((0, 1))
    receiver.setsockopt(SOL_SOCKET, kernel.SO_RCVBUF, 2048)
    if asking != "nobody":
        {"sender": sender, "receiver": receiver}[asking].setsockopt(SOL_NETLINK, NETLINK_BROADCAST_ERROR, 1)
    message = b"libudev\0" + bytes(200)
    for _ in range(60):
        assert sender.sendto(message, (0, 1)) == len(message)
    fails(errno.ENOBUFS, receiver.recv, 65536)


def test_nl_14_messages_in_one_datagram_are_handled_in_order(world: World) -> None:
    """Several messages are handled in order; one with a length that lies ends the datagram without a word."""
    sock = world.socket()
    sock.bind((0, 0))
    sock.send(request(seq=7) + request(seq=8, index=999))
    for seq, kind in ((7, Rtm.NEWLINK), (8, header.NLMSG_ERROR)):
        found, _ = next(header.split(sock.recv(65536)))
        assert (found.type, found.seq, found.pid) == (kind, seq, sock.getsockname()[0])
    sock.setblocking(False)
    for bad in (b"", b"\xff\0\0\0", b"\x0f\0\0\0"):  # RT-E13: longer than there is, shorter than a header
        sock.send(bad + request()[len(bad) :])
        if bad:
            fails(errno.EAGAIN, sock.recv, 65536)
        else:
            assert sock.recv(65536)


def test_rt_e2_without_request_only_an_ack(world: World) -> None:
    """A message without NLM_F_REQUEST is nobody's, but acknowledged if it asks for that."""
    sock = world.socket()
    sock.bind((0, 0))
    sock.setblocking(False)
    sock.send(header.pack(Rtm.GETLINK, 0, 1, 0, LINK.emit({"index": 1})))
    fails(errno.EAGAIN, sock.recv, 65536)
    sock.send(header.pack(Rtm.GETLINK, NLM_F_ACK, 1, 0, LINK.emit({"index": 1})))
    found, whole = next(header.split(sock.recv(65536)))
    assert (found.type, found.flags, len(whole)) == (header.NLMSG_ERROR, 0x100, 36)


def test_rt_e11_one_dump_at_a_time(world: World) -> None:
    """A second dump on a socket while the first goes on is EBUSY, afterwards it is fine."""
    sock = world.socket()
    sock.bind((0, 0))
    sock.send(request(flags=NLM_F_DUMP, seq=1, index=0))
    sock.send(request(flags=NLM_F_DUMP, seq=2, index=0))
    answers = []
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            for found, whole in header.split(sock.recv(65536)):
                answers.append((found.seq, found.type, struct.unpack_from("=i", whole, 16)[0]))
    assert (2, header.NLMSG_ERROR, -errno.EBUSY) in answers
    assert (1, header.NLMSG_DONE, 0) in answers
    sock.send(request(flags=NLM_F_DUMP, seq=3, index=0))
    assert next(header.split(sock.recv(65536)))[0].seq == 3


def test_the_generic_controller_lists_families(world: World) -> None:
    sock = world.socket(NETLINK_GENERIC)
    sock.bind((0, 0))
    sock.send(header.pack(0x10, NLM_F_REQUEST, 1, 0, b"\3\1\0\0" + b"\x0b\0\2\0nlctrl\0\0"))
    found, whole = next(header.split(sock.recv(65536)))
    assert (found.type, whole[16]) == (0x10, 1)
    assert b"nlctrl\0" in bytes(whole)
    sock.send(header.pack(0x10, NLM_F_REQUEST, 2, 0, b"\3\1\0\0" + b"\x0a\0\2\0nosuc\0\0\0"))
    found, whole = next(header.split(sock.recv(65536)))
    assert (found.type, struct.unpack_from("=i", whole, 16)[0]) == (header.NLMSG_ERROR, -errno.ENOENT)
    sock.send(header.pack(0x10, NLM_F_REQUEST | NLM_F_DUMP, 3, 0, b"\3\1\0\0"))
    assert b"nlctrl\0" in sock.recv(65536)


def test_ue_06_what_is_sent_to_the_kernel_side_of_uevents_is_ignored(world: World) -> None:
    """What is sent to the kernel is taken and ignored."""
    as_root(world)
    sock = world.socket(NETLINK_KOBJECT_UEVENT)
    assert sock.send(b"x") == 1


# --- ours alone -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Network() as network:
        yield network.stack("gw")


def test_sec_04_08_without_capabilities(stack: Stack) -> None:
    """RT-E14: changes are refused, questions answered; privileged groups and other people's ports are closed."""
    with stack.acting(Credentials.user(1000)):
        with stack.socket.socket(AF_NETLINK, RAW, 0) as sock:
            sock.settimeout(5)
            for kind in (Rtm.NEWLINK, Rtm.DELLINK, Rtm.SETLINK, Rtm.NEWADDR, Rtm.NEWROUTE, Rtm.NEWNEIGH, Rtm.NEWRULE):
                sock.send(request(kind))
                found, whole = next(header.split(sock.recv(65536)))
                assert (found.type, struct.unpack_from("=i", whole, 16)[0]) == (header.NLMSG_ERROR, -errno.EPERM)
            sock.send(request())
            assert next(header.split(sock.recv(65536)))[0].type == Rtm.NEWLINK
            for group in (30, 31):
                fails(errno.EPERM, sock.setsockopt, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
                fails(errno.EPERM, sock.bind, (0, 1 << group - 1))
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 1)
            fails(errno.EPERM, sock.sendto, b"x", (1, 0))
            fails(errno.EPERM, sock.sendto, b"x", (0, 1))
            fails(errno.EPERM, sock.connect, (1, 0))
        with stack.socket.socket(AF_NETLINK, RAW, NETLINK_USERSOCK) as sock:
            fails(errno.EPERM, sock.bind, (0, 1))


def test_nl_03_tables_are_the_namespaces(stack: Stack) -> None:
    """Ports and groups belong to a network namespace: a port taken here is free there, and what happens there is not
    heard here.
    """
    there = stack.add_netns("other")
    with stack.socket.socket(AF_NETLINK, RAW, 0) as here:
        here.bind((77, 1))
        with stack.acting() as task:
            stack.setns(there)
            assert task.netns is there
            with stack.socket.socket(AF_NETLINK, RAW, 0) as sock:
                sock.settimeout(5)
                sock.bind((77, 0))  # free there
                sock.send(
                    header.pack(
                        Rtm.SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0, LINK.emit({"index": 1, "change": 1, "flags": 1})
                    )
                )
                assert next(header.split(sock.recv(65536)))[0].type == header.NLMSG_ERROR
        here.setblocking(False)
        fails(errno.EAGAIN, here.recv, 10)


def test_rt_e9_dumps_come_in_bounded_datagrams_as_fast_as_they_are_read(stack: Stack) -> None:
    """A dump comes in datagrams of a page, larger ones for who has a larger buffer, and DONE in one of its own."""
    for number in range(100):
        stack.netns.add_address(stack.netns.lo, f"127.1.{number}.1/32")
    with stack.socket.socket(AF_NETLINK, RAW, 0) as sock:
        sock.settimeout(5)
        sock.send(header.pack(Rtm.GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, bytes(8)))
        sizes, kinds, flags = [], [], 0
        while header.NLMSG_DONE not in kinds:
            data = sock.recv(65536)
            sizes.append(len(data))
            for found, _ in header.split(data):
                kinds.append(found.type)
                flags |= found.flags
        assert sizes[0] <= 3776, "no larger than a page, until the reader shows a larger buffer"
        assert 3776 < sizes[1] <= 32448
        assert sizes[-1] == 20
        assert flags & header.NLM_F_DUMP_INTR == 0


def test_rt_e1_a_dump_that_was_overtaken_says_so(stack: Stack) -> None:
    """A dump of a list that changed meanwhile has NLM_F_DUMP_INTR."""
    for number in range(100):
        stack.netns.add_address(stack.netns.lo, f"127.1.{number}.1/32")
    with stack.socket.socket(AF_NETLINK, RAW, 0) as sock:
        sock.settimeout(5)
        sock.send(header.pack(Rtm.GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, bytes(8)))
        sock.recv(100)
        stack.netns.add_address(stack.netns.lo, "127.2.0.1/32")
        heard: dict[int, int] = {}
        while header.NLMSG_DONE not in heard:
            for found, _ in header.split(sock.recv(65536)):
                heard[found.type] = found.flags
        assert heard[header.NLMSG_DONE] & header.NLM_F_DUMP_INTR


def test_a_closed_socket_leaves_no_trace(stack: Stack) -> None:
    with stack.socket.socket(AF_NETLINK, RAW, 0) as sock:
        sock.bind((0, 0xFF))
        sock.send(request(flags=NLM_F_DUMP, index=0))
    table = stack.netns.netlink
    assert table is not None
    assert not table[NETLINK_ROUTE].ports
    assert not any(table[NETLINK_ROUTE].has_listeners(group) for group in range(1, 40))
