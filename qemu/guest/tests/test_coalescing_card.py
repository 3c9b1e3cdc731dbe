"""Small frames from a driver through card and stack into a socket: joined on the way, and nobody can tell."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stack import Network, Stack
from stack.link.device import NEEDS_CSUM
from stack.testing import builders
from stack.testing.clock import ManualClock
from vhost_user.driver import NetDriver, NetFrame
from vhost_user.net import NetDevice
from vhost_user.server import Server

GUEST_MAC = bytes.fromhex("525400123456")
GUEST, HOST = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))


@contextmanager
def card() -> Iterator[tuple[Stack, NetDevice, NetDriver]]:
    ours, theirs = socket.socketpair()
    with Server() as server:
        network = Network(clock=ManualClock(), rng=random.Random(5))
        stack, device = network.stack("gw"), NetDevice()
        stack.add_interface(device, addresses=["10.0.2.2/24"])
        try:
            server.adopt(device, ours)
            with NetDriver(theirs) as guest:
                settle(stack)
                yield stack, device, guest
        finally:
            network.close()
            device.close()


def settle(stack: Stack) -> None:
    network: Any = stack.network
    while network.poll(network.clock()) == network.clock():
        pass


def datagrams(device: NetDevice, payloads: list[bytes], *, partial: bool) -> list[NetFrame | bytes]:
    frames: list[NetFrame | bytes] = []
    for number, payload in enumerate(payloads):
        checksum = builders.partial_checksum(GUEST, HOST, 17, 8 + len(payload)) if partial else None
        datagram = builders.udp(GUEST, HOST, 4000, 9000, payload, checksum=checksum)
        packet = builders.ipv4(GUEST, HOST, 17, datagram, identification=number)
        frame = builders.ethernet(device.mac, GUEST_MAC, 0x0800, packet)
        frames.append(NetFrame(frame, NEEDS_CSUM, csum_start=34, csum_offset=6) if partial else frame)
    return frames


def test_udp_many_small_datagrams_arrive_one_by_one() -> None:
    """recvmmsg, recv, recvfrom and recv_into take from the same run; checksums finished or not, all are counted."""
    payloads = [random.Random(number).randbytes(22) for number in range(200)]
    for partial in (False, True):
        with card() as (stack, device, guest), stack.socket.socket(2, stack.socket.SOCK_DGRAM) as sock:
            sock.bind(("10.0.2.2", 9000))
            sock.setblocking(False)
            assert guest.send(datagrams(device, payloads, partial=partial)) == 200
            settle(stack)
            address = ("10.0.2.15", 4000)
            assert sock.recvmmsg(100, 22) == [(payload, [], 0, address) for payload in payloads[:100]]
            assert sock.recvmmsg(2, 20) == [
                (payload[:20], [], stack.socket.MSG_TRUNC, address) for payload in payloads[100:102]
            ]
            assert sock.recv(100) == payloads[102]
            assert sock.recvfrom(100) == (payloads[103], address)
            room = bytearray(100)
            assert (sock.recv_into(room), bytes(room[:22])) == (22, payloads[104])
            assert sock.recv(100, stack.socket.MSG_PEEK) == payloads[105]
            assert [data for data, *_ in sock.recvmmsg(1000, 100, 0, stack.socket.MSG_DONTWAIT)] == payloads[105:]
            counted: Any = stack.stats["interface"]
            assert (counted["eth0"]["rx_packets"], counted["eth0"]["rx_bytes"]) == (200, 200 * 64)


def test_udp_receive_buffer_holds_what_it_always_held() -> None:
    """SO_RCVBUF counts datagrams, and what is lost is told by SO_RXQ_OVFL's counter, joined or not."""
    payloads = [bytes((number,)) * 22 for number in range(200)]
    with card() as (stack, device, guest), stack.socket.socket(2, stack.socket.SOCK_DGRAM) as sock:
        sock.bind(("10.0.2.2", 9000))
        sock.setblocking(False)
        sock.setsockopt(stack.socket.SOL_SOCKET, stack.socket.SO_RCVBUF, 10_000)
        room = sock.getsockopt(stack.socket.SOL_SOCKET, stack.socket.SO_RCVBUF)
        guest.send(datagrams(device, payloads, partial=True))
        settle(stack)
        fits = room // (22 + 384)
        assert [data for data, *_ in sock.recvmmsg(1000, 100, 0, stack.socket.MSG_DONTWAIT)] == payloads[:fits]
        udp: Any = stack.stats["udp"]
        assert udp["drops"]["receive-buffer-full"] == 200 - fits


def test_packet_sockets_see_the_frames_that_came() -> None:
    """While one is open nothing is joined."""
    payloads = [bytes((number,)) * 22 for number in range(50)]
    with card() as (stack, device, guest), stack.socket.socket(17, stack.socket.SOCK_RAW, 0x0008) as tap:  # ETH_P_IP
        tap.setblocking(False)
        frames = datagrams(device, payloads, partial=False)
        guest.send(frames)
        settle(stack)
        assert [data for data, *_ in tap.recvmmsg(1000, 100, 0, stack.socket.MSG_DONTWAIT)] == frames
