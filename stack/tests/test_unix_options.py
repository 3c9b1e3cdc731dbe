"""SOL_SOCKET on Unix sockets (section 2.7): every option's default and every boundary value, against the kernel's.

Compared on Linux 6.16 or later; before, SO_PASSRIGHTS and SO_RCVPRIORITY do not exist.
"""

from __future__ import annotations

import os
import socket as kernel
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.socket.options import Kind, Option
from stack.socket.unix.options import UNIX_OPTIONS
from stack.tests.unix_world import KERNEL, KINDS, STREAM, UnixWorld, kernel_world, outcome, stack_world

pytestmark = pytest.mark.skipif(KERNEL < (6, 16), reason="compared with a kernel of 6.16 or later")

VALUES = (-(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 64, 127, 128, 255, 256, 1000, 2304, 32768, 65536, 2**31 - 1)
#: What this machine's configuration decides, what differs from socket to socket, or is a descriptor.
OWN = frozenset(
    {"SO_SNDBUF", "SO_RCVBUF", "SO_COOKIE", "SO_NETNS_COOKIE", "SO_MEMINFO", "SO_PEERPIDFD", "SO_PEERGROUPS"}
)
#: Linux asks for CAP_NET_ADMIN, or the limits of the machine decide.
PRIVILEGED = frozenset(
    {"SO_SNDBUFFORCE", "SO_RCVBUFFORCE", "SO_SNDBUF", "SO_RCVBUF", "SO_DEBUG", "SO_MARK", "SO_PRIORITY"}
)
ROWS = [pytest.param(row, id=row.name) for row in UNIX_OPTIONS]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UnixWorld, UnixWorld]]:
    directory: Path = tmp_path_factory.mktemp("unix")
    with kernel_world(directory) as theirs, stack_world() as ours:
        yield theirs, ours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_defaults_are_the_kernels(worlds: tuple[UnixWorld, UnixWorld], row: Option, kind: int) -> None:
    theirs, ours = worlds
    if row.name in OWN:
        assert outcome(ours.make(kind).getsockopt, row.level, row.number, 64) is not None
        return
    for length in ((), (4,), (1,), (64,)):
        answers = [outcome(each.make(kind).getsockopt, row.level, row.number, *length) for each in (ours, theirs)]
        assert answers[0] == answers[1], length


@pytest.mark.parametrize("row", ROWS)
def test_values_are_taken_as_by_the_kernel(worlds: tuple[UnixWorld, UnixWorld], row: Option) -> None:
    if row.kind not in (Kind.INT, Kind.BOOL) or row.name in PRIVILEGED:
        return
    theirs, ours = worlds
    for value in (*VALUES, b"", b"\1", b"\1\0\0\0\0\0\0\0"):
        answers = []
        for world in (ours, theirs):
            sock = world.make(STREAM)
            answers.append(
                (
                    outcome(sock.setsockopt, row.level, row.number, value),
                    outcome(sock.getsockopt, row.level, row.number) if row.name not in OWN else None,
                )
            )
            sock.close()
        assert answers[0] == answers[1], value


def test_nothing_is_stored_in_vain(worlds: tuple[UnixWorld, UnixWorld]) -> None:
    """What an option switches is switched: told identities, files refused, peeks that move on, urgent bytes inline."""
    _, ours = worlds
    one, other = ours.make_pair()
    endpoint: Any = other._sock.endpoint
    for number in (kernel.SO_PASSCRED, 76, 83):
        before = endpoint.passing
        other.setsockopt(kernel.SOL_SOCKET, number, int(number != 83))
        assert endpoint.passing != before
    other.setsockopt(kernel.SOL_SOCKET, kernel.SO_OOBINLINE, 1)
    assert endpoint.inline
    other.setsockopt(kernel.SOL_SOCKET, 42, 3)
    assert endpoint.peek_offset == 3
    other.setsockopt(kernel.SOL_SOCKET, kernel.SO_SNDBUF, 10000)
    assert endpoint.sndbuf == 20000
    one.send(b"x")
    meminfo = one.getsockopt(kernel.SOL_SOCKET, 55, 36)
    assert int.from_bytes(meminfo[8:12], "little") == 768  # SK_MEMINFO_WMEM_ALLOC
    assert os.getpid() == one.getsockopt(kernel.SOL_SOCKET, kernel.SO_PEERCRED)
