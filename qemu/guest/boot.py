"""What a guest is started from: the parts that decide its boot, found once, and QEMU's configuration made of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qemu.guest import accel
from qemu.guest.agent.build import build_agent
from qemu.guest.argv import NetCard, NinePCard, QemuConfig, VirtiofsCard, VsockCard
from qemu.guest.config import GuestConfig, choose_kernel, find_qemu
from qemu.guest.errors import GuestError, SetupError
from qemu.guest.image import ImageContent, write_image
from qemu.guest.kernel import Kernel
from qemu.guest.launch import Launch, private_directory
from qemu.guest.share import Planned
from qemu.guest.shares import module_names, plan

AGENT_SECONDS: Final = 20.0
_SEED_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Recipe:
    """QEMU, kernel, agent and accelerator for one configuration."""

    config: GuestConfig
    qemu: str
    kernel: Kernel
    agent: Path
    verdict: accel.Verdict
    shares: tuple[Planned, ...] = ()  #: the way each shared directory takes

    @staticmethod
    def find(config: GuestConfig) -> Recipe:
        """Raises MissingError for what this machine lacks, SetupError for what the configuration has wrong."""
        if config.arch != "x86_64" and (config.systemd or config.credentials or config.cloud_init):
            raise SetupError(
                "systemd, credentials and cloud_init are told in SMBIOS tables, which a guest without firmware has on "
                f"x86-64 only, not on {config.arch}"
            )
        qemu = find_qemu(config)
        verdict = accel.choose(qemu, allow_kvm=config.kvm, arch=config.arch)
        shares = plan(config)
        kernel = choose_kernel(config, "general" if any(each.way == "9p" for each in shares) else "cloud")
        return Recipe(config, qemu, kernel, build_agent(config.arch), verdict, shares)

    def write_image(self, path: Path) -> None:
        config = self.config
        content = ImageContent(
            config.board,
            (*config.modules, *module_names(self.kernel, self.shares)),
            config.programs,
            tuple(each.share for each in self.shares if each.way == "packed"),
            config.initrd,
            config.disk is not None,
        )
        write_image(path, self.kernel, self.agent, content, config.say)

    def qemu_config(self, initrd: Path) -> QemuConfig:
        """QEMU's configuration without channels and cards."""
        config = self.config
        return QemuConfig(
            binary=self.qemu,
            kernel=self.kernel.image,
            initrd=initrd,
            accelerator=self.verdict.accelerator,
            machine=config.board,
            memory_mib=config.memory_mib,
            smp=config.smp,
            append=config.append,
            disk=config.disk,
            modules_disk=self._modules_disk(),
            spare_ports=config.ports,
            user_net=config.user_net,
        )

    def _modules_disk(self) -> Path | None:
        if self.config.disk is None or self.kernel.modules_dir is None:
            return None
        from qemu.guest.modules_disk import modules_disk

        return modules_disk(self.kernel.modules_dir)


def cold(
    recipe: Recipe,
    offer: Callable[[Path], tuple[tuple[NetCard, ...], VsockCard | None]],
    extra: tuple[str, ...],
    tee: Callable[[bytes], object] | None = None,
    shares: Callable[[Path], tuple[tuple[VirtiofsCard, ...], tuple[NinePCard, ...]]] = lambda _: ((), ()),
) -> Launch:
    """Start QEMU on a kernel that boots from its beginning.

    `offer(directory)` names the cards to start it with, `shares(directory)` the devices of shared directories.
    """
    directory = private_directory()
    try:
        initrd = directory / "initrd"
        recipe.write_image(initrd)
        cards, vsock = offer(directory)
        virtiofs, ninep = shares(directory)
        config = recipe.qemu_config(initrd)
        base = replace(config, net=cards, vsock=vsock, virtiofs=virtiofs, ninep=ninep, extra=extra)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise

    def configure(console: int, qmp: int, channel: int) -> QemuConfig:
        return replace(base, console_fd=console, qmp_fd=qmp, agent_fd=channel)

    return Launch(configure, directory, tee=tee)


def freshen(launch: Launch) -> None:
    """Give a guest entropy of its own and the time of day: it has next to none, and a saved one has another's."""
    launch.agent.seed(os.urandom(_SEED_BYTES), AGENT_SECONDS)
    launch.agent.set_time(time.time_ns(), AGENT_SECONDS)


def check_report(launch: Launch) -> None:
    """Raises GuestError if the agent met a problem while it brought the guest up."""
    problems = [value for key, value in launch.agent.report if key == "problem"]
    if problems:
        raise GuestError(launch.explain("the guest did not boot properly: " + "; ".join(problems)))
