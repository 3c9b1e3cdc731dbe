"""What tests of raw, ping and packet sockets run on: a network namespace of the kernel, and a Stack, laid out alike.

Each is one node with `lo` and a pair of veth links, `va` with 10.9.0.1/24 and fd09::1/64, and `vb` without addresses.
10.9.0.2 and fd09::2 are static neighbours on `va`: what is sent there comes out of `vb`.
"""

from __future__ import annotations

import json
import random
import select
import socket as kernel
from collections.abc import Iterator
from typing import Any, Final

import pytest

from stack import Network
from stack.iface.kinds import create
from stack.socket.poll import ERR, HUP, IN, OUT, RDHUP
from stack.testing.clock import ManualClock
from stack.testing.kernel_host import KernelHost, NoKernelHostError
from stack.tests.kernel_twin import ASKED

PEER_MAC: Final = bytes.fromhex("020000000009")
ME4: Final = "10.9.0.1"
PEER4: Final = "10.9.0.2"
ME6: Final = "fd09::1"
PEER6: Final = "fd09::2"

__all__ = ["ERR", "HUP", "IN", "OUT", "RDHUP", "KernelWorld", "OurWorld", "World", "worlds"]


class World:
    """One of the two nodes. `is_kernel` tells which."""

    is_kernel: bool

    def __init__(self) -> None:
        self._open: list[Any] = []

    def socket(self, family: int, kind: int, proto: int = 0) -> Any:
        """A socket that waits ten seconds at most; closed by `tidy`."""
        sock = self._make(family, kind, proto)
        sock.settimeout(10)
        self._open.append(sock)
        return sock

    def packet(self, kind: int = kernel.SOCK_RAW, protocol: int = 0, device: str = "") -> Any:
        """A packet socket for `protocol`, bound to `device`."""
        if not device:
            return self.socket(kernel.AF_PACKET, kind, kernel.htons(protocol))
        sock = self.socket(kernel.AF_PACKET, kind)
        sock.bind((device, protocol))
        return sock

    def tidy(self) -> None:
        while self._open:
            self._open.pop().close()

    def nothing(self, sock: Any) -> bool:
        """There is nothing (more) to be read."""
        sock.setblocking(False)
        try:
            sock.recv(1)
        except BlockingIOError:
            return True
        finally:
            sock.settimeout(10)
        return False

    def nothing_peeked(self, sock: Any) -> bool:
        """As `nothing`, what there is left in place."""
        sock.setblocking(False)
        try:
            sock.recv(1, kernel.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            sock.settimeout(10)
        return False

    def _make(self, family: int, kind: int, proto: int) -> Any:
        raise NotImplementedError

    def bits(self, sock: Any) -> int:
        """Poll bits among IN, OUT, RDHUP, ERR, HUP."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Sockets that were closed are gone: the process that made the kernel's holds them a moment longer."""

    def await_error(self, sock: Any) -> None:
        """Wait until an error is pending; the kernel's loopback is quick, not instant."""
        raise NotImplementedError

    def index(self, device: str) -> int:
        raise NotImplementedError

    def mac(self, device: str) -> bytes:
        raise NotImplementedError

    def set_up(self, device: str, up: bool) -> None:
        raise NotImplementedError

    def counts(self, device: str) -> tuple[int, int]:
        """IFLA_PROMISCUITY and IFLA_ALLMULTI."""
        raise NotImplementedError

    def set_ping_groups(self, low: int, high: int) -> None:
        raise NotImplementedError


class KernelWorld(World):
    is_kernel = True

    def __init__(self, *, ipv6: bool = True) -> None:
        super().__init__()
        self.host = KernelHost()
        try:
            self._lay_out(ipv6)
        except RuntimeError as error:
            self.host.close()
            raise NoKernelHostError(str(error)) from None

    def _lay_out(self, ipv6: bool) -> None:
        run = self.host.run
        self.host.sysctl("net.ipv6.conf.default.accept_dad", "0")
        run("ip", "link", "add", "va", "type", "veth", "peer", "name", "vb")
        for device in ("va", "vb"):
            if ipv6:
                self.host.sysctl(f"net.ipv6.conf.{device}.addr_gen_mode", "1")
            else:
                self.host.sysctl(f"net.ipv6.conf.{device}.disable_ipv6", "1")
            run("ip", "link", "set", device, "up")
        run("ip", "address", "add", f"{ME4}/24", "dev", "va")
        if ipv6:
            run("ip", "-6", "address", "add", f"{ME6}/64", "dev", "va", "nodad")
        for peer in (PEER4, PEER6) if ipv6 else (PEER4,):
            run("ip", "neighbour", "add", peer, "lladdr", PEER_MAC.hex(":"), "dev", "va")

    def _make(self, family: int, kind: int, proto: int) -> Any:
        return self.host.socket(family, kind, proto)

    def bits(self, sock: Any) -> int:
        poll = select.poll()
        poll.register(sock, ASKED)
        return sum(bits for _, bits in poll.poll(0))

    def let_go(self) -> None:
        self.host.sysctl("net.ipv4.ip_forward")  # it closes its own before it reads the next request

    def await_error(self, sock: Any) -> None:
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(10_000)

    def _link(self, device: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.host.run("ip", "-d", "-j", "link", "show", device))[0]
        return shown

    def index(self, device: str) -> int:
        return int(self._link(device)["ifindex"])

    def mac(self, device: str) -> bytes:
        return bytes.fromhex(self._link(device)["address"].replace(":", ""))

    def set_up(self, device: str, up: bool) -> None:
        self.host.run("ip", "link", "set", device, "up" if up else "down")

    def counts(self, device: str) -> tuple[int, int]:
        link = self._link(device)
        return link["promiscuity"], link["allmulti"]

    def set_ping_groups(self, low: int, high: int) -> None:
        try:
            self.host.sysctl("net.ipv4.ping_group_range", f"{low} {high}")
        except OSError as error:  # an ordinary user's namespace knows one group
            pytest.skip(f"net.ipv4.ping_group_range cannot be {low} {high} here: {error}")

    def close(self) -> None:
        self.tidy()
        self.host.close()


class OurWorld(World):
    is_kernel = False

    def __init__(self, *, ipv6: bool = True) -> None:
        super().__init__()
        self.network = Network(clock=ManualClock(), rng=random.Random(11))
        self.stack = self.network.stack("gw")
        netns = self.stack.netns
        with self.network.lock:
            create(netns, "veth", "va", {"data": {"peer": {"name": "vb"}}})
            for device in ("va", "vb"):
                netns.set_up(netns.interface(device), True)
            netns.add_address(netns.interface("va"), f"{ME4}/24")
            if ipv6:
                netns.add_address(netns.interface("va"), f"{ME6}/64")
            else:
                for device in ("va", "vb"):
                    interface = netns.interface(device)
                    for address in [each for each in interface.addresses if len(each.address) == 16]:
                        netns.remove_address(interface, address.address)
            for family, peer in ((kernel.AF_INET, PEER4), (kernel.AF_INET6, PEER6)):
                netns.interface("va").neighbours.set_permanent(kernel.inet_pton(family, peer), PEER_MAC)
            self.network.finish()

    def _make(self, family: int, kind: int, proto: int) -> Any:
        return self.stack.socket.socket(family, kind, proto)

    def bits(self, sock: Any) -> int:
        return int(open_socket(sock).poll()) & (ASKED | ERR | HUP)

    def await_error(self, sock: Any) -> None:
        for _ in range(10):
            if self.bits(sock) & ERR:
                return
            self.network.poll(self.network.scheduler.now)
        raise AssertionError("no error comes")

    def _interface(self, device: str) -> Any:
        return self.stack.netns.interface(device)

    def index(self, device: str) -> int:
        return int(self._interface(device).index)

    def mac(self, device: str) -> bytes:
        return bytes(self._interface(device).mac)

    def set_up(self, device: str, up: bool) -> None:
        self.network.call(self.stack.netns.set_up, (self._interface(device), up))

    def counts(self, device: str) -> tuple[int, int]:
        interface = self._interface(device)
        return interface.promiscuous, interface.all_multicast

    def set_ping_groups(self, low: int, high: int) -> None:
        self.stack.netns.ip.pings.group_range = (low, high)

    def close(self) -> None:
        self.tidy()
        self.network.close()


def open_socket(sock: Any) -> Any:
    """The open socket below one of a Stack's module."""
    return sock._sock


def worlds(request: pytest.FixtureRequest, *, ipv6: bool = True) -> Iterator[World]:
    """Body of a module-scoped fixture with params "kernel" and "ours". Without IPv6 nothing is sent unasked."""
    made: type[KernelWorld | OurWorld] = KernelWorld if request.param == "kernel" else OurWorld
    try:
        world = made(ipv6=ipv6)
    except NoKernelHostError as error:
        pytest.skip(str(error))
    try:
        yield world
    finally:
        world.close()
