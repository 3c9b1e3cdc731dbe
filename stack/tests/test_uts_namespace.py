"""The UTS namespace, row by row (UTS-01..07, SEC-01)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from stack import Credentials, Network, Stack
from stack.credentials import Capability
from stack.errors import NetError
from stack.task import CLONE_NEWNET, CLONE_NEWUSER, CLONE_NEWUTS
from stack.testing.clock import ManualClock
from stack.uts_ns import FIELD_BYTES, UtsNamespace

ROOT = Credentials()
NOBODY = Credentials.user(65534)


@pytest.fixture
def node() -> Iterator[Stack]:
    with Network(clock=ManualClock()) as network:
        yield network.stack("node")


def errno_of(call: object, *args: object) -> str:
    import errno

    try:
        call(*args)  # type: ignore[operator]  # whatever is to be tried
    except (NetError, OSError) as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def test_uts_01_six_fields_of_65_bytes_padded_with_zeros() -> None:
    """There are six fields of 65 bytes, padded with zeros; names that nobody set are "(none)"."""
    name = UtsNamespace().name
    assert [len(each) for each in name] == [FIELD_BYTES] * 6
    assert name.sysname.rstrip(b"\0") == b"Linux"
    assert name.nodename.rstrip(b"\0") == name.domainname.rstrip(b"\0") == b"(none)"
    assert all(each.endswith(b"\0") for each in UtsNamespace("n" * 70).name)


def test_uts_02_a_clone_begins_with_the_values_and_goes_its_own_way(node: Stack) -> None:
    """unshare(CLONE_NEWUTS) copies the names, which then differ; without CAP_SYS_ADMIN it is EPERM."""
    first = node.uts
    node.sethostname("before")
    with node.acting():
        node.unshare(CLONE_NEWUTS)
        assert node.uts is not first
        assert node.uname().nodename == "before"
        node.sethostname("inner")
        assert node.socket.gethostname() == "inner"
    assert node.socket.gethostname() == "before"
    with node.acting(NOBODY):
        assert errno_of(node.unshare, CLONE_NEWUTS) == "EPERM"
        assert node.uts is first


# What Linux answered for each length, for both names.
LENGTHS = [(0, "ok"), (1, "ok"), (63, "ok"), (64, "ok"), (65, "EINVAL"), (66, "EINVAL"), (2**31 - 1, "EINVAL")]


@pytest.mark.parametrize("call", ["sethostname", "setdomainname"])
def test_uts_03_lengths_and_pointers(call: str) -> None:
    """0 to 64 bytes are taken, other lengths EINVAL, missing bytes EFAULT, none of a null pointer fine."""
    uts = UtsNamespace()
    setter = getattr(uts, call)
    assert [(n, errno_of(setter, b"x" * 80, n, ROOT)) for n, _ in LENGTHS] == LENGTHS
    assert errno_of(setter, b"x", -1, ROOT) == "EINVAL"
    assert errno_of(setter, None, 0, ROOT) == "ok"
    assert errno_of(setter, None, 5, ROOT) == "EFAULT"
    assert errno_of(setter, b"x", 5, ROOT) == "EFAULT"


@pytest.mark.parametrize(("name", "length"), [(b"x", 1), (b"x", 99), (None, 5)])
def test_uts_03_sec_01_eperm_comes_before_everything_else(name: bytes | None, length: int) -> None:
    """Without CAP_SYS_ADMIN it is EPERM, whatever else is wrong, and nothing changes."""
    uts = UtsNamespace("kept")
    assert errno_of(uts.sethostname, name, length, NOBODY) == "EPERM"
    assert errno_of(uts.setdomainname, name, length, NOBODY) == "EPERM"
    assert uts.nodename == "kept"


def test_uts_03_an_embedded_zero_is_kept_but_not_seen() -> None:
    """A zero in a name is kept, and the name is seen up to it."""
    uts = UtsNamespace()
    uts.sethostname(b"ab\0cd", 5, ROOT)
    assert uts.name.nodename.startswith(b"ab\0cd\0")
    assert uts.uname().nodename == uts.nodename == "ab"


def test_uts_03_only_sys_admin_in_the_owner_counts(node: Stack) -> None:
    """CAP_SYS_ADMIN counts in the user namespace that owns the names."""
    almost = Credentials(uid=5, capabilities=frozenset(Capability) - {Capability.SYS_ADMIN})
    with node.acting(almost):
        assert errno_of(node.sethostname, "x") == "EPERM"
        node.unshare(CLONE_NEWUSER)  # every capability there, none outside
        assert errno_of(node.sethostname, "x") == "EPERM"
        node.unshare(CLONE_NEWUTS)
        assert errno_of(node.sethostname, "mine") == "ok"
        assert node.uname().nodename == "mine"
    assert node.uname().nodename == "node"


def test_uts_04_the_socket_module_names_the_node_of_whoever_asks(node: Stack) -> None:
    """gethostname and name resolution know the host name of whoever asks."""
    node.socket.sethostname("tester")
    assert node.socket.gethostname() == "tester"
    assert node.socket.gethostbyname("tester") == node.socket.gethostbyname("node")
    with node.installed():
        import socket

        assert socket.gethostname() == "tester"


def test_uts_05_the_files_of_proc_sys_kernel() -> None:
    """The files are read with a line end, written up to one and to 64 bytes, and tell who watches them."""
    uts, told = UtsNamespace(), list[str]()
    uts.observers.append(lambda: told.append(uts.nodename))
    assert uts.read_proc("hostname") == b"(none)\n"
    assert uts.write_proc("hostname", b"viaproc\nrest", ROOT) == 12
    assert uts.read_proc("hostname") == b"viaproc\n"
    uts.write_proc("domainname", b"d" * 100, ROOT)
    assert uts.read_proc("domainname") == b"d" * 64 + b"\n"
    assert told == ["viaproc", "viaproc"]
    assert errno_of(uts.write_proc, "hostname", b"x", NOBODY) == "EPERM"
    assert errno_of(uts.write_proc, "osrelease", b"x", ROOT) == "EACCES"
    assert errno_of(uts.read_proc, "nothing") == "ENOENT"


def test_uts_06_setns_wants_the_right_type_and_sys_admin_on_both_sides(node: Stack) -> None:
    """setns is EINVAL for another type, EPERM without CAP_SYS_ADMIN in the owner and where the task is."""
    with node.acting() as task:
        node.unshare(CLONE_NEWUTS)
        other = task.uts
    assert errno_of(node.setns, other, CLONE_NEWNET) == "EINVAL"
    assert errno_of(node.setns, "no namespace") == "EINVAL"
    with node.acting(NOBODY):
        assert errno_of(node.setns, other) == "EPERM"
        node.unshare(CLONE_NEWUSER)
        assert errno_of(node.setns, other, CLONE_NEWUTS) == "EPERM"
    with node.acting():
        node.setns(other, CLONE_NEWUTS)
        assert node.uts is other


def test_uts_07_tasks_share_until_one_unshares(node: Stack) -> None:
    """Tasks share their names until one unshares."""
    with node.acting(), node.acting():
        node.sethostname("shared")
    assert node.uname().nodename == "shared"


def test_uts_07_readers_see_whole_names_whoever_writes(node: Stack) -> None:
    """Four writers, each with both names of one letter; readers never see letters mixed, nor half a name."""
    running = threading.Event()
    running.set()

    def write(letter: str) -> None:
        while running.is_set():
            node.sethostname(letter * 64)
            node.setdomainname(letter * 64)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    try:
        seen = {node.uname().nodename for _ in range(20_000)}
    finally:
        running.clear()
        for writer in writers:
            writer.join()
    assert seen <= {"node", *(letter * 64 for letter in "abcd")}
    assert {len(set(node.uname().nodename)), len(set(node.uname().domainname))} == {1}


def test_uts_07_setting_one_name_never_undoes_the_other(node: Stack) -> None:
    """Two writers, a name each, which counts upwards: nobody ever sees either go back."""
    lost: list[str] = []

    def write(call: Callable[[str], None]) -> None:
        seen = (0, 0)
        for number in range(1, 3000):
            call(str(number))
            names = node.uname()
            now = (int(names.nodename), int(names.domainname))
            if now[0] < seen[0] or now[1] < seen[1]:
                lost.append(f"{seen} became {now}")
            seen = now

    node.sethostname("0")
    node.setdomainname("0")
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writers = [threading.Thread(target=write, args=(call,)) for call in (node.sethostname, node.setdomainname)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    finally:
        sys.setswitchinterval(usual)
    assert lost == []
