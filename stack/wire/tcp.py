"""The TCP header and its options (RFC 9293 section 3.1, RFC 7323, RFC 2018, RFC 7413)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from stack.wire.checksum import checksum, pseudo_sum
from stack.wire.error import WireError

PROTO: Final = 6
HEADER_LENGTH: Final = 20  # bytes, without options
MAX_OPTIONS: Final = 40  # bytes: the data offset counts at most fifteen 32-bit words
CHECKSUM_OFFSET: Final = 16  # bytes into the header

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40  # RFC 3168
CWR: Final = 0x80

OPT_END: Final = 0
OPT_NOP: Final = 1
OPT_MSS: Final = 2
OPT_WINDOW_SCALE: Final = 3
OPT_SACK_PERMITTED: Final = 4
OPT_SACK: Final = 5
OPT_TIMESTAMPS: Final = 8
OPT_MD5: Final = 19  # RFC 2385
OPT_FASTOPEN: Final = 34

#: Of the whole option: no cookie, or one of an even 4 to 16 bytes (RFC 7413 section 4.1.1).
_FASTOPEN_SIZES: Final = frozenset((2, *range(6, 19, 2)))

#: source port, destination port, sequence number, acknowledgment number, data offset, flags, window, checksum, urgent
HEADER: Final = struct.Struct("!HHIIBBHHH")
#: NOP NOP kind 8 length 10: how everybody lays out the timestamp option outside the handshake (RFC 7323 appendix A).
TIMESTAMPS_WORD: Final = OPT_NOP << 24 | OPT_NOP << 16 | OPT_TIMESTAMPS << 8 | 10

#: That, and how Linux lays out the options of a SYN, in its answer too: MSS, SACK permitted, timestamps, NOP, scale.
_STAMP: Final = struct.Struct("!III")
_SYN: Final = struct.Struct("!HHIIIHBB")
_MSS_HEAD: Final = OPT_MSS << 8 | 4
_SACK_AND_TIMESTAMPS: Final = OPT_SACK_PERMITTED << 24 | 2 << 16 | OPT_TIMESTAMPS << 8 | 10
_SCALE_HEAD: Final = OPT_NOP << 8 | OPT_WINDOW_SCALE

_FLAG_LETTERS: Final = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (URG, "U"), (ECE, "E"), (CWR, "W"), (ACK, "."))
_U16: Final = struct.Struct("!H")
_TWO_U32: Final = struct.Struct("!II")


@dataclass(slots=True)
class HeaderOptions:
    """The options this stack knows. Absent ones are None, False or empty."""

    mss: int | None = None  #: bytes; only on a SYN
    window_scale: int | None = None  #: shift count as sent, 0..255; only on a SYN
    sack_permitted: bool = False  #: only on a SYN
    timestamps: tuple[int, int] | None = None  #: TSval, TSecr
    sack: tuple[tuple[int, int], ...] = ()  #: (left edge, right edge) of each block
    signature: bytes | None = None  #: MD5 digest of the segment; `stack.tcp.signatures` writes it
    fastopen: bytes | None = None  #: Fast Open cookie, b"" asks for one; only on a SYN

    def emit(self) -> bytes:
        """A multiple of four bytes, padded in front with NOPs as RFC 7323 appendix A shows."""
        out = bytearray()
        if self.mss is not None:
            out += struct.pack("!BBH", OPT_MSS, 4, self.mss)
        if self.timestamps is not None:
            if self.sack_permitted:
                out += bytes((OPT_SACK_PERMITTED, 2))
            else:
                out += bytes((OPT_NOP, OPT_NOP))
            out += struct.pack("!BBII", OPT_TIMESTAMPS, 10, *self.timestamps)
        elif self.sack_permitted:
            out += bytes((OPT_NOP, OPT_NOP, OPT_SACK_PERMITTED, 2))
        if self.window_scale is not None:
            out += bytes((OPT_NOP, OPT_WINDOW_SCALE, 3, self.window_scale))
        if self.sack:
            out += bytes((OPT_NOP, OPT_NOP, OPT_SACK, 2 + 8 * len(self.sack)))
            for block in self.sack:
                out += _TWO_U32.pack(*block)
        if self.fastopen is not None:
            size = 2 + len(self.fastopen)
            out += bytes(-size % 4 * (OPT_NOP,)) + bytes((OPT_FASTOPEN, size)) + self.fastopen
        return bytes(out)


@dataclass(slots=True)
class TcpHeader:
    """One header; sequence numbers are the 32 bits of the wire."""

    src_port: int
    dst_port: int
    seq: int = 0
    ack: int = 0
    flags: int = ACK
    window: int = 65535
    checksum: int = 0
    urgent: int = 0
    options: HeaderOptions = field(default_factory=HeaderOptions)

    def emit(self) -> bytes:
        options = self.options.emit()
        if len(options) > MAX_OPTIONS:
            raise WireError(f"TCP options of {len(options)} bytes")
        offset = (HEADER_LENGTH + len(options)) << 2
        return (
            HEADER.pack(
                self.src_port,
                self.dst_port,
                self.seq,
                self.ack,
                offset,
                self.flags,
                self.window,
                self.checksum,
                self.urgent,
            )
            + options
        )

    def __str__(self) -> str:
        parts = [f"tcp {self.src_port} > {self.dst_port} [{flag_letters(self.flags)}] seq {self.seq}"]
        if self.flags & ACK:
            parts.append(f"ack {self.ack}")
        parts.append(f"win {self.window}")
        options = self.options
        if options.mss is not None:
            parts.append(f"mss {options.mss}")
        if options.window_scale is not None:
            parts.append(f"wscale {options.window_scale}")
        if options.sack_permitted:
            parts.append("sackOK")
        if options.timestamps is not None:
            parts.append(f"TS {options.timestamps[0]}:{options.timestamps[1]}")
        parts.extend(f"sack {left}:{right}" for left, right in options.sack)
        if options.fastopen is not None:
            parts.append(f"tfo {options.fastopen.hex() or 'cookiereq'}")
        return ", ".join(parts)


def flag_letters(flags: int) -> str:
    """As tcpdump shows them, "." for ACK."""
    return "".join(letter for bit, letter in _FLAG_LETTERS if flags & bit) or "none"


def _usual(data: memoryview | bytes, length: int) -> HeaderOptions | None:
    """What nearly every segment of Linux has: timestamps alone, or the options of a SYN in its order. None: others."""
    if length == _STAMP.size:
        word, value, echo = _STAMP.unpack_from(data)
        if word == TIMESTAMPS_WORD:
            return HeaderOptions(None, None, False, (value, echo))
    elif length == _SYN.size:
        kind, mss, permitted, value, echo, scaling, size, shift = _SYN.unpack_from(data)
        if kind == _MSS_HEAD and permitted == _SACK_AND_TIMESTAMPS and scaling == _SCALE_HEAD and size == 3:
            return HeaderOptions(mss, shift, True, (value, echo))
    return None


def parse_options(data: memoryview | bytes) -> HeaderOptions:
    """The options in `data` (header bytes from 20 to the data offset).

    Lenient as every stack is: unknown kinds and known kinds of a wrong length are skipped, and what follows an option
    whose length is impossible is not looked at (RFC 9293 section 3.2, MUST-6 and MUST-7).
    """
    length = len(data)
    options = _usual(data, length)
    if options is not None:
        return options
    options = HeaderOptions()
    at = 0
    while at < length:
        kind = data[at]
        if kind == OPT_END:
            break
        if kind == OPT_NOP:
            at += 1
            continue
        if at + 1 >= length:
            break
        size = data[at + 1]
        if size < 2 or at + size > length:
            break
        if kind == OPT_MSS and size == 4:
            (options.mss,) = _U16.unpack_from(data, at + 2)
        elif kind == OPT_WINDOW_SCALE and size == 3:
            options.window_scale = data[at + 2]
        elif kind == OPT_SACK_PERMITTED and size == 2:
            options.sack_permitted = True
        elif kind == OPT_TIMESTAMPS and size == 10:
            options.timestamps = _TWO_U32.unpack_from(data, at + 2)
        elif kind == OPT_SACK and size >= 10 and (size - 2) % 8 == 0:
            options.sack = tuple(_TWO_U32.iter_unpack(data[at + 2 : at + size]))
        elif kind == OPT_MD5 and size == 18:
            options.signature = bytes(data[at + 2 : at + size])
        elif kind == OPT_FASTOPEN and size in _FASTOPEN_SIZES:
            options.fastopen = bytes(data[at + 2 : at + size])
        at += size
    return options


def parse(payload: memoryview) -> tuple[TcpHeader, memoryview]:
    """Header and data. The checksum is the caller's to verify (`IpPacket.csum_ok`). Raises WireError."""
    if len(payload) < HEADER_LENGTH:
        raise WireError(f"TCP segment of {len(payload)} bytes")
    src_port, dst_port, seq, ack, offset, flags, window, sum_, urgent = HEADER.unpack_from(payload)
    start = offset >> 4 << 2
    if not HEADER_LENGTH <= start <= len(payload):
        raise WireError(f"TCP data offset {start} in {len(payload)} bytes")
    options = parse_options(payload[HEADER_LENGTH:start])
    return TcpHeader(src_port, dst_port, seq, ack, flags, window, sum_, urgent, options), payload[start:]


def emit(src: bytes, dst: bytes, header: TcpHeader, data: bytes = b"") -> bytes:
    """A whole segment with its full checksum, for tests and tools; the stack itself leaves it to the device."""
    head = header.emit()
    value = checksum(head + data, pseudo_sum(src, dst, PROTO, len(head) + len(data)))
    return head[:CHECKSUM_OFFSET] + _U16.pack(value) + head[CHECKSUM_OFFSET + 2 :] + data
