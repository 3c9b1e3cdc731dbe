"""Which client has which IPv4 address, and until when: the book a DHCP server keeps.

Theory of operation
-------------------
A client is its hardware address: on one segment of virtual machines that is what tells them apart, and it stays the
same from firmware over initramfs to the booted system, whose client identifiers all differ.

An address is in one of these states: free; *offered*, held for a short time for a client that may ask for it; *bound*
until its lease ends; *expired*, free again but kept for its last client as long as nobody else needs it (RFC 2131
section 4.3.1); *declined*, found in use by someone else and left alone for a while. One `Lease` object stands for all
of them but the first. There is at most one per address and one per client, so that memory is bounded by the pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from stack.scheduler import NS_PER_S

OFFER_TIME: Final = 60 * NS_PER_S  # a client that does not take an offer within a minute has gone
MAX_POOL: Final = 1 << 16  # addresses; beyond a /16 on one segment something else is wrong


@dataclass(slots=True)
class Lease:
    """One client's hold on one address. Times are the Scheduler's nanoseconds."""

    address: bytes
    client: bytes  #: hardware address; empty for a declined address
    expires: int
    bound: bool = False  #: acknowledged, not just offered
    static: bool = False
    hostname: str = ""  #: what the client calls itself (option 12)
    name: str = ""  #: what it is called in the LAN, lower case; empty if that is no name, or taken


class LeaseTable:
    """The pool ``first..last`` (addresses of 4 or 16 bytes, both included) and the `static` addresses by client.

    Addresses in `reserved` and those of static leases are never given to anybody else. Raises `ValueError` for an
    empty or oversized pool.
    """

    def __init__(
        self, first: bytes, last: bytes, *, static: Mapping[bytes, bytes], reserved: frozenset[bytes] = frozenset()
    ) -> None:
        self._width = len(first)
        self._low, self._high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
        if not 0 <= self._high - self._low < MAX_POOL:
            raise ValueError(f"a DHCP pool holds 1 to {MAX_POOL} addresses, not {self._high - self._low + 1}")
        self._static = dict(static)
        self._pins: dict[bytes, bytes] = {}
        self._taken = frozenset(static.values()) | reserved
        self._by_address: dict[bytes, Lease] = {}
        self._by_client: dict[bytes, Lease] = {}
        self._by_name: dict[str, Lease] = {}
        self._next = self._low

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_address.values())

    def of(self, client: bytes) -> Lease | None:
        """The lease of `client`, live or expired."""
        return self._by_client.get(client)

    def at(self, address: bytes) -> Lease | None:
        """The lease of `address`, live or expired."""
        return self._by_address.get(address)

    def named(self, name: str) -> Lease | None:
        """The lease of the client called `name`, live or expired."""
        return self._by_name.get(name)

    def pin(self, client: bytes, address: bytes, now: int) -> None:
        """Make a reserved `address` the static one of `client`, unless another client it was pinned to still has it."""
        holder = self._pins.get(address)
        if holder == client:
            return
        lease = self._by_address.get(address)
        if holder is not None and lease is not None and lease.expires > now:
            return
        if holder is not None:
            del self._static[holder]
        self._pins[address] = client
        self._static[client] = address

    def choose(self, client: bytes, wanted: bytes | None, now: int) -> bytes | None:
        """An address to offer `client` (RFC 2131 section 4.3.1), or None if there is none left.

        In this order: its static one, the one it has or had, the one it asks for, one nobody ever had, the one that
        has been unused for longest.
        """
        if client in self._static:
            return self._static[client]
        lease = self._by_client.get(client)
        if lease is not None and self.available(lease.address, client, now):
            return lease.address
        if wanted is not None and self.available(wanted, client, now):
            return wanted
        while self._next <= self._high:
            address = self._next.to_bytes(self._width, "big")
            if address not in self._taken and address not in self._by_address:
                return address
            self._next += 1
        # All were given once. The book keeps its entries in the order they were last written.
        for lease in self._by_address.values():
            if lease.expires <= now and lease.address not in self._taken:
                return lease.address
        return None

    def available(self, address: bytes, client: bytes, now: int) -> bool:
        """Whether `client` may have `address`."""
        static = self._static.get(client)
        if static is not None:
            return address == static
        if address in self._taken or not self._low <= int.from_bytes(address, "big") <= self._high:
            return False
        lease = self._by_address.get(address)
        return lease is None or lease.client == client or lease.expires <= now

    def hold(
        self, client: bytes, address: bytes, expires: int, now: int, *, bound: bool, hostname: str = "", name: str = ""
    ) -> Lease:
        """Note that `client` has `address` until `expires`, in place of whatever either was noted with before.

        `name` is its if no other client has it: who came first keeps it for as long as its lease lives.
        """
        previous = self._by_client.pop(client, None)
        if previous is not None:
            del self._by_address[previous.address]
            self._unname(previous)
            if previous.address != address and previous.address not in self._taken:
                self._next = min(self._next, int.from_bytes(previous.address, "big"))
        displaced = self._by_address.pop(address, None)
        if displaced is not None and displaced.client:
            del self._by_client[displaced.client]
            self._unname(displaced)
        lease = Lease(address, client, expires, bound, client in self._static, hostname)
        self._by_address[address] = self._by_client[client] = lease
        holder = self._by_name.get(name)
        if name and (holder is None or holder.expires <= now):
            if holder is not None:
                holder.name = ""
            lease.name = name
            self._by_name[name] = lease
        return lease

    def _unname(self, lease: Lease) -> None:
        if lease.name:
            del self._by_name[lease.name]
            lease.name = ""

    def release(self, lease: Lease, now: int) -> None:
        """End `lease` now; the address stays its client's for as long as nobody else needs it."""
        lease.expires = now
        lease.bound = False
        self._by_address[lease.address] = self._by_address.pop(lease.address)

    def decline(self, address: bytes, until: int) -> None:
        """Someone else uses `address`: nobody gets it until then."""
        lease = self._by_address.pop(address, None)
        if lease is not None and lease.client:
            del self._by_client[lease.client]
            self._unname(lease)
        self._by_address[address] = Lease(address, b"", until)
