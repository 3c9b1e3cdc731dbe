"""Control messages of Unix sockets: what a sender may attach, and what a receiver is told (rows CTRL-01..CTRL-06)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stack.credentials import Capability
from stack.errors import NetError
from stack.socket.cmsg import HEADER, SCM_CREDENTIALS, SCM_RIGHTS, fit, space
from stack.socket.message import MSG_CMSG_CLOEXEC, MSG_CTRUNC, Ancillary
from stack.socket.options import SOL_SOCKET
from stack.socket.unix.files import gather, install
from stack.unix.control import MAX_FILES, UNKNOWN, Identity
from stack.unix.endpoint import PASS_IDENTITY, PASS_PIDFD, TELLS

if TYPE_CHECKING:
    from stack.socket.unix.socket import UnixSocket
    from stack.unix.control import Rights

SCM_PIDFD: Final = 4
_UCRED: Final = struct.Struct("=iII")
_INT: Final = struct.Struct("@i")


class Attached(NamedTuple):
    """What a sender attached."""

    identity: Identity | None = None
    rights: Rights | None = None

    def close(self) -> None:
        """It was not sent."""
        if self.rights is not None:
            self.rights.close()


NOTHING: Final = Attached()


def attach(messages: Sequence[Ancillary], socket: UnixSocket[Any]) -> Attached:
    """Lock held: what sendmsg's control messages say. Other levels pass unseen.

    Raises NetError: EINVAL (an unknown type, a wrong length, more than 253 files), EBADF, EPERM and ESRCH for an
    identity that is not the sender's to give, ETOOMANYREFS.
    """
    fds: list[int] = []
    identity: Identity | None = None
    for level, kind, data in messages:
        if level != SOL_SOCKET:
            continue
        if kind == SCM_RIGHTS:
            found = [fd for (fd,) in _INT.iter_unpack(data[: len(data) & -_INT.size])]
            if len(fds) + len(found) > MAX_FILES:
                raise NetError(errno.EINVAL)
            fds += found
            if any(not _is_open(fd) for fd in found):
                raise NetError(errno.EBADF)
        elif kind == SCM_CREDENTIALS:
            identity = _identity(data, socket)
        else:
            raise NetError(errno.EINVAL)
    if not fds:
        return Attached(identity)
    host = socket.host
    who = host.credentials
    privileged = who.may(Capability.SYS_RESOURCE) or who.may(Capability.SYS_ADMIN)
    host.unix.in_flight.check(who.uid, privileged=privileged)
    return Attached(identity, gather(fds, socket, who.uid))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except (OSError, OverflowError):
        return False
    return True


def _identity(data: bytes, socket: UnixSocket[Any]) -> Identity:
    if len(data) != _UCRED.size:
        raise NetError(errno.EINVAL)
    claimed = Identity(*_UCRED.unpack(data))
    who = socket.host.credentials
    allowed = (
        (claimed.pid == who.pid or who.may(Capability.SYS_ADMIN))
        and (claimed.uid == who.uid or who.may(Capability.SETUID))
        and (claimed.gid == who.gid or who.may(Capability.SETGID))
    )
    if not allowed:
        raise NetError(errno.EPERM)
    if claimed.pid != who.pid and not socket.host.has_process(claimed.pid):
        raise NetError(errno.ESRCH)
    return claimed


def told(
    socket: UnixSocket[Any], identity: Identity | None, rights: Rights | None, room: int, flags: int
) -> tuple[list[Ancillary], int]:
    """Lock held: what a receiver with `room` bytes for control messages gets, and the flags that go with it.

    In Linux's order: identity, files, pidfd. Without any room whatever would have come is lost, and told of.
    """
    passing = socket.endpoint.passing
    if not room:
        if rights is not None:
            rights.close()
        return [], MSG_CTRUNC if rights is not None or passing & TELLS else 0
    messages: list[Ancillary] = []
    out = 0
    if passing & PASS_IDENTITY:
        messages.append((SOL_SOCKET, SCM_CREDENTIALS, _UCRED.pack(*(identity or UNKNOWN))))
        messages, out = fit(messages, room)
        room = max(room - sum(space(len(data)) for _, _, data in messages), 0)
    if rights is not None:
        count = len(rights.files)
        places = (room - HEADER) // _INT.size if room > HEADER else 0
        fds = install(rights, places, inheritable=not flags & MSG_CMSG_CLOEXEC)
        if fds:
            packed = b"".join(map(_INT.pack, fds))
            messages.append((SOL_SOCKET, SCM_RIGHTS, packed))
            room = max(room - space(len(packed)), 0)
        if len(fds) < count:
            out |= MSG_CTRUNC
    if passing & PASS_PIDFD:
        out |= _pidfd(messages, room, flags)
    return messages, out


def _pidfd(messages: list[Ancillary], room: int, flags: int) -> int:
    """SCM_PIDFD: whoever acts in a Stack is in this process."""
    if room < HEADER + _INT.size:
        return MSG_CTRUNC
    try:
        fd = own_pidfd()
    except OSError as error:
        messages.append((SOL_SOCKET, SCM_PIDFD, _INT.pack(-(error.errno or errno.EMFILE))))
        return 0
    os.set_inheritable(fd, not flags & MSG_CMSG_CLOEXEC)
    messages.append((SOL_SOCKET, SCM_PIDFD, _INT.pack(fd)))
    return 0


def own_pidfd() -> int:
    """A pidfd of the process this Stack lives in. Raises OSError."""
    return os.pidfd_open(os.getpid())
