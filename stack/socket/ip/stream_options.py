"""What a TCP socket understands: SOL_SOCKET, IP and TCP levels, and how they become `TcpOptions` (section 2.3)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.socket.families import AF_INET
from stack.socket.ip.options import ip_level, tos_of, ttl_of
from stack.socket.options import SOL_SOCKET, Kind, Option, OptionTable
from stack.socket.options_socket import SO_KEEPALIVE, SO_OOBINLINE, SO_PRIORITY, SO_RCVBUF, SO_SNDBUF, socket_level
from stack.tcp.options import TcpOptions

if TYPE_CHECKING:
    from stack.socket.ip.stream import StreamSocket

IPPROTO_TCP: Final = 6

# Linux <linux/tcp.h>.
TCP_NODELAY: Final = 1
TCP_MAXSEG: Final = 2
TCP_CORK: Final = 3
TCP_KEEPIDLE: Final = 4
TCP_KEEPINTVL: Final = 5
TCP_KEEPCNT: Final = 6
TCP_SYNCNT: Final = 7
TCP_LINGER2: Final = 8
TCP_DEFER_ACCEPT: Final = 9
TCP_WINDOW_CLAMP: Final = 10
TCP_INFO: Final = 11
TCP_QUICKACK: Final = 12
TCP_CONGESTION: Final = 13
TCP_USER_TIMEOUT: Final = 18

#: MSS shown while unconnected (RFC 9293 section 3.7.1 default).
MSS_DEFAULT: Final = 536
MSS_MIN: Final = 88
MSS_MAX: Final = 32767
#: Linux SOCK_MIN_RCVBUF / 2, bytes.
WINDOW_CLAMP_MIN: Final = 1152
LINGER2_DEFAULT: Final = 60
LINGER2_MAX: Final = 120
_CONGESTION_NAME: Final = 16

#: Not taken over by accepted sockets (row TCP-16).
NOT_INHERITED: Final = ((SOL_SOCKET, SO_PRIORITY), (IPPROTO_TCP, TCP_DEFER_ACCEPT))


def _row(number: int, name: str, kind: Kind = Kind.INT, **more: Any) -> Option:
    return Option(IPPROTO_TCP, number, name, kind, **more)


def _maxseg(socket: StreamSocket, value: int) -> int:
    if value and not MSS_MIN <= value <= MSS_MAX:
        raise NetError(errno.EINVAL)
    return value


def _get_maxseg(socket: StreamSocket) -> int:
    connection = socket.connection
    if connection is not None:
        return connection.mss
    return int(socket.options.value(IPPROTO_TCP, TCP_MAXSEG)) or MSS_DEFAULT


def _linger2(socket: StreamSocket, value: int) -> int:
    if value == 0:
        return LINGER2_DEFAULT
    return -1 if value < 0 else min(value, LINGER2_MAX)


def defer_accept(socket: StreamSocket, value: int) -> int:
    """Linux keeps a count of SYN-ACK retransmissions and shows the time they take: 1 s, doubling up to 120 s."""
    total = 0
    period = 1
    retransmits = 0
    while total < value and retransmits < 255:
        total += period
        period = min(2 * period, 120)
        retransmits += 1
    return total


def _window_clamp(socket: StreamSocket, value: int) -> int:
    if value == 0:
        if socket.connection is not None or socket.phase.listening:
            raise NetError(errno.EINVAL)
        return 0
    return max(value, WINDOW_CLAMP_MIN)


def _congestion(socket: StreamSocket, value: object) -> None:
    if not value:
        raise NetError(errno.EINVAL)
    if not isinstance(value, bytes) or value.decode("latin-1") not in congestion_names():
        raise NetError(errno.ENOENT)


def _get_congestion(socket: StreamSocket) -> bytes:
    chosen = socket.options.value(IPPROTO_TCP, TCP_CONGESTION)
    return bytes(chosen) or socket.host.netns.tcp.config.congestion.encode()


def congestion_names() -> frozenset[str]:
    """The algorithms there are."""
    from stack.tcp.congestion import ALGORITHMS

    return frozenset(ALGORITHMS)


#: The head of Linux's struct tcp_info: eight bytes, then 32-bit fields up to tcpi_total_retrans.
_TCP_INFO: Final = struct.Struct("@8B24I")


def _get_info(socket: StreamSocket) -> bytes:
    connection = socket.connection
    if connection is None:
        return bytes((10 if socket.phase.listening else 7,)).ljust(_TCP_INFO.size, b"\0")
    info = connection.info()
    return _TCP_INFO.pack(
        info.state.value,
        info.ca_state,
        min(info.retransmits, 255),
        min(info.probes, 255),
        min(info.backoff, 255),
        info.options,
        info.snd_wscale | info.rcv_wscale << 4,
        0,
        info.rto,
        info.ato,
        info.snd_mss,
        info.rcv_mss,
        info.unacked,
        info.sacked,
        info.lost,
        info.retrans,
        0,
        info.last_data_sent,
        0,
        info.last_data_recv,
        info.last_ack_recv,
        info.pmtu,
        info.rcv_ssthresh,
        info.rtt,
        info.rttvar,
        min(info.snd_ssthresh, 0x7FFFFFFF),
        info.snd_cwnd,
        info.advmss,
        3,
        info.rcv_rtt,
        info.rcv_space,
        info.total_retrans,
    )


TCP_ROWS: Final = (
    _row(TCP_NODELAY, "TCP_NODELAY", Kind.BOOL),
    _row(TCP_MAXSEG, "TCP_MAXSEG", adjust=_maxseg, get=_get_maxseg),
    _row(TCP_CORK, "TCP_CORK", Kind.BOOL),
    _row(TCP_KEEPIDLE, "TCP_KEEPIDLE", default=7200, low=1, high=32767),
    _row(TCP_KEEPINTVL, "TCP_KEEPINTVL", default=75, low=1, high=32767),
    _row(TCP_KEEPCNT, "TCP_KEEPCNT", default=9, low=1, high=127),
    _row(TCP_SYNCNT, "TCP_SYNCNT", default=6, low=1, high=127),
    _row(TCP_LINGER2, "TCP_LINGER2", default=LINGER2_DEFAULT, adjust=_linger2),
    _row(TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT", adjust=defer_accept),
    _row(TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", adjust=_window_clamp),
    _row(TCP_INFO, "TCP_INFO", Kind.OPAQUE, writable=False, get=_get_info),
    _row(TCP_QUICKACK, "TCP_QUICKACK", Kind.BOOL, default=1),
    _row(
        TCP_CONGESTION,
        "TCP_CONGESTION",
        Kind.NAME,
        default=b"",
        high=_CONGESTION_NAME,
        check=_congestion,
        get=_get_congestion,
    ),
    _row(TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", low=0),
)

STREAM_OPTIONS: Final = OptionTable(
    [*socket_level(sndbuf=16384, rcvbuf=131072), *ip_level(tos_keeps_ecn=True), *TCP_ROWS]
)

#: (level, number) of what `TcpOptions` takes, the field, and how the value is converted.
_FIELDS: Final[tuple[tuple[int, int, str, Callable[[Any], Any]], ...]] = (
    (IPPROTO_TCP, TCP_NODELAY, "nodelay", bool),
    (IPPROTO_TCP, TCP_CORK, "cork", bool),
    (IPPROTO_TCP, TCP_QUICKACK, "quickack", bool),
    (SOL_SOCKET, SO_KEEPALIVE, "keepalive", bool),
    (SOL_SOCKET, SO_OOBINLINE, "oob_inline", bool),
    (IPPROTO_TCP, TCP_KEEPIDLE, "keepalive_idle", lambda seconds: seconds * NS_PER_S),
    (IPPROTO_TCP, TCP_KEEPINTVL, "keepalive_interval", lambda seconds: seconds * NS_PER_S),
    (IPPROTO_TCP, TCP_KEEPCNT, "keepalive_count", int),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, "user_timeout", lambda milliseconds: milliseconds * NS_PER_MS),
    (IPPROTO_TCP, TCP_SYNCNT, "syn_retries", int),
    (IPPROTO_TCP, TCP_SYNCNT, "synack_retries", int),
    (IPPROTO_TCP, TCP_MAXSEG, "maxseg", int),
    (IPPROTO_TCP, TCP_WINDOW_CLAMP, "window_clamp", int),
    (IPPROTO_TCP, TCP_LINGER2, "fin_timeout", lambda seconds: seconds * NS_PER_S),
    (IPPROTO_TCP, TCP_DEFER_ACCEPT, "defer_accept", lambda seconds: seconds * NS_PER_S),
    (IPPROTO_TCP, TCP_CONGESTION, "congestion", lambda name: name.decode("latin-1")),
    # The stored value is doubled for book-keeping (options_socket), payload gets the half.
    (SOL_SOCKET, SO_RCVBUF, "rcvbuf", lambda doubled: doubled // 2),
    (SOL_SOCKET, SO_SNDBUF, "sndbuf", lambda doubled: doubled // 2),
)


def fill(options: TcpOptions, socket: StreamSocket) -> TcpOptions:
    """Bring `options` up to what the socket has been told; what it was not told stays TCP's default."""
    values = socket.options
    for level, number, field, convert in _FIELDS:
        if values.explicit(level, number):
            setattr(options, field, convert(values.value(level, number)))
    version = 4 if socket.family == AF_INET else 6
    options.ttl = ttl_of(socket, version=version)
    options.tos = tos_of(socket, version=version)
    return options
