"""The guest's first root: the agent as init, modules in load order, busybox, and what the user adds."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from qemu.guest.errors import MissingError, SetupError
from qemu.guest.image import AGENT_PATH, ImageContent, busybox_entry, find_busybox, write_image
from qemu.guest.initramfs import Initramfs
from qemu.guest.kernel import Kernel
from qemu.guest.share import Share

TRAILER = b"TRAILER!!!"


def names(archive: bytes) -> list[str]:
    """The paths in a newc archive, or in several one after another."""
    found, at = [], 0
    while at < len(archive):
        if archive[at : at + 6] != b"070701":
            at += 4
            continue
        size, length = int(archive[at + 54 : at + 62], 16), int(archive[at + 94 : at + 102], 16)
        found.append(archive[at + 110 : at + 109 + length].decode())
        at += (110 + length + 3) // 4 * 4 + (size + 3) // 4 * 4
    return found


def elf(machine: int) -> bytes:
    """A static program with nothing in it."""
    magic = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return struct.pack("<16sHHIQQQIHHHHHH", magic, 2, machine, 1, 0, 0, 0, 0, 64, 56, 0, 0, 0, 0)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel with every driver built in: no modules to pack."""
    return Kernel(tmp_path / "vmlinuz", None, "")


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "agent"
    path.write_bytes(b"agent")
    return path


def test_busybox_and_its_applets_furnish_the_root(kernel: Kernel, agent: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "initrd", kernel, agent, ImageContent())
    packed = names((tmp_path / "initrd").read_bytes())
    assert {AGENT_PATH[1:], "bin/busybox", "bin/sh", "etc/passwd", ".guestwire/udhcpc"} <= set(packed)
    assert packed[-1] == TRAILER.decode()


def test_another_architectures_busybox_makes_its_links_in_the_guest(
    kernel: Kernel, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be run here to be asked which applets it has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/no/such/directory")
    busybox = tmp_path / "guestwire" / busybox_entry("aarch64") / "bin/busybox"
    busybox.parent.mkdir(parents=True)
    busybox.write_bytes(elf(183))
    write_image(tmp_path / "initrd", kernel, agent, ImageContent("virt"))
    packed = names((tmp_path / "initrd").read_bytes())
    assert {"bin/busybox", ".guestwire/busybox", "sbin", "usr/sbin"} <= set(packed)
    assert "bin/sh" not in packed


def test_a_program_for_another_architecture_is_refused(kernel: Kernel, agent: Path, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(elf(183))
    content = ImageContent(programs=(str(tmp_path / "program"),))
    with pytest.raises(SetupError, match="program: it is for EM_AARCH64, the guest for EM_X86_64"):
        write_image(tmp_path / "initrd", kernel, agent, content)


def test_a_root_of_the_users_own_stays_and_ours_comes_on_top(kernel: Kernel, agent: Path, tmp_path: Path) -> None:
    root = Initramfs()
    root.add_bytes("/hello", b"odd")
    (tmp_path / "root").write_bytes(root.to_bytes() + b"\0")  # an odd length must be padded, or the rest is lost
    write_image(tmp_path / "initrd", kernel, agent, ImageContent(initrd=tmp_path / "root"))
    data = (tmp_path / "initrd").read_bytes()
    packed = names(data)
    assert packed.index("hello") < packed.index(AGENT_PATH[1:])
    assert "bin/busybox" not in packed
    assert data.find(b"070701", len(root.to_bytes())) % 4 == 0


def test_shares_are_copied_whole(kernel: Kernel, agent: Path, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("x")
    write_image(tmp_path / "initrd", kernel, agent, ImageContent(shares=(Share(tmp_path / "tree", "/data"),)))
    assert "data/sub/file" in names((tmp_path / "initrd").read_bytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ImageContent(programs=("no-such-program",)), "no such program on PATH"),
        (ImageContent(shares=(Share(Path("/no/such/tree")),)), "/no/such/tree: not a directory"),
        (ImageContent(initrd=Path("/no/such/initrd")), "cannot read the initrd /no/such/initrd"),
        (ImageContent(modules=("zram",)), "zram asked for, but .* has no modules directory"),
    ],
)
def test_what_cannot_be_packed_is_named(
    content: ImageContent, message: str, kernel: Kernel, agent: Path, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match=message):
        write_image(tmp_path / "initrd", kernel, agent, content)


def test_a_full_disk_is_named_with_the_place_and_the_remedy(kernel: Kernel, agent: Path) -> None:
    with pytest.raises(
        SetupError, match=r"root of .* MB cannot be written to /dev/full: No space left on device; .*TMPDIR"
    ):
        write_image(Path("/dev/full"), kernel, agent, ImageContent())


def test_missing_busybox_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/such/directory")
    with pytest.raises(MissingError, match="apt-get install busybox-static"):
        find_busybox()
