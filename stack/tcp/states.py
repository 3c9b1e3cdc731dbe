"""What a segment does in each state: RFC 9293 section 3.10.7, one class per state.

Theory of operation
-------------------
A state object has no data of its own (everything belongs to the connection), so there is one instance per class and
`Connection.enter` only swaps a reference. CLOSED and SYN-SENT look at segments in their own way (sections 3.10.7.1 and
3.10.7.3; LISTEN, 3.10.7.2, is `listener.Listener`). All others share one ladder, `Synchronized.segment`, whose rungs
carry the numbers of section 3.10.7.4; a state overrides the rung at which it differs.

The ladder follows RFC 5961 against blind attacks: a RST must hit RCV.NXT exactly, a SYN never resets, an ACK must be
plausible; everything doubtful is answered by a challenge ACK, limited in rate. Timestamps are checked as in RFC 7323
section 5 (PAWS).

Nothing here sends data: segments move the connection, its flush at the end of the turn answers.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_S
from stack.tcp.ecn import agreed
from stack.tcp.handshake import echo_plausible, peer_syn, send_syn
from stack.tcp.mib import Mib
from stack.tcp.seqnum import older, unwrap
from stack.tcp.transitions import TcpState
from stack.tcp.urgent import check as check_urgent
from stack.wire.tcp import ACK, ECE, FIN, RST, SYN, URG

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb
    from stack.tcp.segment import Segment

#: TS.Recent is not trusted after this long without news: the peer's clock may have wrapped (RFC 7323 section 5.5).
PAWS_IDLE: Final = 24 * 24 * 3600 * NS_PER_S  # ns


class State:
    """What all states answer to."""

    code: TcpState
    sends = False  #: data and FIN may leave (Sender.output runs)
    takes_writes = False  #: the user may queue data
    after_close: TcpState | None = None  #: where CLOSE (RFC 9293 section 3.10.4) leads
    after_fin: TcpState | None = None  #: where the peer's FIN, in order, leads

    def segment(self, connection: Pcb, seg: Segment) -> None:
        raise NotImplementedError


class Closed(State):
    """3.10.7.1. A connection in CLOSED is in no table; a segment that still reaches it came in the same turn."""

    code = TcpState.CLOSED

    def segment(self, connection: Pcb, seg: Segment) -> None:
        connection.layer.refuse(seg)


class SynSent(State):
    """3.10.7.3. SYN-SENT STATE"""

    code = TcpState.SYN_SENT

    def segment(self, connection: Pcb, seg: Segment) -> None:
        sender = connection.sender
        flags = seg.flags
        acceptable = False
        # First, check the ACK bit.
        if flags & ACK:
            ack = unwrap(seg.ack, sender.snd_una)
            if ack <= sender.iss or ack > sender.snd_max:
                connection.layer.refuse(seg)  # a reset, unless the segment is one
                return
            acceptable = True
            if connection.timestamps and seg.options.timestamps and not echo_plausible(connection, seg):
                # RFC 7323 section 5.3 is for synchronized states; Linux also drops a SYN|ACK that echoes nonsense.
                connection.layer.refuse(seg)
                return
        # Second, check the RST bit. (RFC 5961 section 3.2: only with an acceptable ACK.)
        if flags & RST:
            if acceptable:
                connection.fail(errno.ECONNREFUSED)
            return
        # Third, security: not in this stack. Fourth, check the SYN bit.
        if not flags & SYN:
            return
        peer_syn(connection, seg.seq, seg.options, ecn=agreed(seg, connection.layer.config.ecn))
        receiver = connection.receiver
        receiver.rcv_adv = receiver.rcv_nxt + min(receiver.space, 65535)  # what our SYN has promised
        if acceptable:
            sender.handshake_done(seg.window, shift=0)  # RFC 7323 section 2.2: the window of a SYN is never scaled
            if connection.fastopen is not None:
                connection.fastopen.answered(connection, seg, ack)
            connection.enter(TcpState.ESTABLISHED)
            receiver.owe_ack()
        else:
            # Simultaneous open (figure 8): SYN|ACK.
            connection.enter(TcpState.SYN_RECEIVED)
            send_syn(connection)
        # Text or FIN on a SYN could be kept for later; like Linux we let the peer send it again (but for Fast Open).
        connection.schedule()


class Synchronized(State):
    """3.10.7.4. OTHER STATES: the ladder."""

    takes_text = False

    def segment(self, connection: Pcb, seg: Segment) -> None:
        receiver = connection.receiver
        sender = connection.sender
        seg.seq = unwrap(seg.seq, receiver.rcv_nxt)
        seg.ack = unwrap(seg.ack, sender.snd_una)
        if not self.check_sequence(connection, seg):
            return
        if seg.flags & RST:
            self.check_reset(connection, seg)
            return
        if seg.flags & SYN:
            self.check_syn(connection)
            return
        # Fifth, check the ACK field: "if the ACK bit is off, drop the segment and return".
        if not seg.flags & ACK:
            return
        connection.heard()
        if seg.bare:
            receiver.segments += 1
        if connection.ecn is not None:
            connection.ecn.arrived(seg)
        if not self.check_ack(connection, seg):
            return
        # Sixth, check the URG bit.
        if seg.flags & URG or connection.urgent is not None:
            check_urgent(connection, seg)
        if seg.payload or seg.flags & FIN:
            # The state may have changed on the fifth rung, even to CLOSED.
            state = connection.ladder
            if isinstance(state, Synchronized):
                state.text_and_fin(connection, seg)
        connection.schedule()

    # --- first ---------------------------------------------------------------------------------------------------

    def check_sequence(self, connection: Pcb, seg: Segment) -> bool:
        """First, check sequence number; PAWS before it. What is left of `seg` lies inside the window."""
        receiver = connection.receiver
        if connection.timestamps and not seg.flags & RST and not self.check_timestamp(connection, seg):
            return False
        nxt = receiver.rcv_nxt
        window = receiver.rcv_adv - nxt
        seq = seg.seq
        length = seg.length
        if length == 0:
            # The right edge itself counts in, as on Linux: a peer that filled the window sends its ACKs from there.
            acceptable = nxt <= seq <= nxt + window
        elif window == 0:
            # "If the RCV.WND is zero, no segments will be acceptable, but special allowance should be made to accept
            # valid ACKs, URGs, and RSTs": its ACK counts, its text goes.
            if seq != nxt:
                acceptable = False
            else:
                acceptable = True
                seg.payload = seg.payload[:0]
                if not seg.flags & (RST | SYN):
                    seg.flags &= ~FIN
                    receiver.owe_ack()
        else:
            acceptable = seq < nxt + window and seq + length > nxt
        if not acceptable:
            self.unacceptable(connection, seg)
            return False
        if seq < nxt:
            # Trim to the window: the front ...
            cut = nxt - seq - (1 if seg.flags & SYN else 0)
            if cut and seg.payload:
                receiver.dsack = (seq, nxt)
            seg.payload = seg.payload[cut:]
            seg.seq = nxt
            seg.gso_size = 0
            receiver.owe_ack()
        over = seg.end - (nxt + window)
        if over > 0 and length:
            # ... and the end.
            if seg.flags & FIN:
                seg.flags &= ~FIN
                over -= 1
            if over:
                seg.payload = seg.payload[: len(seg.payload) - over]
            receiver.owe_ack()
        options = seg.options
        if options.timestamps is not None and connection.timestamps:
            receiver.note_timestamp(options.timestamps[0], seg.seq)
        return True

    def check_timestamp(self, connection: Pcb, seg: Segment) -> bool:
        """RFC 7323 section 5.3 R1 (PAWS), and section 3.2: no segment without the option once it was agreed on."""
        timestamps = seg.options.timestamps
        if timestamps is None:
            connection.layer.drops.count("no-timestamp")
            return False
        receiver = connection.receiver
        if not older(timestamps[0], receiver.ts_recent):
            return True
        if connection.scheduler.now - receiver.ts_recent_at > PAWS_IDLE:
            return True
        connection.layer.drops.count("paws")
        connection.layer.mib.count(Mib.PAWS_ESTAB)
        if connection.may_answer(seg):
            connection.answer()
        return False

    def unacceptable(self, connection: Pcb, seg: Segment) -> None:
        """ "An acknowledgment should be sent in reply (unless the RST bit is set)"."""
        if seg.payload and seg.seq < connection.receiver.rcv_nxt:
            connection.receiver.dsack = (seg.seq, min(seg.seq + len(seg.payload), connection.receiver.rcv_nxt))
        if not seg.flags & RST and connection.may_answer(seg):
            connection.answer()

    # --- second --------------------------------------------------------------------------------------------------

    def check_reset(self, connection: Pcb, seg: Segment) -> None:
        """Second, check the RST bit: RFC 5961 section 3.2."""
        if seg.seq != connection.receiver.rcv_nxt:
            connection.challenge()
        else:
            self.reset(connection)

    def reset(self, connection: Pcb) -> None:
        connection.fail(errno.ECONNRESET)

    # --- fourth --------------------------------------------------------------------------------------------------

    def check_syn(self, connection: Pcb) -> None:
        """Fourth, check the SYN bit: RFC 5961 section 4.2, a challenge ACK whatever the sequence number.

        In SYN-RECEIVED, too, where RFC 9293 would return a passive open to LISTEN: a blind attacker could.
        """
        connection.challenge()

    # --- fifth ---------------------------------------------------------------------------------------------------

    def check_ack(self, connection: Pcb, seg: Segment) -> bool:
        """Fifth, check the ACK field. False: drop the segment."""
        sender = connection.sender
        ack = seg.ack
        una = sender.snd_una
        # RFC 5961 section 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT
        if ack > sender.snd_max or ack < una - max(sender.max_window, 65535):
            connection.challenge()
            return False
        if ack > una:
            timestamps = seg.options.timestamps
            echo = timestamps[1] if timestamps and connection.timestamps else None
            sender.acknowledge(ack, echo)
            sender.update_window(seg.window, seg.seq, ack)
            if connection.ecn is not None and seg.flags & ECE:
                connection.ecn.echoed(connection, ack - una)
            if seg.options.sack and connection.sack:
                sender.recovery.on_sack(seg.options.sack, ack, echo)
            connection.event = True
            if sender.fin_acked:
                self.fin_acknowledged(connection)
            return True
        if ack == una:
            self.same_ack(connection, seg)
        return True

    def same_ack(self, connection: Pcb, seg: Segment) -> None:
        """SEG.ACK = SND.UNA: a window update, an answer to a probe, or a duplicate ACK (RFC 5681 section 2)."""
        sender = connection.sender
        changed = sender.update_window(seg.window, seg.seq, seg.ack)
        if seg.options.sack and connection.sack:
            timestamps = seg.options.timestamps
            sender.recovery.on_sack(seg.options.sack, seg.ack, timestamps[1] if timestamps else None)
        if sender.snd_una == sender.snd_max or sender.snd_wnd == 0:
            # RFC 9293 section 3.8.6.1: a window may stay closed as long as the peer says so. (Not for ever once the
            # user has gone or has set a time, see `timers`: RFC 6429 section 5.)
            if sender.snd_una == sender.snd_max or not connection.orphan:
                sender.retries = 0
            if changed and sender.snd_wnd:
                sender.backoff = 0
        elif not changed and seg.bare:
            sender.recovery.on_duplicate_ack()

    def fin_acknowledged(self, connection: Pcb) -> None:
        """Our FIN is acknowledged."""

    # --- seventh and eighth --------------------------------------------------------------------------------------

    def text_and_fin(self, connection: Pcb, seg: Segment) -> None:
        """Seventh, process the segment text; eighth, check the FIN bit. `seg` lies inside the window."""
        if not self.takes_text:
            # "This should not occur, since a FIN has been received from the remote side. Ignore the segment text."
            return
        receiver = connection.receiver
        if seg.flags & FIN and receiver.fin_seq is None:
            receiver.fin_seq = seg.seq + len(seg.payload)
        payload = seg.payload
        fin_seq = receiver.fin_seq
        if payload:
            if connection.orphan:
                # RFC 9293 section 3.6.1 (MAY-1), RFC 1122 section 4.2.2.13: nobody will read it: tell the peer.
                connection.abort()
                return
            if connection.read_shut and not self.takes_writes:
                # Both directions shut down by a user who still holds it: the same, and he hears of it (as Linux).
                connection.abort_with(errno.ECONNRESET)
                return
            if fin_seq is not None and seg.seq + len(payload) > fin_seq:
                payload = payload[: max(fin_seq - seg.seq, 0)]  # text behind a FIN cannot be
            if payload and receiver.text(seg.seq, payload, seg.gso_size):
                connection.event = True
        if fin_seq is None:
            return
        if receiver.rcv_nxt == fin_seq:
            receiver.rcv_nxt = fin_seq + 1
            receiver.reassembly.clear()
            if receiver.quick >= 0 or not self.takes_writes:
                receiver.owe_ack()  # else, as Linux: in a conversation the end is answered by an end, usually at once
            connection.event = True
            if self.after_fin is not None:
                connection.enter(self.after_fin)
        elif seg.flags & FIN and not seg.payload:
            receiver.owe_ack()  # out of order


class SynReceived(Synchronized):
    """A simultaneous open; or on its way from LISTEN to ESTABLISHED, whose first half was a `request.Request`."""

    code = TcpState.SYN_RECEIVED

    def reset(self, connection: Pcb) -> None:
        """An active open was refused."""
        connection.fail(errno.ECONNREFUSED)

    def check_ack(self, connection: Pcb, seg: Segment) -> bool:
        sender = connection.sender
        # "If SND.UNA < SEG.ACK =< SND.NXT, then enter ESTABLISHED state"; else a reset.
        if not sender.snd_una < seg.ack <= sender.snd_max:
            connection.layer.refuse(seg)
            return False
        sender.handshake_done(seg.window, shift=0 if seg.flags & SYN else sender.shift)
        connection.enter(TcpState.ESTABLISHED)
        return True


class FastOpened(SynReceived):
    """After a SYN with data that was taken (RFC 7413 section 4.2.2): the user may write already."""

    sends = True
    takes_writes = True

    def unacceptable(self, connection: Pcb, seg: Segment) -> None:
        if seg.is_bare_syn and seg.seq == connection.receiver.irs:
            # The SYN again, with or without its data: our SYN|ACK was lost.
            if connection.may_answer(seg):
                send_syn(connection)
            return
        super().unacceptable(connection, seg)

    def reset(self, connection: Pcb) -> None:
        connection.fail(errno.ECONNRESET)

    def check_ack(self, connection: Pcb, seg: Segment) -> bool:
        listener, connection.listener = connection.listener, None
        if not super().check_ack(connection, seg):
            connection.listener = listener
            return False
        if listener is not None:
            listener.fastopen.completed()
        sender = connection.sender
        if seg.ack > sender.snd_una:
            timestamps = seg.options.timestamps
            sender.acknowledge(seg.ack, timestamps[1] if timestamps and connection.timestamps else None)
        ladder = connection.ladder
        if sender.fin_acked and isinstance(ladder, Synchronized):
            ladder.fin_acknowledged(connection)
        return True


class Established(Synchronized):
    code = TcpState.ESTABLISHED
    sends = True
    takes_writes = True
    takes_text = True
    after_close = TcpState.FIN_WAIT_1
    after_fin = TcpState.CLOSE_WAIT


class FinWait1(Synchronized):
    """Our FIN is queued or sent, not acknowledged."""

    code = TcpState.FIN_WAIT_1
    sends = True
    takes_text = True
    after_fin = TcpState.CLOSING

    def fin_acknowledged(self, connection: Pcb) -> None:
        connection.enter(TcpState.FIN_WAIT_2)


class FinWait2(Synchronized):
    """Our FIN is acknowledged, the peer's not there yet."""

    code = TcpState.FIN_WAIT_2
    takes_text = True
    after_fin = TcpState.TIME_WAIT


class CloseWait(Synchronized):
    """The peer has finished sending, we have not."""

    code = TcpState.CLOSE_WAIT
    sends = True
    takes_writes = True
    after_close = TcpState.LAST_ACK

    def reset(self, connection: Pcb) -> None:
        connection.fail(errno.EPIPE)  # as Linux: what remains to be said is what failed (row TCP-21)


class Closing(Synchronized):
    """Both FINs crossed; ours is not acknowledged."""

    code = TcpState.CLOSING
    sends = True

    def fin_acknowledged(self, connection: Pcb) -> None:
        connection.enter(TcpState.TIME_WAIT)

    def reset(self, connection: Pcb) -> None:
        connection.enter(TcpState.CLOSED)


class LastAck(Synchronized):
    """The peer's FIN is acknowledged, ours is not."""

    code = TcpState.LAST_ACK
    sends = True

    def fin_acknowledged(self, connection: Pcb) -> None:
        connection.enter(TcpState.CLOSED)

    def reset(self, connection: Pcb) -> None:
        connection.enter(TcpState.CLOSED)


#: SYN-RECEIVED with data in the SYN.
FAST_OPENED: Final = FastOpened()
#: In TIME-WAIT segments go to a `timewait.TimeWait`.
STATES: Final[dict[TcpState, State]] = {
    TcpState.CLOSED: Closed(),
    TcpState.TIME_WAIT: Closed(),
    TcpState.SYN_SENT: SynSent(),
    **{cls.code: cls() for cls in (SynReceived, Established, FinWait1, FinWait2, CloseWait, Closing, LastAck)},
}
