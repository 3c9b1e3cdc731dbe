"""What an interface may be called."""

from __future__ import annotations

from typing import Final

MAX_NAME_LENGTH: Final = 15  # IFNAMSIZ less the final zero


def check_name(name: str) -> None:
    """Raises ValueError for what is no interface name."""
    if (
        not name
        or name in (".", "..")
        or len(name.encode()) > MAX_NAME_LENGTH
        or "/" in name
        or ":" in name
        or not name.isprintable()
        or " " in name
    ):
        raise ValueError(f"not an interface name (1..{MAX_NAME_LENGTH} characters, no blank, '/' or ':'): {name!r}")
