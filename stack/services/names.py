"""Names of a LAN: the node's own, those set by hand, those clients got with their leases.

`Names` answers two questions, which addresses has a name and which names has an address, from sources asked in that
order, and the first that knows decides. So no client can take the gateway's name, or one that was set, by asking DHCP
for it. Nothing is copied: a source is asked anew each time, and a change is seen by the next query.

Names are compared in lower case, without a final dot. With a domain, ``gw`` and ``gw.<domain>`` are the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Final, Protocol

from stack.iface.address import SCOPE_LINK
from stack.iface.interface import Interface
from stack.netns import NetNamespace
from stack.uts_ns import NONE, UtsNamespace

#: Always the one that is asked (RFC 6761 section 6.3).
LOCALHOST: Final = "localhost"
MAX_LABEL: Final = 63  # bytes, RFC 1035 section 2.3.4
_LOOPBACK: Final = (bytes((127, 0, 0, 1)), bytes(15) + b"\x01")


class NameSource(Protocol):
    """Where names come from. `name` is lower case, without domain; addresses are 4 or 16 bytes."""

    def addresses(self, name: str) -> Iterable[bytes]: ...
    def names(self, address: bytes) -> Iterable[str]: ...


class OwnNames:
    """The node's host name, as it is now, and `aliases` for it; its addresses, those of `interface` first."""

    def __init__(
        self, netns: NetNamespace, interface: Interface, uts: UtsNamespace | None, aliases: Iterable[str] = ()
    ) -> None:
        self._netns = netns
        self._interface = interface
        self._uts = uts
        self._aliases = tuple(alias.lower() for alias in aliases)

    def addresses(self, name: str) -> Iterable[bytes]:
        if name not in self._own():
            return ()
        others = [each for each in self._netns.interfaces.values() if each is not self._interface]
        return [
            each.address
            for interface in (self._interface, *others)
            if not interface.loopback
            for each in interface.addresses
            if each.scope != SCOPE_LINK and each.usable
        ]

    def names(self, address: bytes) -> Iterable[str]:
        own = self._own()
        return own[:1] if own and address in self.addresses(own[0]) else ()

    def _own(self) -> tuple[str, ...]:
        hostname = self._uts.nodename.lower() if self._uts is not None else ""
        return (hostname, *self._aliases) if hostname not in ("", NONE) else self._aliases


class StaticNames:
    """Names set by hand: `hosts` gives what there is now, name to addresses as text. What is no address is left out."""

    def __init__(self, hosts: Callable[[], Mapping[str, Iterable[str]]]) -> None:
        self._hosts = hosts

    def addresses(self, name: str) -> Iterable[bytes]:
        return [packed for text, addresses in self._items() if text == name for packed in _packed(addresses)]

    def names(self, address: bytes) -> Iterable[str]:
        return [text for text, addresses in self._items() if address in _packed(addresses)]

    def above(self, name: str) -> bool:
        """Whether there are names below `name`: it exists then, though it has no address (RFC 8020)."""
        return any(text.endswith("." + name) for text, _ in self._items())

    def _items(self) -> Iterable[tuple[str, Iterable[str]]]:
        # Whoever sets names does so from another thread: the copy is made in one step.
        return [(text.lower().rstrip("."), addresses) for text, addresses in tuple(self._hosts().items())]


def label_of(hostname: str) -> str:
    """What a client that calls itself `hostname` is called here: the first label, in lower case.

    Empty for what is no host name (RFC 1123 section 2.1): letters, digits and hyphens, not at the ends, at most 63.
    """
    label = hostname.partition(".")[0].lower()
    plain = label.isascii() and label.replace("-", "a").isalnum() and len(label) <= MAX_LABEL
    return label if plain and label[0] != "-" and label[-1] != "-" and label != LOCALHOST else ""


def _packed(addresses: Iterable[str]) -> list[bytes]:
    found = []
    for text in tuple(addresses):
        try:
            found.append(ip_address(text).packed)
        except ValueError:
            continue
    return found


class Names:
    """Everything that has a name on one link. `domain` is asked each time; None: there is none.

    `leases` are sources of equal rank, asked last: a DHCP service adds itself with `add_leases`.
    """

    def __init__(
        self,
        own: NameSource,
        static: StaticNames | None = None,
        *,
        domain: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._own = own
        self._static = static or StaticNames(dict)
        self._domain = domain
        self.leases: list[NameSource] = []

    @property
    def domain(self) -> str:
        """The LAN's domain in lower case, empty if it has none."""
        return (self._domain() or "").lower().strip(".")

    def lookup(self, name: str) -> list[bytes]:
        """The addresses of `name` (lower case, no final dot), without repetition; none for a name that is not known."""
        if name == LOCALHOST or name.endswith("." + LOCALHOST):
            return list(_LOOPBACK)
        short = self.relative(name)
        for candidate in dict.fromkeys((name, short)):
            for source in (self._own, self._static):
                found = list(dict.fromkeys(source.addresses(candidate)))
                if found:
                    return found
        if "." in short:
            return []
        return list(dict.fromkeys(address for source in self.leases for address in source.addresses(short)))

    def reverse(self, address: bytes) -> list[str]:
        """The names of `address`, with the domain if there is one and they have none of their own."""
        if address in _LOOPBACK:
            return [LOCALHOST]
        for source in (self._own, self._static, *self.leases):
            found = list(dict.fromkeys(source.names(address)))
            if found:
                return [self.qualified(name) for name in found]
        return []

    def exists(self, name: str) -> bool:
        """Whether a name without addresses exists all the same: as the domain, or above names that were set."""
        return name in ("", self.domain) or self.domain.endswith("." + name) or self._static.above(name)

    def relative(self, name: str) -> str:
        """`name` without the domain, if it is in it."""
        domain = self.domain
        return name[: -len(domain) - 1] if domain and name.endswith("." + domain) else name

    def qualified(self, name: str) -> str:
        """`name` with the domain, unless it has one."""
        domain = self.domain
        return f"{name}.{domain}" if domain and "." not in name else name
