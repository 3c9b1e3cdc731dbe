"""The interpreter's own Lib/socket.py, run over another `_socket`.

Theory of operation
-------------------
CPython's `socket` is two modules: `_socket` in C, and Lib/socket.py above it, which adds the class `socket` (makefile,
accept, dup, sendfile, repr), the enums, create_server, create_connection, and what later versions will add. Running
that very file over our `_socket` gives a Stack a module that cannot differ from the interpreter's in any of this.

The file is run in a namespace whose ``__import__`` answers two names itself:

* ``_socket``: ours;
* ``enum``: its ``_convert_`` would make new enums, by the way in the namespace of the standard module, which it finds
  in `sys.modules` by name. AF_INET must be the same object everywhere, so here it takes over those that exist.

Two methods of the class are replaced afterwards, because they ask for a descriptor of the kernel's: `__repr__`, which
must not make one that nobody wanted, nor take a lock in a finaliser; and the half of `sendfile` that is os.sendfile.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import socket as _kernel
from collections.abc import Callable
from enum import IntEnum, IntFlag
from functools import cache
from io import UnsupportedOperation
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.socket.base import os_error

if TYPE_CHECKING:
    from stack.socket.api import StackSocket

_SENDFILE_BLOCK: Final = 256 * 1024  # bytes read and sent at a time


@cache
def _code() -> CodeType:
    spec = importlib.util.find_spec("socket")
    code = spec.loader.get_code("socket") if spec is not None and spec.loader is not None else None  # type: ignore[attr-defined]  # SourceLoader has it
    if code is None:
        raise ImportError("this interpreter has no source of its module socket")
    assert isinstance(code, CodeType)
    return code


def run(namespace: dict[str, Any], low: ModuleType) -> None:
    """Run Lib/socket.py in `namespace`, with `low` as its `_socket`."""

    def convert(name: str, module: str, chosen: Any) -> None:
        kind = getattr(_kernel, name)
        namespace[name] = kind
        namespace.update((each, getattr(_kernel, each)) for each in kind.__members__)

    class Taken:
        _convert_ = staticmethod(convert)

    enum = ModuleType("enum")
    enum.__dict__.update(IntEnum=Taken, IntFlag=Taken)
    ours = {"_socket": low, "enum": enum}

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        return ours[name] if name in ours else builtins.__import__(name, *args, **kwargs)

    namespace.update(
        __name__="socket", __file__=_kernel.__file__, __builtins__={**vars(builtins), "__import__": import_}
    )
    exec(_code(), namespace)  # noqa: S102 - the standard library's own source, which is the point
    namespace.update(IntEnum=IntEnum, IntFlag=IntFlag)
    _share_sentinel(namespace)
    made = namespace["socket"]
    made.__repr__ = _without_side_effects(made.__repr__)
    made._sendfile_use_sendfile = _sendfile(namespace["_GiveupOnSendfile"])  # noqa: SLF001 - see the module's text


def _share_sentinel(namespace: dict[str, Any]) -> None:
    """http.client and others hand on the standard module's own object for "no time-out given"."""
    theirs, ours = vars(_kernel)["_GLOBAL_DEFAULT_TIMEOUT"], namespace["_GLOBAL_DEFAULT_TIMEOUT"]
    namespace["_GLOBAL_DEFAULT_TIMEOUT"] = theirs
    for value in namespace.values():
        if isinstance(value, FunctionType) and ours in (value.__defaults__ or ()):
            value.__defaults__ = tuple(theirs if each is ours else each for each in value.__defaults__ or ())


def _sendfile(give_up: type[Exception]) -> Callable[..., int]:
    """socket._sendfile_use_sendfile; `give_up` is raised for what is no file of the system's."""

    def _sendfile_use_sendfile(self: Any, file: Any, offset: int = 0, count: int | None = None) -> int:
        self._check_sendfile_params(file, offset, count)
        try:
            fd = file.fileno()
            size = os.fstat(fd).st_size
        except (AttributeError, UnsupportedOperation, OSError) as error:
            raise give_up(error) from None
        if not size:
            return 0
        if self.gettimeout() == 0:
            raise ValueError("non-blocking sockets are not supported")
        sent = 0
        try:
            while count is None or sent < count:
                limit = _SENDFILE_BLOCK if count is None else min(_SENDFILE_BLOCK, count - sent)
                block = os.pread(fd, limit, offset + sent)
                if not block:
                    break
                sent += self.send(block)
            return sent
        finally:
            if sent and hasattr(file, "seek"):
                file.seek(offset + sent)

    _sendfile_use_sendfile.__annotations__.clear()  # CPython's has none, and programs look at signatures
    return _sendfile_use_sendfile


def _without_side_effects(original: Callable[[Any], str]) -> Callable[[StackSocket], str]:
    def shown(self: StackSocket) -> str:
        return original(_Shown(self))

    return shown


class _Shown:
    """A socket as its repr sees it."""

    def __init__(self, shown: StackSocket) -> None:
        self._shown = shown
        self._sock = shown._sock  # noqa: SLF001 - one of us
        self._closed = getattr(shown, "_closed", False)
        self.family, self.type, self.proto = shown.family, shown.type, shown.proto

    @property  # type: ignore[misc]  # asked, never assigned
    def __class__(self) -> Any:
        return type(self._shown)

    def fileno(self) -> int:
        end = self._shown._end  # noqa: SLF001 - one of us
        return -1 if end is None else end.fileno()

    def getsockname(self) -> object:
        return self._ask(self._sock.phase.local_address)

    def getpeername(self) -> object:
        return self._ask(self._sock.phase.peer_address)

    def _ask(self, question: Callable[[], Any]) -> object:
        try:
            return self._sock.address_out(question())
        except NetError as error:
            raise os_error(error) from None
