"""QEMU's argument vector as a pure function of a frozen configuration.

What looks odd in it works around something that was found the hard way; each such line says what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from qemu.guest.arch import FACTS, ArchFacts, Machine, arch_of_machine
from qemu.guest.errors import SetupError

#: sockaddr_un.sun_path holds 108 bytes; a path needs its NUL, an abstract name its leading one (unix(7)).
MAX_SOCKET_PATH_BYTES: Final = 107
AGENT_PORT_NAME: Final = "guestwire.agent"
#: What the agent knows the disk with the kernel's modules by (agent/root.c).
MODULES_SERIAL: Final = "guestwire-mods"
#: 0 to 2 mean "any", hypervisor and host; the last is VMADDR_CID_ANY (virtio 1.3 section 5.10.4).
MIN_GUEST_CID: Final = 3
MAX_GUEST_CID: Final = 0xFFFF_FFFE
#: Below this the Debian kernel does not reach init.
MIN_MEMORY_MIB: Final = 64

#: PCIe slot and chassis numbers from here are ours; smaller ones are left to the user's own ports.
FIRST_SPARE_SLOT: Final = 32

Accelerator = Literal["tcg", "kvm"]

#: Kernel words that shorten the boot under TCG (measured: 1.5 s becomes 1.2 s) and make a dead guest end at once:
#: panic=-1 reboots on panic, which -no-reboot turns into QEMU's exit.
KERNEL_WORDS: Final = (
    "panic=-1",
    "oops=panic",
    "cryptomgr.notests",
    "mitigations=off",
    "nokaslr",
    "audit=0",
    "init_on_alloc=0",
    "rcupdate.rcu_expedited=1",
    "random.trust_cpu=on",
    "random.trust_bootloader=on",
    "nowatchdog",
)


@dataclass(frozen=True, slots=True)
class SocketName:
    """Where a vhost-user back-end listens: a path, or an abstract name that leaves no file behind."""

    name: str
    abstract: bool = False


#: How long QEMU waits before it connects to a back-end again that went away.
RECONNECT_SECONDS: Final = 1


@dataclass(frozen=True, slots=True)
class NetCard:
    """A virtio-net device served through vhost-user."""

    socket: SocketName
    mac: bytes  #: 6 bytes
    queues: int = 1  #: queue pairs
    mtu: int = 0  #: bytes announced to the guest (VIRTIO_NET_F_MTU); 0: not announced
    reconnect: bool = False  #: QEMU connects again when the back-end goes away


@dataclass(frozen=True, slots=True)
class VsockCard:
    """A vhost-user-vsock device. The CID is not here: QEMU asks the back-end for it (GET_CONFIG)."""

    socket: SocketName


@dataclass(frozen=True, slots=True)
class VirtiofsCard:
    """A directory served by a virtiofsd."""

    socket: SocketName
    tag: str  #: what the guest mounts, at most 36 bytes


@dataclass(frozen=True, slots=True)
class NinePCard:
    """A directory served by QEMU over 9p."""

    tag: str  #: what the guest mounts, at most 31 bytes
    source: Path
    writable: bool
    plugged: bool = True  #: with its device; otherwise that is plugged in later


@dataclass(frozen=True, slots=True)
class QemuConfig:
    """Everything that decides QEMU's command line. File descriptors are sockets QEMU inherits."""

    binary: str
    kernel: Path
    initrd: Path
    accelerator: Accelerator = "tcg"
    machine: Machine = "q35"
    memory_mib: int = 256
    smp: int = 1
    append: tuple[str, ...] = ()  #: further words for the kernel command line
    init: str = "/.guestwire/agent"
    console_fd: int = -1
    qmp_fd: int = -1
    agent_fd: int = -1
    net: tuple[NetCard, ...] = ()
    vsock: VsockCard | None = None
    virtiofs: tuple[VirtiofsCard, ...] = ()
    ninep: tuple[NinePCard, ...] = ()
    user_net: bool = False  #: one more card on QEMU's own slirp, for comparisons
    disk: Path | None = None  #: written to a temporary copy of QEMU's, which has no name
    modules_disk: Path | None = None  #: with the kernel's modules, for a root on `disk`; only read from
    ram: str = ""  #: the file that is the guest's memory; "": a new memfd of QEMU's own
    spare_ports: int = 0  #: root ports that cards can be plugged into while the guest runs (q35 and virt only)
    incoming: bool = False  #: start no guest, wait for a saved one
    extra: tuple[str, ...] = ()  #: passed through as they are

    @property
    def facts(self) -> ArchFacts:
        """Those of the architecture the machine is of."""
        return FACTS[arch_of_machine(self.machine)]


def arguments(config: QemuConfig) -> list[str]:
    """The whole argument vector, ``argv[0]`` included. Raises SetupError for a value QEMU would choke on."""
    _check(config)
    return [
        config.binary,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        *machine_arguments(config),
        "-kernel",
        str(config.kernel),
        "-initrd",
        str(config.initrd),
        "-append",
        " ".join(kernel_words(config)),
        *_own_chardevs(config),
        *(word for index, card in enumerate(config.net) for word in net_arguments(card, config, index)),
        *(vsock_arguments(config.vsock, config) if config.vsock is not None else ()),
        *(word for card in config.virtiofs for word in _virtiofs(card, config)),
        *(word for card in config.ninep for word in _ninep(card, config)),
        *(_user_net(config) if config.user_net else ()),
        *(_disk(config.disk, config) if config.disk is not None else ()),
        *(_modules_disk(config.modules_disk, config) if config.modules_disk is not None else ()),
        *(word for number in range(config.spare_ports) for word in ("-device", _spare_port(number))),
        *(("-incoming", "defer") if config.incoming else ()),
        *config.extra,
    ]


def kernel_words(config: QemuConfig) -> list[str]:
    facts = config.facts
    words = [f"console={facts.console}", *KERNEL_WORDS, *facts.kernel_words]
    words += [*(facts.tcg_words if config.accelerator == "tcg" else ()), f"rdinit={config.init}"]
    if config.disk is not None:
        words.append("guestwire.root=disk")
    return [*words, *config.append]


def machine_arguments(config: QemuConfig) -> list[str]:
    """Machine, CPU and memory. vhost-user needs guest memory in a file that can be shared: memfd with share=on."""
    cpu = "host" if config.accelerator == "kvm" else config.facts.tcg_cpu
    backend = f"file,mem-path={_escaped(config.ram)}" if config.ram else "memfd"
    words = [
        "-machine",
        f"{config.machine},accel={config.accelerator},memory-backend=ram",
        "-cpu",
        cpu,
        "-smp",
        str(config.smp),
        "-m",
        f"{config.memory_mib}M",
        "-object",
        f"memory-backend-{backend},id=ram,size={config.memory_mib}M,share=on",
    ]
    if config.machine == "microvm":
        # Its virtio-mmio transport is legacy unless told otherwise, and legacy has no VERSION_1 (virtio 1.3, 7.4).
        words += ["-global", "virtio-mmio.force-legacy=false"]
    return words


def net_arguments(card: NetCard, config: QemuConfig, index: int = 0) -> list[str]:
    """The three options that plug one vhost-user network card in; also what `guestwire serve` prints."""
    options = {"netdev": f"net{index}", **net_options(card, config.machine, config.accelerator)}
    netdev = f"vhost-user,id=net{index},chardev=chr-net{index}"
    return [
        "-chardev",
        f"socket,id=chr-net{index},{socket_options(card.socket)}"
        + (f",reconnect={RECONNECT_SECONDS}" if card.reconnect else ""),
        "-netdev",
        netdev + (f",queues={card.queues}" if card.queues > 1 else ""),
        "-device",
        _device("virtio-net", config, options),
    ]


def net_options(card: NetCard, machine: Machine, accelerator: Accelerator) -> dict[str, str | int | bool]:
    """The properties of a virtio-net device that belong to `card`."""
    options: dict[str, str | int | bool] = {"mac": card.mac.hex(":")}
    if machine != "microvm":
        options["romfile"] = ""  # no iPXE ROM: nothing boots from this card
        if accelerator == "tcg":
            # QEMU 7.2 crashes (SIGSEGV in msix_set_vector_notifiers under vhost_net_start) when a vhost-user net
            # device with MSI-X starts under TCG; without vectors it uses INTx.
            options["vectors"] = 0
        elif card.queues > 1:
            options["vectors"] = 2 * card.queues + 2
    if card.queues > 1:
        options["mq"] = True
    if card.mtu:
        options["host_mtu"] = card.mtu
    return options


def spare_port_name(number: int) -> str:
    return f"spare{number}"


def vsock_arguments(card: VsockCard, config: QemuConfig) -> list[str]:
    """The two options that plug a vhost-user vsock in. Its default MSI-X vectors are fine under TCG (measured)."""
    return [
        "-chardev",
        f"socket,id=chr-vsock,{socket_options(card.socket)}",
        "-device",
        _device("vhost-user-vsock", config, {"chardev": "chr-vsock"}),
    ]


def socket_options(socket: SocketName) -> str:
    """The chardev options that name a listening socket. Raises SetupError for a name no socket can have."""
    encoded = socket.name.encode(errors="surrogateescape")
    if not encoded or len(encoded) > MAX_SOCKET_PATH_BYTES:
        raise SetupError(
            f"socket path of {len(encoded)} bytes: Unix sockets allow 1 to {MAX_SOCKET_PATH_BYTES}; "
            f"use a shorter path (for example below /tmp): {socket.name}"
        )
    return f"path={_escaped(socket.name)}" + (",abstract=on" if socket.abstract else "")


def _own_chardevs(config: QemuConfig) -> list[str]:
    """Console, QMP and agent, each on a socket QEMU inherits: no file, nothing to connect to for anybody else.

    (vhost-user cannot use such a chardev: QEMU 7.2 says it "does not support FD passing".)
    """
    words = []
    if config.console_fd >= 0:
        words += ["-chardev", f"socket,id=console,fd={config.console_fd}", "-serial", "chardev:console"]
    if config.qmp_fd >= 0:
        words += ["-chardev", f"socket,id=qmp,fd={config.qmp_fd}", "-mon", "chardev=qmp,mode=control"]
    if config.agent_fd >= 0:
        words += [
            "-device",
            _device("virtio-serial", config, {"max_ports": "2"}),
            "-chardev",
            f"socket,id=agent,fd={config.agent_fd}",
            "-device",
            f"virtserialport,chardev=agent,name={AGENT_PORT_NAME}",
        ]
    return words


def _virtiofs(card: VirtiofsCard, config: QemuConfig) -> list[str]:
    chardev = f"chr-{card.tag}"
    return [
        "-chardev",
        f"socket,id={chardev},{socket_options(card.socket)}",
        "-device",
        _device("vhost-user-fs", config, {"chardev": chardev, "tag": card.tag}),
    ]


def _ninep(card: NinePCard, config: QemuConfig) -> list[str]:
    """security_model=none: files are the user's whose QEMU it is, as the guest's root cannot make them anybody else's.

    multidevs=remap: file systems mounted within the directory may use the same inode numbers.
    """
    access = "" if card.writable else ",readonly=on"
    path = _escaped(str(card.source))
    words = ["-fsdev", f"local,id={card.tag},path={path},security_model=none,multidevs=remap{access}"]
    if card.plugged:
        words += ["-device", _device("virtio-9p", config, {"fsdev": card.tag, "mount_tag": card.tag})]
    return words


def _spare_port(number: int) -> str:
    slot = FIRST_SPARE_SLOT + number
    return f"pcie-root-port,id={spare_port_name(number)},chassis={slot},slot={slot}"


def _disk(path: Path, config: QemuConfig) -> list[str]:
    """A disk as it is, with a copy-on-write layer that QEMU makes in TMPDIR and unlinks at once (snapshot=on)."""
    drive = f"id=disk,if=none,file={_escaped(str(path))},format={disk_format(path)},snapshot=on,discard=unmap"
    return ["-drive", drive, "-device", _device("virtio-blk", config, {"drive": "disk"})]


def _modules_disk(path: Path, config: QemuConfig) -> list[str]:
    drive = f"id=modules,if=none,file={_escaped(str(path))},format=raw,read-only=on"
    return ["-drive", drive, "-device", _device("virtio-blk", config, {"drive": "modules", "serial": MODULES_SERIAL})]


def disk_format(path: Path) -> str:
    """By what is in it: qcow2's magic (docs/interop/qcow2.txt), else raw. Raises SetupError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
    except OSError as error:
        raise SetupError(f"cannot read the disk {path}: {error.strerror}") from error


def _user_net(config: QemuConfig) -> list[str]:
    options = {"netdev": "slirp", **({"romfile": ""} if config.machine != "microvm" else {})}
    return ["-netdev", "user,id=slirp,net=10.0.3.0/24", "-device", _device("virtio-net", config, options)]


def _device(name: str, config: QemuConfig, options: Mapping[str, str | int | bool]) -> str:
    bus = "device" if config.machine == "microvm" else "pci"
    return ",".join([f"{name}-{bus}", *(f"{key}={_option(value)}" for key, value in options.items())])


def _option(value: str | int | bool) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _escaped(text: str) -> str:
    """QEMU's option parser splits at single commas (qemu-options: "doubled to escape")."""
    return text.replace(",", ",,")


def _check(config: QemuConfig) -> None:
    if config.memory_mib < MIN_MEMORY_MIB:
        raise SetupError(f"a guest needs at least {MIN_MEMORY_MIB} MiB of memory, not {config.memory_mib}")
    if config.smp < 1:
        raise SetupError(f"a guest needs at least one CPU, not {config.smp}")
    facts = config.facts
    if config.spare_ports and config.machine not in facts.hotplug:
        raise SetupError(
            f"cards can be plugged into a running guest on a {facts.hotplug[0]} only, not on {config.machine}"
        )
    for card in config.net:
        if len(card.mac) != 6 or card.mac[0] & 1:
            raise SetupError(f"{card.mac.hex(':')} is no unicast hardware address of six bytes")
        if card.queues < 1:
            raise SetupError(f"a network card needs at least one queue pair, not {card.queues}")
    for word in config.append:
        if "\n" in word or "\0" in word:
            raise SetupError(f"kernel command line words cannot hold line ends: {word!r}")
