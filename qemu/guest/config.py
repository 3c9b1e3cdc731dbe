"""Everything that can be chosen about a guest, with its defaults."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qemu.guest.arch import FACTS, Arch, ArchFacts, Machine
from qemu.guest.errors import MissingError, SetupError
from qemu.guest.image import is_archive
from qemu.guest.kernel import Flavour, Kernel, KernelError, find_kernel, kernel_from_file
from qemu.guest.share import Share

if TYPE_CHECKING:
    from qemu.guest.cloud_init import CloudInit
    from qemu.guest.journal import JournalEntry
    from qemu.guest.lan import Lan
    from stack import Network, Stack
    from stack.link import Switch

DEFAULT_QEMU: Final = FACTS["x86_64"].qemu
DEFAULT_MEMORY_MIB: Final = 256
#: Generous: a loaded machine without KVM takes several times the usual two seconds.
DEFAULT_BOOT_SECONDS: Final = 60.0
TEMPLATE_PORTS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestConfig:
    """What `Guest` takes, as keywords or as one object to start from."""

    arch: Arch = "x86_64"  #: or "aarch64", under TCG
    kernel: Path | None = None  #: bzImage or vmlinux, on aarch64 an Image; None: Debian's cloud kernel from the cache
    modules_dir: Path | None = None  #: lib/modules/RELEASE of that kernel
    initrd: Path | None = None  #: a root of the user's own instead of busybox
    #: A disk with a root of its own, raw or qcow2; the guest writes to a copy that goes away with it. Its init is
    #: started, systemd say; it needs nothing of ours installed, the agent comes along.
    disk: Path | None = None
    image: Path | None = None  #: one of both: an archive is taken as `initrd`, anything else as `disk`
    cloud_init: CloudInit | None = None  #: what the cloud-init on the disk is told
    memory_mib: int = DEFAULT_MEMORY_MIB
    smp: int = 1
    #: None: "q35", on aarch64 "virt". Or "pc"; in a "microvm" the Debian kernel finds no clock under QEMU 7.2's TCG.
    machine: Machine | None = None
    qemu: str | None = None  #: name or path; None: the architecture's
    kvm: bool = True  #: use KVM if it proves to work
    append: tuple[str, ...] = ()  #: further words for the kernel command line
    extra: tuple[str, ...] = ()  #: further QEMU arguments, as they are

    #: Directories of this machine that the guest sees, as {"/in/guest": path}, or as `Share` with more to choose: how,
    #: and whether the guest may write into them. See share.py and `Guest.shares`.
    shares: Mapping[str, str | Path] | tuple[Share, ...] = ()
    programs: tuple[str, ...] = ()  #: host programs packed with their libraries
    modules: tuple[str, ...] = ()  #: further kernel modules, loaded at boot

    net: bool = True  #: a network card served by this process
    vsock: bool = True  #: a vsock served by this process
    user_net: bool = False  #: one more card on QEMU's own slirp, for comparisons
    network: Network | None = None  #: joins this Network instead of making one
    stack: Stack | None = None  #: the node at the other end of the card; None: one called "gw" is made
    lan: Lan | None = None  #: the LAN to be on, with its gateway; instead of network, stack and switch
    switch: Switch | None = None  #: plugs the card into this switch instead; nothing else is configured then
    address: str | None = None  #: the gateway's, e.g. "10.0.2.2/24"; None: the first free 10.0.N.2/24 from N = 2
    #: The gateway's IPv6 address, e.g. "fd00::2/64": it then advertises itself as a router, and the guest's kernel
    #: gives itself an address of that prefix, a second or two after boot. None: IPv6 stays link-local.
    address6: str | None = None
    dhcp: bool = True  #: the gateway offers leases, and the guest (busybox) takes one before it counts as booted
    dhcp6: bool = False  #: with `dhcp` and `address6`: it gives out IPv6 addresses too, and says so in advertisements
    dns: bool = True  #: the gateway answers DNS: its own name, ``gateway``, those in `Stack.hosts`, those of guests
    #: Names the gateway does not know are asked of the host's resolvers (True), or of these, each an address or a pair
    #: of address and port; False: they do not exist.
    dns_upstream: bool | tuple[str | tuple[str, int], ...] = False
    mac: bytes | None = None  #: None: one that is new in this process
    mtu: int = 1500
    queues: int = 1  #: queue pairs
    #: QEMU connects the card again, a second later, when this process ends its connection (a fault, see
    #: `vhost_user.faults`); otherwise the card is dead then.
    reconnect: bool = False
    offload: bool = True  #: checksum and segmentation offloads both ways
    cid: int | None = None  #: None: the first free one from 3
    vsock_uds: Path | None = None  #: hybrid Unix socket for other programs, and prefix of those the guest reaches
    vsock_groups: tuple[str, ...] = ()  #: guests of one Stack with a group in common reach each other over vsock
    systemd: bool = False  #: the guest's systemd reports readiness, exit status and journal: see Guest.systemd
    journal_tee: Callable[[JournalEntry], object] | None = None  #: gets each journal entry as it comes
    credentials: Mapping[str, str] = field(default_factory=dict)  #: systemd credentials for the guest, by name
    pcap: Path | None = None  #: every frame of the card goes to this pcapng file

    watch: bool = False  #: a panic, oops, BUG or sanitizer's report ends every wait at once (see qemu.guest.dmesg)
    allow: str | None = None  #: with `watch`: pattern of complaints that are expected
    #: What every timeout is multiplied by, those given to methods included: for a machine slower than the tests expect.
    timeout_scale: float = 1.0
    #: Start from a saved guest instead of booting (made and cached the first time): a fraction of a second. Card and
    #: vsock are then plugged in while it runs.
    template: bool = False
    #: With `template`: plug card and vsock in only when something here first asks for them.
    lazy: bool = False
    spare_ports: int | None = None  #: PCIe root ports to plug cards into; None: 6 with `template`, else none

    boot_timeout: float = DEFAULT_BOOT_SECONDS  #: seconds until the guest must be up; with a disk, until its init runs
    #: Seconds until the systemd of a disk must have booted, after that; None: 90 under KVM, 360 without; 0: not waited.
    up_timeout: float | None = None
    say: Callable[[str], None] = lambda _: None  #: gets a line for each step of the set-up that takes a while
    console_tee: Callable[[bytes], object] | None = None  #: gets the console's bytes as they come

    @property
    def facts(self) -> ArchFacts:
        """Those of its architecture. Raises SetupError for one that is not known."""
        if self.arch not in FACTS:
            raise SetupError(f"{self.arch!r} is none of the architectures of guests: {', '.join(FACTS)}")
        return FACTS[self.arch]

    @property
    def board(self) -> Machine:
        """The machine it is in. Raises SetupError if that is of another architecture."""
        machines = self.facts.machines
        if self.machine is not None and self.machine not in machines:
            raise SetupError(f"an {self.arch} guest cannot be in a {self.machine}, but in: {', '.join(machines)}")
        return self.machine or machines[0]

    @property
    def share_list(self) -> tuple[Share, ...]:
        """`shares` in its longer form."""
        if isinstance(self.shares, tuple):
            return self.shares
        return tuple(Share(Path(source), target) for target, source in self.shares.items())

    @property
    def ports(self) -> int:
        """How many spare root ports the guest has."""
        if self.spare_ports is not None:
            return self.spare_ports
        return TEMPLATE_PORTS if self.template else 0


def with_image(config: GuestConfig) -> GuestConfig:
    """`config` with `image` as the `disk` or `initrd` that it is.

    Raises SetupError if it cannot be read, or if one of these is given as well.
    """
    if config.image is None:
        return config
    if config.disk is not None or config.initrd is not None:
        raise SetupError("a guest has one root: image=, disk= and initrd= exclude each other")
    if is_archive(config.image):
        return replace(config, image=None, initrd=config.image)
    return replace(config, image=None, disk=config.image)


def find_qemu(config: GuestConfig) -> str:
    """Its path. Raises MissingError with the command that installs it."""
    facts = config.facts
    name = config.qemu or facts.qemu
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"no {name} on PATH: apt-get install {facts.qemu_package}")
    return found


def choose_kernel(config: GuestConfig, flavour: Flavour = "cloud") -> Kernel:
    """The kernel the configuration asks for. Raises SetupError, or MissingError if none can be had."""
    try:
        if config.kernel is not None:
            return kernel_from_file(config.kernel, config.modules_dir, arch=config.arch)
    except KernelError as error:
        raise SetupError(str(error)) from error
    try:
        return find_kernel(arch=config.arch, flavour=flavour, say=config.say)
    except KernelError as error:
        raise MissingError(str(error)) from error
