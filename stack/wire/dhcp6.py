"""DHCP for IPv6: messages and options (RFC 8415, RFC 3646, RFC 4075, RFC 4704, RFC 5908, RFC 5970).

A message is a type, a transaction and options of (code, length, bytes), some of which hold options again: an identity
association (IA) holds its addresses, and an address or an IA a status. The same code may be there several times.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv6Address
from typing import Final

from stack.wire import router
from stack.wire.error import WireError

SERVER_PORT: Final = 547
CLIENT_PORT: Final = 546
ALL_SERVERS: Final = IPv6Address("ff02::1:2").packed  # All_DHCP_Relay_Agents_and_Servers, section 7.1
HEADER_LENGTH: Final = 4  # bytes: type and transaction
MIN_DUID: Final = 3  # bytes: a type, and something
MAX_DUID: Final = 130  # section 11.1: 128 bytes after the type
#: Of one message; more is nonsense that would only cost time.
MAX_OPTIONS: Final = 64
INFINITE: Final = 0xFFFFFFFF

_OPTION: Final = struct.Struct("!HH")
_IA: Final = struct.Struct("!III")  # IAID, T1, T2
_ADDRESS: Final = struct.Struct("!16sII")  # address, preferred and valid lifetime
_DUID_LLT: Final = 1
_DUID_LL: Final = 3
_ETHERNET: Final = 1


class MessageType(IntEnum):
    """RFC 8415 section 7.3."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    RECONFIGURE = 10
    INFORMATION_REQUEST = 11
    RELAY_FORWARD = 12
    RELAY_REPLY = 13


class Option(IntEnum):
    """Those that are read or written here; RFC 8415 section 21 unless noted."""

    CLIENT_ID = 1
    SERVER_ID = 2
    IA_NA = 3
    IA_TA = 4
    IA_ADDRESS = 5
    REQUESTED = 6
    PREFERENCE = 7
    ELAPSED = 8
    STATUS = 13
    RAPID_COMMIT = 14
    VENDOR_CLASS = 16
    DNS = 23  # RFC 3646
    DOMAINS = 24  # RFC 3646
    IA_PD = 25
    SNTP = 31  # RFC 4075
    REFRESH_TIME = 32
    FQDN = 39  # RFC 4704
    NTP = 56  # RFC 5908
    BOOT_URL = 59  # RFC 5970
    ARCHITECTURE = 61  # RFC 5970


class Status(IntEnum):
    """RFC 8415 section 21.13."""

    SUCCESS = 0
    UNSPECIFIED = 1
    NO_ADDRESSES = 2
    NO_BINDING = 3
    NOT_ON_LINK = 4
    USE_MULTICAST = 5
    NO_PREFIXES = 6


_NAMES: Final = {int(kind): kind.name for kind in MessageType}
_NTP_ADDRESS: Final = 1  # suboption of NTP, RFC 5908 section 4.1


@dataclass(slots=True)
class Dhcp6Message:
    """One message; options in order, as (code, value)."""

    kind: int
    xid: int  #: 24 bits
    options: list[tuple[int, bytes]] = field(default_factory=list)

    def get(self, code: int) -> bytes | None:
        """The value of the first option of this code, None without one."""
        return next((value for each, value in self.options if each == code), None)

    def all(self, code: int) -> list[bytes]:
        """The values of every option of this code."""
        return [value for each, value in self.options if each == code]

    def add(self, code: int, value: bytes) -> None:
        self.options.append((code, value))

    @property
    def requested(self) -> frozenset[int] | None:
        """The codes of the option request option, None without one."""
        value = self.get(Option.REQUESTED)
        return (
            None if value is None else frozenset(code for (code,) in struct.iter_unpack("!H", value[: len(value) & ~1]))
        )

    def emit(self) -> bytes:
        """The UDP payload. Raises `ValueError` for an option of more than 65535 bytes."""
        return bytes((self.kind,)) + self.xid.to_bytes(3, "big") + emit_options(self.options)

    def __str__(self) -> str:
        return f"dhcp6 {_NAMES.get(self.kind, f'type {self.kind}')} xid {self.xid:#08x}"


@dataclass(slots=True)
class Identity:
    """An IA_NA (or an IA_PD, whose content is not looked at): its addresses, and how things stand."""

    iaid: int
    t1: int = 0  #: seconds
    t2: int = 0
    addresses: list[LeasedAddress] = field(default_factory=list)
    status: tuple[int, str] | None = None

    def emit(self) -> bytes:
        options = [(int(Option.IA_ADDRESS), each.emit()) for each in self.addresses]
        if self.status is not None:
            options.append((Option.STATUS, status_value(*self.status)))
        return _IA.pack(self.iaid, self.t1, self.t2) + emit_options(options)


@dataclass(slots=True)
class LeasedAddress:
    """An address in an IA; lifetimes in seconds, `INFINITE` for ever."""

    address: bytes
    preferred: int = 0
    valid: int = 0

    def emit(self) -> bytes:
        return _ADDRESS.pack(self.address, self.preferred, self.valid)


def emit_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    result = bytearray()
    for code, value in options:
        if len(value) > 0xFFFF:
            raise ValueError(f"DHCPv6 option {int(code)} of {len(value)} bytes")
        result += _OPTION.pack(code, len(value)) + value
    return bytes(result)


def parse(payload: bytes) -> Dhcp6Message:
    """The message in a UDP payload; of relays only the type is of use. Raises WireError."""
    if len(payload) < HEADER_LENGTH:
        raise WireError(f"DHCPv6 message of {len(payload)} bytes")
    kind = payload[0]
    if kind in (MessageType.RELAY_FORWARD, MessageType.RELAY_REPLY):
        return Dhcp6Message(kind, 0)
    return Dhcp6Message(kind, int.from_bytes(payload[1:4], "big"), list(parse_options(payload[HEADER_LENGTH:])))


def parse_options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(code, value) of each. Raises WireError, also for more than `MAX_OPTIONS`."""
    offset = 0
    for _ in range(MAX_OPTIONS):
        if offset == len(data):
            return
        if offset + _OPTION.size > len(data):
            raise WireError("DHCPv6 option without length")
        code, length = _OPTION.unpack_from(data, offset)
        offset += _OPTION.size
        if offset + length > len(data):
            raise WireError(f"DHCPv6 option {code} runs past the end")
        yield code, data[offset : offset + length]
        offset += length
    if offset < len(data):
        raise WireError(f"more than {MAX_OPTIONS} DHCPv6 options")


def parse_identity(value: bytes) -> Identity:
    """The value of an IA_NA. Raises WireError."""
    if len(value) < _IA.size:
        raise WireError(f"DHCPv6 identity association of {len(value)} bytes")
    identity = Identity(*_IA.unpack_from(value))
    for code, inner in parse_options(value[_IA.size :]):
        if code == Option.IA_ADDRESS:
            if len(inner) < _ADDRESS.size:
                raise WireError(f"DHCPv6 address option of {len(inner)} bytes")
            identity.addresses.append(LeasedAddress(*_ADDRESS.unpack_from(inner)))
        elif code == Option.STATUS:
            identity.status = parse_status(inner)
    return identity


def status_value(code: int, text: str) -> bytes:
    """The value of a status option."""
    return code.to_bytes(2, "big") + text.encode()


def parse_status(value: bytes) -> tuple[int, str]:
    """Code and text of a status option. Raises WireError."""
    if len(value) < 2:
        raise WireError(f"DHCPv6 status of {len(value)} bytes")
    return int.from_bytes(value[:2], "big"), value[2:].decode("utf-8", "replace")


# -- identifiers ------------------------------------------------------------------------------------------------------


def link_layer_duid(mac: bytes) -> bytes:
    """A DUID-LL of an Ethernet address (RFC 8415 section 11.4)."""
    return struct.pack("!HH", _DUID_LL, _ETHERNET) + mac


def mac_of_duid(duid: bytes) -> bytes | None:
    """The Ethernet address in a DUID-LLT or DUID-LL, None if it is of another kind."""
    if len(duid) == 14 and duid[:4] == struct.pack("!HH", _DUID_LLT, _ETHERNET):
        return duid[8:]
    if len(duid) == 10 and duid[:4] == struct.pack("!HH", _DUID_LL, _ETHERNET):
        return duid[4:]
    return None


# -- values -----------------------------------------------------------------------------------------------------------


def domain_list(domains: Iterable[str]) -> bytes:
    """The value of option 24: names as DNS labels, never compressed (RFC 8415 section 10). Raises ValueError."""
    return b"".join(router.encode_name(domain) for domain in domains)


def ntp_servers(addresses: Iterable[bytes]) -> bytes:
    """The value of option 56: servers by address (RFC 5908 section 4.1)."""
    return emit_options((_NTP_ADDRESS, address) for address in addresses)


def fqdn_name(value: bytes) -> str:
    """The first label of the name in option 39, empty if there is none: names may be partial (RFC 4704 section 4.2)."""
    length = value[1] if len(value) > 1 else 0
    label = value[2 : 2 + length]
    return label.decode("ascii", "replace") if 0 < length <= 63 and len(label) == length else ""


def vendor_class(value: bytes) -> bytes:
    """The first class in option 16, after the enterprise number; empty if there is none."""
    length = int.from_bytes(value[4:6], "big")
    return value[6 : 6 + length]
