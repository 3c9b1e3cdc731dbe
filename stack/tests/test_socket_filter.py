"""SO_ATTACH_FILTER, SO_DETACH_FILTER and SO_LOCK_FILTER (section 2.1), on the kernel's sockets and on ours."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket as kernel
import struct
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stack.bpf import program as op
from stack.bpf.program import INSTRUCTION, assemble
from stack.socket.filter import SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_LOCK_FILTER
from stack.tests.kernel_twin import code
from stack.tests.packet_world import OurWorld, World, worlds
from stack.tests.test_bpf_twin import INSTRUCTIONS, Code

SOL: Final = kernel.SOL_SOCKET
LO4: Final = "127.0.0.1"
KEEP: Final[Code] = (op.RET | op.K, 0, 0, 0xFFFF)
DROP: Final[Code] = (op.RET | op.K, 0, 0, 0)
RETURN_A: Final[Code] = (op.RET | op.A, 0, 0, 0)


@pytest.fixture(params=["kernel", "ours"], scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from worlds(request, ipv6=False)


@pytest.fixture
def world(node: World) -> Iterator[World]:
    yield node
    node.tidy()


def keep(count: int) -> bytes:
    return assemble((op.RET | op.K, 0, 0, count))


def attach(sock: Any, raw: bytes) -> None:
    """As C programs do: a struct sock_fprog with the address of the instructions."""
    memory = ctypes.create_string_buffer(raw, max(len(raw), 1))
    sock.setsockopt(SOL, SO_ATTACH_FILTER, struct.pack("@HP", len(raw) // INSTRUCTION.size, ctypes.addressof(memory)))


def made(world: World, kind: str) -> Any:
    """A socket of each sort that goes by its filter."""
    if kind == "packet":
        return world.packet(kernel.SOCK_RAW, 0x0800, "lo")
    if kind == "raw":
        return world.socket(kernel.AF_INET, kernel.SOCK_RAW, 17)
    if kind == "raw6":
        return world.socket(kernel.AF_INET6, kernel.SOCK_RAW, 17)
    return world.socket(kernel.AF_INET, kernel.SOCK_STREAM if kind == "tcp" else kernel.SOCK_DGRAM)


KINDS: Final = ["tcp", "udp", "raw", "raw6", "packet"]


# -- the options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_opt_attach_and_detach(world: World, kind: str) -> None:
    """SO_ATTACH_FILTER at will; SO_DETACH_FILTER once, then ENOENT; the program reads back, cut as Linux cuts it."""
    sock = made(world, kind)
    assert sock.getsockopt(SOL, SO_ATTACH_FILTER, 100) == b""
    assert code(sock.setsockopt, SOL, SO_DETACH_FILTER, 0) == errno.ENOENT
    raw = keep(7) * 3
    attach(sock, raw)
    assert sock.getsockopt(SOL, SO_ATTACH_FILTER, 100) == raw[:3]
    attach(sock, keep(9))
    assert sock.getsockopt(SOL, SO_ATTACH_FILTER, 100) == keep(9)[:1]
    sock.setsockopt(SOL, SO_DETACH_FILTER, 0)
    assert code(sock.setsockopt, SOL, SO_DETACH_FILTER, 0) == errno.ENOENT
    assert code(sock.getsockopt, SOL, SO_DETACH_FILTER) == errno.ENOPROTOOPT
    assert sock.getsockopt(SOL, SO_ATTACH_FILTER, 100) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_opt_lock_filter(world: World, kind: str) -> None:
    """SO_LOCK_FILTER: what is locked can be neither changed nor detached nor unlocked: EPERM."""
    sock = made(world, kind)
    assert sock.getsockopt(SOL, SO_LOCK_FILTER) == 0
    sock.setsockopt(SOL, SO_LOCK_FILTER, 0)
    attach(sock, keep(7))
    sock.setsockopt(SOL, SO_LOCK_FILTER, 2)
    assert sock.getsockopt(SOL, SO_LOCK_FILTER) == 1
    with pytest.raises(PermissionError):
        attach(sock, keep(9))
    assert code(sock.setsockopt, SOL, SO_DETACH_FILTER, 0) == errno.EPERM
    assert code(sock.setsockopt, SOL, SO_LOCK_FILTER, 0) == errno.EPERM
    sock.setsockopt(SOL, SO_LOCK_FILTER, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, errno.EINVAL),
        (b"", errno.EINVAL),
        (b"x", errno.EINVAL),
        (bytes(15), errno.EINVAL),
        (bytes(17), errno.EINVAL),
        (bytes(16), errno.EINVAL),  # no instructions
        (struct.pack("@HP", 4097, 4096), errno.EINVAL),
        (struct.pack("@HP", 1, 0), errno.EINVAL),
        (struct.pack("@HP", 1, 8), errno.EFAULT),
        (struct.pack("@HP", 4096, 0xFFFF_FFFF_FFFF_F000), errno.EFAULT),
    ],
    ids=repr,
)
def test_opt_attach_what_is_no_program(world: World, value: int | bytes, expected: int) -> None:
    """SO_ATTACH_FILTER: a wrong length or an empty program is EINVAL, an address that cannot be read EFAULT."""
    assert code(made(world, "udp").setsockopt, SOL, SO_ATTACH_FILTER, value) == expected


# -- what a filter sees and does --------------------------------------------------------------------------------------


def exchange(world: World, raw: bytes, data: bytes) -> bytes | None:
    """What of a datagram comes through a UDP socket's filter, None: nothing."""
    with (
        world.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as receiver,
        world.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sender,
    ):
        receiver.bind((LO4, 0))
        sender.bind((LO4, 0))
        attach(receiver, raw)
        sender.sendto(data, receiver.getsockname())
        receiver.setsockopt(SOL, SO_DETACH_FILTER, 0)
        sender.sendto(b"the end", receiver.getsockname())
        first: bytes = receiver.recv(100)
        if first == b"the end":
            return None
        assert receiver.recv(100) == b"the end"
        return first


def test_filter_on_udp_counts_from_the_udp_header(world: World) -> None:
    """The accepted length counts from the UDP header; less than it leaves an empty datagram; 0 leaves none."""
    for count, kept in ((8 + 3, b"dat"), (0xFFFFFFFF, b"data"), (8, b""), (1, b""), (0, None)):
        assert exchange(world, keep(count), b"data") == kept
    begins_with_d = assemble((op.LD | op.B | op.ABS, 0, 0, 8), (op.JMP | op.JEQ | op.K, 0, 1, ord("d")), KEEP, DROP)
    assert exchange(world, begins_with_d, b"data") == b"data"
    assert exchange(world, begins_with_d, b"other") is None


FACTS: Final = {
    "protocol": (op.AD_OFF + op.AD_PROTOCOL, 0x0800),
    "kind": (op.AD_OFF + op.AD_PKTTYPE, 0),
    "interface": (op.AD_OFF + op.AD_IFINDEX, 1),
    "hardware": (op.AD_OFF + op.AD_HATYPE, 772),
    "tag": (op.AD_OFF + op.AD_VLAN_TAG_PRESENT, 0),
    "mark": (op.AD_OFF + op.AD_MARK, 0),
    "IP version": (op.NET_OFF, 0x45),
    "IP protocol": (op.NET_OFF + 9, 17),
    "IP destination": (op.NET_OFF + 16, 127),
    "ethertype": (op.LL_OFF + 12, 8),
    "behind the end": (op.NET_OFF + 32, None),
    "UDP length": (5, 12),
    "payload's offset": (op.AD_OFF + op.AD_PAY_OFFSET, 8),
}


@pytest.mark.parametrize("fact", FACTS)
def test_filter_facts(world: World, fact: str) -> None:
    """Special loads: facts about the packet, and bytes of the network and the link header before it."""
    offset, expected = FACTS[fact]
    raw = assemble((op.LD | op.B | op.ABS, 0, 0, offset), (op.ALU | op.ADD | op.K, 0, 0, 9), RETURN_A)
    if expected is None:
        assert exchange(world, raw, b"data") is None
        return
    test = assemble((op.LD | op.B | op.ABS, 0, 0, offset), (op.JMP | op.JEQ | op.K, 0, 1, expected), KEEP, DROP)
    assert exchange(world, test, b"data") == b"data"


def test_filter_on_raw_and_packet_sockets(world: World) -> None:
    """Raw IPv4 counts from the IP header, a packet socket from the link header, or behind it (SOCK_DGRAM)."""
    raw_socket = made(world, "raw")
    whole, cooked = made(world, "packet"), world.packet(kernel.SOCK_DGRAM, 0x0800, "lo")
    for sock, count in ((raw_socket, 21), (whole, 15), (cooked, 1)):
        attach(sock, keep(count))
    with world.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sender:
        sender.sendto(b"data", (LO4, 9))
    assert [len(sock.recv(100)) for sock in (raw_socket, whole, cooked)] == [21, 15, 1]


def test_filter_refuses_unseen(world: World) -> None:
    """What a packet socket's filter refuses is neither delivered nor counted; the true length is told beside."""
    sock = made(world, "packet")
    sock.setsockopt(263, 8, 1)
    udp_only = assemble((op.LD | op.B | op.ABS, 0, 0, 23), (op.JMP | op.JEQ | op.K, 0, 1, 17), (op.RET, 0, 0, 20), DROP)
    attach(sock, udp_only)
    with world.socket(kernel.AF_INET, kernel.SOCK_DGRAM) as sender:
        sender.sendto(b"data", (LO4, 9))
    data, ancillary, flags, _ = sock.recvmsg(100, 100)
    assert (len(data), flags) == (20, 0)
    assert struct.unpack_from("=III", ancillary[0][2])[1:] == (46, 20)
    assert sock.getsockopt(263, 6, 8) == struct.pack("=II", 1, 0)  # the ICMP error that came back was refused
    assert world.nothing(sock)


def test_filter_on_raw_ipv6_counts_from_the_payload(world: World) -> None:
    """Raw IPv6 sockets have no header, and their filters count from the payload."""
    sock = world.socket(kernel.AF_INET6, kernel.SOCK_RAW, 253)
    attach(
        sock,
        assemble((op.LD | op.B | op.ABS, 0, 0, 0), (op.JMP | op.JEQ | op.K, 0, 1, ord("d")), (op.RET, 0, 0, 2), DROP),
    )
    sock.sendto(b"other", ("::1", 0))
    sock.sendto(b"data", ("::1", 0))
    assert sock.recv(100) == b"da"


@pytest.fixture(scope="module")
def both() -> Iterator[list[World]]:
    from stack.testing.kernel_host import NoKernelHostError
    from stack.tests.packet_world import KernelWorld

    try:
        theirs = KernelWorld(ipv6=False)
    except NoKernelHostError as error:
        pytest.skip(str(error))
    ours = OurWorld(ipv6=False)
    yield [theirs, ours]
    theirs.close()
    ours.close()


@given(st.lists(INSTRUCTIONS, max_size=10), st.binary(min_size=1, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_filters_on_packet_sockets_say_what_the_kernel_says(
    both: list[World], instructions: list[Code], data: bytes
) -> None:
    """Any program over any frame: refused when attached, or the same bytes kept."""
    raw = assemble(*instructions, RETURN_A)
    frame = bytes(12) + b"\x88\xb5" + data
    heard = []
    for world in both:
        sock = world.packet(kernel.SOCK_RAW, 0x88B5, "lo")
        try:
            attach(sock, raw)
        except OSError as error:
            heard.append(error.errno)
        else:
            sock.send(frame)
            sock.setsockopt(SOL, SO_DETACH_FILTER, 0)
            sock.send(bytes(12) + b"\x88\xb5the end")
            first = sock.recv(100)
            heard.append(first)
        world.tidy()
    assert heard[0] == heard[1]


# -- TCP --------------------------------------------------------------------------------------------------------------

#: Segments without data pass, of others those whose data begin with "k"; the data offset is computed as programs do.
BEGINS_WITH_K: Final = assemble(
    (op.LD | op.B | op.ABS, 0, 0, 12),
    (op.ALU | op.RSH | op.K, 0, 0, 2),
    (op.ALU | op.AND | op.K, 0, 0, 0x3C),
    (op.MISC | op.TAX, 0, 0, 0),
    (op.LD | op.W | op.LEN, 0, 0, 0),
    (op.JMP | op.JEQ | op.X, 2, 0, 0),
    (op.LD | op.B | op.IND, 0, 0, 0),
    (op.JMP | op.JEQ | op.K, 0, 1, ord("k")),
    KEEP,
    DROP,
)


def connected(world: World) -> tuple[Any, Any, Any]:
    listener = world.socket(kernel.AF_INET, kernel.SOCK_STREAM)
    listener.bind((LO4, 0))
    listener.listen(5)
    client = world.socket(kernel.AF_INET, kernel.SOCK_STREAM)
    client.connect(listener.getsockname())
    served, _ = listener.accept()
    served.settimeout(10)
    return listener, client, served


def test_filter_on_a_tcp_connection(world: World) -> None:
    """What is refused was never received: the sender sends it again, until the filter is gone."""
    _, client, served = connected(world)
    attach(served, BEGINS_WITH_K)
    client.send(b"kept")
    assert served.recv(100) == b"kept"
    client.send(b"refused")
    assert world.nothing(served)
    served.setsockopt(SOL, SO_DETACH_FILTER, 0)
    assert served.recv(100) == b"refused"  # once more
    served.close()


def test_filter_cuts_tcp_segments(world: World) -> None:
    """A filter that keeps a part cuts the segment; what is cut off is sent again."""
    _, client, served = connected(world)
    attach(served, keep(32 + 3))  # a header with time stamps, and three bytes
    client.send(b"abcdef")
    assert served.recv(100) == b"abc"
    served.setsockopt(SOL, SO_DETACH_FILTER, 0)
    assert served.recv(100) == b"def"
    served.close()


def test_filter_never_cuts_tcp_headers(world: World) -> None:
    """Of a segment at least the header is kept, so that acknowledgements count."""
    _, client, served = connected(world)
    attach(served, keep(1))
    served.send(b"answered")
    assert client.recv(100) == b"answered"
    waiting = -1
    for _ in range(1000):
        asked = fcntl.ioctl(served, 0x5411, bytes(4)) if world.is_kernel else served.ioctl(0x5411, bytes(4))
        waiting = struct.unpack("@i", asked)[0]
        if not waiting:
            break
        assert world.nothing(client)
    assert waiting == 0
    served.close()


def test_filter_of_a_listener(world: World) -> None:
    """A listener's filter decides about handshakes, and accepted connections inherit it."""
    listener, client, served = connected(world)
    attach(listener, BEGINS_WITH_K)
    other = world.socket(kernel.AF_INET, kernel.SOCK_STREAM)
    other.connect(listener.getsockname())
    heir, _ = listener.accept()
    heir.settimeout(10)
    assert heir.getsockopt(SOL, SO_ATTACH_FILTER, 100) == BEGINS_WITH_K[: len(BEGINS_WITH_K) // 8]
    other.send(b"refused")
    assert world.nothing(heir)
    heir.setsockopt(SOL, SO_DETACH_FILTER, 0)
    assert heir.recv(100) == b"refused"
    attach(listener, assemble(DROP))
    late = world.socket(kernel.AF_INET, kernel.SOCK_STREAM)
    late.setblocking(False)
    assert late.connect_ex(listener.getsockname()) == errno.EINPROGRESS
    assert world.bits(late) == 0
    for sock in (heir, served, client):
        sock.close()
