"""What tests of transmit time stamps have in common: the numbers, and the entries of a socket's error queue."""

from __future__ import annotations

import errno
import select
import socket as kernel
import struct
from typing import Any, NamedTuple

from stack.socket.poll import ERR
from stack.tests.kernel_twin import World, code

SOL = kernel.SOL_SOCKET
SO_TIMESTAMPNS, SO_MARK, SO_TIMESTAMPING, SO_SELECT_ERR_QUEUE, SO_TIMESTAMPING_NEW = 35, 36, 37, 45, 65
OPT_STATS_MESSAGE = 54
TX_SOFTWARE, RX_SOFTWARE, SOFTWARE, OPT_ID, TX_SCHED, TX_ACK = 2, 8, 16, 128, 256, 512
TCP_TX_DELAY = 37
OPT_CMSG, OPT_TSONLY, OPT_STATS, OPT_ID_TCP = 1024, 2048, 4096, 65536
ALL = TX_SCHED | TX_SOFTWARE | TX_ACK | SOFTWARE
SENT, SCHEDULED, ACKNOWLEDGED = 0, 1, 2
IP_RECVERR, IPV6_RECVERR = 11, 25


class Entry(NamedTuple):
    """One of the error queue: what of, its number, data, and the control messages before the last."""

    kind: int
    number: int
    data: bytes
    others: list[tuple[int, int, bytes]]


def wait_for_error(world: World, sock: Any) -> None:
    if world.network is None:
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(10_000)
    assert world.bits(sock) & ERR


def entry(world: World, sock: Any) -> Entry:
    wait_for_error(world, sock)
    data, ancillary, flags, address = sock.recvmsg(70_000, 999, kernel.MSG_ERRQUEUE)
    assert (flags, address) == (kernel.MSG_ERRQUEUE, None)
    level, kind, told = ancillary.pop()
    assert (level, kind) in ((kernel.IPPROTO_IP, IP_RECVERR), (kernel.IPPROTO_IPV6, IPV6_RECVERR))
    *fixed, info, number = struct.unpack_from("@IBBBBII", told)
    assert fixed == [errno.ENOMSG, 4, 0, 0, 0]
    return Entry(info, number, data, ancillary)


def told(world: World, sock: Any, *kinds: int) -> list[int]:
    """The numbers of the next entries, which must be of these kinds. The kernel may have sent something twice."""
    entries: list[tuple[int, int]] = []
    while len(entries) < len(kinds):
        each = entry(world, sock)
        if world.network is not None or each[:2] not in entries:
            entries.append(each[:2])
    assert [kind for kind, _ in entries] == list(kinds)
    return [number for _, number in entries]


def nothing_more(sock: Any) -> None:
    sock.setblocking(False)
    assert code(sock.recvmsg, 9, 99, kernel.MSG_ERRQUEUE) == errno.EAGAIN
    sock.settimeout(10)


def pair(world: World, family: int = kernel.AF_INET) -> tuple[Any, Any]:
    with world.socket.socket(family) as listener:
        listener.bind(("::1" if family == kernel.AF_INET6 else "127.0.0.1", 0))
        listener.listen()
        client = world.socket.socket(family)
        client.settimeout(10)
        client.connect(listener.getsockname())
        client.setsockopt(kernel.IPPROTO_TCP, kernel.TCP_NODELAY, 1)
        served, _ = listener.accept()
    served.settimeout(10)
    return client, served
