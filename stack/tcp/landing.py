"""Bulk data straight into the buffer of who waits for it.

Theory of operation
-------------------
A program that reads a bulk transfer mostly waits in `recv_into`, with nothing queued. It leaves its buffer with the
interface its data comes through, and a device that can (`stack.link.device.LandingDevice`) puts the payload of the next
segments there instead of into memory of its own, from which it would be copied again.

What may land is said by a flow (`stack.tcp.express`) and by all that header prediction asks: the very next bytes, no
new acknowledgment, the same window, inside the buffer and the window promised. So what has landed needs no second look:
it is accounted for as `Pcb.fast` and `Receiver.follow` would, and queued as a view of the user's buffer, in which the
read that follows finds it. Whoever else comes first (another reader, an end of the wait without a read) gets a copy.

All of this is decided anew for each burst, under the Network's lock; what the device takes for another flow, or behind
it, goes the usual way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.tcp.seqnum import MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.link.device import LandingDevice, RxFrame
    from stack.tcp.connection import Connection
    from stack.tcp.express import Flow

#: A read of so many bytes is one of a bulk transfer.
BULK: Final = 32768
#: A buffer smaller than this, bytes, is not worth the trouble: what finds no room in it waits for the next burst, and a
#: burst costs more than copying that much.
GROUND: Final = 262144


class Landing:
    """Of one socket: where its next bulk data may go."""

    __slots__ = ("_connection", "_flow", "_ground")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._flow: Flow | None = None
        self._ground: memoryview | None = None

    def wait(self, ground: memoryview) -> None:
        """Somebody waits to read into `ground`. Who waited so before goes without."""
        connection = self._connection
        flow = connection.flow
        if self._flow is not None and self._flow is not flow:
            self.end()  # it came another way meanwhile
        if len(ground) >= GROUND and flow is not None and flow.iface.lands is not None:
            self._flow = flow
            self._ground = ground
            flow.iface.landing = self

    def end(self) -> None:
        """The wait is over. Idempotent."""
        self._ground = None
        flow, self._flow = self._flow, None
        if flow is not None and flow.iface.landing is self:
            flow.iface.landing = None
        if self._connection.receiver.queue.landed is not None:
            self._connection.receiver.queue.recover()

    def receive(self, device: LandingDevice, budget: int) -> tuple[Sequence[RxFrame], int, int]:
        """As `CoalescingDevice.receive_coalesced`, less what has landed, but that is counted."""
        connection = self._connection
        receiver = connection.receiver
        sender = connection.sender
        flow, ground = self._flow, self._ground
        nxt = receiver.rcv_nxt
        predicted = connection.predicted
        if (
            flow is None
            or ground is None
            or not predicted
            or receiver.queue.length
            or receiver.reassembly.length
            or receiver.fin_seq is not None
            or connection.urgent is not None
            or not flow.valid()
        ):
            return device.receive_coalesced(budget)
        room = min(len(ground), receiver.rcv_adv - nxt)
        wanted = (
            *(flow.head, flow.place, flow.word, sender.raw_window, nxt & MASK, sender.snd_una & MASK),
            *(receiver.ts_recent & MASK, 20 + (predicted >> 2), max(room, 0)),
        )
        burst, count, size, landed = device.receive_landing(budget, wanted, ground)
        frames, segments, length, _, longest, value = landed
        if frames:
            if connection.timestamps and nxt <= receiver.last_ack_sent:
                receiver.ts_recent = value  # RFC 7323 section 4.3 (2)
                receiver.ts_recent_at = connection.scheduler.now
            receiver.queue.land(ground, length)
            receiver.followed(frames, length, segments, longest)
            connection.soft_error = 0
            connection.event = True
            connection.schedule()
        return burst, count, size
