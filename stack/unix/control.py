"""What travels with a message besides its bytes: credentials, and open files (rows CTRL-02..CTRL-05).

An open file on its way is a `File`, one holder of whatever is open: the socket room knows sockets of a Stack and
descriptors of the kernel. Here it is only counted, copied, handed over or closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from stack.unix.endpoint import Endpoint

#: SCM_MAX_FD: files of one message.
MAX_FILES: Final = 253


class Identity(NamedTuple):
    """struct ucred: who sent a message."""

    pid: int
    uid: int
    gid: int


#: What a receiver sees of a message that was sent when nobody wanted to know: no process, the overflow ids.
UNKNOWN: Final = Identity(0, 65534, 65534)


#: What comes with the end of a stream.
NOBODY: Final = Identity(0, 0, 0)


class File(Protocol):
    """One holder of something open."""

    @property
    def endpoint(self) -> Endpoint | None:
        """The Unix socket this is, if it is one of the same Stack's."""
        ...

    def copy(self) -> File:
        """One more holder (MSG_PEEK). Raises OSError(EMFILE)."""
        ...

    def install(self, *, inheritable: bool) -> int:
        """The holder becomes a descriptor of the user's. Raises OSError(EMFILE), and is a holder still."""
        ...

    def close(self) -> None:
        """The holder lets go. Never raises."""
        ...


class Rights:
    """The files of one message, with who sent them. Owned by one packet, or by whoever took it out."""

    __slots__ = ("files", "uid")

    def __init__(self, files: list[File], uid: int) -> None:
        self.files = files
        self.uid = uid

    def copy(self) -> Rights:
        """For MSG_PEEK. Raises OSError(EMFILE)."""
        taken = Rights([], self.uid)
        try:
            for file in self.files:
                taken.files.append(file.copy())
        except BaseException:
            taken.close()
            raise
        return taken

    def close(self) -> None:
        """Let go of what has not been handed over."""
        files, self.files = self.files, []
        for file in files:
            file.close()


class Packet:
    """One queued message, or a piece of a stream: `struct sk_buff` as far as Unix sockets use it."""

    __slots__ = ("data", "identity", "peeked", "rights", "source", "truesize", "used")

    def __init__(
        self,
        data: bytes | memoryview,
        truesize: int,
        source: Endpoint,
        identity: Identity | None = None,
        rights: Rights | None = None,
    ) -> None:
        self.data = data
        self.used = 0  #: bytes a stream's reader has taken
        self.truesize = truesize
        self.source = source  #: whose buffer it is charged to, and whose address a receiver sees
        self.identity = identity
        self.rights = rights
        self.peeked = False

    @property
    def left(self) -> int:
        return len(self.data) - self.used
