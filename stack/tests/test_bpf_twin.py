"""Classic BPF programs: accepted, refused and answered as by the kernel, which needs no privilege for it.

The kernel's half is the receiving end of a Unix socket pair with the program attached: whether attaching succeeds is
its verdict on the program, how much of a datagram arrives is the program's verdict on that datagram.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stack.bpf import FilterPacket, check, run
from stack.bpf import program as op
from stack.bpf.program import INSTRUCTION, assemble
from stack.errors import NetError
from stack.socket.filter import SO_ATTACH_FILTER

Code = tuple[int, int, int, int]

KEEP: Code = (op.RET | op.K, 0, 0, 0xFFFF)
DROP: Code = (op.RET | op.K, 0, 0, 0)
RETURN_A: Code = (op.RET | op.A, 0, 0, 0)


def refused(error: OSError | NetError) -> bool:
    """False, once it is sure that it was for what the program is."""
    assert error.errno == errno.EINVAL
    return False


class KernelFilter:
    """A datagram socket pair of the kernel whose receiving end has a filter."""

    def __init__(self) -> None:
        self.sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.setblocking(False)

    def attach(self, raw: bytes) -> bool:
        memory = ctypes.create_string_buffer(raw, max(len(raw), 1))
        program = struct.pack("@HP", len(raw) // INSTRUCTION.size, ctypes.addressof(memory))
        try:
            self.receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        except OSError as error:
            return refused(error)
        return True

    def verdict(self, data: bytes) -> int:
        """How many bytes of `data` come through, 0: it is refused."""
        try:
            self.sender.send(data)
            return len(self.receiver.recv(65536))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelFilter]:
    pair = KernelFilter()
    yield pair
    pair.close()


def accepted(raw: bytes) -> bool:
    try:
        check(raw)
    except NetError as error:
        return refused(error)
    return True


def ours(raw: bytes, data: bytes) -> int:
    """What a Unix socket's filter says: there are no headers and there is no interface."""
    return min(run(check(raw), FilterPacket(data)), len(data))


# -- programs ---------------------------------------------------------------------------------------------------------

_FACTS_OF_NO_DEVICE = [op.AD_OFF + fact for fact in sorted(op.FACTS - {op.AD_CPU, op.AD_RANDOM})]
OFFSETS = st.one_of(
    st.integers(0, 70),
    st.sampled_from(_FACTS_OF_NO_DEVICE),
    st.sampled_from([0xFFFF, 0x7FFFFFFF, 0x80000000, op.LL_OFF]),
)
NUMBERS = st.one_of(st.integers(0, 70), st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 1, 31, 32, 0x80000000]))
_ALU = [
    op.ALU | each | operand
    for each in (op.ADD, op.SUB, op.MUL, op.DIV, op.MOD, op.AND, op.OR, op.XOR, op.LSH, op.RSH)
    for operand in (op.K, op.X)
]


def plain(codes: list[int], constants: st.SearchStrategy[int]) -> st.SearchStrategy[Code]:
    return st.tuples(st.sampled_from(codes), st.just(0), st.just(0), constants)


INSTRUCTIONS: st.SearchStrategy[Code] = st.one_of(
    plain([op.LD | size | op.ABS for size in (op.W, op.H, op.B)], OFFSETS),
    plain([op.LD | size | op.IND for size in (op.W, op.H, op.B)], st.one_of(st.integers(0, 40), NUMBERS)),
    plain([op.LD | op.IMM, op.LDX | op.IMM, op.LD | op.LEN, op.LDX | op.LEN], NUMBERS),
    plain([op.LDX | op.B | op.MSH], st.integers(0, 70)),
    plain([op.ST, op.STX, op.LD | op.MEM, op.LDX | op.MEM], st.integers(0, 3)),
    plain(_ALU, NUMBERS),
    plain([op.ALU | op.NEG, op.MISC | op.TAX, op.MISC | op.TXA], st.just(0)),
    st.tuples(
        st.sampled_from([op.JMP | t | o for t in (op.JEQ, op.JGT, op.JGE, op.JSET) for o in (op.K, op.X)]),
        st.integers(0, 4),
        st.integers(0, 4),
        NUMBERS,
    ),
    plain([op.JMP | op.JA], st.integers(0, 4)),
    plain([op.RET | op.K, op.RET | op.A], st.integers(0, 80)),
)
ANYTHING = st.tuples(
    st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFFF)), st.integers(0, 255), st.integers(0, 255), NUMBERS
)
DATA = st.one_of(st.binary(min_size=1, max_size=64), st.just(struct.pack("@HHIHHI", 8, 1, 7, 8, 2, 9)))


@given(st.lists(INSTRUCTIONS, max_size=14), DATA)
@example([(op.LDX | op.IMM, 0, 0, 0), (op.ALU | op.DIV | op.X, 0, 0, 0), KEEP], b"data")
@example([(op.LDX | op.IMM, 0, 0, 0), (op.ALU | op.MOD | op.X, 0, 0, 0), KEEP], b"data")
@example([(op.LD | op.IMM, 0, 0, 1), (op.LDX | op.IMM, 0, 0, 33), (op.ALU | op.LSH | op.X, 0, 0, 0), RETURN_A], b"data")
@settings(max_examples=400, deadline=None)
def test_programs_say_what_the_kernel_says(kernel: KernelFilter, code: list[Code], data: bytes) -> None:
    """Which programs are accepted, and how many bytes of a packet they keep."""
    raw = assemble(*code, RETURN_A)
    fits = kernel.attach(raw)
    assert accepted(raw) is fits
    if fits:
        assert ours(raw, data) == kernel.verdict(data)


@given(st.lists(st.one_of(INSTRUCTIONS, ANYTHING), min_size=1, max_size=8))
@settings(max_examples=400, deadline=None)
def test_malformed_programs_are_refused_as_by_the_kernel(kernel: KernelFilter, code: list[Code]) -> None:
    raw = assemble(*code)
    assert accepted(raw) is kernel.attach(raw)


@pytest.mark.parametrize("attribute", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 4, 8, 16, 17])
@pytest.mark.parametrize("fact", [op.AD_NLATTR, op.AD_NLATTR_NEST])
def test_netlink_attributes_are_found(kernel: KernelFilter, fact: int, start: int, attribute: int) -> None:
    data = struct.pack("@HHIHHHHHH", 8, 1, 7, 12, 2, 8, 3, 0, 0)
    raw = assemble(
        (op.LDX | op.IMM, 0, 0, attribute),
        (op.LD | op.IMM, 0, 0, start),
        (op.LD | op.W | op.ABS, 0, 0, op.AD_OFF + fact),
        (op.ALU | op.ADD | op.K, 0, 0, 1),
        RETURN_A,
    )
    assert kernel.attach(raw)
    assert ours(raw, data) == kernel.verdict(data)


def test_how_long_a_program_may_be(kernel: KernelFilter) -> None:
    """1..4096 instructions (BPF_MAXINSNS)."""
    for count, fits in ((1, True), (4096, True), (4097, False)):
        raw = assemble(KEEP) * count
        assert accepted(raw) is fits
        assert kernel.attach(raw) is fits
    assert not accepted(b"")
    assert not accepted(assemble(KEEP)[:-1])


def test_bytes_are_counted_from_any_header() -> None:
    """SKF_NET_OFF and SKF_LL_OFF reach what lies before the bytes that the filter begins with."""
    frame = bytes(range(14)) + b"\x45" + bytes(19) + b"PAYLOAD!"
    packet = FilterPacket(frame[34:], frame=frame, network=14, protocol=0x0800, ifindex=3, hatype=1)

    def load(offset: int, size: int = op.B) -> int:
        return run(check(assemble((op.LD | size | op.ABS, 0, 0, offset), RETURN_A)), packet)

    assert load(0) == ord("P")
    assert load(op.NET_OFF) == 0x45
    assert load(op.NET_OFF + 20, op.W) == int.from_bytes(b"PAYL", "big")
    assert load(op.LL_OFF + 13) == 13
    assert load(op.NET_OFF + 28) == 0  # behind the end
    assert load(op.AD_OFF + op.AD_IFINDEX) == 3
    assert load(op.AD_OFF + op.AD_PROTOCOL) == 0x0800
    bare = FilterPacket(frame[34:])
    keep_unless = assemble((op.LD | op.B | op.ABS, 0, 0, op.NET_OFF), KEEP)
    assert run(check(keep_unless), packet) == 0xFFFF
    assert run(check(keep_unless), bare) == 0
