"""TCP MD5 signatures (RFC 2385): every segment between two peers carries a digest that only holders of a key can make.

Theory of operation
-------------------
Nobody pays for this before the first key is set in a namespace: then `Signatures` puts itself between IP and the layer,
in both directions. Of a segment that comes in it finds out whom it is for (a connection, what stands in for one, a
listener), whether that one has a key for the peer, and drops what is not signed with it, as well as what is signed and
should not be, before anything looks at the rest. Of what goes out it does the same, cuts superframes - each segment has
a digest of its own - and puts the option behind the others. Neither connections nor states know of it, but for the
room the option takes (`Pcb.overhead`) and that timestamps are done without: with them there would be none for SACK
(as on Linux).

Keys belong to a socket, and are for one address or the addresses of a prefix; the longest that fits counts. A
connection has copies of its listener's keys.
"""

from __future__ import annotations

from hashlib import md5
from typing import TYPE_CHECKING, Any, Final, cast

from stack.tcp.mib import Mib
from stack.wire.checksum import partial_sum, pseudo_sum
from stack.wire.tcp import CHECKSUM_OFFSET, CWR, FIN, HEADER_LENGTH, OPT_MD5, OPT_NOP, PROTO, PSH, parse_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stack.ip.layer import IpLayer
    from stack.ip.packet import IpPacket
    from stack.ip.route import Route
    from stack.link.device import Buffer
    from stack.tcp.demux import Key
    from stack.tcp.layer import TcpLayer

#: NOP NOP kind length, in front of the digest
_HEAD: Final = bytes((OPT_NOP, OPT_NOP, OPT_MD5, 18))
OPTION_LENGTH: Final = 20  # bytes with its padding
KEY_MAX: Final = 80  # bytes; Linux TCP_MD5SIG_MAXKEYLEN
_LONGEST_HEADER: Final = 60  # bytes: what the data offset can say


class Keys:
    """What one socket signs with: (address, bits of it that count) -> key. Addresses are 4 or 16 bytes."""

    __slots__ = ("_keys",)

    def __init__(self, keys: dict[tuple[bytes, int], bytes] | None = None) -> None:
        self._keys = {} if keys is None else dict(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def set(self, address: bytes, bits: int, key: bytes) -> None:
        self._keys[_prefix(address, bits), bits] = key

    def remove(self, address: bytes, bits: int) -> bool:
        """False: there is none for just this prefix."""
        return self._keys.pop((_prefix(address, bits), bits), None) is not None

    def find(self, address: bytes) -> bytes | None:
        """The key for a peer, None if there is none."""
        best, found = -1, None
        for (prefix, bits), key in self._keys.items():
            if bits > best and len(prefix) == len(address) and _prefix(address, bits) == prefix:
                best, found = bits, key
        return found

    def copy(self) -> Keys:
        return Keys(self._keys)


def _prefix(address: bytes, bits: int) -> bytes:
    width = 8 * len(address)
    return (int.from_bytes(address, "big") >> width - bits << width - bits).to_bytes(len(address), "big")


def digest(src: bytes, dst: bytes, segment: Sequence[Buffer], key: bytes) -> bytes:
    """RFC 2385 section 2.0 over a segment in parts, the first of which holds the whole header.

    Pseudo-header, header without options and with a checksum of zero, data, key.
    """
    first = memoryview(segment[0]).cast("B")
    length = sum(len(part) for part in segment)
    start = first[12] >> 4 << 2
    state = md5(usedforsecurity=False)
    if len(src) == 4:
        state.update(src + dst + bytes((0, PROTO)) + length.to_bytes(2, "big"))
    else:
        state.update(src + dst + length.to_bytes(4, "big") + bytes((0, 0, 0, PROTO)))
    state.update(bytes(first[:CHECKSUM_OFFSET]) + bytes(2) + bytes(first[CHECKSUM_OFFSET + 2 : HEADER_LENGTH]))
    state.update(first[start:])
    for part in segment[1:]:
        state.update(part)
    state.update(key)
    return state.digest()


class Signatures:
    """One per layer."""

    def __init__(self, layer: TcpLayer) -> None:
        self._layer = layer
        self.installed = False

    def install(self) -> None:
        """From now on keys are looked for. Idempotent."""
        if self.installed:
            return
        self.installed = True
        layer = self._layer
        plain = layer.ip
        layer.ip = cast("IpLayer", _SigningIp(plain, self))
        for connection in layer.connections.values():
            if connection.ip is plain:
                connection.ip = layer.ip
        layer.ip.register(PROTO, self.receive, layer.icmp_error)

    def changed(self) -> None:
        """A key was set or removed: what connections prepared for their headers holds no longer."""
        self._layer.ip.invalidate()

    def key_for(self, key: Key, ifindex: int) -> bytes | None:
        """What segments between these two are signed with: (remote address, local address, ports), as in `Demux`."""
        demux = self._layer.demux
        holder: Any = demux.found(key, ifindex) or demux.listener(key, ifindex)
        keys: Keys | None = None if holder is None else holder.signing
        return None if keys is None else keys.find(key[0])

    def receive(self, packet: IpPacket) -> None:
        """One received segment or superframe, on its way to the layer. Never raises."""
        if self._good(packet):
            layer = self._layer
            if layer.filtering.installed:
                layer.filtering.receive(packet)
            else:
                layer.input(packet)

    def _good(self, packet: IpPacket) -> bool:
        data = packet.payload
        if len(data) < HEADER_LENGTH:
            return True  # the layer says what is wrong with it
        place = (packet.src, packet.dst, int.from_bytes(data[:4], "big"))
        key = self.key_for(place, self._layer.ip.arrival(packet))
        given = parse_options(data[HEADER_LENGTH : data[12] >> 4 << 2]).signature
        if key is None and given is None:
            return True
        if not packet.csum_ok:
            if partial_sum(data, pseudo_sum(packet.src, packet.dst, PROTO, len(data))) != 0xFFFF:
                return True  # nobody's; the layer counts it
            packet.csum_ok = True
        if given is None:
            failed = Mib.MD5_NOT_FOUND
        elif key is None:
            failed = Mib.MD5_UNEXPECTED
        elif packet.gso_size or given != digest(packet.src, packet.dst, (data,), key):
            failed = Mib.MD5_FAILURE  # a superframe's segments cannot all have been signed by what it carries
        else:
            return True
        self._layer.mib.count(failed)
        self._layer.drops.count("md5-signature")
        return False


class _SigningIp:
    """In place of the `IpLayer`: signs what goes to peers there is a key for, and is the layer itself in all else."""

    def __init__(self, ip: IpLayer, signatures: Signatures) -> None:
        self._ip: Any = ip
        self._signatures = signatures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ip, name)

    def _key_for(self, route: Route, src: bytes, dst: bytes, ports: int) -> bytes | None:
        ifindex = self._ip.owner(src) if route.iface.loopback else route.iface.index
        return self._signatures.key_for((dst, src, ports), ifindex)

    def template(self, route: Route, src: bytes, dst: bytes, proto: int, ports: bytes, **facts: Any) -> Any:
        """Signed segments have no headers in common."""
        if self._key_for(route, src, dst, int.from_bytes(ports[2:] + ports[:2], "big")) is not None:
            return None
        return self._ip.template(route, src, dst, proto, ports, **facts)

    def output(
        self, route: Route, src: bytes, dst: bytes, proto: int, parts: tuple[Buffer, ...], length: int, **facts: Any
    ) -> None:
        """As `IpOutput.send`."""
        ports = int.from_bytes(bytes(parts[0][2:4]) + bytes(parts[0][:2]), "big")
        key = self._key_for(route, src, dst, ports)
        if key is None:
            self._ip.output(route, src, dst, proto, parts, length, **facts)
            return
        size = facts.pop("gso_size", 0) if facts.pop("gso_type", 0) else 0
        facts.pop("gso_size", 0)
        facts.pop("header_length", 0)
        for piece in _pieces(parts, size):
            signed = _signed(src, dst, piece, key)
            total = sum(len(part) for part in signed)
            header_length = (bytes(signed[0])[12] >> 4) << 2
            self._ip.output(route, src, dst, proto, signed, total, header_length=header_length, **facts)


def _pieces(parts: tuple[Buffer, ...], size: int) -> Iterator[tuple[Buffer, ...]]:
    """The segments of a superframe with `size` bytes of data each; `parts` itself if that is 0."""
    if not size:
        yield parts
        return
    data = memoryview(b"".join(parts[1:]))
    header = bytearray(parts[0])
    seq, flags = int.from_bytes(header[4:8], "big"), header[13]
    for at in range(0, len(data), size):
        chunk = data[at : at + size]
        header[4:8] = (seq + at & 0xFFFFFFFF).to_bytes(4, "big")
        header[13] = flags & ~(CWR if at else 0) & ~(0 if at + size >= len(data) else PSH | FIN)
        yield bytes(header), chunk


def _signed(src: bytes, dst: bytes, parts: tuple[Buffer, ...], key: bytes) -> tuple[Buffer, ...]:
    """The segment with its option, and the checksum field the link is to finish."""
    head = bytearray(parts[0])
    if len(head) + OPTION_LENGTH > _LONGEST_HEADER:
        raise ValueError(f"no room for a signature behind {len(head) - HEADER_LENGTH} bytes of TCP options")
    head[12] = (len(head) + OPTION_LENGTH) << 2 | head[12] & 0x0F
    blank: tuple[Buffer, ...] = (bytes(head) + bytes(OPTION_LENGTH), *parts[1:])
    total = sum(len(part) for part in blank)
    head[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 2] = pseudo_sum(src, dst, PROTO, total).to_bytes(2, "big")
    return bytes(head) + _HEAD + digest(src, dst, blank, key), *parts[1:]
