"""Control messages as the C interface lays them out: what of them fits into a receiver's room (cmsg(3)).

A control message is (level, type, data), as in `socket.sendmsg`. In the buffer of a call each has a header of 16 bytes
(size, level, type) and is padded to 8 bytes. What does not fit is cut as Linux cuts it: the first message that is too
long keeps the bytes there is room for, those behind it are left out, and MSG_CTRUNC tells of it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Final

from stack.errors import NetError
from stack.socket.message import MSG_CTRUNC, Ancillary
from stack.socket.options import SOL_SOCKET

#: sizeof(struct cmsghdr) on 64-bit Linux, and what messages are aligned to, bytes.
HEADER: Final = 16
ALIGNMENT: Final = 8

# Types of level SOL_SOCKET, Linux <linux/socket.h>; those of options have the options' numbers.
SCM_RIGHTS: Final = 1
SCM_CREDENTIALS: Final = 2

_INT: Final = struct.Struct("@i")


def space(length: int) -> int:
    """CMSG_SPACE: what a message with `length` bytes of data takes up."""
    return HEADER + (length + ALIGNMENT - 1 & ~(ALIGNMENT - 1))


def fit(messages: Sequence[Ancillary], room: int) -> tuple[list[Ancillary], int]:
    """What of `messages` comes out of a control buffer of `room` bytes, and the flags that go with it."""
    kept: list[Ancillary] = []
    for level, kind, data in messages:
        if room < HEADER:
            return kept, MSG_CTRUNC
        if room < HEADER + len(data):
            kept.append((level, kind, data[: room - HEADER]))
            return kept, MSG_CTRUNC
        kept.append((level, kind, data))
        room -= space(len(data))
    return kept, 0


def integer(data: bytes) -> int:
    """The C int of a message. Raises NetError(EINVAL) for any other length."""
    if len(data) != _INT.size:
        raise NetError(errno.EINVAL)
    return int(_INT.unpack(data)[0])


def of_int(level: int, kind: int, value: int) -> Ancillary:
    """A message with one C int."""
    return level, kind, _INT.pack(value)


def refuse_unknown(messages: Sequence[Ancillary]) -> None:
    """What sockets without control messages of their own do: others' levels pass unseen, unknown ones of SOL_SOCKET
    are NetError(EINVAL).
    """
    for level, kind, _ in messages:
        if level == SOL_SOCKET and kind not in (SCM_RIGHTS, SCM_CREDENTIALS):
            raise NetError(errno.EINVAL)
