"""`Files`: the paths of a Stack's Unix sockets as users handle them, after the functions of `os`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stack.errors import NetError

if TYPE_CHECKING:
    from stack.credentials import Credentials
    from stack.unix.inode import Status
    from stack.unix.tree import FileTree


class Files:
    """`Stack.files`. Whoever acts is checked; failures are OSError with the errno of the system call."""

    def __init__(
        self, call: Callable[..., Any], tree: Callable[[], FileTree], credentials: Callable[[], Credentials]
    ) -> None:
        """`call` runs something with the Network's lock held and turns NetError into OSError."""
        self._call = call
        self._tree = tree
        self._who = credentials

    def mkdir(self, path: str | bytes, mode: int = 0o777) -> None:
        """As os.mkdir; `umask` takes bits of `mode` away."""
        who = self._who()
        self._call(lambda: self._tree().make(os.fsencode(path), stat.S_IFDIR | mode & 0o1777, who))

    def makedirs(self, path: str | bytes, mode: int = 0o777) -> None:
        """As os.makedirs(exist_ok=True)."""
        self._call(self._make_directories, os.fsencode(path), mode, self._who())

    def _make_directories(self, path: bytes, mode: int, who: Credentials) -> None:
        tree = self._tree()
        done = b""
        for part in filter(None, path.split(b"/")):
            done += b"/" + part
            try:
                tree.make(done, stat.S_IFDIR | mode & 0o1777, who)
            except NetError as error:
                if error.errno != errno.EEXIST:
                    raise
        if not tree.find(path, who).is_directory:
            raise NetError(errno.EEXIST)

    def touch(self, path: str | bytes, mode: int = 0o666) -> None:
        """A plain file, which only stands in the way."""
        who = self._who()
        self._call(lambda: self._tree().make(os.fsencode(path), stat.S_IFREG | mode & 0o7777, who))

    def symlink(self, target: str | bytes, path: str | bytes) -> None:
        """As os.symlink."""
        who = self._who()
        self._call(lambda: self._tree().link(os.fsencode(target), os.fsencode(path), who))

    def unlink(self, path: str | bytes) -> None:
        """As os.unlink. A socket that is bound there stays open, and cannot be found any more."""
        who = self._who()
        self._call(lambda: self._tree().remove(os.fsencode(path), who))

    def rmdir(self, path: str | bytes) -> None:
        """As os.rmdir."""
        who = self._who()
        self._call(lambda: self._tree().remove(os.fsencode(path), who, directory=True))

    def stat(self, path: str | bytes, *, follow_symlinks: bool = True) -> Status:
        """As os.stat, as far as there is something to tell."""
        who = self._who()
        status: Status = self._call(lambda: self._tree().find(os.fsencode(path), who, follow=follow_symlinks).status())
        return status

    def listdir(self, path: str | bytes = "/") -> list[str]:
        """As os.listdir."""
        from stack.unix.inode import MAY_READ

        who = self._who()

        def names() -> list[bytes]:
            node = self._tree().find(os.fsencode(path), who)
            if not node.is_directory:
                raise NetError(errno.ENOTDIR)
            if not node.permits(who, MAY_READ):
                raise NetError(errno.EACCES)
            return list(node.entries)

        return [os.fsdecode(name) for name in self._call(names)]

    def exists(self, path: str | bytes) -> bool:
        """As os.path.exists."""
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    def chmod(self, path: str | bytes, mode: int) -> None:
        """As os.chmod."""
        who = self._who()
        self._call(lambda: self._tree().change_mode(os.fsencode(path), mode, who))

    def chown(self, path: str | bytes, uid: int, gid: int) -> None:
        """As os.chown."""
        who = self._who()
        self._call(lambda: self._tree().change_owner(os.fsencode(path), uid, gid, who))

    def umask(self, mask: int) -> int:
        """As os.umask, for everybody of this Stack."""

        def change() -> int:
            tree = self._tree()
            old, tree.umask = tree.umask, mask & 0o777
            return old

        old: int = self._call(change)
        return old
