"""`SocketModule`: a Stack's stand-in for `import socket`.

It is the interpreter's own Lib/socket.py (`stack.socket.lib`) over a `_socket` of the Stack (`stack.socket.surface`),
so it has every public name of the standard module, with the same signatures, exceptions and constants.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Final

from stack.socket import lib, tls
from stack.socket.surface import Surface

if TYPE_CHECKING:
    from stack.core import Stack


class SocketModule(ModuleType):
    """`Stack.socket`. Functions and classes are those a user of `socket` expects."""

    def __init__(self, stack: Stack) -> None:
        super().__init__("socket")
        self.stack = stack
        #: What our `_socket` does differently from the C module.
        self.surface: Final = Surface(stack)
        lib.run(self.__dict__, self.surface.module())
        self.surface.tls_class = tls.make_class(self.__dict__["socket"])
        tls.hook()

    def __repr__(self) -> str:
        return f"<module 'socket' of {self.stack.name!r}>"
