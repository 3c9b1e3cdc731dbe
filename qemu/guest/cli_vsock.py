"""`guestwire vsock`: a served guest's vsock from a shell, through its hybrid Unix socket.

The socket is `guestwire serve --uds-path PATH`'s, a Guest's `vsock_uds`, or that of anything else that speaks
Firecracker's protocol.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import click

from qemu.guest.cli_options import SOCKET
from qemu.guest.errors import SetupError

if TYPE_CHECKING:
    import socket

_PORT: Final = click.IntRange(0, 0xFFFFFFFF)
_FAILED: Final = 1
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


@click.group()
def vsock() -> None:
    """Reach the vsock of a guest that is being served, through its hybrid Unix socket PATH.

    PATH is what `guestwire serve --uds-path PATH` listens on, or the hybrid vsock socket of Firecracker, Cloud
    Hypervisor or vhost-device-vsock. ssh reaches the guest by it, too: ssh vsock-mux/PATH (with systemd's ssh proxy).
    """


@vsock.command()
@click.argument("path", type=SOCKET)
@click.argument("port", type=_PORT)
def connect(path: Path, port: int) -> int:
    """Join standard input and output to PORT of the guest.

    The end of standard input is passed on; ends when the guest has closed. Exit code 1 if nobody listens there.
    """
    from qemu.guest import hybrid

    try:
        sock = hybrid.dial(path, port)
    except SetupError as error:
        return _failed(error)
    hybrid.join_standard_streams(sock)
    return 0


@vsock.command()
@click.argument("path", type=SOCKET)
@click.argument("port", type=_PORT)
def listen(path: Path, port: int) -> int:
    """Accept one connection of the guest to CID 2, PORT, and join it to standard input and output.

    Says on standard error when it listens. The guest's connections go to PATH_PORT for as long.
    """
    from qemu.guest import hybrid

    try:
        address = hybrid.guest_side(path, port)
        listener = hybrid.listen(address)
    except SetupError as error:
        return _failed(error)
    try:
        with listener:
            click.echo(f"listening on {address}", err=True)
            sock, _ = listener.accept()
    finally:
        Path(f"{path}_{port}").unlink(missing_ok=True)
    hybrid.join_standard_streams(sock)
    return 0


@vsock.command()
@click.argument("path", type=SOCKET)
@click.option("--expose", "exposed", multiple=True, metavar="ADDRESS=PORT", help="Host listener to guest port.")
@click.option("--forward", "forwards", multiple=True, metavar="PORT=ADDRESS", help="Guest's CID 2 port to host server.")
def forward(path: Path, exposed: tuple[str, ...], forwards: tuple[str, ...]) -> int:
    """Forward ports between the guest and servers of this host, until SIGTERM or Ctrl-C.

    ADDRESS is tcp:HOST:PORT, unix:PATH or vsock:CID:PORT. `guestwire serve` does the same by itself with the same
    options, without a process in between; this is for guests that something else serves.
    """
    from qemu.guest import hybrid

    if not (exposed or forwards):
        raise click.UsageError("nothing to forward: say --expose ADDRESS=PORT or --forward PORT=ADDRESS")
    ways: list[tuple[socket.socket, Callable[[], socket.socket]]] = []
    with ExitStack() as undo:
        for text in exposed:
            where, _, port = text.rpartition("=")
            number = hybrid.read_port(port, f"--expose {text}")
            listener = undo.enter_context(hybrid.listen(hybrid.read_address(where)))
            ways.append((listener, partial(hybrid.dial, path, number)))
        for text in forwards:
            port, _, target = text.partition("=")
            number = hybrid.read_port(port, f"--forward {text}")
            address = hybrid.read_address(target)
            listener = undo.enter_context(hybrid.listen(hybrid.guest_side(path, number)))
            undo.callback(Path(f"{path}_{number}").unlink, missing_ok=True)
            ways.append((listener, partial(hybrid.open_address, address)))
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        undo.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, _ENDING)
        for listener, peer in ways:
            threading.Thread(target=hybrid.serve, args=(listener, peer, _complain), daemon=True).start()
        click.echo("forwarding", err=True)
        signal.sigwait(_ENDING)
    return 0


@vsock.command()
@click.argument("path", type=SOCKET)
@click.argument("port", type=_PORT)
@click.option("--size", type=click.IntRange(1, 1 << 20), default=64, show_default=True, help="Bytes of a message.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Length of each measurement.")
def bench(path: Path, port: int, size: int, seconds: float) -> int:
    """Measure round trips and connects to an echo server on PORT of the guest.

    In the guest, for example: socat VSOCK-LISTEN:PORT,fork PIPE. (`make bench` measures without a guest's help.)
    """
    from qemu.guest import hybrid

    message = bytes(size)
    try:
        with hybrid.dial(path, port) as sock:
            times = []
            began = now = time.perf_counter()
            while now - began < seconds:
                sock.sendall(message)
                _read(sock, size)
                last, now = now, time.perf_counter()
                times.append(now - last)
        connects, began = 0, time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            hybrid.dial(path, port).close()
            connects += 1
    except (SetupError, OSError) as error:
        return _failed(error)
    click.echo(f"{size} bytes there and back: median {median(times) * 1e6:.0f} us, {len(times) / seconds:.0f} a second")
    click.echo(f"connects: {connects / (now - began):.0f} a second")
    return 0


def _read(sock: socket.socket, size: int) -> None:
    """Exactly `size` bytes of an echo."""
    while size:
        piece = sock.recv(size)
        if not piece:
            raise SetupError("the guest closed the connection: is there an echo server behind that port?")
        size -= len(piece)


def _complain(text: str) -> None:
    click.echo(f"guestwire: {text}", err=True)


def _failed(error: Exception) -> int:
    click.echo(f"guestwire: {error}", err=True)
    sys.stderr.flush()
    return _FAILED
