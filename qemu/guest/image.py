"""Builds the initramfs a guest boots from: agent, kernel modules in load order, busybox, and what users add."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu.guest.arch import FACTS, Arch, Machine, arch_of_machine
from qemu.guest.cache import cached
from qemu.guest.debs import Debs, Say
from qemu.guest.errors import MissingError, SetupError
from qemu.guest.initramfs import Initramfs, InitramfsError
from qemu.guest.kernel import Kernel
from qemu.guest.modules import ModuleError, ModuleTree
from qemu.guest.share import Share

#: Everything of ours in the guest is below this, out of the way of a user's own root.
HOME: Final = "/.guestwire"
AGENT_PATH: Final = f"{HOME}/agent"
MODULES_FILE: Final = f"{HOME}/modules"
UDHCPC_SCRIPT: Final = f"{HOME}/udhcpc"
#: Names a busybox that is to make its links when the guest starts.
INSTALL_FILE: Final = f"{HOME}/busybox"

_DEVICE_MODULES: Final = ("virtio_console", "virtio_net", "vmw_vsock_virtio_transport")
_TRANSPORT_MODULES: Final = {"q35": "virtio_pci", "pc": "virtio_pci", "microvm": "virtio_mmio", "virt": "virtio_pci"}
#: File systems a disk's root may be (agent/root.c knows them by their magic), and what they ask for at run time.
_FILE_SYSTEMS: Final = {
    "ext4": ("crc32c_generic",),
    "xfs": ("crc32c_generic",),
    "btrfs": ("crc32c_generic",),
    "squashfs": (),
    "erofs": (),
}
#: cpio "newc" with and without checksums; gzip, xz, zstd, lz4 (legacy), bzip2, lzma, lzo.
_ARCHIVES: Final = (
    *(b"070701", b"070702", b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),
    *(b"\x02\x21\x4c\x18", b"BZh", b"\x5d\0\0", b"\x89LZO"),
)
_BUSYBOX_SECONDS: Final = 10

#: udhcpc calls this with the lease in its environment (busybox examples/udhcp/simple.script says which names).
_UDHCPC: Final = """\
#!/bin/sh
case "$1" in
deconfig) ip addr flush dev "$interface"; ip link set "$interface" up ;;
bound|renew)
    ip addr flush dev "$interface"
    [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
    ip addr add "$ip/$mask" dev "$interface"
    for gateway in $router; do ip route add default via "$gateway" dev "$interface"; done
    : > /etc/resolv.conf
    [ -n "$domain" ] && echo "search $domain" >> /etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
    echo "lease ip=$ip prefix=$mask router=$router dns=$dns mtu=$mtu seconds=$lease server=$serverid" ;;
esac
"""

_ETC: Final = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost guest\n::1 localhost\n",
    "/etc/resolv.conf": "",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/services": "http 80/tcp\nhttps 443/tcp\ndomain 53/udp\ndomain 53/tcp\n",
}


@dataclass(frozen=True, slots=True)
class ImageContent:
    """What goes into a guest's first root besides the agent."""

    machine: Machine = "q35"
    modules: tuple[str, ...] = ()  #: further kernel modules to load, by name
    programs: tuple[str, ...] = ()  #: host programs, packed with their libraries
    shares: tuple[Share, ...] = ()  #: those to be copied
    initrd: Path | None = None  #: the user's own root: nothing but the agent, modules and shares is put on top
    disk: bool = False  #: the root proper is on a disk: what it takes to mount it


def write_image(path: Path, kernel: Kernel, agent: Path, content: ImageContent, say: Say = lambda _: None) -> None:
    """Write the archive to `path`; `say` gets a line for each step that takes a while.

    Raises SetupError naming what cannot be packed and the remedy.
    """
    arch = arch_of_machine(content.machine)
    image = Initramfs(FACTS[arch].elf)
    try:
        image.add_file(AGENT_PATH, agent, mode=0o755)
        if content.initrd is None:
            _add_busybox(image, arch, say)
        _add_modules(image, kernel, content)
        for program in content.programs:
            image.add_program(program)
        for share in content.shares:
            image.add_tree(share.target, share.source)
        data = image.to_bytes()
    except (InitramfsError, ModuleError) as error:
        raise SetupError(str(error)) from error
    except OSError as error:
        raise SetupError(f"cannot pack the guest's root: {error}") from error
    # The kernel unpacks archives one after another; each starts at a multiple of four (buffer-format.rst).
    first = b"" if content.initrd is None else _padded(_read_initrd(content.initrd))
    try:
        with path.open("wb") as out:
            out.write(first)
            out.write(data)
    except OSError as error:
        raise SetupError(
            f"the guest's root of {(len(first) + len(data)) / 1e6:.1f} MB cannot be written to {path}: "
            f"{error.strerror}; make room there, or name another place with TMPDIR"
        ) from error


def is_archive(path: Path) -> bool:
    """Whether it begins as an initramfs does, packed or not (kernel: init/initramfs.c, lib/decompress.c).

    Raises SetupError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise SetupError(f"cannot read the image {path}: {error.strerror}") from error
    return head.startswith(_ARCHIVES)


def find_busybox(arch: Arch = "x86_64", say: Say = lambda _: None) -> Path:
    """A statically linked busybox: the host's, or Debian's of another architecture in the cache, downloaded once.

    Raises MissingError.
    """
    if arch != "x86_64":
        return cached(busybox_entry(arch), lambda directory: _fetch_busybox(directory, arch, say)) / "bin/busybox"
    found = shutil.which("busybox")
    if found is None:
        raise MissingError("no busybox to furnish the guest with: apt-get install busybox-static")
    return Path(found)


def busybox_entry(arch: Arch) -> str:
    """The name of the cache entry of that architecture's busybox."""
    return f"busybox-{FACTS[arch].debian}"


def _fetch_busybox(directory: Path, arch: Arch, say: Say) -> None:
    try:
        with Debs(directory, FACTS[arch].debian, say) as debs:
            debs.unpack(["busybox-static"])
    except MissingError as error:
        raise MissingError(f"{error}; or give the guest a root of your own (initrd)") from error
    if not (directory / "bin/busybox").is_file():
        # Where /bin and /usr/bin are one, packages hold the latter.
        (directory / "bin").symlink_to("usr/bin")


def _add_busybox(image: Initramfs, arch: Arch, say: Say) -> None:
    busybox = find_busybox(arch, say)
    image.add_program(busybox, "/bin/busybox")
    if arch == "x86_64":
        for applet in _applets(busybox):
            if f"/{applet}" not in image:
                image.add_symlink(f"/{applet}", "/bin/busybox")
    else:
        # It cannot be asked here which applets it has: in the guest it makes the links itself (agent/boot.c).
        image.add_bytes(INSTALL_FILE, b"/bin/busybox\n")
        for directory in ("/bin", "/sbin", "/usr/bin", "/usr/sbin"):
            image.add_directory(directory)
    for path, text in _ETC.items():
        image.add_bytes(path, text.encode())
    image.add_bytes(UDHCPC_SCRIPT, _UDHCPC.encode(), mode=0o755)


def _applets(busybox: Path) -> Iterable[str]:
    listed = subprocess.run(
        [str(busybox), "--list-full"], capture_output=True, text=True, timeout=_BUSYBOX_SECONDS, check=False
    )
    if listed.returncode or "bin/sh" not in listed.stdout.split():
        raise SetupError(f"{busybox} is not a usable busybox: apt-get install busybox-static")
    # Some distributions list names without a directory.
    return [name if "/" in name else f"bin/{name}" for name in listed.stdout.split() if name != "bin/busybox"]


def _add_modules(image: Initramfs, kernel: Kernel, content: ImageContent) -> None:
    if kernel.modules_dir is None:
        if content.modules:
            raise SetupError(
                f"modules {', '.join(content.modules)} asked for, but {kernel.image} has no modules directory: "
                "pass the one that belongs to it"
            )
        return
    tree = ModuleTree(kernel.modules_dir)
    disk = ("virtio_blk",) if content.disk else ()
    names = [_TRANSPORT_MODULES[content.machine], *_DEVICE_MODULES, *disk, *content.modules]
    _add_list(image, tree, MODULES_FILE, names)
    if content.disk:
        for name, helpers in _FILE_SYSTEMS.items():
            if tree.has(name):
                wanted = [name, *(helper for helper in helpers if tree.has(helper))]
                _add_list(image, tree, f"{MODULES_FILE}.{name}", wanted)


def _add_list(image: Initramfs, tree: ModuleTree, path: str, names: list[str]) -> None:
    """The modules `names` and what they need, and a file at `path` that lists them in the order of loading."""
    listed = []
    for number, module in enumerate(tree.resolve(names)):
        name = module.name.partition(".")[0]
        place = f"{HOME}/modules.d/{number:02}-{name}.ko"
        image.add_bytes(place, tree.read(module))
        listed.append(place)
    image.add_bytes(path, "".join(f"{place}\n" for place in listed).encode())


def _read_initrd(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read the initrd {path}: {error.strerror}") from error


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
