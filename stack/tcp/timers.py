"""The three timers of a connection and what their expiry means.

* `retransmit`: RTO, SYN and SYN|ACK retransmission, window probes, the cork's ceiling: see `sender`.
* `delayed_ack`: an ACK that waited for company.
* `lifetime`: whatever depends on nothing happening: keep-alive (RFC 9293 section 3.8.4), an orphan in FIN-WAIT-2.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.tcp.handshake import send_syn
from stack.tcp.rtt import RTO_MIN
from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb


ORPHAN_RETRIES: Final = 8  # Linux tcp_orphan_retries(), when the sysctl is 0


def lasting(retries: int, ceiling: int) -> int:
    """ns that so many retransmissions take, the first after 200 ms, each twice the time before, `ceiling` at most.

    Counts are limits of time (Linux tcp_model_timeout): a path with an RTO of seconds does not get more patience.
    """
    doublings = max(ceiling // RTO_MIN, 1).bit_length() - 1
    if retries <= doublings:
        return ((2 << retries) - 1) * RTO_MIN
    return ((2 << doublings) - 1) * RTO_MIN + (retries - doublings) * ceiling


class Timers:
    __slots__ = ("connection", "delayed_ack", "kept", "lifetime", "probes", "retransmit")

    def __init__(self, connection: Pcb) -> None:
        self.connection = connection
        scheduler = connection.scheduler
        self.retransmit = scheduler.timer(self._on_retransmit)
        self.delayed_ack = scheduler.timer(self._on_delayed_ack)
        self.lifetime = scheduler.timer(self._on_lifetime)
        self.probes = 0  #: keep-alive probes unanswered
        self.kept = 0  #: keepalive_idle as `watch` last saw it, 0 without keep-alive

    def cancel(self) -> None:
        """For good: the connection is CLOSED.

        A cancelled timer's heap entry stays until it comes up, two hours for a keep-alive. It must not keep the
        connection and its buffers that long, hence the callbacks go.
        """
        for timer in (self.retransmit, self.delayed_ack, self.lifetime):
            timer.cancel()
            timer.callback = _nothing

    def _on_delayed_ack(self) -> None:
        self.connection.receiver.owe_ack()
        self.connection.schedule()

    def _on_retransmit(self) -> None:
        connection = self.connection
        connection.usual = False
        sender = connection.sender
        over = self._out_of_patience()
        if connection.fastopen is not None:
            connection.fastopen.timed_out(connection, over=over)
        if over:
            connection.fail(connection.soft_error or errno.ETIMEDOUT)
            return
        if connection.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            sender.failed(connection.scheduler.now)
            send_syn(connection)
        elif sender.snd_una < sender.snd_max:
            sender.timed_out()
        elif sender.queue.end > sender.snd_nxt:
            sender.probe()

    def _out_of_patience(self) -> bool:
        """R2 of RFC 9293 section 3.8.3, or the end of the user's time (RFC 5482). Passes R1 on its way."""
        connection = self.connection
        sender = connection.sender
        options = connection.options
        config = connection.layer.config
        state = connection.state
        if state is TcpState.SYN_RECEIVED and connection.listener is not None:
            return sender.retries >= (options.synack_retries or config.synack_retries + 1)  # as Linux: one more
        waited = connection.scheduler.now - sender.stalled_at if sender.backoff else 0
        patience = options.user_timeout
        if patience and waited >= patience:
            return True
        if state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            return sender.retries >= options.syn_retries
        ceiling = options.rto_max
        outstanding = sender.snd_una < sender.snd_max
        most = config.retries
        if connection.orphan:
            alive = sender.rtt.backed_off(sender.backoff) < ceiling
            most = self._orphan_retries(alive=alive)
            if not outstanding and not alive and sender.backoff >= most:
                return True  # also if the peer answers: its window has been closed for too long
        if not outstanding:
            return sender.retries >= most
        if not sender.retries:
            return False
        if waited >= lasting(config.retries1, ceiling):
            connection.doubt_path()
        return not patience and waited >= lasting(most, ceiling)

    def _orphan_retries(self, *, alive: bool) -> int:
        connection = self.connection
        most = connection.layer.config.orphan_retries
        if connection.soft_error and not alive:
            return 0
        return ORPHAN_RETRIES if not most and alive else most

    # --- lifetime -----------------------------------------------------------------------------------------------

    def options_changed(self) -> None:
        """Keep-alive may have been switched, or its first time changed; the others are looked at when they matter."""
        options = self.connection.options
        if self.kept != (options.keepalive_idle if options.keepalive else 0):
            self.watch()

    def watch(self) -> None:
        """Arm `lifetime` for the state the connection is in now."""
        connection = self.connection
        state = connection.state
        options = connection.options
        timer = self.lifetime
        self.kept = options.keepalive_idle if options.keepalive else 0
        if state is TcpState.FIN_WAIT_2 and connection.orphan:
            timer.arm_in(max(options.fin_timeout, 0))
        elif options.keepalive and connection.connected:
            timer.arm(connection.last_heard + options.keepalive_idle)
        else:
            timer.cancel()

    def _on_lifetime(self) -> None:
        connection = self.connection
        state = connection.state
        if state is TcpState.FIN_WAIT_2 and connection.orphan:
            connection.enter(TcpState.CLOSED)
        elif connection.options.keepalive and connection.connected:
            self._keep_alive()

    def _keep_alive(self) -> None:
        connection = self.connection
        options = connection.options
        sender = connection.sender
        now = connection.scheduler.now
        due = connection.last_heard + options.keepalive_idle
        if sender.snd_una < sender.snd_max or sender.queue.end > sender.snd_nxt:
            # Something waits for the peer anyhow: retransmission or window probes find out whether it lives.
            self.probes = 0
            self.lifetime.arm_in(options.keepalive_idle)
        elif now < due:
            self.probes = 0
            self.lifetime.arm(due)
        elif self.probes and self._keep_alive_over(now):
            connection.abort_with(connection.soft_error or errno.ETIMEDOUT)
        else:
            self.probes += 1
            connection.send_probe()
            self.lifetime.arm_in(options.keepalive_interval)

    def _keep_alive_over(self, now: int) -> bool:
        connection = self.connection
        options = connection.options
        if options.user_timeout:
            return now - connection.last_heard >= options.user_timeout
        return self.probes >= options.keepalive_count


def _nothing() -> None:
    """What the timers of a connection in CLOSED do."""
