"""Throughput over a long, lossy path: our congestion control in virtual time, Linux's own, and what theory gives.

Linux runs in real time between two network namespaces, its packets carried by a cable of ours with the same
impairment; ours runs through the same line in virtual time, a minute in a second or two. All transfers of Linux go at
the same time, each over a line of its own.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any, Final

from qemu.guest.bench.figure import Figure
from stack import Network
from stack.link import Impairment, Switch, cable
from stack.scheduler import NS_PER_MS, NS_PER_S
from stack.testing.kernel_host import KernelHost, NoKernelHostError
from stack.testing.simulation import Program, Simulation, accepted, connected

RTT: Final = 0.1  #: seconds
LOSS: Final = 0.01
RATE: Final = 20_000_000  #: bits per second
ALGORITHMS: Final = ("reno", "cubic", "bbr")
_MSS: Final = 1448
#: Not counted: slow start, and the first losses.
WARM_SECONDS: Final = 5


def _line(seed: int) -> Impairment:
    return Impairment(
        loss=LOSS, delay_ns=int(RTT / 2 * NS_PER_S), rate_bps=RATE, queue_bytes=int(RATE / 8 * RTT), seed=seed
    )


_BACK: Final = Impairment(delay_ns=int(RTT / 2 * NS_PER_S))


def theory(algorithm: str) -> float:
    """Mb/s: Mathis 1997 for Reno, RFC 9438 section 5.1 for CUBIC, and for BBR what the line lets through."""
    mathis = math.sqrt(1.5 / LOSS)
    windows: dict[str, float] = {"reno": mathis, "cubic": max(mathis, (0.4 * 3.7 / 1.2) ** 0.25 * (RTT / LOSS) ** 0.75)}
    if algorithm in windows:
        return windows[algorithm] * _MSS * 8 / RTT / 1e6
    return RATE * (1 - LOSS) * _MSS / (_MSS + 66) / 1e6


def ours(algorithm: str, seconds: int, seed: int = 1, warm: int = WARM_SECONDS) -> float:
    """Mb/s between two stacks over `seconds` of virtual time, behind `warm` that are not counted."""
    with Simulation(seed) as sim:
        near, far = sim.stack("near"), sim.stack("far")
        sim.link(near, far, there=_line(seed), back=_BACK, addresses=(["10.0.0.1/24"], ["10.0.0.2/24"]))
        end = sim.clock() + (seconds + warm) * NS_PER_S
        counted: list[int] = []

        def send() -> Program[None]:
            with near.socket.socket() as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
                sock.setblocking(False)
                yield from connected(sock, ("10.0.0.2", 1))
                blob = bytes(1 << 16)
                while sim.clock() < end:
                    try:
                        sock.send(blob)
                    except BlockingIOError:
                        yield end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        def receive() -> Program[None]:
            with far.socket.create_server(("10.0.0.2", 1)) as listener:
                listener.setblocking(False)
                sock = yield from accepted(listener)
            total, buffer = 0, bytearray(1 << 20)
            with sock:
                while sim.clock() < end:
                    if not counted and sim.clock() >= end - seconds * NS_PER_S:
                        counted.append(total)
                    try:
                        total += sock.recv_into(buffer)
                    except BlockingIOError:
                        yield sim.clock() + 50 * NS_PER_MS
            counted.append(total)

        sim.spawn("receive", receive())
        sim.spawn("send", send())
        sim.run()
        return (counted[-1] - counted[0]) * 8 / seconds / 1e6


def linux(algorithms: tuple[str, ...], seconds: int, warm: int = WARM_SECONDS) -> dict[str, float]:
    """Mb/s of each algorithm between two Linux nodes, those the kernel has, as `ours`. Raises NoKernelHostError."""
    results: dict[str, float] = {}
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        threads = []
        for number, algorithm in enumerate(algorithms):
            one, other = (stack.enter_context(KernelHost(f"10.0.0.{last}/24")) for last in (1, 2))
            if algorithm not in one.sysctl("net.ipv4.tcp_available_congestion_control").split():
                continue
            with network.lock:
                ends = cable(network.scheduler, a_to_b=_line(number + 1), b_to_a=_BACK)
                for end, host in zip(ends, (one, other), strict=True):
                    switch = Switch(network.scheduler)
                    network.attach_locked(switch.attach(end))
                    network.attach_locked(switch.attach(host.tap))
            threads.append(threading.Thread(target=_transfer, args=(one, other, algorithm, seconds, warm, results)))
        network.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


def _transfer(
    one: KernelHost, other: KernelHost, algorithm: str, seconds: int, warm: int, results: dict[str, float]
) -> None:
    """One transfer between two namespaces; its Mb/s goes to `results`."""
    with other.socket() as listener, one.socket() as sender:
        listener.bind(("10.0.0.2", 1))
        listener.listen()
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
        sender.settimeout(10)
        sender.connect(("10.0.0.2", 1))
        receiver, _ = listener.accept()
        end = time.monotonic() + warm + seconds

        def send() -> None:
            blob = bytes(1 << 16)
            with suppress(OSError):  # the receiver may be through first
                while time.monotonic() < end:
                    sender.send(blob)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sender.close()

        thread = threading.Thread(target=send)
        thread.start()
        with receiver:
            total, base, buffer, began = 0, -1, bytearray(1 << 18), 0.0
            while (now := time.monotonic()) < end:
                total += receiver.recv_into(buffer)
                if base < 0 and now >= end - seconds:
                    base, began = total, now
            results[algorithm] = (total - base) * 8 / (now - began) / 1e6
        thread.join()


def figures(seconds: int, warm: int = WARM_SECONDS) -> list[Figure]:
    """Each algorithm's throughput over the path, beside Linux's and theory's."""
    try:
        measured: dict[str, Any] = linux(ALGORITHMS, seconds, warm)
        reason = "not in this kernel"
    except NoKernelHostError as error:
        measured, reason = {}, str(error)
    rows = []
    for algorithm in ALGORITHMS:
        # A second of BBR is ten of the others: it fills the line.
        length, seeds = (seconds, (1,)) if algorithm == "bbr" else (seconds * 4, (1, 2))
        rate = sum(ours(algorithm, length, seed, warm) for seed in seeds) / len(seeds)
        theirs = measured.get(algorithm)
        beside = f"Linux {theirs:.2f}" if theirs else f"Linux: {reason}"
        name = f"{algorithm}, {RTT * 1000:.0f} ms, {LOSS:.0%} loss, {RATE // 1_000_000} Mb/s"
        rows.append(Figure(name, rate, "Mb/s", f"{beside}, theory {theory(algorithm):.2f}"))
    return rows
