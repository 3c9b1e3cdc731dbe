"""Running a classic BPF program over one packet.

Theory of operation
-------------------
The machine has an accumulator, an index register, sixteen words of scratch memory, all unsigned and 32 bits wide, and
answers how many bytes of the packet are to be kept; 0 refuses it. A load beyond the packet and a division by an index
register of 0 end the program with 0. Loads at offsets with the highest bit set are special: facts about the packet
(protocol, kind, interface...), or bytes counted from the network or the link header, wherever the packet's own bytes
begin. `FilterPacket` is what all that is asked of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stack.bpf import program as op
from stack.bpf.program import Program
from stack.wire.error import WireError
from stack.wire.ipv4 import OFFSET_MASK
from stack.wire.ipv6 import FRAGMENT_HEADER, walk_extensions

_U32: Final = 0xFFFFFFFF
_SIGN: Final = 0x80000000
_SIZES: Final = {op.W: 4, op.H: 2, op.B: 1}
_NLA_HEADER: Final = 4
_NLA_TYPE: Final = 0x3FFF  # NLA_TYPE_MASK
#: Bytes of the transport headers that the payload begins behind, by protocol: UDP, ICMP, IGMP, ICMPv6, DCCP, SCTP.
_HEADERS: Final = {17: 8, 1: 8, 2: 8, 58: 8, 136: 8, 132: 12}
_TCP: Final = 6


class Refused(Exception):  # noqa: N818 - a verdict, not an error
    """The program ended with 0 because of a load that cannot be."""


class FilterPacket:
    """One packet as a filter sees it. The loads are methods so that what is rarely asked for costs nothing."""

    __slots__ = ("data", "frame", "hatype", "ifindex", "kind", "network", "protocol", "random", "vlan", "vlan_tpid")

    def __init__(
        self,
        data: memoryview | bytes,
        *,
        frame: memoryview | bytes = b"",
        network: int = -1,
        protocol: int = 0,
        kind: int = 0,
        ifindex: int = 0,
        hatype: int = 0,
        vlan: int = -1,
        vlan_tpid: int = 0,
        random: Callable[[], int] | None = None,
    ) -> None:
        """`data` is where offset 0 is. `frame` is the packet with all its headers, whose link header is at 0 unless
        `network`, where the network header is, is 0. `ifindex` 0: no interface. `vlan` -1: no tag was taken off.
        """
        self.data = data
        self.frame = frame
        self.network = network
        self.protocol = protocol  #: ethertype
        self.kind = kind  #: PACKET_*
        self.ifindex = ifindex
        self.hatype = hatype  #: ARPHRD_*
        self.vlan = vlan  #: TCI
        self.vlan_tpid = vlan_tpid
        self.random = random

    def load(self, offset: int, size: int) -> int:
        """`offset` is unsigned. Raises Refused."""
        data = self.data
        if offset & _SIGN:
            data = self.frame
            if offset >= op.NET_OFF:
                if self.network < 0:
                    raise Refused
                offset += self.network - op.NET_OFF
            elif offset >= op.LL_OFF and self.network > 0:
                offset -= op.LL_OFF
            else:
                raise Refused
        end = offset + size
        if end > len(data):
            raise Refused
        return int.from_bytes(data[offset:end], "big")

    def fact(self, which: int, accumulator: int, index: int) -> int:
        """What is loaded from AD_OFF + `which`. Raises Refused."""
        if which == op.AD_PROTOCOL:
            return self.protocol
        if which == op.AD_PKTTYPE:
            return self.kind
        if which in (op.AD_IFINDEX, op.AD_HATYPE):
            if not self.ifindex:
                raise Refused
            return self.ifindex if which == op.AD_IFINDEX else self.hatype
        if which == op.AD_ALU_XOR_X:
            return accumulator ^ index
        if which == op.AD_VLAN_TAG:
            return max(self.vlan, 0)
        if which == op.AD_VLAN_TAG_PRESENT:
            return int(self.vlan >= 0)
        if which == op.AD_VLAN_TPID:
            return self.vlan_tpid
        if which == op.AD_PAY_OFFSET:
            return self._payload_offset()
        if which == op.AD_RANDOM:
            return 0 if self.random is None else self.random() & _U32
        if which == op.AD_NLATTR:
            return self._attribute(accumulator, len(self.data) - accumulator, index)
        if which == op.AD_NLATTR_NEST:
            return self._nested(accumulator, index)
        return 0  # mark, queue, hash and processor: there is one of each here, and its number is 0

    def _payload_offset(self) -> int:
        """Where the payload of the transport begins; 0 where that cannot be said."""
        packet = memoryview(self.frame)[self.network :] if self.network >= 0 else memoryview(b"")
        try:
            if self.protocol == 0x0800 and len(packet) >= 20 and packet[0] & 15 >= 5:
                start = (packet[0] & 15) * 4
                protocol = packet[9]
                later = bool((packet[6] << 8 | packet[7]) & OFFSET_MASK)
            elif self.protocol == 0x86DD and len(packet) >= 40:
                chain = walk_extensions(packet[6], packet[40:])
                start, protocol, later = 40 + chain.offset, chain.next_header, False
                if protocol == FRAGMENT_HEADER and len(packet) >= start + 8:
                    protocol = packet[start]
                    later = bool((packet[start + 2] << 8 | packet[start + 3]) & 0xFFF8)
                    start += 8
            else:
                return 0
        except WireError:
            return 0
        if not later:
            if protocol == _TCP and len(packet) > start + 12:
                start += max(packet[start + 12] >> 4 << 2, 20)
            else:
                start += _HEADERS.get(protocol, 0)
        return start + self.network - (len(self.frame) - len(self.data)) & _U32

    def _attribute(self, start: int, room: int, wanted: int) -> int:
        """Offset of the netlink attribute of type `wanted` among those in the `room` bytes from `start`; 0: none."""
        data = self.data
        if start > len(data) - _NLA_HEADER:
            return 0
        while room >= _NLA_HEADER:
            length = int.from_bytes(data[start : start + 2], "little")
            if not _NLA_HEADER <= length <= room:
                break
            if int.from_bytes(data[start + 2 : start + 4], "little") & _NLA_TYPE == wanted:
                return start
            aligned = length + 3 & ~3
            start += aligned
            room -= aligned
        return 0

    def _nested(self, start: int, wanted: int) -> int:
        if start > len(self.data) - _NLA_HEADER:
            return 0
        length = int.from_bytes(self.data[start : start + 2], "little")
        if length > len(self.data) - start:
            return 0
        return self._attribute(start + _NLA_HEADER, length - _NLA_HEADER, wanted)


def run(program: Program, packet: FilterPacket) -> int:
    """How many bytes of `packet` to keep, counted from where its data begin; 0: none, it is refused."""
    try:
        return _run(program.instructions, packet)
    except Refused:
        return 0


def _run(instructions: tuple[op.Instruction, ...], packet: FilterPacket) -> int:
    a = x = 0
    memory = [0] * op.MEMORY_WORDS
    place = 0
    while True:
        code, jt, jf, k = instructions[place]
        place += 1
        kind = code & 7
        if kind == op.JMP:
            if code == op.JMP | op.JA:
                place += k
            else:
                place += jt if _holds(code & 0xF0, a, x if code & op.X else k) else jf
        elif kind == op.LD:
            a = memory[k] if code == op.LD | op.MEM else _load(code, k, a, x, packet)
        elif kind == op.RET:
            return a if code & op.A else k
        elif kind == op.ALU:
            a = _alu(code & 0xF0, a, x if code & op.X else k)
        elif kind == op.LDX:
            x = memory[k] if code == op.LDX | op.MEM else _load_index(code, k, packet)
        elif kind == op.ST:
            memory[k] = a
        elif kind == op.STX:
            memory[k] = x
        elif code & 0xF8 == op.TXA:
            a = x
        else:
            x = a


def _holds(test: int, a: int, other: int) -> bool:
    if test == op.JEQ:
        return a == other
    if test == op.JGT:
        return a > other
    if test == op.JGE:
        return a >= other
    return a & other != 0


def _load(code: int, k: int, a: int, x: int, packet: FilterPacket) -> int:
    """What the accumulator gets, but for scratch memory. Raises Refused."""
    mode = code & 0xE0
    if mode == op.ABS:
        return packet.fact(k - op.AD_OFF, a, x) if k >= op.AD_OFF else packet.load(k, _SIZES[code & 0x18])
    if mode == op.IND:
        return packet.load(x + k & _U32, _SIZES[code & 0x18])
    return len(packet.data) if mode == op.LEN else k


def _load_index(code: int, k: int, packet: FilterPacket) -> int:
    """What the index register gets, but for scratch memory. Raises Refused."""
    mode = code & 0xE0
    if mode == op.MSH:  # the length of an IPv4 header
        return (packet.load(k, 1) & 15) * 4
    return len(packet.data) if mode == op.LEN else k


def _alu(operation: int, a: int, other: int) -> int:
    """32-bit arithmetic. Raises Refused for a division by 0."""
    if operation == op.ADD:
        return a + other & _U32
    if operation == op.SUB:
        return a - other & _U32
    if operation == op.MUL:
        return a * other & _U32
    if operation == op.AND:
        return a & other
    if operation == op.OR:
        return a | other
    if operation == op.XOR:
        return a ^ other
    if operation == op.LSH:
        return a << (other & 31) & _U32
    if operation == op.RSH:
        return a >> (other & 31)
    if operation == op.NEG:
        return -a & _U32
    if not other:
        raise Refused
    return a // other if operation == op.DIV else a % other
