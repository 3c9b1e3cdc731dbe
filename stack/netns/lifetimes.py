"""Addresses that do not last: deprecated when their preferred time is over, gone when their valid time is.

Of addresses that were given a lifetime by hand (IFA_CACHEINFO); those a router's prefix gave are `stack.ip.autoconf`'s.
One timer for all of a namespace, armed for what ends next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stack.iface.address import IFA_DEPRECATED, IFA_PERMANENT, InterfaceAddress
from stack.iface.changes import ChangeKind
from stack.scheduler import NS_PER_S

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns.namespace import NetNamespace


class Lifetimes:
    """Of one namespace. Lock held by the caller, always."""

    def __init__(self, netns: NetNamespace) -> None:
        self._netns = netns
        self._timer = netns.scheduler.timer(self._expire)

    def set(self, address: InterfaceAddress, preferred: int | None, valid: int | None) -> None:
        """Seconds from now, None: for ever. Call `watch` once the address is an interface's."""
        now = self._netns.scheduler.now
        address.preferred_until = None if preferred is None else now + preferred * NS_PER_S
        address.valid_until = None if valid is None else now + valid * NS_PER_S
        flags = address.flags & ~(IFA_PERMANENT | IFA_DEPRECATED)
        if valid is None:
            flags |= IFA_PERMANENT
        if preferred == 0:
            flags |= IFA_DEPRECATED
        address.flags = flags

    def watch(self) -> None:
        """See what ends next."""
        ends = [end for _, address in self._timed() for end in _ends(address)]
        if ends:
            self._timer.arm(min(ends))
        else:
            self._timer.cancel()

    def _timed(self) -> Iterator[tuple[Interface, InterfaceAddress]]:
        for iface in self._netns.interfaces.values():
            for address in iface.addresses:
                if not address.autoconfigured and (address.valid_until or address.preferred_until) is not None:
                    yield iface, address

    def _expire(self) -> None:
        netns = self._netns
        now = netns.scheduler.now
        for iface, address in list(self._timed()):
            if not iface.has_address(address.address):
                continue  # a secondary, gone with its primary
            if address.valid_until is not None and address.valid_until <= now:
                netns.remove_address(iface, address.address)
            elif (
                address.preferred_until is not None
                and address.preferred_until <= now
                and not address.flags & IFA_DEPRECATED
            ):
                address.flags |= IFA_DEPRECATED
                netns.ip.invalidate()
                netns.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index)
        self.watch()


def _ends(address: InterfaceAddress) -> Iterator[int]:
    if address.valid_until is not None:
        yield address.valid_until
    if address.preferred_until is not None and not address.flags & IFA_DEPRECATED:
        yield address.preferred_until
