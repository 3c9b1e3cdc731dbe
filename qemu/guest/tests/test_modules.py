"""Modules come in an order in which every one finds what it needs; what is missing is named with who needs it."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from qemu.guest.modules import ModuleError, ModuleTree


def make_module(directory: Path, name: str, depends: str) -> Path:
    """An object file with the .modinfo section that modpost would give it."""
    path = directory / f"{name}.ko"
    source = f'.section .modinfo,"a"\n.string "license=GPL"\n.string "depends={depends}"\n'
    subprocess.run(["gcc", "-c", "-x", "assembler", "-o", path, "-"], input=source.encode(), check=True)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    make_module(kernel, "virtio", "")
    make_module(kernel, "virtio_ring", "virtio")
    make_module(kernel, "virtio-net", "virtio_ring,failover")
    make_module(kernel, "failover", "")
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.name.split(".")[0] for path in paths]


def test_dependencies_come_before_their_users(tree: Path) -> None:
    assert names(ModuleTree(tree).resolve(["virtio_net"])) == [
        "virtio",
        "virtio_ring",
        "failover",
        "virtio-net",
    ]


def test_dashes_and_underscores_are_the_same(tree: Path) -> None:
    assert ModuleTree(tree).resolve(["virtio-net"]) == ModuleTree(tree).resolve(["virtio_net"])


def test_a_module_wanted_twice_is_loaded_once(tree: Path) -> None:
    assert names(ModuleTree(tree).resolve(["failover", "virtio_net", "virtio"])).count("virtio") == 1


def test_built_in_modules_are_left_out(tree: Path) -> None:
    (tree / "kernel/failover.ko").unlink()
    (tree / "modules.builtin").write_text("kernel/net/core/failover.ko\n")
    assert names(ModuleTree(tree).resolve(["virtio_net"])) == ["virtio", "virtio_ring", "virtio-net"]


def test_a_missing_dependency_names_the_module_and_its_user(tree: Path) -> None:
    (tree / "kernel/failover.ko").unlink()
    with pytest.raises(ModuleError, match="kernel module failover, which virtio_net depends on, is neither"):
        ModuleTree(tree).resolve(["virtio_net"])


def test_a_circle_is_an_error_and_not_a_hang(tree: Path) -> None:
    make_module(tree / "kernel", "failover", "virtio_net")
    with pytest.raises(ModuleError, match="virtio_net -> failover -> virtio_net"):
        ModuleTree(tree).resolve(["virtio_net"])


def test_a_file_that_is_no_module_is_named(tree: Path) -> None:
    (tree / "kernel/failover.ko").write_bytes(b"not an ELF file")
    with pytest.raises(ModuleError, match=r"failover\.ko is not a readable kernel module"):
        ModuleTree(tree).resolve(["virtio_net"])


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_compressed_modules_are_read(suffix: str, tree: Path) -> None:
    plain = tree / "kernel/virtio-net.ko"
    data = plain.read_bytes()
    plain.unlink()
    packed = plain.with_name(plain.name + suffix)
    if suffix == ".zst":
        if shutil.which("zstd") is None:
            packed.write_bytes(data)
            with pytest.raises(ModuleError, match="install the package 'zstd'"):
                ModuleTree(tree).resolve(["virtio_net"])
            return
        subprocess.run(["zstd", "-q", "-o", packed], input=data, check=True)
    else:
        packed.write_bytes(lzma.compress(data) if suffix == ".xz" else gzip.compress(data))
    modules = ModuleTree(tree)
    assert modules.resolve(["virtio_net"])[-1] == packed
    assert modules.read(packed) == data
