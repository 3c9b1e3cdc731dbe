"""Several messages with one call: what sendmmsg and recvmmsg do (rows MM-01, MM-02).

All messages of a batch that need no waiting are handled in one attempt, under one hold of the Network's lock, and what
they queue leaves in one burst. Errors count as on Linux: the first one ends the batch; it is raised if nothing was done
before it, else the messages done so far are the result. What recvmmsg met after its first message becomes the socket's
pending error, what sendmmsg met is lost.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from stack.errors import NetError
from stack.socket.message import MSG_DONTWAIT, MSG_WAITFORONE, Ancillary, Received
from stack.socket.phase import AGAIN, Again, Timeout
from stack.socket.poll import IN, OUT

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.base import Socket

#: UIO_MAXIOV: messages of one call, more are left out without an error.
MAX_MESSAGES: Final = 1024

#: Data, control messages, and the user's address (None: the peer).
Outgoing: TypeAlias = tuple["Buffer", Sequence[Ancillary], object]


def send_many(socket: Socket, messages: Sequence[Outgoing], flags: int, timeout: Timeout) -> list[int]:
    """Send `messages`; returns the bytes sent of each, for as many as were sent. Raises OSError if that is none."""
    ready = [
        (data, ancillary, None if address is None else socket.address_in(address))
        for data, ancillary, address in messages[:MAX_MESSAGES]
    ]
    sent: list[int] = []

    def attempt() -> Again | None:
        several: list[int] | None = []
        while len(sent) < len(ready):
            if several is not None and (several := socket.phase.send_several(ready, len(sent), flags)):
                sent.extend(several)
                continue
            data, ancillary, address = ready[len(sent)]
            taken = socket.phase.send_message(data, ancillary, flags, address)
            if taken is AGAIN:
                return AGAIN
            sent.append(taken)
        return None

    try:
        socket.block_on(OUT, _patience(flags, timeout), attempt)
    except OSError:
        if not sent:
            raise
    return sent


def receive_many(
    socket: Socket, count: int, size: int, room: int, flags: int, timeout: Timeout, limit: int | None
) -> list[Received]:
    """Receive up to `count` messages of up to `size` bytes each, with control messages of up to `room` bytes.

    `limit`, ns, is looked at after each message only, as Linux does. Raises OSError if there is no message.
    """
    if limit is not None and limit < 0:
        raise OSError(errno.EINVAL, "a negative time")
    count = min(count, MAX_MESSAGES)
    plain = flags & ~MSG_WAITFORONE
    if timeout == 0:
        flags |= MSG_DONTWAIT
    scheduler = socket.host.netns.ip.scheduler
    got: list[Received] = []
    begin: list[int] = []

    def attempt() -> Again | None:
        if not begin:
            begin.append(scheduler.now)
        while len(got) < count:
            if limit is None and (several := socket.phase.receive_several(count - len(got), size, plain)):
                got.extend(several)
                continue
            try:
                message = socket.take_message(size, plain, room)
            except NetError as error:
                if not got:
                    raise
                socket.phase.put_error(error.errno)
                return None
            if message is AGAIN:
                return None if got and flags & MSG_WAITFORONE else AGAIN
            address = None if message.address is None else socket.address_out(message.address)
            got.append((message.data, message.ancillary, message.flags, address))
            if limit is not None and scheduler.now - begin[0] >= limit:
                break
        return None

    try:
        socket.block_on(IN, _patience(flags, timeout), attempt)
    except OSError:
        if not got:
            raise
    return got


def _patience(flags: int, timeout: Timeout) -> Timeout:
    return 0 if timeout is None and flags & MSG_DONTWAIT else timeout
