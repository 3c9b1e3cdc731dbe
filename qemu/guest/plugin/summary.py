"""What a whole run says of its guests before it begins."""

from __future__ import annotations

import functools
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from qemu.guest import accel
from qemu.guest.arch import FACTS
from qemu.guest.cache import cache_root
from qemu.guest.kernel import cache_entry
from qemu.guest.virtiofsd import why_not

if TYPE_CHECKING:
    from qemu.guest.plugin.settings import Settings
    from qemu.guest.share import Share

_VERSION_SECONDS: Final = 10.0


def header(settings: Settings) -> list[str]:
    """QEMU's version, the accelerator and why, the kernel. Never downloads or boots anything."""
    facts = FACTS[settings.arch]
    if shutil.which(facts.qemu) is None:
        return [f"guests: no {facts.qemu} on PATH: apt-get install {facts.qemu_package}"]
    verdict = accel.choose(facts.qemu, allow_kvm=settings.accel != "tcg", arch=settings.arch)
    other = f"{settings.arch} " if settings.arch != "x86_64" else ""
    first = f"{other}guests: QEMU {qemu_version(facts.qemu)}, {verdict}; kernel {_kernel(settings)}"
    return [first, *(_share(share) for share in settings.share)]


def _share(share: Share) -> str:
    """What can be said before a kernel is there; `Guest.shares` has the rest."""
    if share.how != "auto":
        return f"  {share.target} is {share.source} by {share.how}"
    lacking = why_not(writable=share.writable)
    return f"  {share.target} is {share.source} " + (f"without virtiofs: {lacking}" if lacking else "by virtiofs")


@functools.cache
def qemu_version(qemu: str = FACTS["x86_64"].qemu) -> str:
    try:
        done = subprocess.run(
            [qemu, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    words = done.stdout.split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"


def _kernel(settings: Settings) -> str:
    if settings.kernel is not None:
        return str(settings.kernel)
    cached = sorted((cache_root() / cache_entry(settings.arch, "cloud")).glob("boot/vmlinuz-*"))
    return cached[-1].name.removeprefix("vmlinuz-") if cached else "Debian's cloud kernel, downloaded when first used"
