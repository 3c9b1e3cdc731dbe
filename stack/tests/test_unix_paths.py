"""The tree of paths of a Stack: as the file system of the kernel, where what it does is asked of both (SEC-05)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import Credentials, Stack
from stack.credentials import Capability
from stack.tests.kernel_twin import code
from stack.tests.unix_world import DGRAM, UnixWorld, kernel_world, outcome, stack_world


@pytest.fixture(params=["kernel", "ours"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UnixWorld]:
    with kernel_world(tmp_path) if request.param == "kernel" else stack_world() as made:
        yield made


@pytest.fixture
def stack() -> Iterator[Stack]:
    with stack_world(credentials=Credentials()) as made:
        assert made.stack is not None
        yield made.stack


def test_directories(world: UnixWorld) -> None:
    files, path = world.files, world.path()
    files.mkdir(path, 0o700)
    assert files.stat(path).st_mode == stat.S_IFDIR | 0o700
    for call, *args in (
        (files.mkdir, path),
        (files.mkdir, path + "/a/b"),
        (files.rmdir, path + "/a"),
        (files.rmdir, path + "/."),
        (files.unlink, path + "/a"),
        (files.stat, path + "/" + "n" * 256),
    ):
        theirs = {
            (files.mkdir, path): "EEXIST",
            (files.rmdir, path + "/."): "EINVAL",
            (files.stat, path + "/" + "n" * 256): "ENAMETOOLONG",
        }.get((call, *args), "ENOENT")
        assert outcome(call, *args) == theirs, args
    files.mkdir(path + "/a")
    assert code(files.rmdir, path) == errno.ENOTEMPTY
    assert files.stat(path).st_nlink == 3
    assert files.listdir(path) == ["a"]
    files.rmdir(path + "/a/")
    files.rmdir(path)
    assert code(files.stat, path) == errno.ENOENT


def test_files_stand_in_the_way(world: UnixWorld) -> None:
    path = world.path()
    world.touch(path)
    files = world.files
    assert stat.S_ISREG(files.stat(path).st_mode)
    assert outcome(files.stat, path + "/") == "ENOTDIR"
    assert outcome(files.stat, path + "/x") == "ENOTDIR"
    assert outcome(files.unlink, path + "/") == "ENOTDIR"
    assert outcome(files.rmdir, path) == "ENOTDIR"
    assert outcome(files.listdir, path) == "ENOTDIR"
    files.unlink(path)
    assert outcome(files.unlink, path) == "ENOENT"


def test_symbolic_links(world: UnixWorld) -> None:
    """connect follows links, bind does not."""
    files = world.files
    listener = world.listening()
    link, relative, loop, nowhere = (world.path() for _ in range(4))
    files.symlink(listener.getsockname(), link)
    files.symlink(os.path.basename(listener.getsockname()), relative)
    files.symlink(loop, loop)
    files.symlink(world.path(), nowhere)
    for path in (link, relative):
        client = world.make()
        client.connect(path)
        assert client.getpeername() == listener.getsockname()
        assert code(world.make().bind, path) == errno.EADDRINUSE
    assert outcome(world.make().connect, loop) == "ELOOP"
    assert outcome(world.make().connect, nowhere) == "ENOENT"
    assert code(world.make().bind, nowhere) == errno.EADDRINUSE
    assert outcome(files.symlink, "", world.path()) == "ENOENT"
    assert stat.S_ISLNK(os.lstat(link).st_mode if not world.ours else files.stat(link, follow_symlinks=False).st_mode)
    files.unlink(link)
    assert files.stat(listener.getsockname()).st_mode


def test_unlinked_sockets(world: UnixWorld) -> None:
    """An unlinked socket stays open and keeps its name, but nobody finds it; the path is free, a stale one is not."""
    listener = world.listening()
    path = listener.getsockname()
    early = world.make()
    early.connect(path)
    world.files.unlink(path)
    assert code(world.make().connect, path) == errno.ENOENT
    assert listener.getsockname() == path
    world.keep(listener.accept()[0])
    second = world.listening(path)
    listener.close()  # does not touch what is at its path now
    world.make().connect(path)
    second.close()
    assert stat.S_ISSOCK(world.files.stat(path).st_mode)
    assert code(world.make().connect, path) == errno.ECONNREFUSED
    assert code(world.make().bind, path) == errno.EADDRINUSE


def test_known_places(stack: Stack) -> None:
    """/tmp, /run and /var/run are there as on other systems, and have nothing to do with the host's."""
    assert {"tmp", "run", "var"} <= set(stack.files.listdir())
    assert stack.files.stat("/tmp").st_mode == stat.S_IFDIR | 0o1777
    with stack.socket.socket(stack.socket.AF_UNIX) as sock:
        sock.bind("/var/run/x.sock")
        assert stack.files.listdir("/run") == ["x.sock"]
        assert not Path("/run/x.sock").exists()


USER = Credentials.user(1000)
OTHER = Credentials.user(1001)


def connecting(stack: Stack, who: Credentials, path: str) -> Any:
    with stack.acting(who), stack.socket.socket(stack.socket.AF_UNIX) as client:
        client.setblocking(False)
        return outcome(client.connect, path)


def test_sec_05_permissions(stack: Stack) -> None:
    """To connect takes write permission on the socket, and search permission on its directories: EACCES else."""
    files = stack.files
    with stack.acting(USER), stack.socket.socket(stack.socket.AF_UNIX) as listener:
        files.mkdir("/tmp/d", 0o755)
        listener.bind("/tmp/d/s")
        listener.listen(9)
        assert files.stat("/tmp/d/s").st_uid == 1000
        for mode, others in ((0o777, None), (0o755, "EACCES"), (0o702, None), (0o770, "EACCES")):
            files.chmod("/tmp/d/s", mode)
            assert connecting(stack, OTHER, "/tmp/d/s") == others
            assert connecting(stack, USER, "/tmp/d/s") is None
        member = Credentials(2000, 2000, (1000,), capabilities=frozenset())
        assert connecting(stack, member, "/tmp/d/s") is None
        files.chmod("/tmp/d/s", 0o077)  # the owner's own bits count for the owner
        assert connecting(stack, USER, "/tmp/d/s") == "EACCES"
        files.chmod("/tmp/d/s", 0o777)
        files.chmod("/tmp/d", 0o754)
        assert connecting(stack, OTHER, "/tmp/d/s") == "EACCES"
        assert connecting(stack, Credentials(), "/tmp/d/s") is None  # CAP_DAC_OVERRIDE
        searcher = Credentials(5, 5, capabilities=frozenset({Capability.DAC_READ_SEARCH}))
        assert connecting(stack, searcher, "/tmp/d/s") is None


def test_sec_05_sending_datagrams_takes_permission_too(stack: Stack) -> None:
    """sendto to a path is checked as connect is."""
    module = stack.socket
    with module.socket(module.AF_UNIX, DGRAM) as receiver, module.socket(module.AF_UNIX, DGRAM) as sender:
        receiver.bind("/run/s")
        stack.files.chmod("/run/s", 0o700)
        with stack.acting(USER):
            assert code(sender.sendto, b"x", "/run/s") == errno.EACCES


def test_changing_paths_takes_permission(stack: Stack) -> None:
    """Others' directories EACCES, others' files in /tmp EPERM (the sticky bit), others' modes and owners EPERM."""
    files = stack.files
    with stack.acting(USER):
        assert code(files.mkdir, "/run/x") == errno.EACCES
        files.touch("/tmp/mine")
        files.mkdir("/tmp/open")
        files.chmod("/tmp/open", 0o777)
        files.touch("/tmp/open/mine")
    with stack.acting(OTHER):
        assert code(files.unlink, "/tmp/mine") == errno.EPERM
        assert code(files.chmod, "/tmp/mine", 0o777) == errno.EPERM
        assert code(files.chown, "/tmp/mine", 1001, -1) == errno.EPERM
        files.unlink("/tmp/open/mine")  # the directory's permission is enough
        assert code(files.rmdir, "/tmp/open") == errno.EPERM
    with stack.acting(USER):
        assert code(files.chown, "/tmp/mine", 1001, -1) == errno.EPERM  # not even to give away
        files.chown("/tmp/mine", -1, 1000)
        files.chmod("/tmp/open", 0o300)
        assert code(files.listdir, "/tmp/open") == errno.EACCES
    files.chown("/tmp/mine", 7, 8)
    assert files.stat("/tmp/mine")[3:] == (7, 8)
    assert files.umask(0o077) == 0o022
    files.touch("/tmp/private", 0o666)
    assert files.stat("/tmp/private").st_mode & 0o777 == 0o600


def test_groups_of_directories(stack: Stack) -> None:
    """What is made in a directory with the set-group-id bit belongs to its group."""
    stack.files.mkdir("/run/g", 0o775)
    stack.files.chown("/run/g", -1, 50)
    stack.files.chmod("/run/g", 0o2775)
    stack.files.touch("/run/g/x")
    assert stack.files.stat("/run/g/x").st_gid == 50


def test_makedirs(stack: Stack) -> None:
    stack.files.makedirs("/run/a/b/c")
    stack.files.makedirs("/run/a/b")
    stack.files.touch("/run/a/f")
    assert code(stack.files.makedirs, "/run/a/f/g") == errno.ENOTDIR
    assert stack.files.exists("/run/a/b/c")
    assert not stack.files.exists("/run/a/b/d")
