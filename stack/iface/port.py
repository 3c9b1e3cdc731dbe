"""An interface as a port of a `Switch`: what bridges and MAC-addressed sub-links are made of.

The port takes frames from the interface's `rx_hooks`, before the layers above see them, and sends through its transmit
queue, so that bounds, offloads and counters are those of the interface itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stack.errors import DropReason
from stack.link.device import RxFrame, TxFrame
from stack.link.offload import ETHERNET_HEADER, VLAN_TAG, as_transmit, owned_parts, wire_length
from stack.link.switch import Port, Switch

if TYPE_CHECKING:
    from stack.iface.interface import Interface


class InterfacePort(Port):
    """Joins `switch` at once; `leave` undoes it."""

    def __init__(self, switch: Switch, iface: Interface) -> None:
        super().__init__(switch, iface.name)
        self.iface = iface
        self.carrier = iface.running
        switch.join(self)
        iface.rx_hooks.append(self.took)
        iface.watchers.append(self._changed)

    def took(self, burst: Sequence[RxFrame]) -> Sequence[RxFrame]:
        """A hook of the interface: everything that arrives is switched."""
        self.received += len(burst)
        self.switch.forward_received(self, burst)
        return ()

    def switched(self, frame: RxFrame) -> None:
        self._send(as_transmit(frame), len(frame[0]))

    def sent(self, frame: TxFrame) -> None:
        self._send((owned_parts(frame[0]), *frame[1:]), wire_length(frame))

    def leave(self) -> None:
        """The interface is its own again."""
        self.switch.remove(self)
        self.iface.rx_hooks.remove(self.took)
        self.iface.watchers.remove(self._changed)

    def _send(self, frame: TxFrame, length: int) -> None:
        iface = self.iface
        if not iface.up:
            self.drops.count(DropReason.LINK_DOWN)
        elif not frame[2] and length > iface.mtu + ETHERNET_HEADER + VLAN_TAG:
            self.drops.count(DropReason.TOO_LONG)
        else:
            self.delivered += 1
            iface.enqueue(frame, length)

    def _changed(self, iface: Interface, _what: str) -> None:
        carrier = iface.running
        if carrier != self.carrier:
            self.carrier = carrier
            if not carrier:
                self.switch.forget(self)
