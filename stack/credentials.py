"""Who acts: `Credentials`, explicit wherever Linux would look at the calling task (section 1.16)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Capability(IntEnum):
    """Those the network subsystem asks for; numbers of Linux <linux/capability.h>."""

    NET_BIND_SERVICE = 10  #: ports below 1024 (SEC-02)
    NET_BROADCAST = 11
    NET_ADMIN = 12  #: links, addresses, routes, privileged options (SEC-04)
    NET_RAW = 13  #: raw and packet sockets (SEC-03)
    SYS_ADMIN = 21  #: the names of the UTS namespace (SEC-01)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A task's identity. The default is root with every capability."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    pid: int = 1
    capabilities: frozenset[Capability] = frozenset(Capability)

    @classmethod
    def user(cls, uid: int, gid: int | None = None, *, pid: int = 1) -> Credentials:
        """An ordinary user: no capability at all; `gid` defaults to `uid`."""
        return cls(uid=uid, gid=uid if gid is None else gid, pid=pid, capabilities=frozenset())

    def may(self, capability: Capability) -> bool:
        return capability in self.capabilities
