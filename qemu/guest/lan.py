"""`Lan`: a network for guests, with a gateway node that gives out leases and names. What the fixture `net` is.

Everything of it is made when it is first used: a test that asks for the fixture and boots no guest pays nothing.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from qemu.guest.config import GuestConfig
from qemu.guest.errors import SetupError

if TYPE_CHECKING:
    from qemu.guest.join import JoinSocket
    from qemu.guest.link_services import LinkServices
    from qemu.guest.served import Service
    from stack import Network, Stack
    from stack.iface.interface import Interface
    from stack.link import LinkDevice, Switch
    from stack.link.capture_ring import CaptureRing
    from stack.link.impaired import ImpairedDevice
    from stack.vsock.transport import VsockTransport

DEFAULT_ADDRESS: Final = "10.0.2.2/24"
GATEWAY: Final = "gw"
#: Hardware addresses of programs begin so: locally administered.
_PROGRAM_MAC: Final = bytes.fromhex("02677778")
_EXEC_SECONDS: Final = 60.0
#: Host numbers of a /24: leases come from the first range, the addresses of `serve` and `exec` from the second.
_FIRST_LEASE, _LAST_LEASE = 15, 199
_FIRST_SERVICE, _LAST_SERVICE = 200, 254
#: What a bad line drops, of `stack.link.impairment.PathStats`.
_LOST: Final = ("mtu", "loss", "burst_loss", "queue_bytes", "overrun", "malformed")


class Lan:
    """One Ethernet segment with a gateway node on it, in a Network of its own or in one that is given.

    A context manager; `close` is idempotent. Guests join it with ``Guest(lan=lan)``; they and the node reach each
    other, and the names `guest1`, `gw` and those of `serve` are known to all. Thread-safe.
    """

    def __init__(
        self,
        network: Network | None = None,
        *,
        address: str = DEFAULT_ADDRESS,
        name: str = "lan",
        gateway: str = GATEWAY,
        record: bool = True,
        address6: str | None = None,
        dhcp6: bool = False,
        dns_upstream: bool | tuple[str, ...] = False,
        seed: int | None = None,
    ) -> None:
        """`address` is the gateway's; `gateway` the name of its node, made if the Network has none of that name.

        `address6`, `dhcp6` and `dns_upstream` are those of `GuestConfig`: guests may have IPv6 as well, and names of
        the outside. With `seed` chance in a Network of its own is drawn from that.

        With `record`, what passes the guests' cables is kept in a ring in memory. Raises SetupError for an address
        that is none, or in a network too small for services and leases.
        """
        try:
            self._subnet = IPv4Interface(address)
        except ValueError as error:
            raise SetupError(f"{address!r} is no address of a gateway: {error}") from error
        if self._subnet.network.prefixlen > 24:
            raise SetupError(f"{address}: a LAN needs a network of 256 addresses, /24 or larger")
        self.name = name
        self.address = address
        self._config = GuestConfig(address6=address6, dhcp6=dhcp6, dns_upstream=dns_upstream)
        self._given = network
        self._gateway_name = gateway
        self._record = record
        self._seed = seed
        self._lock = threading.RLock()
        self._undo = ExitStack()
        self._parts: _Parts | None = None
        self._closed = False
        self._services: list[Service] = []
        self._addresses: set[str] = set()  # of names and programs of ours
        self._programs = 0
        self._join: JoinSocket | None = None
        self._guests = 0

    # -- what it is made of -------------------------------------------------------------------------------------------

    @property
    def opened(self) -> bool:
        """Whether anybody used it yet."""
        return self._parts is not None

    @property
    def network(self) -> Network:
        return self._open().network

    @property
    def stack(self) -> Stack:
        """The gateway node: `stack.socket` has sockets on the LAN."""
        return self._open().stack

    @property
    def switch(self) -> Switch:
        return self._open().switch

    @property
    def interface(self) -> Interface:
        """The gateway's interface on the LAN."""
        return self._open().interface

    @property
    def link_services(self) -> LinkServices:
        """What the gateway gives out there: `dhcp`, `dns`, `dhcp6`, `advertiser`; faults can be injected into each."""
        return self._open().services

    @property
    def gateway(self) -> str:
        """The gateway's address, without prefix."""
        return str(self._subnet.ip)

    @property
    def ring(self) -> CaptureRing:
        """The frames that passed the guests' cables lately. Raises SetupError with ``record=False``."""
        ring = self._open().ring
        if ring is None:
            raise SetupError(f"the LAN {self.name} records nothing: record=False")
        return ring

    @property
    def services(self) -> tuple[Service, ...]:
        """What `serve` made, oldest first."""
        return tuple(self._services)

    # -- doing --------------------------------------------------------------------------------------------------------

    def serve(self, where: str, handler: Any = None, **kinds: Any) -> Service:
        """Make ``"name:port"`` a server that the guests see: name, address and listener; see `qemu.guest.served`.

        `handler` answers HTTP requests; ``connection=`` takes a function that is given each connection,
        ``protocol=`` an `asyncio.Protocol` factory. Raises SetupError for a name, port or handler that cannot be.
        """
        from qemu.guest.served import Service, parse_where

        name, port = parse_where(where)
        with self._lock:
            address = self.add_name(name)
            service = Service(self.stack, name, address, port, handler, **kinds)
            self._services.append(service)
            return service

    def add_name(self, name: str) -> str:
        """The address of the gateway's that `name` stands for, made if it has none yet."""
        with self._lock:
            parts = self._open()
            known = parts.stack.hosts.get(name)
            if known:
                return known[0]
            address = self._free_address(name)
            with parts.network.lock:
                parts.stack.netns.add_address(parts.interface, f"{address}/{self._subnet.network.prefixlen}")
                parts.network.finish()
            parts.stack.hosts[name] = [address]
            return address

    def add_vlan(self, number: int, address: str) -> Interface:
        """An interface of the gateway's in VLAN `number` of the LAN, with that address and prefix.

        Raises SetupError for a number or address that cannot be.
        """
        from stack.errors import NetError
        from stack.iface import vlan

        parts = self._open()
        name, attributes = f"{parts.interface.name}.{number}", {"link": parts.interface, "data": {"id": number}}
        with parts.network.lock:
            try:
                interface = vlan.create(parts.stack.netns, name, attributes)
                parts.stack.netns.set_up(interface, True)
                parts.stack.netns.add_address(interface, address)
            except (ValueError, NetError) as error:
                raise SetupError(f"no VLAN {number} with {address}: {error}") from error
            parts.network.finish()
        return interface

    def mark(self, text: str) -> None:
        """Put a comment at this moment into what is recorded."""
        with self.network.lock:
            if self._parts is not None and self._parts.ring is not None:
                self._parts.ring.comment(text)

    def write_pcap(self, path: Path, comment: str | None = None) -> int:
        """Write what is recorded to a pcapng file; the number of frames. Raises OSError."""
        parts = self._open()
        with parts.network.lock:
            comment = "\n".join([*filter(None, [comment]), *self._dropped(parts)]) or None
            # The Scheduler's clock is monotonic; a capture file wants the time of day.
            epoch = time.time_ns() - parts.network.clock()
            return self.ring.write(path, epoch_ns=epoch, comment=comment)

    @staticmethod
    def _dropped(parts: _Parts) -> Iterator[str]:
        """A line for each place where frames were dropped: how many, and why."""
        places: dict[str, Mapping[Any, object]] = {f"{port.name}'s port": port.drops for port in parts.switch.ports}
        layers = parts.stack.netns.stats()
        places |= {f"{name} of the gateway": drops for name, drops in layers.items() if name != "limits"}
        for name, line in parts.lines.items():
            for way, stats in zip((f"to {name}", f"from {name}"), line.stats, strict=True):
                lost = {reason: getattr(stats, reason) for reason in _LOST}
                places[f"the line {way}"] = {reason: count for reason, count in lost.items() if count}
        for place, drops in places.items():
            if drops:
                yield f"dropped at {place}: {', '.join(f'{reason} {count}' for reason, count in drops.items())}"

    def close(self) -> None:
        with self._lock:
            self._closed = True
            services, undo = list(self._services), self._undo.pop_all()
        # Not under the lock: who is being shown out takes his leave with it.
        for service in reversed(services):
            service.close()
        undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def join_socket(self) -> Path:
        """Where ``guestwire exec --lan PATH`` joins this LAN, until `close`: a private place."""
        with self._lock:
            self._open()
            if self._join is None:
                from qemu.guest.join import JoinSocket

                directory = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="guestwire-")))
                self._join = JoinSocket(self, directory / "lan")
                self._undo.callback(self._join.close)
            return self._join.path

    def exec(
        self,
        argv: Sequence[str],
        *,
        timeout: float = _EXEC_SECONDS,
        check: bool = False,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess.run calls it
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine on the LAN: ``net.exec(["curl", "-s", "http://guest1/"]).stdout``.

        It is in a network namespace of its own; no root is needed. Raises what `subprocess.run` raises; the exit code
        is 125 if it could not be put on the LAN, and standard error says why.
        """
        command = [sys.executable, "-m", "qemu.guest.cli", "exec", "--lan", str(self.join_socket()), "--", *argv]
        data = input.decode() if isinstance(input, bytes) else input
        return subprocess.run(
            command,
            input=data if data is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=check,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(word for word in sys.path if word)},
        )

    # -- for guests ---------------------------------------------------------------------------------------------------

    def guest_name(self) -> str:
        """A name for one more guest."""
        with self._lock:
            self._guests += 1
            return f"guest{self._guests}"

    def plug(self, device: LinkDevice, name: str) -> Callable[[], None]:
        """Put a guest's card on the switch, recorded as `name`; the result takes it off again."""
        from stack.link.impaired import ImpairedDevice

        parts = self._open()
        if isinstance(device, ImpairedDevice):
            parts.lines[name] = device
        link = device if parts.ring is None else parts.ring.tap(device, name)
        with parts.network.lock:
            port = parts.switch.attach(link, name)
            parts.network.attach_locked(port)
            parts.network.finish()

        def unplug() -> None:
            with parts.network.lock:
                if not parts.network.closed:
                    parts.network.detach_locked(port)
                parts.switch.remove(port)

        return unplug

    def vsock_tap(self, name: str) -> Callable[[VsockTransport], VsockTransport] | None:
        """What records the vsock of the guest `name`; None where nothing is recorded."""
        ring = self._open().ring
        return None if ring is None else lambda transport: ring.tap_vsock(transport, f"{name}-vsock")

    def admit(self) -> dict[str, Any]:
        """A place on the LAN for a program of this machine, as `join` tells it. Raises SetupError if all are taken."""
        with self._lock:
            parts = self._open()
            self._programs += 1
            name = f"host{self._programs}"
            address = self._free_address(name)
            parts.stack.hosts[name] = [address]
        return {
            "address": address,
            # Of the address: who comes after another is known by those who remember that one.
            "mac": (_PROGRAM_MAC + IPv4Address(address).packed[-2:]).hex(":"),
            "prefix": self._subnet.network.prefixlen,
            "gateway": self.gateway,
            "dns": self.gateway,
            "mtu": parts.switch.mtu,
            "name": name,
        }

    def dismiss(self, place: dict[str, Any]) -> None:
        """It has ended: its name is nobody's, its address another's."""
        with self._lock:
            if self._parts is not None:
                self._parts.stack.hosts.pop(place["name"], None)
            self._addresses.discard(place["address"])

    def _free_address(self, name: str) -> str:
        for number in range(_FIRST_SERVICE, _LAST_SERVICE + 1):
            address = str(self._subnet.network[number])
            if address not in self._addresses:
                self._addresses.add(address)
                return address
        room = _LAST_SERVICE - _FIRST_SERVICE + 1
        raise SetupError(f"a LAN has room for {room} names of this machine's, {name} is one more")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _open(self) -> _Parts:
        with self._lock:
            if self._parts is None:
                if self._closed:
                    raise SetupError(f"the LAN {self.name} is closed")
                with ExitStack() as undo:
                    self._parts = self._make(undo)
                    self._undo.push(undo.pop_all())
            return self._parts

    def _make(self, undo: ExitStack) -> _Parts:
        from qemu.guest.link_services import LinkServices
        from stack import Network
        from stack.link import Switch
        from stack.link.capture_ring import CaptureRing

        network = self._given
        if network is None:
            network = Network(rng=None if self._seed is None else random.Random(self._seed))  # noqa: S311 - no secret
            undo.callback(network.close)
            network.start()
        stack = network.stacks.get(self._gateway_name) or network.stack(self._gateway_name)
        switch = Switch(network.scheduler, name=self.name)
        try:
            addresses = [self.address] if self._config.address6 is None else [self.address, self._config.address6]
            interface = stack.add_interface(switch.port(self._gateway_name), addresses=addresses)
        except ValueError as error:
            raise SetupError(f"the LAN {self.name} cannot be set up: {error}") from error
        undo.callback(self._remove_interface, network, stack, interface.name)
        ring = CaptureRing(network.scheduler) if self._record else None
        subnet = self._subnet.network
        pool = (str(subnet[_FIRST_LEASE]), str(subnet[_LAST_LEASE]))
        services = LinkServices(network, stack, interface, self._config, pool=pool)
        undo.callback(services.close)
        return _Parts(network, stack, switch, interface, services, ring)

    @staticmethod
    def _remove_interface(network: Network, stack: Stack, name: str) -> None:
        if not network.closed and name in stack.netns.interfaces:
            stack.remove_interface(name)


class _Parts:
    """What a LAN that is used consists of."""

    __slots__ = ("interface", "lines", "network", "ring", "services", "stack", "switch")

    def __init__(
        self,
        network: Network,
        stack: Stack,
        switch: Switch,
        interface: Interface,
        services: LinkServices,
        ring: CaptureRing | None,
    ) -> None:
        self.network = network
        self.stack = stack
        self.switch = switch
        self.interface = interface
        self.services = services
        self.ring = ring
        self.lines: dict[str, ImpairedDevice] = {}  #: cables of guests, by their names
