"""Local ports (IF-06, TCP-01..04, UDP-11), with the kernel's own bind() and listen() as the oracle."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import socket
from collections import Counter

import pytest

from stack.errors import NetError
from stack.ip.ports import EPHEMERAL_FIRST, EPHEMERAL_LAST, BoundPort, PortTable

LO = bytes((127, 0, 0, 1))
OTHER = bytes((127, 0, 0, 2))
ANY = bytes(4)
ANY6 = bytes(16)
LO6 = bytes(15) + b"\x01"
TEXT = {LO: "127.0.0.1", OTHER: "127.0.0.2", ANY: "0.0.0.0", ANY6: "::", LO6: "::1"}


def table() -> PortTable:
    return PortTable(random.Random(5))


def refusal(attempt: object) -> int:
    """errno of the NetError or OSError that calling `attempt` raises, 0 if none."""
    assert callable(attempt)
    try:
        attempt()
    except (NetError, OSError) as error:
        return error.errno or -1
    return 0


def kernel_refuses(
    first: bytes, second: bytes, kind: int, reuse_addr: tuple[bool, ...], reuse_port: tuple[bool, ...], listen: bool
) -> int:
    """What the running kernel says to two binds of one port.

    Another program may hold the port at the second address, so a refusal counts if several ports are refused.
    """
    for _ in range(4):
        if not (refused := one_refusal(first, second, kind, reuse_addr, reuse_port, listen)):
            break
    return refused


def one_refusal(
    first: bytes, second: bytes, kind: int, reuse_addr: tuple[bool, ...], reuse_port: tuple[bool, ...], listen: bool
) -> int:
    with contextlib.ExitStack() as stack:
        sockets = []
        for index, address in enumerate((first, second)):
            family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
            sock = stack.enter_context(socket.socket(family, kind))
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_addr[index])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port[index])
            sockets.append(sock)
        sockets[0].bind((TEXT[first], 0))
        port = sockets[0].getsockname()[1]
        if listen:
            sockets[0].listen()
        return refusal(lambda: sockets[1].bind((TEXT[second], port)))


ADDRESSES = [(LO, LO), (LO, OTHER), (ANY, LO), (LO, ANY), (ANY, ANY)]
with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
    probe.bind(("::1", 0))
    ADDRESSES += [(ANY6, LO), (LO, ANY6), (ANY6, ANY), (LO6, LO), (LO6, ANY), (ANY6, LO6)]


@pytest.mark.parametrize(("first", "second"), ADDRESSES)
@pytest.mark.parametrize(("kind", "listen"), [(1, False), (1, True), (2, False)], ids=["tcp", "listening", "udp"])
def test_two_claims_on_one_port_as_the_kernel_decides(first: bytes, second: bytes, kind: int, listen: bool) -> None:
    """Every combination of SO_REUSEADDR and SO_REUSEPORT on both sides."""
    pairs = list(itertools.product((False, True), repeat=2))
    for reuse_addr, reuse_port in itertools.product(pairs, pairs):
        ports = table()
        one = ports.bind(first, 5000, reuse_addr=reuse_addr[0], reuse_port=reuse_port[0])
        if listen:
            one.listen()
        ours = refusal(
            lambda: ports.bind(second, 5000, reuse_addr=reuse_addr[1], reuse_port=reuse_port[1])  # noqa: B023
        )
        # Another program may have a port that the kernel's sockets get here: what it says with every port counts.
        answers = (kernel_refuses(first, second, kind, reuse_addr, reuse_port, listen) for _ in range(20))
        assert ours in answers, (reuse_addr, reuse_port)


def test_v6only_keeps_out_of_ipv4() -> None:
    ports = table()
    ports.bind(ANY6, 80, v6only=True)
    ports.bind(ANY, 80)
    assert refusal(lambda: ports.bind(ANY6, 80)) == errno.EADDRINUSE


def test_only_one_sharer_may_listen() -> None:
    """TCP-03: second listen on a shared port."""
    ports = table()
    one, two = (ports.bind(LO, 80, reuse_addr=True) for _ in range(2))
    one.listen()
    assert refusal(two.listen) == errno.EADDRINUSE
    one.listen()  # again is fine
    one.stop_listening()
    two.listen()


def test_turning_reuse_off_after_bind_takes_effect() -> None:
    """TCP-03, as measured on 6.18."""
    ports = table()
    one = ports.bind(LO, 80, reuse_addr=True)
    one.reuse_addr = False
    assert refusal(lambda: ports.bind(LO, 80, reuse_addr=True)) == errno.EADDRINUSE


def test_another_user_does_not_share_a_port() -> None:
    """TCP-04: SO_REUSEPORT needs the same uid."""
    ports = table()
    ports.bind(LO, 80, reuse_port=True, owner=1)
    assert refusal(lambda: ports.bind(LO, 80, reuse_port=True, owner=2)) == errno.EADDRINUSE


def test_references_keep_the_port_until_the_last_is_gone() -> None:
    """IF-06: connections outlive their listener; releasing too often is harmless."""
    ports = table()
    listener = ports.bind(LO, 80)
    child = listener.retain()
    listener.release()
    assert refusal(lambda: ports.bind(LO, 80)) == errno.EADDRINUSE
    child.release()
    child.release()
    assert child.released
    again = ports.bind(LO, 80)
    child.release()
    assert ports.claims(80) == (again,)


def test_a_server_may_restart_over_its_old_connections() -> None:
    """SO_REUSEADDR's purpose: what is left of the old server no longer listens."""
    ports = table()
    old = ports.bind(LO, 80, reuse_addr=True)
    old.listen()
    old.retain()
    old.stop_listening()
    old.release()
    ports.bind(LO, 80, reuse_addr=True).listen()


def test_ephemeral_ports_are_in_range_distinct_and_scattered() -> None:
    """TCP-02; RFC 6056."""
    ports = table()
    got = [ports.bind(ANY, 0).port for _ in range(2000)]
    assert len(set(got)) == 2000
    assert all(EPHEMERAL_FIRST <= port <= EPHEMERAL_LAST for port in got)
    assert Counter(b - a for a, b in itertools.pairwise(got))[1] < 200


def test_the_last_ephemeral_port_is_found_and_then_there_is_none() -> None:
    ports = table()
    ports.ephemeral_first, ports.ephemeral_last = 40000, 40015
    taken = [ports.bind(ANY, 0) for _ in range(16)]
    assert sorted(claim.port for claim in taken) == list(range(40000, 40016))
    assert refusal(lambda: ports.bind(ANY, 0)) == errno.EADDRINUSE
    taken[3].release()
    assert ports.bind(ANY, 0).port == taken[3].port


def test_ephemeral_ports_fall_back_to_what_does_not_overlap() -> None:
    ports = table()
    ports.ephemeral_first = ports.ephemeral_last = 40000
    ports.bind(LO, 0)
    assert ports.bind(OTHER, 0).port == 40000


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ({"addr": bytes((192, 0, 2, 1)), "port": 80}, errno.EADDRNOTAVAIL),
        ({"addr": LO, "port": 80, "privileged": False}, errno.EACCES),
        ({"addr": LO, "port": 1023, "privileged": False}, errno.EACCES),
        ({"addr": LO, "port": 1024, "privileged": False}, 0),
        ({"addr": ANY, "port": 0, "privileged": False}, 0),
        ({"addr": bytes((192, 0, 2, 1)), "port": 80, "freebind": True}, 0),
    ],
)
def test_who_may_bind_what(how: dict[str, object], number: int) -> None:
    """TCP-01."""
    ports = PortTable(random.Random(5), is_local=lambda address: address == LO)
    assert refusal(lambda: ports.bind(**how)) == number  # type: ignore[arg-type]  # a table of keywords
    assert len(list(ports)) == (0 if number else 1)


def test_a_claim_that_failed_leaves_nothing() -> None:
    ports = table()
    claim = ports.bind(LO, 80)
    for _ in range(3):
        assert refusal(lambda: ports.bind(LO, 80)) == errno.EADDRINUSE
    assert list(ports) == [claim]
    assert isinstance(claim, BoundPort)
