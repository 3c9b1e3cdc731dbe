"""The addresses of a network namespace's interfaces, what follows from them, and the records of their changes."""

from __future__ import annotations

import errno

from stack.errors import DropReason, NetError
from stack.iface.address import IFA_F_SECONDARY, InterfaceAddress
from stack.iface.changes import ChangeKind
from stack.iface.interface import Interface
from stack.ip.route import RouteEntry, RouteKind
from stack.netns.implied import broadcast_route, connected_route, implied, multicast_route
from stack.netns.marks import IMPLIED, SILENT
from stack.netns.routes import Routes
from stack.scheduler import Scheduler


class Addresses(Routes):
    """The part of a `NetNamespace` that is about addresses."""

    scheduler: Scheduler

    def add_address(self, iface: Interface, text: str, *, detect_duplicates: bool = False) -> InterfaceAddress:
        """Give `iface` an address like ``10.0.2.2/24``. Raises ValueError naming `text`, NetError(EEXIST).

        `detect_duplicates`: the address is tentative, and not used, until nobody objected (RFC 4862, RFC 5227), which
        takes a second or two, or up to seven for IPv4. Without, it is ours at once.
        """
        address = InterfaceAddress.parse(text)
        self.give_address(iface, address, detect_duplicates=detect_duplicates)
        return address

    def give_address(self, iface: Interface, address: InterfaceAddress, *, detect_duplicates: bool = False) -> None:
        """As `add_address`, of an address made already. Raises NetError(EEXIST)."""
        if iface.has_address(address.address):
            raise NetError(errno.EEXIST, f"{iface.name} has {address} already")
        if len(address.address) == 4 and self._primary(iface, address) is not None:
            address.flags |= IFA_F_SECONDARY
        address.created = address.changed = self.scheduler.now
        iface.addresses.insert(_place(iface, address), address)
        if detect_duplicates and not iface.loopback:
            if len(address.address) == 4:
                iface.arp.conflicts.on_done = self._tested
                iface.arp.conflicts.start(address)
            else:
                self.ip.icmp6.ndp.duplicates.start(iface, address)
        self.ip.refresh()
        # Linux tells of an IPv6 prefix before its address, and of the address before an IPv4 one.
        if len(address.address) == 16:
            self._add_connected(iface, address)
            self.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index)
            self._tell_route(ChangeKind.NEW_ROUTE, self._local_route(iface, address))
        else:
            self.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index)
            self._tell_route(ChangeKind.NEW_ROUTE, self._local_route(iface, address))
            self._add_connected(iface, address)
            self._tell_route(ChangeKind.NEW_ROUTE, broadcast_route(iface, address))
        if iface.up and not iface.loopback and len(address.address) == 4 and address.usable:
            iface.arp.announce(address.address)

    def _tested(self, iface: Interface, address: InterfaceAddress, ours: bool) -> None:
        """Detection of duplicates is over; an autoconfigured address that is not ours alone goes."""
        self.ip.refresh()
        if not ours:
            self.ip.drops.count(DropReason.DUPLICATE_ADDRESS)
        if not ours and address.autoconfigured:
            self.remove_address(iface, address.address)
        else:
            self.changes.append(ChangeKind.NEW_ADDRESS, address, iface.index)

    def _add_connected(self, iface: Interface, address: InterfaceAddress) -> None:
        """The route to an address's subnet, if the link is up."""
        connected = connected_route(iface, address) if iface.up else None
        if connected is not None and self.ip.add_route(connected):
            self.changes.append(ChangeKind.NEW_ROUTE, connected, iface.index, IMPLIED)

    def remove_address(self, iface: Interface, address: bytes) -> None:
        """Raises NetError(EADDRNOTAVAIL) if `iface` does not have it."""
        found = next((each for each in iface.addresses if each.address == address), None)
        if found is None:
            raise NetError(errno.EADDRNOTAVAIL)
        if len(address) == 4 and not found.secondary:  # its secondaries go with it, and before it
            for each in [one for one in iface.addresses if one.secondary and self._primary(iface, one) is found]:
                self.remove_address(iface, each.address)
        local, broadcast = self._local_route(iface, found), broadcast_route(iface, found)
        iface.addresses.remove(found)
        iface.arp.conflicts.stop(address)
        self.ip.icmp6.ndp.duplicates.stop(iface, address)
        self.ip.refresh()
        self.changes.append(ChangeKind.DEL_ADDRESS, found, iface.index)
        connected = connected_route(iface, found)
        still_needed = any(
            each.network == found.network and each.prefix_length == found.prefix_length for each in iface.addresses
        )
        if connected is not None and not still_needed:
            for entry in list(self._table(connected.network)):
                if entry.same_as(connected):
                    self.ip.remove_route(entry)
                    self.changes.append(ChangeKind.DEL_ROUTE, entry, iface.index, IMPLIED)
        self._tell_route(ChangeKind.DEL_ROUTE, broadcast)
        self._tell_route(ChangeKind.DEL_ROUTE, local)
        if len(address) == 4:
            self._orphaned_routes(iface, address)

    def _orphaned_routes(self, iface: Interface, address: bytes) -> None:
        """Routes from an IPv4 address that is gone go too, and with a link's last address all routes through it."""
        last = not any(len(each.address) == 4 for each in iface.addresses)
        for entry in list(self.ip.routes4):
            if entry.src == address or (last and entry.uses(iface)):
                self.ip.remove_route(entry)
                self.changes.append(ChangeKind.DEL_ROUTE, entry, iface.index, SILENT)

    def _primary(self, iface: Interface, address: InterfaceAddress) -> InterfaceAddress | None:
        """The address of the same IPv4 subnet, prefix length included, that was there before `address`."""
        for each in iface.addresses:
            if each is address:
                return None
            if each.network == address.network and each.prefix_length == address.prefix_length and not each.secondary:
                return each
        return None

    # --- routes that follow from addresses: the table `local` -------------------------------------------------------

    @property
    def local_routes(self) -> list[RouteEntry]:
        """What Linux has in its table 255, both families: nothing is looked up here, `IpLayer.local` knows."""
        entries: list[RouteEntry] = []
        for iface in self._by_name.values():
            for address in iface.addresses:
                entries.append(self._local_route(iface, address))
                broadcast = broadcast_route(iface, address)
                if broadcast is not None:
                    entries.append(broadcast)
                if iface.loopback and len(address.address) == 4 and iface.up:
                    entries.append(implied(address.network, address.prefix_length, iface, RouteKind.LOCAL, address))
            if iface.up and not iface.loopback:
                entries.append(multicast_route(iface))
        return entries

    def _local_route(self, iface: Interface, address: InterfaceAddress) -> RouteEntry:
        primary = self._primary(iface, address) or address
        return implied(address.address, len(address.address) * 8, iface, RouteKind.LOCAL, primary)


def _place(iface: Interface, address: InterfaceAddress) -> int:
    """Where Linux lists it: an IPv4 address that is first of its subnet after the others of these, and of its scope."""
    if len(address.address) == 16 or address.secondary:
        return len(iface.addresses)
    place = None
    for number, each in enumerate(iface.addresses):
        if len(each.address) == 4:
            if place is None:
                place = number
            if not each.secondary and address.scope <= each.scope:
                place = number + 1
    return len(iface.addresses) if place is None else place
