"""Random scripts of operations on Unix sockets, run on the kernel and on a Stack side by side.

An operation is a tuple: its name, and small numbers that stand for sockets, names, sizes. Every number fits: it counts
modulo what there is, so that any list of tuples is a script, and can be shrunk.
"""

from __future__ import annotations

import os
import socket as kernel
import struct
from typing import Any, Final

from hypothesis import strategies as st

from stack.tests.unix_world import (
    DGRAM,
    FIONREAD,
    KINDS,
    SEQPACKET,
    SIOCATMARK,
    SIOCOUTQ,
    SO_PASSRIGHTS,
    SO_PEEK_OFF,
    STREAM,
    UnixWorld,
    outcome,
)

NAMES: Final = 5
MOST: Final = 9  # sockets at a time
SIZES: Final = (0, 1, 2, 3, 5, 8, 100, 193, 3777, 7873, 20161, 36545, 60000, 212961)
ROOMS: Final = (0, 16, 20, 24, 28, 32, 56, 64, 200)
SEND_FLAGS: Final = (0, 0, 0, kernel.MSG_OOB, kernel.MSG_EOR, kernel.MSG_MORE)
RECV_FLAGS: Final = (0, 0, kernel.MSG_PEEK, kernel.MSG_OOB, kernel.MSG_PEEK | kernel.MSG_OOB, kernel.MSG_WAITALL)
OPTIONS: Final = (
    (kernel.SO_PASSCRED, (0, 1)),
    (SO_PEEK_OFF, (-1, 0, 1, 4)),
    (kernel.SO_OOBINLINE, (0, 1)),
    (kernel.SO_SNDBUF, (0, 4096, 20000)),
    (SO_PASSRIGHTS, (0, 1)),
    (kernel.SO_RCVLOWAT, (0, 5)),
)

small = st.integers(0, 40)


def _operation(name: str, *numbers: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *numbers)


operations = st.one_of(
    _operation("make", small),
    _operation("pair", small),
    _operation("bind", small, small),
    _operation("listen", small, st.integers(0, 2)),
    _operation("connect", small, small),
    _operation("accept", small),
    _operation("send", small, small, small),
    _operation("send", small, small, small),
    _operation("sendto", small, small, small),
    _operation("sendmsg", small, small, small, st.integers(0, 3), st.integers(0, 2)),
    _operation("recv", small, small, small),
    _operation("recv", small, small, small),
    _operation("recvmsg", small, small, small, small),
    _operation("shutdown", small, st.integers(0, 2)),
    _operation("close", small),
    _operation("option", small, small, small),
    _operation("error", small),
    _operation("unlink", small),
)
scripts = st.lists(operations, min_size=1, max_size=40)


class Side:
    """One world, and the sockets of a script in it."""

    def __init__(self, world: UnixWorld) -> None:
        self.world = world
        self.sockets: list[Any] = []
        self.sent = 0
        self.urgent = False  #: an urgent byte was sent: Linux counts one that was passed over in SIOCINQ for ever

    # -- what an answer looks like on both sides ----------------------------------------------------------------------

    def _name(self, address: Any) -> Any:
        if isinstance(address, bytes):
            return "automatic" if len(address) == 6 else address.removeprefix(self.world.prefix)
        return address if not address else os.path.basename(address)

    def _ancillary(self, messages: list[tuple[int, int, bytes]]) -> list[Any]:
        told: list[Any] = []
        for level, kind, data in messages:
            if (level, kind) == (kernel.SOL_SOCKET, kernel.SCM_RIGHTS):
                fds = struct.unpack(f"@{len(data) // 4}i", data)
                told.append(("files", len(fds)))
                for fd in fds:
                    os.close(fd)
            else:
                told.append((level, kind, data))
        return told

    def state(self) -> list[Any]:
        """What can be asked of every socket without changing it."""
        world = self.world
        found = []
        for sock in self.sockets:
            bits = world.bits(sock)
            unread = None if self.urgent and sock.type == STREAM else outcome(world.ask, sock, FIONREAD)
            counts = unread, outcome(world.ask, sock, SIOCOUTQ)
            names = self._name(outcome(sock.getsockname)), self._name(outcome(sock.getpeername))
            offset = sock.getsockopt(kernel.SOL_SOCKET, SO_PEEK_OFF)
            listening = sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ACCEPTCONN)
            mark = outcome(world.ask, sock, SIOCATMARK) if sock.type == STREAM and not listening else None
            found.append((sock.type, bits, counts, mark, names, offset, listening))
        return found

    # -- operations ---------------------------------------------------------------------------------------------------

    def run(self, operation: tuple[Any, ...]) -> Any:
        name, *numbers = operation
        if name in ("make", "pair"):
            return getattr(self, "do_" + name)(*numbers)
        if name == "unlink":
            return outcome(self.world.files.unlink, self._path(numbers[0]))
        if not self.sockets:
            return None
        numbers[0] %= len(self.sockets)
        answer = outcome(getattr(self, "do_" + name), self.sockets[numbers[0]], *numbers[1:])
        return self._name(answer) if name == "accept" else answer

    def _path(self, number: int) -> str:
        return self.world.path(f"n{number % 3}")

    def _address(self, number: int) -> Any:
        number %= NAMES
        return self._path(number) if number < 3 else self.world.abstract(b"a%d" % number)

    def _data(self, number: int) -> bytes:
        self.sent += 1
        return bytes([self.sent & 0xFF]) * SIZES[number % len(SIZES)]

    def do_make(self, kind: int) -> None:
        if len(self.sockets) < MOST:
            self.sockets.append(self.world.make(KINDS[kind % 3]))

    def do_pair(self, kind: int) -> None:
        if len(self.sockets) < MOST:
            self.sockets += self.world.make_pair(KINDS[kind % 3])

    def do_bind(self, sock: Any, number: int) -> None:
        sock.bind("" if number % (NAMES + 1) == NAMES else self._address(number))

    def do_listen(self, sock: Any, backlog: int) -> None:
        sock.listen(backlog)

    def do_connect(self, sock: Any, number: int) -> None:
        sock.connect(self._address(number))

    def do_accept(self, sock: Any) -> Any:
        child, address = sock.accept()
        self.world.keep(child)
        if len(self.sockets) < MOST:
            self.sockets.append(child)
        else:
            child.close()
        return address

    def do_send(self, sock: Any, size: int, flags: int) -> Any:
        return sock.send(self._data(size), self._flags(flags))

    def _flags(self, number: int) -> int:
        flags = SEND_FLAGS[number % len(SEND_FLAGS)]
        self.urgent = self.urgent or bool(flags & kernel.MSG_OOB)
        return flags

    def do_sendto(self, sock: Any, size: int, number: int) -> Any:
        return sock.sendto(self._data(size), self._address(number))

    def do_sendmsg(self, sock: Any, size: int, flags: int, files: int, more: int) -> Any:
        """`files` sockets travel along, none of the script's: what closes them is no part of it, for Linux collects
        circles when it likes. `more`: 1, our identity too; 2, a pipe among the files.
        """
        cargo = [self.world.socket.socket(kernel.AF_UNIX, kernel.SOCK_DGRAM) for _ in range(files)]
        ancillary: list[Any] = []
        extra: list[int] = []
        fds = [each.fileno() for each in cargo]
        if more == 2:
            extra = list(os.pipe())
            fds += extra[:1]
        if fds:
            ancillary.append((kernel.SOL_SOCKET, kernel.SCM_RIGHTS, struct.pack(f"@{len(fds)}i", *fds)))
        if more == 1:
            ucred = struct.pack("=iII", os.getpid(), os.getuid(), os.getgid())
            ancillary.append((kernel.SOL_SOCKET, kernel.SCM_CREDENTIALS, ucred))
        try:
            return sock.sendmsg([self._data(size)], ancillary, self._flags(flags))
        finally:
            for fd in extra:
                os.close(fd)
            for each in cargo:
                each.close()

    def do_recv(self, sock: Any, size: int, flags: int) -> Any:
        return sock.recv(SIZES[size % len(SIZES)], RECV_FLAGS[flags % len(RECV_FLAGS)])

    def do_recvmsg(self, sock: Any, size: int, room: int, flags: int) -> Any:
        data, messages, out, address = sock.recvmsg(
            SIZES[size % len(SIZES)], ROOMS[room % len(ROOMS)], RECV_FLAGS[flags % len(RECV_FLAGS)]
        )
        return data, self._ancillary(messages), out, self._name(address)

    def do_shutdown(self, sock: Any, how: int) -> None:
        sock.shutdown(how)

    def do_close(self, sock: Any) -> None:
        self.sockets.remove(sock)
        sock.close()

    def do_option(self, sock: Any, option: int, value: int) -> Any:
        number, values = OPTIONS[option % len(OPTIONS)]
        sock.setsockopt(kernel.SOL_SOCKET, number, values[value % len(values)])
        return sock.getsockopt(kernel.SOL_SOCKET, number)

    def do_error(self, sock: Any) -> Any:
        return sock.getsockopt(kernel.SOL_SOCKET, kernel.SO_ERROR)


__all__ = ["DGRAM", "SEQPACKET", "Side", "operations", "scripts"]
