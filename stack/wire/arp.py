"""ARP for IPv4 over Ethernet (RFC 826, RFC 5227)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from stack.wire.error import WireError
from stack.wire.ethernet import ETHERTYPE_IPV4, MAC_LENGTH, is_group, mac_text

LENGTH: Final = 28  # bytes, for Ethernet and IPv4
HARDWARE_ETHERNET: Final = 1  # ARPHRD_ETHER
REQUEST: Final = 1
REPLY: Final = 2

#: hardware type, protocol type, hardware length, protocol length, operation, sender MAC/IP, target MAC/IP
MESSAGE: Final = struct.Struct("!HHBBH6s4s6s4s")


@dataclass(slots=True)
class ArpMessage:
    """One request or reply. MACs are 6 bytes, addresses 4."""

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes

    def emit(self) -> bytes:
        return MESSAGE.pack(
            HARDWARE_ETHERNET,
            ETHERTYPE_IPV4,
            MAC_LENGTH,
            4,
            self.operation,
            self.sender_mac,
            self.sender_ip,
            self.target_mac,
            self.target_ip,
        )

    def __str__(self) -> str:
        sender, target = (".".join(map(str, address)) for address in (self.sender_ip, self.target_ip))
        if self.operation == REQUEST:
            return f"arp who-has {target} tell {sender}"
        return f"arp reply {sender} is-at {mac_text(self.sender_mac)}"


def parse(payload: memoryview) -> ArpMessage:
    """The message in an Ethernet payload (padding allowed). Raises WireError."""
    if len(payload) < LENGTH:
        raise WireError(f"ARP message of {len(payload)} bytes")
    hardware, protocol, hardware_length, protocol_length, operation, *rest = MESSAGE.unpack_from(payload)
    if (hardware, protocol, hardware_length, protocol_length) != (HARDWARE_ETHERNET, ETHERTYPE_IPV4, MAC_LENGTH, 4):
        raise WireError("ARP for another hardware or protocol")
    if operation not in (REQUEST, REPLY):
        raise WireError(f"ARP operation {operation}")
    message = ArpMessage(operation, *rest)
    if is_group(message.sender_mac):
        raise WireError("ARP sender is a multicast MAC")  # RFC 1812 3.3.2
    return message
