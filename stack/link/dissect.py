"""Looks into recorded frames: `ring.filter((tcp.dstport == 80) & tcp.flags.syn)`.

Fields have the names they have in Wireshark. `tcp`, `udp`, `ip`... are protocols: by themselves they ask whether a
frame has them, their attributes are fields to be compared (``==``, ``!=``, ``<``, ``in_``) or asked for. Predicates
combine with ``&``, ``|`` and ``~``; write parentheses around comparisons, as everywhere in Python.

What is inside a frame is dpkt's business (docs/decisions/0003): a `Packet` gives its objects too, as ``packet.tcp``.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import dpkt

if TYPE_CHECKING:
    from stack.link.capture_ring import KeptFrame

T = TypeVar("T")
_FLAGS: Final = {"fin": 1, "syn": 2, "rst": 4, "push": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}
_DNS: Final = (53, 5353)
_DHCP: Final = ((67, 68), (68, 67))
#: struct af_vsockmon_hdr (include/uapi/linux/vsockmon.h): source and destination CID, ports, op, transport, its length.
VSOCK_HEADER: Final = struct.Struct("<QQIIHHH2x")


class Packet:
    """One recorded frame, dissected when first asked."""

    def __init__(self, frame: KeptFrame, link: str, *, vsock: bool = False, epoch_ns: int = 0) -> None:
        self.frame = frame
        self.link = link  #: name of the link it passed
        self.time = (frame.time + epoch_ns) / 1e9  #: seconds
        self.data = frame.data
        self.is_vsock = vsock

    @property
    def comment(self) -> str | None:
        """What the test said at this moment."""
        return self.frame.comment

    @property
    def inbound(self) -> bool:
        """From the guest, for a guest's link."""
        return self.frame.direction == 1

    @cached_property
    def eth(self) -> Any:
        """The `dpkt.ethernet.Ethernet` of it; None if it cannot be taken apart."""
        return None if self.is_vsock else _parsed(dpkt.ethernet.Ethernet, self.data)

    @cached_property
    def arp(self) -> Any:
        return _inside(self.eth, dpkt.arp.ARP)

    @cached_property
    def ip(self) -> Any:
        return _inside(self.eth, dpkt.ip.IP)

    @cached_property
    def ipv6(self) -> Any:
        return _inside(self.eth, dpkt.ip6.IP6)

    @cached_property
    def tcp(self) -> Any:
        return _inside(self.ip or self.ipv6, dpkt.tcp.TCP)

    @cached_property
    def udp(self) -> Any:
        return _inside(self.ip or self.ipv6, dpkt.udp.UDP)

    @cached_property
    def icmp(self) -> Any:
        return _inside(self.ip, dpkt.icmp.ICMP)

    @cached_property
    def icmpv6(self) -> Any:
        return _inside(self.ipv6, dpkt.icmp6.ICMP6)

    @cached_property
    def dns(self) -> Any:
        udp = self.udp
        known = udp is not None and (udp.sport in _DNS or udp.dport in _DNS)
        return _parsed(dpkt.dns.DNS, bytes(udp.data)) if known else None

    @cached_property
    def dhcp(self) -> Any:
        udp = self.udp
        known = udp is not None and (udp.sport, udp.dport) in _DHCP
        return _parsed(dpkt.dhcp.DHCP, bytes(udp.data)) if known else None

    @cached_property
    def vsock(self) -> dict[str, int] | None:
        """The fields of a vsock packet's header."""
        if not self.is_vsock or len(self.data) < VSOCK_HEADER.size + 44:
            return None
        src_cid, dst_cid, src_port, dst_port, *_ = VSOCK_HEADER.unpack_from(self.data)
        length, kind, op, flags, alloc, fwd = struct.unpack_from("<IHHIII", self.data, VSOCK_HEADER.size + 24)
        return {
            "src_cid": src_cid,
            "dst_cid": dst_cid,
            "src_port": src_port,
            "dst_port": dst_port,
            "len": length,
            "type": kind,
            "op": op,
            "flags": flags,
            "buf_alloc": alloc,
            "fwd_cnt": fwd,
        }

    @property
    def payload(self) -> bytes:
        """What TCP, UDP or vsock carries; empty if none of them does."""
        if self.is_vsock:
            return self.data[VSOCK_HEADER.size + 44 :]
        transport = self.tcp or self.udp
        return bytes(transport.data) if transport is not None else b""

    def __repr__(self) -> str:
        return f"<Packet {self.time:.6f} {self.link} {self.summary}>"

    @property
    def summary(self) -> str:
        """One line, for people."""
        if self.vsock is not None:
            each = self.vsock
            ends = f"{each['src_cid']}:{each['src_port']} > {each['dst_cid']}:{each['dst_port']}"
            return f"vsock {ends} {_VSOCK_OPS.get(each['op'], each['op'])} len {each['len']}"
        network = self.ip or self.ipv6
        if network is None:
            return "ARP" if self.arp is not None else f"Ethernet, {len(self.data)} bytes"
        src, dst = _address(network.src), _address(network.dst)
        if self.tcp is not None:
            names = [name.upper() for name, bit in _FLAGS.items() if self.tcp.flags & bit]
            ends = f"{src}:{self.tcp.sport} > {dst}:{self.tcp.dport}"
            where = f"seq {self.tcp.seq} ack {self.tcp.ack}"
            return f"TCP {ends} [{' '.join(names)}] {where} len {len(self.tcp.data)}"
        if self.udp is not None:
            name = "DNS" if self.dns is not None else "DHCP" if self.dhcp is not None else "UDP"
            return f"{name} {src}:{self.udp.sport} > {dst}:{self.udp.dport} len {len(self.udp.data)}"
        if self.icmp is not None or self.icmpv6 is not None:
            message = self.icmp or self.icmpv6
            return f"ICMP{'' if self.icmp else 'v6'} {src} > {dst} type {message.type} code {message.code}"
        return f"IP {src} > {dst} protocol {getattr(network, 'p', '?')}"


_VSOCK_OPS: Final = {
    1: "REQUEST",
    2: "RESPONSE",
    3: "RST",
    4: "SHUTDOWN",
    5: "RW",
    6: "CREDIT_UPDATE",
    7: "CREDIT_REQUEST",
}


def _parsed(kind: Callable[[bytes], T], data: bytes) -> T | None:
    try:
        return kind(data)
    except (dpkt.UnpackError, struct.error, IndexError, ValueError):
        return None


def _inside(outer: Any, kind: type[T]) -> T | None:
    inner = getattr(outer, "data", None)
    return inner if isinstance(inner, kind) else None


def _address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


# -- asking ------------------------------------------------------------------------------------------------------------


class Predicate:
    """Whether a packet is wanted. Called with one; combined with ``&``, ``|``, ``~``."""

    def __init__(self, test: Callable[[Packet], bool], text: str) -> None:
        self._test = test
        self._text = text

    def __call__(self, packet: Packet) -> bool:
        return self._test(packet)

    def __and__(self, other: Predicate) -> Predicate:
        return Predicate(lambda packet: self(packet) and other(packet), f"({self._text} & {other._text})")

    def __or__(self, other: Predicate) -> Predicate:
        return Predicate(lambda packet: self(packet) or other(packet), f"({self._text} | {other._text})")

    def __invert__(self) -> Predicate:
        return Predicate(lambda packet: not self(packet), f"~{self._text}")

    def __bool__(self) -> bool:
        raise TypeError(f"{self._text} is a predicate: combine with & | ~, and put comparisons in parentheses")

    def __repr__(self) -> str:
        return self._text


class Field(Predicate):
    """A field of a protocol. By itself: whether it is there, and not 0. Compared: its value, None where it is not."""

    __hash__ = None  # type: ignore[assignment]  # == makes a Predicate

    def __init__(self, name: str, get: Callable[[Packet], Any]) -> None:
        super().__init__(lambda packet: bool(get(packet)), name)
        self.get = get  #: from a Packet to the field's value

    def _compared(self, sign: str, value: object, test: Callable[[Any], bool]) -> Predicate:
        def compare(packet: Packet) -> bool:
            found = self.get(packet)
            return found is not None and test(found)

        return Predicate(compare, f"({self._text} {sign} {value!r})")

    def __eq__(self, value: object) -> Predicate:  # type: ignore[override]  # a predicate, as its users want
        return self._compared("==", value, lambda found: bool(found == value))

    def __ne__(self, value: object) -> Predicate:  # type: ignore[override]  # a predicate, as its users want
        return self._compared("!=", value, lambda found: bool(found != value))

    def __lt__(self, value: Any) -> Predicate:
        return self._compared("<", value, lambda found: bool(found < value))

    def __le__(self, value: Any) -> Predicate:
        return self._compared("<=", value, lambda found: bool(found <= value))

    def __gt__(self, value: Any) -> Predicate:
        return self._compared(">", value, lambda found: bool(found > value))

    def __ge__(self, value: Any) -> Predicate:
        return self._compared(">=", value, lambda found: bool(found >= value))

    def in_(self, *values: Any) -> Predicate:
        """It has one of these values."""
        return self._compared("in", values, lambda found: found in values)


class Protocol(Predicate):
    """Whether a packet has this protocol; its attributes are fields. Raises AttributeError naming those there are."""

    def __init__(self, name: str, get: Callable[[Packet], Any], fields: dict[str, Callable[[Any], Any]]) -> None:
        super().__init__(lambda packet: get(packet) is not None, name)
        self._name = name
        self._get = get
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._fields.get(name)
        if value is None:
            raise AttributeError(f"{self._name} has no field {name!r}; there are {', '.join(sorted(self._fields))}")
        get = self._get

        def field(packet: Packet) -> Any:
            layer = get(packet)
            return None if layer is None else value(layer)

        return Field(f"{self._name}.{name}", field)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._fields]


class _TcpFlags(Field):
    """`tcp.flags`, a number, whose attributes are the single ones."""

    def __getattr__(self, name: str) -> Field:
        bit = _FLAGS.get(name)
        if bit is None:
            raise AttributeError(f"tcp.flags has no {name!r}; there are {', '.join(_FLAGS)}")
        return Field(
            f"tcp.flags.{name}", lambda packet: None if packet.tcp is None else int(packet.tcp.flags & bit > 0)
        )


class _Tcp(Protocol):
    @property
    def flags(self) -> _TcpFlags:
        return _TcpFlags("tcp.flags", lambda packet: None if packet.tcp is None else packet.tcp.flags)


def _mac(raw: bytes) -> str:
    return raw.hex(":")


frame = Protocol(
    "frame",
    lambda packet: packet,
    {
        "len": lambda packet: len(packet.data),
        "time": lambda packet: packet.time,
        "interface": lambda packet: packet.link,
        "comment": lambda packet: packet.comment,
        "inbound": lambda packet: packet.inbound,
    },
)
eth = Protocol(
    "eth",
    lambda packet: packet.eth,
    {"src": lambda each: _mac(each.src), "dst": lambda each: _mac(each.dst), "type": lambda each: each.type},
)
arp = Protocol(
    "arp",
    lambda packet: packet.arp,
    {
        "opcode": lambda each: each.op,
        "src": lambda each: _address(each.spa),
        "dst": lambda each: _address(each.tpa),
        "src_hw": lambda each: _mac(each.sha),
    },
)
ip = Protocol(
    "ip",
    lambda packet: packet.ip,
    {
        "src": lambda each: _address(each.src),
        "dst": lambda each: _address(each.dst),
        "proto": lambda each: each.p,
        "ttl": lambda each: each.ttl,
        "len": lambda each: each.len,
        "dsfield": lambda each: each.tos,
        "id": lambda each: each.id,
    },
)
ipv6 = Protocol(
    "ipv6",
    lambda packet: packet.ipv6,
    {
        "src": lambda each: _address(each.src),
        "dst": lambda each: _address(each.dst),
        "nxt": lambda each: each.nxt,
        "hlim": lambda each: each.hlim,
        "plen": lambda each: each.plen,
    },
)
tcp = _Tcp(
    "tcp",
    lambda packet: packet.tcp,
    {
        "srcport": lambda each: each.sport,
        "dstport": lambda each: each.dport,
        "seq": lambda each: each.seq,
        "ack": lambda each: each.ack,
        "len": lambda each: len(each.data),
        "window_size_value": lambda each: each.win,
        "payload": lambda each: bytes(each.data),
    },
)
udp = Protocol(
    "udp",
    lambda packet: packet.udp,
    {
        "srcport": lambda each: each.sport,
        "dstport": lambda each: each.dport,
        "length": lambda each: each.ulen,
        "payload": lambda each: bytes(each.data),
    },
)
icmp = Protocol("icmp", lambda packet: packet.icmp, {"type": lambda each: each.type, "code": lambda each: each.code})
icmpv6 = Protocol(
    "icmpv6", lambda packet: packet.icmpv6, {"type": lambda each: each.type, "code": lambda each: each.code}
)
dns = Protocol(
    "dns",
    lambda packet: packet.dns,
    {
        "id": lambda each: each.id,
        "response": lambda each: each.qr,
        "rcode": lambda each: each.rcode,
        "name": lambda each: each.qd[0].name if each.qd else None,
        "type": lambda each: each.qd[0].type if each.qd else None,
    },
)
dhcp = Protocol(
    "dhcp",
    lambda packet: packet.dhcp,
    {
        "type": lambda each: next((value[0] for code, value in each.opts if code == 53 and value), None),
        "mac": lambda each: _mac(each.chaddr[:6]),
    },
)
vsock = Protocol(
    "vsock",
    lambda packet: packet.vsock,
    {
        name: (lambda each, name=name: each[name])  # type: ignore[misc]  # a default binds the loop's name
        for name in ("src_cid", "dst_cid", "src_port", "dst_port", "len", "type", "op", "flags", "buf_alloc", "fwd_cnt")
    },
)
