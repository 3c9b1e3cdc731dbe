"""Addresses of an interface, and CIDR text to bytes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

#: rtnetlink scopes (RT_SCOPE_*).
SCOPE_UNIVERSE: Final = 0
SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254

#: IFA_F_* of <linux/if_addr.h>.
IFA_TEMPORARY: Final = 0x01  # RFC 8981
IFA_DADFAILED: Final = 0x08  # somebody else has it
IFA_DEPRECATED: Final = 0x20  # its preferred lifetime is over: not for new conversations
IFA_TENTATIVE: Final = 0x40  # not yet known to be unique
IFA_PERMANENT: Final = 0x80  # configured by hand, without a lifetime

IFA_F_SECONDARY: Final = 0x01
IFA_F_NOPREFIXROUTE: Final = 0x200  # no route to its subnet comes along


def parse_address(text: str) -> bytes:
    """4 or 16 bytes of an address without prefix or zone. Raises ValueError naming `text`."""
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise ValueError(f"not an IPv4 or IPv6 address: {text!r}") from None


def parse_prefix(text: str) -> tuple[bytes, int]:
    """(address bytes, prefix length) of ``10.0.2.2/24``; host bits may be set; without "/" the prefix is whole.

    Raises ValueError naming `text`.
    """
    address, slash, length = text.partition("/")
    packed = parse_address(address)
    bits = len(packed) * 8
    if not slash:
        return packed, bits
    if not (length.isascii() and length.isdigit()) or int(length) > bits:
        raise ValueError(f"not an address with a prefix length of 0..{bits} (like 10.0.2.2/24): {text!r}")
    return packed, int(length)


def network_of(address: bytes, prefix_length: int) -> bytes:
    """`address` with its host bits cleared."""
    bits = len(address) * 8
    host = bits - prefix_length
    return (int.from_bytes(address, "big") >> host << host).to_bytes(len(address), "big")


def broadcast_of(address: bytes, prefix_length: int) -> bytes | None:
    """The directed broadcast of an IPv4 subnet (IF-13); None for IPv6 and for /31 and /32 (RFC 3021)."""
    if len(address) != 4 or prefix_length > 30:
        return None
    host_mask = (1 << 32 - prefix_length) - 1
    return (int.from_bytes(address, "big") | host_mask).to_bytes(4, "big")


@dataclass(slots=True, eq=False)
class InterfaceAddress:
    """One address of one interface."""

    address: bytes  #: 4 or 16 bytes
    prefix_length: int
    broadcast: bytes | None = None  #: IPv4 only
    scope: int = SCOPE_UNIVERSE
    flags: int = IFA_PERMANENT
    preferred_until: int | None = None  #: ns of the Scheduler's clock; None: for ever
    valid_until: int | None = None
    autoconfigured: bool = False  #: from a router's prefix (RFC 4862 5.5)
    label: str = ""  #: IFA_LABEL; "" is the interface's name
    shows_broadcast: bool = True  #: a broadcast address was asked for; there is one in any case
    protocol: int = 0  #: who made it (IFAPROT_*): 1 the loopback's own, 3 link-local
    created: int = 0  #: ns of the scheduler
    changed: int = 0

    @classmethod
    def parse(cls, text: str) -> InterfaceAddress:
        """From ``10.0.2.2/24`` or ``fd00::2/64``. Raises ValueError naming `text` if no host can have that address."""
        address, prefix_length = parse_prefix(text)
        parsed = ipaddress.ip_address(address)
        if parsed.is_multicast or parsed.is_unspecified or address == b"\xff" * 4:
            raise ValueError(f"not an address that an interface can have: {text!r}")
        scope = SCOPE_HOST if parsed.is_loopback else SCOPE_LINK if parsed.is_link_local else SCOPE_UNIVERSE
        broadcast = None if parsed.is_loopback else broadcast_of(address, prefix_length)
        return cls(address, prefix_length, broadcast, scope)

    @property
    def network(self) -> bytes:
        return network_of(self.address, self.prefix_length)

    @property
    def secondary(self) -> bool:
        """IPv4: another address of the same subnet was there first."""
        return bool(self.flags & IFA_F_SECONDARY)

    @property
    def usable(self) -> bool:
        """Ours for certain: no detection of duplicates under way or lost."""
        return not self.flags & (IFA_TENTATIVE | IFA_DADFAILED)

    def covers(self, address: bytes) -> bool:
        """Is `address` on this subnet?"""
        return len(address) == len(self.address) and network_of(address, self.prefix_length) == self.network

    def __str__(self) -> str:
        return f"{ipaddress.ip_address(self.address)}/{self.prefix_length}"
