"""RTM_*NEIGH and RTM_*NEIGHTBL: struct ndmsg, struct ndtmsg, NDA_*, NDTA_*, NDTPA_* (<linux/neighbour.h>)."""

from __future__ import annotations

from typing import Final

from stack.wire.netlink.attribute import ADDRESS, LINK_ADDRESS, U8, U16, U32, U64, Nested, Record, Schema, String
from stack.wire.netlink.message import MessageType

NTF_PROXY: Final = 0x08
NTF_ROUTER: Final = 0x80

#: struct ndmsg
NEIGH: Final = MessageType(
    "=B3xiHBB",
    "family index state flags type",
    Schema(
        (1, "dst", ADDRESS),
        (2, "lladdr", LINK_ADDRESS),
        (3, "cacheinfo", Record("=IIII", "confirmed", "used", "updated", "refcnt")),
        (4, "probes", U32),
        (5, "vlan", U16),
        (8, "ifindex", U32),
        (9, "master", U32),
        (12, "protocol", U8),
        (15, "flags_ext", U32),
    ),
)

#: NDTPA_*: times in milliseconds
PARAMETERS: Final = Schema(
    (1, "ifindex", U32),
    (2, "refcnt", U32),
    (3, "reachable_time", U64),
    (4, "base_reachable_time", U64),
    (5, "retrans_time", U64),
    (6, "gc_staletime", U64),
    (7, "delay_probe_time", U64),
    (8, "queue_len", U32),
    (9, "app_probes", U32),
    (10, "ucast_probes", U32),
    (11, "mcast_probes", U32),
    (12, "anycast_delay", U64),
    (13, "proxy_delay", U64),
    (14, "proxy_qlen", U32),
    (15, "locktime", U64),
    (16, "queue_lenbytes", U32),
    (17, "mcast_reprobes", U32),
)

#: struct ndtmsg
NEIGHTBL: Final = MessageType(
    "=B3x",
    "family",
    Schema(
        (1, "name", String(15)),
        (2, "thresh1", U32),
        (3, "thresh2", U32),
        (4, "thresh3", U32),
        (
            5,
            "config",
            Record(
                "=HHIIIIIII",
                *("key_len", "entry_size", "entries", "last_flush", "last_rand"),
                *("hash_rnd", "hash_mask", "hash_chain_gc", "proxy_qlen"),
            ),
        ),
        (6, "parms", Nested(PARAMETERS, marked=False)),
        (8, "gc_interval", U64),
    ),
)
