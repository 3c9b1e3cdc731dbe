"""RTM_*ROUTE: struct rtmsg, RTA_*, RTAX_* and multipath (<linux/rtnetlink.h>)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stack.wire.netlink.attribute import ADDRESS, RAW, U8, U16, U32, Context, Nested, Record, Schema, deeper
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import align
from stack.wire.netlink.message import MessageType

RT_TABLE_UNSPEC: Final = 0
RT_TABLE_COMPAT: Final = 252
RT_TABLE_DEFAULT: Final = 253
RT_TABLE_MAIN: Final = 254
RT_TABLE_LOCAL: Final = 255

RTM_F_CLONED: Final = 0x200
RTM_F_LOOKUP_TABLE: Final = 0x1000
RTM_F_FIB_MATCH: Final = 0x2000
RTCF_LOCAL: Final = 0x80000000
RTCF_BROADCAST: Final = 0x10000000
RTNH_F_DEAD: Final = 1
RTNH_F_ONLINK: Final = 4
RTNH_F_LINKDOWN: Final = 16

_HOP: Final = struct.Struct("=HBBi")
_HOP_SCHEMA: Final = Schema((5, "gateway", ADDRESS), (11, "flow", U32))


class _Hops:
    """RTA_MULTIPATH: struct rtnexthop after struct rtnexthop, each with attributes of its own."""

    nested = False

    def parse(self, data: memoryview, context: Context) -> list[dict[str, Any]]:
        inner = deeper(context)
        hops = []
        at = 0
        while at < len(data):
            if len(data) - at < _HOP.size:
                raise NetlinkError(errno.EINVAL, "Invalid nexthop configuration - extra data after nexthop")
            length, flags, weight, index = _HOP.unpack_from(data, at)
            if not _HOP.size <= length <= len(data) - at:
                raise NetlinkError(errno.EINVAL, "Invalid nexthop configuration - extra data after nexthop")
            base = Context(inner.strict, inner.depth, inner.base + at + _HOP.size)
            found = _HOP_SCHEMA.parse(data[at + _HOP.size : at + length], base)
            hops.append({"flags": flags, "hops": weight, "oif": index, **found})
            at += align(length)
        if not hops:
            raise NetlinkError(errno.EINVAL, "Invalid nexthop configuration - no valid nexthops")
        return hops

    def emit(self, value: Sequence[Mapping[str, Any]]) -> bytes:
        parts = []
        for hop in value:
            inner = _HOP_SCHEMA.emit({name: each for name, each in hop.items() if name in _HOP_SCHEMA.by_name})
            parts.append(
                _HOP.pack(_HOP.size + len(inner), hop.get("flags", 0), hop.get("hops", 0), hop.get("oif", 0)) + inner
            )
        return b"".join(parts)


#: RTA_METRICS: RTAX_*
METRICS: Final = Schema(
    (1, "lock", U32),
    (2, "mtu", U32),
    (3, "window", U32),
    (4, "rtt", U32),
    (5, "rttvar", U32),
    (6, "ssthresh", U32),
    (7, "cwnd", U32),
    (8, "advmss", U32),
    (9, "reordering", U32),
    (10, "hoplimit", U32),
    (11, "initcwnd", U32),
    (12, "features", U32),
    (13, "rto_min", U32),
    (14, "initrwnd", U32),
    (15, "quickack", U32),
)

#: struct rtmsg
ROUTE: Final = MessageType(
    "=BBBBBBBBI",
    "family dst_len src_len tos table protocol scope type flags",
    Schema(
        (1, "dst", ADDRESS),
        (2, "src", ADDRESS),
        (3, "iif", U32),
        (4, "oif", U32),
        (5, "gateway", ADDRESS),
        (6, "priority", U32),
        (7, "prefsrc", ADDRESS),
        (8, "metrics", Nested(METRICS)),
        (9, "multipath", _Hops()),
        (11, "flow", U32),
        (
            12,
            "cacheinfo",
            Record("=IIiiIIII", "clntref", "lastuse", "expires", "error", "used", "id", "ts", "tsage"),
        ),
        (15, "table", U32),
        (16, "mark", U32),
        (18, "via", RAW),
        (20, "pref", U8),
        (21, "encap_type", U16),
        (22, "encap", RAW),
        (23, "expires", U32),
        (25, "uid", U32),
        (27, "ip_proto", U8),
        (28, "sport", U16),
        (29, "dport", U16),
        (30, "nh_id", U32),
    ),
)
