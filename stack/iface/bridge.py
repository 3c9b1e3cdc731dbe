"""Links of kind bridge: an interface on a learning switch whose ports are other interfaces."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.iface.kinds import random_mac
from stack.iface.port import InterfacePort
from stack.link.switch import StackPort, Switch

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

BRIDGE_MTU: Final = 1500  # bytes, without ports
MAX_MTU: Final = 65535


def create(netns: NetNamespace, name: str, attributes: Mapping[str, Any]) -> Interface:
    """A bridge without ports; `NetNamespace.set_master` gives it some. Raises NetError."""
    mac = attributes.get("mac") or random_mac(netns.scheduler.rng)
    switch = Switch(netns.scheduler, name=name)
    device = switch.port(name, mtu=MAX_MTU, mac=mac)
    mtu = attributes.get("mtu", BRIDGE_MTU)
    iface = netns.add_link(device, name, kind="bridge", mac=mac, mtu=mtu, index=attributes.get("index", 0))
    ports = BridgePorts(iface, device, own_mac="mac" in attributes, own_mtu="mtu" in attributes)
    iface.ports = ports
    iface.on_removed = device.close
    ports.refresh()
    return iface


class BridgePorts:
    """The ports of one bridge. Its carrier, MAC and MTU follow them, as on Linux, unless they were set."""

    def __init__(self, bridge: Interface, device: StackPort, *, own_mac: bool, own_mtu: bool) -> None:
        self.bridge = bridge
        self._device = device
        self._own_mac, self._own_mtu = own_mac, own_mtu
        self._following = False
        self._ports: dict[Interface, InterfacePort] = {}
        bridge.watchers.append(self._bridge_changed)

    @property
    def switch(self) -> Switch:
        return self._device.switch

    def add(self, port: Interface) -> None:
        """Raises NetError: ELOOP for a bridge, EINVAL for `lo`, EBUSY for what is somebody's port already."""
        if port.ports is not None:
            raise NetError(errno.ELOOP, "Can not enslave a bridge to a bridge")
        if port.loopback:
            raise NetError(errno.EINVAL, "Loopback devices cannot be ports")
        if port.master is not None or port in self._ports:
            raise NetError(errno.EBUSY, "The device has a master already")
        self._ports[port] = InterfacePort(self.switch, port)
        port.watchers.append(self._port_changed)
        self.refresh()

    def remove(self, port: Interface) -> None:
        """Unknown ports are no error."""
        joined = self._ports.pop(port, None)
        if joined is not None:
            joined.leave()
            port.watchers.remove(self._port_changed)
            self.refresh()

    def refresh(self) -> None:
        """Work out what follows from the ports."""
        bridge, device, ports = self.bridge, self._device, self._ports
        self._following = True
        if ports:
            if not self._own_mac:
                bridge.set_mac(min(port.mac for port in ports))
            if not self._own_mtu:
                bridge.set_mtu(min(port.mtu for port in ports))
        self._following = False
        carrier = any(port.running for port in ports)
        if carrier != device.carrier:
            device.carrier = carrier
            if device.on_change is not None:
                device.on_change()

    def _port_changed(self, _port: Interface, _what: str) -> None:
        self.refresh()

    def _bridge_changed(self, _bridge: Interface, what: str) -> None:
        if not self._following:
            self._own_mac |= what == "mac"
            self._own_mtu |= what == "mtu"
