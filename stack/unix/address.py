"""Addresses of Unix sockets, inside: `bytes`, as in `sun_path` less the final zero of a path.

``b""`` is no name at all, one that begins with a zero byte is abstract (every byte of it counts), any other is a path.
"""

from __future__ import annotations

from typing import Final

#: sizeof(sun_path), bytes. A path of that length has no final zero, which Linux forgives and CPython does not allow.
SUN_PATH: Final = 108

UNNAMED: Final = b""


def is_abstract(address: bytes) -> bool:
    return address[:1] == b"\0"


def is_path(address: bytes) -> bool:
    return bool(address) and address[0] != 0
