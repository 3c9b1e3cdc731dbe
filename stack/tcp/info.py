"""TCP_INFO: what a connection can tell about itself."""

from __future__ import annotations

from typing import NamedTuple

from stack.tcp.transitions import TcpState


class TcpInfo(NamedTuple):
    """Named as Linux's struct tcp_info; times in microseconds, sizes in bytes, cwnd and ssthresh in segments."""

    state: TcpState
    ca_state: int  #: 0 open, 1 disorder, 3 recovery, 4 loss
    retransmits: int  #: RTOs in a row so far
    probes: int  #: unanswered window or keep-alive probes
    backoff: int
    options: int  #: 1 timestamps, 2 SACK, 4 window scaling
    snd_wscale: int
    rcv_wscale: int
    rto: int
    ato: int
    snd_mss: int
    rcv_mss: int
    unacked: int  #: segments in flight
    lost: int
    retrans: int  #: segments retransmitted and in flight
    last_data_sent: int  #: milliseconds ago, as the three below
    last_data_recv: int
    last_ack_recv: int
    pmtu: int
    rcv_ssthresh: int
    rtt: int
    rttvar: int
    snd_ssthresh: int
    snd_cwnd: int
    advmss: int
    rcv_rtt: int
    rcv_space: int
    total_retrans: int  #: segments retransmitted in all
    bytes_acked: int
    bytes_received: int
    segs_out: int
    segs_in: int
    notsent_bytes: int
    min_rtt: int
    snd_wnd: int
