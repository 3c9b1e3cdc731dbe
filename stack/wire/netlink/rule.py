"""RTM_*RULE: struct fib_rule_hdr and FRA_* (<linux/fib_rules.h>)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from stack.wire.netlink.attribute import ADDRESS, RAW, U8, U32, Record, Schema, String
from stack.wire.netlink.link import IFNAMSIZ
from stack.wire.netlink.message import MessageType

FIB_RULE_INVERT: Final = 0x2


class RuleAction(IntEnum):
    """FR_ACT_*"""

    TO_TABLE = 1
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


_RANGE: Final = Record("=HH", "start", "end")

#: struct fib_rule_hdr
RULE: Final = MessageType(
    "=BBBBBBBBI",
    "family dst_len src_len tos table res1 res2 action flags",
    Schema(
        (1, "dst", ADDRESS),
        (2, "src", ADDRESS),
        (3, "iifname", String(IFNAMSIZ - 1)),
        (4, "goto", U32),
        (6, "priority", U32),
        (10, "fwmark", U32),
        (12, "tun_id", RAW),
        (13, "suppress_ifgroup", U32),
        (14, "suppress_prefixlen", U32),
        (15, "table", U32),
        (16, "fwmask", U32),
        (17, "oifname", String(IFNAMSIZ - 1)),
        (19, "l3mdev", U8),
        (20, "uid_range", RAW),
        (21, "protocol", U8),
        (22, "ip_proto", U8),
        (23, "sport_range", _RANGE),
        (24, "dport_range", _RANGE),
        (25, "dscp", U8),
        (26, "flowlabel", RAW),
        (27, "flowlabel_mask", RAW),
    ),
)
