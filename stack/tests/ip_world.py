"""Several namespaces joined by cables in one virtual time: what tests of routers, autoconfiguration and groups need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from stack.iface.interface import Interface
from stack.link.cable import cable
from stack.link.device import LinkDevice, Offload
from stack.link.offload import ALL_OFFLOADS
from stack.netns import NetNamespace
from stack.scheduler import NS_PER_S, Scheduler


class World:
    """Nodes by name, and the time they share."""

    def __init__(self, seed: int = 1) -> None:
        self.scheduler = Scheduler(rng=random.Random(seed))
        self.nodes: dict[str, NetNamespace] = {}
        self._macs = iter(range(0x020000000001, 0x02000000FFFF))

    def node(self, name: str) -> NetNamespace:
        if name not in self.nodes:
            self.nodes[name] = NetNamespace(self.scheduler, name=name)
        return self.nodes[name]

    def mac(self) -> bytes:
        return next(self._macs).to_bytes(6, "big")

    def ends(self, *, mtu: int = 1500, offloads: Offload = ALL_OFFLOADS) -> tuple[LinkDevice, LinkDevice]:
        return cable(self.scheduler, mtu=mtu, offloads=offloads, mac_a=self.mac(), mac_b=self.mac())

    def join(
        self,
        a: str,
        b: str,
        *,
        a_addresses: Iterable[str] = (),
        b_addresses: Iterable[str] = (),
        mtu: int = 1500,
        offloads: Offload = ALL_OFFLOADS,
    ) -> tuple[Interface, Interface]:
        """A cable between two nodes; the interfaces at its ends."""
        one, other = self.ends(mtu=mtu, offloads=offloads)
        return (
            self.node(a).add_interface(one, addresses=a_addresses),
            self.node(b).add_interface(other, addresses=b_addresses),
        )

    def turn(self) -> None:
        """Everything there is to do now."""
        for _ in range(2000):
            work = self.scheduler.run_timers()
            for node in self.nodes.values():
                for iface in node.ip.interfaces.values():
                    work += iface.service(64)
            work += self.scheduler.run_deferred()
            if not work:
                return
        raise AssertionError("the world never comes to rest")

    def pass_time(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most until `until()` holds; tells whether it does."""
        end = self.scheduler.now + int(seconds * NS_PER_S)
        self.turn()
        while not (until is not None and until()):
            due = self.scheduler.next_deadline()
            if due is None or due > end:
                self.scheduler.now = end
                self.turn()
                return until is None or until()
            self.scheduler.now = max(due, self.scheduler.now)
            self.turn()
        return True


def routed(*, left_mtu: int = 1500, right_mtu: int = 1500, right_offloads: Offload = ALL_OFFLOADS) -> World:
    """left (10.1.0.2, fd01::2) - router - right (10.2.0.2, fd02::2), forwarding on."""
    world = World()
    world.join("left", "router", a_addresses=["10.1.0.2/24", "fd01::2/64"], b_addresses=["10.1.0.1/24", "fd01::1/64"],
               mtu=left_mtu)  # fmt: skip
    world.join("router", "right", a_addresses=["10.2.0.1/24", "fd02::1/64"], b_addresses=["10.2.0.2/24", "fd02::2/64"],
               mtu=right_mtu, offloads=right_offloads)  # fmt: skip
    for name, net in (("left", 1), ("right", 2)):
        world.node(name).add_route("default", f"10.{net}.0.1")
        world.node(name).add_route("default", f"fd0{net}::1")
    world.node("router").set_forwarding(True)
    return world
