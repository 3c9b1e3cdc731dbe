"""A front-end reduced to numbers: says any message to a session or down a socket, right or wrong, and owns a memfd.

Deliberately independent of `vhost_user.driver`, which is a front-end that tries to get things right.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from vhost_user.device import Device
from vhost_user.message import Protocol, Request
from vhost_user.session import Session

VERSION_1 = 1 << 32
EVENT_IDX = 1 << 29
INDIRECT = 1 << 28
LOG_ALL = 1 << 26
PROTOCOL_FEATURES = 1 << 30
OFFERED = VERSION_1 | EVENT_IDX | INDIRECT | LOG_ALL | PROTOCOL_FEATURES

NET_PROTOCOL = int(
    Protocol.MQ
    | Protocol.LOG_SHMFD
    | Protocol.RARP
    | Protocol.REPLY_ACK
    | Protocol.NET_MTU
    | Protocol.CONFIGURE_MEM_SLOTS
    | Protocol.STATUS
)
VSOCK_PROTOCOL = int(
    Protocol.MQ | Protocol.REPLY_ACK | Protocol.CONFIG | Protocol.CONFIGURE_MEM_SLOTS | Protocol.STATUS
)

GPA = 0x4000_0000  #: where the guest's memory begins for the guest ...
UVA = 0x7F00_0000_0000  #: ... and for the front-end
SIZE = 0x10_0000


class RecordingDevice(Device):
    """A device that writes down what its hooks were told."""

    def __init__(self, rings: int = 2, *, protocol: int = NET_PROTOCOL, config: bytes = b"", pairs: int = 1) -> None:
        super().__init__(
            name="dev0",
            device_features=OFFERED,
            protocol_features=protocol,
            ring_count=rings,
            reported_queues=pairs,
            config=config,
        )
        self.events: list[object] = []
        self.largest_mtu = 9000

    def on_connect(self) -> None:
        self.events.append("connect")

    def on_disconnect(self) -> None:
        self.events.append("disconnect")

    def on_features(self, features: int) -> None:
        self.events.append(("features", features))

    def on_rings_changed(self) -> None:
        self.events.append("rings")

    def on_rarp(self, mac: bytes) -> None:
        self.events.append(("rarp", mac))

    def set_mtu(self, mtu: int) -> bool:
        self.events.append(("mtu", mtu))
        return mtu <= self.largest_mtu

    def live(self) -> list[bool]:
        return [ring.live for ring in self.rings]


def net_device(pairs: int = 2) -> RecordingDevice:
    return RecordingDevice(2 * pairs, pairs=pairs)


def vsock_device(cid: int = 42) -> RecordingDevice:
    return RecordingDevice(2, protocol=VSOCK_PROTOCOL, config=struct.pack("<Q", cid), pairs=2)


class GuestMemory:
    """A sealed memfd with room for the rings of a device at fixed places. Numbers little-endian throughout."""

    def __init__(self, size: int = SIZE, *, seal: bool = True) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        if seal:
            import fcntl

            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.size = size
        self.map = mmap.mmap(self.fd, size)

    @property
    def region(self) -> tuple[int, int, int, int]:
        return GPA, self.size, UVA, 0

    def ring_at(self, index: int) -> int:
        """Offset of ring `index`: descriptors there, available ring 16 KiB on, used ring 24 KiB on (sizes to 1024)."""
        return index * 0x8000

    def addr(self, index: int, *, flags: int = 0, log: int = 0) -> bytes:
        """Payload of SET_VRING_ADDR for ring `index` at its place."""
        at = UVA + self.ring_at(index)
        return struct.pack("<IIQQQQ", index, flags, at, at + 0x6000, at + 0x4000, log)

    def offer(self, index: int, size: int, data: bytes, *, number: int = 0) -> None:
        """Make one readable chain holding `data` available as the `number`th of the ring."""
        at = self.ring_at(index)
        buffer = 0x80000 + 0x1000 * (number % size)
        self.map[buffer : buffer + len(data)] = data
        slot = number % size
        struct.pack_into("<QIHH", self.map, at + 16 * slot, GPA + buffer, len(data), 0, 0)
        struct.pack_into("<H", self.map, at + 0x4000 + 4 + 2 * slot, slot)
        struct.pack_into("<H", self.map, at + 0x4000 + 2, number + 1 & 0xFFFF)

    def used_idx(self, index: int) -> int:
        value: int = struct.unpack_from("<H", self.map, self.ring_at(index) + 0x6000 + 2)[0]
        return value

    def set_used_idx(self, index: int, value: int) -> None:
        struct.pack_into("<H", self.map, self.ring_at(index) + 0x6000 + 2, value)

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class FrontEnd:
    """Says messages to a `Session` (no socket, no thread) or over a socket, and tells replies apart."""

    def __init__(self, target: Session | socket.socket) -> None:
        self.target = target
        self.events: list[int] = []  # eventfds of our side, closed at the end
        self.memory = GuestMemory()
        self.kick: dict[int, int] = {}
        self.call: dict[int, int] = {}
        self.err: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for event in self.events:
            os.close(event)
        self.events.clear()
        self.memory.close()
        if isinstance(self.target, Session):
            self.target.close()
        else:
            self.target.close()

    def event(self) -> int:
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.events.append(event)
        return event

    def say(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 1) -> bytes | None:
        """One message. To a session: the reply's payload, None if there was none. Over a socket: None."""
        if isinstance(self.target, Session):
            ours = [os.dup(fd) for fd in fds]  # as if they had come by SCM_RIGHTS
            try:
                with self.target.device.control_lock:
                    reply = self.target.handle(request, flags, payload, ours)
            finally:
                for fd in ours:
                    os.close(fd)
            return None if reply is None else self._checked(request, reply)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.target.sendmsg([struct.pack("<III", request, flags, len(payload)) + payload], rights)
        return None

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 1) -> bytes:
        """One message that must be replied to; the reply's payload."""
        reply = self.say(request, payload, fds, flags=flags)
        if isinstance(self.target, socket.socket):
            head = self._exactly(12)
            reply = self._checked(request, head + self._exactly(struct.unpack("<III", head)[2]))
        assert reply is not None, f"request {request} was not replied to"
        return reply

    def ack(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """One message with NEED_REPLY; the acknowledgement, 0 for success."""
        return self.u64(self.ask(request, payload, fds, flags=9))

    @staticmethod
    def u64(payload: bytes) -> int:
        value: int = struct.unpack("<Q", payload)[0]
        return value

    @staticmethod
    def _checked(request: int, reply: bytes) -> bytes:
        number, flags, size = struct.unpack_from("<III", reply)
        assert (number, flags, size) == (request, 5, len(reply) - 12)
        return reply[12:]

    def _exactly(self, size: int) -> bytes:
        assert isinstance(self.target, socket.socket)
        data = b""
        while len(data) < size:
            piece = self.target.recv(size - len(data))
            if not piece:
                raise ConnectionError("the back-end hung up")
            data += piece
        return data

    # -- the steps QEMU 7.2 takes, as the reference records them (section 3.1) ------------------------------------

    def handshake(self, protocol: int, rings: Sequence[int], *, queue_num: bool = True, owner: bool = True) -> int:
        """vhost_dev_init for one pair: up to CALL/ERR of its rings. Returns the features offered."""
        self.ask(Request.GET_FEATURES)
        self.ask(Request.GET_PROTOCOL_FEATURES)
        self.say(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
        if owner:
            if queue_num:
                self.ask(Request.GET_QUEUE_NUM)
            if protocol & Protocol.CONFIGURE_MEM_SLOTS:
                self.ask(Request.GET_MAX_MEM_SLOTS)
            self.say(Request.SET_OWNER)
        offered = self.u64(self.ask(Request.GET_FEATURES))
        for ring in rings:
            self.call[ring], self.err[ring] = self.event(), self.event()
            self.say(Request.SET_VRING_CALL, struct.pack("<Q", ring), [self.call[ring]])
            self.say(Request.SET_VRING_ERR, struct.pack("<Q", ring), [self.err[ring]])
        return offered

    def enable(self, ring: int, on: bool = True) -> None:
        self.say(Request.SET_VRING_ENABLE, struct.pack("<II", ring, on))

    def status(self, bits: int) -> None:
        """QEMU reads the status and writes it back with more bits."""
        old = self.u64(self.ask(Request.GET_STATUS))
        self.say(Request.SET_STATUS, struct.pack("<Q", old | bits))

    def mem_table(self) -> None:
        assert self.ack(Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, *self.memory.region), [self.memory.fd]) == 0

    def mem_slot(self) -> None:
        assert self.ack(Request.ADD_MEM_REG, struct.pack("<Q4Q", 0, *self.memory.region), [self.memory.fd]) == 0

    def ring(self, ring: int, *, num: int = 256, base: int = 0, call: bool = True) -> None:
        """vhost_virtqueue_start of one ring: NUM, BASE, ADDR, KICK, then CALL for net."""
        self.say(Request.SET_VRING_NUM, struct.pack("<II", ring, num))
        self.say(Request.SET_VRING_BASE, struct.pack("<II", ring, base))
        self.say(Request.SET_VRING_ADDR, self.memory.addr(ring))
        self.kick[ring] = self.event()
        self.say(Request.SET_VRING_KICK, struct.pack("<Q", ring), [self.kick[ring]])
        if call:
            self.new_call(ring)

    def new_call(self, ring: int) -> None:
        self.call[ring] = self.event()
        self.say(Request.SET_VRING_CALL, struct.pack("<Q", ring), [self.call[ring]])

    def base(self, ring: int) -> int:
        index, base = struct.unpack("<II", self.ask(Request.GET_VRING_BASE, struct.pack("<II", ring, 0)))
        assert index == ring
        return int(base)

    def start_net(self, *, num: int = 256) -> None:
        """The shortest legal way to two running rings."""
        self.handshake(NET_PROTOCOL, [0, 1])
        self.enable(0)
        self.enable(1)
        self.say(Request.SET_FEATURES, struct.pack("<Q", OFFERED & ~LOG_ALL))
        self.mem_table()
        self.ring(0, num=num)
        self.ring(1, num=num)


def called(event: int) -> bool:
    """The eventfd was signalled since the last look."""
    try:
        os.eventfd_read(event)
    except BlockingIOError:
        return False
    return True


def open_fds() -> dict[int, str]:
    """This process's descriptors and what they are, without the one this looks with."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def guest_mappings() -> int:
    """How many mappings of memfds this process has."""
    with open("/proc/self/maps") as maps:
        return sum("/memfd:" in line for line in maps)
