"""RTM_*LINK and RTM_*STATS: struct ifinfomsg, IFLA_* and what nests in them (<linux/if_link.h>)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stack.wire.netlink.attribute import (
    BE16,
    LINK_ADDRESS,
    NLA_F_NESTED,
    RAW,
    S32,
    U8,
    U16,
    U32,
    Context,
    Nested,
    Record,
    Schema,
    String,
    attributes,
    deeper,
    pack,
)
from stack.wire.netlink.message import MessageType

IFNAMSIZ: Final = 16  # bytes, the final zero included
ALTIFNAMSIZ: Final = 128
IFALIASZ: Final = 256

_COUNTERS: Final = (
    *("rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped"),
    *("multicast", "collisions", "rx_length_errors", "rx_over_errors", "rx_crc_errors", "rx_frame_errors"),
    *("rx_fifo_errors", "rx_missed_errors", "tx_aborted_errors", "tx_carrier_errors", "tx_fifo_errors"),
    *("tx_heartbeat_errors", "tx_window_errors", "rx_compressed", "tx_compressed", "rx_nohandler"),
)
STATS: Final = Record("=24I", *_COUNTERS)  #: struct rtnl_link_stats
STATS64: Final = Record("=25Q", *_COUNTERS, "rx_otherhost_dropped")  #: struct rtnl_link_stats64
#: struct rtnl_link_ifmap
MAP: Final = Record("=QQQHBB4x", "mem_start", "mem_end", "base_addr", "irq", "dma", "port")

VLAN_DATA: Final = Schema((1, "id", U16), (2, "flags", Record("=II", "flags", "mask")), (5, "protocol", BE16))
MACVLAN_DATA: Final = Schema((1, "mode", U32), (2, "flags", U16))
BRIDGE_DATA: Final = Schema(
    (1, "forward_delay", U32),
    (2, "hello_time", U32),
    (3, "max_age", U32),
    (4, "ageing_time", U32),
    (5, "stp_state", U32),
    (6, "priority", U16),
    (7, "vlan_filtering", U8),
)


class _Peer:
    """VETH_INFO_PEER: the other end, as a whole message of its own."""

    nested = False

    def parse(self, data: memoryview, context: Context) -> dict[str, Any]:
        fields = LINK.parse_fields(data)
        inner = deeper(context)
        inner.base += LINK.header_length
        return {**fields, **LINK_SCHEMA.parse(data[LINK.header_length :], inner)}

    def emit(self, value: Mapping[str, Any]) -> bytes:
        fields = {name: each for name, each in value.items() if name in LINK.names}
        return LINK.emit(fields, {name: each for name, each in value.items() if name not in fields})


VETH_DATA: Final = Schema((1, "peer", _Peer()))

#: IFLA_INFO_DATA by IFLA_INFO_KIND.
KIND_DATA: Final[dict[str, Schema]] = {
    "bridge": BRIDGE_DATA,
    "macvlan": MACVLAN_DATA,
    "veth": VETH_DATA,
    "vlan": VLAN_DATA,
}

_INFO: Final = Schema((1, "kind", String()), (2, "data", RAW), (4, "slave_kind", String()), (5, "slave_data", RAW))


class _LinkInfo:
    """IFLA_LINKINFO: how ``data`` is to be read depends on ``kind``, whichever comes first."""

    nested = True

    def parse(self, data: memoryview, context: Context) -> dict[str, Any]:
        inner = deeper(context)
        found = _INFO.parse(data, inner)
        schema = KIND_DATA.get(found.get("kind", ""))
        if "data" in found and schema is not None:
            for kind, at, value in attributes(data):
                if kind & ~NLA_F_NESTED == _INFO.by_name["data"].number:
                    base = inner.base + at + 4
                    found["data"] = schema.parse(value, deeper(Context(inner.strict, inner.depth, base)))
        return found

    def emit(self, value: Mapping[str, Any]) -> bytes:
        parts = []
        for name, each in value.items():
            if name == "data" and not isinstance(each, bytes):
                schema = KIND_DATA.get(value.get("kind", ""), Schema())
                parts.append(pack(_INFO.by_name[name].number | NLA_F_NESTED, schema.emit(each)))
            else:
                parts.append(_INFO.emit({name: each}))
        return b"".join(parts)


LINK_SCHEMA: Final = Schema(
    (1, "address", LINK_ADDRESS),
    (2, "broadcast", LINK_ADDRESS),
    (3, "ifname", String(IFNAMSIZ - 1)),
    (4, "mtu", U32),
    (5, "link", U32),
    (6, "qdisc", String()),
    (7, "stats", STATS),
    (10, "master", U32),
    (13, "txqlen", U32),
    (14, "map", MAP),
    (16, "operstate", U8),
    (17, "linkmode", U8),
    (18, "linkinfo", _LinkInfo()),
    (19, "net_ns_pid", U32),
    (20, "ifalias", String(IFALIASZ - 1)),
    (23, "stats64", STATS64),
    (27, "group", U32),
    (28, "net_ns_fd", U32),
    (29, "ext_mask", U32),
    (30, "promiscuity", U32),
    (31, "num_tx_queues", U32),
    (32, "num_rx_queues", U32),
    (33, "carrier", U8),
    (35, "carrier_changes", U32),
    (37, "link_netnsid", S32),
    (39, "proto_down", U8),
    (40, "gso_max_segs", U32),
    (41, "gso_max_size", U32),
    (43, "xdp", Nested(Schema((2, "attached", U8)))),
    (47, "carrier_up_count", U32),
    (48, "carrier_down_count", U32),
    (49, "new_ifindex", S32),
    (50, "min_mtu", U32),
    (51, "max_mtu", U32),
    (53, "alt_ifname", String(ALTIFNAMSIZ - 1)),
    (58, "gro_max_size", U32),
    (59, "tso_max_size", U32),
    (60, "tso_max_segs", U32),
    (61, "allmulti", U32),
    (62, "devlink_port", Nested(Schema())),
    (63, "gso_ipv4_max_size", U32),
    (64, "gro_ipv4_max_size", U32),
    (65, "dpll_pin", Nested(Schema())),
    (66, "max_pacing_offload_horizon", U32),
    (67, "netns_immutable", U8),
    (68, "headroom", U16),
    (69, "tailroom", U16),
)

#: struct ifinfomsg
LINK: Final = MessageType("=BxHiII", "family type index flags change", LINK_SCHEMA)

#: struct if_stats_msg
STATISTICS: Final = MessageType(
    "=B3xII", "family index filter_mask", Schema((1, "link_64", STATS64), (2, "link_xstats", Nested(Schema())))
)
