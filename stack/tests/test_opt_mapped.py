"""IPv4 by way of IPv6 sockets: which level's options count, on the kernel's sockets and on ours (section 2.2)."""

from __future__ import annotations

import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.tests.kernel_twin import LOOPBACK, World
from stack.tests.test_opt_datagram import datagram, told

IP, IPV6 = kernel.IPPROTO_IP, kernel.IPPROTO_IPV6

MAPPED = f"::ffff:{LOOPBACK}"
LEVELS = [
    {},
    {(IPV6, kernel.IPV6_UNICAST_HOPS): 33, (IPV6, kernel.IPV6_TCLASS): 0x20},
    {(IP, kernel.IP_TTL): 44, (IP, kernel.IP_TOS): 0x40},
    {
        (IP, kernel.IP_TTL): 44,
        (IP, kernel.IP_TOS): 0x40,
        (IPV6, kernel.IPV6_UNICAST_HOPS): 33,
        (IPV6, kernel.IPV6_TCLASS): 0x20,
    },
]


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


def syn_of(served: Any) -> tuple[int, int]:
    """TOS and TTL of the SYN, as TCP_SAVED_SYN keeps it."""
    header = served.getsockopt(kernel.IPPROTO_TCP, 28, 200)
    return header[1], header[8]


@pytest.mark.parametrize("told_", LEVELS, ids=["nothing", "ipv6", "ipv4", "both"])
def test_opt_ip_ttl_and_ip_tos_of_mapped_tcp(world: World, told_: dict[tuple[int, int], int]) -> None:
    """IP_TTL and IP_TOS, not IPV6_UNICAST_HOPS and IPV6_TCLASS, are those of an IPv6 socket connected to an IPv4 host;
    each level shows what it was told.
    """
    with world.listener() as listener, world.socket.socket(kernel.AF_INET6) as client:
        listener.setsockopt(kernel.IPPROTO_TCP, 27, 1)  # TCP_SAVE_SYN
        for (level, name), value in told_.items():
            client.setsockopt(level, name, value)
        client.connect((MAPPED, listener.getsockname()[1]))
        served, _ = listener.accept()
        with served:
            assert syn_of(served) == (told_.get((IP, kernel.IP_TOS), 0), told_.get((IP, kernel.IP_TTL), 64))
            for (level, name), value in told_.items():
                assert client.getsockopt(level, name) == value


@pytest.mark.parametrize("told_", LEVELS, ids=["nothing", "ipv6", "ipv4", "both"])
def test_opt_ip_ttl_and_ip_tos_of_mapped_udp(world: World, told_: dict[tuple[int, int], int]) -> None:
    """IP_TTL and IP_TOS of an IPv6 socket's datagrams to an IPv4 host, too."""
    with datagram(world) as receiver, world.socket.socket(kernel.AF_INET6, kernel.SOCK_DGRAM) as sender:
        receiver.bind((LOOPBACK, 0))
        receiver.settimeout(10)
        receiver.setsockopt(IP, 12, 1)
        receiver.setsockopt(IP, 13, 1)
        for (level, name), value in told_.items():
            sender.setsockopt(level, name, value)
        sender.sendto(b"x", (MAPPED, receiver.getsockname()[1]))
        ttl, tos = told_.get((IP, kernel.IP_TTL), 64), told_.get((IP, kernel.IP_TOS), 0)
        assert told(receiver) == [(IP, 2, struct.pack("i", ttl)), (IP, 1, bytes((tos,)))]


@pytest.mark.parametrize("minimum", [64, 65])
def test_opt_ip_minttl_of_mapped_tcp(world: World, minimum: int) -> None:
    """IP_MINTTL, not IPV6_MINHOPCOUNT, decides what an IPv6 socket hears from an IPv4 peer, listening and connected."""
    with world.socket.socket(kernel.AF_INET6) as listener, world.socket.socket() as client:
        listener.bind(("::", 0))
        listener.setsockopt(IPV6, 73, 255)
        listener.setsockopt(IP, 21, minimum)
        listener.listen()
        client.settimeout(0.2 if minimum > 64 else 10)  # what is dropped is asked again, after a second
        if minimum > 64:
            with pytest.raises(TimeoutError):
                client.connect((LOOPBACK, listener.getsockname()[1]))
            return
        client.connect((LOOPBACK, listener.getsockname()[1]))
        served, _ = listener.accept()
        with served:
            client.sendall(b"heard")
            assert served.recv(9) == b"heard"


def test_opt_ip_ttl_and_ip_tos_of_a_listener_for_both() -> None:
    """What an IPv6 listener's SYN|ACKs, and the connections it accepts, carry towards IPv4 and IPv6 peers."""
    with Network() as network:
        module = network.stack("gw").socket
        seen = []

        class Tap:
            def received(self, burst: Any) -> None:
                for frame, *_ in burst:
                    packet = bytes(frame)[14:]
                    if packet[0] >> 4 == 4:
                        seen.append((int.from_bytes(packet[20:22], "big"), packet[1], packet[8]))
                    else:
                        tclass = int.from_bytes(packet[:2], "big") >> 4 & 0xFF
                        seen.append((int.from_bytes(packet[40:42], "big"), tclass, packet[7]))

            def transmitted(self, burst: Any) -> None:
                pass

        network.stacks["gw"].netns.ip.loopback.taps.append(Tap())
        with module.socket(kernel.AF_INET6) as listener:
            listener.bind(("::", 0))
            for (level, name), value in LEVELS[3].items():
                listener.setsockopt(level, name, value)
            listener.listen()
            port = listener.getsockname()[1]
            for family, address, expected in (
                (kernel.AF_INET, LOOPBACK, {(0x40, 44)}),
                (kernel.AF_INET6, "::1", {(0x20, 33)}),
            ):
                seen.clear()
                with module.socket(family) as client:
                    client.connect((address, port))
                    served, _ = listener.accept()
                    with served:
                        served.sendall(b"hello")
                        assert client.recv(9) == b"hello"
                assert {(tos, ttl) for source, tos, ttl in seen if source == port} == expected
