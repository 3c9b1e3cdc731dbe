"""DHCP for IPv4: messages and options (RFC 2131, RFC 2132, RFC 3396, RFC 3397, RFC 4039).

A message is BOOTP's fixed header (RFC 951), a magic cookie, and options of (code, length, bytes). Options longer than
255 bytes are split over several of the same code and joined again on parsing (RFC 3396); option 52 lends the `file` and
`sname` fields to more options.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from stack.wire.error import WireError

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2
HARDWARE_ETHERNET: Final = 1
BROADCAST_FLAG: Final = 0x8000
MAGIC: Final = b"\x63\x82\x53\x63"  # RFC 2131 section 3
#: Options of a message every client must take (RFC 2131 section 2): 312 bytes, of a 576-byte IP packet.
MINIMUM_MESSAGE: Final = 576
#: BOOTP relays and some clients drop anything shorter (RFC 1542 section 2.1).
MINIMUM_LENGTH: Final = 300
ANY: Final = bytes(4)

#: op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file
HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
HEADER_LENGTH: Final = HEADER.size + len(MAGIC)  # 240 bytes
#: RFC 1035 section 4.1.4: two bits that say "pointer", fourteen that say where.
_POINTER: Final = 0xC0
_MAX_POINTER: Final = 0x3FFF


class MessageType(IntEnum):
    """Option 53 (RFC 2132 section 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


_NAMES: Final = {int(kind): kind.name for kind in MessageType}


class Option(IntEnum):
    """The options that are read or written here, by RFC 2132 section unless noted."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    DOMAIN = 15
    MTU = 26
    BROADCAST = 28
    NTP = 42
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETER_LIST = 55
    MESSAGE = 56
    MAX_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    VENDOR_CLASS = 60
    CLIENT_ID = 61
    TFTP_SERVER = 66
    BOOT_FILE = 67
    RAPID_COMMIT = 80  # RFC 4039
    ARCHITECTURE = 93  # RFC 4578
    SEARCH = 119  # RFC 3397
    END = 255


@dataclass(slots=True)
class DhcpMessage:
    """One message. Addresses are 4 bytes, `client` is the 6-byte hardware address; options by code."""

    op: int
    xid: int
    client: bytes
    options: dict[int, bytes] = field(default_factory=dict)
    ciaddr: bytes = ANY
    yiaddr: bytes = ANY
    siaddr: bytes = ANY
    giaddr: bytes = ANY
    secs: int = 0
    broadcast: bool = False
    sname: bytes = b""  #: name of the server to boot from, up to 64 bytes
    file: bytes = b""  #: what to boot, up to 128 bytes

    @property
    def kind(self) -> int | None:
        """The message type (option 53), or None if it is missing or malformed."""
        value = self.options.get(Option.MESSAGE_TYPE, b"")
        return value[0] if len(value) == 1 else None

    def address(self, option: int) -> bytes | None:
        """An option that holds one IPv4 address, or None if it is missing or malformed."""
        value = self.options.get(option, b"")
        return value if len(value) == 4 else None

    def emit(self) -> bytes:
        """The UDP payload, padded to BOOTP's minimum."""
        flags = BROADCAST_FLAG if self.broadcast else 0
        header = HEADER.pack(
            self.op, HARDWARE_ETHERNET, len(self.client), 0, self.xid, self.secs, flags,
            self.ciaddr, self.yiaddr, self.siaddr, self.giaddr, self.client, self.sname, self.file,
        )  # fmt: skip
        body = b"".join(option_bytes(code, value) for code, value in self.options.items())
        return (header + MAGIC + body + b"\xff").ljust(MINIMUM_LENGTH, b"\0")

    def __str__(self) -> str:
        kind = self.kind
        name = _NAMES.get(kind, f"type {kind}") if kind is not None else "without type"
        address = self.yiaddr if any(self.yiaddr) else self.address(Option.REQUESTED_ADDRESS) or self.ciaddr
        return f"dhcp {name} {self.client.hex(':')} {'.'.join(map(str, address))} xid {self.xid:#010x}"


def option_bytes(code: int, value: bytes) -> bytes:
    """One option as it goes on the wire, split if it is longer than 255 bytes (RFC 3396)."""
    pieces = [value[i : i + 255] for i in range(0, len(value), 255)] or [b""]
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def search_list(domains: Iterable[str]) -> bytes:
    """The value of option 119: names as DNS labels, an ending that came before as a pointer to it (RFC 3397 section 2).

    Raises `ValueError` for a label that is empty or longer than 63 bytes.
    """
    result = bytearray()
    seen: dict[tuple[bytes, ...], int] = {}
    for domain in domains:
        labels = tuple(_label(label, domain) for label in domain.rstrip(".").split("."))
        for number, label in enumerate(labels):
            known = seen.get(labels[number:])
            if known is not None:
                result += (_POINTER << 8 | known).to_bytes(2, "big")
                break
            if len(result) <= _MAX_POINTER:
                seen[labels[number:]] = len(result)
            result += bytes((len(label),)) + label
        else:
            result.append(0)
    return bytes(result)


def _label(text: str, domain: str) -> bytes:
    encoded = text.encode("idna") if not text.isascii() else text.encode()
    if not 1 <= len(encoded) <= 63:
        raise ValueError(f"{domain!r} has a label that is not 1 to 63 bytes long")
    return encoded.lower()


def parse_search_list(value: bytes) -> list[str]:
    """The names in option 119, the pieces of which were joined already. Raises WireError."""
    names = []
    offset = 0
    while offset < len(value):
        labels, offset = _name_at(value, offset)
        names.append(".".join(labels))
    return names


def _name_at(value: bytes, offset: int) -> tuple[list[str], int]:
    """The labels of the name at `offset`, and where the next begins. Pointers only go back, so that this ends."""
    labels: list[str] = []
    end = -1
    limit = offset
    while offset < len(value):
        length = value[offset]
        if length >= _POINTER:
            target = int.from_bytes(value[offset : offset + 2], "big") & _MAX_POINTER
            if offset + 2 > len(value) or target >= limit:
                raise WireError("DHCP search list with a pointer that does not go back")
            end = offset + 2 if end < 0 else end
            limit = offset = target
            continue
        if length > 63 or offset + 1 + length > len(value):
            raise WireError("DHCP search list with a label that runs past the end")
        offset += 1 + length
        if not length:
            return labels, offset if end < 0 else end
        labels.append(value[offset - length : offset].decode("ascii", "replace"))
    raise WireError("DHCP search list that ends within a name")


def parse(payload: bytes | bytearray | memoryview) -> DhcpMessage:
    """The message in a UDP payload. Raises WireError."""
    if len(payload) < HEADER_LENGTH:
        raise WireError(f"DHCP message of {len(payload)} bytes")
    op, hardware, length, _, xid, secs, flags, *addresses, client, sname, file = HEADER.unpack_from(payload)
    if bytes(payload[HEADER.size : HEADER_LENGTH]) != MAGIC:
        raise WireError("BOOTP without DHCP's magic cookie")
    if (hardware, length) != (HARDWARE_ETHERNET, 6):
        raise WireError(f"DHCP for hardware type {hardware} with addresses of {length} bytes")
    options: dict[int, bytes] = {}
    _options(bytes(payload[HEADER_LENGTH:]), options)
    overload = options.pop(Option.OVERLOAD, b"\0")
    lent = overload[0] if overload else 0
    if lent & 1:
        _options(file, options)
        file = b""
    if lent & 2:
        _options(sname, options)
        sname = b""
    ciaddr, yiaddr, siaddr, giaddr = addresses
    broadcast = bool(flags & BROADCAST_FLAG)
    return DhcpMessage(
        op, xid, client[:6], options, ciaddr, yiaddr, siaddr, giaddr, secs, broadcast,
        sname.partition(b"\0")[0], file.partition(b"\0")[0],
    )  # fmt: skip


def _options(data: bytes, options: dict[int, bytes]) -> None:
    """Add the options in `data`; those seen before are continued (RFC 3396). Raises WireError."""
    offset = 0
    while offset < len(data):
        code = data[offset]
        if code == Option.END:
            return
        if code == Option.PAD:
            offset += 1
            continue
        if offset + 2 > len(data) or offset + 2 + data[offset + 1] > len(data):
            raise WireError(f"DHCP option {code} runs past the end")
        end = offset + 2 + data[offset + 1]
        options[code] = options.get(code, b"") + data[offset + 2 : end]
        offset = end
