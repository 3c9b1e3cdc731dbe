"""Joins a guest's devices to a Network: this is where `vhost_user` and `stack` meet.

The card becomes an interface of a gateway node (or a port of a switch), the vsock a peer of that node's AF_VSOCK
sockets. For a guest of ours the vhost-user sockets are files in its private directory, taken away as soon as QEMU has
connected; the directory goes away with QEMU (see launch.py), so nothing is left behind however this process ends.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from qemu.guest.argv import NetCard, SocketName, VsockCard
from qemu.guest.config import GuestConfig
from qemu.guest.errors import SetupError
from qemu.guest.link_services import LinkServices
from qemu.guest.vsock_plug import VsockConfig, VsockPlug

if TYPE_CHECKING:
    from stack import Network, Stack
    from stack.iface.interface import Interface
    from stack.link import Capture, LinkDevice, Switch
    from stack.link.impaired import ImpairedDevice
    from vhost_user import NetDevice, Server
    from vhost_user.device import Device
    from vhost_user.server import Listening

#: QEMU's own vendor prefix; the rest counts up.
_MAC_PREFIX: Final = bytes.fromhex("525400677700")
_macs = itertools.count(1)
_numbers = threading.Lock()


def new_mac() -> bytes:
    """A hardware address no other guest of this process has."""
    with _numbers:
        number = next(_macs)
    return (int.from_bytes(_MAC_PREFIX, "big") + number).to_bytes(6, "big")


class Wiring:
    """The devices of one guest and what they are plugged into. `close` unplugs and closes what was made here."""

    def __init__(self, config: GuestConfig) -> None:
        """Raises SetupError for a CID, address, switch or capture file that cannot be used."""
        from stack import Network
        from vhost_user import Server

        self.net: NetDevice | None = None
        self.line: ImpairedDevice | None = None  #: the card's cable
        self.vsock: VsockPlug | None = None
        self.interface: Interface | None = None
        self.capture: Capture | None = None
        self.services: LinkServices | None = None  #: what the gateway serves on the guest's link
        self.gateway = ""  #: the gateway's address on this guest's link, without prefix
        self.name = config.lan.guest_name() if config.lan is not None else "guest"  #: the guest's, on its LAN
        self.mac = config.mac or new_mac()  #: the guest's card's, the same whenever it is plugged in
        self._config = config
        self._listening: dict[Device, Listening] = {}
        with ExitStack() as undo:
            lan = config.lan
            if lan is not None and (config.network or config.stack or config.switch):
                raise SetupError("a guest is on a LAN (lan=) or on a network, stack or switch of yours, not on both")
            network = config.network if lan is None else lan.network
            if network is None and config.stack is not None:
                network = cast("Network", config.stack.network)
            if network is None:
                network = Network()
                undo.callback(network.close)
                network.start()
            self.network: Network = network
            self.stack: Stack = (
                lan.stack if lan is not None else config.stack or network.stacks.get("gw") or network.stack("gw")
            )
            self.server: Server = undo.enter_context(Server())
            if config.net:
                self._plug_net(undo)
            if config.vsock:
                self._plug_vsock(undo)
            self._undo = undo.pop_all()

    def offer(self, directory: Path) -> tuple[tuple[NetCard, ...], VsockCard | None]:
        """Wait for QEMU in the private `directory`; the cards to start it with."""
        net = (self.offer_net(directory),) if self.net is not None else ()
        return net, self.offer_vsock(directory) if self.vsock is not None else None

    def offer_net(self, directory: Path) -> NetCard:
        """Wait for QEMU in the private `directory`; the card it is to have."""
        assert self.net is not None
        again = self._config.reconnect
        self._listen(self.net, directory / "net", keep=again)
        return self.card(SocketName(str(directory / "net")), reconnect=again)

    def offer_vsock(self, directory: Path) -> VsockCard:
        assert self.vsock is not None
        self._listen(self.vsock.device, directory / "vsock")
        return VsockCard(SocketName(str(directory / "vsock")))

    def _listen(self, device: Device, path: Path, *, keep: bool = False) -> None:
        """A device is waited for in one place at a time: a guest that is plugged in again has another directory.

        The file goes when QEMU has connected, unless it is to be kept for another connection.
        """
        before = self._listening.pop(device, None)
        if before is not None:
            before.close()
        self._listening[device] = self.server.listen(device, path=path, unlink_when_connected=not keep)

    def card(self, socket: SocketName, *, reconnect: bool = False) -> NetCard:
        """The network card as QEMU is to be told of it."""
        config = self._config
        return NetCard(socket, self.mac, config.queues, config.mtu, reconnect)

    def leased(self) -> str:
        """The address the gateway has given to the guest's card, "" if none."""
        services = self.services if self._config.lan is None else self._config.lan.link_services
        if services is None or services.dhcp is None:
            return ""
        with self.network.lock:
            leases = [lease for lease in services.dhcp.leases() if lease.client == self.mac]
            return str(IPv4Address(leases[-1].address)) if leases else ""

    def close(self) -> None:
        """Idempotent."""
        self._undo.close()

    def _plug_net(self, undo: ExitStack) -> None:
        from vhost_user import NetDevice

        config = self._config
        try:
            device = NetDevice(mac=new_mac(), mtu=config.mtu, queues=config.queues, offload=config.offload)
        except ValueError as error:
            raise SetupError(str(error)) from error
        undo.callback(device.close)
        self.net = device
        from stack.link.impaired import ImpairedDevice

        self.line = ImpairedDevice(self.network.scheduler, device)
        link: LinkDevice = self.line
        if config.pcap is not None:
            link = self._capture(config.pcap, link, undo)
        if config.lan is not None:
            undo.callback(config.lan.plug(link, self.name))
            self.gateway = config.lan.gateway
        elif config.switch is not None:
            self._join_switch(config.switch, link, undo)
        else:
            self._join_gateway(link, undo)

    def _capture(self, path: Path, device: LinkDevice, undo: ExitStack) -> LinkDevice:
        from stack.link import Capture

        # The Scheduler's clock is monotonic; a capture file wants the time of day.
        epoch = time.time_ns() - self.network.clock()
        try:
            capture = Capture(path, self.network.scheduler, epoch_ns=epoch)
        except OSError as error:
            raise SetupError(f"cannot write the capture {path}: {error.strerror}") from error
        undo.callback(capture.close)
        self.capture = capture
        return capture.tap(device, "guest")

    def _join_switch(self, switch: Switch, device: LinkDevice, undo: ExitStack) -> None:
        port = switch.attach(device)
        undo.callback(switch.remove, port)
        self.network.attach(port)
        undo.callback(self.network.detach, port)

    def _join_gateway(self, device: LinkDevice, undo: ExitStack) -> None:
        address = self._config.address or self._free_address()
        try:
            addresses = [address] if self._config.address6 is None else [address, self._config.address6]
            self.interface = self.stack.add_interface(device, addresses=addresses)
        except ValueError as error:
            raise SetupError(f"the guest's link cannot be set up: {error}") from error
        undo.callback(self._remove_interface, self.interface.name)
        self.gateway = address.partition("/")[0]
        self.services = LinkServices(self.network, self.stack, self.interface, self._config)
        undo.callback(self.services.close)

    def _remove_interface(self, name: str) -> None:
        if not self.network.closed and name in self.stack.netns.interfaces:
            self.stack.remove_interface(name)

    def _free_address(self) -> str:
        """10.0.2.2/24 as with QEMU's own network, or the next subnet no interface of the node is in."""
        taken = {
            bytes(address.address[:3])
            for interface in self.stack.netns.interfaces.values()
            for address in interface.addresses
        }
        for subnet in range(2, 256):
            if bytes((10, 0, subnet)) not in taken:
                return f"10.0.{subnet}.2/24"
        raise SetupError("every subnet from 10.0.2.0/24 to 10.0.255.0/24 is taken: pass address=")

    def _plug_vsock(self, undo: ExitStack) -> None:
        config = self._config
        settings = VsockConfig(cid=config.cid, uds_path=config.vsock_uds, groups=config.vsock_groups)
        tap = None if config.lan is None else config.lan.vsock_tap(self.name)
        self.vsock = VsockPlug(self.stack, settings, tap=tap)
        undo.callback(self.vsock.close)
