"""What machines that boot from the network are told, by what they say they are (RFC 2132, RFC 4578, RFC 5970).

A client's firmware gives its vendor class, as "PXEClient:Arch:00007:UNDI:003016", and its architecture as a number:
0 is a BIOS, 7 and 9 EFI on x86-64, 11 EFI on AArch64, 16 EFI on x86-64 that boots by HTTP (IANA, "Processor
Architecture Types"). The first `Boot` of a list that fits is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

MAX_FILE = 127  # bytes of the `file` field, without the final zero (RFC 2131 section 2)
MAX_SERVER_NAME = 63  # of the `sname` field


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One kind of machine and what it boots. Raises ValueError for what does not fit a message."""

    file: str  #: path for TFTP, or a URL; with DHCPv6 always a URL
    server: str | None = None  #: address to load it from (next-server); None: the DHCP server's own
    server_name: str = ""  #: the TFTP server by name
    vendor_class: str = ""  #: what the client's vendor class begins with; empty: any, or none
    architectures: tuple[int, ...] = ()  #: those it is for; empty: any, or none

    def __post_init__(self) -> None:
        if not self.file or len(self.file.encode()) > MAX_FILE:
            raise ValueError(f"a boot file's name is 1 to {MAX_FILE} bytes long: {self.file!r}")
        if len(self.server_name.encode()) > MAX_SERVER_NAME:
            raise ValueError(f"a boot server's name is at most {MAX_SERVER_NAME} bytes long: {self.server_name!r}")
        if self.server is not None:
            try:
                IPv4Address(self.server)
            except ValueError as error:
                raise ValueError(f"a boot server is an IPv4 address: {error}") from None
        if not all(0 <= each <= 0xFFFF for each in self.architectures):
            raise ValueError(f"an architecture is a number of 16 bits: {self.architectures}")

    def fits(self, vendor_class: bytes, architectures: Iterable[int]) -> bool:
        """Whether a client that says these things of itself is meant."""
        if not vendor_class.startswith(self.vendor_class.encode()):
            return False
        return not self.architectures or any(each in self.architectures for each in architectures)


def architectures_in(value: bytes) -> list[int]:
    """The numbers in option 93, or in DHCPv6's 61: two bytes each."""
    return [int.from_bytes(value[i : i + 2], "big") for i in range(0, len(value) - 1, 2)]


def choose(boots: Iterable[Boot], vendor_class: bytes, architectures: Iterable[int]) -> Boot | None:
    """The first that fits."""
    said = list(architectures)
    return next((boot for boot in boots if boot.fits(vendor_class, said)), None)
