"""Which table a packet's route is looked up in: tables by number, and rules in order of priority (ip-rule(8)).

A namespace begins with Linux's rules: 0 looks into `local`, 32766 into `main`, 32767 (IPv4 only) into `default`. What
is local is known without a table here, so the first rule finds nothing and later ones go on. As long as there are no
others, a lookup costs no more than one in `main`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from stack.iface.address import network_of
from stack.ip.route import RouteEntry, RouteKind, RouteTable

if TYPE_CHECKING:
    from stack.iface.interface import Interface

TABLE_DEFAULT: Final = 253
TABLE_MAIN: Final = 254
TABLE_LOCAL: Final = 255

TO_TABLE: Final = 1  # FR_ACT_TO_TBL; the other actions have the numbers of RouteKind
PRIORITY_MAIN: Final = 32766
PRIORITY_DEFAULT: Final = 32767


class Rule:
    """One line of the policy. Selectors of length 0 and "" match everything."""

    __slots__ = (
        "action",
        "dst",
        "dst_len",
        "fwmark",
        "fwmask",
        "invert",
        "oifname",
        "priority",
        "protocol",
        "src",
        "src_len",
        "suppress_prefixlen",
        "table",
        "width",
    )

    def __init__(
        self,
        width: int,
        priority: int,
        table: int,
        *,
        action: int = TO_TABLE,
        src: bytes = b"",
        src_len: int = 0,
        dst: bytes = b"",
        dst_len: int = 0,
        oifname: str = "",
        fwmark: int = 0,
        fwmask: int = 0,
        invert: bool = False,
        suppress_prefixlen: int = -1,
        protocol: int = 2,  # RTPROT_KERNEL
    ) -> None:
        self.width = width  #: of addresses, 4 or 16 bytes
        self.priority = priority
        self.table = table
        self.action = action
        self.src, self.src_len = src, src_len
        self.dst, self.dst_len = dst, dst_len
        self.oifname = oifname
        self.fwmark = fwmark  #: what the sender's mark (SO_MARK) has to be in the bits of `fwmask`
        self.fwmask = fwmask
        self.invert = invert
        self.suppress_prefixlen = suppress_prefixlen  #: routes with prefixes up to this length do not count; -1: all do
        self.protocol = protocol

    def same_as(self, other: Rule) -> bool:
        return self._key() == other._key()

    def _key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in Rule.__slots__ if name != "protocol")

    def matches(self, dst: bytes, src: bytes | None, oif: str, mark: int) -> bool:
        found = (
            (not self.src_len or (src is not None and network_of(src, self.src_len) == self.src))
            and (not self.dst_len or network_of(dst, self.dst_len) == self.dst)
            and (not self.oifname or oif == self.oifname)
            and not (mark ^ self.fwmark) & self.fwmask
        )
        return found is not self.invert


class RoutingPolicy:
    """The tables and rules of one address family. Looks like one `RouteTable` to those who need no more."""

    def __init__(self, width: int, interfaces: dict[int, Interface]) -> None:
        """`interfaces` by index: the namespace's own dict."""
        self._width = width
        self._interfaces = interfaces
        self.main = RouteTable(width)
        self.tables = {TABLE_MAIN: self.main}
        self.rules = [Rule(width, 0, TABLE_LOCAL), Rule(width, PRIORITY_MAIN, TABLE_MAIN)]
        if width == 4:
            self.rules.append(Rule(width, PRIORITY_DEFAULT, TABLE_DEFAULT))
        self._plain = True  # only main counts

    def add(self, entry: RouteEntry) -> bool:
        """Into the entry's table; False if the same line is there already."""
        table = self.tables.get(entry.table)
        if table is None:
            table = self.tables[entry.table] = RouteTable(self._width)
            self._settle()
        return table.add(entry)

    def remove(self, entry: RouteEntry) -> bool:
        """Take out this very entry; False if it is not there."""
        table = self.tables.get(entry.table)
        return table is not None and table.remove(entry)

    def lookup(self, dst: bytes, oif: int = 0, src: bytes | None = None, mark: int = 0) -> RouteEntry | None:
        """The entry for `dst` in the first table that has one and that a rule leads to."""
        if self._plain:
            return self.main.lookup(dst, oif)
        iface = self._interfaces.get(oif)
        name = "" if iface is None else iface.name
        for rule in self.rules:
            if not rule.matches(dst, src, name, mark):
                continue
            if rule.action != TO_TABLE:
                return RouteEntry(bytes(self._width), 0, None, kind=RouteKind(rule.action))
            table = self.tables.get(rule.table)
            entry = None if table is None else table.lookup(dst, oif)
            if entry is not None and entry.prefix_length > rule.suppress_prefixlen:
                return entry
        return None

    def add_rule(self, rule: Rule) -> None:
        """Of equal priorities the newer comes later, as on Linux."""
        self.rules.append(rule)
        self.rules.sort(key=lambda each: each.priority)
        self._settle()

    def remove_rule(self, rule: Rule) -> None:
        self.rules.remove(rule)
        self._settle()

    def free_priority(self) -> int:
        """One before the second rule, as Linux chooses for a rule that names none."""
        return max(self.rules[1].priority - 1, 0) if len(self.rules) > 1 else 0

    def __iter__(self) -> Iterator[RouteEntry]:
        for number in sorted(self.tables):
            yield from self.tables[number]

    def _settle(self) -> None:
        known = [rule for rule in self.rules if rule.table in self.tables or rule.action != TO_TABLE]
        self._plain = len(known) == 1 and known[0].priority == PRIORITY_MAIN and known[0].table == TABLE_MAIN
