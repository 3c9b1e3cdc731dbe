"""A file that is a kernel is told from one that is not, and the private apt directory changes nothing else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from qemu.guest.cache import cached
from qemu.guest.kernel import KernelError, cache_entry, find_kernel, kernel_from_file


def bzimage(release: bytes) -> bytes:
    """The parts of a bzImage's setup header that tell what it is (boot protocol 2.0)."""
    head = bytearray(0x400)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    head[0x300 : 0x300 + len(release)] = release
    return bytes(head)


def test_a_bzimage_tells_its_release(tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage(b"6.1.0-99-cloud-amd64 (builder@host) #1 SMP\0"))
    assert kernel_from_file(image).release == "6.1.0-99-cloud-amd64"


def test_the_modules_beside_an_unpacked_kernel_are_found(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    modules = tmp_path / "lib/modules/1.2.3-test"
    modules.mkdir(parents=True)
    image = tmp_path / "boot/vmlinuz-1.2.3-test"
    image.write_bytes(bzimage(b"1.2.3-test #1\0"))
    assert kernel_from_file(image).modules_dir == modules


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\0" * 4096, b"MZ" + b"\0" * 600])
def test_a_file_that_is_no_kernel_is_named(content: bytes, tmp_path: Path) -> None:
    image = tmp_path / "notakernel"
    image.write_bytes(content)
    with pytest.raises(KernelError, match="notakernel is no kernel: expected an x86 bzImage or an ELF vmlinux"):
        kernel_from_file(image)


def vmlinux(machine: int, note: tuple[int, bytes]) -> bytes:
    """An ELF file with one note, and the kernel's banner."""
    kind, owner = note
    data = struct.pack("<III4sQ", 4, 8, kind, owner, 0x1000)
    ehdr = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    phdr = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(data), len(data), 4)
    return ehdr + phdr + data + b"\0Linux version 6.9.0-test (builder@host)\0"


def test_a_vmlinux_tells_its_release_and_finds_its_modules(tmp_path: Path) -> None:
    modules = tmp_path / "lib/modules/6.9.0-test"
    modules.mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    image = tmp_path / "boot/vmlinux"
    image.write_bytes(vmlinux(62, (18, b"Xen\0")))
    kernel = kernel_from_file(image)
    assert (kernel.release, kernel.modules_dir) == ("6.9.0-test", modules)


@pytest.mark.parametrize(
    ("machine", "note", "message"),
    [
        (62, (18, b"GNU\0"), "no PVH entry for QEMU to boot it at: build it with CONFIG_PVH=y, or pass a bzImage"),
        (62, (17, b"Xen\0"), "no PVH entry"),
        (183, (18, b"Xen\0"), "a vmlinux for EM_AARCH64, not for x86-64"),
    ],
)
def test_a_vmlinux_qemu_cannot_boot_is_named(
    machine: int, note: tuple[int, bytes], message: str, tmp_path: Path
) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux(machine, note))
    with pytest.raises(KernelError, match=message):
        kernel_from_file(tmp_path / "vmlinux")


def test_a_vmlinux_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux(62, (18, b"Xen\0"))[:70])
    with pytest.raises(KernelError, match="vmlinux is not a readable ELF file"):
        kernel_from_file(tmp_path / "vmlinux")


def arm64_image(release: bytes) -> bytes:
    return bytes(56) + b"ARM\x64" + bytes(100) + b"Linux version " + release + b" (builder@host)\0"


def test_an_arm64_image_tells_its_release(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(arm64_image(b"6.1.0-9-cloud-arm64"))
    assert kernel_from_file(tmp_path / "Image", arch="aarch64").release == "6.1.0-9-cloud-arm64"
    (tmp_path / "Image.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    assert kernel_from_file(tmp_path / "Image.gz", arch="aarch64").release == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bzimage(b"6.1.0"), "is no arm64 kernel: expected an Image"),
        (vmlinux(183, (3, b"GNU\0")), "a vmlinux, which QEMU boots on x86-64 only"),
        (b"MZ\0\0zimg" + bytes(100), r"under UEFI only \(zboot\)"),
        (b"", "is no arm64 kernel"),
    ],
)
def test_what_is_no_arm64_kernel_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(content)
    with pytest.raises(KernelError, match=message):
        kernel_from_file(tmp_path / "kernel", arch="aarch64")


def test_an_arm64_kernel_for_an_x86_guest_is_named(tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(arm64_image(b"6.1.0"))
    with pytest.raises(KernelError, match="is an arm64 kernel: it needs an aarch64 guest"):
        kernel_from_file(tmp_path / "Image")


def test_a_missing_kernel_and_missing_modules_are_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"cannot read the kernel .*nowhere: No such file"):
        kernel_from_file(tmp_path / "nowhere")
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage(b"1.2.3\0"))
    with pytest.raises(KernelError, match="no modules directory"):
        kernel_from_file(image, tmp_path / "nomodules")


def test_without_apt_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="--kernel FILE"):
        find_kernel()
    assert not (tmp_path / "guestwire" / cache_entry("x86_64", "cloud")).exists()
    with pytest.raises(KernelError, match=r"no apt-get here to fetch arm64 packages with; .*--kernel FILE"):
        find_kernel(arch="aarch64")


def test_a_cache_entry_is_whole_or_absent(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "half").touch()
        raise RuntimeError("cut short")

    with pytest.raises(RuntimeError, match="cut short"):
        cached("thing", fails, root=tmp_path)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []
    built = cached("thing", lambda d: (d / "whole").touch(), root=tmp_path)
    assert cached("thing", fails, root=tmp_path) == built
    assert (built / "whole").exists()
