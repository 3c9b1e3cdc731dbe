"""Plays the guest for the driver rig: one TCP connection at the other end of the card, as cheap as it can be made.

    python -m qemu.guest.bench.rig_guest SOCKET send|recv PORT SECONDS FRAME

It is no TCP to be used: it knows one peer, loses nothing, and answers what it must. `send` fills superframes whose
headers were made once and whose sequence numbers are written in place; `recv` acknowledges what it has copied out of
the ring, without looking at it. So what is measured is the other end.
"""

from __future__ import annotations

import struct
import sys
import time
from typing import Final

from qemu.guest.bench.rig import GATEWAY, GUEST
from stack.link.device import GSO_TCPV4, NEEDS_CSUM
from stack.testing import builders
from stack.wire import arp, tcp
from vhost_user.driver import Burst, NetDriver, NetFrame

_US: Final = bytes(int(part) for part in GUEST.split("."))
_PEER: Final = bytes(int(part) for part in GATEWAY.split("."))
_MAC: Final = bytes.fromhex("525400776601")
_BROADCAST: Final = b"\xff" * 6
_PORT: Final = 40000
_MSS: Final = 1460
_SCALE: Final = 10
_WINDOW: Final = 4096  # times 2 ** _SCALE: 4 MiB
_HEADERS: Final = 14 + 20 + 20
_TCP_AT: Final = 14 + 20
_IP_TCP: Final = 40
#: Superframes in one call: more fill the ring and put both sides in lockstep.
_BURST: Final = 8
_WAIT_SECONDS: Final = 5.0
_NET_HEADER: Final = struct.Struct("<BBHHHHH")
_U32: Final = 0xFFFFFFFF
_SEQ: Final = struct.Struct("!I")


class Peer:
    """The connection, seen from the guest."""

    def __init__(self, driver: NetDriver, port: int) -> None:
        self.driver = driver
        self.port = port
        self.mac = _BROADCAST
        self.snd_una = self.snd_nxt = 1000
        self.rcv_nxt = 0
        self.window = 0  #: the peer's, in bytes
        self.scale = 0
        self._resolve()
        self._connect()

    def headers(self, flags: int, *, length: int = 0, options: bytes = b"") -> bytes:
        """Ethernet, IPv4 and TCP headers of a segment with `length` bytes to follow; the checksum is the device's."""
        size = 20 + len(options)
        segment = builders.tcp(
            _US,
            _PEER,
            _PORT,
            self.port,
            seq=self.snd_nxt & 0xFFFFFFFF,
            ack=self.rcv_nxt & 0xFFFFFFFF,
            flags=flags,
            window=_WINDOW,
            options=options,
            checksum=builders.partial_checksum(_US, _PEER, tcp.PROTO, size + length),
        )
        packet = builders.ipv4(_US, _PEER, tcp.PROTO, segment, total_length=20 + size + length)
        return builders.ethernet(self.mac, _MAC, builders.ETHERTYPE_IPV4, packet)

    def send(self, flags: int, options: bytes = b"") -> None:
        frame = NetFrame(self.headers(flags, options=options), NEEDS_CSUM, csum_start=_TCP_AT, csum_offset=16)
        if self.driver.send([frame], timeout=_WAIT_SECONDS) != 1:
            raise TimeoutError("the device took no frame")

    def hear(self, timeout: float) -> int:
        """Take in what came: ARP is answered, acknowledgements are noted. Returns payload bytes seen."""
        seen = 0
        for frame in self.driver.recv(64, timeout=timeout):
            data = memoryview(frame.data)
            ethertype = int.from_bytes(data[12:14], "big")
            if ethertype == builders.ETHERTYPE_ARP:
                self._hear_arp(data[14:])
            elif ethertype == builders.ETHERTYPE_IPV4 and data[23] == tcp.PROTO:
                seen += self._hear_tcp(data)
        return seen

    def finish(self, deadline: float) -> None:
        """Close our direction and wait until the stack has acknowledged everything."""
        self.send(tcp.FIN | tcp.ACK)
        self.snd_nxt += 1
        while self.snd_una < self.snd_nxt:
            self.hear(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError("the stack did not acknowledge everything")

    def _hear_arp(self, payload: memoryview) -> None:
        message = arp.parse(payload)
        self.mac = message.sender_mac
        if message.operation == arp.REQUEST and message.target_ip == _US:
            answer = builders.arp(2, _MAC, _US, message.sender_mac, message.sender_ip)
            self.driver.send([builders.ethernet(self.mac, _MAC, builders.ETHERTYPE_ARP, answer)])

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
            self.rcv_nxt += len(data)
        # Our numbers go on counting where those on the wire wrap, after 4 GiB.
        self.snd_una += (header.ack - self.snd_una + (1 << 31) & _U32) - (1 << 31)
        return len(data)

    def _resolve(self) -> None:
        question = builders.arp(1, _MAC, _US, bytes(6), _PEER)
        self.driver.send([builders.ethernet(_BROADCAST, _MAC, builders.ETHERTYPE_ARP, question)])
        deadline = time.monotonic() + _WAIT_SECONDS
        while self.mac == _BROADCAST:
            self.hear(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError("nobody answered ARP")

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


def flood(peer: Peer, seconds: float, frame: int) -> None:
    """Send superframes (or, of at most one MSS, packets) as fast as window and ring allow."""
    payload = min(frame, 65535 - _IP_TCP)
    data = bytes(range(256)) * (payload // 256 + 1)
    gso = (GSO_TCPV4, _HEADERS, _MSS) if payload > _MSS else (0, 0, 0)
    net_header = _NET_HEADER.pack(NEEDS_CSUM, *gso, _TCP_AT, 16, 0)
    burst = _BURST if payload > _MSS else 64
    headers = [bytearray(net_header + peer.headers(tcp.ACK, length=payload)) for _ in range(burst)]
    ready = Burst([(header, data[:payload]) for header in headers])
    seq_at = len(net_header) + _TCP_AT + 4
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        room = (peer.snd_una + peer.window - peer.snd_nxt) // payload
        if room < 1:
            peer.hear(0.1)
            continue
        count = min(room, burst)
        for i in range(count):
            _SEQ.pack_into(headers[i], seq_at, (peer.snd_nxt + i * payload) & 0xFFFFFFFF)
        sent = ready.send(peer.driver.tx(), count=count, timeout=0.1)
        peer.snd_nxt += sent * payload
        peer.hear(0.0)
    peer.finish(deadline + _WAIT_SECONDS)


def drain(peer: Peer, seconds: float) -> float:
    """Copy out what comes and acknowledge it; Gb/s."""
    header = bytearray(_NET_HEADER.pack(NEEDS_CSUM, 0, 0, 0, _TCP_AT, 16, 0) + peer.headers(tcp.ACK))
    ready = Burst([(header, b"")])
    ack_at = _NET_HEADER.size + _TCP_AT + 8
    moved, began = 0, time.monotonic()
    # The headers of what the stack sends on this connection: timestamps were not offered.
    while (now := time.monotonic()) - began < seconds:
        count, size = peer.driver.drain(64, timeout=0.1)
        if not count:
            continue
        moved += size - count * _HEADERS
        peer.rcv_nxt += size - count * _HEADERS
        _SEQ.pack_into(header, ack_at, peer.rcv_nxt & 0xFFFFFFFF)
        ready.send(peer.driver.tx(), timeout=0.1)
    peer.send(tcp.RST | tcp.ACK)
    return moved * 8e-9 / (now - began)


def main(socket: str, mode: str, port: str, seconds: str, frame: str) -> None:
    with NetDriver(socket) as driver:
        peer = Peer(driver, int(port))
        if mode == "send":
            flood(peer, float(seconds), int(frame))
        else:
            print(f"{drain(peer, float(seconds)):.3f}")  # noqa: T201 - read by rig.py


if __name__ == "__main__":
    main(*sys.argv[1:])
