"""Which way a shared directory takes to the guest, and why; and what cannot be shared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qemu.guest.argv import NinePCard, QemuConfig, SocketName, VirtiofsCard, arguments
from qemu.guest.config import GuestConfig
from qemu.guest.errors import SetupError
from qemu.guest.share import Share, check_all, choose, parse_share, too_large

NONE = "there is no virtiofsd here"
NO_9P = "the kernel 1.2.3 has no 9p"


def way(share: Share, *, virtiofs: str = "", ninep: str = "") -> tuple[str, str]:
    planned = choose(share, virtiofs=virtiofs, ninep=ninep, memory_mib=256)
    return planned.way, planned.reason


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    return tmp_path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(65 << 20)
    return tmp_path


def test_virtiofs_goes_before_a_copy_before_9p(tree: Path, large: Path) -> None:
    small = tree / "small"
    small.mkdir()
    assert way(Share(small)) == ("virtiofs", "the directory itself")
    assert way(Share(small), virtiofs=NONE) == ("packed", NONE)
    assert way(Share(large), virtiofs=NONE)[0] == "9p"


def test_a_copy_too_large_for_the_guest_is_passed_over_and_said(large: Path) -> None:
    reason = f"{NONE}; a copy would take 65 MiB, more than a quarter of the guest's 256 MiB"
    assert way(Share(large), virtiofs=NONE) == ("9p", reason)
    assert too_large(Share(large), 1024) == ""


def test_what_is_to_be_written_into_is_never_a_copy(tree: Path) -> None:
    share = Share(tree, writable=True)
    assert way(share) == ("virtiofs", "the directory itself")
    assert way(share, virtiofs=NONE) == ("9p", f"{NONE}; what is written to a copy stays there")
    with pytest.raises(SetupError, match="writable: what the guest writes stays in its copy"):
        check_all((Share(tree, how="packed", writable=True),))


def test_without_any_way_every_reason_is_said(large: Path) -> None:
    with pytest.raises(SetupError, match=f"{NONE}; a copy would take 65 MiB, .*; {NO_9P}$"):
        way(Share(large), virtiofs=NONE, ninep=NO_9P)


@pytest.mark.parametrize(("how", "missing"), [("virtiofs", NONE), ("9p", NO_9P)])
def test_a_way_insisted_on_is_taken_or_refused(how: str, missing: str, tree: Path) -> None:
    share = parse_share(f"{tree}:/x:{how}")
    assert way(share) == (how, "asked for")
    with pytest.raises(SetupError, match=missing):
        way(share, virtiofs=NONE, ninep=NO_9P)
    assert way(Share(tree, how="packed"), virtiofs=NONE, ninep=NO_9P) == ("packed", "asked for")


def test_what_was_chosen_is_said(tree: Path) -> None:
    planned = choose(Share(tree, "/src"), virtiofs=NONE, ninep="", memory_mib=256)
    assert str(planned) == f"/src is {tree} by packed (a copy, read-only): {NONE}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Share(Path(), "/share")),
        (":/data", Share(Path(), "/data")),
        (":/data:rw", Share(Path(), "/data", "auto", True)),
        (":rw", Share(Path(), "/share", "auto", True)),
        (":/data:ro:9p", Share(Path(), "/data", "9p", False)),
        (":/data:virtiofs:rw", Share(Path(), "/data", "virtiofs", True)),
        (":/a b,c", Share(Path(), "/a b,c")),
    ],
)
def test_a_share_in_words(text: str, expected: Share, tree: Path) -> None:
    assert parse_share(f"{tree}{text}") == Share(tree, expected.target, expected.how, expected.writable)


def test_a_directory_with_colons_is_itself(tree: Path) -> None:
    odd = tree / "a:b" / "c:rw"
    odd.mkdir(parents=True)
    assert parse_share(str(odd)) == Share(odd)
    assert parse_share(f"{odd}:/x") == Share(odd, "/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/no/such/directory", "/no/such/directory: not a directory"),
        ("", "cannot share '': not a directory"),
        ("{}:x", "must be absolute"),
        ("{}:/", "and not '/'"),
        ("{}:/a/../..", "must be absolute"),
        ("{}/file", "not a directory"),
        ("{}:/x:packed:rw", "stays in its copy"),
    ],
)
def test_what_cannot_be_shared_is_named(text: str, message: str, tree: Path) -> None:
    with pytest.raises(SetupError, match=message):
        parse_share(text.format(tree))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_directory_that_may_not_be_read_or_written_is_named(tree: Path) -> None:
    closed = tree / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    with pytest.raises(SetupError, match="this user may not write to it"):
        check_all((Share(closed, writable=True),))
    closed.chmod(0)
    with pytest.raises(SetupError, match="this user may not read it"):
        check_all((Share(closed),))


def test_two_shares_at_one_place_are_refused(tree: Path) -> None:
    with pytest.raises(SetupError, match="two shares at /x/"):
        check_all((Share(tree, "/x"), Share(tree, "/x/")))


def test_a_mapping_is_the_short_form(tree: Path) -> None:
    assert GuestConfig(shares={"/src": str(tree)}).share_list == (Share(tree, "/src"),)
    assert GuestConfig(shares=(Share(tree, "/src", "9p"),)).share_list == (Share(tree, "/src", "9p"),)


def test_devices_on_the_command_line() -> None:
    config = QemuConfig(
        "qemu",
        Path("/boot/vmlinuz"),
        Path("/tmp/initrd"),
        virtiofs=(VirtiofsCard(SocketName("/run/fs"), "one"),),
        ninep=(NinePCard("two", Path("/a,b"), writable=False), NinePCard("three", Path("/c"), True, plugged=False)),
    )
    words = " ".join(arguments(config))
    assert "-chardev socket,id=chr-one,path=/run/fs -device vhost-user-fs-pci,chardev=chr-one,tag=one" in words
    two = "-fsdev local,id=two,path=/a,,b,security_model=none,multidevs=remap,readonly=on -device virtio-9p-pci,"
    assert two + "fsdev=two,mount_tag=two -fsdev local,id=three,path=/c,security_model=none,multidevs=remap -" in (
        words + " -"
    )
