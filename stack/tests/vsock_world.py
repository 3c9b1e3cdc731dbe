"""An engine, guests whose kernels are models, and their clock: what the vsock tests about whole connections run in."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from stack.scheduler import Scheduler
from stack.testing.vsock import GUEST_CID, ModelGuest, ScriptedGuest
from stack.vsock import GuestPort, VsockConnection, VsockEngine
from stack.wire.vsock import TYPE_STREAM


class Modelled:
    """One guest: its transport, the model behind it, and the engine's port for it."""

    def __init__(self, engine: VsockEngine, cid: int, *, buffer: int, groups: tuple[str, ...]) -> None:
        self.transport = ScriptedGuest(cid)
        self.model = ModelGuest(self.transport, buffer=buffer)
        self.port: GuestPort = engine.add_guest(self.transport, groups=groups)


class VsockWorld:
    """`turn` runs everything once, `settle` until nothing moves."""

    def __init__(self, *cids: int, buffer: int = 1 << 18, groups: tuple[str, ...] = (), **engine: Any) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler, **engine)
        self.guests = {cid: Modelled(self.engine, cid, buffer=buffer, groups=groups) for cid in cids or (GUEST_CID,)}
        self.guest = next(iter(self.guests.values()))

    def turn(self) -> int:
        """Timers, packets from every guest, deferred work, and what the guests make of it."""
        self.scheduler.run_timers()
        done = sum(guest.port.service(256) for guest in self.guests.values())
        done += self.scheduler.run_deferred()
        return done + sum(guest.model.run() for guest in self.guests.values())

    def settle(self, until: Callable[[], bool] = lambda: False, limit: int = 10_000) -> None:
        for _ in range(limit):
            if until() or not self.turn():
                return
        raise AssertionError("it goes on for ever")

    def wait(self, duration: int) -> None:
        self.scheduler.now += duration
        self.settle()

    def connected(self, kind: int = TYPE_STREAM, port: int = 99, **options: Any) -> VsockConnection:
        """A connection to the first guest."""
        connection = self.engine.connect(self.guest.transport.guest_cid, port, kind=kind, **options)
        self.settle()
        assert connection.connected
        return connection

    def accepted(self, kind: int = TYPE_STREAM, host_port: int = 5000, guest_port: int = 77) -> VsockConnection:
        """A connection from the first guest."""
        listener = self.engine.listen(host_port, kind=kind)
        self.guest.model.connect(host_port, guest_port, kind=kind)
        self.settle()
        connection = listener.accept()
        assert connection is not None
        return connection

    def stream(self, connection: VsockConnection) -> Any:
        """The guest's side of it."""
        return self.guest.model.streams[connection.local[1], connection.remote[1]]

    def check(self) -> None:
        """No guest has seen a rule broken."""
        assert {cid: guest.model.broken for cid, guest in self.guests.items() if guest.model.broken} == {}
