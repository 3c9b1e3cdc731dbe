"""TCP_INFO and TCP_CC_INFO: Linux's structs, packed from what a connection tells of itself (row TCP-37)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_US
from stack.tcp.congestion import Bbr, initial_window

if TYPE_CHECKING:
    from stack.socket.ip.stream import StreamSocket

#: struct tcp_info of Linux 6.18, 280 bytes, by groups: state to flags; RTO to tcpi_total_retrans; pacing and bytes;
#: segments, unsent, minimal RTT, data segments; delivery rate and three times; delivered; bytes sent; duplicates to
#: rehash; time-outs; their time; AccECN, of which only the first is ever used here.
_TCP_INFO: Final = struct.Struct("@8B24I4Q6IQ3Q2I2Q6I2HI7I2H")
#: struct tcp_bbr_info: bandwidth as two halves (bytes/s), smallest RTT (us), two gains (1/256).
_BBR_INFO: Final = struct.Struct("@5I")

_LEVEL: Final = 6
_TCP_CONGESTION: Final = 13
CLOSED: Final = 7
LISTEN: Final = 10
_RTO_UNCONNECTED: Final = 1_000_000  # us
_MSS_UNCONNECTED: Final = 536
_RTTVAR_UNCONNECTED: Final = 250_000  # us
_SSTHRESH_INFINITE: Final = 0x7FFFFFFF
_NO_LIMIT: Final = (1 << 64) - 1
_REORDERING: Final = 3
_U32: Final = 0xFFFFFFFF
_APP_LIMITED: Final = 1  # bit 0 of the flags


def tcp_info(socket: StreamSocket) -> bytes:
    """getsockopt(TCP_INFO)."""
    connection = socket.connection
    if connection is None:
        return _unconnected(socket)
    info = connection.info()
    limit = info.max_pacing_rate or _NO_LIMIT
    return _TCP_INFO.pack(
        *(info.state.value, info.ca_state, min(info.retransmits, 255), min(info.probes, 255), min(info.backoff, 255)),
        *(info.options, info.snd_wscale | info.rcv_wscale << 4, 0 if info.notsent_bytes else _APP_LIMITED),
        *(info.rto, info.ato, info.snd_mss, info.rcv_mss),
        *(info.unacked, info.sacked, info.lost, info.retrans, 0),
        *_32(info.last_data_sent, info.last_ack_sent, info.last_data_recv, info.last_ack_recv),
        *(info.pmtu, info.rcv_ssthresh, *_32(info.rtt, info.rttvar)),
        *(min(info.snd_ssthresh, _SSTHRESH_INFINITE), info.snd_cwnd, info.advmss, info.reordering),
        *_32(info.rcv_rtt, info.rcv_space, info.total_retrans),
        *(info.pacing_rate or limit, limit, info.bytes_acked, info.bytes_received),
        *_32(info.segs_out, info.segs_in, info.notsent_bytes, info.min_rtt, info.data_segs_in, info.data_segs_out),
        *(info.delivery_rate, info.busy_time, info.rwnd_limited, info.sndbuf_limited),
        *_32(info.delivered, info.delivered_ce),
        *(info.bytes_sent, info.bytes_retrans),
        *_32(info.dsack_dups, int(info.reordering_seen), info.rcv_ooopack, info.snd_wnd, info.rcv_wnd, 0),
        *(min(info.total_rto, 0xFFFF), min(info.total_rto_recoveries, 0xFFFF), *_32(info.total_rto_time)),
        *(*_32(info.received_ce), 0, 0, 0, 0, 0, 0, 0, 0),
    )


def _32(*values: int) -> tuple[int, ...]:
    """Counters wrap as the kernel's do."""
    return tuple(value & _U32 for value in values)


def _unconnected(socket: StreamSocket) -> bytes:
    """Defaults; of a listening socket, how many wait to be accepted and how many may."""
    phase = socket.phase
    shown = dict.fromkeys(FIELDS, 0)
    shown |= {"snd_cwnd": initial_window(1), "reordering": _REORDERING}
    shown |= {"pacing_rate": _NO_LIMIT, "max_pacing_rate": _NO_LIMIT}
    listener = getattr(phase, "listener", None)
    if listener is not None:
        shown |= {"state": LISTEN, "unacked": listener.ready, "sacked": listener.backlog}
    else:
        shown |= {"state": CLOSED, "flags": _APP_LIMITED, "snd_mss": _MSS_UNCONNECTED, "rto": _RTO_UNCONNECTED}
        shown |= {"rttvar": _RTTVAR_UNCONNECTED, "snd_ssthresh": _SSTHRESH_INFINITE, "min_rtt": _U32}
    return _TCP_INFO.pack(*shown.values())


def cc_info(socket: StreamSocket) -> bytes:
    """getsockopt(TCP_CC_INFO): struct tcp_bbr_info, nothing for algorithms that have nothing to tell."""
    connection = socket.connection
    congestion = None if connection is None else connection.sender.congestion
    if isinstance(congestion, Bbr):
        bandwidth = congestion.bandwidth
        gains = int(congestion.pacing_gain * 256), int(congestion.cwnd_gain * 256)
        return _BBR_INFO.pack(bandwidth & _U32, bandwidth >> 32, congestion.min_rtt // NS_PER_US & _U32, *gains)
    return bytes(_BBR_INFO.size) if connection is None and congestion_name(socket) == b"bbr" else b""


def congestion_name(socket: StreamSocket) -> bytes:
    """getsockopt(TCP_CONGESTION): what was chosen, or the namespace's default."""
    chosen = socket.options.value(_LEVEL, _TCP_CONGESTION)
    return bytes(chosen) or socket.host.netns.tcp.config.congestion.encode()


def explain(data: bytes) -> dict[str, int]:
    """The fields of a struct tcp_info by name (without "tcpi_"), as far as `data` goes."""
    padded = data.ljust(_TCP_INFO.size, b"\0")
    return dict(zip(FIELDS, _TCP_INFO.unpack(padded[: _TCP_INFO.size]), strict=True))


#: Names of the fields, without "tcpi_".
FIELDS: Final = (
    *("state", "ca_state", "retransmits", "probes", "backoff", "options", "wscales", "flags"),
    *("rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets"),
    *("last_data_sent", "last_ack_sent", "last_data_recv", "last_ack_recv"),
    *("pmtu", "rcv_ssthresh", "rtt", "rttvar", "snd_ssthresh", "snd_cwnd", "advmss", "reordering"),
    *("rcv_rtt", "rcv_space", "total_retrans", "pacing_rate", "max_pacing_rate", "bytes_acked", "bytes_received"),
    *("segs_out", "segs_in", "notsent_bytes", "min_rtt", "data_segs_in", "data_segs_out", "delivery_rate"),
    *("busy_time", "rwnd_limited", "sndbuf_limited", "delivered", "delivered_ce", "bytes_sent", "bytes_retrans"),
    *("dsack_dups", "reord_seen", "rcv_ooopack", "snd_wnd", "rcv_wnd", "rehash"),
    *("total_rto", "total_rto_recoveries", "total_rto_time", "received_ce"),
    *("delivered_e1_bytes", "delivered_e0_bytes", "delivered_ce_bytes"),
    *("received_e1_bytes", "received_e0_bytes", "received_ce_bytes", "accecn_fail_mode", "accecn_opt_seen"),
)
