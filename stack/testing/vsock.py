"""A guest's vsock without a guest: a transport fed by hand, and a small model of a guest kernel on top of it.

`ScriptedGuest` is the `VsockTransport`; a test says what arrives and looks at what left. `ModelGuest` answers by
itself: it keeps credit exactly as virtio 1.3 section 5.10.6.3 words it, in 32-bit arithmetic, and notes every rule the
host breaks in `broken`. It is written independently of `stack.vsock`, as an oracle for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from stack.vsock.transport import VsockRx, VsockTx
from stack.wire.vsock import CID_HOST, MAX_PAYLOAD, SEQ_EOM, SEQ_EOR, TYPE_SEQPACKET, TYPE_STREAM, Op, text

GUEST_CID: Final = 3
U32: Final = 0xFFFFFFFF


class ScriptedGuest:
    """A `VsockTransport` whose other side is the test. `room`: packets `transmit` takes before refusing (None: any)."""

    def __init__(self, guest_cid: int = GUEST_CID, *, room: int | None = None) -> None:
        self.guest_cid = guest_cid
        self.carrier = True
        self.generation = 1
        self.stream = self.seqpacket = True
        self.partial = 0
        self.on_change: Callable[[], None] | None = None
        self.room = room
        self.sent: list[VsockTx] = []  #: what the host transmitted, oldest first
        self.armed = True
        self._inbox: deque[VsockRx] = deque()

    def feed(
        self,
        op: int,
        host_port: int,
        guest_port: int,
        *,
        flags: int = 0,
        alloc: int = 1 << 18,
        forwarded: int = 0,
        payload: bytes = b"",
        kind: int = TYPE_STREAM,
        src_cid: int | None = None,
        dst_cid: int = CID_HOST,
    ) -> None:
        """Let one packet from the guest arrive; `service` of the port takes it."""
        src = self.guest_cid if src_cid is None else src_cid
        view = memoryview(payload)
        self._inbox.append((src, dst_cid, guest_port, host_port, kind, op, flags, alloc, forwarded, view))

    def take(self) -> list[VsockTx]:
        """What the host transmitted since the last call."""
        sent, self.sent = self.sent, []
        return sent

    def ops(self) -> list[str]:
        """As `take`, the names of the operations only."""
        return [Op(packet[5]).name for packet in self.take()]

    def changed(self) -> None:
        """Report a change, as a device does: call it after altering carrier, generation or room."""
        if self.on_change is not None:
            self.on_change()

    def receive(self, budget: int) -> Sequence[VsockRx]:
        inbox = self._inbox
        return [inbox.popleft() for _ in range(min(budget, len(inbox)))]

    def transmit(self, burst: Sequence[VsockTx]) -> int:
        assert self.carrier, "a transport without carrier drops what it is given"
        count = len(burst) if self.room is None else min(len(burst), self.room)
        for packet in burst[:count]:
            assert len(packet[9]) <= MAX_PAYLOAD
            self.sent.append((*packet[:9], bytes(packet[9])))
        if self.room is not None:
            self.room -= count
        return count

    def suppress(self) -> None:
        self.armed = False

    def arm(self) -> bool:
        self.armed = True
        return bool(self._inbox)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.carrier = False


class ModelStream:
    """One connection as the guest's kernel sees it; all counters 32 bits wide."""

    def __init__(
        self, guest: ModelGuest, host_port: int, guest_port: int, buffer: int, kind: int = TYPE_STREAM
    ) -> None:
        self.guest = guest
        self.kind = kind
        self.cid = CID_HOST  #: the peer's
        self.host_port = host_port
        self.guest_port = guest_port
        self.buf_alloc = buffer
        self.fwd_cnt = 0
        self.tx_cnt = 0
        self.peer_buf_alloc = 0
        self.peer_fwd_cnt = 0
        self.state = "requested"
        self.shutdown = 0  #: bits the host has sent
        self.received = bytearray()  #: everything, in order
        self.messages: list[tuple[bytes, bool]] = []  #: of SEQPACKET: each whole one, and whether it ended a record
        self._message = bytearray()
        self.unread = 0

    @property
    def free(self) -> int:
        """What we may still send, by the letter."""
        return self.peer_buf_alloc - ((self.tx_cnt - self.peer_fwd_cnt) & U32)

    def send(self, op: int, *, flags: int = 0, payload: bytes = b"") -> None:
        self.guest.transport.feed(
            op,
            self.host_port,
            self.guest_port,
            flags=flags,
            alloc=self.buf_alloc,
            forwarded=self.fwd_cnt,
            payload=payload,
            kind=self.kind,
            dst_cid=self.cid,
        )

    def write_message(self, data: bytes, *, end_of_record: bool = False, piece: int = MAX_PAYLOAD) -> bool:
        """Send `data` as one message, cut into pieces; False, and nothing sent, without credit for all of it."""
        if len(data) > self.free:
            return False
        self.tx_cnt = (self.tx_cnt + len(data)) & U32
        for at in range(0, len(data) or 1, piece):
            last = at + piece >= len(data)
            flags = (SEQ_EOM | (SEQ_EOR if end_of_record else 0)) if last else 0
            self.send(Op.RW, flags=flags, payload=data[at : at + piece])
        return True

    def write(self, data: bytes) -> int:
        """Send what the host's credit allows of `data`, as one packet; returns how much that was."""
        data = data[: max(0, min(self.free, MAX_PAYLOAD))]
        if data:
            self.tx_cnt = (self.tx_cnt + len(data)) & U32
            self.send(Op.RW, payload=data)
        return len(data)

    def piece(self, payload: bytes, flags: int) -> None:
        """A part of a message arrived."""
        if self.kind == TYPE_STREAM:
            if flags:
                self.guest.broken.append(f"flags {flags} on a stream")
            return
        self._message += payload
        if flags & SEQ_EOM:
            self.messages.append((bytes(self._message), bool(flags & SEQ_EOR)))
            self._message.clear()

    def consume(self, count: int, *, tell: bool = True) -> None:
        """The guest's user reads `count` bytes."""
        count = min(count, self.unread)
        self.unread -= count
        self.fwd_cnt = (self.fwd_cnt + count) & U32
        if tell and count:
            self.send(Op.CREDIT_UPDATE)


class ModelGuest:
    """A guest kernel's vsock, reduced to rules: accepts every request, checks everything it receives."""

    def __init__(self, transport: ScriptedGuest, *, buffer: int = 1 << 18) -> None:
        self.transport = transport
        self.buffer = buffer
        self.streams: dict[tuple[int, int], ModelStream] = {}
        self.broken: list[str] = []  #: rules the host broke
        self.resets = 0
        self.answers = True  #: requests; else they are ignored

    def connect(self, host_port: int, guest_port: int, *, kind: int = TYPE_STREAM, cid: int = CID_HOST) -> ModelStream:
        stream = ModelStream(self, host_port, guest_port, self.buffer, kind)
        stream.cid = cid
        self.streams[host_port, guest_port] = stream
        stream.send(Op.REQUEST)
        return stream

    def run(self) -> int:
        """Handle what the host transmitted; returns how many packets that were."""
        packets = self.transport.take()
        for packet in packets:
            self._packet(packet)
        return len(packets)

    def _packet(self, packet: VsockTx) -> None:
        src_cid, dst_cid, host_port, guest_port, kind, op, flags, alloc, forwarded, payload = packet
        line = text(src_cid, dst_cid, host_port, guest_port, op, flags, alloc, forwarded, len(payload))
        stream = self.streams.get((host_port, guest_port))
        known = (
            kind in (TYPE_STREAM, TYPE_SEQPACKET) if stream is None else (kind, src_cid) == (stream.kind, stream.cid)
        )
        self._look(packet, line, known=known)
        key = host_port, guest_port
        if op == Op.REQUEST:
            if stream is not None:
                self.broken.append(f"second request: {line}")
            if self.answers:
                self._requested(packet)
            return
        if op == Op.RST:
            self.resets += 1
            if stream is not None:
                stream.state = "reset"
                del self.streams[key]
            return
        if stream is None:
            self.broken.append(f"no such connection: {line}")
            return
        stream.peer_buf_alloc, stream.peer_fwd_cnt = alloc, forwarded
        if (stream.tx_cnt - forwarded) & U32 > 1 << 31:
            self.broken.append(f"consumed more than was sent: {line}")
        if op == Op.RESPONSE:
            stream.state = "connected"
        elif op == Op.RW:
            self._data(stream, bytes(payload), line)
            stream.piece(bytes(payload), flags)
        elif op == Op.SHUTDOWN:
            if not 1 <= flags <= 3:
                self.broken.append(f"shutdown flags: {line}")
            stream.shutdown |= flags
        elif op == Op.CREDIT_REQUEST:
            stream.send(Op.CREDIT_UPDATE)
        elif op != Op.CREDIT_UPDATE:
            self.broken.append(f"no such operation: {line}")

    def _requested(self, packet: VsockTx) -> None:
        src_cid, _, host_port, guest_port, kind, _, _, alloc, forwarded, _ = packet
        stream = ModelStream(self, host_port, guest_port, self.buffer, kind)
        self.streams[host_port, guest_port] = stream
        stream.cid = src_cid
        stream.peer_buf_alloc, stream.peer_fwd_cnt = alloc, forwarded
        stream.state = "connected"
        stream.send(Op.RESPONSE)

    def _look(self, packet: VsockTx, line: str, *, known: bool) -> None:
        """What holds for every packet."""
        _, dst_cid, _, _, _, op, _, alloc, forwarded, payload = packet
        if dst_cid != self.transport.guest_cid or not known:
            self.broken.append(f"misaddressed: {line}")
        if not (0 <= alloc <= U32 and 0 <= forwarded <= U32):
            self.broken.append(f"credit beyond 32 bits: {line}")
        if payload and op != Op.RW:
            self.broken.append(f"payload where none belongs: {line}")

    def _data(self, stream: ModelStream, payload: bytes, line: str) -> None:
        if stream.state != "connected" or stream.shutdown & 2:
            self.broken.append(f"data out of place: {line}")
        if not payload:
            self.broken.append(f"empty data packet: {line}")
        stream.unread += len(payload)
        if stream.unread > stream.buf_alloc:
            self.broken.append(f"beyond the credit by {stream.unread - stream.buf_alloc}: {line}")
        stream.received += payload
