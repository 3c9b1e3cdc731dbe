"""Where Guestwire keeps what is worth keeping: ``$XDG_CACHE_HOME/guestwire``.

Everything in it can be made again. Entries are directories or files that appear complete or not at all: they are
built beside their place and renamed into it, under a lock, so that two sessions starting at once build them once
and a crash leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """The cache directory, made if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(base) / "guestwire"
    root.mkdir(parents=True, exist_ok=True)
    return root


def cached(name: str, build: Callable[[Path], None], *, root: Path | None = None) -> Path:
    """The cache entry `name`; if it is not there, `build(directory)` fills an empty directory that becomes it.

    A second process asking meanwhile waits for the first. If `build` raises, nothing is kept.
    """
    root = cache_root() if root is None else root
    entry = root / name
    if entry.is_dir():
        return entry
    with _locked(root / f".{name}.lock"):
        if entry.is_dir():
            return entry
        partial = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
        try:
            partial.chmod(0o755)
            build(partial)
            partial.rename(entry)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return entry


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
