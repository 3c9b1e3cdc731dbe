"""`--kernel` takes a vmlinux too: an ELF file that QEMU enters at its PVH note, as it does with Linux's own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest, GuestDiedError

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
