"""A whole node for hostile frames: any bytes -> a program of what its link, its peers and its users do, played out.

`FrameWorld` is a Stack in virtual time with one card, an address of each version, a TCP connection with an open
window, a listener, sockets of every kind that has a receive queue, and a netlink socket. Its instructions are small,
so that a fuzzer's mutation of the bytes is a small change of the program: a frame of any kind with valid checksums and
wrong everything else, fragments, segments near the connection's window, offload facts, time passing, a netlink request,
a BPF program, something sent by a user. The promises checked: nothing but OSError reaches a user, nothing at all comes
out of a poll, every queue stays within its limit, every limit of the node holds.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

from stack import Network
from stack.bpf import FilterPacket, check, run
from stack.errors import NetError
from stack.link.device import NEEDS_CSUM
from stack.scheduler import NS_PER_MS
from stack.testing import builders
from stack.testing.clock import ManualClock
from stack.testing.links import RecorderDevice

MAC: Final = bytes.fromhex("026777000001")
PEER_MAC: Final = bytes.fromhex("020000000002")
ME4: Final = bytes((10, 0, 2, 2))
PEER4: Final = bytes((10, 0, 2, 15))
ME6: Final = bytes.fromhex("fd00" + "00" * 13 + "02")
PEER6: Final = bytes.fromhex("fd00" + "00" * 13 + "15")
LINK_LOCAL_PEER: Final = bytes.fromhex("fe80" + "00" * 13 + "15")
ALL_NODES: Final = bytes.fromhex("ff02" + "00" * 13 + "01")
SOURCES4: Final = (
    PEER4,
    ME4,
    bytes((127, 0, 0, 1)),
    bytes(4),
    b"\xff" * 4,
    bytes((224, 0, 0, 1)),
    bytes((192, 0, 2, 9)),
)
TARGETS4: Final = (ME4, b"\xff" * 4, bytes((10, 0, 2, 255)), bytes((224, 0, 0, 1)), bytes((192, 0, 2, 9)))
SOURCES6: Final = (PEER6, LINK_LOCAL_PEER, bytes(16), ME6, ALL_NODES, bytes(15) + b"\1")
TARGETS6: Final = (ME6, ALL_NODES, bytes.fromhex("ff0200000000000000000001ff000002"), PEER6)
LINK_TARGETS: Final = (MAC, b"\xff" * 6, b"\x01\x00\x5e\0\0\1", b"\x33\x33\0\0\0\1", PEER_MAC)
PROTOCOLS: Final = (1, 2, 6, 17, 58, 0, 43, 44, 60, 59, 50, 253)
ETHERTYPES: Final = (0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x0005, 0x88B5, 0)
SERVER_PORT: Final = 7
CLIENT_PORT: Final = 40000
#: Bytes a receive queue may hold beyond its limit: the packet that crossed it, and what the objects around it take.
SLACK: Final = 70_000
_NETLINK: Final = struct.Struct("@IHHII")


class Bytes:
    """The input, read from the front; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece.ljust(count, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]

    def word(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def rest(self) -> bytes:
        """As many bytes as the next one says."""
        return self.take(self.byte())

    def one_of(self, choices: tuple[Any, ...]) -> Any:
        return choices[self.byte() % len(choices)]


class FrameWorld:
    """One node, fresh. A context manager; `play` runs one input."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=random.Random(1))  # noqa: S311 - two runs must be equal
        self.stack = self.network.stack("node")
        self.device = RecorderDevice(mac=MAC)
        self.iface = self.stack.add_interface(self.device, "eth0", ["10.0.2.2/24", "fd00::2/64"])
        netns = self.stack.netns
        self.ip, self.tcp = netns.ip, netns.tcp
        for address in (PEER4, PEER6):
            self.iface.neighbours.set_permanent(address, PEER_MAC)
        self.sockets: list[Any] = []
        s = self.stack.socket
        self.udp = self._socket(s.AF_INET6, s.SOCK_DGRAM)
        self.udp.bind(("::", SERVER_PORT))
        self.raw = self._socket(s.AF_INET, s.SOCK_RAW, 255)
        for family, kind, proto in (
            (s.AF_INET, s.SOCK_RAW, 1),
            (s.AF_INET6, s.SOCK_RAW, 58),
            (s.AF_INET, s.SOCK_RAW, 253),
            (s.AF_INET, s.SOCK_DGRAM, 1),
        ):
            self._socket(family, kind, proto)
        self.packet = self._socket(s.AF_PACKET, s.SOCK_RAW, s.htons(3))
        self.packet.bind(("eth0", 0))
        self.netlink = self._socket(s.AF_NETLINK, s.SOCK_RAW, 0)
        self.listener = self._socket(s.AF_INET, s.SOCK_STREAM)
        self.listener.bind(("0.0.0.0", SERVER_PORT))  # noqa: S104 - an address of this node's own
        self.listener.listen(4)
        self.client = self._connect()
        self.instructions: tuple[Callable[[Bytes], None], ...] = (
            self._frame,
            self._ipv4,
            self._ipv6,
            self._icmp4,
            self._icmp6,
            self._udp,
            self._segment,
            self._segment,
            self._syn,
            self._fragment4,
            self._fragment6,
            self._arp,
            self._group_message,
            self._superframe,
            self._pass_time,
            self._netlink_request,
            self._program,
            self._user,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()
        self.network.close()

    def _socket(self, family: int, kind: int, proto: int = 0) -> Any:
        sock = self.stack.socket.socket(family, kind, proto)
        sock.setblocking(False)
        self.sockets.append(sock)
        return sock

    def _connect(self) -> Any:
        """The listener's first connection, whose peer is the fuzzer."""
        self.peer_seq = 1000
        options = bytes.fromhex("020405b40402080a000000640000000001030307")
        self._tcp(flags=builders.SYN, seq=self.peer_seq, ack=0, options=options)
        answer = next(each for each in reversed(self.device.take()) if each[12:14] == b"\x08\0" and each[23] == 6)
        theirs = int.from_bytes(answer[38:42], "big")
        stamp = answer.index(b"\x08\x0a", 54) + 2
        options = b"\1\1\x08\x0a" + struct.pack("!I", 200) + answer[stamp : stamp + 4]
        self._tcp(flags=builders.ACK, seq=self.peer_seq + 1, ack=theirs + 1, options=options)
        served, _ = self.listener.accept()
        served.setblocking(False)
        self.sockets.append(served)
        self.connection = next(iter(self.tcp.connections.values()))
        served.send(bytes(3000))
        return served

    # -- playing ------------------------------------------------------------------------------------------------------

    def play(self, data: bytes) -> None:
        """Run one program and check the promises."""
        source = Bytes(data)
        while source.left():
            source.one_of(self.instructions)(source)
            self.device.sent.clear()
            self.check()
        for _ in range(20):  # what is due after it
            due = self.network.poll(self.clock())
            if due is None:
                break
            self.clock.advance_to(max(due, self.clock()))
        self.check()

    def check(self) -> None:
        """Every queue and table is within its limit."""
        for name, (used, most) in self.ip.limits().items():
            assert used <= most, f"{name}: {used} of {most}"
        for sock in self.sockets:
            endpoint = getattr(sock._sock, "endpoint", None)  # noqa: SLF001 - a look inside
            charge = getattr(endpoint, "queued_bytes", getattr(endpoint, "charge", 0))
            limit = getattr(endpoint, "receive_limit", 0)
            assert charge <= limit + SLACK, f"{sock}: {charge} of {limit}"
        for connection in self.tcp.connections.values():
            receiver = connection.receiver
            assert receiver.queue.length <= receiver.rcvbuf + SLACK
        assert len(self.tcp.connections) <= 64

    def feed(self, frame: bytes, facts: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)) -> None:
        self.device.feed_frames((memoryview(frame), *facts))
        self.network.poll(self.clock())

    def feed4(self, src: bytes, proto: int, payload: bytes, dst: bytes = ME4, **more: Any) -> None:
        self.feed(builders.ethernet(MAC, PEER_MAC, 0x0800, builders.ipv4(src, dst, proto, payload, **more)))

    def feed6(self, src: bytes, proto: int, payload: bytes, dst: bytes = ME6, **more: Any) -> None:
        link = MAC if dst[0] != 0xFF else b"\x33\x33" + dst[12:]
        self.feed(builders.ethernet(link, PEER_MAC, 0x86DD, builders.ipv6(src, dst, proto, payload, **more)))

    # -- what the link brings -----------------------------------------------------------------------------------------

    def _frame(self, source: Bytes) -> None:
        self.feed(source.one_of(LINK_TARGETS) + PEER_MAC + source.one_of(ETHERTYPES).to_bytes(2, "big") + source.rest())

    def _ipv4(self, source: Bytes) -> None:
        src, dst, proto = source.one_of(SOURCES4), source.one_of(TARGETS4), source.one_of(PROTOCOLS)
        options = source.take(source.byte() % 11 * 4)
        lie = source.byte()
        self.feed4(
            src,
            proto,
            source.rest(),
            dst,
            ttl=source.byte(),
            tos=source.byte(),
            options=options,
            total_length=source.word() if lie & 1 else None,
        )

    def _ipv6(self, source: Bytes) -> None:
        src, dst, proto = source.one_of(SOURCES6), source.one_of(TARGETS6), source.one_of(PROTOCOLS)
        lie = source.byte()
        self.feed6(
            src,
            proto,
            source.rest(),
            dst,
            hop_limit=255 if lie & 2 else source.byte(),
            payload_length=source.word() if lie & 1 else None,
        )

    def _icmp4(self, source: Bytes) -> None:
        message = bytearray(bytes((source.byte(), source.byte(), 0, 0)) + source.rest())
        message[2:4] = builders.inet_checksum(bytes(message)).to_bytes(2, "big")
        self.feed4(source.one_of(SOURCES4), 1, bytes(message), source.one_of(TARGETS4))

    def _icmp6(self, source: Bytes) -> None:
        src, dst = source.one_of(SOURCES6), source.one_of(TARGETS6)
        self._send_icmp6(src, dst, bytes((source.byte(), source.byte(), 0, 0)) + source.rest(), source.byte() & 1)

    def _send_icmp6(self, src: bytes, dst: bytes, message: bytes, near: int) -> None:
        pseudo = builders.pseudo_header(src, dst, 58, len(message))
        value = builders.inet_checksum(pseudo + message)
        whole = message[:2] + value.to_bytes(2, "big") + message[4:]
        self.feed6(src, 58, whole, dst, hop_limit=255 if near else 64)

    def _udp(self, source: Bytes) -> None:
        port = source.one_of((SERVER_PORT, 53, 67, 68, 546, 547, 0, 1))
        if source.byte() & 1:
            self.feed4(PEER4, 17, builders.udp(PEER4, ME4, source.word(), port, source.rest()))
        else:
            self.feed6(PEER6, 17, builders.udp(PEER6, ME6, source.word(), port, source.rest()))

    def _tcp(self, *, flags: int, seq: int, ack: int, window: int = 65535, options: bytes = b"", payload: bytes = b"",
             urgent: int = 0, port: int = CLIENT_PORT) -> None:  # fmt: skip
        options = options.ljust(len(options) + 3 & ~3, b"\0")[:40]
        segment = builders.tcp(
            PEER4, ME4, port, SERVER_PORT, seq=seq & 0xFFFFFFFF, ack=ack & 0xFFFFFFFF, flags=flags, window=window,
            options=options, payload=payload, urgent=urgent,
        )  # fmt: skip
        self.feed4(PEER4, 6, segment)

    def _segment(self, source: Bytes) -> None:
        """Around the connection's window: the right time stamps if asked, offsets of either sign."""
        receiver, sender = self.connection.receiver, self.connection.sender
        mode = source.byte()
        seq, ack = receiver.rcv_nxt, sender.snd_una
        if mode & 1:
            seq += source.word() - 0x8000
        if mode & 2:
            ack += source.word() - 0x8000
        options = source.take(source.byte() % 41) if mode & 4 else b""
        if mode & 8:
            options = b"\1\1\x08\x0a" + struct.pack("!II", 200 + source.byte(), source.word()) + options
        self._tcp(
            flags=source.byte() if mode & 16 else builders.ACK,
            seq=seq,
            ack=ack,
            window=source.word() if mode & 32 else 65535,
            options=options,
            urgent=source.word() if mode & 64 else 0,
            payload=source.rest() if mode & 128 else b"",
        )

    def _syn(self, source: Bytes) -> None:
        self._tcp(
            flags=builders.SYN | source.byte() & 0xC8,
            seq=source.word() << 16,
            ack=0,
            options=source.take(source.byte() % 41),
            payload=source.rest(),
            port=source.byte() + 1,
        )

    def _fragment4(self, source: Bytes) -> None:
        where = source.word()
        flags = (where & 0x1FF) | (0x2000 if where & 0x8000 else 0)
        proto = source.one_of((17, 1, 6, 253))
        self.feed4(PEER4, proto, source.rest(), identification=source.byte() & 3, flags_fragment=flags)

    def _fragment6(self, source: Bytes) -> None:
        where = source.word()
        header = struct.pack("!BBHI", source.one_of((17, 58, 6, 60, 44)), 0, where & 0xFFF9, source.byte() & 3)
        self.feed6(PEER6, 44, header + source.rest())

    def _arp(self, source: Bytes) -> None:
        body = builders.arp(
            source.byte() & 3, source.take(6), source.one_of(SOURCES4), source.take(6), source.one_of(SOURCES4)
        )
        at, value = source.byte(), source.byte()
        changed = bytearray(body)
        changed[at % len(changed)] ^= value
        self.feed(builders.ethernet(source.one_of(LINK_TARGETS), PEER_MAC, 0x0806, bytes(changed)))

    def _group_message(self, source: Bytes) -> None:
        """IGMP and MLD, as a router would ask."""
        if source.byte() & 1:
            message = bytearray(
                bytes((source.one_of((0x11, 0x12, 0x16, 0x17, 0x22)), source.byte(), 0, 0)) + source.rest()
            )
            message[2:4] = builders.inet_checksum(bytes(message)).to_bytes(2, "big")
            self.feed4(PEER4, 2, bytes(message), bytes((224, 0, 0, 1)), ttl=1, options=b"\x94\4\0\0")
        else:
            kind = source.one_of((130, 131, 132, 143))
            self._send_icmp6(LINK_LOCAL_PEER, ALL_NODES, bytes((kind, 0, 0, 0)) + source.rest(), 1)

    def _superframe(self, source: Bytes) -> None:
        """Segments for the connection with offload facts that may lie."""
        receiver, sender = self.connection.receiver, self.connection.sender
        segment = builders.tcp(
            PEER4, ME4, CLIENT_PORT, SERVER_PORT, seq=receiver.rcv_nxt & 0xFFFFFFFF, ack=sender.snd_una & 0xFFFFFFFF,
            payload=bytes(source.word() % 5000),
        )  # fmt: skip
        frame = builders.ethernet(MAC, PEER_MAC, 0x0800, builders.ipv4(PEER4, ME4, 6, segment))
        flags, kind = source.byte() & 3, source.one_of((0, 1, 4, 5, 0x81, 9))
        self.feed(frame, (flags or NEEDS_CSUM, kind, source.word(), source.byte(), source.byte()))

    # -- time and users -----------------------------------------------------------------------------------------------

    def _pass_time(self, source: Bytes) -> None:
        self.clock.advance(source.word() * NS_PER_MS)
        self.network.poll(self.clock())

    def _netlink_request(self, source: Bytes) -> None:
        kind, flags, body = source.byte(), source.word(), source.rest()
        length = _NETLINK.size + len(body)
        with suppress(OSError):
            self.netlink.send(_NETLINK.pack(length, 16 + kind % 100, flags | 1, 1, 0) + body)
        for _ in range(64):
            try:
                self.netlink.recv(1 << 16)
            except OSError:
                break

    def _program(self, source: Bytes) -> None:
        data = source.rest()
        with suppress(NetError):
            program = check(data[: len(data) & ~7])
            run(program, FilterPacket(source.rest(), frame=data, network=14, ifindex=2, random=lambda: 7))
            self.packet._sock.endpoint.filter = program  # noqa: SLF001 - as if it had been attached

    def _user(self, source: Bytes) -> None:
        what, data = source.byte() % 8, source.rest()
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: self.client.send(data),
            lambda: self.client.recv(65536),
            lambda: self.raw.sendto(data, ("10.0.2.15", 0)),
            lambda: self.raw.sendto(data, ("10.0.2.77", 0)),
            lambda: self.packet.send(data),
            lambda: self.udp.sendto(data, ("fd00::15", source.word())),
            self._drain,
            lambda: self.sockets.append(self.listener.accept()[0]),
        )
        with suppress(OSError):
            attempts[what]()

    def _drain(self) -> None:
        for sock in self.sockets:
            for _ in range(1000):
                try:
                    if not sock.recv(65536):
                        break
                except OSError:
                    break
