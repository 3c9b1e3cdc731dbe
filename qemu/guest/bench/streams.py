"""Both ends of a stream over the kernel's own sockets, each in a process: what the vsock rows are compared with.

    python -m qemu.guest.bench.streams far ADDRESS sink|source|echo SIZE
    python -m qemu.guest.bench.streams near ADDRESS send|recv|rr|crr SECONDS SIZE STREAMS

`far` serves any number of connections until it is killed, and says when it listens; `near` prints one number, as
rig_vsock.py does. Addresses are written as in `stack.services.host_address`. Unix sockets are given the buffer our
gateway gives its own, so that no row is ahead by that.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from contextlib import suppress
from statistics import median
from typing import Final

from stack.services.host_address import host_address
from stack.services.vsock_pump import SOCKET_BUFFER

_PIECE: Final = 1 << 20


def far(address: str, mode: str, size: str) -> None:
    """Serve each connection in a thread."""
    listener = host_address(address).listen()
    listener.setblocking(True)
    print("listening", flush=True)  # noqa: T201 - read by vsock.py
    while True:
        sock, _ = listener.accept()
        _size(sock)
        threading.Thread(target=_serve, args=(sock, mode, int(size)), daemon=True).start()


def _serve(sock: socket.socket, mode: str, size: int) -> None:
    with sock, suppress(OSError):
        if mode == "sink":
            room = memoryview(bytearray(_PIECE))
            while sock.recv_into(room):
                pass
        elif mode == "source":
            data = bytes(size)
            while True:
                sock.sendall(data)
        else:
            while data := sock.recv(_PIECE):
                sock.sendall(data)


def _dial(address: str) -> socket.socket:
    where = host_address(address)
    sock = socket.socket(where.family)
    _size(sock)
    sock.connect(where.address)
    return sock


def _size(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def _send(address: str, seconds: float, size: int, streams: int) -> float:
    socks = [_dial(address) for _ in range(streams)]
    data, sent, began = bytes(size), 0, time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        for sock in socks:
            sock.sendall(data)
        sent += size * streams
    return sent / (now - began)


def _recv(address: str, seconds: float, size: int, streams: int) -> float:  # noqa: ARG001 - the far end chooses it
    socks = [_dial(address) for _ in range(streams)]
    room, received, began = memoryview(bytearray(_PIECE)), 0, time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        for sock in select.select(socks, [], [], 0.1)[0] if streams > 1 else socks:
            received += sock.recv_into(room)
    return received / (now - began)


def _exchange(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    missing = len(data)
    while missing:
        missing -= len(sock.recv(missing))


def _round_trips(address: str, seconds: float, size: int, streams: int) -> float:  # noqa: ARG001 - one stream
    sock, data, times = _dial(address), bytes(size), []
    began = now = time.perf_counter()
    while now - began < seconds:
        _exchange(sock, data)
        last, now = now, time.perf_counter()
        times.append(now - last)
    return median(times) * 1e6


def _connects(address: str, seconds: float, size: int, streams: int) -> float:  # noqa: ARG001 - one after the other
    data, done, began = bytes(size), 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        with _dial(address) as sock:
            _exchange(sock, data)
        done += 1
    return done / (now - began)


_NEAR: Final = {"send": _send, "recv": _recv, "rr": _round_trips, "crr": _connects}


def near(address: str, mode: str, seconds: str, size: str, streams: str) -> None:
    print(_NEAR[mode](address, float(seconds), int(size), int(streams)))  # noqa: T201 - read by vsock.py


if __name__ == "__main__":
    if sys.argv[1] == "far":
        far(*sys.argv[2:])
    else:
        near(*sys.argv[2:])
