"""What a user may set on one connection (`TcpOptions`) and what the whole layer is set to (`TcpConfig`).

`TcpOptions` is the live counterpart of the SOL_TCP and buffer socket options; times are nanoseconds here and whatever
unit the socket option has at the socket edge. After changing a field of a live connection's options call
`Connection.options_changed()`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.tcp.rtt import RTO_MAX, RTO_MIN

if TYPE_CHECKING:
    from stack.bpf import Program
    from stack.tcp.signatures import Keys

DEFAULT_TTL: Final = 64  # RFC 1700; Linux ip_default_ttl


@dataclass(slots=True)
class TcpOptions:
    """Per connection. A Listener's options are copied to the connections it accepts (row TCP-16)."""

    nodelay: bool = False  #: TCP_NODELAY: no Nagle
    cork: bool = False  #: TCP_CORK: only full-sized segments, for at most 200 ms
    quickack: bool = True  #: TCP_QUICKACK: False starts with delayed ACKs at once
    oob_inline: bool = False  #: SO_OOBINLINE: the urgent byte stays in the stream
    keepalive: bool = False  #: SO_KEEPALIVE
    keepalive_idle: int = 7200 * NS_PER_S  #: TCP_KEEPIDLE, ns
    keepalive_interval: int = 75 * NS_PER_S  #: TCP_KEEPINTVL, ns
    keepalive_count: int = 9  #: TCP_KEEPCNT
    user_timeout: int = 0  #: TCP_USER_TIMEOUT, ns; 0: the retransmission count decides
    rto_min: int = RTO_MIN  #: TCP_RTO_MIN_US, ns
    rto_max: int = RTO_MAX  #: TCP_RTO_MAX_MS, ns
    delayed_ack_max: int = 200 * NS_PER_MS  #: TCP_DELACK_MAX_US, ns
    syn_retries: int = 6  #: TCP_SYNCNT
    synack_retries: int = 0  #: TCP_SYNCNT of a listener; 0: TcpConfig.synack_retries
    maxseg: int = 0  #: TCP_MAXSEG as the user gave it (before the timestamp option); 0: path MTU decides
    rcvbuf: int = 0  #: SO_RCVBUF in bytes of payload; 0: auto-tuned from TcpConfig.rcvbuf up to rcvbuf_max
    sndbuf: int = 0  #: SO_SNDBUF in bytes of payload; 0: auto-tuned from TcpConfig.sndbuf up to sndbuf_max
    tuned: int = 0  #: SO_BUF_LOCK: bit 0 for sndbuf, bit 1 for rcvbuf: the size above is only where tuning begins
    window_clamp: int = 0  #: TCP_WINDOW_CLAMP, bytes; 0: none
    fin_timeout: int = 60 * NS_PER_S  #: TCP_LINGER2: how long an orphan stays in FIN-WAIT-2, ns; negative: not at all
    defer_accept: int = 0  #: TCP_DEFER_ACCEPT, ns; 0: off
    fastopen: int = 0  #: TCP_FASTOPEN: connections of a listener that may wait for the end of the handshake; 0: off
    fastopen_key: bytes = b""  #: TCP_FASTOPEN_KEY: 16 bytes, or 32 with the one before; b"": TcpConfig.fastopen_key
    fastopen_no_cookie: bool = False  #: TCP_FASTOPEN_NO_COOKIE
    congestion: str = ""  #: TCP_CONGESTION; "": the layer's default
    max_pacing_rate: int = 0  #: SO_MAX_PACING_RATE, bytes per second; 0: none
    notsent_lowat: int = 0  #: TCP_NOTSENT_LOWAT: bytes waiting to be sent above which no more is taken; 0: none
    rcvlowat: int = 1  #: SO_RCVLOWAT, bytes
    thin_linear: bool = False  #: TCP_THIN_LINEAR_TIMEOUTS: the first RTOs of a thin stream are not doubled
    inq: bool = False  #: TCP_INQ
    keys: Keys | None = None  #: TCP_MD5SIG, see `stack.tcp.signatures`
    device: int = 0  #: SO_BINDTODEVICE: index of the one interface to work through, 0: any
    filter: Program | None = None  #: SO_ATTACH_FILTER, see `stack.tcp.filtering`
    ttl: int = DEFAULT_TTL  #: IP_TTL or IPV6_UNICAST_HOPS
    tx_delay: int = 0  #: TCP_TX_DELAY, ns
    save_syn: int = 0  #: TCP_SAVE_SYN, of a Listener; 2: with the link's header
    saved_syn: bytes = b""  #: headers of the SYN (the link's,) IP's and TCP's, until the user has read them
    told: Any = None  #: of a Listener: what its socket had been told, for the sockets of its connections
    tos: int = 0  #: IP_TOS or IPV6_TCLASS
    report_errors: bool = False  #: IP_RECVERR: what ICMP says of a connection is told at once, not only when it fails
    min_ttl: int = 0  #: IP_MINTTL or IPV6_MINHOPCOUNT: packets that came farther are dropped (RFC 5082)
    watching: bool = False  #: IPV6_RECVPKTINFO and its likes: remember each packet's facts, see `Pcb.came`
    timed: bool = False  #: SO_TIMESTAMP and its likes: remember when data came, see `stack.tcp.receivetimes`
    stamps: int = 0  #: SO_TIMESTAMPING: SOF_TIMESTAMPING_TX_* of every send, see `stack.tcp.sendmarks`
    direct: bool = False  #: SO_DONTROUTE: connect to IPv4 hosts on the link only
    mark: int = 0  #: SO_MARK, for rules that choose routes by it
    discover: int = 1  #: IP_MTU_DISCOVER, see `stack.tcp.discovery`
    discover6: int = 1  #: IPV6_MTU_DISCOVER
    ip_options: bytes = b""  #: IP_OPTIONS of every packet, padded to whole words; of IPv4 only
    #: `ttl`, `tos`, `min_ttl` and `report_errors` towards IPv4 peers of an IPv6 socket, which are those of IPPROTO_IP.
    mapped: tuple[int, int, int, bool] | None = None

    @property
    def fixed_sndbuf(self) -> int:
        """`sndbuf`, 0 if that may be tuned."""
        return 0 if self.tuned & 1 else self.sndbuf

    @property
    def fixed_rcvbuf(self) -> int:
        """`rcvbuf`, 0 if that may be tuned."""
        return 0 if self.tuned & 2 else self.rcvbuf

    def towards(self, address: bytes) -> tuple[int, int, int, bool]:
        """`ttl`, `tos`, `min_ttl` and `report_errors` for a peer at `address`."""
        if self.mapped is not None and len(address) == 4:
            return self.mapped
        return self.ttl, self.tos, self.min_ttl, self.report_errors

    def copy(self) -> TcpOptions:
        fresh = TcpOptions(*every_field(self))
        if self.keys is not None:
            fresh.keys = self.keys.copy()
        return fresh


#: All fields in the order of the constructor's parameters: `dataclasses.replace` takes four times as long, and this is
#: done for every connection accepted.
every_field: Final = attrgetter(*(field.name for field in fields(TcpOptions)))


@dataclass(slots=True)
class TcpConfig:
    """Per TcpLayer (network namespace): what Linux has under /proc/sys/net/ipv4/tcp_*. Bytes and nanoseconds."""

    rcvbuf: int = 128 * 1024  #: initial receive buffer; Linux tcp_rmem[1]
    moderate_rcvbuf: bool = True  #: grow it; Linux tcp_moderate_rcvbuf
    rcvbuf_max: int = 4 << 20  #: largest auto-tuned receive buffer; decides the window scale
    sndbuf: int = 256 * 1024  #: initial send buffer
    sndbuf_max: int = 4 << 20  #: largest auto-tuned send buffer; Linux tcp_wmem[2]
    window_scaling: bool = True
    timestamps: bool = True
    sack: bool = True  #: tell the peer what arrived out of order (RFC 2018)
    congestion: str = "cubic"
    allowed_congestion: frozenset[str] = frozenset({"reno", "cubic"})  #: to users; Linux of that name
    ecn: int = 2  #: Linux tcp_ecn: 0 off, 1 ask for it, 2 only agree when asked
    initial_window: int = 10  #: segments; RFC 6928
    syncookies: int = 1  #: Linux tcp_syncookies: 0 off, 1 when a SYN queue is full, 2 always
    syn_backlog: int = 1024  #: bounds the SYN queue of a Listener while cookies are off; Linux tcp_max_syn_backlog
    abort_on_overflow: bool = False  #: reset, not ignore, last ACKs that find the accept queue full; Linux tcp_ of that
    synack_retries: int = 5  #: Linux tcp_synack_retries
    retries1: int = 3  #: as `retries`, before the path is doubted; Linux tcp_retries1 (R1 of RFC 9293 section 3.8.3)
    retries: int = 15  #: ETIMEDOUT after the time so many RTOs of 200 ms and more take; Linux tcp_retries2 (R2)
    orphan_retries: int = 0  #: the same once nobody holds the connection, 0: 8; Linux tcp_orphan_retries
    orphans_max: int = 16384  #: connections nobody holds, above it the next ends by RST; Linux tcp_max_orphans
    time_wait: int = 60 * NS_PER_S  #: 2 MSL; Linux TCP_TIMEWAIT_LEN
    time_wait_max: int = 16384  #: connections in TIME-WAIT; above it there is none. Linux tcp_max_tw_buckets
    fastopen: int = 1  #: Linux tcp_fastopen, see `fastopen`: bit 0 for clients, bit 1 for servers
    fastopen_key: bytes = b""  #: Linux tcp_fastopen_key; b"": a random one
    fastopen_blackhole_timeout: int = 0  #: how long Fast Open pauses after signs of a broken path, ns; 0: never
    tw_reuse: int = 2  #: Linux tcp_tw_reuse: may connect() end a TIME-WAIT: 0 no, 1 yes, 2 to a loopback address
    rfc1337: bool = False  #: Linux tcp_rfc1337: a reset does not end TIME-WAIT
    mtu_probing: int = 0  #: Linux tcp_mtu_probing: 0 off, 1 when a black hole is suspected, 2 always
    base_mss: int = 1024  #: bytes, where probing begins; Linux tcp_base_mss
    mtu_probe_floor: int = 48  #: bytes, the smallest MSS it goes down to; Linux tcp_mtu_probe_floor
    probe_threshold: int = 8  #: bytes, a smaller range is not searched; Linux tcp_probe_threshold
    probe_interval: int = 600 * NS_PER_S  #: until a path is tried for more again; Linux tcp_probe_interval
    delayed_ack: int = 40 * NS_PER_MS  #: Linux TCP_DELACK_MIN; RFC 9293 section 3.8.6.3 allows up to 500 ms
    #: how long the first small segment of a connection waits for an answer to carry its ACK, ns; 0: not at all
    answer_wait: int = NS_PER_MS
    challenge_acks: int = 1000  #: per second, whole layer; RFC 5961 section 7
