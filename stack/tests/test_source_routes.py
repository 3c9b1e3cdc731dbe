"""Source routes in IP_OPTIONS (section 2.2, option 4): sent, shown, followed, answered; against the kernel's stack.

Three nodes in a row: a guest's side `left`, a router `middle`, and `right`; between left and middle one link, between
middle and right another. Each of the ends may be the kernel's.
"""

from __future__ import annotations

import errno
import os
import random
import socket as kernel
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from stack import Credentials, Network
from stack.link.cable import cable
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import LOOPBACK, World, code
from stack.tests.linux_world import LINUX, OURS, LinuxWorld
from stack.wire.ipoptions import echoed, first_hop, is_strict, routed

#: Where a Stack and the kernel part.
DIFFERENCES = {
    "IP_OPTIONS of a UDP socket": "the checksum of a datagram with a source route covers its first hop on Linux, where "
    "no device finishes it, and so is wrong in the end; on a Stack it covers the destination",
    "IP_OPTIONS of a TCP connection": "a source route set, or taken away, on a live connection leads its packets at "
    "once; on Linux not before the route is looked up anew",
}

IP, OPTIONS, RECVOPTS, RETOPTS, HDRINCL = kernel.IPPROTO_IP, 4, 6, 7, 3
LOOSE, STRICT = 131, 137
NEAR, FAR, RIGHT = OURS[4], "10.8.0.1", "10.8.0.2"  # the router's two addresses, and what lies behind it
UDP, RAW = kernel.SOCK_DGRAM, kernel.SOCK_RAW


def by_way_of(kind: int, *hops: str, used: int = 0) -> bytes:
    """A source route through `hops`, of which so many have been passed; padded."""
    return bytes((kind, 3 + 4 * len(hops), 4 + 4 * used)) + b"".join(map(kernel.inet_aton, hops)) + b"\0"


# -- the option itself ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.mark.parametrize("kind", [kernel.SOCK_STREAM, UDP])
def test_opt_ip_options_show_source_routes_as_they_were_set(world: World, kind: int) -> None:
    """IP_OPTIONS take a source route of one to nine hosts, and show it as it was given, padded."""
    with world.socket.socket(type=kind) as sock:
        for route in (LOOSE, STRICT):
            for count in (1, 2, 9):
                option = by_way_of(route, *(f"10.0.0.{host}" for host in range(1, count + 1)))
                sock.setsockopt(IP, OPTIONS, option[:-1])
                assert sock.getsockopt(IP, OPTIONS, 40) == option
                assert sock.getsockopt(IP, OPTIONS, 5) == option[:5]
        both = b"\1" + by_way_of(LOOSE, "10.0.0.1")[:-1] + bytes((7, 7, 4)) + bytes(4)
        sock.setsockopt(IP, OPTIONS, both)
        assert sock.getsockopt(IP, OPTIONS, 40) == both + b"\0"
        sock.setsockopt(IP, OPTIONS, b"")
        assert sock.getsockopt(IP, OPTIONS, 40) == b""


HERE = kernel.inet_aton(LOOPBACK)
WRONG = [
    bytes((LOOSE, 3, 4)),  # nobody in it
    bytes((LOOSE, 7, 8)) + HERE,  # somebody passed already
    bytes((LOOSE, 7, 5)) + HERE,
    bytes((LOOSE, 6, 4)) + HERE[:3],  # part of somebody
    bytes((LOOSE, 8, 4)) + HERE + b"\0",
    by_way_of(LOOSE, LOOPBACK)[:-1] * 2,  # two of them
    by_way_of(LOOSE, LOOPBACK)[:-1] + by_way_of(STRICT, LOOPBACK),
    by_way_of(LOOSE, *[LOOPBACK] * 10)[:-1],  # too many
    bytes((7, 7, 5)) + bytes(4),  # a record route with half a slot left
    bytes((7, 7, 3)) + bytes(4),
    bytes((68, 8, 6, 0)) + bytes(4),  # a timestamp with half a slot left
    bytes((68, 8, 5, 1)) + bytes(4),  # or without room for the address
    bytes((68, 4, 5, 0xF0)),  # or that counted all it can
    bytes((148, 3, 0)),  # a router alert without a value
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[:6].hex())
def test_opt_ip_options_that_are_wrong(world: World, wrong: bytes) -> None:
    """IP_OPTIONS that no host could follow are EINVAL, and change nothing."""
    with world.socket.socket(type=UDP) as sock:
        sock.setsockopt(IP, OPTIONS, b"\1\1\1\1")
        assert code(sock.setsockopt, IP, OPTIONS, wrong) == errno.EINVAL
        assert code(sock.sendmsg, [b"x"], [(IP, RETOPTS, wrong)], 0, (LOOPBACK, 9)) == errno.EINVAL
        assert sock.getsockopt(IP, OPTIONS, 40) == b"\1\1\1\1"


def test_opt_ip_options_as_the_kernel_decides() -> None:
    """IP_OPTIONS of all sorts, right and wrong, drawn by lot: the kernel and a Stack take the same."""
    rng = random.Random(5)
    kinds = (0, 1, 7, 68, 131, 137, 148, 7, 68, 131, 137, 130, 136, 134, 94)
    with Network() as network, kernel.socket(type=UDP) as theirs:
        stack = network.stack("gw")
        acting = stack.acting(Credentials.user(1000)) if os.geteuid() else nullcontext()
        with acting, stack.socket.socket(type=UDP) as ours:
            for _ in range(4000):
                data = bytearray()
                while len(data) < rng.choice((4, 12, 24, 44)):
                    kind = rng.choice(kinds)
                    if kind < 2 or kind == 134:  # CIPSO asks for what no Stack has
                        data.append(kind & 1)
                        continue
                    length = rng.choice((2, 3, 4, 6, 7, 8, 11, 12, 15))
                    body = bytearray(rng.randbytes(max(length - 2, 0)))
                    if body:
                        body[0] = rng.choice((0, 3, 4, 4, 4, 5, 5, 8, 9, length, length + 1))
                    if kind == 68 and len(body) > 1:
                        body[1] = rng.choice((0, 0, 1, 2, 0xF0, 0x10))
                    data += bytes((kind, length)) + body
                answers: list[int | None] = []
                for sock in (theirs, ours):
                    try:
                        sock.setsockopt(IP, OPTIONS, bytes(data))
                        answers.append(0)
                    except OSError as error:
                        answers.append(error.errno)
                assert answers[0] == answers[1], bytes(data).hex()


def test_opt_ip_options_nobody_knows_need_cap_net_raw() -> None:
    """IP_OPTIONS of a kind that the stack does not know: EINVAL without CAP_NET_RAW, also as a control message."""
    with Network() as network:
        stack = network.stack("gw")
        unknown = bytes((94, 4, 0, 0))
        with stack.acting(Credentials.user(1000)), stack.socket.socket(type=UDP) as sock:
            assert code(sock.setsockopt, IP, OPTIONS, unknown) == errno.EINVAL
            assert code(sock.sendmsg, [b"x"], [(IP, RETOPTS, unknown)], 0, (LOOPBACK, 9)) == errno.EINVAL
            sock.setsockopt(IP, OPTIONS, by_way_of(LOOSE, LOOPBACK))
        with stack.socket.socket(type=UDP) as sock:
            sock.setsockopt(IP, OPTIONS, unknown)


def test_forms_of_a_source_route() -> None:
    """What users write, what is on the wire, and the way back (RFC 791 3.1, RFC 1812 5.2.4.1)."""
    one, two, three, us = (bytes((10, 0, 0, host)) for host in (1, 2, 3, 9))
    option = bytes((LOOSE, 11, 4)) + one + two + b"\0"
    assert first_hop(option) == one
    assert not is_strict(option)
    assert is_strict(b"\1" + bytes((STRICT,)) + option[1:])
    assert routed(option, three) == bytes((LOOSE, 11, 4)) + two + three + b"\0"
    passed = bytes((LOOSE, 11, 12)) + one + two + b"\0"
    assert echoed(passed, us) == bytes((LOOSE, 11, 4)) + two + one + b"\0"
    assert echoed(passed, one) == bytes((LOOSE, 7, 4)) + two + b"\0"
    assert echoed(bytes((LOOSE, 11, 8)) + one + two + b"\0", us) == bytes((LOOSE, 7, 4)) + one + b"\0"
    assert echoed(bytes((LOOSE, 11, 4)) + one + two + b"\0", us) == b""
    assert echoed(bytes((LOOSE, 11, 255)) + one + two + b"\0", us) == bytes((LOOSE, 11, 4)) + two + one + b"\0"
    assert (first_hop(b"\1\1"), routed(b"\1\1\1\1", one)) == (None, b"\1\1\1\1")


# -- a row of three ---------------------------------------------------------------------------------------------------


class Row:
    """`left` and `right` make sockets at either end; `middle` is a Stack that routes between them."""

    def __init__(self, network: Network, left: Any, near: str, right: Any, middle: Any) -> None:
        self.network = network
        self.left, self.near, self.right, self.middle = left, near, right, middle

    def sockets(self, kind: int, proto: int = 0) -> tuple[Any, Any]:
        pair = self.left.socket(kernel.AF_INET, kind, proto), self.right.socket(kernel.AF_INET, kind, proto)
        for sock in pair:
            sock.settimeout(20)
        return pair


def add_right(network: Network, middle: Any) -> Any:
    """A Stack behind the router, which knows the way to the left."""
    with network.lock:
        one, other = cable(network.scheduler)
    middle.add_interface(one, addresses=[f"{FAR}/24"])
    right = network.stack("right")
    right.add_interface(other, addresses=[f"{RIGHT}/24"])
    right.add_route("10.9.0.0/24", FAR)
    network.call(middle.netns.set_forwarding, (True,))
    for stack in (middle, right):
        network.call(stack.netns.take_source_routes, (True,))
    return right


@pytest.fixture(params=["ours", "linux"])
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The left end is ours, in virtual time, or the kernel's."""
    if request.param == "linux":
        with LinuxWorld() as world:
            world.linux.run("ip", "route", "add", "10.8.0.0/24", "via", OURS[4])
            world.linux.sysctl("net.ipv4.conf.all.accept_source_route", "1")
            right = add_right(world.network, world.gw)
            yield Row(world.network, world.linux, LINUX[4], right.socket, world.gw)
        return
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        one, other = cable(network.scheduler)
        left, middle = network.stack("left"), network.stack("middle")
        left.add_interface(one, addresses=[f"{LINUX[4]}/24"])
        left.add_route("10.8.0.0/24", OURS[4])
        middle.add_interface(other, addresses=[f"{OURS[4]}/24"])
        network.call(left.netns.take_source_routes, (True,))
        yield Row(network, left.socket, LINUX[4], add_right(network, middle).socket, middle)


def told(sock: Any) -> tuple[bytes, list[tuple[int, bytes]], Any]:
    data, messages, _, address = sock.recvmsg(99, 200)
    return data, [(kind, message) for _, kind, message in messages], address


@pytest.mark.parametrize("kind", [LOOSE, STRICT], ids=["loose", "strict"])
@pytest.mark.parametrize("to_the_right", [True, False], ids=["right", "left"])
def test_opt_ip_options_source_routes_of_udp(row: Row, kind: int, to_the_right: bool) -> None:
    """A datagram goes by way of its source route, IP_RECVOPTS tells what was recorded there, IP_RETOPTS the way back,
    and a reply with those as IP_OPTIONS takes it; connected or not, and as a control message.
    """
    left, right = row.sockets(UDP)
    ends = [(left, row.near, NEAR), (right, RIGHT, FAR)]
    (sender, here, first), (receiver, there, second) = ends if to_the_right else ends[::-1]
    with sender, receiver:
        sender.bind((here, 0))
        receiver.bind((there, 0))
        for sock in (sender, receiver):
            sock.setsockopt(IP, RECVOPTS, 1)
            sock.setsockopt(IP, RETOPTS, 1)
            if isinstance(sock, kernel.socket):
                sock.setsockopt(kernel.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: Linux's would be wrong where we verify it
        came = [(RECVOPTS, by_way_of(kind, second, used=1)), (RETOPTS, by_way_of(kind, second))]
        back = [(RECVOPTS, by_way_of(kind, first, used=1)), (RETOPTS, by_way_of(kind, first))]
        sender.setsockopt(IP, OPTIONS, by_way_of(kind, first))
        sender.sendto(b"question", receiver.getsockname())
        assert told(receiver) == (b"question", came, sender.getsockname())
        receiver.setsockopt(IP, OPTIONS, came[1][1])
        receiver.sendto(b"answer", sender.getsockname())
        assert told(sender) == (b"answer", back, receiver.getsockname())
        sender.connect(receiver.getsockname())
        assert sender.getsockname()[0] == here
        sender.send(b"connected")
        assert told(receiver) == (b"connected", came, sender.getsockname())
        sender.setsockopt(IP, OPTIONS, b"")
        sender.send(b"straight")
        assert told(receiver) == (b"straight", [], sender.getsockname())
        sender.sendmsg([b"once"], [(IP, RETOPTS, by_way_of(kind, first))])
        assert told(receiver) == (b"once", came, sender.getsockname())


@pytest.mark.parametrize("kind", [LOOSE, STRICT], ids=["loose", "strict"])
@pytest.mark.parametrize("to_the_right", [True, False], ids=["right", "left"])
def test_opt_ip_options_source_routes_of_tcp(row: Row, kind: int, to_the_right: bool) -> None:
    """A connection goes by way of its source route, and its answers take the way back, which the accepted socket shows
    as its IP_OPTIONS; a refusal, too.
    """
    left, right = row.sockets(kernel.SOCK_STREAM)
    ends = [(left, row.near, NEAR), (right, RIGHT, FAR)]
    (client, here, first), (listener, there, second) = ends if to_the_right else ends[::-1]
    with client, listener:
        listener.bind((there, 0))
        client.setsockopt(IP, OPTIONS, by_way_of(kind, first))
        client.settimeout(None)
        assert code(client.connect, listener.getsockname()) == errno.ECONNREFUSED
        client.settimeout(20)
        listener.listen()
        client.connect(listener.getsockname())
        served, address = listener.accept()
        with served:
            served.settimeout(20)
            assert address == client.getsockname()
            assert client.getsockname()[0] == here
            assert client.getpeername() == listener.getsockname()
            assert served.getsockopt(IP, OPTIONS, 40) == by_way_of(kind, second)
            assert client.getsockopt(IP, OPTIONS, 40) == by_way_of(kind, first)
            client.sendall(b"question" * 1000)
            got = b""
            while len(got) < 8000:
                got += served.recv(8000)
            assert got == b"question" * 1000
            served.sendall(b"answer")
            assert client.recv(9) == b"answer"


def test_opt_ip_options_source_routes_of_raw_sockets(row: Row) -> None:
    """Raw sockets, too; not beside a header of the user's own, which is EINVAL."""
    left, right = row.sockets(RAW, 200)
    with left, right:
        left.setsockopt(IP, OPTIONS, by_way_of(LOOSE, NEAR))
        left.sendto(b"raw", (RIGHT, 0))
        packet, address = right.recvfrom(99)
        assert address == (row.near, 0)
        assert packet[20:] == by_way_of(LOOSE, FAR, used=1) + b"raw"
        left.setsockopt(IP, HDRINCL, 1)
        assert code(left.sendto, bytes((0x45,)) + bytes(30), (RIGHT, 0)) == errno.EINVAL


def echo(sequence: int) -> bytes:
    return bytes((8, 0, *(0xFFFF - 0x0800 - 7 - sequence).to_bytes(2, "big"), 0, 7, 0, sequence))


def test_opt_ip_options_are_answered_by_hosts(row: Row) -> None:
    """An echo request's source route brings the reply back; records are gone on with (RFC 1122 3.2.2.6)."""
    left, right = row.sockets(RAW, 1)
    with left, right:
        for asker, here, first, there, second in (
            (left, row.near, NEAR, RIGHT, FAR),
            (right, RIGHT, FAR, row.near, NEAR),
        ):
            slots = by_way_of(LOOSE, first)[:-1] + bytes((7, 15, 4)) + bytes(12)
            asker.setsockopt(IP, OPTIONS, slots)
            asker.sendto(echo(1), (there, 0))
            packet = asker.recv(200)
            while packet[(packet[0] & 15) * 4] != 0:  # the other raw socket's question, which is heard here, too
                packet = asker.recv(200)
            recorded = b"".join(map(kernel.inet_aton, (here, second, there)))
            assert packet[20 : (packet[0] & 15) * 4].rstrip(b"\0") == (
                bytes((7, 15, 16)) + recorded + by_way_of(LOOSE, first, used=1).rstrip(b"\0")
            )


@pytest.mark.parametrize("kind", [UDP, RAW])
def test_opt_ip_options_source_routes_nowhere(row: Row, kind: int) -> None:
    """No way to the first host is ENETUNREACH, as is a strict one's behind a router; to 0.0.0.0 EINVAL."""
    left, right = row.sockets(kind, 200 if kind == RAW else 0)
    with left, right:
        for option, target, expected in (
            (by_way_of(LOOSE, "203.0.113.1"), RIGHT, errno.ENETUNREACH),
            (by_way_of(STRICT, RIGHT), RIGHT, errno.ENETUNREACH),
            (by_way_of(LOOSE, NEAR), "0.0.0.0", errno.EINVAL),
        ):
            left.setsockopt(IP, OPTIONS, option)
            assert code(left.sendto, b"x", (target, 9)) == expected


def test_opt_ip_options_source_routes_of_tcp_nowhere(row: Row) -> None:
    """For connect() the same: ENETUNREACH, and EINVAL for 0.0.0.0."""
    left, right = row.sockets(kernel.SOCK_STREAM)
    with left, right:
        left.setsockopt(IP, OPTIONS, by_way_of(LOOSE, "203.0.113.1"))
        assert code(left.connect, (RIGHT, 9)) == errno.ENETUNREACH
        left.setsockopt(IP, OPTIONS, by_way_of(LOOSE, NEAR))
        assert code(left.connect, ("0.0.0.0", 9)) == errno.EINVAL


# -- what is not taken ------------------------------------------------------------------------------------------------


@pytest.fixture
def ours() -> Iterator[tuple[Network, Any, Any, Any]]:
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        one, other = cable(network.scheduler)
        left, middle = network.stack("left"), network.stack("middle")
        left.add_interface(one, addresses=[f"{LINUX[4]}/24"])
        middle.add_interface(other, addresses=[f"{OURS[4]}/24", "10.9.0.7/24"])
        network.call(left.netns.take_source_routes, (True,))
        yield network, left, middle, add_right(network, middle)


def send(network: Network, left: Any, option: bytes, target: str) -> list[tuple[int, int]]:
    """Send a datagram; type and code of the ICMP errors that come back."""
    with left.socket.socket(kernel.AF_INET, UDP) as sock:
        sock.setsockopt(IP, 11, 1)  # IP_RECVERR
        sock.setsockopt(IP, OPTIONS, option)
        sock.sendto(b"x", (target, 9))
        sock.settimeout(5)
        with suppress(OSError):
            sock.recv(9)
        sock.setblocking(False)
        errors = []
        with suppress(BlockingIOError):
            while True:
                _, messages, _, _ = sock.recvmsg(99, 200, kernel.MSG_ERRQUEUE)
                errors.append((messages[0][2][5], messages[0][2][6]))
        return errors


def test_source_routes_are_refused_unless_asked_for(ours: tuple[Network, Any, Any, Any]) -> None:
    """As by Linux's accept_source_route: the namespace's and the interface's, of which the former is off at first."""
    network, left, middle, _ = ours
    netns = middle.netns
    ip = netns.ip
    inward = next(each for each in ip.interfaces.values() if not each.loopback)

    def outcome() -> tuple[bool, bool]:
        """(passed on, refused)"""
        before = ip.forwarding.forwarded4, ip.drops["source-route"]
        send(network, left, by_way_of(LOOSE, NEAR), RIGHT)
        return ip.forwarding.forwarded4 > before[0], ip.drops["source-route"] > before[1]

    assert outcome() == (True, False)
    network.call(netns.take_source_routes, (False,))
    assert outcome() == (False, True)
    network.call(netns.take_source_routes, (True,))
    network.call(lambda: netns.take_source_routes(False, iface=inward), ())
    assert outcome() == (False, True)
    network.call(lambda: netns.take_source_routes(True, iface=inward), ())
    assert outcome() == (True, False)
    network.call(netns.set_forwarding, (False,))
    assert outcome() == (False, False)


def test_source_routes_by_the_router_itself(ours: tuple[Network, Any, Any, Any]) -> None:
    """A host may be named twice: its own addresses are stepped over, without being recorded, as by Linux."""
    _, left, _, right = ours
    with left.socket.socket(kernel.AF_INET, UDP) as sender, right.socket.socket(kernel.AF_INET, UDP) as receiver:
        receiver.bind((RIGHT, 0))
        receiver.setsockopt(IP, RECVOPTS, 1)
        receiver.setsockopt(IP, RETOPTS, 1)
        sender.setsockopt(IP, OPTIONS, by_way_of(LOOSE, NEAR, "10.9.0.7"))
        sender.sendto(b"x", receiver.getsockname())
        came = by_way_of(LOOSE, "10.9.0.7", FAR, used=2)
        assert told(receiver)[1] == [(RECVOPTS, came), (RETOPTS, by_way_of(LOOSE, FAR, "10.9.0.7"))]


@pytest.mark.parametrize(
    ("option", "target", "errors"),
    [
        (by_way_of(LOOSE, NEAR, "203.0.113.1"), RIGHT, [(3, 0)]),  # no way there
        (by_way_of(STRICT, NEAR, "10.7.0.1"), "10.7.0.1", [(3, 5)]),  # the next one is behind a router
        (by_way_of(LOOSE, NEAR, LOOPBACK), RIGHT, []),  # where nothing may go
        (by_way_of(LOOSE, NEAR, "224.0.0.1"), RIGHT, []),
        (by_way_of(LOOSE, NEAR), RIGHT, [(3, 3)]),  # only nobody listens
    ],
    ids=["no-route", "strict", "loopback", "group", "good"],
)
def test_source_routes_that_fail(
    ours: tuple[Network, Any, Any, Any], option: bytes, target: str, errors: list[tuple[int, int]]
) -> None:
    """The sender hears of it where it is the route's fault: "source route failed" of a strict one."""
    network, left, middle, _ = ours
    middle.add_route("10.7.0.0/24", RIGHT)
    assert send(network, left, option, target) == errors


def test_udp_13_segments_carry_the_options(world: World) -> None:
    """UDP_SEGMENT and IP_OPTIONS together: each of the datagrams has them."""
    with world.socket.socket(type=UDP) as one, world.socket.socket(type=UDP) as other:
        one.bind((LOOPBACK, 0))
        one.settimeout(10)
        one.setsockopt(IP, RECVOPTS, 1)
        other.setsockopt(IP, OPTIONS, b"\1\1\1\1")
        other.setsockopt(kernel.IPPROTO_UDP, 103, 3)
        other.sendto(b"abcdefgh", one.getsockname())
        for data in (b"abc", b"def", b"gh"):
            assert told(one)[:2] == (data, [(RECVOPTS, b"\1\1\1\1")])
