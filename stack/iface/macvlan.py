"""Links of kind macvlan: further interfaces with MAC addresses of their own on one parent (mode bridge).

The links of one parent are the ports of a switch whose way out is the parent: they reach each other and what is beyond
the parent, but not the parent itself, as on Linux.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.iface.kinds import random_mac
from stack.iface.port import InterfacePort
from stack.link.device import RxFrame
from stack.link.switch import StackPort, Switch

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

MODE_BRIDGE: Final = 4  # MACVLAN_MODE_BRIDGE of <linux/if_link.h>


def create(netns: NetNamespace, name: str, attributes: Mapping[str, Any]) -> Interface:
    """On ``link``; ``data["mode"]`` can only be 4, bridge, which is the default. Raises NetError."""
    parent: Interface | None = attributes.get("link")
    if parent is None:
        raise NetError(errno.EINVAL, "link not specified")
    if parent.loopback:
        raise NetError(errno.EINVAL, "a loopback link carries no other MAC addresses")
    if parent.master is not None:
        raise NetError(errno.EBUSY, "the link is a bridge's port")
    if attributes.get("data", {}).get("mode", MODE_BRIDGE) != MODE_BRIDGE:
        raise NetError(errno.EOPNOTSUPP, "of macvlan there is only mode bridge")
    mtu = attributes.get("mtu", parent.mtu)
    if mtu > parent.mtu:
        raise NetError(errno.EINVAL, "MTU greater than the parent's")
    mac = attributes.get("mac") or random_mac(netns.scheduler.rng)
    owners = (getattr(hook, "__self__", None) for hook in parent.rx_hooks)
    uplink = next((each for each in owners if isinstance(each, Uplink)), None)
    if uplink is not None and any(each.mac == mac for each in uplink.links):
        raise NetError(errno.EADDRINUSE)
    fresh = uplink is None
    if uplink is None:
        uplink = Uplink(Switch(netns.scheduler, name=parent.name), parent)
    device = uplink.switch.port(name, mtu=parent.mtu, mac=mac)
    device.carrier = parent.running
    try:
        iface = netns.add_link(device, name, kind="macvlan", mac=mac, mtu=mtu, index=attributes.get("index", 0))
    except NetError:
        device.close()
        uplink.switch.remove(device)
        if fresh:
            uplink.leave()
        raise
    uplink.links[iface] = device
    iface.link = parent
    parent.uppers.append(iface)
    iface.kind_data = {"mode": MODE_BRIDGE, "flags": 0}
    iface.on_up = _parent_is_up(iface, parent)
    iface.on_removed = _removal(uplink, iface)
    return iface


class Uplink(InterfacePort):
    """The parent as a port: gives the switch only what is for its links."""

    def __init__(self, switch: Switch, iface: Interface) -> None:
        super().__init__(switch, iface)
        self.links: dict[Interface, StackPort] = {}

    def took(self, burst: Sequence[RxFrame]) -> Sequence[RxFrame]:
        """A hook of the parent: frames to a link's MAC are taken, group frames are for everybody."""
        macs = {link.mac for link in self.links}
        inwards, rest = [], []
        for frame in burst:
            destination = bytes(frame[0][:6])
            ours = destination in macs
            if ours or (destination and destination[0] & 1):
                inwards.append(frame)
            if not ours:
                rest.append(frame)
        if inwards:
            self.received += len(inwards)
            self.switch.forward_received(self, inwards)
        return rest

    def drop(self, link: Interface) -> None:
        """With the last link goes the port."""
        device = self.links.pop(link)
        self.iface.uppers.remove(link)
        device.close()
        self.switch.remove(device)
        if not self.links:
            self.leave()

    def _changed(self, iface: Interface, what: str) -> None:
        super()._changed(iface, what)
        for link, device in self.links.items():
            device.mtu = iface.mtu
            if device.carrier != iface.running:
                device.carrier = iface.running
            if link.device.on_change is not None:
                link.device.on_change()


def _parent_is_up(iface: Interface, parent: Interface) -> Callable[[], None]:
    def check() -> None:
        if iface.up and not parent.up:
            raise NetError(errno.ENETDOWN)

    return check


def _removal(uplink: Uplink, iface: Interface) -> Callable[[], None]:
    def remove() -> None:
        uplink.drop(iface)

    return remove
