"""Random networks, random lines, random programs: every byte arrives once and in order, or an error says why.

The seed decides all of it: how many nodes, switches and routers, what is wrong with each direction of each cable, who
talks to whom and how they end it. A failing seed fails again in the same place.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from typing import Any

import pytest

from stack.core import Stack
from stack.link.device import Offload
from stack.link.impairment import Impairment
from stack.link.offload import ALL_OFFLOADS
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.testing.simulation import (
    Link,
    Program,
    Simulation,
    StalledError,
    connected,
    received,
    sent,
    until,
)

#: What a bad line alone may do: lose all three questions for a neighbour's address.
BAD_LINE = {errno.EHOSTUNREACH}
#: ... and where losses come in bursts, which last for as long as too few frames come to see their end, or where a bit
#: of an ARP answer may flip, which has no checksum: what it says is believed until it has been in doubt for a while.
BURSTS = BAD_LINE | {errno.ETIMEDOUT, errno.ECONNRESET}
#: ... and when the other side aborts.
ABORTED = BURSTS | {errno.EPIPE}
#: ... and where a line was cut or partitioned for a while.
UNREACHABLE = ABORTED | {errno.ENETUNREACH}


def chance(sim: Simulation, probability: float) -> bool:
    return sim.rng.random() < probability


def choice(sim: Simulation, *values: Any) -> Any:
    return values[sim.rng.randrange(0, len(values))]


def line(sim: Simulation) -> Impairment:
    """A direction with anything wrong with it, or nothing."""
    if chance(sim, 0.25):
        return Impairment()
    return Impairment(
        loss=choice(sim, 0.0, 0.001, 0.01, 0.05),
        burst_loss=choice(sim, 0.0, 0.0, 0.002),
        duplicate=choice(sim, 0.0, 0.01, 0.05),
        reorder=choice(sim, 0.0, 0.01, 0.1),
        reorder_depth=choice(sim, 1, 3, 10),
        corrupt=choice(sim, 0.0, 0.0, 0.005),
        delay_ns=choice(sim, 0, NS_PER_MS // 10, 5 * NS_PER_MS, 50 * NS_PER_MS),
        jitter_ns=choice(sim, 0, 0, NS_PER_MS, 10 * NS_PER_MS),
        rate_bps=choice(sim, 0, 0, 2_000_000, 50_000_000),
        queue_bytes=choice(sim, 20_000, 256 << 10),
        per_packet=chance(sim, 0.8),
    )


class World:
    """A random topology: `hosts` at its edges, all reachable from each other by IPv4 and IPv6."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.hosts: list[tuple[Stack, dict[int, str]]] = []
        self.links: list[Link] = []
        routers = sim.rng.randrange(0, 4)
        #: Lans 0..routers, each a switch or a cable; router n joins lan n and n + 1.
        last: Stack | None = None
        routes: list[tuple[Stack, str, str]] = []
        for lan in range(routers + 1):
            switch = sim.switch(f"switch{lan}")
            for number in range(sim.rng.randrange(1, 3) + (routers == 0)):
                host = sim.stack(f"host{lan}-{number}")
                addresses = {4: f"10.0.{lan}.{10 + number}", 6: f"fd00:{lan}::{10 + number}"}
                self._join(host, switch, addresses)
                if routers:
                    # The router towards higher lans, or, on the last one, the only one.
                    first = 1 if lan < routers else 2
                    routes.append((host, "0.0.0.0/0", f"10.0.{lan}.{first}"))
                    routes.append((host, "::/0", f"fd00:{lan}::{first}"))
                    for lower in range(lan if lan < routers else 0):
                        routes.append((host, f"10.0.{lower}.0/24", f"10.0.{lan}.2"))
                        routes.append((host, f"fd00:{lower}::/64", f"fd00:{lan}::2"))
                self.hosts.append((host, addresses))
            if last is not None:
                self._join(last, switch, {4: f"10.0.{lan}.2", 6: f"fd00:{lan}::2"})
            if lan < routers:
                router = sim.router(f"router{lan}")
                self._join(router, switch, {4: f"10.0.{lan}.1", 6: f"fd00:{lan}::1"})
                for other in range(routers + 1):
                    # Neighbouring routers share a lan: the next one up is its .1, the next one down its .2.
                    if other > lan + 1:
                        routes.append((router, f"10.0.{other}.0/24", f"10.0.{lan + 1}.1"))
                        routes.append((router, f"fd00:{other}::/64", f"fd00:{lan + 1}::1"))
                    elif other < lan:
                        routes.append((router, f"10.0.{other}.0/24", f"10.0.{lan}.2"))
                        routes.append((router, f"fd00:{other}::/64", f"fd00:{lan}::2"))
                last = router
        for stack, destination, gateway in routes:  # now that every interface is there
            stack.add_route(destination, gateway)

    def _join(self, stack: Stack, switch: Any, addresses: dict[int, str]) -> None:
        sim = self.sim
        offloads = choice(sim, ALL_OFFLOADS, ALL_OFFLOADS, Offload.CSUM, Offload.NONE)
        texts = [f"{addresses[4]}/24", f"{addresses[6]}/64"]
        link = sim.link(stack, switch, there=line(sim), back=line(sim), offloads=offloads, addresses=(texts, ()))
        self.links.append(link)


class Flow:
    """A connection: so many bytes there and back, and how each side ends it."""

    def __init__(self, world: World, number: int) -> None:
        sim = world.sim
        self.sim, self.name = sim, f"flow{number}"
        client = sim.rng.randrange(0, len(world.hosts))
        server = (client + sim.rng.randrange(1, len(world.hosts))) % len(world.hosts)
        self.client, _ = world.hosts[client]
        self.server, addresses = world.hosts[server]
        self.version = choice(sim, 4, 6)
        self.address = (addresses[self.version], 5000 + number)
        self.request = self._bytes(choice(sim, 0, 1, 2000, 50_000, 200_000))
        self.answer = self._bytes(choice(sim, 0, 1, 2000, 50_000, 200_000))
        self.abort = choice(sim, "", "", "", "", "client", "server")
        self.lazy = chance(sim, 0.2)
        self.congestion = choice(sim, "cubic", "cubic", "reno", "bbr")
        self.got: dict[str, bytes] = {}
        self.errors: dict[str, int] = {}
        self.listener = self._socket(self.server)
        self.listener.bind((addresses[self.version], 5000 + number))
        self.listener.listen()
        sim.spawn(f"{self.name} server", self._guarded("server", self._serve()))
        sim.spawn(f"{self.name} client", self._guarded("client", self._ask()))

    def _bytes(self, size: int) -> bytes:
        seed = self.sim.rng.getrandbits(64).to_bytes(8, "big")
        return hashlib.shake_128(seed).digest(size)

    def _socket(self, stack: Stack) -> Any:
        module = stack.socket
        sock = module.socket(module.AF_INET if self.version == 4 else module.AF_INET6, module.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(module.IPPROTO_TCP, module.TCP_CONGESTION, self.congestion.encode())
        # A RST that is lost is never sent again: who only waits for the other side would wait for ever.
        sock.setsockopt(module.SOL_SOCKET, module.SO_KEEPALIVE, 1)
        sock.setsockopt(module.IPPROTO_TCP, module.TCP_KEEPIDLE, 120)
        return sock

    def _guarded(self, who: str, program: Program[None]) -> Program[None]:
        try:
            yield from program
        except OSError as error:
            self.errors[who] = error.errno or 0

    def _ask(self) -> Program[None]:
        with self._socket(self.client) as sock:
            yield from connected(sock, self.address)
            yield from sent(sock, self.request)
            if self.abort == "client":
                self._reset(sock)
                return
            sock.shutdown(1)
            self.got["client"] = yield from self._received(sock)

    def _serve(self) -> Program[None]:
        with self.listener:
            # Nobody may come: the client could not connect, or its RST overtook what would have ended the handshake.
            while f"{self.name} client" not in self.sim.results:
                try:
                    sock, _ = self.listener.accept()
                    break
                except BlockingIOError:
                    yield None
            else:
                return
        with sock:
            sock.setblocking(False)
            self.got["server"] = yield from self._received(sock)
            if self.abort == "server":
                self._reset(sock)
                return
            yield from sent(sock, self.answer)

    def _received(self, sock: Any) -> Program[bytes]:
        if self.lazy:
            yield from until(self.sim, self.sim.clock() + 300 * NS_PER_MS)
        return (yield from received(sock))

    @staticmethod
    def _reset(sock: Any) -> None:
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER
        sock.close()

    def check(self, allowed: set[int]) -> None:
        assert set(self.errors.values()) <= allowed, (self.name, self.errors)
        for who, wanted in (("server", self.request), ("client", self.answer)):
            if not self.errors and not self.abort:
                assert self.got[who] == wanted, (self.name, who, len(self.got[who]), len(wanted))
            elif who in self.got and not self.abort:
                assert wanted.startswith(self.got[who])


def trouble(world: World) -> Program[None]:
    """Once, a link is cut or lets nothing through, for a while."""
    sim = world.sim
    link = choice(sim, *world.links)
    begin = sim.clock() + sim.rng.randrange(0, 2 * NS_PER_S)
    end = begin + choice(sim, NS_PER_S // 10, 3 * NS_PER_S, 40 * NS_PER_S)
    cut = chance(sim, 0.5)
    yield from until(sim, begin)
    if cut:
        link.cut()
    else:
        link.partition()
    yield from until(sim, end)
    if cut:
        link.mend()
    else:
        link.impair()


def run(seed: int, *, coalescing: bool = False) -> tuple[str, int]:
    """One seed; returns its digest and how many frames arrived."""
    with Simulation(seed, coalescing=coalescing) as sim:
        world = World(sim)
        flows = [Flow(world, number) for number in range(sim.rng.randrange(1, 6))]
        broken = chance(sim, 0.2)
        if broken:
            sim.spawn("trouble", trouble(world))
        sim.run()
        bursts = any(way.burst_loss or way.corrupt for link in world.links for way in (link.there, link.back))
        for flow in flows:
            flow.check(UNREACHABLE if broken else ABORTED if flow.abort else BURSTS if bursts else BAD_LINE)
        return sim.digest, sim.frames


SEEDS = 40
LONG_BATCH = 250


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_byte_arrives_or_the_error_says_why(seed: int) -> None:
    run(seed)


@pytest.mark.parametrize("seed", range(100, 112))
def test_every_byte_arrives_where_receivers_coalesce(seed: int) -> None:
    """The same where every interface joins what arrives together (generic receive offload)."""
    run(seed, coalescing=True)


@pytest.mark.long
@pytest.mark.parametrize("batch", range(4))
def test_every_byte_arrives_where_receivers_coalesce_for_a_thousand_seeds(batch: int) -> None:
    for seed in range(5000 + batch * LONG_BATCH, 5000 + (batch + 1) * LONG_BATCH):
        run(seed, coalescing=True)


@pytest.mark.long
@pytest.mark.parametrize("batch", range(12))
def test_every_byte_arrives_for_thousands_of_seeds(batch: int) -> None:
    for seed in range(1000 + batch * LONG_BATCH, 1000 + (batch + 1) * LONG_BATCH):
        run(seed)


@pytest.mark.parametrize("seed", range(3, 40, 6))
def test_a_seed_is_the_same_to_the_packet(seed: int) -> None:
    first, frames = run(seed)
    assert run(seed) == (first, frames)
    assert run(seed + 1)[0] != first


def test_whoever_waits_for_nothing_is_named() -> None:
    with Simulation(1) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        sim.link(one, other, addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))

        def forever() -> Program[None]:
            with one.socket.socket(one.socket.AF_INET, one.socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                while True:
                    with pytest.raises(BlockingIOError):
                        sock.recv(1)
                    yield None

        sim.spawn("the patient one", forever())
        with pytest.raises(StalledError, match="the patient one"):
            sim.run()


def test_a_black_hole_swallows_what_is_too_long_and_nothing_else() -> None:
    """`Impairment.mtu` is per direction and tells nobody."""
    with Simulation(1) as sim:
        one, other = sim.stack("one"), sim.stack("other")
        link = sim.link(one, other, there=Impairment(mtu=1000), addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
        with (
            one.socket.socket(one.socket.AF_INET, one.socket.SOCK_DGRAM) as a,
            other.socket.socket(one.socket.AF_INET, one.socket.SOCK_DGRAM) as b,
        ):
            a.bind(("10.0.0.1", 1))
            b.bind(("10.0.0.2", 1))
            for size in (972, 973, 500):
                a.sendto(bytes(size), ("10.0.0.2", 1))
                b.sendto(bytes(size), ("10.0.0.1", 1))
            sim.settle(NS_PER_S)
            a.setblocking(False)
            b.setblocking(False)
            assert [len(a.recv(2000)) for _ in range(3)] == [972, 973, 500]
            assert [len(b.recv(2000)) for _ in range(2)] == [972, 500]
            with pytest.raises(BlockingIOError):
                b.recv(1)
            assert link.a.stats is not None
            assert link.a.stats.mtu == 1
