"""vsock rows: messages both ways, round trips and connects, on the driver rig and with a real guest.

Beside them, in the same run, the same bytes over a Unix stream socket between two processes, and over the kernel's own
vsock loopback where it has one. Two ways of ours: `socket` ends at an AF_VSOCK socket of this process, so Python sees
every byte; `gateway` is forwarded to a Unix socket of another process, so Python sees none (docs/decisions/0030).

    python -m qemu.guest.bench.vsock [SECONDS [ROUNDS]]     bulk in messages of 64 KiB alone, and its ratios
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import click

from qemu.guest.bench.farend import FarEnd, Transfer, echo, sink
from qemu.guest.bench.figure import Row
from qemu.guest.bench.rig import RigError
from qemu.guest.guest import Guest
from stack import Network, Stack
from stack.services.vsock_gateway import VsockGateway
from vhost_user import Server, VsockDevice

SOCKET: Final = "socket"
GATEWAY: Final = "gateway"
PAIR: Final = "Unix pair"
KERNEL: Final = "kernel vsock"

SIZES: Final = (64, 4096, 65536)
STREAMS: Final = (1, 16)
_GRACE_SECONDS: Final = 20.0
_PORT: Final = 700
_PROBE_SECONDS: Final = 0.2

#: A way for bytes: (mode, seconds, size, streams) to the figure of that mode.
Way = Callable[[str, float, int, int], float]
_FAR: Final = {"send": "sink", "recv": "source", "rr": "echo", "crr": "echo"}


def rig_rows(seconds: float, rounds: int, sizes: tuple[int, ...] = SIZES) -> Iterator[Row]:
    """Every row on the driver rig, rounds alternating between the ways."""
    with _rig() as ways:
        for size in sizes:
            for streams in STREAMS:
                for mode, name in (("send", "guest to host"), ("recv", "host to guest")):
                    yield _row(
                        ways,
                        f"{name}, {_named(size)}, {streams} at a time",
                        "Gb/s",
                        mode,
                        size,
                        streams,
                        seconds,
                        rounds,
                    )
        yield _row(ways, "round trip, 64 B", "us", "rr", 64, 1, seconds, rounds)
        yield _row(ways, "connect, 64 B there and back, close", "/s", "crr", 64, 1, seconds, rounds)


def guest_rows(guest: Guest, seconds: float, rounds: int, sizes: tuple[int, ...] = SIZES) -> Iterator[Row]:
    """The same with a real guest; `socket` only: what the gateway adds does not depend on who the guest is."""
    ways: dict[str, Way] = {SOCKET: lambda *row: _real_guest(guest, *row)}
    for size in sizes:
        for streams in STREAMS:
            for mode, name in (("send", "guest to host"), ("recv", "host to guest")):
                yield _row(
                    ways, f"{name}, {_named(size)}, {streams} at a time", "Gb/s", mode, size, streams, seconds, rounds
                )
    yield _row(ways, "round trip, 64 B", "us", "rr", 64, 1, seconds, rounds)
    yield _row(ways, "connect, 64 B there and back, close", "/s", "crr", 64, 1, seconds, rounds)


def _row(
    ways: dict[str, Way], name: str, unit: str, mode: str, size: int, streams: int, seconds: float, rounds: int
) -> Row:
    figures: dict[str, list[float]] = {way: [] for way in ways}
    scale = 8e-9 if unit == "Gb/s" else 1.0
    for _ in range(rounds):
        for way, measure in ways.items():
            figures[way].append(measure(mode, seconds, size, streams) * scale)
    return Row(name, unit, unit != "us", figures)


def _named(size: int) -> str:
    return f"{size >> 10} KiB" if size >= 1024 else f"{size} B"


def _run(module: str, *words: object, seconds: float) -> float:
    command = [sys.executable, "-m", f"qemu.guest.bench.{module}", *map(str, words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RigError(f"{module} did not end {_GRACE_SECONDS:g} s after its time") from error
    if done.returncode:
        raise RigError(f"{module} failed: {done.stderr.strip()}")
    return float(done.stdout)


@contextmanager
def _far(address: str, mode: str, size: int) -> Iterator[None]:
    """The far end in a process of its own."""
    words = [sys.executable, "-m", "qemu.guest.bench.streams", "far", address, _FAR[mode], str(size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RigError(f"no far end on {address}")
            yield
        finally:
            process.kill()


@contextmanager
def _rig() -> Iterator[dict[str, Way]]:
    """A device on a socket file, with its engine, its gateway, and the ways through them."""
    with ExitStack() as undo:
        place = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="guestwire-rig-")))
        network = undo.enter_context(Network())
        server = undo.enter_context(Server())
        network.start()
        stack = network.stack("gw")
        device = VsockDevice(3)
        stack.add_vsock(device)
        server.listen(device, path=place / "vsock")
        with network.lock:
            gateway = VsockGateway(stack.vsock.guests[3], uds_path=str(place / "uds"))
            network.attach_locked(gateway.hosts)
            network.finish()
        undo.callback(_close, network, gateway)

        def to_socket(mode: str, seconds: float, size: int, streams: int) -> float:
            with _far_socket(stack, mode, seconds, size) as far:
                return _run("rig_vsock", place / "vsock", mode, far.port, seconds, size, streams, seconds=seconds)

        def through_gateway(mode: str, seconds: float, size: int, streams: int) -> float:
            with _far(f"unix:{place}/uds_{_PORT}", mode, size):
                return _run("rig_vsock", place / "vsock", mode, _PORT, seconds, size, streams, seconds=seconds)

        def kernels(address: str) -> Way:
            def measure(mode: str, seconds: float, size: int, streams: int) -> float:
                with _far(address, mode, size):
                    return _run("streams", "near", address, mode, seconds, size, streams, seconds=seconds)

            return measure

        ways: dict[str, Way] = {SOCKET: to_socket, GATEWAY: through_gateway, PAIR: kernels(f"unix:{place}/pair")}
        if kernel_loopback():
            ways[KERNEL] = kernels(f"vsock:1:{_PORT}")
        yield ways


def _close(network: Network, gateway: VsockGateway) -> None:
    with network.lock:
        network.detach_locked(gateway.hosts)
        gateway.close()


def kernel_loopback() -> bool:
    """Whether this kernel's AF_VSOCK reaches itself (CONFIG_VSOCKETS_LOOPBACK)."""
    try:
        with socket.socket(socket.AF_VSOCK) as listener, socket.socket(socket.AF_VSOCK) as probe:
            listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            listener.listen()
            probe.settimeout(_PROBE_SECONDS)
            probe.connect((1, listener.getsockname()[1]))
    except OSError:
        return False
    return True


def _source(seconds: float, size: int) -> Callable[[Any, Transfer], None]:
    """Messages of `size` bytes for that long, then close."""

    def serve(connection: Any, transfer: Transfer) -> None:
        data = bytes(size)
        ending = threading.Event()
        timer = threading.Timer(seconds, ending.set)
        timer.start()
        try:
            while not ending.is_set():
                connection.sendall(data)
                transfer.bytes += size
        finally:
            timer.cancel()

    return serve


def _far_socket(stack: Stack, mode: str, seconds: float, size: int) -> FarEnd:
    serve = {"send": sink, "recv": _source(seconds, size)}.get(mode, echo)
    return FarEnd(stack.socket, "", serve, family=stack.socket.AF_VSOCK)


def _real_guest(guest: Guest, mode: str, seconds: float, size: int, streams: int) -> float:
    """One figure from the guest's load generator, or the sum of several at once."""
    with _far_socket(guest.stack, mode, seconds, size) as far:
        options: dict[str, float] = {"size": size}
        if mode != "recv":
            options["seconds"] = seconds
        if mode in ("rr", "crr"):
            options["response"] = size
        loads = [guest.load(mode, "2", far.port, family="vsock", **options) for _ in range(streams)]
        results = [load.result(timeout=seconds + _GRACE_SECONDS) for load in loads]
    if mode == "rr":
        return float(results[0]["p50_us"])
    if mode == "crr":
        return float(results[0]["count"]) / float(results[0]["seconds"])
    return sum(float(result["bytes"]) / max(float(result["seconds"]), 1e-6) for result in results)


def main(seconds: str = "2", rounds: str = "5") -> None:
    """Gateway beside Unix pair, alternating."""
    with _rig() as ways:
        beside = {way: ways[way] for way in (GATEWAY, PAIR)}
        for streams in STREAMS:
            for mode, name in (("send", "guest to host"), ("recv", "host to guest")):
                row = _row(beside, name, "Gb/s", mode, SIZES[-1], streams, float(seconds), int(rounds))
                ours, peer = row.median(GATEWAY), row.median(PAIR)
                click.echo(
                    f"{name}, {streams:2} at a time: {ours:.1f} of {peer:.1f} Gb/s, {row.ratio(GATEWAY, PAIR):.2f}"
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
