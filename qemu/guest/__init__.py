"""Boots real Linux guests under QEMU and serves their devices from this process.

* `Guest`: a guest as a context manager; `GuestConfig`: everything that can be chosen about it.
* `Result`, `Command`: what a command left behind; a command that is running.
* The errors: `GuestError` and its kinds.
"""

from __future__ import annotations

from qemu.guest.command import Command
from qemu.guest.config import GuestConfig
from qemu.guest.errors import (
    AgentError,
    CommandFailedError,
    CommandTimeoutError,
    GuestDiedError,
    GuestError,
    GuestTimeoutError,
    MissingError,
    SetupError,
)
from qemu.guest.guest import Guest
from qemu.guest.image import Share
from qemu.guest.result import Result

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
    "MissingError",
    "Result",
    "SetupError",
    "Share",
]
