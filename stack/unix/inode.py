"""Nodes of the file tree that Unix sockets have their paths in: directories, sockets, plain files, symbolic links."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from stack.credentials import Capability

if TYPE_CHECKING:
    from stack.credentials import Credentials
    from stack.unix.endpoint import Endpoint

# What is asked for: bits of a permission triplet.
MAY_READ: Final = 4
MAY_WRITE: Final = 2
MAY_SEARCH: Final = 1


class Status(NamedTuple):
    """What stat(2) tells of a node here."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_uid: int
    st_gid: int


class Inode:
    """One node. `mode` is st_mode with the type bits."""

    __slots__ = ("endpoint", "entries", "gid", "mode", "number", "parent", "target", "uid")

    def __init__(self, number: int, mode: int, uid: int, gid: int) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.entries: dict[bytes, Inode] = {}  #: of a directory
        self.parent: Inode = self  #: of a directory: its ".."
        self.target = b""  #: of a symbolic link
        self.endpoint: Endpoint | None = None  #: of a socket, while it is open

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_socket(self) -> bool:
        return stat.S_ISSOCK(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    def permits(self, who: Credentials, wanted: int) -> bool:
        """May `who` do what the bits of `wanted` say?

        CAP_DAC_OVERRIDE may everything, but execute what nobody may; CAP_DAC_READ_SEARCH may read, and search
        directories.
        """
        if who.uid == self.uid:
            bits = self.mode >> 6
        elif who.gid == self.gid or self.gid in who.groups:
            bits = self.mode >> 3
        else:
            bits = self.mode
        missing = wanted & ~bits & 7
        if not missing:
            return True
        if who.may(Capability.DAC_OVERRIDE) and (self.is_directory or not missing & MAY_SEARCH or self.mode & 0o111):
            return True
        readable = MAY_READ | (MAY_SEARCH if self.is_directory else 0)
        return not missing & ~readable and who.may(Capability.DAC_READ_SEARCH)

    def status(self) -> Status:
        links = 2 + sum(each.is_directory for each in self.entries.values()) if self.is_directory else 1
        return Status(self.mode, self.number, links, self.uid, self.gid)
