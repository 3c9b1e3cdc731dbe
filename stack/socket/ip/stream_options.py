"""What a TCP socket understands: SOL_SOCKET, IP and TCP levels, and how they become `TcpOptions` (section 2.3)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.scheduler import NS_PER_MS, NS_PER_S, NS_PER_US
from stack.socket.families import AF_INET
from stack.socket.filter import attached, filter_level
from stack.socket.ip.fastopen_options import FASTOPEN_ROWS, TCP_FASTOPEN, TCP_FASTOPEN_KEY, TCP_FASTOPEN_NO_COOKIE
from stack.socket.ip.options import (
    IP_MINTTL,
    IP_MTU_DISCOVER,
    IP_OPTIONS,
    IP_RECVERR,
    IPPROTO_IP,
    IPPROTO_IPV6,
    ip_level,
    rows_beside6,
    tos_of,
    ttl_of,
)
from stack.socket.ip.options6 import IPV6_MINHOPCOUNT, IPV6_MTU_DISCOVER, IPV6_RECVERR, stream_rows6
from stack.socket.ip.packet_options import WATCHING, packet_options4, packet_options6
from stack.socket.ip.peername import peer_name_row
from stack.socket.ip.received import wants_arrivals
from stack.socket.ip.repair_options import REPAIR_ROWS, repair_timestamp, set_clock
from stack.socket.ip.signature_options import SIGNATURE_ROWS
from stack.socket.ip.stream_info import cc_info, congestion_name, tcp_info
from stack.socket.ip.stream_transmitted import stamps_of
from stack.socket.options import SOL_SOCKET, Kind, Option, OptionTable, OptionValues, Value
from stack.socket.options_device import SO_BINDTOIFINDEX, SO_MARK, bound_interface
from stack.socket.options_socket import (
    SO_BUF_LOCK,
    SO_DONTROUTE,
    SO_KEEPALIVE,
    SO_OOBINLINE,
    SO_PEEK_OFF,
    SO_PRIORITY,
    SO_RCVBUF,
    SO_RCVLOWAT,
    SO_RCVTIMEO,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SO_SNDBUF,
    SO_SNDTIMEO,
    UNLIMITED,
    pacing_rate,
    socket_level,
)
from stack.tcp.options import TcpOptions

if TYPE_CHECKING:
    from stack.ip.ports import BoundPort
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
TCP_THIN_LINEAR_TIMEOUTS: Final = 16
TCP_THIN_DUPACK: Final = 17
TCP_USER_TIMEOUT: Final = 18
TCP_TIMESTAMP: Final = 24
TCP_NOTSENT_LOWAT: Final = 25
TCP_CC_INFO: Final = 26
TCP_SAVE_SYN: Final = 27
TCP_SAVED_SYN: Final = 28
TCP_ULP: Final = 31
TCP_ZEROCOPY_RECEIVE: Final = 35
TCP_INQ: Final = 36
TCP_TX_DELAY: Final = 37
TCP_RTO_MAX_MS: Final = 44
TCP_RTO_MIN_US: Final = 45
TCP_DELACK_MAX_US: Final = 46

#: SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK of SO_BUF_LOCK.
_BUFFERS: Final = {SO_SNDBUF: 1, SO_RCVBUF: 2}
#: MSS shown while unconnected (RFC 9293 section 3.7.1 default).
MSS_DEFAULT: Final = 536
MSS_MIN: Final = 88
MSS_MAX: Final = 32767
#: Linux SOCK_MIN_RCVBUF / 2, bytes.
WINDOW_CLAMP_MIN: Final = 1152
LINGER2_DEFAULT: Final = 60
LINGER2_MAX: Final = 120
_CONGESTION_NAME: Final = 16
TX_DELAY_MAX: Final = (1 << 28) - 1  # us; Linux shifts it by three within 31 bits
TICK_US: Final = 4000
LEAST_TICKS: Final = 2  # Linux TCP_TIMEOUT_MIN
MOST_TICKS: Final = 50  # 200 ms: Linux TCP_RTO_MIN, TCP_DELACK_MAX

#: Not taken over by accepted sockets (row TCP-16).
NOT_INHERITED: Final = (
    (SOL_SOCKET, SO_PRIORITY),
    (IPPROTO_TCP, TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, TCP_FASTOPEN),
    (IPPROTO_TCP, TCP_FASTOPEN_KEY),
)


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
    name = value.decode("latin-1") if isinstance(value, bytes) else ""
    if name not in congestion_names():
        raise NetError(errno.ENOENT)
    if not _may_choose(socket, name):
        raise NetError(errno.EPERM)


def congestion_names() -> frozenset[str]:
    """The algorithms there are."""
    from stack.tcp.congestion import ALGORITHMS

    return frozenset(ALGORITHMS)


def _may_choose(socket: StreamSocket, name: str) -> bool:
    """What may be unfair to others is the administrator's to choose (Linux tcp_allowed_congestion_control)."""
    config = socket.host.netns.tcp.config
    return name in config.allowed_congestion or socket.host.credentials.may(Capability.NET_ADMIN)


def _get_window_clamp(socket: StreamSocket) -> int:
    """Of a connection without one: what its window can ever be."""
    clamp = int(socket.options.value(IPPROTO_TCP, TCP_WINDOW_CLAMP))
    connection = socket.connection
    return clamp or (0 if connection is None else 65535 << connection.receiver.shift)


def _get_quickack(socket: StreamSocket) -> int:
    connection = socket.connection
    return int(socket.options.value(IPPROTO_TCP, TCP_QUICKACK) if connection is None else connection.quickack)


def _quickack(socket: StreamSocket, value: int) -> None:
    if socket.connection is not None:
        socket.connection.quickack = bool(value)


def _nodelay(socket: StreamSocket, value: int) -> None:
    if value and socket.connection is not None:
        socket.connection.push()


def _ticks(socket: StreamSocket, microseconds: int) -> int:
    """Linux keeps these in ticks of 4 ms (HZ = 250), at least two, at most 200 ms."""
    ticks = -(-microseconds // TICK_US)
    if not LEAST_TICKS <= ticks <= MOST_TICKS:
        raise NetError(errno.EINVAL)
    return ticks * TICK_US


def _rto_max(socket: StreamSocket, milliseconds: int) -> int:
    tick = TICK_US // 1000
    return -(-milliseconds // tick) * tick


def _ulp(socket: StreamSocket, value: object) -> None:
    raise NetError(errno.ENOENT if value else errno.EINVAL)  # there is none, not even "tls"


def _timestamp(socket: StreamSocket) -> int:
    connection = socket.connection
    if connection is not None:
        return _signed(connection.timestamp())
    return _signed(repair_timestamp(socket))


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _invalid(socket: StreamSocket) -> Value:
    raise NetError(errno.EINVAL)


def _saved_syn(socket: StreamSocket, room: int) -> bytes:
    """Once; it takes enough room."""
    connection = socket.connection
    if connection is None:
        return b""
    saved = connection.options.saved_syn
    if len(saved) > room:
        raise NetError(errno.EINVAL)
    connection.options.saved_syn = b""
    return saved


def _buffer_in_force(number: int, field: str) -> Callable[[StreamSocket], int]:
    """SO_SNDBUF, SO_RCVBUF: as the user set it (doubled), or what a connection's tuning has come to.

    A size that was set and unlocked again (SO_BUF_LOCK) is where the tuning began.
    """
    bit = _BUFFERS[number]

    def get(socket: StreamSocket) -> int:
        connection = socket.connection
        told = int(socket.options.value(SOL_SOCKET, number))
        if connection is None:
            return told
        if not socket.options.explicit(SOL_SOCKET, number):
            return int(getattr(connection, field))
        locked = socket.options.value(SOL_SOCKET, SO_BUF_LOCK) & bit
        return told if locked else max(told, int(getattr(connection, field)))

    return get


def peek_offset(socket: StreamSocket) -> int:
    """SO_PEEK_OFF: where in what is unread the next peek begins, -1 for always at the beginning. Reads move it back."""
    offset = int(socket.options.value(SOL_SOCKET, SO_PEEK_OFF))
    return offset if offset < 0 else max(offset - (_taken(socket) - socket.peeked_from), 0)


def set_peek_offset(socket: StreamSocket, offset: int) -> None:
    socket.options.store(SOL_SOCKET, SO_PEEK_OFF, offset)
    socket.peeked_from = _taken(socket)


def _taken(socket: StreamSocket) -> int:
    """Bytes of the stream its user has read: what reads need not keep count of."""
    connection = socket.connection
    if connection is None:
        return 0
    receiver = connection.receiver
    return max(receiver.rcv_nxt - receiver.irs - 1 - int(connection.finished) - receiver.queue.length, 0)


def _socket_rows() -> list[Option]:
    live = {SO_SNDBUF: _buffer_in_force(SO_SNDBUF, "sndbuf"), SO_RCVBUF: _buffer_in_force(SO_RCVBUF, "rcvbuf")}
    rows = socket_level(sndbuf=16384, rcvbuf=131072)
    live[SO_PEEK_OFF] = peek_offset
    rows = [replace(row, get=live[row.number]) if row.number in live else row for row in rows]
    rows = [replace(row, effect=set_peek_offset) if row.number == SO_PEEK_OFF else row for row in rows]
    return [*rows, peer_name_row()]


TCP_ROWS: Final = (
    _row(TCP_NODELAY, "TCP_NODELAY", Kind.BOOL, effect=_nodelay),
    _row(TCP_MAXSEG, "TCP_MAXSEG", adjust=_maxseg, get=_get_maxseg),
    _row(TCP_CORK, "TCP_CORK", Kind.BOOL),
    _row(TCP_KEEPIDLE, "TCP_KEEPIDLE", default=7200, low=1, high=32767),
    _row(TCP_KEEPINTVL, "TCP_KEEPINTVL", default=75, low=1, high=32767),
    _row(TCP_KEEPCNT, "TCP_KEEPCNT", default=9, low=1, high=127),
    _row(TCP_SYNCNT, "TCP_SYNCNT", default=6, low=1, high=127),
    _row(TCP_LINGER2, "TCP_LINGER2", default=LINGER2_DEFAULT, adjust=_linger2),
    _row(TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT", adjust=defer_accept),
    _row(TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", adjust=_window_clamp, get=_get_window_clamp),
    _row(TCP_INFO, "TCP_INFO", Kind.OPAQUE, writable=False, get=tcp_info),
    _row(TCP_QUICKACK, "TCP_QUICKACK", Kind.BOOL, default=1, get=_get_quickack, effect=_quickack),
    _row(
        TCP_CONGESTION,
        "TCP_CONGESTION",
        Kind.NAME,
        default=b"",
        low=1,
        high=_CONGESTION_NAME,
        check=_congestion,
        get=congestion_name,
    ),
    _row(TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS", low=0, high=1),
    _row(TCP_THIN_DUPACK, "TCP_THIN_DUPACK", low=0, high=1, get=lambda _: 0),
    _row(TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", low=0),
    _row(TCP_TIMESTAMP, "TCP_TIMESTAMP", get=_timestamp, check=set_clock),
    _row(TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT"),
    _row(TCP_CC_INFO, "TCP_CC_INFO", Kind.OPAQUE, writable=False, get=cc_info),
    _row(TCP_SAVE_SYN, "TCP_SAVE_SYN", low=0, high=2),
    _row(TCP_SAVED_SYN, "TCP_SAVED_SYN", Kind.OPAQUE, writable=False, show=_saved_syn),
    _row(TCP_ULP, "TCP_ULP", Kind.NAME, default=b"", check=_ulp),
    _row(TCP_ZEROCOPY_RECEIVE, "TCP_ZEROCOPY_RECEIVE", writable=False, get=_invalid),
    _row(TCP_INQ, "TCP_INQ", low=0, high=1),
    _row(TCP_TX_DELAY, "TCP_TX_DELAY", low=0, high=TX_DELAY_MAX),
    _row(TCP_RTO_MAX_MS, "TCP_RTO_MAX_MS", default=120_000, low=1000, high=120_000, adjust=_rto_max),
    _row(TCP_RTO_MIN_US, "TCP_RTO_MIN_US", default=200_000, adjust=_ticks),
    _row(TCP_DELACK_MAX_US, "TCP_DELACK_MAX_US", default=200_000, adjust=_ticks),
    *FASTOPEN_ROWS,
    *REPAIR_ROWS,
    *SIGNATURE_ROWS,
)

_ROWS: Final = [*_socket_rows(), *filter_level(), *ip_level(), packet_options4(), *TCP_ROWS]
STREAM_OPTIONS: Final = OptionTable(_ROWS)
STREAM6_OPTIONS: Final = OptionTable([*rows_beside6(_ROWS), *stream_rows6(), packet_options6()])

#: (level, number) of what `TcpOptions` takes, the field, and how the value is converted.
_FIELDS: Final[tuple[tuple[int, int, str, Callable[[Any], Any]], ...]] = (
    (IPPROTO_TCP, TCP_NODELAY, "nodelay", bool),
    (IPPROTO_TCP, TCP_CORK, "cork", bool),
    (IPPROTO_TCP, TCP_QUICKACK, "quickack", bool),
    (IPPROTO_TCP, TCP_INQ, "inq", bool),
    (IPPROTO_TCP, TCP_TX_DELAY, "tx_delay", lambda microseconds: microseconds * NS_PER_US),
    (IPPROTO_TCP, TCP_SAVE_SYN, "save_syn", int),
    (IPPROTO_TCP, TCP_NOTSENT_LOWAT, "notsent_lowat", lambda value: value & 0xFFFFFFFF),
    (IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, "thin_linear", bool),
    (IPPROTO_TCP, TCP_RTO_MAX_MS, "rto_max", lambda milliseconds: milliseconds * NS_PER_MS),
    (IPPROTO_TCP, TCP_RTO_MIN_US, "rto_min", lambda microseconds: microseconds * NS_PER_US),
    (IPPROTO_TCP, TCP_DELACK_MAX_US, "delayed_ack_max", lambda microseconds: microseconds * NS_PER_US),
    (SOL_SOCKET, SO_RCVLOWAT, "rcvlowat", int),
    (SOL_SOCKET, SO_DONTROUTE, "direct", bool),
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
    (IPPROTO_TCP, TCP_FASTOPEN, "fastopen", int),
    (IPPROTO_TCP, TCP_FASTOPEN_KEY, "fastopen_key", bytes),
    (IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, "fastopen_no_cookie", bool),
    (IPPROTO_TCP, TCP_CONGESTION, "congestion", lambda name: name.decode("latin-1")),
    # The stored value is doubled for book-keeping (options_socket), payload gets the half.
    (SOL_SOCKET, SO_MARK, "mark", int),
    (IPPROTO_IP, IP_MTU_DISCOVER, "discover", int),
    (IPPROTO_IP, IP_OPTIONS, "ip_options", bytes),
    (IPPROTO_IPV6, IPV6_MTU_DISCOVER, "discover6", int),
    (SOL_SOCKET, SO_BINDTOIFINDEX, "device", int),
    (SOL_SOCKET, SO_RCVBUF, "rcvbuf", lambda doubled: doubled // 2),
    (SOL_SOCKET, SO_SNDBUF, "sndbuf", lambda doubled: doubled // 2),
)


def heritage(socket: StreamSocket) -> OptionValues:
    """What connections whose handshake ends now take over from a listening socket (row TCP-16)."""
    values = OptionValues(socket.options.table)
    values.inherit(socket.options, except_for=NOT_INHERITED)
    return values


def timeouts(values: OptionValues) -> tuple[int | None, int | None]:
    """SO_RCVTIMEO and SO_SNDTIMEO as ns to wait, None for ever."""
    both = (values.value(SOL_SOCKET, SO_RCVTIMEO), values.value(SOL_SOCKET, SO_SNDTIMEO))
    receive, send = (None if value == 0 else max(value, 0) for value in both)
    return receive, send


def reuse(socket: StreamSocket, bound: BoundPort) -> None:
    """What a bound socket has been told since counts for whoever binds next (row TCP-03)."""
    bound.reuse_addr = bool(socket.options.value(SOL_SOCKET, SO_REUSEADDR))
    bound.reuse_port = bool(socket.options.value(SOL_SOCKET, SO_REUSEPORT))
    bound.ifindex = bound_interface(socket)


def _lock_buffers(options: TcpOptions, socket: StreamSocket) -> None:
    """SO_BUF_LOCK: which sizes are fixed. One that was locked without being set stays what it is."""
    locks = int(socket.options.value(SOL_SOCKET, SO_BUF_LOCK))
    options.tuned = 0
    for number, field in ((SO_SNDBUF, "sndbuf"), (SO_RCVBUF, "rcvbuf")):
        bit = _BUFFERS[number]
        if socket.options.explicit(SOL_SOCKET, number):
            options.tuned |= bit & ~locks
        elif not locks & bit:
            setattr(options, field, 0)
        elif not getattr(options, field):
            held = socket.connection or socket.host.netns.tcp.config
            setattr(options, field, getattr(held, field))


def _levels(options: TcpOptions, socket: StreamSocket, peer: bytes | None) -> None:
    """What IPv4 and IPv6 have each of their own. As on Linux the packets decide, not the socket's family."""
    values = socket.options
    mapped = (
        ttl_of(socket, version=4),
        tos_of(socket, version=4),
        int(values.value(IPPROTO_IP, IP_MINTTL)),
        bool(values.value(IPPROTO_IP, IP_RECVERR)),
    )
    if socket.family == AF_INET or (peer is not None and len(peer) == 4):
        options.ttl, options.tos, options.min_ttl, options.report_errors = mapped
        return
    options.mapped = mapped
    options.ttl = ttl_of(socket, version=6)
    options.tos = tos_of(socket, version=6)
    options.min_ttl = int(values.value(IPPROTO_IPV6, IPV6_MINHOPCOUNT))
    options.report_errors = bool(values.value(IPPROTO_IPV6, IPV6_RECVERR))


def fill(options: TcpOptions, socket: StreamSocket, peer: bytes | None = None) -> TcpOptions:
    """Bring `options` up to what the socket has been told; what it was not told stays TCP's default. `peer`: the
    address of the connection they are for, None for a listener's or if that is not known yet.
    """
    values = socket.options
    for level, number, field, convert in _FIELDS:
        if values.explicit(level, number):
            setattr(options, field, convert(values.value(level, number)))
    _lock_buffers(options, socket)
    rate = pacing_rate(socket)
    options.max_pacing_rate = 0 if rate >= UNLIMITED else max(rate, 1)
    _levels(options, socket, peer)
    options.watching = socket.family != AF_INET and any(values.value(IPPROTO_IPV6, number) for number in WATCHING)
    options.timed = wants_arrivals(socket)
    options.stamps = stamps_of(socket)
    options.keys = socket.keys
    options.filter = attached(values)
    if options.filter is not None:
        socket.host.netns.tcp.filtering.install()
    return options
