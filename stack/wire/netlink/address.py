"""RTM_*ADDR: struct ifaddrmsg and IFA_* (<linux/if_addr.h>)."""

from __future__ import annotations

from typing import Final

from stack.wire.netlink.attribute import ADDRESS, S32, U8, U32, Record, Schema, String
from stack.wire.netlink.link import IFNAMSIZ
from stack.wire.netlink.message import MessageType

IFA_F_NODAD: Final = 0x02
IFA_F_PERMANENT: Final = 0x80
IFA_F_NOPREFIXROUTE: Final = 0x200
FOREVER: Final = 0xFFFFFFFF  #: lifetime, seconds
IFAPROT_KERNEL_LO: Final = 1
IFAPROT_KERNEL_LL: Final = 3

#: struct ifaddrmsg
ADDR: Final = MessageType(
    "=BBBBI",
    "family prefixlen flags scope index",
    Schema(
        (1, "address", ADDRESS),
        (2, "local", ADDRESS),
        (3, "label", String(IFNAMSIZ - 1)),
        (4, "broadcast", ADDRESS),
        (5, "anycast", ADDRESS),
        (6, "cacheinfo", Record("=IIII", "preferred", "valid", "cstamp", "tstamp")),
        (7, "multicast", ADDRESS),
        (8, "flags", U32),
        (9, "rt_priority", U32),
        (10, "target_netnsid", S32),
        (11, "proto", U8),
    ),
)
