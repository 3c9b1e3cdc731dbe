"""Real systems on disks, made here from Debian's packages without root: for the long tests of disk images.

mmdebstrap unpacks and configures the packages in a user namespace (as root where this is root), into an archive;
fakeroot gives its files to their owners, and mke2fs puts them into a file system, straight at the place of its
partition. No loop device, no mount. An image is kept in the cache, complete or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu.guest.cache import cached
from qemu.guest.elf import read
from qemu.guest.modules_disk import find_tool

MIB: Final = 1 << 20
_SECONDS: Final = 1200
_SIZE: Final = 1536 * MIB
_SECTOR: Final = 512
#: As Debian's genericcloud images lie: the root is partition 1 at the end, the EFI system partition is number 15.
_EFI_MIB, _ROOT_MIB = 2, 64
#: Type of an x86-64 root (UAPI group's Discoverable Partitions Specification), and of an EFI system partition.
_ROOT_TYPE: Final = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
_EFI_TYPE: Final = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
ROOT_PARTUUID: Final = "0f3cd7ae-2b1e-4b6c-9d0a-6a7b8c9d0e1f"
_EFI_PARTUUID: Final = "1f3cd7ae-2b1e-4b6c-9d0a-6a7b8c9d0e2f"
_FSTAB: Final = f"""\
PARTUUID={ROOT_PARTUUID} / ext4 rw,errors=remount-ro 0 1
PARTUUID={_EFI_PARTUUID} /boot/efi vfat umask=0077 0 0
"""
ROOT_UUID: Final = "6d0f6b1e-70a4-4f7a-8e5a-3c1d2b4a5f60"
_BASE: Final = ("systemd", "systemd-sysv", "udev", "kmod", "iproute2", "openssh-server")
_PRUNED: Final = ("man", "doc", "locale", "info")
#: systemd-ssh-proxy and what it is linked with, for a host that has an older systemd.
PROXY: Final = "usr/lib/systemd/systemd-ssh-proxy"
_LIBRARIES: Final = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd")
LOADER: Final = "usr/lib64/ld-linux-x86-64.so.2"


@dataclass(frozen=True, slots=True)
class Recipe:
    suite: str
    packages: tuple[str, ...]
    files: tuple[tuple[str, str], ...]  #: (path, content) written at the end
    partitioned: bool
    proxy: bool = False

    @property
    def entry(self) -> str:
        digest = hashlib.sha256(f"{self!r} {_SIZE} 2".encode()).hexdigest()
        return f"image-{self.suite}-{digest[:12]}"


#: systemd 257 on a whole disk: nothing on it knows of us, of a network, or of a user who may log in.
TRIXIE: Final = Recipe("trixie", _BASE, (("etc/hostname", "trixie\n"),), partitioned=False, proxy=True)
#: systemd 252 and cloud-init 22.4 on a partitioned disk, mounted as Debian's genericcloud images are.
BOOKWORM: Final = Recipe(
    "bookworm",
    (*_BASE, "e2fsprogs", "cloud-init", "ifupdown", "isc-dhcp-client"),
    (("etc/fstab", _FSTAB),),
    partitioned=True,
)


def debian_image(recipe: Recipe) -> Path:
    """The directory with `disk.qcow2`; a few minutes the first time. Raises MissingError naming a tool's package."""
    return cached(recipe.entry, lambda entry: _build(entry, recipe), wait=2 * _SECONDS)


def _build(entry: Path, recipe: Recipe) -> None:
    tools = (("mmdebstrap", "mmdebstrap"), ("fakeroot", "fakeroot"), ("qemu-img", "qemu-utils"))
    mmdebstrap, fakeroot, qemu_img = (find_tool(name, package) for name, package in tools)
    mke2fs = find_tool("mke2fs", "e2fsprogs")
    archive, raw = entry / "root.tar", entry / "disk.raw"
    hooks = ['rm -f "$1"/etc/resolv.conf', 'mkdir -p "$1"/boot/efi']
    hooks += [f"printf '%s' '{text}' > \"$1\"/{path}" for path, text in recipe.files]
    if recipe.packages.count("cloud-init"):
        hooks.append('rm -f "$1"/etc/ssh/ssh_host_*')  # it makes each instance's own
    _run(
        [
            *(mmdebstrap, "--quiet", "--format=tar", "--variant=apt", f"--include={','.join(recipe.packages)}"),
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _PRUNED),
            '--aptopt=Acquire::Languages "none"',
            *(f"--customize-hook={hook}" for hook in hooks),
            *(recipe.suite, str(archive)),
        ]
    )
    with raw.open("wb") as file:
        file.truncate(_SIZE)
    offset = _ROOT_MIB * MIB if recipe.partitioned else 0
    if recipe.partitioned:
        _partition(raw)
    root = entry / "root"
    words = f"-q -F -t ext4 -L root -U {ROOT_UUID} -E offset={offset} -d {root} {raw} {(_SIZE - offset - MIB) >> 10}k"
    # In one fakeroot, which knows only there whom the files belong to.
    _run([fakeroot, "sh", "-ec", f"mkdir {root}; tar -C {root} -xf {archive}; {mke2fs} {words}"])
    if recipe.proxy:
        _take_proxy(root, entry / "proxy")
    _run(["chmod", "-R", "u+rwX", str(root)])
    shutil.rmtree(root)
    archive.unlink()
    _run([qemu_img, "convert", "-O", "qcow2", str(raw), str(entry / "disk.qcow2")])
    raw.unlink()


def _partition(raw: Path) -> None:
    sector = MIB // _SECTOR
    table = (
        "label: gpt\n"
        f"1 : start={_ROOT_MIB * sector}, size={_SIZE // _SECTOR - (_ROOT_MIB + 1) * sector}, type={_ROOT_TYPE}, "
        f"uuid={ROOT_PARTUUID.upper()}, name=root\n"
        f"15 : start={_EFI_MIB * sector}, size={(_ROOT_MIB - _EFI_MIB) * sector}, type={_EFI_TYPE}, "
        f"uuid={_EFI_PARTUUID.upper()}, name=efi\n"
    )
    _run([find_tool("sfdisk", "fdisk"), "-q", "--no-reread", "--no-tell-kernel", str(raw)], table)
    kilobytes = (_ROOT_MIB - _EFI_MIB) * 1024
    fat = [find_tool("mkfs.vfat", "dosfstools"), "-F", "16", f"--offset={_EFI_MIB * sector}", str(raw), str(kilobytes)]
    _run(fat)


def _take_proxy(root: Path, where: Path) -> None:
    """Copy systemd-ssh-proxy out of `root`, with its libraries, all into one directory."""
    where.mkdir()
    left, seen = [root / PROXY, root / LOADER], set[str]()
    while left:
        path = left.pop()
        shutil.copyfile(path.resolve(), where / path.name)
        (where / path.name).chmod(0o755)
        for name in read(path).needed:
            found = next((root / d / name for d in _LIBRARIES if (root / d / name).exists()), None)
            if found is not None and name not in seen:
                seen.add(name)
                left.append(found)


def proxy_command(image: Path) -> str:
    """The words of ssh's ProxyCommand before %h and %p."""
    where = image / "proxy"
    return f"{where}/{Path(LOADER).name} --library-path {where} {where}/{Path(PROXY).name}"


def _run(command: Sequence[str], text: str = "") -> None:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
