"""What differs between the architectures a guest can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Arch = Literal["x86_64", "aarch64"]
Machine = Literal["q35", "pc", "microvm", "virt"]
ARCHES: Final[tuple[Arch, ...]] = get_args(Arch)


@dataclass(frozen=True, slots=True)
class ArchFacts:
    """One architecture, as QEMU, the kernel, Debian and ELF name its parts."""

    name: Arch
    qemu: str
    qemu_package: str
    machines: tuple[Machine, ...]  #: the first is the default
    hotplug: tuple[Machine, ...]  #: those that have PCIe root ports
    tcg_cpu: str
    console: str
    kernel_words: tuple[str, ...]  #: beyond those that all have
    tcg_words: tuple[str, ...]
    debian: str  #: Debian's name of it
    kernel_packages: Mapping[str, tuple[str, ...]]  #: by flavour: meta-packages, the first that is known counts
    elf: str  #: e_machine
    compiler: str
    compiler_packages: str


FACTS: Final[Mapping[Arch, ArchFacts]] = {
    "x86_64": ArchFacts(
        name="x86_64",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        machines=("q35", "pc", "microvm"),
        hotplug=("q35",),
        # `-cpu max` advertises ERMS and FSRM; the guest then copies with `rep movsb`, which TCG executes byte by
        # byte: half the throughput of qemu64 (measured).
        tcg_cpu="qemu64",
        console="ttyS0",
        kernel_words=("no_timer_check", "8250.nr_uarts=1"),
        tcg_words=("tsc=reliable",),  # only true where the TSC is QEMU's own
        debian="amd64",
        kernel_packages={
            # Debian's cloud flavour; on Ubuntu the nearest equivalent.
            "cloud": ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64"),
            "general": ("linux-image-amd64", "linux-image-generic"),
        },
        elf="EM_X86_64",
        compiler="gcc",
        compiler_packages="gcc libc6-dev",
    ),
    "aarch64": ArchFacts(
        name="aarch64",
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        machines=("virt",),
        hotplug=("virt",),
        tcg_cpu="cortex-a57",
        console="ttyAMA0",
        kernel_words=(),
        tcg_words=(),
        debian="arm64",
        kernel_packages={
            "cloud": ("linux-image-cloud-arm64", "linux-image-arm64"),
            "general": ("linux-image-arm64",),
        },
        elf="EM_AARCH64",
        compiler="aarch64-linux-gnu-gcc",
        compiler_packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    ),
}


def arch_of_machine(machine: Machine) -> Arch:
    return next(name for name, facts in FACTS.items() if machine in facts.machines)
