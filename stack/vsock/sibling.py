"""Guests of a common group talk to each other: two connections of ours, joined.

Theory of operation
-------------------
A guest connects to another guest's CID (with VMADDR_FLAG_TO_HOST, or its kernel would not ask us). Each of the two sees
a peer with the other's CID and port, and both peers are this host: what one guest writes is received here under credit
we granted, and sent on under the credit the other granted. So neither can make us hold more than one receive buffer for
each connection, a guest that does not read stops only the one that writes to it, and both transmit rings are always
drained: there is no queue between guests that could fill up and lock both (vhost-device-vsock 384).

The request is answered when the other guest has answered: RESPONSE, or RST. Then bytes (messages, for SEQPACKET) move,
and ends of stream with them, each direction by itself. A connection that is over ends the other one after what was
received from it has been passed on.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.vsock.seqpacket import SeqpacketConnection
from stack.wire.vsock import MAX_PAYLOAD

if TYPE_CHECKING:
    from stack.scheduler import Scheduler
    from stack.vsock.connection import VsockConnection
    from stack.vsock.guest import GuestPort
    from stack.vsock.transport import VsockRx

BUFFER: Final = 256 << 10  # bytes for each direction, as a Linux guest has
TIMEOUT: Final = 2_000_000_000  # ns; the guest that asks gives up after as long


def connect_sibling(port: GuestPort, sibling: GuestPort, packet: VsockRx) -> bool:
    """The guest of `port` has sent this REQUEST to the guest of `sibling`: pass it on.

    False: too many connections, or no memory for the buffers.
    """
    source_cid, _, source_port, target_port, kind, _, _, buf_alloc, fwd_cnt, _ = packet
    if sibling.full or (near := port.requested(packet, BUFFER)) is None:
        return False
    near.keep_waiting()
    local, remote = (source_cid, source_port), (sibling.guest_cid, target_port)
    taken = sibling.siblings.get((source_cid, source_port, target_port))
    if taken is not None or not near.credit.hear(buf_alloc, fwd_cnt) or not port.engine.reserve(BUFFER):
        # The other half of an earlier connection with these very addresses is not over yet, for one.
        near.abort()
        return True
    Relay(port.scheduler, near, sibling.connect(local, remote, buffer=BUFFER, timeout=TIMEOUT, kind=kind))
    return True


class Relay:
    """Joins the connection of the guest that asked, `near`, and that of the guest that was asked, `far`."""

    __slots__ = ("_answered", "_scheduler", "far", "near")

    def __init__(self, scheduler: Scheduler, near: VsockConnection, far: VsockConnection) -> None:
        self._scheduler = scheduler
        self._answered = False
        self.near = near
        self.far = far
        near.on_event = far.on_event = self._due

    def _due(self) -> None:
        self._scheduler.defer(self._run)

    def _run(self) -> None:
        near, far = self.near, self.far
        if not self._answered:
            if near.closed or far.closed:
                near.abort()
                far.abort()
                return
            if not far.connected:
                return
            self._answered = True
            near.answer()
        _pass_on(near, far)
        _pass_on(far, near)
        for this, other in ((near, far), (far, near)):
            if this.closed and not this.has_data:
                if this.error:
                    other.abort()  # not an orderly end
                elif not other.closed:
                    other.close()


def _pass_on(source: VsockConnection, target: VsockConnection) -> None:
    """What can move from one to the other, and the end of it."""
    try:
        if source.has_data and not target.can_write:
            raise NetError(errno.EPIPE)
        if isinstance(source, SeqpacketConnection) and isinstance(target, SeqpacketConnection):
            _move_messages(source, target)
        else:
            _move_bytes(source, target)
    except NetError as error:
        if error.errno == errno.EMSGSIZE:  # the target's buffer is too small for what the source was allowed to send
            source.abort()
            target.abort()
        else:  # the target wants no more: nobody will ever read the rest
            source.forget_received()
            source.shutdown_read()
        return
    if source.eof and not source.has_data:
        target.shutdown_write()


def _move_bytes(source: VsockConnection, target: VsockConnection) -> None:
    while source.has_data:
        room = target.credit.free
        if not room:
            target.ask_credit()
            return
        target.write(source.take(min(room, MAX_PAYLOAD)))


def _move_messages(source: SeqpacketConnection, target: SeqpacketConnection) -> None:
    while source.has_data:
        length = source.next_length
        if not target.room_for(length):
            return
        message = source.receive_message(length)
        if message is not None:
            target.send_message(message[0], end_of_record=message[2])
