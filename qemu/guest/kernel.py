"""Finds a kernel to boot: Debian's, fetched into the cache (debs.py), or any kernel file the user names."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from qemu.guest.arch import FACTS, Arch
from qemu.guest.cache import cached
from qemu.guest.debs import Debs, Say
from qemu.guest.errors import MissingError

#: "cloud" is small and soon up; "general" has next to every driver and file system, 9p among them.
Flavour = Literal["cloud", "general"]

_IMAGE_PATTERN: Final = r"linux-image-(?:unsigned-)?\d\S+"
_BANNER: Final = b"Linux version "
_BANNER_BYTES: Final = 256
#: Where an arm64 Image has its magic (kernel: Documentation/arm64/booting.rst), and an EFI one that unpacks itself.
_ARM64_MAGIC: Final = (56, b"ARM\x64")
_ZBOOT_MAGIC: Final = (4, b"zimg")
#: xen/include/public/elfnote.h: XEN_ELFNOTE_PHYS32_ENTRY
_PVH_NOTE: Final = 18


class KernelError(RuntimeError):
    """There is no kernel to boot, or a file is none; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What QEMU's ``-kernel`` takes, and the modules that belong to it."""

    image: Path
    modules_dir: Path | None  #: a lib/modules/RELEASE directory; None: everything needed must be built in
    release: str  #: e.g. "6.1.0-40-cloud-amd64"; "" if the image does not tell


def cache_entry(arch: Arch, flavour: Flavour) -> str:
    """The name of the cache entry of that kernel."""
    return f"kernel-{FACTS[arch].debian}" + ("" if flavour == "cloud" else f"-{flavour}")


def find_kernel(*, arch: Arch = "x86_64", flavour: Flavour = "cloud", say: Say = lambda _: None) -> Kernel:
    """The cached distribution kernel, downloaded and unpacked first if it is not there (20 to 70 MB, once).

    `say` gets a line for each step that takes a while. Raises KernelError.
    """
    entry = cached(cache_entry(arch, flavour), lambda directory: _fetch(directory, arch, flavour, say))
    images = sorted(entry.glob("boot/vmlinuz-*"))
    if not images:
        raise KernelError(f"the cached kernel in {entry} is damaged: remove that directory and try again")
    release = images[-1].name.removeprefix("vmlinuz-")
    for modules in (entry / "lib/modules" / release, entry / "usr/lib/modules" / release):
        if modules.is_dir():
            return Kernel(images[-1], modules, release)
    raise KernelError(f"the cached kernel in {entry} has no modules: remove that directory and try again")


def kernel_from_file(image: Path, modules_dir: Path | None = None, *, arch: Arch = "x86_64") -> Kernel:
    """A kernel the user names: for x86-64 a bzImage or a vmlinux with a PVH entry, for aarch64 an Image.

    Without `modules_dir`, the modules of that release are used if this machine has them installed, or if they are
    beside it as in an unpacked package; otherwise the drivers must be built in. Raises KernelError if `image` is
    missing or no kernel that QEMU can boot.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x10000)
    except OSError as error:
        raise KernelError(f"cannot read the kernel {image}: {error.strerror}") from error
    release = _x86_release(image, head) if arch == "x86_64" else _arm64_release(image, head)
    if modules_dir is None and release:
        installed = Path("/lib/modules") / release
        beside = image.parent.parent / "lib/modules" / release
        modules_dir = next((d for d in (installed, beside) if d.is_dir()), None)
    if modules_dir is not None and not modules_dir.is_dir():
        raise KernelError(f"no modules directory {modules_dir}")
    return Kernel(image, modules_dir, release)


def _x86_release(image: Path, head: bytes) -> str:
    if head[:4] == b"\x7fELF":
        _check_vmlinux(image)
        return _banner_release(image)
    if head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS":
        return _bzimage_release(head)
    if _has(head, _ARM64_MAGIC):
        raise KernelError(f"{image} is an arm64 kernel: it needs an aarch64 guest (arch)")
    raise KernelError(f"{image} is no kernel: expected an x86 bzImage or an ELF vmlinux")


def _arm64_release(image: Path, head: bytes) -> str:
    if _has(head, _ARM64_MAGIC):
        return _banner_release(image)
    if head[:2] == b"\x1f\x8b":  # Image.gz, which QEMU unpacks
        return ""
    if _has(head, _ZBOOT_MAGIC):
        raise KernelError(f"{image} unpacks itself under UEFI only (zboot): pass the Image it was made from")
    if head[:4] == b"\x7fELF":
        raise KernelError(f"{image} is a vmlinux, which QEMU boots on x86-64 only: pass arch/arm64/boot/Image")
    raise KernelError(f"{image} is no arm64 kernel: expected an Image or Image.gz")


def _has(head: bytes, magic: tuple[int, bytes]) -> bool:
    at, text = magic
    return head[at : at + len(text)] == text


def _check_vmlinux(image: Path) -> None:
    """Raises KernelError unless it is x86-64's and has the entry that QEMU uses (CONFIG_PVH)."""
    try:
        with image.open("rb") as file:
            elf = ELFFile(file)
            if elf["e_machine"] != "EM_X86_64":
                raise KernelError(f"{image} is a vmlinux for {elf['e_machine']}, not for x86-64")
            notes = [segment.data() for segment in elf.iter_segments() if segment["p_type"] == "PT_NOTE"]
    except (ELFError, ValueError, OverflowError) as error:
        raise KernelError(f"{image} is not a readable ELF file: {error}") from error
    if not any(_has_pvh_entry(data) for data in notes):
        raise KernelError(
            f"{image} has no PVH entry for QEMU to boot it at: build it with CONFIG_PVH=y, or pass a bzImage"
        )


def _has_pvh_entry(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_bytes, data_bytes, kind = (int.from_bytes(notes[at + i : at + i + 4], "little") for i in (0, 4, 8))
        name = notes[at + 12 : at + 12 + name_bytes]
        if kind == _PVH_NOTE and name == b"Xen\0":
            return True
        at += 12 + (name_bytes + 3) // 4 * 4 + (data_bytes + 3) // 4 * 4
    return False


def _bzimage_release(head: bytes) -> str:
    """The version string that the setup header points to (kernel: Documentation/arch/x86/boot.rst, kernel_version)."""
    offset = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    words = head[offset : offset + 256].split(b"\0", 1)[0].split()
    return words[0].decode(errors="replace") if words else ""


def _banner_release(image: Path) -> str:
    """The first word after "Linux version" in a kernel that is not compressed; "" if there is none."""
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_BANNER)
        words = data[at + len(_BANNER) : at + _BANNER_BYTES].split() if at >= 0 else []
    return words[0].decode(errors="replace") if words and b"%" not in words[0] else ""


def _fetch(directory: Path, arch: Arch, flavour: Flavour, say: Say) -> None:
    facts = FACTS[arch]
    try:
        with Debs(directory, facts.debian, say) as debs:
            package = debs.dependency(facts.kernel_packages[flavour], _IMAGE_PATTERN)
            # Ubuntu splits the modules off into a package of their own.
            modules = package.replace("linux-image-", "linux-modules-", 1)
            debs.unpack([package, modules] if debs.known(modules) else [package])
    except MissingError as error:
        raise KernelError(f"{error}; or pass a kernel of your own with --kernel FILE") from error
    if not list(directory.glob("boot/vmlinuz-*")):
        raise KernelError(f"the package {package} has no kernel image in it")
