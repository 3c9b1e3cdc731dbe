"""Abstract names of Unix sockets: one table per network namespace, one name space per socket type (rows UNX-03, 05)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.scheduler import Randomness
    from stack.unix.endpoint import Endpoint

AUTOBIND_DIGITS: Final = 5  # hexadecimal


class AbstractNames:
    """Who is bound to which name. A name is free again when its socket is closed."""

    __slots__ = ("_bound", "_digits", "_rng")

    def __init__(self, rng: Randomness, digits: int = AUTOBIND_DIGITS) -> None:
        """Automatic names have so many digits."""
        self._rng = rng
        self._digits = digits
        self._bound: dict[tuple[int, bytes], Endpoint] = {}

    def find(self, kind: int, name: bytes) -> Endpoint | None:
        """The socket of type `kind` that is bound to `name`, first zero included."""
        return self._bound.get((kind, name))

    def bind(self, kind: int, name: bytes, endpoint: Endpoint) -> None:
        """Raises NetError(EADDRINUSE)."""
        if self._bound.setdefault((kind, name), endpoint) is not endpoint:
            raise NetError(errno.EADDRINUSE)

    def autobind(self, kind: int, endpoint: Endpoint) -> bytes:
        """The first free name of hexadecimal digits from a random one on. Raises NetError(ENOSPC)."""
        bits = 4 * self._digits
        first = self._rng.getrandbits(bits)
        for step in range(1 << bits):
            name = b"\0%0*x" % (self._digits, first + step & (1 << bits) - 1)
            if (kind, name) not in self._bound:
                self._bound[kind, name] = endpoint
                return name
        raise NetError(errno.ENOSPC, "all automatic names are taken")

    def release(self, kind: int, name: bytes) -> None:
        del self._bound[kind, name]

    def __len__(self) -> int:
        return len(self._bound)
