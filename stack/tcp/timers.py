"""The three timers of a connection and what their expiry means.

* `retransmit`: RTO, SYN and SYN|ACK retransmission, window probes, the cork's ceiling: see `sender`.
* `delayed_ack`: an ACK that waited for company.
* `lifetime`: whatever depends on nothing happening: keep-alive (RFC 9293 section 3.8.4), the end of TIME-WAIT, an
  orphan in FIN-WAIT-2.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb


class Timers:
    __slots__ = ("connection", "delayed_ack", "lifetime", "probes", "retransmit")

    def __init__(self, connection: Pcb) -> None:
        self.connection = connection
        scheduler = connection.scheduler
        self.retransmit = scheduler.timer(self._on_retransmit)
        self.delayed_ack = scheduler.timer(self._on_delayed_ack)
        self.lifetime = scheduler.timer(self._on_lifetime)
        self.probes = 0  #: keep-alive probes unanswered

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
        sender = connection.sender
        if self._out_of_patience():
            connection.fail(connection.soft_error or errno.ETIMEDOUT)
            return
        if connection.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            sender.retries += 1
            sender.backoff += 1
            connection.send_syn()
        elif sender.snd_una < sender.snd_max:
            sender.timed_out()
        elif sender.queue.end > sender.snd_nxt:
            sender.probe()

    def _out_of_patience(self) -> bool:
        """R2 of RFC 9293 section 3.8.3: too many expiries in a row, or too long (RFC 5482)."""
        connection = self.connection
        sender = connection.sender
        config = connection.layer.config
        if connection.state is TcpState.SYN_RECEIVED and connection.listener is not None:
            return sender.retries >= config.synack_retries
        patience = connection.options.user_timeout
        if patience and sender.retries and connection.scheduler.now - sender.progress_at >= patience:
            return True
        if connection.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            return sender.retries >= connection.options.syn_retries
        if connection.orphan:
            return sender.retries >= config.orphan_retries
        return not patience and sender.retries >= config.retries

    # --- lifetime -----------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Arm `lifetime` for the state the connection is in now."""
        connection = self.connection
        state = connection.state
        options = connection.options
        timer = self.lifetime
        if state is TcpState.TIME_WAIT:
            timer.arm_in(connection.layer.config.time_wait)
        elif state is TcpState.FIN_WAIT_2 and connection.orphan:
            timer.arm_in(max(options.fin_timeout, 0))
        elif options.keepalive and connection.connected:
            timer.arm(connection.last_heard + options.keepalive_idle)
        else:
            timer.cancel()

    def _on_lifetime(self) -> None:
        connection = self.connection
        state = connection.state
        if state is TcpState.TIME_WAIT or (state is TcpState.FIN_WAIT_2 and connection.orphan):
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
