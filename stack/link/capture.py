"""What passes a link, written to a pcapng file that tshark and Wireshark read.

Theory of operation
-------------------
`Capture` owns one file with one section; `tap` puts an observer between a `LinkDevice` and whoever uses it. Each tap
is an interface of the file with its name; each packet carries a time in nanoseconds and whether it was received or
transmitted there. Frames are written as they crossed the seam: a superframe is one packet of up to 65549 bytes, its
IP length true, with a comment saying what it becomes on the wire; a checksum left to the device is still the partial
one, as in any capture on a sending host.

So while frames are recorded none are joined and none land in a reader's buffer, where they could not be seen any more
(as on a TAP, which has no GRO); what leaves alone or in a volley leaves as ever, and is written frame by frame. While
the capture is paused, or closed, a device that is tapped is as fast as the device itself.

Times are the Scheduler's plus `epoch_ns`, which the one place that reads clocks passes in (wall clock minus the
Network's clock); a capture in virtual time starts in 1970.

A capture never disturbs what it observes: when the file cannot be written (disk full), the error is kept in `error`,
the rest is not recorded, and the traffic goes on. See docs/decisions/0003-pcapng-library.md for the library.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from dpkt import pcapng

from stack.link.device import Buffer, LinkDevice, RxFrame, TxFacts, TxFrame, VolleyHead
from stack.link.offload import headers_length
from stack.link.passing import PassingDevice
from stack.link.volley import unrolled
from stack.scheduler import Scheduler

LINKTYPE_ETHERNET: Final = 1  # https://www.tcpdump.org/linktypes.html
LINKTYPE_VSOCK: Final = 271
#: What is announced as the largest packet: tshark's own default, above the largest superframe (65549 bytes).
SNAPLEN: Final = 262144
INBOUND: Final = 1  # epb_flags, pcapng draft section 4.3.1: direction as the observer's host sees it
OUTBOUND: Final = 2

_COMMENT: Final = 1  # option codes, pcapng draft sections 3.5, 4.1, 4.2, 4.3
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_DESCRIPTION: Final = 3
_IF_TSRESOL: Final = 9
_EPB_FLAGS: Final = 2
_NANOSECONDS: Final = b"\x09"  # if_tsresol: units of 10^-9 s
_TEXT_LIMIT: Final = 65532  # an option's length field has 16 bits


def _options(options: Sequence[tuple[int, bytes]]) -> list[pcapng.PcapngOptionLE]:
    listed = [pcapng.PcapngOptionLE(code=code, data=data) for code, data in options]
    return [*listed, pcapng.PcapngOptionLE()]  # opt_endofopt


def _text(text: str) -> bytes:
    encoded = text.encode()[:_TEXT_LIMIT]
    return encoded.decode(errors="ignore").encode()  # no half character at the cut


class Capture:
    """A pcapng file being written. A context manager; `close` is idempotent.

    `target` is a path, created or truncated, or a binary file, which is then flushed but left open on `close`.
    `max_bytes` ends the recording once the file is that long. Raises `OSError` if the file cannot be created; later
    errors are kept in `error` instead.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        scheduler: Scheduler,
        *,
        epoch_ns: int = 0,
        max_bytes: int | None = None,
        comment: str | None = None,
    ) -> None:
        self.error: OSError | None = None
        self.packets = 0  #: written so far
        self.bytes = 0  #: length of the file
        self.missed = 0  #: not written because of `error` or `max_bytes`
        self.paused = False  #: while true nothing is recorded, and nothing counted as missed; so when it is closed
        self._scheduler = scheduler
        self._epoch_ns = epoch_ns
        self._max_bytes = max_bytes
        self._interfaces = 0
        self._next_comment: str | None = None
        self._file: BinaryIO | None
        if isinstance(target, (str, os.PathLike)):
            self._owned = True
            self._file = Path(target).open("wb")  # noqa: SIM115 - closed by close()
        else:
            self._owned = False
            self._file = target
        options = [(_SHB_USERAPPL, b"Guestwire")]
        if comment is not None:
            options.append((_COMMENT, _text(comment)))
        self._write(bytes(pcapng.SectionHeaderBlockLE(opts=_options(options))))

    def tap(self, device: LinkDevice, name: str, *, description: str | None = None) -> CapturedDevice:
        """`device` with everything that passes it recorded under `name`: use the result in its place."""
        return CapturedDevice(device, self, self.interface(name, description))

    def interface(self, name: str, description: str | None = None, *, linktype: int | None = None) -> int:
        """A new interface of the file, Ethernet unless `linktype` says otherwise; the number is for `record`."""
        options = [(_IF_NAME, _text(name)), (_IF_TSRESOL, _NANOSECONDS)]
        if description is not None:
            options.append((_IF_DESCRIPTION, _text(description)))
        block = pcapng.InterfaceDescriptionBlockLE(
            linktype=LINKTYPE_ETHERNET if linktype is None else linktype, snaplen=SNAPLEN, opts=_options(options)
        )
        self._write(bytes(block))
        number = self._interfaces
        self._interfaces += 1
        return number

    def comment(self, text: str) -> None:
        """Attach `text` to the next packet recorded: marks a step of a test in the file."""
        self._next_comment = text

    def record(
        self,
        interface: int,
        direction: int,
        parts: Sequence[Buffer],
        *,
        gso_size: int = 0,
        header_length: int = 0,
        time: int | None = None,
    ) -> None:
        """Write one frame. `gso_size` other than 0 marks a superframe, with `header_length` bytes of headers.

        `time` is when it passed, in the Scheduler's ns, if that was not now.
        """
        if self._file is None or (self._max_bytes is not None and self.bytes >= self._max_bytes):
            self.missed += 1
            return
        data = b"".join(parts)
        options = [(_EPB_FLAGS, direction.to_bytes(4, "little"))]
        comment = self._next_comment
        self._next_comment = None
        if gso_size:
            packets = -(-(len(data) - header_length) // gso_size)
            note = f"superframe: {packets} packets of up to {gso_size} bytes of payload"
            comment = note if comment is None else f"{comment}\n{note}"
        if comment is not None:
            options.append((_COMMENT, _text(comment)))
        stamp = (self._scheduler.now if time is None else time) + self._epoch_ns
        block = pcapng.EnhancedPacketBlockLE(
            iface_id=interface,
            ts_high=stamp >> 32 & 0xFFFFFFFF,
            ts_low=stamp & 0xFFFFFFFF,
            pkt_data=data,
            opts=_options(options),
        )
        if self._write(bytes(block)):
            self.packets += 1
        else:
            self.missed += 1

    def flush(self) -> None:
        """Hand what was recorded to the operating system, so that a reader sees it."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        self.paused = True
        self.flush()
        file, self._file = self._file, None
        if file is not None and self._owned:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, block: bytes) -> bool:
        if self._file is None:
            return False
        try:
            self._file.write(block)
        except OSError as error:
            self._fail(error)
            return False
        self.bytes += len(block)
        return True

    def _fail(self, error: OSError) -> None:
        self.error = error
        file, self._file = self._file, None
        if file is not None and self._owned:
            try:
                file.close()
            except OSError:
                return  # what was buffered could not be written either: `error` already says so


class Recorder(Protocol):
    """What keeps frames: a file being written (`Capture`), or a ring in memory (`CaptureRing`)."""

    paused: bool

    def record(
        self, interface: int, direction: int, parts: Sequence[Buffer], *, gso_size: int = 0, header_length: int = 0
    ) -> None: ...


class CapturedDevice(PassingDevice):
    """A `LinkDevice` that passes everything on to another one and records it."""

    def __init__(self, device: LinkDevice, capture: Recorder, interface: int) -> None:
        super().__init__(device)
        self._capture = capture
        self._interface = interface

    @property
    def passes(self) -> bool:
        """Nothing is done with frames (see stack.link.direct)."""
        return self._capture.paused

    def receive(self, budget: int) -> Sequence[RxFrame]:
        burst = self.device.receive(budget)
        if self._capture.paused:
            return burst
        for view, _, gso_type, gso_size, csum_start, _ in burst:
            header = headers_length(view, gso_type, csum_start) if gso_type else 0
            self._record(INBOUND, (view,), gso_size if gso_type else 0, header)
        return burst

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        accepted = self.device.transmit(burst)
        if not self._capture.paused:
            self._sent(burst[:accepted])
        return accepted

    def _transmit_alone(self, parts: tuple[Buffer, ...], facts: TxFacts) -> bool:
        accepted = self._alone(parts, facts)
        if accepted and not self._capture.paused:
            self._sent([(parts, *facts)])
        return accepted

    def _transmit_volley(
        self, head: VolleyHead, last: VolleyHead, count: int, number: tuple[int, int], parts: Sequence[Buffer]
    ) -> int:
        accepted = self._volley(head, last, count, number, parts)
        if accepted and not self._capture.paused:
            self._sent(islice(unrolled(head, last, count, number, parts), accepted))
        return accepted

    def _sent(self, frames: Iterable[TxFrame]) -> None:
        for parts, _, gso_type, header_length, gso_size, _, _ in frames:
            self._record(OUTBOUND, parts, gso_size if gso_type else 0, header_length)

    def _record(self, direction: int, parts: Sequence[Buffer], gso_size: int, header_length: int) -> None:
        self._capture.record(self._interface, direction, parts, gso_size=gso_size, header_length=header_length)
