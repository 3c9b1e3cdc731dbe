"""Parameter types that several commands share. The functions are click types: text in, value out, BadParameter."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

import click

from qemu.guest.errors import SetupError
from qemu.guest.share import Share, parse_share

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY: Final = click.Path(exists=True, file_okay=False, path_type=Path)
OUTPUT: Final = click.Path(dir_okay=False, writable=True, path_type=Path)
SOCKET: Final = click.Path(path_type=Path)

_UNITS: Final = {"": 1, "M": 1, "MIB": 1, "G": 1024, "GIB": 1024}


def memory(value: str | int) -> int:
    """512, 512M or 2G as mebibytes."""
    text = str(value).strip()
    digits = text.rstrip("MmGgIiBb")
    factor = _UNITS.get(text[len(digits) :].upper())
    if not (digits.isascii() and digits.isdigit()) or factor is None:
        raise click.BadParameter(f"{value!r} is no memory size: 512, 512M or 2G are")
    return int(digits) * factor


def share(value: str) -> Share:
    """HOSTPATH[:GUESTPATH][:rw][:HOW]."""
    try:
        return parse_share(value)
    except SetupError as error:
        raise click.BadParameter(str(error)) from error


def variable(value: str) -> tuple[str, str]:
    """KEY=VALUE."""
    key, equals, text = value.partition("=")
    if not key or not equals:
        raise click.BadParameter(f"{value!r} is not KEY=VALUE")
    return key, text


def cidr(value: str) -> str:
    """An address with its prefix, as 10.0.2.2/24."""
    try:
        interface = ipaddress.IPv4Interface(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no IPv4 address with a prefix: 10.0.2.2/24 is") from error
    if "/" not in value or interface.network.prefixlen > 29:
        raise click.BadParameter(f"{value!r} needs a prefix that leaves room for guests: 10.0.2.2/24 does")
    return str(interface)
