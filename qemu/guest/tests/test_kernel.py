"""A file that is a kernel is told from one that is not, and the private apt directory changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu.guest import kernel as kernel_module
from qemu.guest.cache import cached
from qemu.guest.kernel import KernelError, find_kernel, kernel_from_file


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
    assert not (tmp_path / "guestwire" / kernel_module._ENTRY).exists()


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
