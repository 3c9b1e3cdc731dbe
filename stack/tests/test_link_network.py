"""Links under real stacks, in virtual time: what the layers above rely on, end to end."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from stack import Network, Stack
from stack.link import Impairment, LinkDevice, Offload, Switch, cable
from stack.services.dhcp_service import DhcpService
from stack.testing import builders as b
from stack.testing.clock import ManualClock
from stack.testing.links import RecorderDevice
from stack.wire import dhcp
from stack.wire.dhcp import DhcpMessage, MessageType, Option

DATA = random.Random(3).randbytes(300_000)


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(clock=ManualClock(), rng=random.Random(1))
    yield made
    made.close()


def plug(network: Network, name: str, device: LinkDevice, address: str) -> Stack:
    stack = network.stack(name)
    stack.add_interface(device, addresses=[address])
    return stack


def transfer(server: Stack, client: Stack, address: str) -> None:
    """DATA both ways over one connection, opened by `client`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        server.socket.create_server((address, 80), family=family) as listener,
        client.socket.create_connection((address, 80)) as near,
    ):
        far, _ = listener.accept()
        with far:
            for sender, receiver in ((near, far), (far, near)):
                received = bytearray()
                sent = 0
                sender.setblocking(False)
                receiver.settimeout(60)
                while len(received) < len(DATA):
                    with contextlib.suppress(BlockingIOError):
                        sent += sender.send(DATA[sent : sent + 65536]) if sent < len(DATA) else 0
                    received += receiver.recv(65536)
                assert received == DATA


Make = Callable[[Network], tuple[LinkDevice, LinkDevice]]


def through_switch(network: Network) -> tuple[LinkDevice, LinkDevice]:
    switch = Switch(network.scheduler)
    return switch.port(), switch.port()


def through_device_ports(offloads: Offload) -> Make:
    """Two cables plugged into a switch: frames pass its device ports, which adapt them to what each cable takes."""

    def make(network: Network) -> tuple[LinkDevice, LinkDevice]:
        switch = Switch(network.scheduler)
        ends = []
        for number, offered in enumerate((offloads, Offload.NONE)):
            near, far = cable(network.scheduler, offloads=offered, mac_a=bytes((2, 0, 0, 0, 0, number)))
            network.attach(switch.attach(far))
            ends.append(near)
        return ends[0], ends[1]

    return make


def through_cable(offloads: Offload, impairment: Impairment | None = None) -> Make:
    return lambda network: cable(network.scheduler, offloads=offloads, a_to_b=impairment, b_to_a=impairment)


EVERYTHING = Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize(
    "make",
    [
        through_cable(EVERYTHING),
        through_cable(Offload.CSUM),
        through_cable(Offload.NONE),
        through_cable(Offload.NONE, Impairment(delay_ns=1_000_000, rate_bps=100_000_000)),
        through_cable(EVERYTHING, Impairment(corrupt=0.01, delay_ns=100_000)),
        through_switch,
        through_device_ports(EVERYTHING),
        through_device_ports(Offload.CSUM | Offload.TSO6),
    ],
    ids=["cable", "cable csum", "cable bare", "slow", "corrupting", "switch", "switch mixed", "switch tso6"],
)
def test_a_stream_arrives_intact_over_every_link(network: Network, make: Make, address: str) -> None:
    """Also where superframes are cut, checksums finished in software, or bits flipped on the way."""
    near, far = make(network)
    prefix = "64" if ":" in address else "24"
    server = plug(network, "server", near, f"{address}/{prefix}")
    client = plug(network, "client", far, f"{address[:-1]}2/{prefix}")
    transfer(server, client, address)


def test_a_lan_of_stacks_and_a_guest_shares_one_switch_and_one_dhcp_server(network: Network) -> None:
    switch = Switch(network.scheduler)
    gateway = plug(network, "gw", switch.port("gw"), "10.0.2.2/24")
    other = plug(network, "other", switch.port("other"), "10.0.2.3/24")
    guest = RecorderDevice()
    network.attach(switch.attach(guest, "guest"))
    with network.lock:
        service = DhcpService(gateway.netns, "eth0")
    transfer(gateway, other, "10.0.2.2")
    assert {name for _, name, _ in switch.addresses()} == {"gw", "other"}
    guest.take()
    discover = DhcpMessage(dhcp.BOOTREQUEST, 1, b"\x02guest", {Option.MESSAGE_TYPE: bytes((MessageType.DISCOVER,))})
    packet = b.ipv4(bytes(4), b"\xff" * 4, 17, b.udp(bytes(4), b"\xff" * 4, 68, 67, discover.emit()))
    guest.feed(b.ethernet(b.BROADCAST, b"\x02guest", 0x0800, packet))
    now = network.scheduler.now
    while network.poll(now) == now:
        pass
    (answer,) = guest.take()
    offer = dhcp.parse(answer[42:])
    assert (answer[:6], offer.kind, offer.yiaddr) == (b"\x02guest", MessageType.OFFER, b"\x0a\0\2\x0f")
    with network.lock:
        service.close()
