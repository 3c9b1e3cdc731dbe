"""A back-end without threads for hostile front-ends: bytes and descriptors in, and every promise checked afterwards.

`World.run` plays one front-end's life: what it sends, in the pieces it sends it in, with whatever descriptors, goes
through a real socket, `Connection` and `Session` into a real device; after each step the data path has a look as well.
However it ends, afterwards this process must have the descriptors and mappings it had before, the device must be as
new, and the only exceptions allowed are the two that end a connection. The property tests and the coverage-guided
fuzzer both stand on this.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

from vhost_user.connection import Connection, Disconnected
from vhost_user.device import Device
from vhost_user.fuzz.decode import Step
from vhost_user.message import Protocol, ProtocolError, Request, emit_region, emit_request, emit_table
from vhost_user.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

GPA: Final = 0x1_0000
UVA: Final = 0x7F00_0000_0000
SIZE: Final = 0x4_0000
LOG_SIZE: Final = 0x1000

#: What a descriptor may be; a step names them by index.
KINDS: Final = ("eventfd", "memory", "unsealed memory", "log", "pipe", "socket", "directory", "epoll", "full eventfd")


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _addr(ring: int) -> bytes:
    at = UVA + 0x1_0000 * ring
    return struct.pack("<IIQQQQ", ring, 0, at, at + 0x6000, at + 0x4000, 0)


def whole_start() -> list[Step]:
    """A front-end that does everything right, and uses every request there is: where mutations start from."""
    steps = [
        Step(emit_request(Request.GET_FEATURES)),
        Step(emit_request(Request.GET_PROTOCOL_FEATURES)),
        Step(emit_request(Request.SET_PROTOCOL_FEATURES, _u64(World.PROTOCOL))),
        Step(emit_request(Request.GET_QUEUE_NUM)),
        Step(emit_request(Request.GET_MAX_MEM_SLOTS)),
        Step(emit_request(Request.SET_BACKEND_REQ_FD, need_reply=True), (KINDS.index("socket"),)),
        Step(emit_request(Request.SET_OWNER)),
        Step(emit_request(Request.SET_FEATURES, _u64(World.FEATURES), need_reply=True)),
        Step(emit_request(Request.SET_MEM_TABLE, emit_table([(GPA, SIZE, UVA, 0)]), need_reply=True), (1,)),
    ]
    for ring in (0, 1):
        state = struct.pack("<II", ring, 16)
        steps += [
            Step(emit_request(Request.SET_VRING_ENABLE, struct.pack("<II", ring, 1))),
            Step(emit_request(Request.SET_VRING_NUM, state)),
            Step(emit_request(Request.SET_VRING_BASE, struct.pack("<II", ring, 0))),
            Step(emit_request(Request.SET_VRING_ADDR, _addr(ring))),
            Step(emit_request(Request.SET_VRING_KICK, _u64(ring)), (0,)),
            Step(emit_request(Request.SET_VRING_CALL, _u64(ring)), (0,)),
            Step(emit_request(Request.SET_VRING_ERR, _u64(ring)), (8,)),
        ]
    steps += [
        Step(
            emit_request(Request.ADD_MEM_REG, emit_region((GPA + SIZE, 0x1000, UVA + SIZE, 0)), need_reply=True), (2,)
        ),
        Step(emit_request(Request.REM_MEM_REG, emit_region((GPA + SIZE, 0x1000, UVA + SIZE, 0)), need_reply=True)),
        Step(emit_request(Request.SET_LOG_BASE, struct.pack("<QQ", LOG_SIZE, 0)), (3,)),
        Step(emit_request(Request.SET_LOG_FD), (0,)),
        Step(emit_request(Request.SEND_RARP, bytes(8))),
        Step(emit_request(Request.NET_SET_MTU, _u64(1500), need_reply=True)),
        Step(emit_request(Request.GET_STATUS)),
        Step(emit_request(Request.SET_STATUS, _u64(15))),
        Step(emit_request(Request.GET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8))),
        Step(emit_request(Request.SET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8), need_reply=True)),
        Step(emit_request(Request.GET_VRING_BASE, struct.pack("<II", 0, 0))),
        Step(emit_request(Request.RESET_OWNER)),
    ]
    return steps


class _Device(Device):
    def set_mtu(self, mtu: int) -> bool:
        return mtu <= 9000


class World:
    """One device and the descriptors front-ends send; many lives one after the other. Close it at the end."""

    PROTOCOL: Final = int(
        Protocol.MQ
        | Protocol.LOG_SHMFD
        | Protocol.RARP
        | Protocol.REPLY_ACK
        | Protocol.NET_MTU
        | Protocol.BACKEND_REQ
        | Protocol.CONFIG
        | Protocol.CONFIGURE_MEM_SLOTS
        | Protocol.STATUS
    )
    FEATURES: Final = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 26

    def __init__(self) -> None:
        self.device = _Device(
            name="fuzzed",
            device_features=self.FEATURES,
            protocol_features=self.PROTOCOL,
            ring_count=2,
            reported_queues=1,
            config=b"config!!",
            max_ring_size=64,
        )
        self._own: list[int] = []
        self._fds = [self._descriptor(kind) for kind in KINDS]
        self.lives = 0

    def _descriptor(self, kind: str) -> int:
        if kind in {"memory", "unsealed memory", "log"}:
            fd = os.memfd_create(kind, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, LOG_SIZE if kind == "log" else SIZE)
            if kind == "memory":
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        elif kind == "pipe":
            fd, other = os.pipe()
            self._own.append(other)
        elif kind == "socket":
            left, right = socket.socketpair()
            fd = left.detach()
            self._own.append(right.detach())
        elif kind == "directory":
            fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        elif kind == "epoll":
            with select.epoll() as epoll:
                fd = os.dup(epoll.fileno())
        else:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if kind == "full eventfd":
                os.eventfd_write(fd, 0xFFFF_FFFF_FFFF_FFFE)
                os.set_blocking(fd, True)
        self._own.append(fd)
        return fd

    def run(self, steps: Sequence[Step]) -> str:
        """One life; how it ended. Raises AssertionError when a promise was broken, or whatever escaped the session."""
        self.lives += 1
        before = _descriptors()
        ours, theirs = socket.socketpair()
        connection = Connection(ours)
        with self.device.control_lock:
            session = Session(self.device)
        try:
            end = self._live(steps, theirs, connection, session)
        finally:
            theirs.close()
            with self.device.control_lock:
                session.close()
            connection.close()
        self._as_new()
        after = _descriptors()
        assert after == before, f"descriptors leaked: {after} now, {before} before"
        return end

    def _live(self, steps: Sequence[Step], theirs: socket.socket, connection: Connection, session: Session) -> str:
        theirs.setblocking(False)
        try:
            for step in steps:
                with contextlib.suppress(BlockingIOError):
                    self._send(theirs, step)
                self._serve(connection, session)
                self._data_path()
                with contextlib.suppress(BlockingIOError):
                    theirs.recv(1 << 16)
            theirs.shutdown(socket.SHUT_WR)
            self._serve(connection, session)
        except ProtocolError:
            return "broken"
        except Disconnected:
            return "closed"
        return "open"

    def _send(self, sock: socket.socket, step: Step) -> None:
        if step.data:
            fds = array.array("i", [self._fds[kind % len(self._fds)] for kind in step.fds])
            sock.sendmsg([step.data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])

    def _serve(self, connection: Connection, session: Session) -> None:
        while (message := connection.receive()) is not None:
            try:
                with self.device.control_lock:
                    reply = session.handle(message.request, message.flags, message.payload, message.fds)
            finally:
                message.close()
            if reply is not None:
                connection.send(reply)

    def _data_path(self) -> None:
        """What the other thread would do: nothing may ever escape from here."""
        self.device.clear_events()
        self.device.refresh()
        for ring in self.device.rings:
            ring.pop()
            ring.push([(b"frame",)])
            ring.discard()
            ring.arm()

    def _as_new(self) -> None:
        device = self.device
        assert device.memory is None
        assert not device.connected
        assert device.features == 0
        for ring in device.rings:
            assert not ring.started
            assert not ring.enabled
            assert not ring.live
        for gate in device.gates:
            with gate:  # would hang here, had an error left it closed
                pass

    def mappings(self) -> int:
        """How many mappings of memory files this process has now."""
        with open("/proc/self/maps") as maps:
            return sum("/memfd:" in line for line in maps)

    def close(self) -> None:
        self.device.close()
        for fd in self._own:
            os.close(fd)
        self._own.clear()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
