"""Where Guestwire keeps what is worth keeping: ``$XDG_CACHE_HOME/guestwire``.

Everything in it can be made again. Entries are directories or files that appear complete or not at all: they are
built beside their place and renamed into it, under a lock, so that two sessions starting at once build them once
and a crash leaves nothing that looks finished. An entry that was damaged afterwards (a machine that lost power, a disk
that was full) is found by its `check`, and made again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from qemu.guest.errors import GuestTimeoutError, SetupError

#: Longer than any entry takes to make: the slowest is a kernel's download, which gives up after ten minutes.
_WAIT_SECONDS: Final = 900.0
_LOOK_SECONDS: Final = 0.05
#: What a disk or a quota without room says.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """The cache directory, made if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(base) / "guestwire"
    root.mkdir(parents=True, exist_ok=True)
    return root


def cached(
    name: str,
    build: Callable[[Path], None],
    *,
    root: Path | None = None,
    check: Callable[[Path], bool] = lambda _: True,
    wait: float = _WAIT_SECONDS,
) -> Path:
    """The cache entry `name`; if it is not there, `build(directory)` fills an empty directory that becomes it.

    An entry that `check` is false for is built again. A second process asking meanwhile waits for the first, up to
    `wait` seconds: then GuestTimeoutError. If `build` raises, nothing is kept; a full disk is a SetupError.
    """
    root = cache_root() if root is None else root
    entry = root / name
    if entry.is_dir() and check(entry):
        return entry
    with _locked(root / f".{name}.lock", wait):
        if entry.is_dir():
            if check(entry):
                return entry
            discard(entry)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
        try:
            partial.chmod(0o755)
            build(partial)
            partial.rename(entry)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise SetupError(
                    f"{name} cannot be kept in {root}: {error.strerror}; make room there (about 100 MB), or "
                    "name another place with XDG_CACHE_HOME"
                ) from error
            raise
    return entry


def discard(entry: Path) -> None:
    """Remove an entry. At no moment does half of it stand in its place; who has its files open keeps them."""
    aside = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    with suppress(FileNotFoundError):  # somebody else was quicker
        entry.rename(aside / "gone")
    shutil.rmtree(aside, ignore_errors=True)


def prune(root: Path, pattern: str, keep: int) -> None:
    """Keep only the `keep` entries matching `pattern` that were used last (see `used`), and nothing of dead builds."""
    entries = [(_used_at(entry), entry) for entry in root.glob(pattern) if entry.is_dir()]
    for _, entry in sorted(entries, reverse=True)[keep:]:
        discard(entry)
    # What a killed build left: its directory is older than any build lasts.
    for left in root.glob(f".{pattern}.*"):
        if left.is_dir() and time.time() - _used_at(left) > _WAIT_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def used(entry: Path) -> None:
    """Note that the entry was used now."""
    with suppress(OSError):  # a cache that may only be read is as good
        os.utime(entry)


def _used_at(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def _locked(path: Path, wait: float) -> Iterator[None]:
    deadline = time.monotonic() + wait
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise GuestTimeoutError(
                        f"waited {wait:g} s for another process (pid {lock.read().strip() or '?'}) that is making "
                        f"{path.parent / path.name[1:-5]}; remove nothing, but see whether it hangs"
                    ) from None
                time.sleep(_LOOK_SECONDS)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
