"""What a classic BPF program may be (McCanne and Jacobson, "The BSD Packet Filter", 1993; Linux net/core/filter.c).

A program is a row of struct sock_filter: 16-bit code, two 8-bit jump distances, 32-bit constant, in the byte order of
the host. Jumps go forward only and the last instruction returns, so every program ends after as many steps as it has
instructions. `check` refuses what bpf_check_classic of Linux refuses, with the same EINVAL: codes that do not exist,
jumps out of the program, division by a constant 0, shifts by 32 and more, scratch memory beyond the sixteen words or
read before it was written on some way there, and special loads that are not known.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from stack.errors import NetError

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
MEMORY_WORDS: Final = 16  # BPF_MEMWORDS

#: struct sock_filter
INSTRUCTION: Final = struct.Struct("=HBBI")

# Classes, <linux/bpf_common.h>.
LD: Final = 0x00
LDX: Final = 0x01
ST: Final = 0x02
STX: Final = 0x03
ALU: Final = 0x04
JMP: Final = 0x05
RET: Final = 0x06
MISC: Final = 0x07
# Sizes and modes of loads.
W: Final = 0x00
H: Final = 0x08
B: Final = 0x10
IMM: Final = 0x00
ABS: Final = 0x20
IND: Final = 0x40
MEM: Final = 0x60
LEN: Final = 0x80
MSH: Final = 0xA0
# Operations.
ADD: Final = 0x00
SUB: Final = 0x10
MUL: Final = 0x20
DIV: Final = 0x30
OR: Final = 0x40
AND: Final = 0x50
LSH: Final = 0x60
RSH: Final = 0x70
NEG: Final = 0x80
MOD: Final = 0x90
XOR: Final = 0xA0
JA: Final = 0x00
JEQ: Final = 0x10
JGT: Final = 0x20
JGE: Final = 0x30
JSET: Final = 0x40
# Second operands; of RET the accumulator.
K: Final = 0x00
X: Final = 0x08
A: Final = 0x10
TAX: Final = 0x00
TXA: Final = 0x80

# Where special loads begin (SKF_*_OFF), as the unsigned numbers they are in the program.
AD_OFF: Final = 0xFFFFF000  # facts about the packet
NET_OFF: Final = 0xFFF00000  # from the network header on
LL_OFF: Final = 0xFFE00000  # from the link header on

# Facts behind AD_OFF (SKF_AD_*).
AD_PROTOCOL: Final = 0
AD_PKTTYPE: Final = 4
AD_IFINDEX: Final = 8
AD_NLATTR: Final = 12
AD_NLATTR_NEST: Final = 16
AD_MARK: Final = 20
AD_QUEUE: Final = 24
AD_HATYPE: Final = 28
AD_RXHASH: Final = 32
AD_CPU: Final = 36
AD_ALU_XOR_X: Final = 40
AD_VLAN_TAG: Final = 44
AD_VLAN_TAG_PRESENT: Final = 48
AD_PAY_OFFSET: Final = 52
AD_RANDOM: Final = 56
AD_VLAN_TPID: Final = 60
FACTS: Final = frozenset(range(AD_PROTOCOL, AD_VLAN_TPID + 1, 4))

_CODES: Final = frozenset(
    {
        *(ALU | op | operand for op in (ADD, SUB, MUL, DIV, MOD, AND, OR, XOR, LSH, RSH) for operand in (K, X)),
        ALU | NEG,
        *(LD | size | mode for size in (W, H, B) for mode in (ABS, IND)),
        *(LD | W | LEN, LD | IMM, LD | MEM, LDX | W | LEN, LDX | B | MSH, LDX | IMM, LDX | MEM, ST, STX),
        *(MISC | TAX, MISC | TXA, RET | K, RET | A, JMP | JA),
        *(JMP | test | operand for test in (JEQ, JGE, JGT, JSET) for operand in (K, X)),
    }
)
_BY_CONSTANT: Final = frozenset({ALU | DIV | K, ALU | MOD | K})
_SHIFTS: Final = frozenset({ALU | LSH | K, ALU | RSH | K})
_MEMORY_READS: Final = frozenset({LD | MEM, LDX | MEM})
_MEMORY: Final = frozenset({LD | MEM, LDX | MEM, ST, STX})
_ABSOLUTE: Final = frozenset({LD | W | ABS, LD | H | ABS, LD | B | ABS})
_ALL_WORDS: Final = (1 << MEMORY_WORDS) - 1


class Instruction(NamedTuple):
    """`jt` and `jf` are instructions to skip, `k` is unsigned."""

    code: int
    jt: int
    jf: int
    k: int


class Program:
    """A checked program. `raw` is what it was made from, an array of struct sock_filter."""

    __slots__ = ("instructions", "raw")

    def __init__(self, raw: bytes, instructions: tuple[Instruction, ...]) -> None:
        self.raw = raw
        self.instructions = instructions

    def __len__(self) -> int:
        """Instructions."""
        return len(self.instructions)


def assemble(*instructions: tuple[int, int, int, int]) -> bytes:
    """An array of struct sock_filter from (code, jt, jf, k)."""
    return b"".join(INSTRUCTION.pack(*each) for each in instructions)


def check(raw: bytes) -> Program:
    """The program in an array of struct sock_filter. Raises NetError(EINVAL)."""
    if not raw or len(raw) % INSTRUCTION.size or len(raw) > MAX_INSTRUCTIONS * INSTRUCTION.size:
        raise NetError(errno.EINVAL, f"a filter has 1..{MAX_INSTRUCTIONS} instructions of {INSTRUCTION.size} bytes")
    instructions = tuple(map(Instruction._make, INSTRUCTION.iter_unpack(raw)))
    for place, each in enumerate(instructions):
        if not _acceptable(each, len(instructions) - place - 1):
            raise NetError(errno.EINVAL, f"filter instruction {place} is none Linux accepts: {each}")
    if instructions[-1].code not in (RET | K, RET | A):
        raise NetError(errno.EINVAL, "a filter must end with a return")
    _check_memory(instructions)
    return Program(raw, instructions)


def _acceptable(each: Instruction, following: int) -> bool:
    """`following`: instructions behind this one."""
    code, jt, jf, k = each
    if code not in _CODES:
        return False
    if code in _BY_CONSTANT:
        return k != 0
    if code in _SHIFTS:
        return k < 32
    if code in _MEMORY:
        return k < MEMORY_WORDS
    if code == JMP | JA:
        return k < following
    if code & 7 == JMP:
        return jt < following and jf < following
    if code in _ABSOLUTE:
        return k < AD_OFF or k - AD_OFF in FACTS
    return True


def _check_memory(instructions: tuple[Instruction, ...]) -> None:
    """Scratch memory is read only where every way there wrote it (check_load_and_stores of Linux)."""
    arriving = [_ALL_WORDS] * len(instructions)
    written = 0
    for place, (code, jt, jf, k) in enumerate(instructions):
        written &= arriving[place]
        if code in (ST, STX):
            written |= 1 << k
        elif code in _MEMORY_READS:
            if not written >> k & 1:
                raise NetError(errno.EINVAL, f"filter instruction {place} reads a word nobody wrote")
        elif code & 7 == JMP:
            for skip in (k,) if code == JMP | JA else (jt, jf):
                arriving[place + 1 + skip] &= written
            written = _ALL_WORDS
