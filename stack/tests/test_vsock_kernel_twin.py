"""What an AF_VSOCK socket does without a peer, row by row, here and on this machine's kernel: the same bodies for both.

The kernel needs no transport for that, only the family (`modprobe vsock`). What was measured is expected of both.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import random
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from stack import Network
from stack.testing.clock import ManualClock
from stack.tests.unix_world import KERNEL

AF_VSOCK, STREAM, SEQPACKET = socket.AF_VSOCK, socket.SOCK_STREAM, socket.SOCK_SEQPACKET
ANY = 0xFFFFFFFF
SIZE, MIN, MAX, HOST_VM_ID, TRUSTED, TIMEOUT_OLD, NONBLOCK_TXRX, TIMEOUT_NEW = 0, 1, 2, 3, 5, 6, 7, 8


LIBC = ctypes.CDLL(None, use_errno=True)


def kernel_has_the_family() -> bool:
    try:
        socket.socket(AF_VSOCK, STREAM).close()
    except OSError:
        return False
    return True


class Maker:
    """Makes sockets of one kind in one place."""

    def __init__(self, module: Any, kind: int) -> None:
        self.module = module
        self.kind = kind
        self.open: list[Any] = []

    def __call__(self) -> Any:
        made = self.module.socket(AF_VSOCK, self.kind)
        self.open.append(made)
        return made


PLACES = ["stack", "kernel"] if kernel_has_the_family() else ["stack"]


@pytest.fixture(params=[(place, kind) for place in PLACES for kind in (STREAM, SEQPACKET)], ids=str)
def make(request: pytest.FixtureRequest) -> Iterator[Maker]:
    place, kind = request.param
    network = Network(clock=ManualClock(), rng=random.Random(1))
    maker = Maker(socket if place == "kernel" else network.stack("host").socket, kind)
    yield maker
    for each in maker.open:
        each.close()
    network.close()


def refused(expected: int) -> Any:
    return pytest.raises(OSError, match=f"Errno {expected}\\]")


def get(made: Any, level: int, option: int, length: int) -> bytes:
    """getsockopt with a buffer of `length` bytes. CPython's own method refuses that to AF_VSOCK."""
    if not isinstance(made, socket.socket):
        value: bytes = made.getsockopt(level, option, length)
        return value
    buffer, size = ctypes.create_string_buffer(length), ctypes.c_uint(length)
    if LIBC.getsockopt(made.fileno(), level, option, buffer, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), "getsockopt")
    return buffer.raw[: size.value]


def put(made: Any, level: int, option: int, value: bytes) -> None:
    """setsockopt, likewise."""
    if not isinstance(made, socket.socket):
        made.setsockopt(level, option, value)
    elif LIBC.setsockopt(made.fileno(), level, option, value, len(value)):
        raise OSError(ctypes.get_errno(), "setsockopt")


def ioctl(made: Any, request: int) -> bytes:
    answer: bytes = (
        fcntl.ioctl(made, request, bytes(4)) if isinstance(made, socket.socket) else made.ioctl(request, bytes(4))
    )
    return answer


def u64(made: Any, option: int) -> int:
    value: int = struct.unpack("Q", get(made, AF_VSOCK, option, 8))[0]
    return value


def bits(made: Any) -> int:
    if isinstance(made, socket.socket):
        poller = select.poll()
        poller.register(made, 0xFFFF)
        got = dict(poller.poll(0)).get(made.fileno(), 0)
    else:
        got = int(made._sock.poll())
    return got & (select.POLLIN | select.POLLOUT | select.POLLERR | select.POLLHUP | select.POLLRDHUP)


@pytest.mark.skipif(KERNEL < (6, 17), reason="these requests are Linux 6.11's and 6.17's")
def test_ioctl_unconnected(make: Maker) -> None:
    """SIOCINQ and SIOCOUTQ are EOPNOTSUPP without a transport, listening too; SIOCATMARK is ENOTTY."""
    fresh, listening = make(), make()
    listening.bind((ANY, ANY))
    listening.listen()
    for made in (fresh, listening):
        for request, expected in ((0x541B, errno.EOPNOTSUPP), (0x5411, errno.EOPNOTSUPP), (0x8905, errno.ENOTTY)):
            with refused(expected):
                ioctl(made, request)


def test_vs_05_06_07_17_18_unconnected(make: Maker) -> None:
    """Unconnected: nameless {ANY, ANY} and writable; listen and accept are EINVAL, what takes a peer ENOTCONN."""
    made = make()
    assert made.getsockname() == (ANY, ANY)
    assert bits(made) == select.POLLOUT
    with refused(errno.ENOTCONN):
        made.getpeername()
    for operation in (lambda: made.listen(1), made.accept):
        with refused(errno.EINVAL):
            operation()
    for data in (b"x", b""):
        with refused(errno.ENOTCONN):
            made.send(data)
    with refused(errno.ENOTCONN):
        made.recv(1)
    with refused(errno.EOPNOTSUPP):
        made.send(b"x", socket.MSG_OOB)
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        with refused(errno.ENOTCONN):
            made.shutdown(how)
    with refused(errno.EINVAL):
        made.shutdown(3)


def test_vs_02_03_bind(make: Maker) -> None:
    """Other CIDs are EADDRNOTAVAIL, PORT_ANY is a port from 1024 on; taken EADDRINUSE, twice EINVAL."""
    made = make()
    for cid in (0, 77, 0xFFFFFFFE):
        with refused(errno.EADDRNOTAVAIL):
            made.bind((cid, 1))
    made.bind((ANY, ANY))
    cid, port = made.getsockname()
    assert cid == ANY
    assert 1024 <= port < ANY
    with refused(errno.EINVAL):
        made.bind((ANY, ANY))
    with refused(errno.EADDRINUSE):
        make().bind((ANY, port))


def test_vs_05_17_listening(make: Maker) -> None:
    """A listener polls nothing, its empty queue is EAGAIN; connect is EINVAL, send ENOTCONN; it may listen again."""
    made = make()
    made.bind((ANY, ANY))
    made.listen(0)
    made.listen(5)
    made.setblocking(False)
    assert bits(made) == 0
    with refused(errno.EAGAIN):
        made.accept()
    with refused(errno.EINVAL):
        made.connect((2, 1))
    with refused(errno.ENOTCONN):
        made.send(b"x")


@pytest.mark.parametrize("value", [0, 1, 64, 127, 128, 256, 65536, 262144, 262145, 1 << 20, 8589934592])
@pytest.mark.parametrize("option", [SIZE, MIN, MAX])
def test_opt_buffer_sizes_and_their_clamps(make: Maker, option: int, value: int) -> None:
    """SO_VM_SOCKETS_BUFFER_SIZE is kept between SO_VM_SOCKETS_BUFFER_MIN_SIZE and SO_VM_SOCKETS_BUFFER_MAX_SIZE, of
    which the last one wins. All of linux-measured's rows (section 2.6: 0, 1, 2).
    """
    made = make()
    assert [u64(made, each) for each in (SIZE, MIN, MAX)] == [262144, 128, 262144]
    put(made, AF_VSOCK, option, struct.pack("Q", value))
    low = value if option == MIN else 128
    high = value if option == MAX else 262144
    size = value if option == SIZE else 262144
    assert [u64(made, each) for each in (SIZE, MIN, MAX)] == [min(max(size, low), high), low, high]


@pytest.mark.parametrize("option", [TIMEOUT_OLD, TIMEOUT_NEW])
def test_opt_connect_timeouts(make: Maker, option: int) -> None:
    """SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD and SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW are one value, two seconds at first and
    after zero; what no clock can count is ERANGE (section 2.6: 6, 8).
    """
    made = make()
    assert get(made, AF_VSOCK, option, 16) == struct.pack("ll", 2, 0)
    put(made, AF_VSOCK, option, struct.pack("ll", 1, 500_000))
    for each in (TIMEOUT_OLD, TIMEOUT_NEW):
        assert get(made, AF_VSOCK, each, 16) == struct.pack("ll", 1, 500_000)
    for wrong in ((0, 1_000_000), (-1, 0), (1 << 62, 0)):
        with refused(errno.ERANGE):
            put(made, AF_VSOCK, option, struct.pack("ll", *wrong))
    put(made, AF_VSOCK, option, struct.pack("ll", 0, 0))
    assert get(made, AF_VSOCK, option, 16) == struct.pack("ll", 2, 0)


@pytest.mark.parametrize("option", [SIZE, MIN, MAX, TIMEOUT_OLD, TIMEOUT_NEW])
def test_opt_short_values(make: Maker, option: int) -> None:
    """Vsock options shorter than their value are EINVAL both ways, longer ones are fine (section 2.6, OPT-00)."""
    made = make()
    size = 8 if option <= MAX else 16
    for length in (1, 4, size - 1):
        with refused(errno.EINVAL):
            put(made, AF_VSOCK, option, bytes(length))
        with refused(errno.EINVAL):
            get(made, AF_VSOCK, option, length)
    assert len(get(made, AF_VSOCK, option, 32)) == size


@pytest.mark.parametrize("option", [HOST_VM_ID, 4, TRUSTED, NONBLOCK_TXRX, 9, 99])
def test_options_of_other_transports(make: Maker, option: int) -> None:
    """Section 2.6: 3, 5, 7 are VMCI's; OPT-00: unknown ones."""
    made = make()
    with refused(errno.ENOPROTOOPT):
        get(made, AF_VSOCK, option, 8)
    with refused(errno.ENOPROTOOPT):
        put(made, AF_VSOCK, option, bytes(8))


@pytest.mark.parametrize("level", [0, 6, 41, 270])
def test_other_levels(make: Maker, level: int) -> None:
    """OPT-00: ENOPROTOOPT for every unknown level."""
    made = make()
    with refused(errno.ENOPROTOOPT):
        made.getsockopt(level, 1)
    with refused(errno.ENOPROTOOPT):
        made.setsockopt(level, 1, 1)


def test_vs_16_socket_level(make: Maker) -> None:
    """The options of SOL_SOCKET that vsock has; those it has not are EOPNOTSUPP (section 2.6, last line)."""
    made = make()
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == make.kind
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == AF_VSOCK
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 7)
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 7
    put(made, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3))
    assert get(made, socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 3)
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    with refused(errno.EOPNOTSUPP):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for option in (16, 34, 42, 74, 76):  # PASSCRED, PASSSEC, PEEK_OFF, TXREHASH, PASSPIDFD
        with refused(errno.EOPNOTSUPP):
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        with refused(errno.EOPNOTSUPP):
            made.getsockopt(socket.SOL_SOCKET, option)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        put(made, socket.SOL_SOCKET, option, struct.pack("ll", 3, 0))
        assert get(made, socket.SOL_SOCKET, option, 16) == struct.pack("ll", 3, 0)
    made.bind((ANY, ANY))
    made.listen(1)
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
