"""Who acts: `Credentials`, explicit wherever Linux would look at the calling task (section 1.16).

A capability counts in one user namespace and in those below it. Every network and UTS namespace is owned by a user
namespace, and what is asked is always "has the actor this capability in the owner?" (user_namespaces(7)).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from stack.errors import NetError

MAX_LEVEL: Final = 32  # user namespaces below each other, as in Linux


class Capability(IntEnum):
    """Those the network subsystem asks for; numbers of Linux <linux/capability.h>."""

    CHOWN = 0  #: the owners of paths of Unix sockets
    DAC_OVERRIDE = 1  #: their permissions (SEC-05)
    DAC_READ_SEARCH = 2
    FOWNER = 3
    SETGID = 6  #: other group ids in SCM_CREDENTIALS (SEC-06)
    SETUID = 7
    NET_BIND_SERVICE = 10  #: ports below 1024 (SEC-02)
    NET_BROADCAST = 11
    NET_ADMIN = 12  #: links, addresses, routes, privileged options (SEC-04)
    NET_RAW = 13  #: raw and packet sockets (SEC-03)
    SYS_ADMIN = 21  #: the names of the UTS namespace (SEC-01)
    SYS_RESOURCE = 24  #: more files on their way through Unix sockets than RLIMIT_NOFILE


class UserNamespace:
    """Where capabilities count. Made by `Credentials.unshare_user`; the first of all is `INIT_USER_NS`."""

    __slots__ = ("level", "owner", "parent")

    def __init__(self, parent: UserNamespace | None = None, owner: int = 0) -> None:
        """`owner` is the uid of who made it. Raises NetError(ENOSPC) below the 32nd."""
        self.parent = parent
        self.owner = owner
        self.level: int = 0 if parent is None else parent.level + 1
        if self.level > MAX_LEVEL:
            raise NetError(errno.ENOSPC, f"{MAX_LEVEL} user namespaces below each other are the most")

    def __repr__(self) -> str:
        return f"UserNamespace(level {self.level}, of uid {self.owner})"


#: The user namespace that every Stack begins in. It holds no state.
INIT_USER_NS: Final = UserNamespace()


@dataclass(frozen=True, slots=True)
class Credentials:
    """A task's identity. The default is root with every capability in the initial user namespace."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    pid: int = 1
    capabilities: frozenset[Capability] = frozenset(Capability)
    user_ns: UserNamespace = INIT_USER_NS  #: where the capabilities are held

    @classmethod
    def user(cls, uid: int, gid: int | None = None, *, pid: int = 1) -> Credentials:
        """An ordinary user: no capability at all; `gid` defaults to `uid`."""
        return cls(uid=uid, gid=uid if gid is None else gid, pid=pid, capabilities=frozenset())

    def may(self, capability: Capability, user_ns: UserNamespace | None = None) -> bool:
        """Has it `capability` in `user_ns` (None: where it is itself)?

        Held there or in one above; and who made a namespace has every capability in it, seen from its parent.
        """
        where = self.user_ns if user_ns is None else user_ns
        while where is not self.user_ns:
            if where.parent is None:
                return False  # above us
            if where.parent is self.user_ns and where.owner == self.uid:
                return True
            where = where.parent
        return capability in self.capabilities

    def within(self, user_ns: UserNamespace) -> Credentials:
        """The same actor as `user_ns` sees it: with the capabilities it has there."""
        if user_ns is self.user_ns:
            return self
        return replace(self, user_ns=user_ns, capabilities=frozenset(c for c in Capability if self.may(c, user_ns)))

    def unshare_user(self) -> Credentials:
        """unshare(CLONE_NEWUSER): in a user namespace of its own, with every capability there and none outside.

        Needs no capability. Raises NetError(ENOSPC).
        """
        return replace(self, user_ns=UserNamespace(self.user_ns, self.uid), capabilities=frozenset(Capability))
