"""Abstract names of Unix sockets: one table per network namespace, one name space per socket type (rows UNX-03, 05)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.scheduler import Randomness
    from stack.unix.endpoint import Endpoint

_AUTOBIND_BITS: Final = 20  # five hexadecimal digits


class AbstractNames:
    """Who is bound to which name. A name is free again when its socket is closed."""

    __slots__ = ("_bound", "_rng")

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng
        self._bound: dict[tuple[int, bytes], Endpoint] = {}

    def find(self, kind: int, name: bytes) -> Endpoint | None:
        """The socket of type `kind` that is bound to `name`, first zero included."""
        return self._bound.get((kind, name))

    def bind(self, kind: int, name: bytes, endpoint: Endpoint) -> None:
        """Raises NetError(EADDRINUSE)."""
        if self._bound.setdefault((kind, name), endpoint) is not endpoint:
            raise NetError(errno.EADDRINUSE)

    def autobind(self, kind: int, endpoint: Endpoint) -> bytes:
        """The first free name of five hexadecimal digits from a random one on. Raises NetError(ENOSPC)."""
        first = self._rng.getrandbits(_AUTOBIND_BITS)
        mask = (1 << _AUTOBIND_BITS) - 1
        for step in range(1 << _AUTOBIND_BITS):
            name = b"\0%05x" % (first + step & mask)
            if (kind, name) not in self._bound:
                self._bound[kind, name] = endpoint
                return name
        raise NetError(errno.ENOSPC, "all automatic names are taken")

    def release(self, kind: int, name: bytes) -> None:
        del self._bound[kind, name]

    def __len__(self) -> int:
        return len(self._bound)
