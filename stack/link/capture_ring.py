"""What passed some links lately: frames in memory, bounded in bytes, the oldest dropped first.

A recorder that is always on costs a copy of each frame and no file; who wants to look, because something went wrong,
writes what is left of it with `write`. `tap` puts it between a device and its user, as `Capture.tap` does.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from stack.link.capture import LINKTYPE_VSOCK, Capture, CapturedDevice
from stack.link.device import Buffer, LinkDevice
from stack.scheduler import Scheduler

if TYPE_CHECKING:
    from stack.link.capture_vsock import RecordedTransport, VsockTransport
    from stack.link.dissect import Packet, Predicate

#: Bytes kept by default: some thousand full packets, a hundred superframes.
DEFAULT_LIMIT: Final = 8 << 20
#: What a kept frame costs besides its bytes.
_OVERHEAD: Final = 200


class KeptFrame(NamedTuple):
    """One frame as it crossed the seam."""

    time: int  #: ns of the Scheduler
    interface: int  #: index into `CaptureRing.interfaces`
    direction: int  #: stack.link.capture.INBOUND or OUTBOUND, as the observer's host sees it
    data: bytes
    gso_size: int
    header_length: int
    comment: str | None


class CaptureRing:
    """Frames of any number of links, in the order they passed. Called with the Network's lock held, or from a test."""

    def __init__(self, scheduler: Scheduler, *, limit: int = DEFAULT_LIMIT) -> None:
        self.interfaces: list[tuple[str, str | None]] = []  #: name and description of each link
        self.frames: deque[KeptFrame] = deque()
        self.dropped = 0  #: frames that are no longer kept
        self.paused = False
        self._scheduler = scheduler
        self._limit = limit
        self._bytes = 0
        self._comment: str | None = None
        self._vsock: set[int] = set()  # interfaces that are no Ethernet

    def filter(self, *wanted: Predicate) -> list[Packet]:
        """The frames that all of these predicates of `stack.link.dissect` want, oldest first; none: every one.

        Times are the Scheduler's, in seconds.
        """
        from stack.link.dissect import Packet

        packets = [
            Packet(frame, self.interfaces[frame.interface][0], vsock=frame.interface in self._vsock)
            for frame in tuple(self.frames)
        ]
        return [packet for packet in packets if all(each(packet) for each in wanted)]

    def tap_vsock(self, transport: VsockTransport, name: str) -> RecordedTransport:
        """As `tap`, for a guest's vsock: its packets are recorded as Linux's vsockmon does."""
        from stack.link.capture_vsock import RecordedTransport

        self.interfaces.append((name, "vsock"))
        self._vsock.add(len(self.interfaces) - 1)
        return RecordedTransport(transport, self, len(self.interfaces) - 1)

    def tap(self, device: LinkDevice, name: str, *, description: str | None = None) -> CapturedDevice:
        """`device` with everything that passes it recorded under `name`: use the result in its place."""
        self.interfaces.append((name, description))
        return CapturedDevice(device, self, len(self.interfaces) - 1)

    def comment(self, text: str) -> None:
        """Attach `text` to the next frame: marks a step of a test."""
        self._comment = text if self._comment is None else f"{self._comment}\n{text}"

    def record(
        self, interface: int, direction: int, parts: Sequence[Buffer], *, gso_size: int = 0, header_length: int = 0
    ) -> None:
        data = b"".join(parts)
        comment, self._comment = self._comment, None
        self.frames.append(KeptFrame(self._scheduler.now, interface, direction, data, gso_size, header_length, comment))
        self._bytes += len(data) + _OVERHEAD
        while self._bytes > self._limit and len(self.frames) > 1:
            self._bytes -= len(self.frames.popleft().data) + _OVERHEAD
            self.dropped += 1

    def write(self, path: str | os.PathLike[str], *, epoch_ns: int = 0, comment: str | None = None) -> int:
        """Write what is kept as a pcapng file; the number of frames. Raises OSError if it cannot be written."""
        frames = list(self.frames)
        if self.dropped:
            lost = f"{self.dropped} earlier frames are not kept"
            comment = lost if comment is None else f"{comment}\n{lost}"
        with Capture(path, self._scheduler, epoch_ns=epoch_ns, comment=comment) as capture:
            numbers: list[int] = []
            for name, description in self.interfaces:
                vsock = len(numbers) in self._vsock
                numbers.append(capture.interface(name, description, linktype=LINKTYPE_VSOCK if vsock else None))
            for frame in frames:
                if frame.comment is not None:
                    capture.comment(frame.comment)
                capture.record(
                    frame.interface,
                    frame.direction,
                    (frame.data,),
                    gso_size=frame.gso_size,
                    header_length=frame.header_length,
                    time=frame.time,
                )
            if self._comment is not None:
                capture.comment(self._comment)
        if capture.error is not None:
            raise capture.error
        return len(frames)
