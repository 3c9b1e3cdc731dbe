"""`NetlinkError`: a request refused, with what an extended ack says about it (row RT-E8)."""

from __future__ import annotations

import os

from stack.wire.error import WireError


class NetlinkError(WireError):
    """``errno``, and for an extended ack: ``told`` ("" says nothing), ``offset`` of the offending attribute in bytes
    from the start of the message (None: it is about none), ``missing``: the type of one that should be there."""

    def __init__(self, errno: int, message: str = "", *, offset: int | None = None, missing: int | None = None) -> None:
        super().__init__(message or os.strerror(errno))
        self.errno = errno
        self.told = message
        self.offset = offset
        self.missing = missing
