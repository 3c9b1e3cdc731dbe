"""Is an IPv6 address ours alone? Duplicate address detection (RFC 4862 5.4) with a nonce (RFC 7527).

An address under test is tentative: nobody gets an answer for it, and it is no source. One solicitation from the
unspecified address is sent after a random delay; silence for a second, and the address is ours. Somebody else's
solicitation or advertisement for it, and it is marked failed for good (IFA_F_DADFAILED), or, if a router's prefix made
it, taken away. Our own solicitation, looped back by the link, is known by its nonce and means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stack.iface.address import IFA_DADFAILED, IFA_TENTATIVE, InterfaceAddress
from stack.scheduler import NS_PER_S
from stack.wire import icmpv6
from stack.wire.ethernet import ETHERTYPE_IPV6, multicast_mac6
from stack.wire.ipv6 import ANY, ICMPV6, Ipv6Header, solicited_node

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.scheduler import Scheduler, Timer

TRANSMITS: Final = 1  # DupAddrDetectTransmits; Linux: dad_transmits
RETRANS_TIME: Final = NS_PER_S  # RFC 4861 10
MAX_DELAY: Final = NS_PER_S  # RFC 4862 5.4.2, RFC 4861 10: MAX_RTR_SOLICITATION_DELAY


class _Test:
    __slots__ = ("address", "iface", "left", "nonce", "timer")

    def __init__(self, iface: Interface, address: InterfaceAddress, nonce: bytes) -> None:
        self.iface = iface
        self.address = address
        self.nonce = nonce
        self.left = TRANSMITS
        self.timer: Timer


class DuplicateDetection:
    """The tests under way in one namespace."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tests: dict[tuple[int, bytes], _Test] = {}
        #: Called with the outcome: (interface, address, ours). Set by the namespace.
        self.on_done: Callable[[Interface, InterfaceAddress, bool], None] | None = None

    def start(self, iface: Interface, address: InterfaceAddress) -> None:
        """`address` is tentative from now on. The test waits while the link is down."""
        address.flags |= IFA_TENTATIVE
        nonce = self._scheduler.rng.getrandbits(48).to_bytes(6, "big")
        test = self._tests[iface.index, address.address] = _Test(iface, address, nonce)
        test.timer = self._scheduler.timer(lambda: self._due(test))
        test.timer.arm_in(int(MAX_DELAY * self._scheduler.rng.random()))

    def stop(self, iface: Interface, address: bytes) -> None:
        """The address goes away."""
        test = self._tests.pop((iface.index, address), None)
        if test is not None:
            test.timer.cancel()

    def solicited(self, iface: Interface, target: bytes, nonce: bytes | None) -> bool:
        """Somebody else probes for `target`; tells whether it was under test."""
        test = self._tests.get((iface.index, target))
        if test is None:
            return False
        if nonce != test.nonce:
            self._finish(test, ours=False)
        return True

    def advertised(self, iface: Interface, target: bytes) -> bool:
        """Somebody says it has `target`; tells whether it was under test."""
        test = self._tests.get((iface.index, target))
        if test is None:
            return False
        self._finish(test, ours=False)
        return True

    def __len__(self) -> int:
        """Tests under way."""
        return len(self._tests)

    def _due(self, test: _Test) -> None:
        iface, target = test.iface, test.address.address
        if not (iface.up and iface.carrier):
            test.timer.arm_in(RETRANS_TIME)  # nobody could have answered
            return
        if not test.left:
            self._finish(test, ours=True)
            return
        test.left -= 1
        group = solicited_node(target)
        message = icmpv6.emit_neighbour(icmpv6.NEIGHBOUR_SOLICITATION, target, None, 0, ANY, group, nonce=test.nonce)
        header = Ipv6Header(ANY, group, ICMPV6, len(message), icmpv6.ND_HOP_LIMIT)
        iface.send_frame(multicast_mac6(group), ETHERTYPE_IPV6, header.emit() + message)
        test.timer.arm_in(RETRANS_TIME)

    def _finish(self, test: _Test, *, ours: bool) -> None:
        self.stop(test.iface, test.address.address)
        test.address.flags &= ~IFA_TENTATIVE
        if not ours:
            test.address.flags |= IFA_DADFAILED
        if self.on_done is not None:
            self.on_done(test.iface, test.address, ours)
