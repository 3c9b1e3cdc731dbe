"""Decides whether KVM can be used, by really running guest code under it.

Theory of operation
-------------------
``/dev/kvm`` says little: it can be present, openable, create a machine and a processor, and still never run ordinary
guest code (broken nesting, paravirtual-only modules), or emulate every instruction. Whoever trusts it hangs for ever.
So a 64 KiB firmware image is run for at most two seconds, on the processor model the guests will get. It does what
every kernel does first: real mode, page tables, the switch to long mode; then a loop with memory accesses, long enough
to be possible only at a processor's own speed (a mere handful of instructions has been seen to succeed where no kernel
ever got to its first line). At last it writes to QEMU's ``isa-debug-exit`` port, which ends QEMU with a status nothing
else produces. The verdict and its reason are kept for the life of the process, and are meant to be shown.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu.guest.arch import Arch
from qemu.guest.argv import Accelerator

PROBE_SECONDS: Final = 2.0
_DEVICE: Final = Path("/dev/kvm")
_EXIT_PORT: Final = 0xF4
_EXIT_VALUE: Final = 0x2A
#: isa-debug-exit ends QEMU with (value << 1) | 1.
PROBE_STATUS: Final = _EXIT_VALUE << 1 | 1

_IMAGE_BYTES: Final = 65536  # mapped at 0xF0000; the processor starts 16 bytes below its end
#: Iterations of the probe's loop: milliseconds at a processor's own speed, most of a minute where a broken KVM
#: emulates instruction by instruction. (n * (n + 1) / 2 modulo 2**32 is what the code compares with.)
_LOOPS: Final = 20_000_000
_SUM: Final = _LOOPS * (_LOOPS + 1) // 2 & 0xFFFF_FFFF

#: Machine code, one instruction or group a line.
_CODE: Final = b"".join(
    (
        # 16-bit, at F000:0000.
        bytes.fromhex("fafc"),  # cli; cld
        bytes.fromhex("31c08ed8"),  # xor ax, ax; mov ds, ax
        # Identity map of the first 2 MiB: PML4 at 0x1000, PDPT at 0x2000, PD at 0x3000 with one large page.
        bytes.fromhex("66c706001003200000"),  # mov dword [0x1000], 0x2003
        bytes.fromhex("66c706002003300000"),  # mov dword [0x2000], 0x3003
        bytes.fromhex("66c706003083000000"),  # mov dword [0x3000], 0x83
        bytes.fromhex("2e660f0116a000"),  # lgdt cs:[0xa0]
        bytes.fromhex("66b8200000000f22e0"),  # mov eax, CR4.PAE; mov cr4, eax
        bytes.fromhex("66b8001000000f22d8"),  # mov eax, 0x1000; mov cr3, eax
        bytes.fromhex("66b9800000c00f32"),  # mov ecx, EFER; rdmsr
        bytes.fromhex("660d000100000f30"),  # or eax, EFER.LME; wrmsr
        bytes.fromhex("66b8110000800f22c0"),  # mov eax, CR0.PG|ET|PE; mov cr0, eax
        bytes.fromhex("66ea5b000f000800"),  # jmp 8:0xf005b
        # 64-bit.
        bytes.fromhex("b8100000008ed88ed0"),  # mov eax, 16; mov ds, eax; mov ss, eax
        bytes.fromhex("bc00700000"),  # mov esp, 0x7000
        bytes.fromhex("31c0b9") + _LOOPS.to_bytes(4, "little"),  # xor eax, eax; mov ecx, loops
        bytes.fromhex("01c8505be2fa"),  # 1: add eax, ecx; push rax; pop rbx; loop 1b
        bytes.fromhex("81fb") + _SUM.to_bytes(4, "little"),  # cmp ebx, sum
        bytes.fromhex("7504"),  # jne 2f
        bytes.fromhex("b02ae6f4"),  # mov al, 0x2a; out 0xf4, al
        bytes.fromhex("f4ebfd"),  # 2: hlt; jmp 2b
        bytes.fromhex("0f1f00"),  # padding
        # GDT at 0x88: null, 64-bit code, data; then its limit and address at 0xa0.
        bytes.fromhex("000000000000000000000000009b20000000000000930000"),
        bytes.fromhex("170088000f00"),
    )
)
_RESET: Final = bytes.fromhex("ea000000f0")  # jmp F000:0000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which accelerator to use, and why, in words for people."""

    accelerator: Accelerator
    reason: str

    def __str__(self) -> str:
        return f"{self.accelerator}: {self.reason}"


def choose(qemu: str, *, allow_kvm: bool = True, arch: Arch = "x86_64") -> Verdict:
    """KVM if it runs guest code, else TCG. The first call may take two seconds, later ones are answered from memory.

    The image that is run is x86-64's, so a guest of another architecture is always under TCG.
    """
    if not allow_kvm:
        return Verdict("tcg", "KVM was not asked for")
    if arch != "x86_64":
        return Verdict("tcg", f"KVM is used for x86-64 guests only, this one is {arch}")
    return _probe_kvm(qemu)


@functools.cache
def _probe_kvm(qemu: str) -> Verdict:
    if platform.machine() != "x86_64":
        return Verdict("tcg", f"the guests are x86-64, this machine is {platform.machine()}")
    if not _DEVICE.exists():
        return Verdict("tcg", "there is no /dev/kvm")
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return Verdict("tcg", "/dev/kvm may not be opened (group kvm?)")
    return judge(*run_probe(qemu, "kvm"))


def judge(status: int | None, output: str) -> Verdict:
    """The verdict from the probe's exit status (None: it did not end in time) and what QEMU said."""
    if status == PROBE_STATUS:
        return Verdict("kvm", "guest code ran under KVM")
    if status is None:
        return Verdict(
            "tcg", f"/dev/kvm opens but did not run guest code at a processor's speed (tried for {PROBE_SECONDS:g} s)"
        )
    said = [line.partition(": ")[2] or line for line in output.strip().splitlines() if "warning" not in line]
    return Verdict("tcg", f"KVM does not work here: {said[0] if said else f'QEMU ended with status {status}'}")


def run_probe(qemu: str, accelerator: Accelerator, seconds: float = PROBE_SECONDS) -> tuple[int | None, str]:
    """Run the probe image; (exit status or None if it had to be killed, what QEMU printed)."""
    cpu = "host" if accelerator == "kvm" else "qemu64"
    with tempfile.TemporaryDirectory(prefix="guestwire-probe-") as directory:
        image = Path(directory, "image")
        image.write_bytes(probe_image())
        command = [
            qemu,
            *("-machine", f"pc,accel={accelerator}", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-cpu", cpu, "-m", "16M"),
            *("-no-reboot", "-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=4", "-bios", str(image)),
        ]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                cwd=directory,  # a QEMU that aborts may dump core
            )
        except subprocess.TimeoutExpired:
            return None, ""
        except OSError as error:
            return 127, f"cannot run {qemu}: {error.strerror}"
        return done.returncode, done.stdout


def probe_image() -> bytes:
    return _CODE.ljust(_IMAGE_BYTES - 16, b"\xf4") + _RESET.ljust(16, b"\xf4")
