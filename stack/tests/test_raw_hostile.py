"""Bad input at raw, ping and packet sockets: the same errno as the kernel's; hostile packets are never an exception."""

from __future__ import annotations

import random
import socket as kernel
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stack import Network
from stack.testing import builders
from stack.testing.clock import ManualClock
from stack.testing.kernel_host import NoKernelHostError
from stack.tests.ip_rig import ME, MY_MAC, PEER, PEER_MAC, ScriptedDevice
from stack.tests.packet_world import KernelWorld, OurWorld, World

INET: Final = kernel.AF_INET
INET6: Final = kernel.AF_INET6
RAW: Final = kernel.SOCK_RAW
DGRAM: Final = kernel.SOCK_DGRAM
PACKET: Final = kernel.AF_PACKET

#: family, type, protocol
SORTS: Final = [
    (INET, RAW, 1),
    (INET, RAW, 253),
    (INET6, RAW, 58),
    (INET6, RAW, 253),
    (INET, DGRAM, 1),
    (INET6, DGRAM, 58),
    (PACKET, RAW, 0),
    (PACKET, DGRAM, 0),
]
#: What these tests are about; the levels IP, IPv6 and SOCKET have tests of their own.
OPTIONS: Final = [(0, 3), (41, 7), (41, 36), (255, 1), (255, 7), (255, 36), (58, 1), (263, 1), (263, 2), (263, 8),
                  (263, 9), (263, 15), (263, 20), (263, 23), (263, 24), (1, 26), (1, 27), (1, 44)]  # fmt: skip
VALUES: Final = st.one_of(
    st.sampled_from([-2147483648, -2, -1, 0, 1, 2, 3, 4, 8, 10, 12, 255, 256, 65535, 2147483647]),
    st.binary(max_size=40),
)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[World, World]]:
    try:
        theirs = KernelWorld(ipv6=False)
    except NoKernelHostError as error:
        pytest.skip(str(error))
    ours = OurWorld(ipv6=False)
    for world in (theirs, ours):
        world.set_ping_groups(0, 0)
    yield theirs, ours
    theirs.close()
    ours.close()


def outcome(call: Any, *args: Any) -> Any:
    """What a call says: its result, or the name of its exception with the errno."""
    try:
        return call(*args)
    except OSError as error:
        return type(error).__name__, error.errno
    except (TypeError, ValueError, OverflowError) as error:
        return type(error).__name__


@given(st.sampled_from(SORTS), st.sampled_from(OPTIONS), VALUES, st.sampled_from([None, 1, 4, 8, 32]))
@settings(max_examples=200, deadline=None)
def test_options_of_any_value(
    both: tuple[World, World], sort: tuple[int, int, int], option: tuple[int, int], value: Any, room: int | None
) -> None:
    """Setting any option to anything, and reading it back, gives what it gives on the kernel."""
    heard = []
    for world in both:
        sock = world.socket(*sort)
        answers = [outcome(sock.setsockopt, *option, value)]
        answers.append(outcome(sock.getsockopt, *option, *([] if room is None else [room])))
        heard.append(answers)
        world.tidy()
    assert heard[0] == heard[1]


#: Not link-local, nor groups: which link is meant, and whether there is a route, is laid out differently on the nodes.
HOSTS: Final = st.sampled_from(["127.0.0.1", "0.0.0.0", "10.9.0.1", "10.9.0.255", "192.0.2.1", "::1", "::", "",
                                "::ffff:127.0.0.1", "2001:db8::1", b"127.0.0.1", None, 7])  # fmt: skip
PORTS: Final = st.sampled_from([0, 1, 58, 253, 254, 255, 256, 65535, 65536, -1, "0", None, 1.5])


@given(
    st.sampled_from([each for each in SORTS if each[0] != PACKET]),
    st.one_of(st.tuples(HOSTS, PORTS), st.tuples(HOSTS), st.tuples(HOSTS, PORTS, st.sampled_from([0, 1 << 20, "x"]))),
    st.sampled_from(["bind", "connect", "sendto"]),
    st.sampled_from([b"", b"\x08\0\0\0\0\0\0\x05", b"\x80\0\0\0\0\0\0\x05data", bytes(20)]),
)
@example((INET6, DGRAM, 58), ("::", 0), "sendto", b"\x80\0\0\0\0\0\0\x05data")
@settings(max_examples=200, deadline=None)
def test_addresses_of_any_shape(
    both: tuple[World, World], sort: tuple[int, int, int], address: Any, what: str, data: bytes
) -> None:
    """bind, connect and sendto with anything as an address: the kernel's exception and errno, or its success."""
    if sort[0] == INET and isinstance(address[0], str) and "ffff" in address[0]:
        return  # the C library takes a mapped address for an IPv4 socket
    heard = []
    for world in both:
        sock = world.socket(*sort)
        if what == "sendto":
            heard.append(outcome(sock.sendto, data, address))
        else:
            heard.append(outcome(getattr(sock, what), address))
        world.tidy()
    assert heard[0] == heard[1], (sort, address, what)


@given(st.binary(max_size=120), st.sampled_from([1, 2, 6, 17, 58, 253]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_hostile_packets_at_raw_sockets(data: bytes, proto: int, v6: bool) -> None:
    """Any payload of any protocol: delivered to raw sockets, memory bounded, and never an exception."""
    with Network(clock=ManualClock(), rng=random.Random(5)) as network:
        stack = network.stack("gw")
        device = ScriptedDevice()
        eth = stack.add_interface(device, "eth0", ["10.0.2.2/24", "fd00::2/64"])
        sockets = [stack.socket.socket(INET6 if v6 else INET, RAW, each) for each in {proto, 1, 58}]
        ping = stack.socket.socket(INET6 if v6 else INET, DGRAM, 58 if v6 else 1)
        ping.setblocking(False)
        with suppress(OSError):
            ping.sendto(struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 0, 1), ("fd00::15" if v6 else "10.0.2.15", 0))
        for sock in sockets:
            sock.setblocking(False)
            sock.setsockopt(kernel.SOL_SOCKET, kernel.SO_RCVBUF, 2304)
        peer6, me6 = kernel.inet_pton(INET6, "fd00::15"), kernel.inet_pton(INET6, "fd00::2")
        packet = builders.ipv6(peer6, me6, proto, data) if v6 else builders.ipv4(PEER, ME, proto, data)
        frame = builders.ethernet(MY_MAC, PEER_MAC, 0x86DD if v6 else 0x0800, packet)
        for _ in range(40):
            device.inbox.append((memoryview(frame), 0, 0, 0, 0, 0))
        with network.lock:
            eth.service(64)
            network.finish()
        for sock in sockets:
            assert sock._sock.endpoint.queued_bytes <= 4608
            sock.close()
        ping.close()


@given(st.binary(min_size=20, max_size=80), st.booleans())
@settings(max_examples=150, deadline=None)
def test_hostile_headers_written_by_users(data: bytes, v6: bool) -> None:
    """Whatever a user writes as a header is sent or refused; a neighbour that never answers does not trip over it."""
    with Network(clock=ManualClock(), rng=random.Random(5)) as network:
        stack = network.stack("gw")
        device = ScriptedDevice()
        stack.add_interface(device, "eth0", ["10.0.2.2/24", "fd00::2/64"])
        sock = stack.socket.socket(INET6 if v6 else INET, RAW, 255)
        sock.setblocking(False)
        for lead in (b"", b"\x45\0", b"\x60\0\0\0"):
            for target in ("fd00::15" if v6 else "10.0.2.15", "::1" if v6 else "127.0.0.1"):
                with suppress(OSError):
                    sock.sendto(lead + data, (target, 0))
        clock = network.scheduler
        for _ in range(50):  # until the neighbour is given up
            due = network.poll(clock.now)
            if due is None:
                break
            network.poll(due)
        sock.close()
