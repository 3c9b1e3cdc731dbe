"""The directories of the host that one guest sees: daemons, devices and mounts of theirs, put up and taken down.

Theory of operation
-------------------
A guest that boots has the devices from the start. One that continues a saved one gets them plugged in afterwards, as
its card is, for neither virtiofs nor a mounted 9p can be saved; QEMU takes 9p's directories on its command line only,
so they are named there, and the devices come later. The agent mounts (agent/mount.c), so a guest's own root needs
nothing.

A virtiofsd that ends leaves the guest's programs waiting for ever where they touched the share. So its end is the end
of every wait there is for this guest (ShareDiedError).
"""

from __future__ import annotations

import functools
import io
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qemu.guest import virtiofsd
from qemu.guest.argv import NinePCard, SocketName, VirtiofsCard
from qemu.guest.config import GuestConfig, choose_kernel
from qemu.guest.errors import GuestError, SetupError, ShareDiedError
from qemu.guest.modules import ModuleTree
from qemu.guest.share import Planned, Share, Way, check_all, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qemu.guest.guest_core import GuestCore
    from qemu.guest.hotplug import Plugged, Slots
    from qemu.guest.kernel import Kernel

#: What is loaded for each way, where it is not built in.
MODULES: Final[dict[Way, tuple[str, ...]]] = {"virtiofs": ("virtiofs",), "9p": ("9p", "9pnet_virtio"), "packed": ()}
_NINEP_DATA: Final = "trans=virtio,version=9p2000.L,msize=262144"
_MOUNT_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.01
#: QEMU and its daemon end at the same time: whose end was the first is known after this.
_END_SECONDS: Final = 1.0
_USAGE: Final = 2  #: exit status of the agent's builtins for words that make no sense


def plan(config: GuestConfig) -> tuple[Planned, ...]:
    """The way of each share of the configuration. Raises SetupError with every reason if one has none."""
    shares = config.share_list
    if not shares:
        return ()
    check_all(shares)
    planned = []
    for share in shares:
        no_virtiofs = _no_virtiofs(config, share) if share.how in ("auto", "virtiofs") else ""
        no_ninep = _no_module(choose_kernel(config), "9p") if config.kernel is not None else ""
        planned.append(choose(share, virtiofs=no_virtiofs, ninep=no_ninep, memory_mib=config.memory_mib))
    return tuple(planned)


def module_names(kernel: Kernel, planned: Sequence[Planned]) -> tuple[str, ...]:
    """The modules that the ways taken need. One without modules has them built in, or the mount says it has not."""
    if kernel.modules_dir is None:
        return ()
    return tuple(dict.fromkeys(name for each in planned for name in MODULES[each.way]))


def _no_virtiofs(config: GuestConfig, share: Share) -> str:
    return virtiofsd.why_not(writable=share.writable) or _no_module(choose_kernel(config), "virtiofs")


def _no_module(kernel: Kernel, name: str) -> str:
    if kernel.modules_dir is None or _has(kernel.modules_dir, name):
        return ""
    return f"the kernel {kernel.release or kernel.image} has no {name}"


@functools.cache
def _has(modules_dir: Path, name: str) -> bool:
    return ModuleTree(modules_dir).has(name)


@dataclass(slots=True)
class Shared:
    """A directory of the host that a guest sees: `source` at `target`, by `way` because of `reason`."""

    planned: Planned
    number: int
    late: bool = False  #: it came while the guest ran
    daemon: virtiofsd.Daemon | None = None
    plugged: Plugged | None = None
    mounted: bool = False

    @property
    def tag(self) -> str:
        """What the guest mounts."""
        return f"guestwire{self.number}"

    @property
    def source(self) -> Path:
        return self.planned.share.source

    @property
    def target(self) -> str:
        return self.planned.share.target

    @property
    def writable(self) -> bool:
        return self.planned.share.writable

    @property
    def way(self) -> Way:
        return self.planned.way

    @property
    def reason(self) -> str:
        return self.planned.reason

    def __str__(self) -> str:
        return str(self.planned)


class Shares:
    """Those of one guest. The guest's lock for plugging guards it."""

    def __init__(self, guest: GuestCore) -> None:
        self.all: list[Shared] = []
        self._guest = guest
        self._kernel: Kernel | None = None
        self._numbers = 0
        self._loaded: set[Way] = set()  #: the ways whose modules the guest has
        self._began_with: set[Way] = set()  #: those it has loaded by itself

    def adopt(self, planned: Sequence[Planned], kernel: Kernel) -> None:
        """These the guest is to have from its start, with that kernel."""
        for each in planned:
            self._guest.config.say(str(each))
        self._kernel = kernel
        self.all += [self._new(each) for each in planned]
        self._began_with = {each.way for each in planned}
        self._loaded = set(self._began_with)

    def offer(self, directory: Path) -> tuple[tuple[VirtiofsCard, ...], tuple[NinePCard, ...]]:
        """The devices to start QEMU with; daemons wait for it in the private `directory`."""
        live = [each for each in self.all if each.way == "virtiofs"]
        return tuple(self._serve(each, directory) for each in live), self.fsdevs(plugged=True)

    def fsdevs(self, *, plugged: bool) -> tuple[NinePCard, ...]:
        """9p's directories for QEMU's command line, with their devices or without."""
        return tuple(
            NinePCard(each.tag, each.source.absolute(), each.writable, plugged) for each in self.all if each.way == "9p"
        )

    def mount_all(self) -> None:
        """In a guest that has the devices and has just booted."""
        for shared in self.all:
            self._mount(shared)

    def plug_all(self, slots: Slots) -> None:
        """In a guest that was restored: those it does not see."""
        for shared in self.all:
            if not shared.mounted:
                self._plug(shared, slots)

    def unplug_all(self, slots: Slots) -> None:
        """Before the guest is saved: copies stay, they are in it. Raises GuestError if one is in use, and all stay."""
        try:
            for shared in self.all:
                if shared.way != "packed":
                    self._unplug(shared, slots)
        except GuestError:
            self.plug_all(slots)
            raise

    @property
    def made(self) -> int:
        """How many there have been so far: what a snapshot knows of."""
        return self._numbers

    def go_back(self, made: int) -> None:
        """Before the guest becomes what it was when there had been so many: its QEMU ends, later copies are gone."""
        self.all = [each for each in self.all if each.way != "packed" or each.number <= made]
        self._loaded = set(self._began_with)
        for shared in self.all:
            if shared.daemon is not None:
                shared.daemon.let_go()
            if shared.way != "packed":
                shared.mounted, shared.plugged = False, None

    def rebooted(self) -> None:
        """The guest's kernel has begun anew: nothing is mounted, and what was copied into its memory is gone."""
        self._loaded = set(self._began_with)
        for shared in self.all:
            shared.mounted = False
            self._load(shared.way)
            if shared.late and shared.way == "packed":
                self._copy(shared.planned.share)
            self._mount(shared)

    def add(self, share: Share, slots: Slots | None) -> Shared:
        """One more while the guest runs. Raises SetupError, GuestError."""
        check_all((*(each.planned.share for each in self.all), share))
        config = self._guest.config
        if share.how == "9p":
            raise SetupError("a 9p share must be there from the guest's start: QEMU takes it on its command line only")
        no_virtiofs = _no_virtiofs(config, share) if slots is not None else "this guest has no spare port (spare_ports)"
        planned = choose(
            share,
            virtiofs=no_virtiofs,
            ninep="9p would have to be there from the guest's start",
            memory_mib=config.memory_mib,
        )
        config.say(str(planned))
        shared = self._new(planned)
        shared.late = True
        if planned.way == "packed":
            self._copy(share)
            self._mount(shared)
        else:
            assert slots is not None
            self._plug(shared, slots)
        self.all.append(shared)
        return shared

    def remove(self, shared: Shared, slots: Slots | None) -> None:
        """The guest does not see it any more; a copy stays in its memory. Raises GuestError while it is in use."""
        if shared not in self.all:
            raise SetupError(f"{shared.target} is not shared with this guest")
        if shared.way != "packed" and shared.plugged is None:
            self._unmount(shared)  # its device was there from the start, and stays
        elif shared.way != "packed":
            assert slots is not None
            self._unplug(shared, slots)
        self.all.remove(shared)

    def close(self) -> None:
        """End the daemons. Idempotent."""
        for shared in self.all:
            if shared.daemon is not None:
                shared.daemon.close()

    # -- one ------------------------------------------------------------------------------------------------------

    def _new(self, planned: Planned) -> Shared:
        self._numbers += 1
        return Shared(planned, self._numbers)

    def _serve(self, shared: Shared, directory: Path) -> VirtiofsCard:
        if shared.daemon is not None:
            shared.daemon.close()
        method = virtiofsd.method(writable=shared.writable)
        path = directory / shared.tag
        shared.daemon = virtiofsd.Daemon(method, shared.source.absolute(), path, writable=shared.writable)
        shared.daemon.watch(functools.partial(self._died, shared))
        return VirtiofsCard(SocketName(str(path)), shared.tag)

    def _died(self, shared: Shared, said: str) -> None:
        with suppress(GuestError):
            self._guest.launch.end_waits(
                ShareDiedError(
                    f"the virtiofsd that serves {shared.source} as {shared.target} has ended: programs of the guest "
                    f"that use it wait for ever. It said:\n{said or '(nothing)'}"
                ),
                _END_SECONDS,
            )

    def _plug(self, shared: Shared, slots: Slots) -> None:
        self._load(shared.way)
        if shared.way == "virtiofs":
            shared.plugged = slots.plug_virtiofs(self._serve(shared, self._guest.launch.directory))
        elif shared.way == "9p":
            options = {"fsdev": shared.tag, "mount_tag": shared.tag}
            shared.plugged = slots.plug("virtio-9p-pci", options)
        self._mount(shared)

    def _unplug(self, shared: Shared, slots: Slots) -> None:
        self._unmount(shared)
        if shared.daemon is not None:
            shared.daemon.let_go()
        if shared.plugged is not None:
            slots.unplug(shared.plugged, timeout=_MOUNT_SECONDS * self._guest.config.timeout_scale)
            shared.plugged = None
        if shared.daemon is not None:
            shared.daemon.close()
            shared.daemon = None

    def _mount(self, shared: Shared) -> None:
        access = "rw" if shared.writable else "ro"
        if shared.way == "packed":
            # A copy that was asked for is the guest's own; otherwise it behaves as the directory itself would.
            if shared.planned.share.how != "packed":
                self._ask(["@mount", "bind", shared.target, shared.target, "ro", ""], shared)
            shared.mounted = True
            return
        data = _NINEP_DATA if shared.way == "9p" else ""
        # A device that was plugged in is there a moment later.
        self._ask(["@mount", shared.way, shared.tag, shared.target, access, data], shared, again=True)
        shared.mounted = True

    def _ask(self, command: list[str], shared: Shared, *, again: bool = False) -> None:
        deadline = time.monotonic() + _MOUNT_SECONDS * self._guest.config.timeout_scale
        while True:
            done = self._guest.run(command, timeout=_MOUNT_SECONDS)
            if done.succeeded:
                return
            final = done.rc == _USAGE or "No such device" in done.stderr  # ENODEV: no such file system
            if final or not again or shared.plugged is None or time.monotonic() > deadline:
                raise GuestError(
                    f"{shared.target} cannot be mounted in the guest by {shared.way}: {done.stderr.strip()}"
                )
            time.sleep(_LOOK_SECONDS)

    def _unmount(self, shared: Shared) -> None:
        if not shared.mounted:
            return
        done = self._guest.run(["@umount", shared.target], timeout=_MOUNT_SECONDS)
        if not done.succeeded:
            raise GuestError(f"{shared.target} cannot be unmounted in the guest: {done.stderr.strip()}")
        shared.mounted = False

    def _load(self, way: Way) -> None:
        """The modules that a guest which began without such a share has not loaded."""
        kernel = self._kernel
        if way in self._loaded or kernel is None or kernel.modules_dir is None:
            return
        tree = ModuleTree(kernel.modules_dir)
        for module in tree.resolve(list(MODULES[way])):
            done = self._guest.run(["@insmod"], input=tree.read(module), timeout=_MOUNT_SECONDS)
            if not done.succeeded:
                raise GuestError(f"the guest cannot load {module.name}: {done.stderr.strip()}")
        self._loaded.add(way)

    def _copy(self, share: Share) -> None:
        """Into a guest that runs, by its own tar."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(share.source, arcname=".", filter=_ordinary)
        script = 'mkdir -p "$1" && tar -xf - -C "$1"'
        done = self._guest.run(
            ["sh", "-c", script, "sh", share.target], input=packed.getvalue(), timeout=_MOUNT_SECONDS
        )
        if not done.succeeded:
            raise GuestError(f"{share.source} cannot be copied to {share.target}: {done.stderr.strip()}")


def _ordinary(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files, directories and links, as root's: the guest's root is to read them whoever they are of here."""
    if not (entry.isfile() or entry.isdir() or entry.issym() or entry.islnk()):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
