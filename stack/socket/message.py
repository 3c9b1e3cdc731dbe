"""Flags of send and recv calls, and what a receive call brings back (section 1.3 of the socket semantics; MM rows)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

# Linux <linux/socket.h>. In and out flags share one number space.
MSG_OOB: Final = 0x1
MSG_PEEK: Final = 0x2
MSG_DONTROUTE: Final = 0x4
MSG_CTRUNC: Final = 0x8
MSG_PROBE: Final = 0x10
MSG_TRUNC: Final = 0x20
MSG_DONTWAIT: Final = 0x40
MSG_EOR: Final = 0x80
MSG_WAITALL: Final = 0x100
MSG_CONFIRM: Final = 0x800
MSG_ERRQUEUE: Final = 0x2000
MSG_NOSIGNAL: Final = 0x4000
MSG_MORE: Final = 0x8000
MSG_WAITFORONE: Final = 0x10000
MSG_ZEROCOPY: Final = 0x4000000
MSG_FASTOPEN: Final = 0x20000000
MSG_CMSG_CLOEXEC: Final = 0x40000000

#: (level, type, data) as in `socket.recvmsg`.
Ancillary = tuple[int, int, bytes]


@dataclass(slots=True)
class Message:
    """What one receive call took: bytes, where from (None on streams, row MM-04), out flags, ancillary data.

    ``length`` is the record's true length, which exceeds len(data) when it was cut (MSG_TRUNC).
    """

    data: bytes
    address: Any = None
    flags: int = 0
    length: int = 0
    ancillary: list[Ancillary] = field(default_factory=list)


#: What recvmsg answers: data, control messages, flags, the sender's address as users get it.
Received: TypeAlias = tuple[bytes, list[Ancillary], int, Any]
