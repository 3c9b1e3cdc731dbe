"""Our UDP against Linux's own, over a TAP: superframes, and what control messages put into packets (UDP-13)."""

from __future__ import annotations

import socket
import struct

import pytest

from stack.tests.linux_world import LINUX, OURS, LinuxWorld

UDP_SEGMENT = 103
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
OFFLOAD = pytest.mark.parametrize("offload", [True, False], ids=["offload", "none"])


@VERSIONS
@OFFLOAD
def test_udp_13_superframes_between_linux_and_us(version: int, offload: bool) -> None:
    """What UDP_SEGMENT cuts on one side arrives as those datagrams on the other, checksums and all."""
    payload = bytes(number * 7 & 0xFF for number in range(20_500))
    with LinuxWorld(offload=offload) as world:
        ours, theirs = (world.socket(side, version, socket.SOCK_DGRAM) for side in ("ours", "linux"))
        ours.bind((OURS[version], 4000))
        theirs.bind((LINUX[version], 4000))
        for sender, receiver, there in ((ours, theirs, LINUX), (theirs, ours, OURS)):
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sender.sendto(payload, (there[version], 4000))
            assert [receiver.recv(2000) for _ in range(21)] == [
                payload[at : at + 1000] for at in range(0, 20_500, 1000)
            ]


@VERSIONS
def test_opt_ip_what_we_send_is_what_linux_is_told(version: int) -> None:
    """Hop limit and traffic class of options and control messages, seen by the other side's, both ways."""
    level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
    hops, tos = (2, 1) if version == 4 else (52, 67)
    asked = (12, 13) if version == 4 else (51, 66)
    with LinuxWorld() as world:
        ours, theirs = (world.socket(side, version, socket.SOCK_DGRAM) for side in ("ours", "linux"))
        ours.bind((OURS[version], 4000))
        theirs.bind((LINUX[version], 4000))
        for sender, receiver, there in ((ours, theirs, LINUX), (theirs, ours, OURS)):
            for option in asked:
                receiver.setsockopt(level, option, 1)
            ancillary = [(level, hops, struct.pack("@i", 9)), (level, tos, struct.pack("@i", 0x2A))]
            sender.sendmsg([b"x"], ancillary, 0, (there[version], 4000))
            told = {kind: data for _, kind, data in receiver.recvmsg(9, 200)[1]}
            assert told[hops] == struct.pack("@i", 9)
            assert told[tos][0] == 0x2A
