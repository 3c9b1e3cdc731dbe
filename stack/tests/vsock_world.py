"""An engine, its guests and their clock: what the vsock tests about whole connections run in. The guests' kernels are
models (`VsockWorld`), or there is one guest that says what the test says (`ScriptedWorld`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from stack.scheduler import Scheduler
from stack.testing.vsock import GUEST_CID, ModelGuest, ScriptedGuest
from stack.vsock import GuestPort, VsockConnection, VsockEngine, VsockListener, VsockState
from stack.wire.vsock import TYPE_STREAM, Op

HOST_PORT, GUEST_PORT = 5000, 1234


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


class ScriptedWorld:
    """An engine with one guest that says what the test says."""

    def __init__(self, **engine: Any) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.engine = VsockEngine(self.scheduler, **engine)
        self.guest = ScriptedGuest()
        self.port = self.engine.add_guest(self.guest)

    def turn(self) -> None:
        """What a Network does: due timers, packets, deferred work."""
        self.scheduler.run_timers()
        while self.port.service(64):
            pass
        self.scheduler.run_deferred()

    def feed(self, op: int, **fields: Any) -> list[str]:
        """One packet from the guest; the names of what the host sends in answer."""
        fields = {"host_port": HOST_PORT, "guest_port": GUEST_PORT} | fields
        self.guest.feed(op, **fields)
        self.turn()
        return self.guest.ops()

    def wait(self, duration: int) -> list[str]:
        self.scheduler.now += duration
        self.turn()
        return self.guest.ops()

    def flush(self) -> list[str]:
        self.turn()
        return self.guest.ops()

    def accepted(self, *, alloc: int = 1 << 18, buffer: int = 1 << 18) -> tuple[VsockConnection, VsockListener]:
        """A connection the guest opened."""
        listener = self.engine.listen(HOST_PORT, buffer=buffer)
        assert self.feed(Op.REQUEST, alloc=alloc) == ["RESPONSE"]
        connection = listener.accept()
        assert connection is not None
        assert connection.connected
        return connection, listener

    def connected(self, *, alloc: int = 1 << 18) -> VsockConnection:
        """A connection the host opened."""
        bound = self.engine.bind(HOST_PORT)
        connection = self.engine.connect(GUEST_CID, GUEST_PORT, bound=bound)
        bound.release()
        assert self.flush() == ["REQUEST"]
        assert self.feed(Op.RESPONSE, alloc=alloc) == []
        assert connection.connected
        return connection


def state(connection: VsockConnection) -> VsockState:
    """Looked at anew each time: type checkers remember what an attribute was compared with."""
    return connection.state
