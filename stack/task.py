"""A task: who acts, and in which namespaces. What unshare(2) and setns(2) change.

Without more ado everybody who uses a Stack is its first task. `Stack.acting` makes another for the length of a ``with``
block, for the thread (or asyncio task) that entered it alone, as a fork would; what it unshares or enters, it unshares
and enters alone.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from stack.credentials import Capability, Credentials, UserNamespace
from stack.errors import NetError
from stack.netns import NetNamespace
from stack.uts_ns import UtsNamespace

if TYPE_CHECKING:
    from collections.abc import Callable

# <linux/sched.h>
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000
_KNOWN: Final = CLONE_NEWUTS | CLONE_NEWUSER | CLONE_NEWNET

#: By Stack: the task that acts in this context, where it is not the Stack's first.
ACTING: Final[ContextVar[Mapping[Any, Task]]] = ContextVar("acting", default=MappingProxyType({}))


@dataclass(slots=True, eq=False)
class Task:
    """One actor. Changed by its own `unshare` and `setns` only, with the Network's lock held.

    It holds the network namespace it is in, until `leave`.
    """

    credentials: Credentials
    netns: NetNamespace
    uts: UtsNamespace
    _hold: object = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._hold = self.netns.hold()

    def leave(self) -> None:
        """Lock held: the task is no more."""
        self.netns.let_go(self._hold)

    def fork(self, credentials: Credentials | None = None) -> Task:
        """Another in the same namespaces (UTS-07)."""
        return Task(self.credentials if credentials is None else credentials, self.netns, self.uts)

    def unshare(self, flags: int, new_netns: Callable[[UserNamespace], NetNamespace]) -> None:
        """unshare(2): CLONE_NEWUSER first, then the others, owned by the user namespace the task is in by then.

        Raises NetError: EINVAL for other flags, EPERM without CAP_SYS_ADMIN, ENOSPC. Nothing has changed then.
        """
        if flags & ~_KNOWN:
            raise NetError(errno.EINVAL, f"unknown namespaces {flags & ~_KNOWN:#x}")
        credentials = self.credentials.unshare_user() if flags & CLONE_NEWUSER else self.credentials
        if flags & (CLONE_NEWUTS | CLONE_NEWNET) and not credentials.may(Capability.SYS_ADMIN):
            raise NetError(errno.EPERM)
        uts = self.uts.clone(credentials.user_ns) if flags & CLONE_NEWUTS else self.uts
        if flags & CLONE_NEWNET:
            self._enter(new_netns(credentials.user_ns))
        self.credentials, self.uts = credentials, uts

    def setns(self, namespace: NetNamespace | UtsNamespace | UserNamespace, nstype: int = 0) -> None:
        """setns(2); `nstype` is 0 or the CLONE_NEW flag the namespace must be of.

        Raises NetError: EINVAL for another type, for a closed namespace and for one's own user namespace; EPERM without
        CAP_SYS_ADMIN in the owner of the namespace and, but for user namespaces, where the task is itself (UTS-06).
        """
        kind = _kind(namespace)
        if nstype not in (0, kind):
            raise NetError(errno.EINVAL, "the namespace is of another type")
        credentials = self.credentials
        if isinstance(namespace, UserNamespace):
            if namespace is credentials.user_ns:
                raise NetError(errno.EINVAL, "the task is in this user namespace already")
            if not credentials.may(Capability.SYS_ADMIN, namespace):
                raise NetError(errno.EPERM)
            self.credentials = Credentials(
                credentials.uid, credentials.gid, credentials.groups, credentials.pid, user_ns=namespace
            )
            return
        if not (credentials.may(Capability.SYS_ADMIN, namespace.user_ns) and credentials.may(Capability.SYS_ADMIN)):
            raise NetError(errno.EPERM)
        if isinstance(namespace, UtsNamespace):
            self.uts = namespace
        elif namespace.closed:
            raise NetError(errno.EINVAL, "the namespace is gone")
        else:
            self._enter(namespace)

    def _enter(self, netns: NetNamespace) -> None:
        there, hold = self.netns, self._hold
        self.netns, self._hold = netns, netns.hold()
        there.let_go(hold)


def _kind(namespace: object) -> int:
    if isinstance(namespace, NetNamespace):
        return CLONE_NEWNET
    if isinstance(namespace, UtsNamespace):
        return CLONE_NEWUTS
    if isinstance(namespace, UserNamespace):
        return CLONE_NEWUSER
    raise NetError(errno.EINVAL, "not a namespace")
