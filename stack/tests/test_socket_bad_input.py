"""Bad input: the same call on a kernel's socket and on one of ours ends in the same exception class and errno.

Each case is made on both, in every state where it makes sense, and the outcomes compared: nothing here says what is
right. Results that are no exceptions are compared too, unless they are numbers that cannot be the same.
"""

from __future__ import annotations

import array
import gc
import itertools
import os
import socket as kernel
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from stack import Network
from stack.tests.kernel_twin import LOOPBACK

DIFFERENCES = {
    "options of AF_VSOCK": "CPython takes and gives them as 64-bit numbers only; a Stack takes bytes too, as the "
    "system call does",
    "SO_LOCK_FILTER": "Unix and netlink sockets of a Stack take no filter, so it is unknown there (Linux 6.18: 0)",
}

SOL = kernel.SOL_SOCKET
INT = struct.Struct("i")

Make = Callable[[Any], list[Any]]


def fresh(family: int, kind: int) -> Make:
    return lambda module: [module.socket(family, kind, 0)]


def bound(family: int, kind: int, address: Any) -> Make:
    def make(module: Any) -> list[Any]:
        sock = module.socket(family, kind, 0)
        sock.bind(address)
        return [sock]

    return make


def listening(module: Any) -> list[Any]:
    return [module.create_server((LOOPBACK, 0))]


def connected(module: Any) -> list[Any]:
    (server,) = listening(module)
    with server:
        client = module.create_connection(server.getsockname())
        return [client, server.accept()[0]]


def connected_udp(module: Any) -> list[Any]:
    one, other = module.socket(kernel.AF_INET, kernel.SOCK_DGRAM), module.socket(kernel.AF_INET, kernel.SOCK_DGRAM)
    other.bind((LOOPBACK, 0))
    one.connect(other.getsockname())
    return [one, other]


def pair(kind: int) -> Make:
    return lambda module: list(module.socketpair(kernel.AF_UNIX, kind))


def closed(module: Any) -> list[Any]:
    sock = module.socket()
    sock.close()
    return [sock]


STATES: dict[str, Make] = {
    "tcp": fresh(kernel.AF_INET, kernel.SOCK_STREAM),
    "tcp6": fresh(kernel.AF_INET6, kernel.SOCK_STREAM),
    "tcp bound": bound(kernel.AF_INET, kernel.SOCK_STREAM, (LOOPBACK, 0)),
    "tcp listening": listening,
    "tcp connected": connected,
    "udp": fresh(kernel.AF_INET, kernel.SOCK_DGRAM),
    "udp6": fresh(kernel.AF_INET6, kernel.SOCK_DGRAM),
    "udp connected": connected_udp,
    "unix": fresh(kernel.AF_UNIX, kernel.SOCK_STREAM),
    "unix datagram": fresh(kernel.AF_UNIX, kernel.SOCK_DGRAM),
    "unix pair": pair(kernel.SOCK_STREAM),
    "unix record pair": pair(kernel.SOCK_SEQPACKET),
    "unix datagram pair": pair(kernel.SOCK_DGRAM),
    "netlink": fresh(kernel.AF_NETLINK, kernel.SOCK_RAW),
    "vsock": fresh(kernel.AF_VSOCK, kernel.SOCK_STREAM),
    "closed": closed,
}


def outcome(make: Make, module: Any, call: Callable[[Any], Any]) -> Any:
    """(exception class, errno), or what the call answered."""
    socks = make(module)
    try:
        if socks[0].fileno() >= 0:
            socks[0].setblocking(False)
        answer = call(socks[0])
        return answer if not hasattr(answer, "close") else answer.close()
    except OSError as error:
        return type(error), error.errno
    except Exception as error:  # noqa: BLE001 - compared
        return type(error), None
    finally:
        for sock in socks:
            sock.close()


@pytest.fixture(scope="module")
def ours() -> Iterator[Any]:
    with Network() as network:
        yield network.stack("gw").socket


def compare(ours: Any, state: str, cases: dict[str, Callable[[Any], Any]]) -> None:
    differences = {}
    for label, call in cases.items():
        expected, found = outcome(STATES[state], kernel, call), outcome(STATES[state], ours, call)
        if expected != found:
            differences[label] = {"kernel": expected, "ours": found}
    assert differences == {}


def method(name: str, *arguments: Any) -> tuple[str, Callable[[Any], Any]]:
    return f"{name}{arguments!r:.60}", lambda sock: getattr(sock, name)(*arguments)


def _calls(*calls: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    return calls


#: Values no call takes, or only some.
ODD: list[Any] = [None, "text", b"bytes", -1, 1 << 31, 1 << 63, 1 << 70, 1.5, (), [], object]


WRONG_TYPES = dict(
    itertools.chain(
        (
            method(name, value)
            for name in ("listen", "shutdown", "recv", "recvfrom", "recvmsg", "settimeout")
            for value in ODD
            if (name, value) not in (("settimeout", None), ("settimeout", 1.5), ("recv", 1 << 31), ("recvmsg", 1 << 31))
            and not (name.startswith("recv") and isinstance(value, int) and value > 1 << 30)  # memory
        ),
        (
            method(name, value)
            for name in ("send", "sendall", "recv_into", "recvfrom_into", "sendmsg", "recvmsg_into")
            for value in (None, "text", 5, 1.5, object, memoryview(b"abcd")[::2])
        ),
        (
            method(*call)
            for call in _calls(
                ("send", b"x", "flags"),
                ("send", b"x", 1 << 40),
                ("recv", 1, None),
                ("recv", 1, 1 << 40),
                ("recv_into", bytearray(2), 3),
                ("recv_into", bytearray(2), -1),
                ("recvfrom_into", bytearray(2), 3),
                ("recvfrom_into", bytearray(2), -1),
                ("recvmsg", 1, -1),
                ("recvmsg", 1, 1 << 40),
                ("recvmsg_into", [b"constant"]),
                ("recvmsg_into", [bytearray(1)], -1),
                ("sendto", b"x"),
                ("sendto", b"x", "flags", (LOOPBACK, 9)),
                ("sendto", "text", (LOOPBACK, 9)),
                ("sendmsg", ["text"]),
                ("sendmsg", [b"x"], 5),
                ("sendmsg", [b"x"], [5]),
                ("sendmsg", [b"x"], [(1, 2)]),
                ("sendmsg", [b"x"], [("a", 2, b"")]),
                ("sendmsg", [b"x"], [(1, 2, "text")]),
                ("sendmsg", [b"x"], [(1 << 40, 2, b"")]),
                ("sendmsg", [b"x"], [], "flags"),
                ("setblocking",),
                ("setblocking", "x"),
                ("setblocking", None),
                ("setblocking", 1 << 70),
                ("settimeout", float("nan")),
                ("settimeout", float("inf")),
                ("settimeout", 1e12),
                ("getsockopt", "level", 1),
                ("getsockopt", 1, 1 << 40),
                ("getsockopt", 1, 2, -1),
                ("getsockopt", 1, 2, 1025),
                ("getsockopt", 1, 2, "x"),
                ("setsockopt", 1, 2),
                ("setsockopt", 1, 2, "text"),
                ("setsockopt", 1, 2, 1.5),
                ("setsockopt", 1, 2, None),
                ("setsockopt", 1, 2, None, 4),
                ("setsockopt", 1, 2, b"1234", 4),
                ("setsockopt", 1, 2, 1 << 40),
                ("setsockopt", "x", 2, 1),
            )
        ),
    )
)

#: Of every family and of none.
ADDRESSES: list[Any] = [
    None,
    5,
    "text",
    b"bytes",
    [],
    (),
    (LOOPBACK,),
    (LOOPBACK, 9, 0),
    [LOOPBACK, 9],
    (LOOPBACK, "9"),
    (LOOPBACK, -1),
    (LOOPBACK, 65536),
    (LOOPBACK, 1 << 40),
    (5, 9),
    (LOOPBACK + "\0", 9),
    (LOOPBACK.encode() + b"\0", 9),
    ("\u00fc" * 70, 9),
    ("\udc80", 9),
    ("::1", 9, 0, 0, 0),
    ("::1", 9, "x"),
    ("::1", 9, 1 << 20, 0),
    ("<broadcast>", 9, 0),
    (1.5, 2),
    (1, "2"),
    (1, 2, 3),
    "x" * 109,
    "\0" + "x" * 108,
    object,
]


def resolves(state: str, address: Any) -> bool:
    """Whether the kernel would ask a name server, or the address is good and what follows is another test's."""
    if state in ("netlink", "vsock"):
        return isinstance(address, tuple) and len(address) == 2 and all(isinstance(each, int) for each in address)
    if state.startswith("unix"):
        return address in ("text", b"bytes")
    return False


OPTIONS: dict[str, list[tuple[int, int]]] = {
    "any": [(SOL, number) for number in (*range(1, 50), 56, 57, 60, 61, 62, 72, 74, 76, 82, 83, 999)],
    "tcp": [(6, number) for number in (*range(1, 14), 18, 23, 24, 25, 36, 999)] + [(0, 1), (0, 2), (0, 3), (0, 10)],
    "tcp6": [(41, number) for number in (16, 26, 67, 999)] + [(0, 2)],
    "udp6": [(41, number) for number in (16, 26, 49, 67, 999)] + [(17, 103)],
    "udp": [(17, 1), (17, 100), (17, 103), (17, 999), (0, 1), (0, 2), (0, 8), (0, 12), (0, 32), (0, 33), (0, 34)],
    "unix": [(0, 1), (6, 1), (17, 1), (270, 1), (40, 0), (999, 1)],
    "netlink": [(270, number) for number in (1, 3, 4, 5, 10, 11, 12, 99)] + [(0, 1), (6, 1), (999, 1)],
}
#: Numbers that differ by nature: cookies, memory, cpu, buffers tuned by the system, names of things.
NATURE = {(SOL, number) for number in (7, 8, 17, 28, 31, 49, 55, 56, 57)} | {
    (6, number) for number in (2, 10, 11, 13, 24)
}
#: Filters are programs, the device is a name: their tests are elsewhere (test_bpf..., OPT rows).
ELSEWHERE = {(SOL, 25), (SOL, 26), (SOL, 27), (SOL, 44), (6, 31)}


def _length(call: Callable[[Any], Any], sock: Any) -> int:
    return len(call(sock))


def option_cases(state: str) -> dict[str, Callable[[Any], Any]]:
    numbers = OPTIONS["any"] + OPTIONS.get(state.split(maxsplit=1)[0], []) + [(999, 1), (-1, 1)]
    cases: dict[str, Callable[[Any], Any]] = {}
    for level, number in numbers:
        if (level, number) in ELSEWHERE:
            continue
        for length in (1, 2, 3, 4, 7, 8, 15, 16, 100):
            label, call = method("getsockopt", level, number, length)
            cases[label] = partial(_length, call) if (level, number) in NATURE else call
        for value in (b"", b"\1", b"\1\0", b"\1\0\0", bytes(7), bytes(8), bytes(15)):
            label, call = method("setsockopt", level, number, value)
            cases[label] = call
    return cases


CONTROL: dict[str, list[tuple[int, int, bytes]]] = {
    "rights cut short": [(SOL, kernel.SCM_RIGHTS, b"\0\0\0")],
    "no rights": [(SOL, kernel.SCM_RIGHTS, b"")],
    "a bad descriptor": [(SOL, kernel.SCM_RIGHTS, INT.pack(-1))],
    "a descriptor nobody has": [(SOL, kernel.SCM_RIGHTS, INT.pack(987654))],
    "too many rights": [(SOL, kernel.SCM_RIGHTS, INT.pack(0) * 254)],
    "credentials cut short": [(SOL, kernel.SCM_CREDENTIALS, bytes(8))],
    "credentials too long": [(SOL, kernel.SCM_CREDENTIALS, bytes(16))],
    "an unknown type": [(SOL, 99, b"1234")],
    "a mark cut short": [(SOL, 36, b"1")],
    "another level": [(99, 1, b"1234")],
    "a TTL cut short": [(0, 2, b"12")],
    "a TTL of zero": [(0, 2, INT.pack(0))],
    "a TTL too large": [(0, 2, INT.pack(256))],
    "a TOS too long": [(0, 1, bytes(5))],
    "packet info cut short": [(0, 8, bytes(4))],
    "an unknown IP type": [(0, 99, b"1234")],
    "a hop limit cut short": [(41, 52, b"1")],
    "a segment size cut short": [(17, 103, b"1")],
}


@pytest.mark.parametrize("state", STATES)
def test_wrong_types_and_ranges(ours: Any, state: str) -> None:
    """TypeError, ValueError, OverflowError as from the C type, and what the kernel says of the rest."""
    compare(ours, state, WRONG_TYPES)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["bind", "connect", "connect_ex", "sendto"])
def test_addresses_of_the_wrong_shape(ours: Any, state: str, name: str) -> None:
    """Of no family, of another one, of too many parts or out of range."""
    chosen = [address for address in ADDRESSES if not resolves(state, address)]
    cases = dict(method(name, *((b"x",) if name == "sendto" else ()), address) for address in chosen)
    compare(ours, state, cases)


@pytest.mark.parametrize("state", [state for state in STATES if state not in ("closed", "vsock")])
def test_options_of_the_wrong_length(ours: Any, state: str) -> None:
    """Every option known by number, asked for in 1 to 100 bytes and set with 0 to 15; unknown ones; unknown levels."""
    compare(ours, state, option_cases(state))


@pytest.mark.parametrize("state", STATES)
def test_control_messages(ours: Any, state: str) -> None:
    """Cut short, too long, unknown, of another level, with descriptors that are none."""
    compare(ours, state, dict(method("sendmsg", [b"x"], messages) for messages in CONTROL.values()))


@pytest.mark.parametrize("room", [0, 1, 15, 16, 17, 19, 20, 24, 27, 28, 36])
def test_room_for_control_messages(ours: Any, room: int) -> None:
    """What of two control messages comes out of a short buffer, and whether MSG_CTRUNC tells; no descriptor leaks."""

    def call(module: Any) -> Any:
        one, other = module.socketpair()
        reading, writing = os.pipe()
        with one, other:
            other.setsockopt(SOL, kernel.SO_PASSCRED, 1)
            one.sendmsg([b"x"], [(SOL, kernel.SCM_RIGHTS, array.array("i", [reading, writing]))])
            os.close(reading)
            os.close(writing)
            data, messages, flags, _ = other.recvmsg(1, room)
            for level, kind, content in messages:
                if (level, kind) == (SOL, kernel.SCM_RIGHTS):
                    numbers = array.array("i", content[: len(content) // 4 * 4])
                    for number in numbers:
                        os.close(number)
            return data, [(level, kind, len(content)) for level, kind, content in messages], flags

    gc.collect()  # what others left goes now, not in between
    before = len(os.listdir("/proc/self/fd"))
    assert call(ours) == call(kernel)
    assert len(os.listdir("/proc/self/fd")) <= before  # what others left may have gone meanwhile


@pytest.mark.parametrize("state", STATES)
def test_calls_in_the_wrong_state(ours: Any, state: str) -> None:
    """Every call on every kind of socket in every state: what works and what is refused, and how."""
    cases = dict(
        method(*call)
        for call in _calls(
            ("accept",),
            ("recv", 1),
            ("recv", 1, kernel.MSG_OOB),
            ("recv", 1, kernel.MSG_ERRQUEUE),
            ("recv", 1, kernel.MSG_PEEK),
            ("recvfrom", 0),
            ("recvmsg", 0),
            ("send", b""),
            ("send", b"x", kernel.MSG_OOB),
            ("sendmsg", []),
            ("sendto", b"x", 0, (LOOPBACK, 0)) if "tcp" in state else ("send", b""),
            ("shutdown", 0),
            ("shutdown", 1),
            ("shutdown", 2),
            ("shutdown", 3),
            ("listen", 1) if state != "tcp" else ("listen", -1),
            ("detach",) if state == "closed" else ("getblocking",),
        )
    )
    cases["getpeername()"] = lambda sock: bool(sock.getpeername())
    compare(ours, state, cases)
