"""The UTS namespace: what uname(2) says (rows UTS-01..07).

The six fields are one immutable tuple that is replaced as a whole, so that a reader sees all of the old or all of the
new however many write (UTS-07). Writers hold the Network's lock, or two of them could undo each other's field; readers
need none.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

from stack.credentials import INIT_USER_NS, Capability, Credentials, UserNamespace
from stack.errors import NetError

FIELD_BYTES: Final = 65  # <linux/utsname.h> __NEW_UTS_LEN + 1
MAX_LENGTH: Final = 64  # bytes of a name; the 65th is always zero
NONE: Final = "(none)"  # UTS_NODENAME and UTS_DOMAINNAME of a kernel nobody named
RELEASE: Final = "6.18.0-guestwire"  # the release whose behaviour the stack follows
VERSION: Final = "#1 SMP PREEMPT_DYNAMIC"
MACHINE: Final = "x86_64"


class UtsName(NamedTuple):
    """struct new_utsname: six fields of 65 bytes, padded with zeros."""

    sysname: bytes
    nodename: bytes
    release: bytes
    version: bytes
    machine: bytes
    domainname: bytes


class Uname(NamedTuple):
    """The fields as text, each up to its first zero: what `os.uname` gives, and the domain."""

    sysname: str
    nodename: str
    release: str
    version: str
    machine: str
    domainname: str


def field(text: bytes) -> bytes:
    """At most 64 bytes of `text`, padded to 65."""
    return text[:MAX_LENGTH].ljust(FIELD_BYTES, b"\0")


class UtsNamespace:
    """Names of a node, owned by a user namespace."""

    def __init__(self, nodename: str = NONE, *, user_ns: UserNamespace = INIT_USER_NS) -> None:
        texts = ("Linux", nodename, RELEASE, VERSION, MACHINE, NONE)
        self.user_ns = user_ns
        self.name = UtsName(*(field(text.encode("utf-8", "surrogateescape")) for text in texts))
        #: Called after a name changed, by the thread that changed it (poll of /proc/sys/kernel/hostname, UTS-05).
        self.observers: list[Callable[[], None]] = []

    def clone(self, user_ns: UserNamespace) -> UtsNamespace:
        """A namespace of its own with the values of this moment (UTS-02). Whoever calls has checked that it may."""
        copy = UtsNamespace(user_ns=user_ns)
        copy.name = self.name
        return copy

    def uname(self) -> Uname:
        """One moment's names (UTS-04)."""
        return Uname(*(_text(each) for each in self.name))

    @property
    def nodename(self) -> str:
        return _text(self.name.nodename)

    @property
    def domainname(self) -> str:
        """ "(none)" if nobody set one."""
        return _text(self.name.domainname)

    def sethostname(self, name: bytes | None, length: int, credentials: Credentials) -> None:
        """sethostname(2): `length` bytes of `name`; None is a NULL pointer (UTS-03).

        Raises NetError: EPERM first of all, EINVAL for a length below 0 or above 64, EFAULT for missing bytes.
        """
        self._set("nodename", name, length, credentials)

    def setdomainname(self, name: bytes | None, length: int, credentials: Credentials) -> None:
        """setdomainname(2); as `sethostname`."""
        self._set("domainname", name, length, credentials)

    def read_proc(self, which: str) -> bytes:
        """/proc/sys/kernel/{hostname,domainname,ostype,osrelease,version} (UTS-05). Raises NetError(ENOENT)."""
        return _text(getattr(self.name, _proc_field(which))).encode("utf-8", "surrogateescape") + b"\n"

    def write_proc(self, which: str, data: bytes, credentials: Credentials) -> int:
        """Write one of the two that can be; cut at a line end and at 64 bytes (UTS-05). Returns what was taken: all.

        Raises NetError: ENOENT, EACCES for a file that cannot be written, EPERM.
        """
        name = _proc_field(which)
        if name not in ("nodename", "domainname"):
            raise NetError(errno.EACCES, f"/proc/sys/kernel/{which} cannot be written")
        text = data.partition(b"\n")[0].partition(b"\0")[0][:MAX_LENGTH]
        self._set(name, text, len(text), credentials)
        return len(data)

    def _set(self, which: str, name: bytes | None, length: int, credentials: Credentials) -> None:
        if not credentials.may(Capability.SYS_ADMIN, self.user_ns):
            raise NetError(errno.EPERM)
        if not 0 <= length <= MAX_LENGTH:
            raise NetError(errno.EINVAL)
        if length and (name is None or len(name) < length):
            raise NetError(errno.EFAULT)
        value = field((name or b"")[:length])
        self.name = self.name._replace(**{which: value})
        for observer in tuple(self.observers):
            observer()


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _proc_field(which: str) -> str:
    found = {
        "hostname": "nodename",
        "domainname": "domainname",
        "ostype": "sysname",
        "osrelease": "release",
        "version": "version",
    }.get(which)
    if found is None:
        raise NetError(errno.ENOENT, f"there is no /proc/sys/kernel/{which}")
    return found
