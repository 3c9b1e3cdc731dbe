"""One front-end's conversation with one device: request in, reply out, the device told what to do. Sans-IO.

Theory of operation
-------------------
A session begins with a connection's first message and ends with the connection. It reads no socket and waits for
nothing; the server hands it whole messages and sends what it returns. What the front-end says about a ring goes
straight into the ring, under that ring's gate; the session itself remembers only what the protocol needs: who may
speak (SET_OWNER), what was negotiated, the status byte, and per ring whether its address and its kick have come.

A ring has two independent booleans. *Enabled* is whatever SET_VRING_ENABLE last said, at whatever moment: QEMU says
it before everything else for net and after SET_VRING_KICK for vsock. *Started* follows from the parts being there:
kick, size and addresses, in any order; QEMU sends the kick last of them. GET_VRING_BASE stops the ring and
takes kick and call away; QEMU brings fresh ones for the next start.

A message that breaks the protocol raises `ProtocolError`: the connection is over. A request that is well-formed but
refused (an MTU out of range, a config space nobody may write) is answered with a non-zero acknowledgement or an empty
config, as the protocol provides, and the conversation goes on. A *ring* that turns out broken while running, or that
a new memory table leaves behind, is stopped and reported by the ring itself; the conversation goes on as well.

Descriptors: `handle` takes those it keeps off the list; the caller closes the rest.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from .device import F_LOG_ALL, F_PROTOCOL_FEATURES
from .dirty_log import DirtyLog
from .memory import MAX_REGIONS, MemoryTable, MemoryTableError, Region
from .message import (
    CONFIG_HEAD,
    FLAG_NEED_REPLY,
    U64,
    VRING_STATE,
    Protocol,
    ProtocolError,
    Request,
    check,
    emit_reply,
    parse_addr,
    parse_config,
    parse_log,
    parse_region,
    parse_ring_fd,
    parse_state,
    parse_table,
    parse_u64,
    request_name,
)
from .virtqueue import RingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .device import Device

#: Limits of NET_SET_MTU in bytes: IPv4's least (RFC 791) and the largest an IPv4 packet can be.
MIN_MTU: Final = 68
MAX_MTU: Final = 65535

#: What may be said before SET_OWNER: the part of the handshake QEMU does before it claims the device.
_BEFORE_OWNER: Final = frozenset(
    {
        Request.GET_FEATURES,
        Request.SET_OWNER,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_MAX_MEM_SLOTS,
        Request.SET_BACKEND_REQ_FD,
    }
)

#: An answer: a reply's payload, an acknowledgement (0 is yes), or None for a plain yes.
_Answer: TypeAlias = bytes | int | None


class Session:
    """The state of one conversation. `handle` messages in order, then `close`."""

    def __init__(self, device: Device) -> None:
        """Claims `device`, which must not be connected. Call with `device.control_lock` held, as all methods here."""
        self.device = device
        self.requests = 0  #: messages handled, for statistics
        self._owner = False
        self._protocol = 0  # protocol feature bits negotiated
        self._features = 0  # virtio feature bits acknowledged, transport bits included
        self._status = 0
        self._addressed = [False] * len(device.rings)
        self._kicked = [False] * len(device.rings)
        self._changed = False
        device.connect()

    def handle(self, request: int, flags: int, payload: bytes, fds: list[int]) -> bytes | None:
        """Do what one message says. Returns the reply to send, if any.

        Raises `ProtocolError` naming the request when the connection must end. Descriptors still in `fds`
        afterwards, also after an error, are the caller's to close.
        """
        rule = check(request, len(payload), len(fds), self._protocol)
        if not self._owner and request not in _BEFORE_OWNER:
            raise ProtocolError(f"{request_name(request)} before SET_OWNER")
        self.requests += 1
        try:
            answer = self._HANDLERS[request](self, payload, fds)
        except (ProtocolError, MemoryTableError, RingError) as error:
            raise ProtocolError(f"{request_name(request)}: {error}") from error
        if self._changed:
            self._changed = False
            self.device.on_rings_changed()
            self.device.notify_change()
        if isinstance(answer, bytes):
            return emit_reply(request, answer)
        if rule.own_reply or (flags & FLAG_NEED_REPLY and self._protocol & Protocol.REPLY_ACK):
            return emit_reply(request, U64.pack(answer or 0))
        return None

    def close(self) -> None:
        """The connection is gone: the device lets go of rings, descriptors and guest memory. Idempotent."""
        self.device.disconnect()

    # -- negotiation ----------------------------------------------------------------------------------------------

    def _get_features(self, _payload: bytes, _fds: list[int]) -> _Answer:
        return U64.pack(self.device.device_features)

    def _set_features(self, payload: bytes, _fds: list[int]) -> _Answer:
        features = parse_u64(payload)
        unknown = features & ~self.device.device_features
        if unknown:
            raise ProtocolError(f"feature bits {unknown:#x} were not offered")
        # Dirty logging goes on and off under running rings; a change of anything else would change layouts mid-ring.
        if (features ^ self._features) & ~F_LOG_ALL and any(ring.started for ring in self.device.rings):
            raise ProtocolError(f"features change from {self._features:#x} to {features:#x} while rings run")
        self._features = features
        self.device.set_features(features)
        if not features & F_PROTOCOL_FEATURES:
            # Without the bit there is no SET_VRING_ENABLE: rings are enabled as soon as they start.
            for index in range(len(self.device.rings)):
                self._enable(index, True)
        return None

    def _set_owner(self, _payload: bytes, _fds: list[int]) -> _Answer:
        if self._owner:
            raise ProtocolError("the device already has an owner")
        self._owner = True
        return None

    def _reset_owner(self, _payload: bytes, _fds: list[int]) -> _Answer:
        # Deprecated; of the two readings the specification allows, "disable all rings" is the harmless one.
        for index in range(len(self.device.rings)):
            self._enable(index, False)
        return None

    def _get_protocol_features(self, _payload: bytes, _fds: list[int]) -> _Answer:
        return U64.pack(self.device.protocol_features)

    def _set_protocol_features(self, payload: bytes, _fds: list[int]) -> _Answer:
        features = parse_u64(payload)
        unknown = features & ~self.device.protocol_features
        if unknown:
            raise ProtocolError(f"protocol feature bits {unknown:#x} were not offered")
        self._protocol = features
        return None

    def _get_queue_num(self, _payload: bytes, _fds: list[int]) -> _Answer:
        return U64.pack(self.device.reported_queues)

    def _set_status(self, payload: bytes, _fds: list[int]) -> _Answer:
        status = parse_u64(payload)
        if status > 0xFF:
            raise ProtocolError(f"status {status:#x} is not one byte")
        # Stored only. QEMU writes 0 *before* it asks for the ring bases, so 0 must not reset the rings.
        self._status = status
        return None

    def _get_status(self, _payload: bytes, _fds: list[int]) -> _Answer:
        return U64.pack(self._status)

    # -- memory ---------------------------------------------------------------------------------------------------

    def _set_mem_table(self, payload: bytes, fds: list[int]) -> _Answer:
        regions = parse_table(payload)
        if len(regions) != len(fds):
            raise ProtocolError(f"{len(regions)} memory regions came with {len(fds)} descriptors")
        self._new_memory(MemoryTable.build([(Region(*region), fd) for region, fd in zip(regions, fds, strict=True)]))
        return None

    def _get_max_mem_slots(self, _payload: bytes, _fds: list[int]) -> _Answer:
        # A constant: QEMU refuses a back-end whose answer ever shrinks, also across reconnects.
        return U64.pack(MAX_REGIONS)

    def _add_mem_reg(self, payload: bytes, fds: list[int]) -> _Answer:
        region = Region(*parse_region(payload))
        memory = self.device.memory
        self._new_memory(memory.with_added(region, fds[0]) if memory else MemoryTable.build([(region, fds[0])]))
        return None

    def _rem_mem_reg(self, payload: bytes, _fds: list[int]) -> _Answer:
        region = Region(*parse_region(payload))
        if self.device.memory is None:
            raise ProtocolError("there is no memory region to remove")
        self._new_memory(self.device.memory.with_removed(region))
        return None

    def _new_memory(self, table: MemoryTable | None) -> None:
        self.device.set_memory(table)
        self._changed = True

    def _set_log_base(self, payload: bytes, fds: list[int]) -> _Answer:
        size, offset = parse_log(payload)
        self.device.set_log(DirtyLog(fds[0], size, offset))
        return 0

    def _set_log_fd(self, _payload: bytes, _fds: list[int]) -> _Answer:
        return None  # a doorbell for log writes; QEMU 7.2 has none to give. Not kept, so the caller closes it.

    def _set_backend_req_fd(self, _payload: bytes, fds: list[int]) -> _Answer:
        try:
            channel = socket.socket(fileno=fds[0])
        except OSError as error:
            raise ProtocolError(f"the back-end channel is no socket: {error.strerror}") from None
        fds.clear()
        self.device.set_channel(channel)
        return 0

    # -- rings ----------------------------------------------------------------------------------------------------

    def _ring_index(self, index: int) -> int:
        """`index` as it came off the wire, all 32 bits of it, if it names a ring."""
        if index >= len(self.device.rings):
            raise ProtocolError(f"ring {index} does not exist, the device has {len(self.device.rings)}")
        return index

    def _set_vring_num(self, payload: bytes, _fds: list[int]) -> _Answer:
        index, num = parse_state(payload)
        ring = self.device.rings[self._ring_index(index)]
        with self.device.gates[index].control:
            ring.set_num(num)
        self._start_if_ready(index)
        return None

    def _set_vring_addr(self, payload: bytes, _fds: list[int]) -> _Answer:
        index, flags, desc, used, avail, log = parse_addr(payload)
        ring = self.device.rings[self._ring_index(index)]
        with self.device.gates[index].control:
            # Also on a running ring: that is how QEMU switches dirty logging on and off (flags bit 0).
            ring.set_addr(flags, desc, used, avail, log)
        self._addressed[index] = True
        self._start_if_ready(index)
        return None

    def _set_vring_base(self, payload: bytes, _fds: list[int]) -> _Answer:
        index, base = parse_state(payload)
        ring = self.device.rings[self._ring_index(index)]
        with self.device.gates[index].control:
            ring.set_base(base)
        return None

    def _get_vring_base(self, payload: bytes, _fds: list[int]) -> _Answer:
        index, _ = parse_state(payload)
        self._ring_index(index)
        with self.device.gates[index].control:
            base = self.device.stop_ring(index)
        self._kicked[index] = False
        self._changed = True
        return VRING_STATE.pack(index, base)

    def _set_vring_enable(self, payload: bytes, _fds: list[int]) -> _Answer:
        index, enable = parse_state(payload)
        self._ring_index(index)
        if enable > 1:
            raise ProtocolError(f"ring {index}: enable is {enable}, not 0 or 1")
        self._enable(index, enable == 1)
        return None

    def _enable(self, index: int, enabled: bool) -> None:
        ring = self.device.rings[index]
        if ring.enabled != enabled:
            with self.device.gates[index].control:
                ring.enabled = enabled
            self._changed = True

    def _ring_fd(self, payload: bytes, fds: list[int]) -> tuple[int, int | None]:
        """KICK/CALL/ERR -> (ring index, the descriptor or None). It stays in `fds` until the ring has taken it."""
        index, expected = parse_ring_fd(payload)
        self._ring_index(index)
        if len(fds) != expected:
            raise ProtocolError(f"ring {index}: came with {len(fds)} descriptors, expected {int(expected)}")
        return index, fds[0] if expected else None

    def _set_vring_kick(self, payload: bytes, fds: list[int]) -> _Answer:
        index, fd = self._ring_fd(payload, fds)
        with self.device.gates[index].control:
            self.device.set_kick(index, fd)
            fds.clear()
        self._kicked[index] = True
        self._start_if_ready(index)
        return None

    def _set_vring_call(self, payload: bytes, fds: list[int]) -> _Answer:
        index, fd = self._ring_fd(payload, fds)
        with self.device.gates[index].control:
            self.device.rings[index].set_call(fd)
            fds.clear()
        return None

    def _set_vring_err(self, payload: bytes, fds: list[int]) -> _Answer:
        index, fd = self._ring_fd(payload, fds)
        with self.device.gates[index].control:
            self.device.rings[index].set_err(fd)
            fds.clear()
        return None

    def _start_if_ready(self, index: int) -> None:
        ring = self.device.rings[index]
        if self._kicked[index] and self._addressed[index] and ring.num and not ring.started:
            with self.device.gates[index].control:
                ring.start()
            self._changed = True

    # -- device ---------------------------------------------------------------------------------------------------

    def _get_config(self, payload: bytes, _fds: list[int]) -> _Answer:
        offset, size, flags, _ = parse_config(payload)
        data = self.device.get_config(offset, size)
        if data is None:
            return b""  # an empty payload is the protocol's way to report an error here
        return CONFIG_HEAD.pack(offset, size, flags) + data

    def _set_config(self, payload: bytes, _fds: list[int]) -> _Answer:
        offset, size, flags, data = parse_config(payload)
        if offset + size > len(self.device.config):
            return 1
        return 0 if self.device.set_config(offset, data, flags) else 1

    def _send_rarp(self, payload: bytes, _fds: list[int]) -> _Answer:
        self.device.on_rarp(payload[:6])
        return None

    def _net_set_mtu(self, payload: bytes, _fds: list[int]) -> _Answer:
        mtu = parse_u64(payload)
        return 0 if MIN_MTU <= mtu <= MAX_MTU and self.device.set_mtu(mtu) else 1

    #: What to do for each request of `message.RULES`: no more, no fewer.
    _HANDLERS: ClassVar[dict[int, Callable[[Session, bytes, list[int]], _Answer]]] = {
        Request.GET_FEATURES: _get_features,
        Request.SET_FEATURES: _set_features,
        Request.SET_OWNER: _set_owner,
        Request.RESET_OWNER: _reset_owner,
        Request.SET_MEM_TABLE: _set_mem_table,
        Request.SET_LOG_BASE: _set_log_base,
        Request.SET_LOG_FD: _set_log_fd,
        Request.SET_VRING_NUM: _set_vring_num,
        Request.SET_VRING_ADDR: _set_vring_addr,
        Request.SET_VRING_BASE: _set_vring_base,
        Request.GET_VRING_BASE: _get_vring_base,
        Request.SET_VRING_KICK: _set_vring_kick,
        Request.SET_VRING_CALL: _set_vring_call,
        Request.SET_VRING_ERR: _set_vring_err,
        Request.GET_PROTOCOL_FEATURES: _get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: _set_protocol_features,
        Request.GET_QUEUE_NUM: _get_queue_num,
        Request.SET_VRING_ENABLE: _set_vring_enable,
        Request.SEND_RARP: _send_rarp,
        Request.NET_SET_MTU: _net_set_mtu,
        Request.GET_CONFIG: _get_config,
        Request.SET_CONFIG: _set_config,
        Request.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        Request.ADD_MEM_REG: _add_mem_reg,
        Request.REM_MEM_REG: _rem_mem_reg,
        Request.SET_STATUS: _set_status,
        Request.GET_STATUS: _get_status,
        Request.SET_BACKEND_REQ_FD: _set_backend_req_fd,
    }
