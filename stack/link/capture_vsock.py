"""A guest's vsock packets in a capture: a header as Linux's vsockmon device has it, the virtio header, the payload.

Wireshark and tshark read it (link type 271). Imported by nobody but who records: a recorded transport offers no
`receive_from`, so forwarded streams pass through Python, where they can be seen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from stack.link.capture import INBOUND, OUTBOUND
from stack.link.dissect import VSOCK_HEADER

if TYPE_CHECKING:
    from stack.link.capture import Recorder
    from stack.link.device import Buffer

#: struct virtio_vsock_hdr (virtio 1.3 section 5.10.6).
_VIRTIO: Final = struct.Struct("<QQIIIHHIII")
_VIRTIO_TRANSPORT: Final = 2  # enum af_vsockmon_transport
#: enum af_vsockmon_op, by the operation of the packet.
_UNKNOWN, _CONNECT, _DISCONNECT, _CONTROL, _PAYLOAD = range(5)
_OPS: Final = {
    1: _CONNECT,
    2: _CONNECT,
    3: _DISCONNECT,
    4: _DISCONNECT,
    5: _PAYLOAD,
    6: _CONTROL,
    7: _CONTROL,
}


class VsockTransport(Protocol):
    """What is recorded: `stack.vsock.transport.VsockTransport`, which lies above links."""

    on_change: Callable[[], None] | None

    def receive(self, budget: int) -> Sequence[Any]: ...
    def transmit(self, burst: Sequence[Any]) -> int: ...


class RecordedTransport:
    """A `VsockTransport` that passes everything on to another one and records it."""

    def __init__(self, transport: VsockTransport, recorder: Recorder, interface: int) -> None:
        self.transport = transport
        self._recorder = recorder
        self._interface = interface

    def __getattr__(self, name: str) -> Any:
        if name in ("receive_from", "roomy", "next_data", "send_on"):
            raise AttributeError(name)
        return getattr(self.transport, name)

    @property
    def on_change(self) -> Callable[[], None] | None:
        return self.transport.on_change

    @on_change.setter
    def on_change(self, callback: Callable[[], None] | None) -> None:
        self.transport.on_change = callback

    def receive(self, budget: int) -> Sequence[Any]:
        burst = self.transport.receive(budget)
        for packet in burst:
            self._record(INBOUND, packet)
        return burst

    def transmit(self, burst: Sequence[Any]) -> int:
        accepted = self.transport.transmit(burst)
        for packet in burst[:accepted]:
            self._record(OUTBOUND, packet)
        return accepted

    def _record(self, direction: int, packet: tuple[Any, ...]) -> None:
        if self._recorder.paused:
            return
        src_cid, dst_cid, src_port, dst_port, kind, op, flags, alloc, fwd, payload = packet
        parts: tuple[Buffer, ...] = (
            VSOCK_HEADER.pack(
                src_cid, dst_cid, src_port, dst_port, _OPS.get(op, _UNKNOWN), _VIRTIO_TRANSPORT, _VIRTIO.size
            ),
            _VIRTIO.pack(src_cid, dst_cid, src_port, dst_port, len(payload), kind, op, flags, alloc, fwd),
            payload,
        )
        self._recorder.record(self._interface, direction, parts)
