"""The program's side of the hybrid vsock protocol: reach a guest that some process serves, with plain sockets.

Works with anybody's hybrid socket: ours, Firecracker's, Cloud Hypervisor's, vhost-device-vsock's.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from qemu.guest.errors import SetupError
from stack.services.host_address import HostAddress, host_address, unix_address

CONNECT_SECONDS: Final = 10.0
LARGEST_PORT: Final = 0xFFFFFFFF
_PIECE: Final = 256 << 10
_QUIET_SECONDS: Final = 0.5  # standard input that says nothing for so long after the peer's end has nothing to say
#: "OK 4294967295\n" and room; whoever says more than that does not speak the protocol.
_LONGEST_ANSWER: Final = 64


def dial(path: Path, port: int, *, timeout: float = CONNECT_SECONDS) -> socket.socket:
    """A blocking stream to `port` of the guest behind the hybrid socket. Raises SetupError saying what went wrong."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
        except OSError as error:
            raise SetupError(f"cannot connect to {path}: {error.strerror}: is the guest being served?") from error
        try:
            sock.sendall(b"CONNECT %d\n" % port)
            answer = _answer(sock)
        except TimeoutError:
            raise SetupError(f"port {port}: no answer after {timeout:g} s") from None
        except OSError:
            answer = b""
        if not answer.startswith(b"OK "):
            raise SetupError(f"nobody in the guest listens on port {port}, or there is no guest")
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _answer(sock: socket.socket) -> bytes:
    """Up to the line's end, and not a byte further: what follows is the stream."""
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < _LONGEST_ANSWER:
        byte = sock.recv(1)
        if not byte:
            break
        answer += byte
    return answer


def open_address(address: HostAddress) -> socket.socket:
    """A blocking stream to a server of the host. Raises SetupError."""
    try:
        sock = address.open()
    except OSError as error:
        raise SetupError(f"cannot reach {address}: {error.strerror}") from error
    try:
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(address.address)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        raise SetupError(f"cannot reach {address}: {error.strerror or error}") from error
    return sock


def listen(address: HostAddress) -> socket.socket:
    """A blocking listener. Raises SetupError."""
    try:
        sock = address.listen()
    except OSError as error:
        raise SetupError(f"cannot listen on {address}: {error.strerror}") from error
    sock.setblocking(True)
    return sock


def guest_side(path: Path, port: int) -> HostAddress:
    """Where to listen for what the guest behind `path` connects to CID 2, `port`. Raises SetupError."""
    try:
        return unix_address(f"{path}_{port}")
    except ValueError as error:
        raise SetupError(str(error)) from error


def read_address(text: str) -> HostAddress:
    """See `stack.services.host_address`. Raises SetupError."""
    try:
        return host_address(text)
    except ValueError as error:
        raise SetupError(str(error)) from error


def read_port(text: str, where: str) -> int:
    """A vsock port. Raises SetupError."""
    if not (text.isascii() and text.isdigit()) or int(text) > LARGEST_PORT:
        raise SetupError(f"{where}: {text!r} is no vsock port")
    return int(text)


def join_standard_streams(sock: socket.socket) -> None:
    """Standard input to `sock` and `sock` to standard output, until the peer is done. Closes `sock`.

    What stands in standard input by then is still sent: a peer that has said everything may go on listening.
    """
    with sock:
        sender = threading.Thread(target=_copy, args=(lambda: os.read(0, _PIECE), sock.sendall, sock), daemon=True)
        sender.start()
        _copy(lambda: sock.recv(_PIECE), _write_out)
        with suppress(OSError):  # standard input was closed
            while sender.is_alive() and select.select([0], [], [], _QUIET_SECONDS)[0]:
                sender.join(_QUIET_SECONDS)


def join(one: socket.socket, other: socket.socket) -> None:
    """Both ways, each with its own end, until both are done. Closes both."""
    with one, other:
        back = threading.Thread(target=_copy, args=(lambda: other.recv(_PIECE), one.sendall, one), daemon=True)
        back.start()
        _copy(lambda: one.recv(_PIECE), other.sendall, other)
        back.join()


def serve(listener: socket.socket, peer: Callable[[], socket.socket], complain: Callable[[str], None]) -> None:
    """Join each connection with what `peer` opens for it, until the listener is closed."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve_one, args=(sock, peer, complain), daemon=True).start()


def _serve_one(sock: socket.socket, peer: Callable[[], socket.socket], complain: Callable[[str], None]) -> None:
    try:
        other = peer()
    except SetupError as error:
        complain(str(error))
        sock.close()
        return
    join(sock, other)


def _copy(read: Callable[[], bytes], write: Callable[[bytes], object], ending: socket.socket | None = None) -> None:
    with suppress(OSError):
        while data := read():
            write(data)
    if ending is not None:
        with suppress(OSError):
            ending.shutdown(socket.SHUT_WR)


def _write_out(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
