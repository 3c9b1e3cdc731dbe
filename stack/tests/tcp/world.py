"""Two stacks on one cable, in virtual time: what the bulk tests of TCP run on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Self

from stack import Network
from stack.link.cable import cable
from stack.link.device import Offload
from stack.link.impairment import Impairment
from stack.link.offload import ALL_OFFLOADS
from stack.scheduler import NS_PER_S
from stack.tcp import Connection, Listener, TcpConfig, TcpOptions
from stack.testing.clock import ManualClock

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = bytes.fromhex("fd" + "0" * 29 + "1"), bytes.fromhex("fd" + "0" * 29 + "2")


class World:
    """A Network of two stacks; `advance` polls it and moves its virtual time on."""

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
        self.network = Network(clock=ManualClock(NS_PER_S), rng=random.Random(seed))
        self.scheduler = self.network.scheduler
        self.scheduler.now = NS_PER_S
        self.left, self.right = cable(
            self.scheduler,
            a_to_b=impairment,
            b_to_a=impairment if back is None else back,
            mtu=mtu,
            offloads=offloads,
        )
        stacks = self.network.stack("a"), self.network.stack("b")
        stacks[0].add_interface(self.left, addresses=["10.0.0.1/24", "fd00::1/64"])
        stacks[1].add_interface(self.right, addresses=["10.0.0.2/24", "fd00::2/64"])
        self.a, self.b = (stack.netns for stack in stacks)
        if config is not None:
            self.a.tcp.config = self.b.tcp.config = config

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.network.close()

    def advance(self) -> bool:
        """One turn; if it left nothing to do, on to the next deadline. False if there is none."""
        now = self.scheduler.now
        due = self.network.poll(now)
        if due is None:
            return False
        self.scheduler.now = max(now, due)
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
        ends = self.pair_on(listener, seconds, six=six)
        listener.close()
        return ends

    def pair_on(self, listener: Listener, seconds: float = 300, *, six: bool = False) -> tuple[Connection, Connection]:
        """The same, with a listener whose accept queue is empty."""
        near = self.connect(six=six)
        assert self.run_until(lambda: bool(listener.ready) and near.connected, seconds)
        far = listener.accept()
        assert far is not None
        return near, far
