"""TCP_INFO: what a connection can tell about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stack.scheduler import NS_PER_MS, NS_PER_US
from stack.tcp.algorithm import UNLIMITED
from stack.tcp.limits import Limit
from stack.tcp.recovery import DUPLICATE_THRESHOLD
from stack.tcp.sack_recovery import SackRecovery
from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb

OPT_TIMESTAMPS = 1  # TCPI_OPT_*
OPT_SACK = 2
OPT_WINDOW_SCALE = 4
OPT_ECN = 8
OPT_SYN_DATA = 32


class TcpInfo(NamedTuple):
    """Named as Linux's struct tcp_info; times in microseconds, sizes in bytes, cwnd and ssthresh in segments."""

    state: TcpState
    ca_state: int  #: 0 open, 1 disorder, 3 recovery, 4 loss
    retransmits: int  #: RTOs in a row so far
    probes: int  #: keep-alive probes unanswered
    backoff: int
    options: int  #: OPT_* bits
    snd_wscale: int
    rcv_wscale: int
    rto: int
    ato: int
    snd_mss: int
    rcv_mss: int
    unacked: int  #: segments in flight
    sacked: int  #: segments the peer reported beyond the ACK
    lost: int  #: segments believed lost and not sent again
    retrans: int  #: segments sent again and in flight
    last_data_sent: int  #: milliseconds ago, as the two below
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
    notsent_bytes: int
    min_rtt: int
    snd_wnd: int
    reordering_seen: bool  #: the path was seen to reorder (RFC 8985 section 6.2)
    dsack_dups: int  #: D-SACK blocks received
    delivered_ce: int  #: segments acknowledged with ECE
    pacing_rate: int  #: bytes/s, 0 without pacing
    delivery_rate: int  #: bytes/s, the last sample of a model-based algorithm, 0 without one
    max_pacing_rate: int  #: bytes/s, 0 without a limit
    last_ack_sent: int  #: always 0, as on Linux
    reordering: int  #: segments; what arrives so much later counts as lost (without SACK and RACK)
    segs_out: int
    segs_in: int
    data_segs_in: int
    data_segs_out: int
    busy_time: int  #: with data outstanding
    rwnd_limited: int  #: ... and held back by the peer's window
    sndbuf_limited: int  #: ... by our send buffer
    delivered: int  #: segments acknowledged or sacked
    bytes_sent: int  #: with retransmissions
    bytes_retrans: int
    rcv_ooopack: int  #: segments that came ahead of a gap
    rcv_wnd: int
    total_rto: int  #: retransmission time-outs
    total_rto_recoveries: int  #: ... spells of them
    total_rto_time: int  #: ... how long those were, milliseconds
    received_ce: int  #: segments received with a congestion mark


def collect(connection: Pcb) -> TcpInfo:
    sender = connection.sender
    receiver = connection.receiver
    recovery = sender.recovery
    rtt = sender.rtt
    mss = sender.mss
    now = connection.scheduler.now
    options = (OPT_TIMESTAMPS if connection.timestamps else 0) | (OPT_WINDOW_SCALE if connection.window_scaling else 0)
    options |= (OPT_SACK if connection.sack else 0) | (OPT_ECN if connection.ecn is not None else 0)
    options |= OPT_SYN_DATA if connection.fastopen is not None and connection.fastopen.acked else 0
    board = recovery.board
    limited = list(sender.limited_times)
    if sender.limited:
        limited[sender.limited] += now - sender.limit_at
    busy = sender.busy_time + (now - sender.busy_at if sender.busy_at else 0)
    delivered = sender.bytes_acked + (board.sacked if board is not None else 0)
    bytes_sent = min(sender.snd_max, sender.queue.end) - min(sender.iss + 1, sender.snd_max)
    if isinstance(recovery, SackRecovery):
        lost = board.lost if board is not None else 0
        again = sum(run.end - run.start for run in board.runs if run.again) if board is not None else 0
    else:
        lost = sender.snd_max - sender.snd_nxt
        again = mss if recovery.phase else 0
    return TcpInfo(
        state=connection.state,
        ca_state=int(recovery.phase) or (1 if recovery.duplicates or (board is not None and board.sacked) else 0),
        retransmits=sender.retries,
        probes=connection.timers.probes,
        backoff=sender.backoff,
        options=options,
        snd_wscale=sender.shift,
        rcv_wscale=receiver.shift,
        rto=rtt.backed_off(sender.backoff) // NS_PER_US,
        ato=connection.layer.config.delayed_ack // NS_PER_US,
        snd_mss=mss,
        rcv_mss=receiver.mss,
        unacked=-(-sender.flight // mss),
        sacked=-(-(board.sacked if board is not None else 0) // mss),
        lost=-(-lost // mss),
        retrans=-(-again // mss),
        last_data_sent=(now - sender.last_sent) // NS_PER_MS,
        last_data_recv=(now - connection.last_heard) // NS_PER_MS,
        last_ack_recv=(now - connection.last_heard) // NS_PER_MS,
        pmtu=connection.path_mtu,
        rcv_ssthresh=receiver.space,
        rtt=-(-rtt.srtt // NS_PER_US),
        rttvar=rtt.variance // NS_PER_US,
        snd_ssthresh=0x7FFFFFFF if sender.congestion.ssthresh >= UNLIMITED else sender.congestion.ssthresh // mss,
        snd_cwnd=sender.congestion.cwnd // mss,
        advmss=connection.advmss,
        rcv_rtt=receiver.round_trip // NS_PER_US,
        rcv_space=receiver.space,
        reordering=DUPLICATE_THRESHOLD,
        max_pacing_rate=connection.options.max_pacing_rate,
        last_ack_sent=0,
        segs_out=sender.segments,
        segs_in=receiver.segments + receiver.data_segments,
        data_segs_in=receiver.data_segments,
        data_segs_out=sender.data_segments,
        busy_time=busy // NS_PER_US,
        rwnd_limited=limited[Limit.PEER] // NS_PER_US,
        sndbuf_limited=limited[Limit.BUFFER] // NS_PER_US,
        delivered=-(-delivered // mss),
        bytes_sent=bytes_sent + sender.bytes_resent,
        bytes_retrans=sender.bytes_resent,
        rcv_ooopack=receiver.out_of_order,
        rcv_wnd=receiver.window,
        total_rto=sender.rtos,
        total_rto_recoveries=sender.rto_recoveries,
        total_rto_time=sender.rto_time // NS_PER_MS,
        received_ce=connection.ecn.marked if connection.ecn is not None else 0,
        total_retrans=sender.retransmitted,
        bytes_acked=sender.bytes_acked,
        bytes_received=receiver.received,
        notsent_bytes=sender.unsent,
        min_rtt=-(-rtt.minimum // NS_PER_US),
        snd_wnd=sender.snd_wnd,
        reordering_seen=isinstance(recovery, SackRecovery) and recovery.rack.reordering_seen,
        dsack_dups=recovery.dsacks if isinstance(recovery, SackRecovery) else 0,
        delivered_ce=-(-connection.ecn.ce_bytes // mss) if connection.ecn is not None else 0,
        pacing_rate=sender.pacer.rate if sender.pacer is not None else 0,
        delivery_rate=sender.model.rate if sender.model is not None else 0,
    )
