"""`installed(stack)`: for a while the process's `socket` module makes a Stack's sockets.

Modules that said `import socket` long ago hold the module object, so its attributes are replaced and put back, not the
module itself. It is process-wide by nature: every thread sees it. Nested and overlapping uses are counted; the latest
that is still open is in force, and when the last one ends the module is as it was. AF_UNIX and socketpair() stay the
kernel's throughout; code of this project that needs kernel sockets has bound them at import.
"""

from __future__ import annotations

import socket as _kernel
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from stack.core import Stack

S = TypeVar("S", bound="Stack")

#: Open uses, oldest first.
_uses: list[tuple[object, dict[str, Any]]] = []
#: What the module had under these names before the first use.
_originals: dict[str, Any] = {}

_MODULE: Final = vars(_kernel)


@contextmanager
def installed(stack: S) -> Iterator[S]:
    """See the module's text. Yields the Stack."""
    names = {name: stack.socket.__dict__[name] for name in stack.socket.own_names}
    use = (object(), names)
    if not _originals:
        _originals.update((name, _MODULE[name]) for name in names)
    _uses.append(use)
    _apply()
    try:
        yield stack
    finally:
        _uses.remove(use)
        _apply()


def _apply() -> None:
    """Put the latest use in force. Another thread may be at it too: whoever comes last has seen the latest."""
    while True:
        latest = _uses[-1] if _uses else None
        _MODULE.update(_originals if latest is None else latest[1])
        if latest is (_uses[-1] if _uses else None):
            return
