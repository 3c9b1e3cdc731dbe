"""An initramfs is what cpio(1), the other implementation of the format, unpacks to the same content."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from qemu.guest.initramfs import Initramfs, InitramfsError


def unpacked(archive: Initramfs, into: Path) -> Path:
    into.mkdir()
    file = into.with_suffix(".cpio")
    archive.write(file)
    with file.open("rb") as stdin:
        subprocess.run(["cpio", "-idm", "--quiet", "--no-absolute-filenames"], stdin=stdin, cwd=into, check=True)
    return into


def test_files_directories_and_links_survive_the_round_trip(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"x" * 5001)
    archive = Initramfs()
    archive.add_bytes("/etc/motd", b"hello\n", mode=0o600)
    archive.add_file("/bin/program", tmp_path / "program", mode=0o755)
    archive.add_symlink("/bin/alias", "program")
    archive.add_directory("/tmp", mode=0o1777)
    root = unpacked(archive, tmp_path / "root")
    assert (root / "etc/motd").read_bytes() == b"hello\n"
    assert stat.S_IMODE((root / "etc/motd").stat().st_mode) == 0o600
    assert (root / "bin/alias").read_bytes() == b"x" * 5001
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777


def test_parents_are_made_and_come_first(tmp_path: Path) -> None:
    archive = Initramfs()
    archive.add_bytes("/a/b/c/d", b"deep")
    listing = subprocess.run(["cpio", "-it", "--quiet"], input=archive.to_bytes(), capture_output=True, check=True)
    assert listing.stdout.decode().split() == ["a", "a/b", "a/b/c", "a/b/c/d"]


def test_the_same_content_gives_the_same_bytes() -> None:
    one, other = Initramfs(), Initramfs()
    one.add_bytes("/x", b"1")
    one.add_bytes("/y", b"2")
    other.add_bytes("/y", b"2")
    other.add_bytes("/x", b"1")
    assert one.to_bytes() == other.to_bytes()
    assert one.digest() == other.digest()


def test_a_tree_keeps_its_shape_and_leaves_out_special_files(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("content")
    (source / "link").symlink_to("sub/file")
    (source / "empty").mkdir()
    archive = Initramfs()
    archive.add_tree("/mnt/tree", source)
    root = unpacked(archive, tmp_path / "root")
    assert (root / "mnt/tree/link").read_text() == "content"
    assert (root / "mnt/tree/empty").is_dir()


def test_a_dynamic_program_runs_from_the_packed_root_alone(tmp_path: Path) -> None:
    program = shutil.which("ls")
    assert program is not None
    archive = Initramfs()
    archive.add_program("ls")
    root = unpacked(archive, tmp_path / "root")
    # The packed interpreter, told to look nowhere but in the packed directories, starts the packed program.
    interpreter = next(root.glob("lib64/ld-linux*"), None) or next(root.glob("lib/ld-linux*"))
    libraries = ":".join(str(d) for d in sorted(root.rglob("*")) if d.is_dir())
    done = subprocess.run(
        [
            str(interpreter),
            "--inhibit-cache",
            "--library-path",
            libraries,
            str(root / program.lstrip("/")),
            str(root),
        ],
        capture_output=True,
        check=True,
    )
    assert b"lib" in done.stdout


def test_a_script_brings_its_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env sh\necho hi\n")
    script.chmod(0o755)
    archive = Initramfs()
    archive.add_program(script, "/bin/script")
    assert "/usr/bin/env" in archive
    assert any(path.endswith("/sh") for path in archive.paths)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda a, t: a.add_file("/x", t / "missing"), "No such file"),
        (lambda a, t: a.add_file("/x", t), "not a regular file"),
        (lambda a, t: a.add_program("no-such-program-anywhere"), "no such program on PATH"),
        (lambda a, t: a.add_bytes("/a/../b", b""), r"may not contain '\.\.'"),
        (lambda a, t: a.add_tree("/x", t / "missing"), "not a directory"),
    ],
)
def test_what_cannot_be_packed_is_named(add: object, message: str, tmp_path: Path) -> None:
    assert callable(add)
    with pytest.raises(InitramfsError, match=message):
        add(Initramfs(), tmp_path)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "vanishing"
    source.write_bytes(b"x")
    archive = Initramfs()
    archive.add_file("/x", source)
    source.unlink()
    with pytest.raises(FileNotFoundError):
        archive.write(tmp_path / "out.cpio")
    assert list(tmp_path.iterdir()) == []
