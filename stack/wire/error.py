"""The one exception of every wire parser."""

from __future__ import annotations


class WireError(ValueError):
    """Bytes that are not the message they should be. ``reason`` says why, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
