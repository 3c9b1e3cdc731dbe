"""Plays the guest for the vsock rows of the driver rig: streams at the other end of the rings, as cheap as can be.

    python -m qemu.guest.bench.rig_vsock SOCKET send|recv|rr|crr PORT SECONDS SIZE STREAMS

`send` and `recv` move messages of SIZE bytes over STREAMS streams; each message is one packet, as a guest kernel makes
of one write. `rr` sends a message and waits for as many bytes, `crr` opens a stream for each such exchange. Prints one
number: bytes a second, the median of round trips in microseconds, or streams a second. Credit is kept exactly, as a
guest's kernel does.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Final

from vhost_user.driver import VsockDriver
from vhost_user.driver.vsock import (
    OP_CREDIT_REQUEST,
    OP_CREDIT_UPDATE,
    OP_REQUEST,
    OP_RESPONSE,
    OP_RST,
    OP_RW,
    OP_SHUTDOWN,
    VsockPacket,
)

_BUFFER: Final = 1 << 20  # Linux has 256 KiB by default: the guest is not what is measured
_UPDATE: Final = 128 << 10  # bytes consumed before the host is told
#: A whole packet. Linux posts 4 KiB, which the rows with a real guest show. And a megabyte of such buffers, twice what
#: Linux has: eight times as much would all be touched in turn, and measure how cold memory is.
_RX_BUFFER: Final = (64 << 10) + 44
_RX_SIZE: Final = 16
_FIRST_PORT: Final = 20000
_BOTH: Final = 3
_WAIT_SECONDS: Final = 5.0
_U32: Final = 0xFFFFFFFF
#: Packets in one call of the ring.
_BURST: Final = 64


class Stream:
    """One connection of ours to the host."""

    __slots__ = ("allowed", "connected", "ended", "host", "port", "received", "reported", "sent")

    def __init__(self, port: int, host: int) -> None:
        self.port, self.host = port, host
        self.connected = self.ended = False
        self.sent = self.received = self.reported = 0
        self.allowed = 0  #: bytes we may have sent in all, as the host said last


class Peer:
    """All streams, by our port."""

    def __init__(self, driver: VsockDriver, port: int) -> None:
        self.driver = driver
        self.host = port
        self.streams: dict[int, Stream] = {}
        self._next = _FIRST_PORT

    def open(self) -> Stream:
        """A connected stream."""
        stream = Stream(self._next, self.host)
        self._next += 1
        self.streams[stream.port] = stream
        self.say([self.packet(stream, OP_REQUEST)])
        while not stream.connected:
            # One look may bring the acceptance, all of a short stream, and its end.
            if not self.hear(_WAIT_SECONDS) or (stream.ended and not stream.connected):
                raise TimeoutError("the host did not accept")
        return stream

    def packet(self, stream: Stream, op: int, payload: bytes = b"", flags: int = 0) -> VsockPacket:
        stream.reported = stream.received
        return self.driver.packet(
            op,
            stream.port,
            stream.host,
            payload,
            flags=flags,
            buf_alloc=_BUFFER,
            fwd_cnt=stream.received & _U32,
        )

    def say(self, packets: list[VsockPacket]) -> None:
        if self.driver.send(packets, timeout=_WAIT_SECONDS) != len(packets):
            raise TimeoutError("the device took no packet")

    def hear(self, timeout: float) -> int:
        """Take in what came, consume it, give credit back; packets."""
        packets = self.driver.recv_headers(256, timeout=timeout)
        answers = []
        for packet in packets:
            stream = self.streams.get(packet.dst_port)
            if stream is None:
                continue
            # What we may have sent in all; our count goes on where the one on the wire wraps.
            consumed = stream.sent - (stream.sent - packet.fwd_cnt & _U32)
            stream.allowed = consumed + packet.buf_alloc
            if packet.op == OP_RW:
                stream.received += packet.length or 0
                if stream.received - stream.reported >= _UPDATE:
                    answers.append(self.packet(stream, OP_CREDIT_UPDATE))
            elif packet.op == OP_CREDIT_REQUEST:
                answers.append(self.packet(stream, OP_CREDIT_UPDATE))
            elif packet.op == OP_RESPONSE:
                stream.connected = True
            elif packet.op in (OP_RST, OP_SHUTDOWN):
                stream.ended = True
                if packet.op == OP_SHUTDOWN:
                    answers.append(self.packet(stream, OP_RST))
        if answers:
            self.say(answers)
        return len(packets)

    def drain(self, stream: Stream, timeout: float) -> None:
        """As `hear`, the only stream's bytes copied out of the ring and not looked at."""
        stream.received += self.driver.drain(256, timeout=timeout)[1]
        if stream.received - stream.reported >= _UPDATE:
            self.say([self.packet(stream, OP_CREDIT_UPDATE)])

    def close(self, stream: Stream) -> None:
        if not stream.ended:
            self.say([self.packet(stream, OP_SHUTDOWN, flags=_BOTH)])
        deadline = time.monotonic() + _WAIT_SECONDS
        while not stream.ended and time.monotonic() < deadline:
            self.hear(0.1)
        del self.streams[stream.port]


def send(peer: Peer, seconds: float, size: int, count: int) -> float:
    """Messages as fast as credit and ring allow; bytes a second the host consumed."""
    streams = [peer.open() for _ in range(count)]
    data = bytes(size)
    per_stream = max(1, _BURST // count)
    bursts = {stream.port: peer.driver.burst([peer.packet(stream, OP_RW, data)] * per_stream) for stream in streams}
    began = time.monotonic()
    deadline = began + seconds
    while time.monotonic() < deadline:
        granted = 0
        for stream in streams:
            room = min(per_stream, (stream.allowed - stream.sent) // size)
            if room > 0:
                granted += room
                stream.sent += size * bursts[stream.port].send(peer.driver.tx, count=room, timeout=0.05)
        peer.hear(0.0 if granted else 0.05)
    moved = sum(stream.sent for stream in streams)
    elapsed = time.monotonic() - began
    for stream in streams:
        peer.close(stream)
    return moved / elapsed


def recv(peer: Peer, seconds: float, size: int, count: int) -> float:  # noqa: ARG001 - the host chooses the size
    """Bytes a second that arrived."""
    streams = [peer.open() for _ in range(count)]
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if count == 1:
            peer.drain(streams[0], 0.1)
        else:
            peer.hear(0.1)
    moved = sum(stream.received for stream in streams)
    elapsed = time.monotonic() - began
    for stream in streams:
        peer.say([peer.packet(stream, OP_RST)])
    return moved / elapsed


def round_trips(peer: Peer, seconds: float, size: int, count: int) -> float:  # noqa: ARG001 - one stream
    """Median of a message there and back, microseconds."""
    stream = peer.open()
    data = bytes(size)
    times = []
    began = now = time.perf_counter()
    while now - began < seconds:
        stream.sent += size
        wanted = stream.received + size
        peer.say([peer.packet(stream, OP_RW, data)])
        while stream.received < wanted:
            if not peer.hear(_WAIT_SECONDS):
                raise TimeoutError("the host did not answer")
        last, now = now, time.perf_counter()
        times.append(now - last)
    peer.close(stream)
    return median(times) * 1e6


def connects(peer: Peer, seconds: float, size: int, count: int) -> float:  # noqa: ARG001 - one stream at a time
    """Streams opened, used for a message there and back, and closed a second."""
    data = bytes(size)
    done, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        stream = peer.open()
        stream.sent = size
        peer.say([peer.packet(stream, OP_RW, data)])
        while stream.received < size:
            if not peer.hear(_WAIT_SECONDS):
                raise TimeoutError("the host did not answer")
        peer.close(stream)
        done += 1
    return done / (now - began)


MODES: Final = {"send": send, "recv": recv, "rr": round_trips, "crr": connects}


def main(socket: str, mode: str, port: str, seconds: str, size: str, streams: str) -> None:
    with VsockDriver(socket, rx_size=_RX_SIZE, rx_buffer=_RX_BUFFER) as driver:
        print(MODES[mode](Peer(driver, int(port)), float(seconds), int(size), int(streams)))  # noqa: T201 - for vsock.py


if __name__ == "__main__":
    main(*sys.argv[1:])
