"""What a whole run says of its guests before it begins."""

from __future__ import annotations

import functools
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from qemu.guest import accel
from qemu.guest.cache import cache_root
from qemu.guest.config import DEFAULT_QEMU

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.guest.plugin.settings import Settings

_VERSION_SECONDS: Final = 10.0


def header(settings: Settings) -> list[str]:
    """QEMU's version, the accelerator and why, the kernel. Never downloads or boots anything."""
    if shutil.which(DEFAULT_QEMU) is None:
        return [f"guests: no {DEFAULT_QEMU} on PATH: apt-get install qemu-system-x86"]
    verdict = accel.choose(DEFAULT_QEMU, allow_kvm=settings.accel != "tcg")
    return [f"guests: QEMU {qemu_version()}, {verdict}; kernel {_kernel(settings.kernel)}"]


@functools.cache
def qemu_version() -> str:
    try:
        done = subprocess.run(
            [DEFAULT_QEMU, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = done.stdout.split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"


def _kernel(chosen: Path | None) -> str:
    if chosen is not None:
        return str(chosen)
    cached = sorted(cache_root().glob("kernel-*/boot/vmlinuz-*"))
    return cached[-1].name.removeprefix("vmlinuz-") if cached else "Debian's cloud kernel, downloaded when first used"
