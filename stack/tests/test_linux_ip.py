"""Our IP, ICMP, ARP, NDP and UDP against Linux's own."""

from __future__ import annotations

import socket

import pytest

from stack.services.router_advertisement import RouterAdvertiser, RouterConfig
from stack.tests.linux_world import LINUX, OURS, LinuxWorld

IP_RECVERR = 11  # include/uapi/linux/in.h; CPython names it since 3.14
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
OFFLOAD = pytest.mark.parametrize("offload", [True, False], ids=["offload", "none"])


@VERSIONS
@pytest.mark.parametrize("size", [0, 56, 1472, 8000, 65000])
def test_linux_pings_us(version: int, size: int) -> None:
    """Whole and in fragments, which we reassemble and send."""
    with LinuxWorld() as world:
        printed = world.linux.run("busybox", "ping", "-c", "1", "-W", "5", "-s", str(size), OURS[version])
        assert "1 packets received" in printed


@VERSIONS
@OFFLOAD
@pytest.mark.parametrize("size", [0, 1, 1400, 1473, 20_000, 65_000])
def test_datagrams_both_ways(version: int, offload: bool, size: int) -> None:
    with LinuxWorld(offload=offload) as world:
        ours, theirs = (world.socket(side, version, socket.SOCK_DGRAM) for side in ("ours", "linux"))
        ours.bind((OURS[version], 4000))
        theirs.bind((LINUX[version], 4000))
        payload = bytes(number * 7 & 0xFF for number in range(size))
        ours.sendto(payload, (LINUX[version], 4000))
        data, source = theirs.recvfrom(1 << 17)
        assert (data, source[:2]) == (payload, (OURS[version], 4000))
        theirs.sendto(payload, (OURS[version], 4000))
        data, source = ours.recvfrom(1 << 17)
        assert (data, source[:2]) == (payload, (LINUX[version], 4000))


@VERSIONS
def test_a_closed_port_is_reported_to_the_sender(version: int) -> None:
    """ICMP port unreachable, both ways, reaches the connected socket as ECONNREFUSED."""
    with LinuxWorld() as world:
        for side, there in (("ours", LINUX), ("linux", OURS)):
            sock = world.socket(side, version, socket.SOCK_DGRAM)
            sock.connect((there[version], 9))
            sock.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)


@VERSIONS
def test_linux_believes_our_neighbour_answers(version: int) -> None:
    with LinuxWorld() as world:
        world.linux.run("busybox", "ping", "-c", "1", "-W", "5", OURS[version])
        entry = world.linux.run("ip", "neighbour", "show", OURS[version])
        assert world.linux.tap.mac.hex(":") in entry
        assert "REACHABLE" in entry or "DELAY" in entry


def test_linux_configures_itself_by_our_advertisements() -> None:
    """SLAAC, the default route, the link's MTU: as `accept_ra` of Linux understands what we send."""
    with LinuxWorld() as world:
        name = world.linux.interface
        world.linux.sysctl(f"net.ipv6.conf.{name}.accept_ra", "2")
        config = RouterConfig()
        with world.network.lock:
            advertiser = RouterAdvertiser(world.gw.netns, "eth0", config)
            world.network.finish()
        route = ""
        for _ in range(200):
            route = world.linux.run("ip", "-6", "route", "show", "default")
            if route:
                break
            world.linux.run("sleep", "0.05")
        assert "proto ra" in route, route
        assert "fe80::" in route
        addresses = world.linux.run("ip", "-6", "address", "show", "dev", name)
        assert "fd09::" in addresses
        assert "dynamic" in addresses
        with world.network.lock:
            advertiser.close()


def test_the_last_hop_is_told_to_linux() -> None:
    """A TTL of 1 ends at our router, and the sender hears of it: ICMP time exceeded, EHOSTUNREACH at its socket."""
    with LinuxWorld() as world:
        with world.network.lock:
            world.gw.netns.set_forwarding(True)
        world.linux.run("ip", "route", "add", "default", "via", OURS[4])
        world.gw.add_route("10.50.0.0/16", LINUX[4])
        sock = world.socket("linux", 4, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.connect(("10.50.0.9", 9))
        sock.send(b"how far?")
        with pytest.raises(OSError, match="No route to host"):
            sock.recv(100)
