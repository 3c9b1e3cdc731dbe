"""What a connection lets go of when it is over: memory, timers, its places in tables, its port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stack.tcp.output import emit
from stack.tcp.transitions import TcpState
from stack.wire.tcp import ACK

if TYPE_CHECKING:
    from stack.tcp.pcb import Pcb


def rest(connection: Pcb) -> None:
    """TIME-WAIT: a small object waits in our place (`timewait`). What was received stays readable."""
    connection.timers.cancel()
    connection.sender.queue.clear()
    connection.sender.flights.clear()
    connection.receiver.reassembly.clear()
    if connection.orphan:
        connection.receiver.queue.clear()
    if connection.layer.time_waits.add(connection):
        connection.layer.forget(connection)
        connection.bound = None
    else:
        if connection.receiver.acks_owed:
            emit(connection, connection.sender.bare_seq, ACK)
        connection.enter(TcpState.CLOSED)


def leave(connection: Pcb) -> None:
    """CLOSED: out of the tables, nothing pending. What was received stays readable unless nobody is there."""
    connection.timers.cancel()
    if connection.sender.marks is not None:
        connection.sender.marks.ended()
    connection.sender.queue.clear()
    connection.sender.flights.clear()
    connection.receiver.reassembly.clear()
    if connection.orphan:
        connection.receiver.queue.clear()
    connection.layer.forget(connection)
    if connection.listener is not None:
        connection.listener.fastopen.failed(connection)
        connection.listener = None
    if connection.bound is not None:
        connection.bound.release()
        connection.bound = None
