"""Is an IPv4 address ours alone? Address conflict detection (RFC 5227), for addresses that were asked to be tested.

Three ARP probes, a second or two apart, from the unspecified address; then two seconds of silence, and the address is
announced twice. Any ARP packet from the address, or another host's probe for it, meanwhile: it is marked failed. Later
an address tested here is defended: one announcement in ten seconds against who claims it (2.4 b). The kernel of Linux
does none of this; DHCP clients do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.iface.address import IFA_DADFAILED, IFA_TENTATIVE, InterfaceAddress
from stack.scheduler import NS_PER_S

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.scheduler import Timer
    from stack.wire.arp import ArpMessage

# RFC 5227 1.1
PROBE_WAIT: Final = NS_PER_S
PROBE_COUNT: Final = 3
PROBE_MIN: Final = NS_PER_S
PROBE_MAX: Final = 2 * NS_PER_S
ANNOUNCE_WAIT: Final = 2 * NS_PER_S
ANNOUNCE_COUNT: Final = 2
ANNOUNCE_INTERVAL: Final = 2 * NS_PER_S
DEFEND_INTERVAL: Final = 10 * NS_PER_S


class _Watch:
    __slots__ = ("address", "announced", "defended", "probed", "timer")

    def __init__(self, address: InterfaceAddress) -> None:
        self.address = address
        self.probed = 0
        self.announced = 0
        self.defended = -DEFEND_INTERVAL
        self.timer: Timer


class ConflictDetection:
    """The addresses of one interface under test or defence."""

    def __init__(self, iface: Interface) -> None:
        self._iface = iface
        self._watches: dict[bytes, _Watch] = {}
        #: Called with the outcome: (interface, address, ours). Set by the namespace.
        self.on_done: Callable[[Interface, InterfaceAddress, bool], None] | None = None

    def start(self, address: InterfaceAddress) -> None:
        """`address` is tentative from now on."""
        address.flags |= IFA_TENTATIVE
        scheduler = self._iface.scheduler
        watch = self._watches[address.address] = _Watch(address)
        watch.timer = scheduler.timer(lambda: self._due(watch))
        watch.timer.arm_in(int(PROBE_WAIT * scheduler.rng.random()))

    def stop(self, address: bytes) -> None:
        """The address goes away."""
        watch = self._watches.pop(address, None)
        if watch is not None:
            watch.timer.cancel()

    def heard(self, message: ArpMessage) -> None:
        """Any ARP packet on the link (2.1.1, 2.4)."""
        if not self._watches or message.sender_mac == self._iface.mac:
            return
        watch = self._watches.get(message.sender_ip)
        if watch is None and not any(message.sender_ip):
            watch = self._watches.get(message.target_ip)
            if watch is not None and not watch.address.flags & IFA_TENTATIVE:
                return  # a probe for an address of ours is answered, as any request
        if watch is None:
            return
        now = self._iface.scheduler.now
        if watch.address.flags & IFA_TENTATIVE:
            self.stop(watch.address.address)
            watch.address.flags = watch.address.flags & ~IFA_TENTATIVE | IFA_DADFAILED
            self._tell(watch.address, ours=False)
        elif now - watch.defended >= DEFEND_INTERVAL:
            watch.defended = now
            self._iface.arp.announce(watch.address.address)

    def _due(self, watch: _Watch) -> None:
        iface, address = self._iface, watch.address.address
        if not (iface.up and iface.carrier):
            watch.timer.arm_in(PROBE_MIN)
        elif watch.probed < PROBE_COUNT:
            watch.probed += 1
            iface.arp.probe(address)
            spread = int((PROBE_MAX - PROBE_MIN) * iface.scheduler.rng.random())
            watch.timer.arm_in(PROBE_MIN + spread if watch.probed < PROBE_COUNT else ANNOUNCE_WAIT)
        else:
            watch.announced += 1
            if watch.announced == 1:
                watch.address.flags &= ~IFA_TENTATIVE
                self._tell(watch.address, ours=True)
            iface.arp.announce(address)
            if watch.announced < ANNOUNCE_COUNT:
                watch.timer.arm_in(ANNOUNCE_INTERVAL)

    def _tell(self, address: InterfaceAddress, *, ours: bool) -> None:
        if self.on_done is not None:
            self.on_done(self._iface, address, ours)
