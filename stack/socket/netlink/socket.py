"""AF_NETLINK sockets: the socket object; its phases are `unbound` and `bound`."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.base import Socket
from stack.socket.netlink import AF_NETLINK
from stack.socket.netlink.endpoint import SOL_NETLINK, Endpoint
from stack.socket.netlink.options import (
    NETLINK_LIST_MEMBERSHIPS,
    NETLINK_OPTIONS,
)
from stack.socket.netlink.tables import tables_of
from stack.socket.netlink.unbound import NetlinkUnbound
from stack.socket.options import OptionTable

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.socket.base import Host

#: (port id, group mask).
NetlinkAddress: TypeAlias = tuple[int, int]

_U32: Final = 0xFFFFFFFF
_INT: Final = 4  # bytes
#: Boolean options: read into less than an int they are EINVAL (row OPT-00).
_FLAGS: Final = frozenset(
    row.number
    for row in NETLINK_OPTIONS
    if row.level == SOL_NETLINK and row.readable and row.number != NETLINK_LIST_MEMBERSHIPS
)


class NetlinkSocket(Socket):
    """socket(AF_NETLINK, SOCK_RAW or SOCK_DGRAM, protocol); the two types are one (row NL-01)."""

    family = AF_NETLINK
    options_table: ClassVar[OptionTable] = NETLINK_OPTIONS

    def __init__(self, host: Host, kind: int, protocol: int) -> None:
        super().__init__(host, kind, protocol)
        self.table = tables_of(host.netns)[protocol]
        self.endpoint = Endpoint(self.table)
        self.endpoint.on_event = self.pollee.notify
        self.endpoint.settings = self.options
        self.peer_groups = 0  #: mask of the group that a connected socket sends to
        self.phase = NetlinkUnbound(self)

    def address_in(self, address: object) -> NetlinkAddress:
        """CPython takes a tuple of two ints, each modulo 2**32."""
        if not isinstance(address, tuple):
            raise TypeError(f"getsockaddrarg(): AF_NETLINK address must be tuple, not {type(address).__name__}")
        if len(address) != 2 or not all(isinstance(part, int) for part in address):
            raise TypeError("getsockaddrarg(): AF_NETLINK address must be a pair (pid, groups)")
        pid, groups = address
        return pid & _U32, groups & _U32

    def address_out(self, address: NetlinkAddress) -> object:
        return address

    def get_option(self, level: int, number: int, length: int | None) -> int | bytes:
        if level == SOL_NETLINK and length is not None and length < _INT and number in _FLAGS:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().get_option(level, number, length)

    def set_option(self, level: int, number: int, value: int | Buffer) -> None:
        if level == SOL_NETLINK and number in _FLAGS and not isinstance(value, int) and len(value) < _INT:
            value = 0  # Linux does not look at less than an int
        super().set_option(level, number, value)

    def flag(self, number: int) -> bool:
        """A boolean of SOL_NETLINK."""
        return bool(self.options.value(SOL_NETLINK, number))

    @property
    def capable(self) -> bool:
        """CAP_NET_ADMIN."""
        return self.host.credentials.may(Capability.NET_ADMIN)

    @property
    def pid(self) -> int:
        """Of the process that acts, the first choice for a port id."""
        return self.host.credentials.pid

    @property
    def credentials(self) -> tuple[int, int, int]:
        """(pid, uid, gid) of who sends, for receivers with SO_PASSCRED."""
        who = self.host.credentials
        return who.pid, who.uid, who.gid

    def check_groups(self, mask: int) -> set[int]:
        """The groups of bind's mask. Raises NetError(EPERM) if this socket may not join one."""
        protocol = self.table.protocol
        if mask and not protocol.anyone_receives and not self.capable:
            raise NetError(errno.EPERM)
        groups = {group for group in range(1, min(protocol.groups, 32) + 1) if mask >> group - 1 & 1}
        for group in groups:
            self.check_group(group)
        return groups

    def check_group(self, group: int) -> None:
        """May this socket join? Raises NetError(EPERM)."""
        if group in self.table.protocol.privileged_groups and not self.capable:
            raise NetError(errno.EPERM)
