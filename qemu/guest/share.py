"""Directories of the host that a guest sees, and which of three ways each takes there.

Theory of operation
-------------------
* virtiofs: the directory itself, served by a daemon (virtiofsd.py). Wherever there is one that works here, and a
  kernel with the file system: Debian's cloud kernel has it.
* packed: a copy, made when the guest is made. It takes guest memory; neither side sees what the other changes.
* 9p: the directory itself, served by QEMU. It needs no daemon but a kernel with the file system, which Debian's
  general kernel has and its cloud kernel has not: that one takes longer to boot.

With ``how="auto"`` they are tried in this order; a copy is passed over if the guest is to write into the directory
itself, or if it would take too much of the guest's memory. What was chosen is said, with the reason, for a copy is not
what the directory is. A share is read-only unless it is asked to be writable, and that binds the host's side: it holds
against a guest that is root.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from qemu.guest.errors import SetupError

DEFAULT_SHARE: Final = "/share"
How = Literal["auto", "virtiofs", "packed", "9p"]
Way = Literal["virtiofs", "packed", "9p"]
HOWS: Final[tuple[How, ...]] = get_args(How)
#: The part of a guest's memory that a copy may take: it is there twice while the kernel unpacks it.
_COPY_PART: Final = 4
_MIB: Final = 1 << 20
#: Paths with these have a meaning of their own where QEMU or a list of ours takes them.
_ENDS: Final = ("\n", "\0")


@dataclass(frozen=True, slots=True)
class Share:
    """A directory of the host for the guest to see at `target`."""

    source: Path
    target: str = DEFAULT_SHARE
    how: How = "auto"
    writable: bool = False  #: what the guest writes is in the host's directory: never a copy


@dataclass(frozen=True, slots=True)
class Planned:
    """A share, the way it takes, and why that one."""

    share: Share
    way: Way
    reason: str

    def __str__(self) -> str:
        access = "writable" if self.share.writable else "read-only"
        copy = "a copy, " if self.way == "packed" else ""
        return f"{self.share.target} is {self.share.source} by {self.way} ({copy}{access}): {self.reason}"


def parse_share(text: str) -> Share:
    """``HOSTPATH[:GUESTPATH][:ro|:rw][:virtiofs|:packed|:9p]``. Raises SetupError for what cannot be.

    A path with colons that is a directory is taken for just that.
    """
    writable, how = False, "auto"
    rest = text
    while not Path(rest).is_dir():
        before, colon, last = rest.rpartition(":")
        if colon and last in ("ro", "rw"):
            writable = last == "rw"
        elif colon and last in HOWS:
            how = last
        else:
            break
        rest = before
    source, colon, target = rest.rpartition(":")
    if not colon or Path(rest).is_dir():
        source, target = rest, DEFAULT_SHARE
    share = Share(Path(source or "."), target, next(each for each in HOWS if each == how), writable)
    if not source:  # Path("") would be the current directory
        raise SetupError("cannot share '': not a directory")
    check(share)
    return share


def check(share: Share) -> None:
    """Raises SetupError for a share that cannot be, whatever the way."""
    where = f"cannot share {share.source}"
    if share.how not in HOWS:
        raise SetupError(f"{where} by {share.how!r}: the ways are {', '.join(HOWS)}")
    if not share.source.is_dir():
        raise SetupError(f"{where}: not a directory")
    if not os.access(share.source, os.R_OK | os.X_OK):
        raise SetupError(f"{where}: this user may not read it")
    if not share.target.startswith("/") or share.target == "/" or ".." in Path(share.target).parts:
        raise SetupError(f"{where} as {share.target!r}: the path in the guest must be absolute, and not '/'")
    if any(end in share.target or end in str(share.source) for end in _ENDS):
        raise SetupError(f"{where} as {share.target!r}: a path cannot hold a line end")
    if share.writable and share.how == "packed":
        raise SetupError(f"{where} as a copy (packed) and writable: what the guest writes stays in its copy")
    if share.writable and not os.access(share.source, os.W_OK):
        raise SetupError(f"{where} writable: this user may not write to it")


def check_all(shares: tuple[Share, ...]) -> None:
    """Raises SetupError for one that cannot be, or two at the same place."""
    places: set[str] = set()
    for share in shares:
        check(share)
        place = os.path.normpath(share.target)
        if place in places:
            raise SetupError(f"two shares at {share.target}")
        places.add(place)


def size(directory: Path) -> int:
    """What a copy takes: bytes of all files, each rounded up to a page."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(os.path.join(where, name))
            except OSError:
                continue  # gone meanwhile
            total += (status.st_size + 4095) // 4096 * 4096
    return total


def too_large(share: Share, memory_mib: int) -> str:
    """Why a copy of it does not fit, or ""."""
    limit = memory_mib * _MIB // _COPY_PART
    needed = size(share.source)
    if needed <= limit:
        return ""
    return f"a copy would take {needed // _MIB} MiB, more than a quarter of the guest's {memory_mib} MiB"


def choose(share: Share, *, virtiofs: str, ninep: str, memory_mib: int) -> Planned:
    """The way it takes. `virtiofs` and `ninep` say why these cannot be taken, or "".

    Raises SetupError with every reason, if there is none.
    """
    if share.how == "virtiofs" or (share.how == "auto" and not virtiofs):
        if virtiofs:
            raise SetupError(f"cannot share {share.source} by virtiofs: {virtiofs}")
        return Planned(share, "virtiofs", "asked for" if share.how != "auto" else "the directory itself")
    if share.how == "packed":
        return Planned(share, "packed", "asked for")
    reasons = [virtiofs] if share.how == "auto" else []
    if share.how == "auto":
        no_copy = "what is written to a copy stays there" if share.writable else too_large(share, memory_mib)
        if not no_copy:
            return Planned(share, "packed", virtiofs)
        reasons.append(no_copy)
    if ninep:
        raise SetupError(f"cannot share {share.source}: {'; '.join([*reasons, ninep])}")
    return Planned(share, "9p", "; ".join(reasons) or "asked for")
