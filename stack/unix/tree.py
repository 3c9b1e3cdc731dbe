"""`FileTree`: the paths of a Stack's Unix sockets. In memory, and nothing of the host's.

It is as much of a file system as sockets need: directories with permissions and the sticky bit, socket nodes, symbolic
links, and plain files without content, which only stand in the way. Who acts is checked as Linux checks it (rows
UNX-02, UNX-07, SEC-05). All methods raise NetError; `stack.unix.api.Files` is the face for users.

A relative path begins at the root: nobody here has a working directory.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from stack.credentials import Capability
from stack.errors import NetError
from stack.unix.inode import MAY_SEARCH, MAY_WRITE, Inode

if TYPE_CHECKING:
    from stack.credentials import Credentials

NAME_MAX: Final = 255  # bytes
LINKS_MAX: Final = 40  # symbolic links followed in one look-up
_PERMISSIONS: Final = 0o7777


class FileTree:
    """Begins with /tmp, /run and /var as Linux systems have them; /var/run is a link to /run."""

    def __init__(self) -> None:
        self.umask = 0o022
        self._numbers = 1
        self.root = Inode(1, stat.S_IFDIR | 0o755, 0, 0)
        for name, mode in ((b"tmp", 0o1777), (b"run", 0o755), (b"var", 0o755)):
            self._enter(self.root, name, stat.S_IFDIR | mode, 0, 0)
        var = self.root.entries[b"var"]
        self._enter(var, b"tmp", stat.S_IFDIR | 0o1777, 0, 0)
        self._enter(var, b"run", stat.S_IFLNK | 0o777, 0, 0).target = b"/run"

    # -- looking up ---------------------------------------------------------------------------------------------------

    def find(self, path: bytes, who: Credentials, *, follow: bool = True) -> Inode:
        """The node at `path`. Raises NetError: ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG."""
        node, _, _ = self._walk(path, who, follow=follow or path.endswith(b"/"))
        if node is None:
            raise NetError(errno.ENOENT)
        if path.endswith(b"/") and not node.is_directory:
            raise NetError(errno.ENOTDIR)
        return node

    def _walk(self, path: bytes, who: Credentials, *, follow: bool) -> tuple[Inode | None, Inode, bytes]:
        """(node or None, the directory it is or would be in, its name there; b"" for what has none of its own)."""
        if not path:
            raise NetError(errno.ENOENT)
        here = self.root
        name = b""
        parts = [part for part in reversed(path.split(b"/")) if part]
        links = 0
        node: Inode | None = here
        while parts:
            if node is None:
                raise NetError(errno.ENOENT)
            if not node.is_directory:
                raise NetError(errno.ENOTDIR)
            here = node
            if not here.permits(who, MAY_SEARCH):
                raise NetError(errno.EACCES)
            name = parts.pop()
            if len(name) > NAME_MAX:
                raise NetError(errno.ENAMETOOLONG)
            if name in (b".", b".."):
                node = here if name == b"." else here.parent
                name = b""
                continue
            node = here.entries.get(name)
            if node is not None and node.is_link and (parts or follow):
                links += 1
                if links > LINKS_MAX:
                    raise NetError(errno.ELOOP)
                parts += [part for part in reversed(node.target.split(b"/")) if part]
                node = self.root if node.target.startswith(b"/") else here
                name = b""
        return node, here, name

    # -- making and removing ------------------------------------------------------------------------------------------

    def make(self, path: bytes, mode: int, who: Credentials) -> Inode:
        """A new node; `mode` has the type bits, and loses those of the umask.

        Raises NetError: EEXIST, EACCES, and what `find` raises for its directory.
        """
        node, directory, name = self._walk(path, who, follow=False)
        if node is not None or not name:
            raise NetError(errno.EEXIST)
        if path.endswith(b"/") and not stat.S_ISDIR(mode):
            raise NetError(errno.ENOENT)
        if not directory.permits(who, MAY_WRITE | MAY_SEARCH):
            raise NetError(errno.EACCES)
        gid = directory.gid if directory.mode & stat.S_ISGID else who.gid
        return self._enter(directory, name, mode & ~self.umask, who.uid, gid)

    def link(self, target: bytes, path: bytes, who: Credentials) -> None:
        """symlink(2)."""
        if not target:
            raise NetError(errno.ENOENT)
        umask, self.umask = self.umask, 0
        try:
            self.make(path, stat.S_IFLNK | 0o777, who).target = target
        finally:
            self.umask = umask

    def _enter(self, directory: Inode, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        self._numbers += 1
        node = directory.entries[name] = Inode(self._numbers, mode, uid, gid)
        if stat.S_ISDIR(mode):
            node.parent = directory
        return node

    def remove(self, path: bytes, who: Credentials, *, directory: bool = False) -> None:
        """unlink(2), or rmdir(2). Raises NetError: ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EBUSY, EACCES, EPERM."""
        node, parent, name = self._walk(path, who, follow=False)
        if node is None:
            raise NetError(errno.ENOENT)
        if not name:
            raise NetError((errno.EBUSY if node is self.root else errno.EINVAL) if directory else errno.EISDIR)
        if not parent.permits(who, MAY_WRITE | MAY_SEARCH):
            raise NetError(errno.EACCES)
        if parent.mode & stat.S_ISVTX and who.uid not in (node.uid, parent.uid) and not who.may(Capability.FOWNER):
            raise NetError(errno.EPERM)
        if directory:
            if not node.is_directory:
                raise NetError(errno.ENOTDIR)
            if node.entries:
                raise NetError(errno.ENOTEMPTY)
        elif node.is_directory:
            raise NetError(errno.EISDIR)
        elif path.endswith(b"/"):
            raise NetError(errno.ENOTDIR)
        del parent.entries[name]

    def change_mode(self, path: bytes, mode: int, who: Credentials) -> None:
        """chmod(2). Raises NetError(EPERM) but for the owner and CAP_FOWNER."""
        node = self.find(path, who)
        if who.uid != node.uid and not who.may(Capability.FOWNER):
            raise NetError(errno.EPERM)
        node.mode = node.mode & ~_PERMISSIONS | mode & _PERMISSIONS

    def change_owner(self, path: bytes, uid: int, gid: int, who: Credentials) -> None:
        """chown(2); -1 leaves one as it is. Raises NetError(EPERM): to give away takes CAP_CHOWN."""
        node = self.find(path, who)
        if not who.may(Capability.CHOWN):
            mine = who.uid == node.uid and uid in (-1, node.uid)
            if not mine or gid not in (-1, node.gid, who.gid, *who.groups):
                raise NetError(errno.EPERM)
        node.uid = node.uid if uid == -1 else uid
        node.gid = node.gid if gid == -1 else gid
