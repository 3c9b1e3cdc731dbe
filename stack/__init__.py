"""A network stack in Python: `Network` joins everything, a `Stack` is one node of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stack.core import Stack as Stack
    from stack.credentials import Credentials as Credentials
    from stack.network import Network as Network

__all__ = ["Credentials", "Network", "Stack"]


def __getattr__(name: str) -> Any:
    """Import on demand: whoever needs only `stack.wire` does not pay for sockets, and threads come with `Network`."""
    if name == "Credentials":
        from stack.credentials import Credentials

        return Credentials
    if name in __all__:
        from stack import core, network, runner  # noqa: F401 - importing the runner makes Networks waitable

        return {"Network": network.Network, "Stack": core.Stack}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
