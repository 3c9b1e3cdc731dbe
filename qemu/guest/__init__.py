"""Boots real Linux guests under QEMU and serves their devices from this process.

* `Guest`: a guest as a context manager; `GuestConfig`: everything that can be chosen about it.
* `Lan`: a network for several guests, with a gateway node.
* `Result`, `Command`: what a command left behind; a command that is running.
* The errors: `GuestError` and its kinds.

Names are imported when they are first used: the pytest plugin is loaded by projects that boot no guest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qemu.guest.command import Command
    from qemu.guest.config import GuestConfig
    from qemu.guest.errors import (
        AgentError,
        CommandFailedError,
        CommandTimeoutError,
        GuestDiedError,
        GuestError,
        GuestTimeoutError,
        KernelTroubleError,
        MissingError,
        OutputLimitError,
        SetupError,
        ShareDiedError,
    )
    from qemu.guest.guest import Guest
    from qemu.guest.lan import Lan
    from qemu.guest.result import Result
    from qemu.guest.share import Share

_MODULES = {
    "Command": "command",
    "Guest": "guest",
    "GuestConfig": "config",
    "Lan": "lan",
    "Result": "result",
    "Share": "share",
}

__all__ = [
    "AgentError",
    "Command",
    "CommandFailedError",
    "CommandTimeoutError",
    "Guest",
    "GuestConfig",
    "GuestDiedError",
    "GuestError",
    "GuestTimeoutError",
    "KernelTroubleError",
    "Lan",
    "MissingError",
    "OutputLimitError",
    "Result",
    "SetupError",
    "Share",
    "ShareDiedError",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value
