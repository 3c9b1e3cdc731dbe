"""Addresses of Unix sockets as CPython takes and gives them (section 1.2 of the socket semantics)."""

from __future__ import annotations

import os

from stack.unix.address import SUN_PATH, is_abstract


def address_in(address: object) -> bytes:
    """str or bytes-like. Raises OSError for what is too long, TypeError for what is no address."""
    if isinstance(address, str):
        raw = os.fsencode(address)
    else:
        try:
            view = memoryview(address)  # type: ignore[arg-type]  # that it might be no buffer is the question
        except TypeError:
            raise TypeError(f"a bytes-like object is required, not {type(address).__name__!r}") from None
        raw = bytes(view)
    if not raw or is_abstract(raw):
        if len(raw) > SUN_PATH:
            raise OSError("AF_UNIX path too long")
        return raw
    if len(raw) >= SUN_PATH:
        raise OSError("AF_UNIX path too long")
    return raw.split(b"\0", 1)[0]  # the kernel reads a C string


def address_out(address: bytes | None) -> str | bytes | None:
    """Abstract names are bytes, paths (and no name) str; None is that no address came with the message."""
    if address is None or is_abstract(address):
        return address
    return os.fsdecode(address)
