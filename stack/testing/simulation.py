"""A whole network in virtual time: any number of stacks, switches and routers, bad lines between them, one seed.

Theory of operation
-------------------
A `Simulation` is a real `Network` whose clock stands still until all there is to do at one moment is done, and whose
every random choice comes from one seed: two runs of a seed are equal to the packet, which `digest` shows (it covers
every frame that arrived anywhere, and when). An hour of retransmission takes what its packets take, not an hour.

Programs are generators that use the ordinary non-blocking sockets of their Stack. They `yield` when they cannot go on;
`run` resumes them whenever the network has done something, until all of them are through. `connected`, `accepted`,
`sent` and `received` are the usual steps, to be used with ``yield from``.

A program that can never go on, because nothing is under way any more and no timer will fire, is an error that names
it (`StalledError`), and so is one that takes longer than `run` was told.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

from stack import Network
from stack.link.cable import DEFAULT_MTU, CableEnd
from stack.link.device import Offload, RxFrame
from stack.link.impairment import Impairment, SplitMix64
from stack.link.loopback import QUEUE_BYTES
from stack.link.offload import ALL_OFFLOADS
from stack.link.switch import Switch
from stack.scheduler import NS_PER_S
from stack.testing.clock import ManualClock
from stack.testing.coalescing import Coalescing

if TYPE_CHECKING:
    from stack.core import Stack
    from stack.iface.interface import Interface

T = TypeVar("T")
#: A program: yields None when it has to wait, or the time (ns) to be resumed at, at the latest; returns its result.
Program: TypeAlias = Generator[int | None, None, T]
HOUR: Final = 3600 * NS_PER_S
_FIRST_MAC: Final = 0x026777100000


class StalledError(AssertionError):
    """Programs wait for what can never happen; the text names them."""


class _End(CableEnd):
    """A cable's end that tells the Simulation's digest what arrived."""

    simulation: Simulation
    number: int

    def receive(self, budget: int) -> Sequence[RxFrame]:
        burst = super().receive(budget)
        if burst:
            self.simulation.arrived(self.number, burst)
        return burst


@dataclass(slots=True, kw_only=True)
class Link:
    """A cable of a Simulation: its ends, what is wrong with it, and the interfaces of the stacks it ends at."""

    a: CableEnd
    b: CableEnd
    there: Impairment  #: on frames from a to b
    back: Impairment  #: on frames from b to a
    interfaces: tuple[Interface | None, Interface | None] = (None, None)

    def impair(self, there: Impairment | None = None, back: Impairment | None = None) -> None:
        """Behave like this from now on; None leaves a direction as it is."""
        self.there = there or self.there
        self.back = back or self.back
        self.a.impair(self.there)
        self.b.impair(self.back)

    def cut(self) -> None:
        """Pull the cable out: both ends lose carrier and what was under way."""
        self.a.plug(False)

    def mend(self) -> None:
        """Plug it in again."""
        self.a.plug(True)

    def partition(self) -> None:
        """Let nothing through while both ends believe that all is well; `impair` ends it."""
        for end in (self.a, self.b):
            end.impair(Impairment(loss=1.0))


class Simulation:
    """A network in virtual time. A context manager; `close` ends its stacks."""

    def __init__(self, seed: int, *, coalescing: bool = False) -> None:
        """`coalescing`: the interfaces of stacks join neighbours of one flow, as a card with receive offload does."""
        self.seed = seed
        self.coalescing = coalescing
        self.rng = SplitMix64(seed)  #: for the test's own choices; the stacks draw from another sequence of the seed
        self.clock = ManualClock()
        self.network = Network(clock=self.clock, rng=SplitMix64(seed ^ 0x5EED << 32))
        self.links: list[Link] = []
        self.frames = 0  #: that arrived at an end of any link
        self._digest = hashlib.blake2s()
        self._macs = iter(range(_FIRST_MAC, _FIRST_MAC + (1 << 20)))
        self._programs: dict[str, Program[Any]] = {}
        self._alarms: dict[str, int] = {}  # programs that want to be resumed at a time, ns
        self.results: dict[str, Any] = {}  #: what programs returned, by name

    def close(self) -> None:
        self.network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for program in self._programs.values():
            program.close()
        self.close()

    @property
    def digest(self) -> str:
        """Of every frame that arrived anywhere until now, with the end and the time of its arrival."""
        return self._digest.hexdigest()

    # -- building -----------------------------------------------------------------------------------------------------

    def stack(self, name: str) -> Stack:
        return self.network.stack(name)

    def router(self, name: str) -> Stack:
        """A Stack that forwards between its interfaces, both versions."""
        stack = self.network.stack(name)
        with self.network.lock:
            stack.netns.set_forwarding(True)
            self.network.finish()
        return stack

    def switch(self, name: str = "switch") -> Switch:
        return Switch(self.network.scheduler, name=name)

    def link(
        self,
        a: Stack | Switch,
        b: Stack | Switch,
        *,
        there: Impairment | None = None,
        back: Impairment | None = None,
        mtu: int = DEFAULT_MTU,
        offloads: Offload = ALL_OFFLOADS,
        addresses: tuple[Iterable[str], Iterable[str]] = ((), ()),
    ) -> Link:
        """A cable from `a` to `b`, impaired in each direction; `addresses` of the interfaces at stacks.

        An Impairment without a seed draws from the Simulation's. Raises ValueError as `Stack.add_interface` does.
        """
        ends: list[_End] = []
        for _ in range(2):
            mac = next(self._macs).to_bytes(6, "big")
            end = _End(mtu=mtu, mac=mac, offloads=offloads, queue_bytes=QUEUE_BYTES)
            end.simulation, end.number = self, 2 * len(self.links) + len(ends)
            ends.append(end)
        one, other = ends
        link = Link(a=one, b=other, there=there or Impairment(), back=back or Impairment())
        one.connect(self.network.scheduler, other, link.there)
        other.connect(self.network.scheduler, one, link.back)
        link.interfaces = (self._plug(a, one, addresses[0]), self._plug(b, other, addresses[1]))
        self.links.append(link)
        return link

    def _plug(self, node: Stack | Switch, end: CableEnd, addresses: Iterable[str]) -> Interface | None:
        if not isinstance(node, Switch):
            return node.add_interface(Coalescing(end) if self.coalescing else end, addresses=addresses)
        self.network.attach(node.attach(end))
        return None

    def arrived(self, number: int, burst: Sequence[RxFrame]) -> None:
        """For the links: a burst arrived at the end of that number."""
        digest = self._digest
        for view, *facts in burst:
            digest.update(b"%d %d %d %d" % (self.clock(), number, len(view), facts[0]))
            digest.update(view)
        self.frames += len(burst)

    # -- running ------------------------------------------------------------------------------------------------------

    def spawn(self, name: str, program: Program[Any]) -> None:
        """Begin `program` with the next `run`. Raises ValueError for a name in use."""
        if name in self._programs or name in self.results:
            raise ValueError(f"there is a program called {name!r} already")
        self._programs[name] = program

    def run(self, limit: int = HOUR) -> None:
        """Until every program is through. `limit`: most virtual time it may take, ns.

        Raises StalledError when they wait for nothing, TimeoutError at the limit, and what a program raises.
        """
        clock, network = self.clock, self.network
        end = clock() + limit
        while self._programs:
            due = network.poll(clock())
            if due is not None and due <= clock():
                continue
            if self._resume():
                continue
            due = network.poll(clock())
            if self._alarms:
                due = min(self._alarms.values()) if due is None else min(due, *self._alarms.values())
            if due is None:
                raise StalledError(f"seed {self.seed}: {', '.join(self._programs)} can never go on")
            if due > end:
                raise TimeoutError(f"seed {self.seed}: {', '.join(self._programs)} after {limit / NS_PER_S:g} s")
            clock.advance_to(max(due, clock()))

    def settle(self, delay: int) -> None:
        """Let `delay` ns pass without programs."""
        self.network.advance(delay)

    def _resume(self) -> bool:
        """Each program once; True if one of them is through, which others may have waited for."""
        through = False
        for name, program in tuple(self._programs.items()):
            self._alarms.pop(name, None)
            try:
                alarm = next(program)
                if alarm is not None:
                    self._alarms[name] = alarm
            except StopIteration as stop:
                self.results[name] = stop.value
                del self._programs[name]
                through = True
        return through


# -- what programs do --------------------------------------------------------------------------------------------------


def until(sim: Simulation, time: int) -> Program[None]:
    """Do nothing until `time`, ns of the Simulation's clock."""
    while sim.clock() < time:
        yield time


def connected(sock: Any, address: Any) -> Program[None]:
    """Connect `sock`, which is non-blocking. Raises the OSError that came of it."""
    failure = sock.connect_ex(address)
    while failure in (errno.EINPROGRESS, errno.EALREADY):
        yield None
        failure = sock.connect_ex(address)
    if failure not in (0, errno.EISCONN):
        raise OSError(failure, errno.errorcode.get(failure, "?"))


def accepted(listener: Any) -> Program[Any]:
    """The next connection of `listener`, non-blocking."""
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            yield None
        else:
            sock.setblocking(False)
            return sock


def sent(sock: Any, data: bytes) -> Program[None]:
    """All of `data`. Raises OSError as `send` does."""
    rest: bytes | memoryview = data
    while rest:
        try:
            rest = memoryview(rest)[sock.send(rest) :]
        except BlockingIOError:
            yield None


def received(sock: Any, size: int = 1 << 62) -> Program[bytes]:
    """`size` bytes, or all until the end. Raises OSError as `recv` does."""
    data = bytearray()
    while len(data) < size:
        try:
            piece = sock.recv(min(65536, size - len(data)))
        except BlockingIOError:
            yield None
            continue
        if not piece:
            break
        data += piece
    return bytes(data)
