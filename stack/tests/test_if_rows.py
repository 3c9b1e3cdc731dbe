"""Rows IF-01..15 of the socket semantics, each shown end to end: stacks on a Network, on a cable, in virtual time.

Details and bad input of each row are in the tests of its part; IF-14 is about the virtio-net device and is shown where
both sides of the seam may be imported, in qemu/guest/tests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network, Stack
from stack.iface.facts import InterfaceFlags
from stack.iface.interface import Interface
from stack.link.cable import CableEnd, cable
from stack.testing import builders
from stack.testing.clock import ManualClock
from stack.testing.links import RecorderDevice

A_IP, B_IP = "10.0.2.2", "10.0.2.15"
A_RAW, B_RAW = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 15))
PEER_MAC = bytes.fromhex("020000000002")
SECOND = 10**9


class World:
    """Two stacks on one cable; `recorded` frames are what the first one transmitted on its other link, if it has it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(11))
        self.a: Stack = self.network.stack("a")
        self.b: Stack = self.network.stack("b")
        self.end_a: CableEnd
        self.end_b: CableEnd
        self.end_a, self.end_b = cable(self.network.scheduler)
        self.eth_a: Interface = self.a.add_interface(self.end_a, addresses=[A_IP + "/24", "fd00::2/64"])
        self.eth_b: Interface = self.b.add_interface(self.end_b, addresses=[B_IP + "/24", "fd00::15/64"])

    def run(self, ns: int = 0) -> None:
        """Poll until nothing is left to do before `ns` from now."""
        end = self.clock() + ns
        for _ in range(10_000):
            due = self.network.poll(self.clock())
            if due is None or due > end:
                break
            self.clock.advance_to(max(due, self.clock()))
        else:
            raise AssertionError("the world never comes to rest")
        self.clock.advance_to(end)

    def udp(self, stack: Stack, address: str = "", port: int = 0, family: Any = None) -> Any:
        module = stack.socket
        sock = module.socket(family or module.AF_INET, module.SOCK_DGRAM)
        sock.settimeout(5)
        sock.bind((address, port))
        return sock


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.network.close()


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The body raises OSError with errno `number`."""
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        yield
    assert caught.value.errno == number


def recorded_stack(world: World) -> tuple[RecorderDevice, Interface]:
    """A link of stack a whose other side is the test; the peer there is 10.9.0.2."""
    device = RecorderDevice()
    iface = world.a.add_interface(device, addresses=["10.9.0.1/24"])
    iface.neighbours.set_permanent(bytes((10, 9, 0, 2)), PEER_MAC)
    world.run()
    device.take()
    return device, iface


def ip_frames(device: RecorderDevice) -> list[bytes]:
    return [frame[14:] for frame in device.take() if frame[12:14] == b"\x08\x00"]


def frame_to(iface: Interface, packet: bytes) -> bytes:
    return builders.ethernet(iface.mac, PEER_MAC, 0x0800, packet)


def test_if_01_loopback(world: World) -> None:
    lo = world.a.netns.interface(1)
    assert (lo.name, lo.link_type, lo.mtu, int(lo.flags)) == ("lo", 772, 65536, 0x10049)
    assert [str(each) for each in lo.addresses] == ["127.0.0.1/8", "::1/128"]


def test_if_02_ethernet(world: World) -> None:
    eth = world.a.netns.interface(2)
    assert (eth.name, eth.link_type, eth.mtu, eth.mac) == ("eth0", 1, 1500, world.end_a.mac)
    wanted = InterfaceFlags.UP | InterfaceFlags.BROADCAST | InterfaceFlags.RUNNING | InterfaceFlags.MULTICAST
    assert eth.flags & 0xFFFF == wanted
    assert eth.flags & InterfaceFlags.LOWER_UP
    assert str(eth.addresses[0]) == "10.0.2.2/24"
    world.end_a.plug(False)
    assert not eth.flags & InterfaceFlags.RUNNING, "no carrier, not running"


def test_if_03_all_interfaces_are_listed_and_polled(world: World) -> None:
    """`lo` is there from the start; whatever is added is served by the Network without being named anywhere."""
    assert [(each.index, each.name) for each in world.a.netns.interfaces.values()] == [(1, "lo"), (2, "eth0")]
    with world.udp(world.a, port=7) as receiver, world.udp(world.a) as near, world.udp(world.b) as far:
        near.sendto(b"over lo", ("127.0.0.1", 7))
        far.sendto(b"over eth0", (A_IP, 7))
        world.run()
        receiver.setblocking(False)
        assert {receiver.recv(100), receiver.recv(100)} == {b"over lo", b"over eth0"}


def test_if_04_poll_names_the_earliest_deadline_of_all(world: World) -> None:
    world.run(100 * SECOND)
    assert world.network.poll(world.clock()) is None, "nothing to do: no deadline, no work"
    # Asking for a neighbour that is not there: retransmission after one second.
    with world.udp(world.a) as sock:
        sock.sendto(b"x", ("10.0.2.99", 9))
        assert world.network.poll(world.clock()) in (world.clock(), world.clock() + SECOND)
        world.run()
        assert world.network.poll(world.clock()) == world.clock() + SECOND
        # An earlier one takes its place, a later one does not.
        fired: list[int] = []
        timer = world.network.scheduler.timer(lambda: fired.append(world.clock()))
        timer.arm_in(SECOND // 2)
        early = world.clock() + SECOND // 2
        assert world.network.poll(world.clock()) == early
        world.network.poll(early)
        assert fired == [early]
        assert world.network.poll(early) == early + SECOND // 2


def test_if_05_everything_in_then_everything_out(world: World) -> None:
    """A burst that comes in is answered by one that goes out, in one transmit at the end of the turn."""
    device, iface = recorded_stack(world)
    peer, ours = bytes((10, 9, 0, 2)), bytes((10, 9, 0, 1))
    device.bursts.clear()
    requests = [builders.ipv4(peer, ours, 1, builders.icmp_echo(1, number)) for number in range(40)]
    device.feed(*(frame_to(iface, packet) for packet in requests))
    world.network.poll(world.clock())
    assert device.bursts == [40]
    answers = [packet[20:] for packet in ip_frames(device)]
    assert answers == [builders.icmp_echo(1, number, reply=True) for number in range(40)]


def test_if_06_a_bound_port_is_released_with_its_last_user(world: World) -> None:
    socket = world.a.socket
    first = world.udp(world.a, "127.0.0.1", 4000)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with other, refused(errno.EADDRINUSE):
        other.bind(("127.0.0.1", 4000))
    first.close()
    world.udp(world.a, "127.0.0.1", 4000).close()
    # TCP: connections keep their listener's port.
    listener = socket.create_server(("127.0.0.1", 4001))
    client = socket.create_connection(("127.0.0.1", 4001))
    served, _ = listener.accept()
    listener.close()
    with socket.socket() as again, refused(errno.EADDRINUSE):
        again.bind(("127.0.0.1", 4001))
    client.close()
    served.close()
    world.run(200 * SECOND)  # FIN handshake and TIME_WAIT
    assert world.a.netns.ip.ports[6].claims(4001) == ()


def test_if_07_what_a_socket_left_behind_goes_on_without_it(world: World) -> None:
    """The handle is closed, the connection still delivers what was sent and its FIN."""
    server = world.b.socket.create_server((B_IP, 80))
    client = world.a.socket.create_connection((B_IP, 80))
    served, _ = server.accept()
    payload = bytes(range(256)) * 100
    client.sendall(payload)
    client.close()
    received = bytearray()
    while data := served.recv(65536):
        received += data
    assert bytes(received) == payload
    served.close()
    server.close()


def test_if_07_observers_learn_of_events(world: World) -> None:
    endpoint = world.b.netns.udp.bind(bytes(4), 9)
    seen: list[int] = []
    endpoint.on_event = lambda: seen.append(endpoint.pending)
    with world.udp(world.a) as sock:
        sock.sendto(b"x", (B_IP, 9))
        world.run()
    assert seen == [1]
    endpoint.close()


def test_if_08_arp_asks_once_answers_and_remembers(world: World) -> None:
    asked: list[bytes] = []

    class Tap:
        def received(self, burst: Any) -> None: ...

        def transmitted(self, burst: Any) -> None:
            asked.extend(b"".join(frame[0])[12:14] for frame in burst)

    world.run()
    world.eth_a.taps.append(Tap())
    with world.udp(world.a) as sock, world.udp(world.b, port=7) as receiver:
        for number in range(5):
            sock.sendto(bytes((number,)), (B_IP, 7))
            assert receiver.recv(10) == bytes((number,))
    assert asked == [b"\x08\x06"] + [b"\x08\x00"] * 5
    assert world.eth_a.neighbours.lookup(B_RAW).mac == world.end_b.mac
    assert world.eth_b.neighbours.lookup(A_RAW).mac == world.end_a.mac, "the one asked remembers who asked"


def test_if_09_ipv4_is_checked_and_fragments_are_put_together(world: World) -> None:
    device, iface = recorded_stack(world)
    peer, ours = bytes((10, 9, 0, 2)), bytes((10, 9, 0, 1))
    with world.udp(world.a, port=7) as sock:
        datagram = builders.udp(peer, ours, 5, 7, bytes(range(200)))
        good = builders.ipv4(peer, ours, 17, datagram)
        bad = builders.ipv4(peer, ours, 17, datagram, header_checksum=0x1234)
        foreign = builders.ipv4(peer, bytes((192, 0, 2, 1)), 17, datagram)
        parts = [
            builders.ipv4(peer, ours, 17, datagram[at : at + 80], flags_fragment=at >> 3 | (at < 160) << 13)
            for at in (160, 0, 80)
        ]
        device.feed(*(frame_to(iface, packet) for packet in (bad, foreign, good, *parts)))
        world.run()
        sock.setblocking(False)
        assert [sock.recv(1000) for _ in range(2)] == [bytes(range(200))] * 2
        with pytest.raises(BlockingIOError):
            sock.recv(1000)
    drops = world.a.netns.ip.drops
    assert (drops["bad-checksum"], drops["not-for-us"]) == (1, 1)


def test_if_10_echo_is_answered_and_errors_reach_sockets(world: World) -> None:
    got: list[tuple[bytes, int, bytes]] = []
    world.a.netns.ip.icmp4.listen_echo(1, lambda *reply: got.append(reply))
    world.a.netns.ip.icmp4.send_echo(B_RAW, 1, 7, b"data")
    world.run()
    assert got == [(B_RAW, 7, b"data")]
    with world.udp(world.a) as sock:
        sock.connect((B_IP, 9))
        sock.send(b"nobody there")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(10)
    with refused(errno.EHOSTUNREACH):
        world.a.socket.create_connection(("10.0.2.99", 9), timeout=30)


def test_if_11_a_segment_for_nobody_is_reset_but_never_a_reset(world: World) -> None:
    device, iface = recorded_stack(world)
    peer, ours = bytes((10, 9, 0, 2)), bytes((10, 9, 0, 1))

    def feed(flags: int, ack: int = 0) -> list[bytes]:
        segment = builders.tcp(peer, ours, 5, 81, flags=flags, seq=1000, ack=ack)
        device.feed(frame_to(iface, builders.ipv4(peer, ours, 6, segment)))
        world.run()
        return [packet[20:] for packet in ip_frames(device)]

    (reset,) = feed(builders.SYN)
    assert struct.unpack_from("!HHIIBB", reset) == (81, 5, 0, 1001, 0x50, builders.RST | builders.ACK)
    (reset,) = feed(builders.ACK, ack=77)
    assert struct.unpack_from("!HHIIBB", reset)[2:] == (77, 0, 0x50, builders.RST)
    assert feed(builders.RST) == []
    assert feed(builders.RST | builders.ACK) == []
    with pytest.raises(ConnectionRefusedError):
        world.b.socket.create_connection((A_IP, 81), timeout=5)


@pytest.mark.parametrize(("server", "client", "address"), [("a", "a", "::1"), ("b", "a", "fd00::15")])
def test_if_12_ipv6(world: World, server: str, client: str, address: str) -> None:
    """TCP and UDP over ::1, and over Ethernet with neighbour discovery."""
    ours, theirs = getattr(world, server), getattr(world, client)
    family = ours.socket.AF_INET6
    with world.udp(ours, address, 7, family) as receiver, world.udp(theirs, "::", 0, family) as sender:
        sender.sendto(b"datagram", (address, 7))
        assert receiver.recv(100) == b"datagram"
    listener = ours.socket.create_server((address, 80), family=family)
    stream = theirs.socket.create_connection((address, 80), timeout=5)
    served, peer = listener.accept()
    stream.sendall(bytes(300_000))
    stream.shutdown(theirs.socket.SHUT_WR)
    total = 0
    while data := served.recv(65536):
        total += len(data)
    assert (total, peer[0]) == (300_000, "::1" if address == "::1" else "fd00::2")
    for each in (listener, stream, served):
        each.close()


def test_if_13_broadcast(world: World) -> None:
    """The directed and the limited one; delivered to the neighbours and to ourselves, if allowed."""
    socket = world.a.socket
    assert world.eth_a.addresses[0].broadcast == bytes((10, 0, 2, 255))
    with world.udp(world.a, port=7) as own, world.udp(world.b, port=7) as other, world.udp(world.a) as sender:
        with pytest.raises(PermissionError):
            sender.sendto(b"x", ("10.0.2.255", 7))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"x", ("10.0.2.255", 7))
        assert (own.recv(10), other.recv(10)) == (b"x", b"x")
        with refused(errno.ENETUNREACH):  # no route says through which interface
            sender.sendto(b"y", ("255.255.255.255", 7))
        world.a.add_route("default", "10.0.2.1")
        sender.sendto(b"y", ("255.255.255.255", 7))
        assert (own.recv(10), other.recv(10)) == (b"y", b"y")


def test_if_15_routing_by_longest_prefix(world: World) -> None:
    """A second link; more specific routes win over the default one."""
    device, _ = recorded_stack(world)
    world.a.add_route("default", "10.9.0.2")
    world.a.add_route("198.51.100.0/24", B_IP)
    ip = world.a.netns.ip
    with world.udp(world.a) as sock:
        sock.sendto(b"out there", ("192.0.2.1", 9))
        world.run()
        (packet,) = ip_frames(device)
        assert (packet[12:16], packet[16:20]) == (bytes((10, 9, 0, 1)), bytes((192, 0, 2, 1)))
        sock.sendto(b"by way of b", ("198.51.100.7", 9))
        world.run()
        assert ip_frames(device) == []
        assert world.b.netns.ip.drops["not-for-us"] == 1, "b is a host and forwards nothing"
    assert ip.route(bytes((127, 3, 2, 1))).iface.name == "lo"
    assert ip.route(A_RAW).iface.name == "lo"
    world.end_a.plug(False)
    world.a.netns.interface("eth1").set_up(False)
    with world.udp(world.a) as sock, refused(errno.ENETUNREACH):
        sock.sendto(b"x", ("192.0.2.1", 9))
