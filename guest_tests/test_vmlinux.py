"""`--kernel` takes a vmlinux too: an ELF file that QEMU enters at its PVH note, as it does with Linux's own."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest, GuestConfig, GuestDiedError, GuestError, SetupError
from qemu.guest.kernel import Kernel, find_kernel

WORDS = b"entered through the note\n"
LOAD_ADDRESS = 0x100000
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


def vmlinux() -> bytes:
    """The smallest one: says WORDS on the first serial port and resets the machine.

    xen/include/public/elfnote.h: note 18 (XEN_ELFNOTE_PHYS32_ENTRY) of "Xen" holds the 32-bit entry point.
    """
    headers = _EHDR.size + 2 * _PHDR.size
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", LOAD_ADDRESS + headers + 24)
    code = b"\x66\xba\xf8\x03"  # mov dx, 0x3f8
    code += b"".join(b"\xb0" + bytes([byte]) + b"\xee" for byte in WORDS)  # mov al, byte; out dx, al
    code += b"\xb0\xfe\xe6\x64\xf4\xeb\xfd"  # mov al, 0xfe; out 0x64, al (reset); hlt; jmp back
    size = headers + len(note) + len(code)
    magic = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64-bit, little-endian
    return b"".join(
        (
            _EHDR.pack(magic, 2, 62, 1, LOAD_ADDRESS + headers + 24, _EHDR.size, 0, 0, 64, _PHDR.size, 2, 0, 0, 0),
            _PHDR.pack(1, 7, 0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4096),  # PT_LOAD
            _PHDR.pack(
                4, 4, headers, LOAD_ADDRESS + headers, LOAD_ADDRESS + headers, len(note), len(note), 4
            ),  # PT_NOTE
            note,
            code,
        )
    )


def test_a_vmlinux_is_entered_at_its_pvh_note(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux())
    with pytest.raises(GuestDiedError, match=rf"(?s)the console's last lines\n.*{WORDS.decode().strip()}"):
        Guest(kernel=tmp_path / "vmlinux", boot_timeout=SECONDS, kvm=False).start()


def unpacked(bzimage: Path) -> bytes:
    """The vmlinux that a bzImage has in it, XZ as Debian's general kernel has it (Documentation/arch/x86/boot.rst)."""
    data = bzimage.read_bytes()
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (data[0x1F1] + 1) * 512 + offset
    return lzma.LZMADecompressor().decompress(data[start : start + length])


@pytest.fixture(scope="module")
def general() -> Kernel:
    return find_kernel(flavour="general")


@pytest.mark.long
def test_linux_itself_as_vmlinux_with_its_modules_directory(general: Kernel, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(unpacked(general.image))
    with Guest(kernel=tmp_path / "vmlinux", modules_dir=general.modules_dir, timeout_scale=3) as guest:
        assert guest.run("uname -r").stdout.strip() == general.release
        assert guest.run(f"ping -c 1 -W 10 {guest.gateway}").succeeded
    with Guest(kernel=tmp_path / "vmlinux", modules_dir=general.modules_dir, template=True, timeout_scale=3) as guest:
        assert guest.run(f"ping -c 1 -W 10 {guest.gateway}").succeeded


@pytest.mark.long
def test_a_bzimage_with_its_modules_directory_and_one_of_them(general: Kernel) -> None:
    config = GuestConfig(kernel=general.image, modules_dir=general.modules_dir, modules=("9p",), timeout_scale=3)
    with Guest(config, net=False, vsock=False) as guest:
        assert "9p" in guest.read("/proc/filesystems")


@pytest.mark.long
def test_a_kernel_with_the_modules_of_another_says_which_could_not_be_loaded(general: Kernel) -> None:
    with pytest.raises(
        GuestError, match=r"cannot load module /.guestwire/modules.d/\S+: (Exec format|Invalid|No such)"
    ):
        Guest(kernel=general.image, modules_dir=find_kernel().modules_dir, timeout_scale=3).start()


def test_modules_of_a_kernel_without_a_directory_for_them_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux())
    with pytest.raises(SetupError, match=r"modules 9p asked for, but .*vmlinux has no modules directory"):
        Guest(kernel=tmp_path / "vmlinux", modules=("9p",)).start()
