"""What the stack itself costs, with no ring and no guest: one thread, two stacks, a cable.

Stages are timed from outside: while `Stages` is active, chosen methods are wrapped, and each is charged the time spent
in it less that spent in other wrapped ones, and less what the wrappers cost, its own and those of the others, which is
measured beforehand. Methods are told apart by the node they belong to, because the same code sends data on one side and
acknowledgements on the other.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Final, Self

from qemu.guest.bench.figure import Figure
from stack import Network, Stack
from stack.iface.interface import Interface
from stack.link import cable
from stack.link.device import Offload
from stack.link.offload import ALL_OFFLOADS
from stack.tcp.express import Express
from stack.tcp.pcb import Pcb
from stack.testing.clock import ManualClock

SUPERFRAME: Final = 65160  #: bytes of one write: 45 segments of 1448
_CLOCK: Final = time.perf_counter_ns
#: Superframes measured at a time: about a millisecond, which is seldom interrupted.
_BATCH: Final = 25
#: Calls in a row that show what wrapping one costs.
_CALLS: Final = 100


@contextmanager
def pair(offloads: Offload = ALL_OFFLOADS) -> Iterator[tuple[Network, Stack, Stack]]:
    """Two stacks joined by a cable, in virtual time: nothing waits, so what is measured is work."""
    with Network(clock=ManualClock()) as network:
        near, far = network.stack("near"), network.stack("far")
        ends = cable(network.scheduler, offloads=offloads)
        near.add_interface(ends[0], addresses=["10.0.0.1/24"])
        far.add_interface(ends[1], addresses=["10.0.0.2/24"])
        yield network, near, far


@contextmanager
def connected(near: Stack, far: Stack) -> Iterator[tuple[Any, Any]]:
    """A TCP connection from `near` to `far`: both its sockets."""
    with far.socket.create_server(("10.0.0.2", 1000)) as listener:
        client = near.socket.create_connection(("10.0.0.2", 1000))
        served, _ = listener.accept()
    with client, served:
        yield client, served


class Stages:
    """Wraps methods while active, and adds up what each costs at each node. A context manager."""

    def __init__(
        self,
        methods: dict[str, tuple[type, str, Callable[[Any], object]]],
        clock: Callable[[], int] = _CLOCK,
    ) -> None:
        """`methods`: by stage, the class, the name, and a function from its object to the node it belongs to."""
        self.methods = methods
        self.clock = clock
        #: ns by stage and node, wrappers taken out; `calls` likewise.
        self.spent: dict[tuple[str, object], float] = {}
        self.calls: dict[tuple[str, object], int] = {}
        #: ns that one wrapped call adds to its own stage, and to what is around it.
        self.own = self.around = 0.0
        self._inner: list[float] = [0]
        self._originals: list[tuple[type, str, Any]] = []

    def wrap(self, stage: str, owner: Callable[[Any], object], method: Any) -> Any:
        inner, spent, calls, clock = self._inner, self.spent, self.calls, self.clock
        own, around = self.own, self.around

        @wraps(method)
        def timed(this: Any, *args: Any, **kwargs: Any) -> Any:
            inner.append(0)
            began = clock()
            try:
                return method(this, *args, **kwargs)
            finally:
                taken = clock() - began
                key = (stage, owner(this))
                spent[key] = spent.get(key, 0) + taken - inner.pop() - own
                calls[key] = calls.get(key, 0) + 1
                inner[-1] += taken + around

        return timed

    def __enter__(self) -> Self:
        self._calibrate()
        for stage, (kind, name, owner) in self.methods.items():
            original = kind.__dict__[name]
            self._originals.append((kind, name, original))
            setattr(kind, name, self.wrap(stage, owner, original))
        return self

    def __exit__(self, *_: object) -> None:
        for kind, name, original in self._originals:
            setattr(kind, name, original)

    def clear(self) -> None:
        """Count from here."""
        self.spent.clear()
        self.calls.clear()
        self._inner[:] = [0]

    @property
    def inside(self) -> float:
        """ns since `clear` that were spent in wrapped methods or on wrapping them."""
        return self._inner[0]

    def _calibrate(self) -> None:
        """Find out what a wrapped call costs (the best of many)."""

        class Nothing:
            def method(self) -> None:
                pass

        own = around = 1e9
        for _ in range(50):
            probe = Stages({}, self.clock)
            wrapped, plain, nothing = probe.wrap("", lambda _: None, Nothing.method), Nothing.method, Nothing()
            began = self.clock()
            for _ in range(_CALLS):
                plain(nothing)
            bare = self.clock() - began
            began = self.clock()
            for _ in range(_CALLS):
                wrapped(nothing)
            taken = self.clock() - began
            inside = probe.inside
            own, around = min(own, inside / _CALLS), min(around, (taken - inside - bare) / _CALLS)
        self.own, self.around = own, around


def _layer_of(part: Express) -> int:
    return id(part._layer)  # noqa: SLF001  (timed from outside, so that being timed costs nothing otherwise)


def superframe_stages(seconds: float, clock: Callable[[], int] = _CLOCK) -> list[Figure]:
    """Bulk TCP in superframes from one stack to the other: microseconds per superframe and stage, at both ends.

    `clock` answers nanoseconds.
    """
    methods: dict[str, tuple[type, str, Callable[[Any], object]]] = {
        "link in": (Interface, "service", id),
        "IP and TCP in": (Express, "receive", _layer_of),
        "TCP and IP out": (Pcb, "flush", lambda each: id(each.layer)),
        "link out": (Interface, "flush", id),
        "lone frame out": (Interface, "send_alone", id),
    }
    blob = bytes(SUPERFRAME)
    with Stages(methods, clock) as stages, pair() as (network, near, far), connected(near, far) as (client, served):
        target = bytearray(SUPERFRAME)
        nodes: dict[object, str] = {}
        for name, stack in (("sender", near), ("receiver", far)):
            netns = stack.netns
            for part in (netns.interfaces["eth0"], netns.ip, netns.tcp):
                nodes[id(part)] = name
        client.setblocking(False)
        served.setblocking(False)
        client.setsockopt(6, 1, 1)

        def carry(count: int) -> float:
            """Seconds in socket calls for `count` superframes."""
            began = clock()
            for _ in range(count):
                client.send(blob)
                left = SUPERFRAME
                while left:
                    left -= served.recv_into(target)
            network.poll(network.clock())
            return (clock() - began) * 1e-9

        carry(500)  # past slow start
        # The batch that was disturbed least, as below: so the stages add up to the whole on a busy machine too.
        least, elapsed, rest = 1e9, 0.0, 0.0
        costs: dict[tuple[str, object], float] = {}
        counts: dict[tuple[str, object], int] = {}
        while elapsed < seconds:
            stages.clear()
            taken = carry(_BATCH)
            elapsed += taken
            if taken < least:
                least, costs, counts = taken, dict(stages.spent), dict(stages.calls)
                rest = taken * 1e9 - stages.inside
        figures = []
        for stage in methods:
            for node in ("sender", "receiver"):
                keys = [key for key in costs if key[0] == stage and nodes.get(key[1]) == node]
                calls = sum(counts[key] for key in keys)
                if calls:
                    cost = sum(costs[key] for key in keys) / _BATCH / 1000
                    figures.append(Figure(f"{stage}, {node}", cost, "us", f"{calls / _BATCH:.2f} calls"))
        figures.append(Figure("socket calls, turns, cable", rest / _BATCH / 1000, "us", "all between the stages"))
    # Once more without the wrappers: what all of it really costs.
    with pair() as (network, near, far), connected(near, far) as (client, served):
        client.setblocking(False)
        served.setblocking(False)
        client.setsockopt(6, 1, 1)
        carry(500)
        best = min(carry(_BATCH) for _ in range(max(3, int(seconds * 400)))) / _BATCH * 1e6
    figures.append(
        Figure("send to recv, all of it", best, "us", f"{SUPERFRAME * 8e-3 / best:.1f} Gb/s, both ends, one core")
    )
    return figures


def packet_rates(seconds: float) -> list[Figure]:
    """Packets per second on one core without any offload, sender and receiver together."""
    figures = []
    with pair(Offload.NONE) as (network, near, far):
        socket = near.socket
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            far.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        ):
            receiver.bind(("10.0.0.2", 1000))
            sender.connect(("10.0.0.2", 1000))
            # 64 bytes on the wire: 14 Ethernet, 20 IP, 8 UDP, 18 payload, 4 checksum.
            for name, size in (("64-byte frames, UDP", 18), ("1448-byte datagrams, UDP", 1448)):
                payload, done, began = bytes(size), 0, _CLOCK()
                while (spent := (_CLOCK() - began) * 1e-9) < seconds:
                    for _ in range(50):
                        sender.send(payload)
                    for _ in range(50):
                        receiver.recv(2048)
                    done += 50
                figures.append(Figure(name, done / spent, "/s", "no offload, both ends on one core"))
        with connected(near, far) as (client, served):
            client.setblocking(False)
            served.setblocking(False)
            blob, target, done, began = bytes(1448 * 40), bytearray(1 << 20), 0, _CLOCK()
            while (spent := (_CLOCK() - began) * 1e-9) < seconds:
                client.send(blob)
                done += served.recv_into(target)
            network.poll(network.clock())
            figures.append(Figure("1448-byte segments, TCP", done / 1448 / spent, "/s", "no offload, both ends"))
    return figures


def idle_connections(counts: tuple[int, ...] = (0, 1_000, 10_000)) -> list[Figure]:
    """What a turn and a round trip cost beside so many idle connections, and what one of those takes in memory.

    Each figure is taken in turns with the same one of a network without any, which is what it is compared with.
    """
    figures: list[Figure] = []
    with ExitStack() as stack:
        worlds = [stack.enter_context(pair()) for _ in range(2)]
        links = [stack.enter_context(connected(near, far)) for _, near, far in worlds]
        _, near, far = worlds[1]
        listener = stack.enter_context(far.socket.create_server(("10.0.0.2", 2000), backlog=128))
        kept: list[Any] = []
        for count in counts:
            while len(kept) < 2 * count:
                kept.append(near.socket.create_connection(("10.0.0.2", 2000)))
                kept.append(listener.accept()[0])
            gc.collect()
            gc.freeze()  # so many objects are no business of the collector's while we measure
            turns, trips = [1e9, 1e9], [1e9, 1e9]
            for number in (0, 1) * 15:
                turns[number] = min(turns[number], _turn(worlds[number][0]))
                trips[number] = min(trips[number], _round_trip(*links[number]))
            gc.unfreeze()
            for name, (base, cost) in (("turn with nothing to do", turns), ("round trip of one byte", trips)):
                figures.append(Figure(f"{name}, {count:,} idle connections", cost, "us", f"{cost / base:.2f}x none"))
        for sock in kept:
            sock.close()
    memory = _memory_per_connection()
    figures.append(Figure("memory of an idle connection", memory, "bytes", "one end, socket included"))
    return figures


def _each(work: Callable[[], object], count: int) -> float:
    """Microseconds that one of `count` calls takes."""
    began = _CLOCK()
    for _ in range(count):
        work()
    return (_CLOCK() - began) / count / 1000


def _turn(network: Network) -> float:
    return _each(lambda: network.poll(network.clock()), 500)


def _round_trip(client: Any, served: Any) -> float:
    def once() -> None:
        client.send(b"?")
        served.recv(1)
        served.send(b"!")
        client.recv(1)

    return _each(once, 100)


def _memory_per_connection(count: int = 500) -> float:
    with pair() as (_, near, far), far.socket.create_server(("10.0.0.2", 2000), backlog=128) as listener:
        kept: list[Any] = []

        def more() -> None:
            for _ in range(count):
                kept.append(near.socket.create_connection(("10.0.0.2", 2000)))
                kept.append(listener.accept()[0])

        more()  # what grows only once has grown
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            more()
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        for sock in kept:
            sock.close()
    return (after - before) / (2 * count)
