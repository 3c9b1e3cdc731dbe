"""Transmit time stamps of TCP sockets (SO_TIMESTAMPING, section 2.1) on the kernel's sockets and on ours."""

from __future__ import annotations

import errno
import select
import socket as kernel
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.socket.poll import OUT, PRI
from stack.tests.kernel_twin import World, code, has_ipv6_loopback
from stack.tests.stamps import (
    ACKNOWLEDGED,
    ALL,
    OPT_CMSG,
    OPT_ID,
    OPT_ID_TCP,
    OPT_STATS,
    OPT_STATS_MESSAGE,
    OPT_TSONLY,
    RX_SOFTWARE,
    SCHEDULED,
    SENT,
    SO_SELECT_ERR_QUEUE,
    SO_TIMESTAMPING,
    SO_TIMESTAMPING_NEW,
    SO_TIMESTAMPNS,
    SOFTWARE,
    SOL,
    TX_ACK,
    TX_SCHED,
    TX_SOFTWARE,
    entry,
    nothing_more,
    pair,
    told,
    wait_for_error,
)

#: Where a Stack and the kernel part.
DIFFERENCES = {
    "one moment": "a Stack schedules and sends at once: the first two stamps have one time, but with TCP_TX_DELAY",
    "segments put together": "when Linux joins two segments to send them again, the first one's stamps are lost",
    "TTL of the acknowledgment": "Linux's statistics have it (TCP_NLA_TTL)",
    "a frame": "the quoted packet of a Stack has no TCP options but time stamps",
}


def _kernel_takes(flags: int) -> bool:
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(SOL, SO_TIMESTAMPING, flags)
        except OSError:
            return False
    return True


def _kernel_takes_new_message() -> bool:
    with kernel.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        try:
            sock.sendmsg([b""], [(SOL, SO_TIMESTAMPING_NEW, struct.pack("@I", 0))], 0, sock.getsockname())
        except OSError:
            return False
    return True


#: Linux 6.2.
KERNEL_COUNTS_WRITTEN = _kernel_takes(OPT_ID | OPT_ID_TCP)
#: Linux 6.8.
KERNEL_TAKES_NEW_MESSAGE = _kernel_takes_new_message()


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "kernel":
        yield World(kernel, None)
        return
    with Network() as network:
        yield World(network.stack("gw").socket, network)


@pytest.fixture(params=[kernel.AF_INET, kernel.AF_INET6], ids=["4", "6"])
def family(request: pytest.FixtureRequest) -> int:
    if request.param == kernel.AF_INET6 and not has_ipv6_loopback():
        pytest.skip("no ::1 on this machine")
    return int(request.param)


def read(sock: Any, size: int) -> None:
    while size:
        data = sock.recv(size)
        assert data
        size -= len(data)


def test_opt_so_timestamping_of_tcp_sent(world: World, family: int) -> None:
    """SO_TIMESTAMPING on a TCP socket: TX_SCHED, TX_SOFTWARE and TX_ACK put an entry each on the error queue, in this
    order, numbered with OPT_ID by the send's last byte; the first two quote the packet, the last its data; none has
    data with OPT_TSONLY.
    """
    client, served = pair(world, family)
    with client, served:
        client.setsockopt(SOL, SO_TIMESTAMPING, ALL | OPT_ID)
        assert client.send(b"hello") == 5
        entries = [entry(world, client) for _ in range(3)]
        assert [(each.kind, each.number) for each in entries] == [(SCHEDULED, 4), (SENT, 4), (ACKNOWLEDGED, 4)]
        moments = []
        for each in entries:
            ((level, kind, data),) = each.others
            assert (level, kind, data[16:]) == (SOL, SO_TIMESTAMPING, bytes(32))
            seconds, nanoseconds = struct.unpack_from("@qq", data)
            assert abs(seconds - time.time()) < 60
            moments.append(seconds * 10**9 + nanoseconds)
        assert moments == sorted(moments)
        frame, again, payload = (each.data for each in entries)
        assert frame == again
        assert payload == b"hello"
        ethertype, at = (b"\x08\0", 34) if family == kernel.AF_INET else (b"\x86\xdd", 54)
        assert frame[12:14] == ethertype
        ports = client.getsockname()[1], client.getpeername()[1]
        assert struct.unpack_from("!HH", frame, at) == ports
        assert frame[at + 13] == 0x18  # ACK, PSH
        assert frame[at + (frame[at + 12] >> 4) * 4 :] == b"hello"
        assert world.bits(client) == OUT
        client.setsockopt(SOL, SO_TIMESTAMPING, ALL | OPT_ID | OPT_TSONLY)
        client.send(bytes(100))
        for kind in (SCHEDULED, SENT, ACKNOWLEDGED):
            each = entry(world, client)
            assert (each.kind, each.number, each.data) == (kind, 104, b"")
        client.setsockopt(SOL, SO_TIMESTAMPING, TX_ACK | SOFTWARE)
        client.send(b"x")
        assert told(world, client, ACKNOWLEDGED) == [0]
        client.setsockopt(SOL, SO_TIMESTAMPING, 0)
        client.send(b"x")
        read(served, 107)
        nothing_more(client)


def test_opt_so_timestamping_of_tcp_counts_bytes(world: World) -> None:
    """OPT_ID on a TCP socket counts bytes: from the first one not acknowledged when it was switched on, with
    OPT_ID_TCP from the first one written after it; sends without stamps are counted along.
    """
    client, served = pair(world)
    with client, served:
        for more, first in ((0, 4), (OPT_ID_TCP, 0)):
            if more and world.network is None and not KERNEL_COUNTS_WRITTEN:
                continue
            client.setsockopt(SOL, SO_TIMESTAMPING, 0)
            client.send(b"abcd", kernel.MSG_MORE)
            client.setsockopt(SOL, SO_TIMESTAMPING, TX_ACK | SOFTWARE | OPT_ID | OPT_TSONLY | more)
            client.send(b"x")
            assert told(world, client, ACKNOWLEDGED) == [first]
            client.setsockopt(SOL, SO_TIMESTAMPING, OPT_ID | more)
            client.send(b"yyy")
            client.setsockopt(SOL, SO_TIMESTAMPING, TX_ACK | OPT_ID | more)
            client.send(b"z")
            assert told(world, client, ACKNOWLEDGED) == [first + 4]


def test_opt_so_timestamping_of_tcp_joins_sends(world: World) -> None:
    """Sends that wait for each other (MSG_MORE) have the stamps of the last one that asked, unless the first ended a
    record (MSG_EOR).
    """
    client, served = pair(world)
    with client, served:
        client.setsockopt(SOL, SO_TIMESTAMPING, ALL | OPT_ID | OPT_TSONLY)
        client.send(b"abc", kernel.MSG_MORE)
        client.send(b"def")
        assert told(world, client, SCHEDULED, SENT, ACKNOWLEDGED) == [5, 5, 5]
        client.send(b"abc", kernel.MSG_MORE)
        client.sendmsg([b"def"], [(SOL, SO_TIMESTAMPING, struct.pack("@I", 0))])
        assert told(world, client, SCHEDULED, SENT, ACKNOWLEDGED) == [8, 8, 8]
        client.send(b"abc", kernel.MSG_MORE | kernel.MSG_EOR)
        client.send(b"def")
        kinds = (SCHEDULED, SENT, SCHEDULED, SENT, ACKNOWLEDGED, ACKNOWLEDGED)
        assert told(world, client, *kinds) == [14, 14, 17, 17, 14, 17]
        nothing_more(client)


@pytest.mark.parametrize("number", [SO_TIMESTAMPING, SO_TIMESTAMPING_NEW])
def test_opt_so_timestamping_of_tcp_by_control_message(world: World, number: int) -> None:
    """SCM_TIMESTAMPING, old and new, with a send on a TCP socket: its TX flags instead of the socket's."""
    if world.network is None and number == SO_TIMESTAMPING_NEW and not KERNEL_TAKES_NEW_MESSAGE:
        pytest.skip("this machine's kernel knows the old message only")
    client, served = pair(world)
    with client, served:
        client.setsockopt(SOL, number, SOFTWARE | OPT_ID | OPT_TSONLY)

        def send(flags: int) -> None:
            client.sendmsg([b"x"], [(SOL, number, struct.pack("@I", flags))])

        send(TX_ACK)
        each = entry(world, client)
        assert (each.kind, each.number, [kind for _, kind, _ in each.others]) == (ACKNOWLEDGED, 0, [number])
        client.setsockopt(SOL, number, TX_ACK | SOFTWARE | OPT_ID | OPT_TSONLY)
        send(TX_SOFTWARE)
        assert told(world, client, SENT) == [1]
        send(0)
        client.sendmsg([b"x"], [(kernel.IPPROTO_IP, 99, b"passes unseen")])
        assert told(world, client, ACKNOWLEDGED) == [3]
        nothing_more(client)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (SO_TIMESTAMPING, b""),
        (SO_TIMESTAMPING, b"\x02"),
        (SO_TIMESTAMPING, struct.pack("@Q", TX_SOFTWARE)),
        (SO_TIMESTAMPING, struct.pack("@I", RX_SOFTWARE)),
        (SO_TIMESTAMPING, struct.pack("@I", TX_SOFTWARE | SOFTWARE)),
        (SO_TIMESTAMPING, struct.pack("@I", TX_SOFTWARE | OPT_ID)),
        (SO_TIMESTAMPNS, struct.pack("@i", 1)),
        (61, struct.pack("@Q", 1)),
        (99, b"1234"),
    ],
)
def test_opt_so_timestamping_of_tcp_wrong_control_message(world: World, kind: int, data: bytes) -> None:
    """Flags that are none of sending's, other lengths, unknown types: EINVAL; EPIPE where nothing can be sent."""
    client, served = pair(world)
    with client, served:
        assert code(client.sendmsg, [b"x"], [(SOL, kind, data)]) == errno.EINVAL
        client.shutdown(kernel.SHUT_WR)
        assert code(client.sendmsg, [b"x"], [(SOL, kind, data)], kernel.MSG_NOSIGNAL) == errno.EPIPE


def test_opt_so_timestamping_of_tcp_is_numbered_when_connected(world: World) -> None:
    """OPT_ID on a TCP socket that is not connected, listens, or was reset: EINVAL, and nothing is set."""
    client, served = pair(world)
    with client, served, world.socket.socket() as fresh, world.listener() as listener:
        for sock in (fresh, listener):
            for flags in (OPT_ID, OPT_ID | TX_SOFTWARE, OPT_ID | OPT_ID_TCP):
                assert code(sock.setsockopt, SOL, SO_TIMESTAMPING, flags) == errno.EINVAL
            assert sock.getsockopt(SOL, SO_TIMESTAMPING) == 0
            sock.setsockopt(SOL, SO_TIMESTAMPING, TX_SOFTWARE)
        served.setsockopt(SOL, kernel.SO_LINGER, struct.pack("@ii", 1, 0))
        served.close()
        wait_for_error(world, client)
        assert code(client.setsockopt, SOL, SO_TIMESTAMPING, OPT_ID) == errno.EINVAL


def test_opt_so_timestamping_of_tcp_is_inherited(world: World) -> None:
    """An accepted TCP socket has its listener's SO_TIMESTAMPING; numbers it must ask for itself."""
    with world.listener() as listener, world.socket.socket() as client:
        listener.setsockopt(SOL, SO_TIMESTAMPING, TX_SCHED | TX_ACK | OPT_TSONLY)
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            assert served.getsockopt(SOL, SO_TIMESTAMPING) == TX_SCHED | TX_ACK | OPT_TSONLY
            served.settimeout(10)
            served.send(b"hey")
            assert told(world, served, SCHEDULED, ACKNOWLEDGED) == [0, 0]
            served.setsockopt(SOL, SO_TIMESTAMPING, TX_ACK | OPT_TSONLY | OPT_ID)
            served.send(b"hey")
            assert told(world, served, ACKNOWLEDGED) == [2]


def test_opt_so_timestamping_of_tcp_sent_with_so_timestampns(world: World) -> None:
    """An entry has SO_TIMESTAMPNS's message before SO_TIMESTAMPING's, each only if asked for (SOFTWARE)."""
    client, served = pair(world)
    with client, served:
        for option, flags in ((0, 0), (1, 0), (0, SOFTWARE), (1, SOFTWARE)):
            client.setsockopt(SOL, SO_TIMESTAMPNS, option)
            client.setsockopt(SOL, SO_TIMESTAMPING, TX_SCHED | OPT_TSONLY | flags)
            client.send(b"x")
            wanted = [SO_TIMESTAMPNS] * option + [SO_TIMESTAMPING] * (flags // SOFTWARE)
            others = entry(world, client).others
            assert [kind for _, kind, _ in others] == wanted
            assert len({data[:16] for _, _, data in others}) <= 1


def test_opt_so_timestamping_of_tcp_opt_cmsg(world: World, family: int) -> None:
    """OPT_CMSG: what quotes a packet tells its interface, addresses and hop limit as IP_PKTINFO and its likes ask for;
    what quotes none does not. Over IPv6 it is told without OPT_CMSG.
    """
    client, served = pair(world, family)
    with client, served:
        if family == kernel.AF_INET:
            client.setsockopt(kernel.IPPROTO_IP, 8, 1)
            client.setsockopt(kernel.IPPROTO_IP, 12, 1)
            local = kernel.inet_aton("127.0.0.1")
            wanted = [(0, 8, struct.pack("@i", 1) + 2 * local), (0, 2, struct.pack("@i", 64))]
        else:
            client.setsockopt(kernel.IPPROTO_IPV6, 49, 1)
            client.setsockopt(kernel.IPPROTO_IPV6, 51, 1)
            local = kernel.inet_pton(kernel.AF_INET6, "::1")
            wanted = [(41, 50, local + struct.pack("@i", 1)), (41, 52, struct.pack("@i", 64))]
        for flags in (OPT_CMSG, 0, OPT_CMSG | OPT_TSONLY):
            client.setsockopt(SOL, SO_TIMESTAMPING, TX_SCHED | TX_ACK | flags)
            client.send(b"abc")
            first, last = entry(world, client), entry(world, client)
            told = (flags == OPT_CMSG or family == kernel.AF_INET6) and not flags & OPT_TSONLY
            assert first.others == (wanted if told else [])
            assert last.others == []


def test_opt_so_timestamping_of_tcp_opt_stats(world: World) -> None:
    """OPT_STATS: the entry's data are statistics of the connection, as a control message, too, with the time stamp."""
    client, served = pair(world)
    with client, served:
        client.setsockopt(SOL, SO_TIMESTAMPING, TX_SCHED | TX_ACK | SOFTWARE | OPT_TSONLY | OPT_STATS)
        client.send(b"abc")
        for _ in range(2):
            each = entry(world, client)
            assert [kind for _, kind, _ in each.others] == [SO_TIMESTAMPING, OPT_STATS_MESSAGE]
            assert each.others[1][2] == each.data
            found = attributes(each.data)
            assert list(found)[:6] == [1, 2, 3, 4, 5, 6]
            assert found[4] == 1  # TCP_NLA_DATA_SEGS_OUT
            assert found[18] == 3  # TCP_NLA_BYTES_SENT
            assert found[14] == found[19] == 0  # TCP_NLA_CA_STATE, TCP_NLA_BYTES_RETRANS
        client.setsockopt(SOL, SO_TIMESTAMPING, TX_ACK | OPT_TSONLY | OPT_STATS)
        client.send(b"abc")
        each = entry(world, client)
        assert each.others == []
        assert attributes(each.data)[18] == 6


def attributes(data: bytes) -> dict[int, int]:
    found, at = {}, 0
    while at < len(data):
        length, kind = struct.unpack_from("@HH", data, at)
        found[kind] = int.from_bytes(data[at + 4 : at + length], "little")
        at += length + 3 & ~3
    return found


def test_opt_so_timestamping_of_tcp_is_seen_by_who_waits(world: World) -> None:
    """An entry makes a TCP socket's descriptor ready as an error does; SO_SELECT_ERR_QUEUE adds no PRI, as it does to
    datagram sockets.
    """
    client, served = pair(world)
    with client, served:
        client.setsockopt(SOL, SO_SELECT_ERR_QUEUE, 1)
        client.setsockopt(SOL, SO_TIMESTAMPING, TX_ACK | OPT_ID | OPT_TSONLY)
        assert select.select([client.fileno()], [], [], 0) == ([], [], [])
        client.send(b"x")
        assert select.select([client.fileno()], [], [], 10)[0] == [client.fileno()]
        poll = select.poll()
        poll.register(client.fileno(), select.POLLPRI)
        assert not any(bits & PRI for _, bits in poll.poll(0))
        assert told(world, client, ACKNOWLEDGED) == [0]
        assert select.select([client.fileno()], [], [], 0) == ([], [], [])


def test_opt_so_timestamping_of_tcp_sendall_is_one_send(world: World) -> None:
    """sendall() without a time-out, of more than there is room for, has the stamps of its last byte only."""
    client, served = pair(world)
    with client, served:
        client.settimeout(None)
        client.setsockopt(SOL, SO_TIMESTAMPING, TX_ACK | OPT_ID | OPT_TSONLY)
        reader = threading.Thread(target=read, args=(served, 1_000_000), daemon=True)
        reader.start()
        client.sendall(bytes(1_000_000))
        reader.join()
        assert told(world, client, ACKNOWLEDGED) == [999_999]
        nothing_more(client)
