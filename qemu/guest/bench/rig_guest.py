"""Plays the guest for the driver rig: one TCP connection at the other end of the card, as cheap as it can be made.

    python -m qemu.guest.bench.rig_guest SOCKET send|recv|rr PORT SECONDS FRAME

It is no TCP to be used: it knows one peer, loses nothing, and answers what it must. What there is much of is done by
the driver in C (`vhost_user.driver.Bulk` and `Exchange`): `send` fills superframes whose headers were made once and
whose numbers are written in place; `recv` copies out what comes and acknowledges it; `rr` sends a segment of FRAME
bytes, looks for the answer without sleeping, and again. So what is measured is the other end. All print "go" when they
are connected, and their figures at the end.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Final

from qemu.guest.bench.rig import GATEWAY, GUEST, GUEST_MAC
from stack.link.device import GSO_TCPV4, NEEDS_CSUM
from stack.testing import builders
from stack.wire import arp, tcp
from vhost_user.driver import Bulk, BulkEnd, BulkNumbers, BulkSegment, NetDriver, NetFrame
from vhost_user.features import NetFeature

_US: Final = bytes(int(part) for part in GUEST.split("."))
_PEER: Final = bytes(int(part) for part in GATEWAY.split("."))
_BROADCAST: Final = b"\xff" * 6
_PORT: Final = 40000
_MSS: Final = 1460
_SCALE: Final = 10
_WINDOW: Final = 4096  # times 2 ** _SCALE: 4 MiB
_HEADERS: Final = 14 + 20 + 20
_TCP_AT: Final = 14 + 20
_CHECK_AT: Final = _TCP_AT + 16
_IP_TCP: Final = 40
_WAIT_SECONDS: Final = 5.0
_NAP_SECONDS: Final = 0.1
_NET_HEADER: Final = struct.Struct("<BBHHHHH")
_U32: Final = 0xFFFFFFFF
_U16: Final = struct.Struct("!H")
_NUMBERS: Final = struct.Struct("!II")
_IPV4: Final = builders.ETHERTYPE_IPV4.to_bytes(2, "big")


class Host:
    """A node at the other end of the card: knows its peer's hardware address, and answers when asked for its own."""

    address = _US
    peer = _PEER

    def __init__(self, driver: NetDriver) -> None:
        self.driver = driver
        self.mac = _BROADCAST
        self._resolve()

    def hear(self, timeout: float) -> int:
        """Take in what came; returns payload bytes seen."""
        seen = 0
        for frame in self.driver.recv(64, timeout=timeout):
            seen += self.hear_frame(memoryview(frame.data)) or 0
        return seen

    def hear_frame(self, frame: memoryview) -> int | None:
        """ARP is answered. Returns the bytes of payload of a TCP segment, None if it is none."""
        ethertype = int.from_bytes(frame[12:14], "big")
        if ethertype == builders.ETHERTYPE_ARP:
            self.hear_arp(frame[14:])
        elif ethertype == builders.ETHERTYPE_IPV4 and frame[23] == tcp.PROTO:
            return self._hear_tcp(frame)
        return None

    def _hear_tcp(self, frame: memoryview) -> int:  # noqa: ARG002 - a node without TCP
        return 0

    def hear_arp(self, payload: memoryview) -> None:
        """Who asks for our hardware address is told, and his is noted."""
        message = arp.parse(payload)
        self.mac = message.sender_mac
        if message.operation == arp.REQUEST and message.target_ip == _US:
            answer = builders.arp(2, GUEST_MAC, _US, message.sender_mac, message.sender_ip)
            self.driver.send([builders.ethernet(self.mac, GUEST_MAC, builders.ETHERTYPE_ARP, answer)])

    def _resolve(self) -> None:
        question = builders.arp(1, GUEST_MAC, _US, bytes(6), _PEER)
        self.driver.send([builders.ethernet(_BROADCAST, GUEST_MAC, builders.ETHERTYPE_ARP, question)])
        deadline = time.monotonic() + _WAIT_SECONDS
        while self.mac == _BROADCAST:
            self.hear(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError("nobody answered ARP")


class Peer(Host):
    """The connection, seen from the guest. Takes in ARP, which is answered, and acknowledgements, which are noted."""

    def __init__(self, driver: NetDriver, port: int) -> None:
        super().__init__(driver)
        self.port = port
        self.snd_una = self.snd_nxt = 1000
        self.rcv_nxt = 0
        self.window = 0  #: the peer's, in bytes
        self.scale = 0
        self._connect()

    def headers(self, flags: int, *, length: int = 0, options: bytes = b"") -> bytes:
        """Ethernet, IPv4 and TCP headers of a segment with `length` bytes to follow; the checksum is the device's."""
        size = 20 + len(options)
        segment = builders.tcp(
            _US,
            _PEER,
            _PORT,
            self.port,
            seq=self.snd_nxt & _U32,
            ack=self.rcv_nxt & _U32,
            flags=flags,
            window=_WINDOW,
            options=options,
            checksum=builders.partial_checksum(_US, _PEER, tcp.PROTO, size + length),
        )
        packet = builders.ipv4(_US, _PEER, tcp.PROTO, segment, total_length=20 + size + length)
        return builders.ethernet(self.mac, GUEST_MAC, builders.ETHERTYPE_IPV4, packet)

    def send(self, flags: int, options: bytes = b"") -> None:
        headers = self.headers(flags, options=options)
        frame = NetFrame(headers, NEEDS_CSUM, csum_start=_TCP_AT, csum_offset=16)
        if not self.driver.has(NetFeature.CSUM):
            frame = NetFrame(headers[:_CHECK_AT] + _checksum(headers[_TCP_AT:]) + headers[_CHECK_AT + 2 :])
        if self.driver.send([frame], timeout=_WAIT_SECONDS) != 1:
            raise TimeoutError("the device took no frame")

    def hear_answer(self, frame: memoryview) -> bool:
        """Whether `frame`, headers and all, is the next segment with data, which acknowledges all we sent; nothing else
        is looked at but ARP, which is answered."""
        if frame[12:14] != _IPV4:
            self.hear_arp(frame[14:])
            return False
        seq, ack = _NUMBERS.unpack_from(frame, _TCP_AT + 4)
        length = _U16.unpack_from(frame, 16)[0] - 20 - (frame[_TCP_AT + 12] >> 4 << 2)
        if not length or seq != self.rcv_nxt & _U32 or ack != self.snd_nxt & _U32:
            return False
        self.rcv_nxt += length
        return True

    def finish(self, deadline: float) -> None:
        """Close our direction and wait until the stack has acknowledged everything."""
        self.send(tcp.FIN | tcp.ACK)
        self.snd_nxt += 1
        while self.snd_una < self.snd_nxt:
            self.hear(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError("the stack did not acknowledge everything")

    def leave(self) -> None:
        """Reset the connection, and stay until the device has heard of it."""
        self.send(tcp.RST | tcp.ACK)
        ring = self.driver.tx()
        ring.wait(_WAIT_SECONDS, after=ring.in_flight)

    def bulk(self, segment: Segment | None = None) -> Bulk:
        """What moves the connection's bulk, from where it stands."""
        bulk = self.driver.bulk(
            Segment(self).repeated(), segment.repeated() if segment is not None else None, scale=self.scale
        )
        bulk.numbers = BulkNumbers(self.snd_una, self.snd_nxt, self.rcv_nxt, self.window)
        return bulk

    def move(self, bulk: Bulk, step: Callable[[], BulkEnd], seconds: float) -> float:
        """Take `step` after step of `bulk`; returns how long that took. What is not bulk is heard in between."""
        began = now = time.monotonic()
        while now - began < seconds:
            end = step()
            self.snd_una, self.snd_nxt, self.rcv_nxt, self.window = bulk.numbers
            if end is BulkEnd.IDLE:
                bulk.wait(_NAP_SECONDS)
            elif end is BulkEnd.OTHER:
                self.hear_other(bulk.frame[_NET_HEADER.size :])
                bulk.numbers = BulkNumbers(self.snd_una, self.snd_nxt, self.rcv_nxt, self.window)
            now = time.monotonic()
        return now - began

    def hear_other(self, frame: memoryview) -> None:
        """A frame that is no bulk: the peer is told where we stand, whatever his segment said."""
        if self.hear_frame(frame) is not None:
            self.send(tcp.ACK)

    def _hear_tcp(self, frame: memoryview) -> int:
        total = int.from_bytes(frame[16:18], "big")
        header, data = tcp.parse(frame[_TCP_AT : 14 + total])
        if header.flags & tcp.RST:
            raise ConnectionResetError("the stack reset the connection")
        if header.flags & tcp.SYN:
            self.rcv_nxt = header.seq + 1
            self.scale = header.options.window_scale or 0
            self.window = header.window
        else:
            self.window = header.window << self.scale
            if header.seq == self.rcv_nxt & _U32:
                self.rcv_nxt += len(data) + (header.flags & tcp.FIN)
        # Our numbers go on counting where those on the wire wrap, after 4 GiB. An old one takes nothing back.
        self.snd_una += max((header.ack - self.snd_una + (1 << 31) & _U32) - (1 << 31), 0)
        return len(data)

    def _connect(self) -> None:
        options = tcp.HeaderOptions(mss=_MSS, window_scale=_SCALE).emit()
        self.send(tcp.SYN, options + bytes(-len(options) % 4))
        self.snd_nxt += 1
        deadline = time.monotonic() + _WAIT_SECONDS
        while self.snd_una != self.snd_nxt:
            self.hear(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError("the stack did not accept the connection")
        self.send(tcp.ACK)


def _checksum(data: bytes) -> bytes:
    return builders.inet_checksum(data).to_bytes(2, "big")


class Segment:
    """An acknowledgement with data, made once, whose numbers are written in place before it is sent again.

    So is its checksum where the device does not make it: what never changes was summed beforehand (RFC 1624).
    """

    __slots__ = ("_rest", "data", "header")

    def __init__(self, peer: Peer, data: bytes = b"", gso: tuple[int, int, int] = (0, 0, 0)) -> None:
        headers = bytearray(peer.headers(tcp.ACK, length=len(data)))
        offloaded = peer.driver.has(NetFeature.CSUM)
        facts = (NEEDS_CSUM, *gso, _TCP_AT, 16, 0) if offloaded else (0,) * 7
        self.data = data
        self._rest = -1
        if not offloaded:
            _NUMBERS.pack_into(headers, _TCP_AT + 4, 0, 0)
            self._rest = ~builders.inet_checksum(bytes(headers[_TCP_AT:]) + data) & 0xFFFF
        self.header = bytearray(_NET_HEADER.pack(*facts) + headers)

    def number(self, seq: int, ack: int) -> None:
        seq &= _U32
        ack &= _U32
        _NUMBERS.pack_into(self.header, _NET_HEADER.size + _TCP_AT + 4, seq, ack)
        if self._rest >= 0:
            total = self._rest + (seq >> 16) + (seq & 0xFFFF) + (ack >> 16) + (ack & 0xFFFF)
            total = (total & 0xFFFF) + (total >> 16)
            total = (total & 0xFFFF) + (total >> 16)
            _U16.pack_into(self.header, _NET_HEADER.size + _CHECK_AT, total ^ 0xFFFF)

    def repeated(self) -> BulkSegment:
        """For C, which writes the numbers then."""
        return BulkSegment(self.header, self.data, self._rest)


def flood(peer: Peer, seconds: float, frame: int) -> None:
    """Send superframes (or, of at most one MSS, packets) as fast as window and ring allow."""
    payload = min(frame, 65535 - _IP_TCP)
    data = (bytes(range(256)) * (payload // 256 + 1))[:payload]
    gso = (GSO_TCPV4, _HEADERS, _MSS) if payload > _MSS else (0, 0, 0)
    bulk = peer.bulk(Segment(peer, data, gso))
    peer.move(bulk, bulk.flood, seconds)
    peer.finish(time.monotonic() + _WAIT_SECONDS)


def drain(peer: Peer, seconds: float) -> float:
    """Copy out what comes and acknowledge it; Gb/s."""
    first = peer.rcv_nxt
    bulk = peer.bulk()
    took = peer.move(bulk, bulk.drain, seconds)
    peer.leave()
    return (peer.rcv_nxt - first) * 8e-9 / took


def round_trips(peer: Peer, seconds: float, size: int) -> list[float]:
    """One segment there and one back, again and again: microseconds of each, from before the segment is copied to guest
    memory until its answer was copied out. What was answered is checked between two trips, and not counted."""
    segment = Segment(peer, bytes(size))
    exchange = peer.driver.exchange(segment.header, segment.data, patience=_WAIT_SECONDS)
    times = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        segment.number(peer.snd_nxt, peer.rcv_nxt)
        peer.snd_nxt += size
        wanted = peer.rcv_nxt + size
        answer = exchange.ask()
        while not peer.hear_answer(answer[_NET_HEADER.size :]) or peer.rcv_nxt < wanted:
            answer = exchange.look()
        times.append(exchange.nanoseconds * 1e-3)
    peer.leave()
    return times


def main(socket: str, mode: str, port: str, seconds: str, frame: str) -> None:
    with NetDriver(socket) as driver:
        peer = Peer(driver, int(port))
        print("go", flush=True)  # noqa: T201 - read by rig.py, as is what follows
        if mode == "send":
            flood(peer, float(seconds), int(frame))
            print("done", flush=True)  # noqa: T201
        elif mode == "recv":
            print(f"{drain(peer, float(seconds)):.3f}", flush=True)  # noqa: T201
        else:
            times = round_trips(peer, float(seconds), int(frame))
            print(median(times), quantiles(times, n=100)[98], len(times), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
