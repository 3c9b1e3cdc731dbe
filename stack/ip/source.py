"""Which of our addresses to send from: RFC 6724 5 for IPv6, Linux's inet_select_addr for IPv4.

IPv6: every pair of candidates is compared rule by rule. Each rule asks one thing of one candidate, so the comparison is
that of tuples, one member a rule, larger is better:

    1   it is the destination itself
    2   appropriate scope: the smallest that is not smaller than the destination's, else the largest
    3   not deprecated
    4   home address: there is no Mobile IPv6 here
    5   on the outgoing interface (5.5 is left out, as by Linux)
    6   the label of the policy table that the destination has
    7   temporary or public, as `SourceSelection.prefer_temporary` says (Linux: use_tempaddr, public at first)
    8   the longest prefix in common with the destination, no longer than the candidate's own prefix

Addresses not yet known to be unique are no candidates (RFC 4862 5.4).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from stack.iface.address import (
    IFA_DADFAILED,
    IFA_DEPRECATED,
    IFA_TEMPORARY,
    IFA_TENTATIVE,
    SCOPE_LINK,
    SCOPE_UNIVERSE,
    parse_prefix,
)
from stack.wire import ipv6

if TYPE_CHECKING:
    from stack.iface.address import InterfaceAddress
    from stack.iface.interface import Interface

#: Multicast scope values, also those of unicast addresses (RFC 6724 3.1, RFC 7346).
SCOPE6_LINK: Final = 2
SCOPE6_SITE: Final = 5
SCOPE6_GLOBAL: Final = 14
_UNUSABLE: Final = IFA_TENTATIVE | IFA_DADFAILED


class Policy(NamedTuple):
    """One line of the policy table."""

    prefix: bytes
    length: int
    precedence: int
    label: int


def _policy(text: str, precedence: int, label: int) -> Policy:
    prefix, length = parse_prefix(text)
    return Policy(prefix, length, precedence, label)


#: RFC 6724 2.1, longest prefixes first.
DEFAULT_POLICIES: Final = (
    _policy("::1/128", 50, 0),
    _policy("::ffff:0:0/96", 35, 4),
    _policy("::/96", 1, 3),
    _policy("2001::/32", 5, 5),
    _policy("2002::/16", 30, 2),
    _policy("3ffe::/16", 1, 12),
    _policy("fec0::/10", 1, 11),
    _policy("fc00::/7", 3, 13),
    _policy("::/0", 40, 1),
)


def scope6(address: bytes) -> int:
    """How far an IPv6 address reaches (RFC 6724 3.1)."""
    if address[0] == 0xFF:
        return address[1] & 0x0F
    if ipv6.is_link_local(address) or address == ipv6.LOOPBACK:
        return SCOPE6_LINK
    if address[0] == 0xFE and address[1] & 0xC0 == 0xC0:  # fec0::/10, deprecated by RFC 3879
        return SCOPE6_SITE
    return SCOPE6_GLOBAL


def common_bits(one: bytes, other: bytes) -> int:
    """Length of the longest prefix both share, bits."""
    difference = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return len(one) * 8 - difference.bit_length()


class SourceSelection:
    """The rules, and what of them can be configured."""

    def __init__(self) -> None:
        self.policies: tuple[Policy, ...] = DEFAULT_POLICIES  #: longest prefixes first
        self.prefer_temporary = False

    def policy(self, address: bytes) -> Policy:
        """The line of the table for an IPv6 address; the table must have one for ::/0."""
        return next(each for each in self.policies if common_bits(each.prefix, address) >= each.length)

    def select6(
        self, dst: bytes, iface: Interface, interfaces: Iterable[Interface], *, temporary: bool | None = None
    ) -> bytes | None:
        """The source for `dst`, packets to it leaving through `iface`; None if there is no candidate.

        `temporary` is what a socket prefers (RFC 5014), None: what is configured.

        Link-local destinations and groups are talked to from an address of their own link only (RFC 6724 4).
        """
        if temporary is None:
            temporary = self.prefer_temporary
        only_iface = dst[0] == 0xFF or scope6(dst) == SCOPE6_LINK
        best: bytes | None = None
        best_rank: tuple[int, ...] = ()
        for candidate in (iface,) if only_iface else interfaces:
            if candidate.loopback and not iface.loopback:
                continue
            for each in candidate.addresses:
                if len(each.address) == 16 and not each.flags & _UNUSABLE:
                    rank = self._rank(each, dst, candidate is iface, temporary)
                    if best is None or rank > best_rank:
                        best, best_rank = each.address, rank
        return best

    def _rank(self, candidate: InterfaceAddress, dst: bytes, on_link: bool, temporary: bool) -> tuple[int, ...]:
        address, flags = candidate.address, candidate.flags
        wanted, scope = scope6(dst), scope6(address)
        return (
            address == dst,
            -scope if scope >= wanted else scope - 100,
            not flags & IFA_DEPRECATED,
            on_link,
            self.policy(address).label == self.policy(dst).label,
            bool(flags & IFA_TEMPORARY) is temporary,
            min(common_bits(address, dst), candidate.prefix_length),
        )


def select4(target: bytes, iface: Interface, interfaces: Iterable[Interface], *, on_link: bool) -> bytes | None:
    """The first address of `iface`, better one on the subnet of `target` (the next hop); else of any other interface.

    `on_link`: the destination is the next hop itself, so that a link-local address will do.
    """
    widest = SCOPE_LINK if on_link or iface.loopback else SCOPE_UNIVERSE
    first: bytes | None = None
    for each in iface.addresses:
        if len(each.address) == 4 and (each.scope <= widest or iface.loopback) and not each.flags & _UNUSABLE:
            if each.covers(target):
                return each.address
            if first is None:
                first = each.address
    if first is not None:
        return first
    for other in interfaces:
        for each in other.addresses:
            if len(each.address) == 4 and each.scope < SCOPE_LINK and not each.flags & _UNUSABLE:
                return each.address
    return None
