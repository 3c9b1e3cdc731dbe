"""Two network namespaces on one cable, in virtual time: what the bulk and property tests of TCP run on."""

from __future__ import annotations

import random
from collections.abc import Callable

from stack.link.cable import cable
from stack.link.device import Offload
from stack.link.impairment import Impairment
from stack.link.offload import ALL_OFFLOADS
from stack.netns import NetNamespace
from stack.scheduler import NS_PER_S, Scheduler
from stack.tcp import Connection, Listener, TcpConfig, TcpOptions

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = bytes.fromhex("fd" + "0" * 29 + "1"), bytes.fromhex("fd" + "0" * 29 + "2")


class World:
    """`step` runs one turn as a Network does: timers, interfaces with work, deferred work."""

    def __init__(
        self,
        seed: int,
        *,
        impairment: Impairment | None = None,
        back: Impairment | None = None,
        mtu: int = 1500,
        offloads: Offload = ALL_OFFLOADS,
        config: TcpConfig | None = None,
    ) -> None:
        self.scheduler = Scheduler(rng=random.Random(seed), now=NS_PER_S)
        left, right = cable(
            self.scheduler,
            a_to_b=impairment,
            b_to_a=impairment if back is None else back,
            mtu=mtu,
            offloads=offloads,
        )
        self.ready: dict[object, None] = {}
        self.a = NetNamespace(self.scheduler, name="a", tcp_config=config)
        self.b = NetNamespace(self.scheduler, name="b", tcp_config=config)
        self.a.add_interface(left, addresses=["10.0.0.1/24", "fd00::1/64"])
        self.b.add_interface(right, addresses=["10.0.0.2/24", "fd00::2/64"])
        for namespace in (self.a, self.b):
            for interface in namespace.interfaces.values():
                interface.on_ready = self._waker(interface)
                self.ready[interface] = None
        self.turns = 0

    def _waker(self, interface: object) -> Callable[[], None]:
        def wake() -> None:
            self.ready[interface] = None

        return wake

    def step(self) -> None:
        self.turns += 1
        scheduler = self.scheduler
        scheduler.run_timers()
        while self.ready:
            batch = list(self.ready)
            self.ready.clear()
            for interface in batch:
                while interface.service(256):  # type: ignore[attr-defined] # interfaces
                    scheduler.run_deferred()
            scheduler.run_deferred()
        scheduler.run_deferred()

    def advance(self) -> bool:
        """One turn, then on to the next deadline. False if there is none."""
        self.step()
        if self.ready:
            return True
        due = self.scheduler.next_deadline()
        if due is None:
            return False
        self.scheduler.now = max(self.scheduler.now, due)
        return True

    def run_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Turns until `condition`, for at most so much virtual time."""
        end = self.scheduler.now + int(seconds * NS_PER_S)
        while not condition():
            if not self.advance() or self.scheduler.now > end:
                return condition()
        return True

    def listen(self, port: int = 80, options: TcpOptions | None = None, *, six: bool = False) -> Listener:
        bound = self.b.tcp.ports.bind(bytes(16 if six else 4), port)
        return self.b.tcp.listen(bound, 16, options=options)

    def connect(self, port: int = 80, options: TcpOptions | None = None, *, six: bool = False) -> Connection:
        return self.a.tcp.connect(None, None, (B6 if six else B, port), options=options)

    def pair(self, seconds: float = 300, *, six: bool = False) -> tuple[Connection, Connection]:
        """An established connection, both ends."""
        listener = self.listen(six=six)
        near = self.connect(six=six)
        assert self.run_until(lambda: bool(listener.ready) and near.connected, seconds)
        far = listener.accept()
        assert far is not None
        listener.close()
        return near, far
