"""What options of UDP sockets do, one by one, on the kernel's sockets and on ours (sections 2.0, 2.1, 2.2 and 2.4).

Defaults, ranges, lengths and errors of every row are compared with the kernel's in `test_socket_options`; here is what
setting them is good for.
"""

from __future__ import annotations

import errno
import os
import select
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Credentials, Network, Stack
from stack.link import cable
from stack.socket.options_device import SO_TIMESTAMP, SO_TIMESTAMP_NEW, SO_TIMESTAMPNS, SO_TIMESTAMPNS_NEW
from stack.socket.poll import ERR, IN, OUT
from stack.tests.kernel_twin import LOOPBACK, World, code

FAMILIES = pytest.mark.parametrize("family", [kernel.AF_INET, kernel.AF_INET6], ids=["v4", "v6"])
LOCAL: dict[int, str] = {kernel.AF_INET: LOOPBACK, kernel.AF_INET6: "::1"}
SOL, IP, IPV6, UDP = kernel.SOL_SOCKET, kernel.IPPROTO_IP, kernel.IPPROTO_IPV6, kernel.IPPROTO_UDP
ROOT = os.geteuid() == 0


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture
def ours() -> Iterator[World]:
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


def told(sock: Any, room: int = 500) -> list[tuple[int, int, bytes]]:
    """The control messages of the next datagram."""
    messages: list[tuple[int, int, bytes]] = sock.recvmsg(100, room)[1]
    return messages


def number(value: int) -> bytes:
    return struct.pack("@i", value)


def code_of(call: Any, *args: Any) -> int | None:
    """The errno a call raises, None if it does not."""
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return None


def empty(sock: Any) -> bool:
    sock.settimeout(None)
    try:
        return code(sock.recv, 1, kernel.MSG_DONTWAIT) == errno.EAGAIN
    finally:
        sock.settimeout(10)


# -- SOL_SOCKET -------------------------------------------------------------------------------------------------------


def test_opt_so_debug_needs_a_capability() -> None:
    """SO_DEBUG: EACCES for who has no CAP_NET_ADMIN."""
    with (
        Network() as network,
        Stack("user", network=network, credentials=Credentials.user(1000)) as user,
        user.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock,
    ):
        assert code(sock.setsockopt, SOL, kernel.SO_DEBUG, 1) == errno.EACCES
        sock.setsockopt(SOL, kernel.SO_DEBUG, 0)


def test_opt_so_type_domain_protocol_acceptconn_tell_what_it_is(world: World) -> None:
    """SO_TYPE, SO_DOMAIN, SO_PROTOCOL and SO_ACCEPTCONN are read-only facts."""
    for family in LOCAL:
        with datagram(world, family) as sock:
            facts = [sock.getsockopt(SOL, option) for option in (3, 39, 38, 30)]
            assert facts == [kernel.SOCK_DGRAM, family, UDP, 0]
            for option in (3, 39, 38, 30):
                assert code(sock.setsockopt, SOL, option, 1) == errno.ENOPROTOOPT


def test_opt_so_broadcast_is_live(world: World) -> None:
    """SO_BROADCAST: what was EACCES goes as soon as it is set, and no longer once it is cleared."""
    with datagram(world) as sock:
        for value, outcome in ((0, errno.EACCES), (1, None), (0, errno.EACCES)):
            sock.setsockopt(SOL, kernel.SO_BROADCAST, value)
            if outcome is None:
                assert sock.sendto(b"x", ("127.255.255.255", 9)) == 1
            else:
                assert code(sock.sendto, b"x", ("127.255.255.255", 9)) == outcome


def test_opt_so_sndbuf_and_rcvbuf_double_and_clamp(world: World) -> None:
    """SO_SNDBUF and SO_RCVBUF: doubled, at least 4608 and 2304, and SO_BUF_LOCK tells which were set."""
    with datagram(world) as sock:
        assert sock.getsockopt(SOL, 72) == 0
        for option, least in ((kernel.SO_SNDBUF, 4608), (kernel.SO_RCVBUF, 2304)):
            sock.setsockopt(SOL, option, 50_000)
            assert sock.getsockopt(SOL, option) == 100_000
            sock.setsockopt(SOL, option, 0)
            assert sock.getsockopt(SOL, option) == least
        assert sock.getsockopt(SOL, 72) == 3


def test_opt_so_rcvbuf_bounds_what_waits(world: World) -> None:
    """SO_RCVBUF: what does not fit is lost, later datagrams fit again once there is room."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, kernel.SO_RCVBUF, 8192)
        for _ in range(200):
            sender.send(bytes(500))
        world.delivered()
        got = 0
        receiver.setblocking(False)
        while True:
            try:
                receiver.recv(1000)
            except BlockingIOError:
                break
            got += 1
        assert 3 <= got <= 40
        sender.send(b"again")
        receiver.settimeout(10)
        assert receiver.recv(10) == b"again"


def test_opt_so_sndbuf_bounds_what_the_link_has_not_taken() -> None:
    """SO_SNDBUF: while the device refuses frames and that many bytes wait, sending is EAGAIN and poll lacks OUT."""
    from stack.testing.links import RecorderDevice

    with Network() as network:
        gw = network.stack("gw")
        link = RecorderDevice(room=0)
        iface = gw.add_interface(link, name="eth0", addresses=["10.0.0.1/24"])
        iface.neighbours.set_permanent(kernel.inet_aton("10.0.0.2"), b"\2\0\0\0\0\2")
        with gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            sock.setsockopt(SOL, kernel.SO_SNDBUF, 5000)
            sock.setblocking(False)
            sock.connect(("10.0.0.2", 9))
            sent = sum(1 for _ in range(100) if code_of(sock.send, bytes(1000)) is None)
            assert sent == 10
            assert sock._sock.poll() & (IN | OUT | ERR) == 0
            link.room = 100
            network.poll(network.clock())
            iface.flush()
            assert sock._sock.poll() & OUT
            assert sock.send(bytes(1000)) == 1000


def test_opt_so_sndbufforce_and_rcvbufforce_pass_the_limit() -> None:
    """SO_SNDBUFFORCE and SO_RCVBUFFORCE: beyond the system's limit, with CAP_NET_ADMIN; write-only."""
    with Network() as network:
        for credentials, outcome in ((Credentials(), None), (Credentials.user(5), errno.EPERM)):
            with (
                Stack(f"of {credentials.uid}", network=network, credentials=credentials) as stack,
                stack.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock,
            ):
                for plain, force in ((kernel.SO_SNDBUF, 32), (kernel.SO_RCVBUF, 33)):
                    assert code(sock.getsockopt, SOL, force) == errno.ENOPROTOOPT
                    assert code_of(sock.setsockopt, SOL, force, 100 << 20) == outcome
                    if outcome is None:
                        assert sock.getsockopt(SOL, plain) == 200 << 20


def test_opt_so_rcvlowat_is_nothing_to_datagrams(world: World) -> None:
    """SO_RCVLOWAT: a short datagram is readable and received all the same."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, kernel.SO_RCVLOWAT, 1000)
        sender.send(b"x")
        assert world.settle(receiver, IN) == IN | OUT
        assert receiver.recv(10) == b"x"


@pytest.mark.parametrize("option", [kernel.SO_RCVTIMEO, 66])
def test_opt_so_rcvtimeo_ends_a_blocking_receive(world: World, option: int) -> None:
    """SO_RCVTIMEO, old and new: a blocking receive ends with EAGAIN; both numbers read the same value."""
    with datagram(world) as sock:
        sock.bind((LOOPBACK, 0))
        sock.settimeout(None)
        sock.setsockopt(SOL, option, struct.pack("@ll", 0, 20_000))
        assert code(sock.recv, 1) == errno.EAGAIN
        assert sock.getsockopt(SOL, kernel.SO_RCVTIMEO, 16) == sock.getsockopt(SOL, 66, 16)
        sock.setsockopt(SOL, option, struct.pack("@ll", -1, 0))
        assert code(sock.recv, 1) == errno.EAGAIN


def test_opt_so_priority_follows_ip_tos(world: World) -> None:
    """SO_PRIORITY: 0 to 6 are anybody's; IP_TOS sets it by its upper bits, and it may be set back."""
    with datagram(world) as sock:
        for value in range(7):
            sock.setsockopt(SOL, kernel.SO_PRIORITY, value)
            assert sock.getsockopt(SOL, kernel.SO_PRIORITY) == value
        for tos in range(255, -1, -1):
            sock.setsockopt(IP, kernel.IP_TOS, tos)
            assert sock.getsockopt(SOL, kernel.SO_PRIORITY) == (0, 2, 6, 4)[tos >> 3 & 3]


def test_opt_so_priority_and_mark_need_a_capability() -> None:
    """SO_PRIORITY above 6, SO_MARK, IP_TRANSPARENT and IPV6_TRANSPARENT: EPERM without CAP_NET_ADMIN or CAP_NET_RAW;
    SO_MARK as a control message, too.
    """
    from stack.credentials import Capability

    with Network() as network:
        raw = Credentials(uid=5, capabilities=frozenset({Capability.NET_RAW}))
        for name, credentials in (("user", Credentials.user(5)), ("raw", raw)):
            outcome = errno.EPERM if name == "user" else None
            with (
                Stack(name, network=network, credentials=credentials) as stack,
                stack.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as sock,
            ):
                for level, option in ((SOL, kernel.SO_PRIORITY), (SOL, 36), (IP, 19), (IPV6, 75)):
                    assert code_of(sock.setsockopt, level, option, 7) == outcome
                assert code_of(sock.sendmsg, [b"x"], [(SOL, 36, number(1))], 0, ("::1", 9)) == outcome


def two_ways(network: Network) -> tuple[Stack, list[Stack]]:
    """A node with two links, and who is at their other ends; the default route leads over the first."""
    gw = network.stack("gw")
    others = []
    for index in (0, 1):
        near, far = cable(network.scheduler)
        other = network.stack(f"side{index}")
        gw.add_interface(near, name=f"eth{index}", addresses=[f"10.0.{index}.1/24", "fe80::1/64"])
        other.add_interface(far, name="eth0", addresses=[f"10.0.{index}.2/24", "fe80::2/64", "192.0.2.9/32"])
        others.append(other)
    gw.add_route("0.0.0.0/0", "10.0.0.2")
    return gw, others


def receivers(others: list[Stack]) -> list[Any]:
    result = []
    for other in others:
        sock = other.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
        sock.bind(("0.0.0.0", 5000))
        sock.setblocking(False)
        result.append(sock)
    return result


def heard(socks: list[Any]) -> list[bytes]:
    """What has arrived at each, joined."""
    result = []
    for sock in socks:
        parts = []
        while True:
            try:
                parts.append(sock.recv(100))
            except BlockingIOError:
                break
        result.append(b"".join(parts))
    return result


def test_opt_so_mark_chooses_the_route() -> None:
    """SO_MARK: a rule with fwmark sends marked packets another way; a control message marks one datagram."""
    from stack.iface.address import parse_address
    from stack.ip.policy import Rule
    from stack.ip.route import RouteEntry

    with Network() as network:
        gw, others = two_ways(network)
        ip = gw.netns.ip
        with network.lock:
            iface = next(each for each in ip.interfaces.values() if each.name == "eth1")
            ip.add_route(RouteEntry(bytes(4), 0, iface, gateway=parse_address("10.0.1.2"), table=100))
            ip.routes4.add_rule(Rule(4, 1000, 100, fwmark=0x20, fwmask=0xF0))
            ip.invalidate()
        socks = receivers(others)
        with gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            sock.sendto(b"plain ", ("192.0.2.9", 5000))
            sock.sendmsg([b"message "], [(SOL, 36, number(0x2F))], 0, ("192.0.2.9", 5000))
            sock.setsockopt(SOL, 36, 0x21)
            sock.sendto(b"socket ", ("192.0.2.9", 5000))
            sock.setsockopt(SOL, 36, 0x31)
            sock.sendto(b"other ", ("192.0.2.9", 5000))
        assert heard(socks) == [b"plain other ", b"message socket "]
        for each in socks:
            each.close()


@pytest.mark.parametrize("how", ["mark", "device", "unicast interface"])
def test_opt_so_mark_and_bindtodevice_of_a_connection(how: str) -> None:
    """SO_MARK, SO_BINDTODEVICE and IP_UNICAST_IF choose a TCP connection's way, too."""
    from stack.iface.address import parse_address
    from stack.ip.policy import Rule
    from stack.ip.route import RouteEntry

    with Network() as network:
        gw, others = two_ways(network)
        ip = gw.netns.ip
        with network.lock:
            iface = next(each for each in ip.interfaces.values() if each.name == "eth1")
            ip.add_route(RouteEntry(bytes(4), 0, iface, gateway=parse_address("10.0.1.2"), table=100))
            ip.add_route(RouteEntry(bytes(4), 0, iface, gateway=parse_address("10.0.1.2"), metric=99))
            ip.routes4.add_rule(Rule(4, 1000, 100, fwmark=7, fwmask=0xFF))
            ip.invalidate()
        servers = [other.socket.create_server(("0.0.0.0", 80)) for other in others]
        for chosen in (0, 1):
            with gw.socket.socket() as client:
                if chosen and how == "mark":
                    client.setsockopt(SOL, 36, 7)
                elif chosen and how == "device":
                    client.setsockopt(SOL, kernel.SO_BINDTODEVICE, b"eth1")
                elif chosen:
                    client.setsockopt(IP, 50, struct.pack("!I", gw.socket.if_nametoindex("eth1")))
                client.settimeout(10)
                client.connect(("192.0.2.9", 80))
                accepted, address = servers[chosen].accept()
                assert address[0] == f"10.0.{chosen}.1"
                accepted.close()
        for server in servers:
            server.close()


@pytest.mark.parametrize("by_name", [True, False])
def test_opt_so_bindtodevice_sends_and_hears_through_one_interface(by_name: bool) -> None:
    """SO_BINDTODEVICE and SO_BINDTOIFINDEX: packets leave and are heard through that interface only; an unknown name
    is ENODEV; two sockets on different interfaces share a port.
    """
    with Network() as network:
        gw, others = two_ways(network)
        socks = receivers(others)
        bound = []
        for index in (0, 1):
            sock = gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
            if by_name:
                sock.setsockopt(SOL, kernel.SO_BINDTODEVICE, f"eth{index}\0".encode())
            else:
                sock.setsockopt(SOL, 62, gw.socket.if_nametoindex(f"eth{index}"))
            assert sock.getsockopt(SOL, kernel.SO_BINDTODEVICE, 16) == f"eth{index}\0".encode()
            assert sock.getsockopt(SOL, 62) == gw.socket.if_nametoindex(f"eth{index}")
            sock.bind(("0.0.0.0", 6000))
            sock.setblocking(False)
            bound.append(sock)
        assert code(bound[0].setsockopt, SOL, kernel.SO_BINDTODEVICE, b"nonesuch") == errno.ENODEV
        for index in (0, 1):
            socks[index].sendto(str(index).encode(), (f"10.0.{index}.1", 6000))
        assert heard(bound) == [b"0", b"1"]
        bound[0].sendto(b"zero", ("192.0.2.9", 5000))
        assert code(bound[1].sendto, b"one", ("192.0.2.9", 5000)) == errno.ENETUNREACH
        bound[1].sendto(b"one", ("10.0.1.2", 5000))
        assert heard(socks) == [b"zero", b"one"]
        bound[0].setsockopt(SOL, kernel.SO_BINDTODEVICE, b"")
        assert bound[0].getsockopt(SOL, 62) == 0
        for sock in socks + bound:
            sock.close()


def test_opt_so_bindtodevice_only_once_without_capability() -> None:
    """Who has no CAP_NET_RAW may bind a socket, but not change what it is bound to."""
    with (
        Network() as network,
        Stack("user", network=network, credentials=Credentials.user(1000)) as user,
        user.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock,
    ):
        sock.setsockopt(SOL, kernel.SO_BINDTODEVICE, b"lo")
        assert code(sock.setsockopt, SOL, kernel.SO_BINDTODEVICE, b"") == errno.EPERM
        assert code(sock.setsockopt, SOL, 62, 0) == errno.EPERM


@pytest.mark.parametrize(
    ("option", "unit"),
    [(SO_TIMESTAMP, 10**6), (SO_TIMESTAMP_NEW, 10**6), (SO_TIMESTAMPNS, 10**9), (SO_TIMESTAMPNS_NEW, 10**9)],
)
def test_opt_so_timestamp_tells_when_it_came(world: World, option: int, unit: int) -> None:
    """SO_TIMESTAMP(NS), old and new: a control message of the option's number with the time since 1970."""
    import time

    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, option, 1)
        before = time.time_ns()
        sender.send(b"x")
        ((level, kind, data),) = told(receiver)
        assert (level, kind) == (SOL, option)
        seconds, fraction = struct.unpack("@qq", data)
        assert abs(seconds * 10**9 + fraction * (10**9 // unit) - before) < 60 * 10**9
        assert 0 <= fraction < unit
        receiver.setsockopt(SOL, option, 0)
        sender.send(b"x")
        assert told(receiver) == []


def test_opt_so_timestamp_one_of_four(world: World) -> None:
    """Of SO_TIMESTAMP, SO_TIMESTAMPNS and the new ones the last set counts; the new one in ns reads as both new."""
    with datagram(world) as sock:
        for option, shown in ((29, [1, 0, 0, 0]), (35, [0, 1, 0, 0]), (63, [0, 0, 1, 0]), (64, [0, 0, 1, 1])):
            sock.setsockopt(SOL, option, 1)
            assert [sock.getsockopt(SOL, each) for each in (29, 35, 63, 64)] == shown
        sock.setsockopt(SOL, 29, 0)
        assert not any(sock.getsockopt(SOL, each) for each in (29, 35, 63, 64))


def test_opt_so_timestamp_is_the_networks_clock() -> None:
    """In virtual time a time stamp is exactly what the clock said."""
    from stack.testing.clock import ManualClock

    with Network(clock=ManualClock()) as network:
        world = World(network.stack("gw").socket, network)
        sender, receiver = pair(world)
        with sender, receiver:
            receiver.setsockopt(SOL, 35, 1)
            network.poll(5_000_000_123)
            sender.send(b"x")
            assert told(receiver) == [(SOL, 35, struct.pack("@qq", 5, 123))]


def test_opt_so_timestamping_received(world: World) -> None:
    """SO_TIMESTAMPING: RX_SOFTWARE and SOFTWARE together make a control message of three times, the first is set."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, 37, 8 | 16)
        for _ in range(1000):  # the kernel switches its clock on a little later
            sender.send(b"x")
            messages = told(receiver)
            if messages or world.network is not None:
                break
            select.select([], [], [], 0.001)
        ((level, kind, data),) = messages
        stamps = struct.unpack("@6q", data)
        assert (level, kind) == (SOL, 37)
        assert stamps[0] > 0 or world.network is None
        assert stamps[2:] == (0, 0, 0, 0)


def test_opt_so_timestamping_sent(world: World) -> None:
    """SO_TIMESTAMPING: TX_SCHED and TX_SOFTWARE put an entry each on the error queue, numbered with OPT_ID, without the
    packet with OPT_TSONLY, with it otherwise.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        sender.setsockopt(SOL, 37, 2 | 256 | 16 | 128 | 2048)
        for key in (0, 1):
            sender.send(b"stamp")
            assert receiver.recv(9) == b"stamp"
            for kind in (1, 0):  # scheduled, then sent
                assert world.settle(sender, ERR) & ERR
                data, ancillary, flags, _ = sender.recvmsg(99, 999, kernel.MSG_ERRQUEUE)
                assert (data, flags) == (b"", kernel.MSG_ERRQUEUE)
                assert [each[:2] for each in ancillary] == [(SOL, 37), (IP, 11)]
                fields = struct.unpack_from("@IBBBBII", ancillary[1][2])
                assert fields == (errno.ENOMSG, 4, 0, 0, 0, kind, key)
        sender.setsockopt(SOL, 37, 2 | 16)
        sender.send(b"whole")
        world.settle(sender, ERR)
        data, ancillary, _, _ = sender.recvmsg(99, 999, kernel.MSG_ERRQUEUE)
        assert data[12:15] == b"\x08\0E"
        assert data.endswith(b"whole")
        assert len(data) == 14 + 20 + 8 + 5
        sender.setsockopt(SOL, 37, 16)
        sender.sendmsg([b"asked"], [(SOL, 37, struct.pack("@I", 2))])
        world.settle(sender, ERR)
        assert sender.recvmsg(99, 999, kernel.MSG_ERRQUEUE)[0].endswith(b"asked")


def test_opt_so_timestamping_sent_tells_more(world: World) -> None:
    """A transmit time stamp comes with SO_TIMESTAMPNS's message, if that is on; with OPT_CMSG, and a packet to tell of,
    IP_PKTINFO and IP_RECVTTL are told, too. SO_TIMESTAMPING_NEW's control message asks as the old one does.
    """
    sender, receiver = pair(world)
    with sender, receiver:
        sender.setsockopt(SOL, 35, 1)
        sender.setsockopt(IP, 8, 1)
        sender.setsockopt(IP, 12, 1)
        packet = [(IP, 8), (IP, 2)]
        for flags, more in ((2 | 16 | 1024, packet), (2 | 16, []), (2 | 16 | 1024 | 2048, [])):
            sender.setsockopt(SOL, 37, flags)
            sender.send(b"stamp")
            world.settle(sender, ERR)
            ancillary = sender.recvmsg(99, 999, kernel.MSG_ERRQUEUE)[1]
            assert [each[:2] for each in ancillary] == [(SOL, 35), (SOL, 37), *more, (IP, 11)]
            if more:
                assert ancillary[2][2] == struct.pack("@i", 1) + 2 * kernel.inet_aton("127.0.0.1")
                assert ancillary[3][2] == struct.pack("@i", 64)
        sender.setsockopt(SOL, 37, 0)
        sender.sendmsg([b"asked"], [(SOL, 37 if world.network is None else 65, struct.pack("@I", 256))])
        world.settle(sender, ERR)
        ancillary = sender.recvmsg(99, 999, kernel.MSG_ERRQUEUE)[1]
        assert [each[:2] for each in ancillary] == [(SOL, 35), (IP, 11)]


def test_opt_so_rxq_ovfl_counts_what_was_lost(world: World) -> None:
    """SO_RXQ_OVFL: a datagram tells how many were lost before it was queued; nothing while none was."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, 40, 1)
        receiver.setsockopt(SOL, kernel.SO_RCVBUF, 4096)
        for _ in range(100):
            sender.send(bytes(500))
        world.delivered()
        assert told(receiver) == []
        taken = 1
        receiver.setblocking(False)
        while True:
            try:
                receiver.recv(1000)
            except BlockingIOError:
                break
            taken += 1
        receiver.settimeout(10)
        sender.send(b"late")
        ((level, kind, data),) = told(receiver)
        assert (level, kind) == (SOL, 40)
        assert struct.unpack("@I", data)[0] == 100 - taken


def test_opt_so_peek_off_moves_along(world: World) -> None:
    """SO_PEEK_OFF: each peek goes on where the last one ended, into the next datagrams; receiving moves it back."""
    sender, receiver = pair(world)
    with sender, receiver:
        for data in (b"hello", b"hello", b"world!"):
            sender.send(data)
        receiver.setsockopt(SOL, 42, 0)
        seen = []
        for size in (2, 2, 4, 9):
            data, _, flags, _ = receiver.recvmsg(size, 0, kernel.MSG_PEEK)
            seen.append((data, flags, receiver.getsockopt(SOL, 42)))
        assert seen == [(b"he", 32, 2), (b"ll", 32, 4), (b"o", 0, 5), (b"hello", 0, 10)]
        assert (receiver.recv(9), receiver.getsockopt(SOL, 42)) == (b"hello", 5)
        assert (receiver.recv(9, kernel.MSG_PEEK), receiver.getsockopt(SOL, 42)) == (b"world!", 11)
        receiver.setsockopt(SOL, 42, -1)
        assert receiver.recv(9, kernel.MSG_PEEK) == b"hello"


def test_opt_so_linger_is_nothing_to_datagrams(world: World) -> None:
    """SO_LINGER: closing does not wait, and what was sent arrives."""
    sender, receiver = pair(world)
    with receiver:
        sender.setsockopt(SOL, kernel.SO_LINGER, struct.pack("@ii", 1, 100))
        sender.send(b"last")
        sender.close()
        assert receiver.recv(9) == b"last"


def test_opt_so_cookie_is_a_sockets_own(world: World) -> None:
    """SO_COOKIE: eight bytes that stay, and that no other socket has; less room is EINVAL."""
    with datagram(world) as one, datagram(world) as other:
        cookie = one.getsockopt(SOL, 57, 8)
        assert cookie == one.getsockopt(SOL, 57, 8)
        assert cookie != other.getsockopt(SOL, 57, 8)
        assert code(one.getsockopt, SOL, 57, 7) == errno.EINVAL
        assert one.getsockopt(SOL, 71, 8) == other.getsockopt(SOL, 71, 8)


def test_opt_so_peername_is_getpeername(world: World) -> None:
    """SO_PEERNAME: the peer's sockaddr; ENOTCONN without one, EINVAL with more room than it has."""
    sender, receiver = pair(world)
    with sender, receiver:
        assert code(receiver.getsockopt, SOL, 28, 16) == errno.ENOTCONN
        packed = (
            struct.pack("@H", kernel.AF_INET) + struct.pack("!H", receiver.getsockname()[1]) + b"\x7f\0\0\1" + bytes(8)
        )
        assert sender.getsockopt(SOL, 28, 16) == packed
        assert sender.getsockopt(SOL, 28, 8) == packed[:8]
        assert code(sender.getsockopt, SOL, 28, 100) == errno.EINVAL


def test_opt_so_meminfo_tells_limits_and_drops(world: World) -> None:
    """SO_MEMINFO: nine numbers, among them what waits, both limits, and how many datagrams were dropped."""
    sender, receiver = pair(world)
    with sender, receiver:
        receiver.setsockopt(SOL, kernel.SO_RCVBUF, 4096)
        receiver.setsockopt(SOL, kernel.SO_SNDBUF, 30_000)
        for _ in range(100):
            sender.send(bytes(500))
        world.delivered()
        info = struct.unpack("@9I", receiver.getsockopt(SOL, 55, 36))
        assert info[0] > 500
        assert (info[1], info[3]) == (8192, 60_000)
        assert 60 < info[8] < 100


def test_opt_so_select_err_queue_adds_pri(world: World) -> None:
    """SO_SELECT_ERR_QUEUE: with an entry in the error queue, poll says PRI beside ERR."""
    sender, receiver = pair(world)
    with sender, receiver:
        sender.setsockopt(SOL, 37, 2 | 16 | 2048)
        sender.send(b"x")
        assert world.settle(sender, ERR) & ERR
        assert all_bits(world, sender) & 2 == 0
        sender.setsockopt(SOL, 45, 1)
        assert all_bits(world, sender) & 2


def all_bits(world: World, sock: Any) -> int:
    import select

    if world.network is not None:
        return int(sock._sock.poll())
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLPRI | select.POLLOUT)
    return sum(bits for _, bits in poll.poll(0))


def test_opt_so_no_check_sends_without_checksum() -> None:
    """SO_NO_CHECK: the field is zero on the wire; not with UDP_SEGMENT."""
    with Network() as network:
        gw, others = two_ways(network)
        frames = tapped(gw, network)
        socks = receivers(others)
        with gw.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
            sock.connect(("10.0.0.2", 5000))
            sock.send(b"with")
            sock.setsockopt(SOL, 11, 1)
            sock.send(b"without")
            assert [frame[40:42] == b"\0\0" for frame in frames if frame[23:24] == b"\x11"] == [False, True]
            assert code(sock.sendmsg, [b"x" * 9], [(UDP, 103, struct.pack("@H", 5))]) == errno.EINVAL
        assert heard(socks) == [b"withwithout", b""]
        for each in socks:
            each.close()


def tapped(stack: Stack, network: Network) -> list[bytes]:
    """Every frame that leaves through eth0 from now on."""
    frames: list[bytes] = []

    class Tap:
        def received(self, burst: Any) -> None: ...

        def transmitted(self, burst: Any) -> None:
            frames.extend(b"".join(parts) for parts, *_ in burst)

    with network.lock:
        next(each for each in stack.netns.ip.interfaces.values() if each.name == "eth0").taps.append(Tap())
    return frames
