"""SOF_TIMESTAMPING_OPT_STATS: what a connection tells of itself along with a time stamp, as netlink attributes.

The attributes and their order are Linux's (<linux/tcp.h>, TCP_NLA_*); times are microseconds. Linux adds the TTL of the
packet that acknowledged, which nobody here has kept.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stack.tcp import Connection

_U8: Final = struct.Struct("=HHB3x")
_U16: Final = struct.Struct("=HHH2x")
_U32: Final = struct.Struct("=HHI")
_U64: Final = struct.Struct("=HHQ")
_HEADER: Final = 4  # bytes: length, type
_LIMIT: Final = 0x7FFFFFFF


def statistics(connection: Connection, departed: int) -> bytes:
    """`departed`: when the packet left, ns."""
    info = connection.info()
    sender = connection.sender
    delivery = info.delivery_rate
    return b"".join(
        (
            _u64(1, info.busy_time),
            _u64(2, info.rwnd_limited),
            _u64(3, info.sndbuf_limited),
            _u64(4, info.data_segs_out),
            _u64(5, info.total_retrans),
            _u64(6, info.pacing_rate),
            _u64(7, delivery),
            _u32(8, info.snd_cwnd),
            _u32(9, info.reordering),
            _u32(10, info.min_rtt),
            _u8(11, min(info.retransmits, 255)),
            _u8(12, int(not info.notsent_bytes)),
            _u32(15, min(info.snd_ssthresh, _LIMIT)),
            _u32(16, info.delivered),
            _u32(17, info.delivered_ce),
            _u32(13, len(sender.queue)),
            _u8(14, info.ca_state),
            _u64(18, info.bytes_sent),
            _u64(19, info.bytes_retrans),
            _u32(20, info.dsack_dups),
            _u32(21, int(info.reordering_seen)),
            _u32(22, info.rtt),
            _u16(23, min(info.total_rto, 0xFFFF)),
            _u32(24, info.notsent_bytes),
            _u64(25, departed),
            _u32(27, 0),  # the flow label is not drawn anew
        )
    )


def _u8(kind: int, value: int) -> bytes:
    return _U8.pack(_HEADER + 1, kind, value)


def _u16(kind: int, value: int) -> bytes:
    return _U16.pack(_HEADER + 2, kind, value)


def _u32(kind: int, value: int) -> bytes:
    return _U32.pack(_HEADER + 4, kind, value & 0xFFFFFFFF)


def _u64(kind: int, value: int) -> bytes:
    return _U64.pack(_HEADER + 8, kind, value)
