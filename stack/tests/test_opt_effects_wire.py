"""What options of IPPROTO_IP and IPPROTO_IPV6 do: raw sockets, routers, and on the wire (section 2.2)."""

from __future__ import annotations

import errno
import socket as kernel
import struct

import pytest

from stack import Network
from stack.iface.address import IFA_TEMPORARY, InterfaceAddress
from stack.link import cable
from stack.socket.poll import ERR, OUT
from stack.tests.kernel_twin import LOOPBACK, World, code
from stack.tests.test_opt_datagram import datagram, heard, tapped, two_ways
from stack.tests.test_opt_effects import raw, tcp, world
from stack.wire.checksum import checksum

__all__ = ["world"]

IP, IPV6, SOL = kernel.IPPROTO_IP, kernel.IPPROTO_IPV6, kernel.SOL_SOCKET


# -- raw and ping sockets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "ping"])
def test_msg_dontwait_on_a_raw_or_ping_socket_shut_for_reading(world: World, kind: str) -> None:
    """A call that waits gets the end, one that may not wait EAGAIN: by MSG_DONTWAIT, or without blocking."""
    if kind == "raw":
        sock = raw(world, kernel.AF_INET, 17)
    else:
        try:
            sock = world.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM, kernel.IPPROTO_ICMP)
        except PermissionError:
            pytest.skip("net.ipv4.ping_group_range is without us")
    with sock:
        sock.connect((LOOPBACK, 0))
        sock.shutdown(kernel.SHUT_RD)
        sock.settimeout(None)
        assert sock.recv(9) == b""
        assert code(sock.recv, 9, kernel.MSG_DONTWAIT) == errno.EAGAIN
        sock.setblocking(False)
        assert code(sock.recv, 9) == errno.EAGAIN
        assert code(sock.recv_into, bytearray(9)) == errno.EAGAIN
        assert code(sock.recvmsg, 9) == errno.EAGAIN


def test_opt_ip_router_alert_is_on_once(world: World) -> None:
    """IP_ROUTER_ALERT: raw sockets only, and not IPPROTO_RAW, else EINVAL; on again EADDRINUSE, off again ENOBUFS."""
    with raw(world, kernel.AF_INET, 46) as sock:
        assert sock.getsockopt(IP, 5) == 0
        assert code(sock.setsockopt, IP, 5, 0) == errno.ENOBUFS
        sock.setsockopt(IP, 5, 1)
        assert sock.getsockopt(IP, 5) == 1
        assert code(sock.setsockopt, IP, 5, 1) == errno.EADDRINUSE
        sock.setsockopt(IP, 5, 0)
        assert sock.getsockopt(IP, 5) == 0
    with raw(world, kernel.AF_INET) as sock, datagram(world) as other, world.socket.socket() as stream:
        for each in (sock, other, stream):
            assert code(each.setsockopt, IP, 5, 1) == errno.EINVAL
            assert each.getsockopt(IP, 5) == 0


ALERT = b"\x94\x04\0\0"


def test_opt_ip_router_alert_takes_packets_off_their_way() -> None:
    """IP_ROUTER_ALERT: a router's raw socket gets packets with the option, of its protocol, which then do not pass;
    fragments put together; those without the option, or with another value, pass.
    """
    with Network() as network:
        router, left, right = (network.stack(name) for name in ("router", "left", "right"))
        for number_, stack in enumerate((left, right)):
            near, far = cable(network.scheduler)
            router.add_interface(near, name=f"eth{number_}", addresses=[f"10.0.{number_}.1/24"])
            stack.add_interface(far, name="eth0", addresses=[f"10.0.{number_}.2/24"])
            stack.add_route("0.0.0.0/0", f"10.0.{number_}.1")
        router.netns.ip.forwarding.set(True)
        with (
            router.socket.socket(kernel.AF_INET, kernel.SOCK_RAW, 17) as daemon,
            right.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as target,
            left.socket.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sender,
        ):
            target.bind(("10.0.1.2", 5000))
            for each in (target, daemon):
                each.setblocking(False)

            def send(data: bytes, options: bytes) -> tuple[bytes, int]:
                """What the target hears, and how long the packet is that the daemon gets, 0 for none."""
                sender.setsockopt(IP, 4, options)
                sender.sendto(data, ("10.0.1.2", 5000))
                sock_heard = heard([target])[0]
                try:
                    return sock_heard, len(daemon.recv(9000))
                except BlockingIOError:
                    return sock_heard, 0

            assert send(b"off", ALERT) == (b"off", 0)
            daemon.setsockopt(IP, 5, 1)
            assert send(b"plain", b"") == (b"plain", 0)
            assert send(b"taken", ALERT) == (b"", 24 + 8 + 5)
            assert send(b"value 1", ALERT[:3] + b"\1") == (b"value 1", 0)
            assert send(bytes(3000), ALERT) == (b"", 24 + 8 + 3000)
            daemon.setsockopt(SOL, kernel.SO_BINDTODEVICE, b"eth1")
            assert send(b"other side", ALERT) == (b"other side", 0)
            daemon.setsockopt(SOL, kernel.SO_BINDTODEVICE, b"eth0")
            assert send(b"taken", ALERT) == (b"", 24 + 8 + 5)
            daemon.close()
            assert sender.sendto(b"closed", ("10.0.1.2", 5000)) == 6
            assert heard([target]) == [b"closed"]


@pytest.mark.parametrize("wanted", [0, 1])
def test_opt_ip_recverr_of_tcp_tells_at_once(world: World, wanted: int) -> None:
    """IP_RECVERR of a TCP socket: that its host is said to be unreachable is an error at once, of the next call only,
    and the connection goes on; without it only SO_ERROR tells, to who asks.
    """
    listener, client, served = tcp(world, kernel.AF_INET)
    with (
        listener,
        client,
        served,
        raw(world, kernel.AF_INET, 6) as sniffer,
        raw(world, kernel.AF_INET, 1) as icmp,
    ):
        client.setsockopt(IP, 11, wanted)
        client.send(b"y")
        assert served.recv(9) == b"y"
        source = client.getsockname()[1].to_bytes(2, "big")
        while (packet := sniffer.recv(999))[20:22] != source or not packet.endswith(b"y"):
            pass
        following = int.from_bytes(packet[24:28], "big") + 1 & 0xFFFFFFFF  # of what it would send next
        quoted = packet[:24] + following.to_bytes(4, "big")
        message = bytearray(bytes((3, 1, 0, 0, 0, 0, 0, 0)) + quoted)
        message[2:4] = checksum(message).to_bytes(2, "big")
        icmp.sendto(bytes(message), (LOOPBACK, 0))
        assert world.settle(client, ERR if wanted else OUT) == (OUT | ERR if wanted else OUT)
        if wanted:
            assert code(client.recv, 9) == errno.EHOSTUNREACH
        else:
            errors: list[int] = []

            def told() -> bool:
                errors.append(client.getsockopt(SOL, kernel.SO_ERROR))
                return errors[-1] != 0

            world.until(told)
            assert errors[-1] == errno.EHOSTUNREACH
            assert client.getsockopt(SOL, kernel.SO_ERROR) == 0
        assert world.bits(client) == OUT
        client.send(b"on it goes")
        assert served.recv(99) == b"on it goes"


# -- over a wire ------------------------------------------------------------------------------------------------------


def test_opt_ipv6_unicast_if_chooses_the_link() -> None:
    """IPV6_UNICAST_IF: packets to unicast addresses leave through that interface; no such one is EADDRNOTAVAIL."""
    with Network() as network:
        gw, others = two_ways(network)
        for number_ in range(len(others)):
            gw.add_route("2001:db8::/32", "fe80::2", dev=f"eth{number_}", metric=10 + number_)
        frames = tapped(gw, network)
        index = gw.socket.if_nametoindex("eth1")
        with gw.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as sock:
            sock.setsockopt(IPV6, 76, struct.pack("!I", index))
            assert sock.getsockopt(IPV6, 76, 4) == struct.pack("!I", index)
            sock.sendto(b"one", ("2001:db8::9", 5000))
            assert not [frame for frame in frames if b"one" in frame]
            sock.setsockopt(IPV6, 76, bytes(4))
            sock.sendto(b"zero", ("2001:db8::9", 5000))
            assert code(sock.setsockopt, IPV6, 76, struct.pack("!I", 99)) == errno.EADDRNOTAVAIL
        assert [frame for frame in frames if b"zero" in frame]


def test_opt_ipv6_mtu_discover_on_the_wire() -> None:
    """IPV6_MTU_DISCOVER: DONT and WANT cut what is too long here, DO and PROBE refuse it."""
    with Network() as network:
        gw, others = two_ways(network)
        with (
            gw.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as sock,
            others[0].socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as target,
        ):
            target.bind(("::", 5000))
            target.settimeout(10)
            sock.connect(("fe80::2%eth0", 5000))
            sock.send(b"who has it?")
            assert target.recv(99) == b"who has it?"
            frames = tapped(gw, network)
            for mode, cut in ((0, True), (1, True), (2, False), (3, False), (5, True)):
                sock.setsockopt(IPV6, 23, mode)
                frames.clear()
                if not cut:
                    assert code(sock.send, bytes(2000)) == errno.EMSGSIZE
                    continue
                sock.send(bytes(2000))
                assert target.recv(9000) == bytes(2000)
                fragments = [frame for frame in frames if frame[12:14] == b"\x86\xdd" and frame[20] == 44]
                assert len(fragments) == 2


def test_opt_ipv6_addr_preferences_choose_the_source() -> None:
    """IPV6_ADDR_PREFERENCES (RFC 5014): temporary addresses as source, or public ones, for who asks, of datagrams and
    of TCP connections; who is bound to an address keeps it.
    """
    with Network() as network:
        gw, others = two_ways(network)
        for stack, names in ((gw, ("2001:db8::1", "2001:db8::77")), (others[0], ("2001:db8::2",))):
            iface = next(each for each in stack.netns.ip.interfaces.values() if each.name == "eth0")
            with network.lock:
                for name in names:
                    address = InterfaceAddress.parse(f"{name}/64")
                    address.flags |= IFA_TEMPORARY if name.endswith("77") else 0
                    stack.netns.give_address(iface, address)
        with others[0].socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as target:
            target.bind(("::", 5000))
            target.settimeout(10)
            for preference, source in ((0x100, "2001:db8::1"), (0x1, "2001:db8::77"), (0x2, "2001:db8::1")):
                with gw.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as sock:
                    sock.setsockopt(IPV6, 72, preference)
                    sock.sendto(b"x", ("2001:db8::2", 5000))
                    assert target.recvfrom(9)[1][0] == source
        with others[0].socket.create_server(("::", 5000), family=kernel.AF_INET6) as listener:
            for preference, bound, source in (
                (0x1, "::", "2001:db8::77"),
                (0x2, "::", "2001:db8::1"),
                (0x1, "2001:db8::1", "2001:db8::1"),
            ):
                with gw.socket.socket(kernel.AF_INET6) as sock:
                    sock.setsockopt(IPV6, 72, preference)
                    sock.bind((bound, 0))
                    sock.connect(("2001:db8::2", 5000))
                    served, address = listener.accept()
                    served.close()
                    assert address[0] == sock.getsockname()[0] == source
