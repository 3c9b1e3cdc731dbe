"""`guestwire run`: a command in a fresh guest, its output as it comes, its exit code as ours."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from qemu.guest.arch import ARCHES, Machine
from qemu.guest.cli_options import DIRECTORY, FILE, OUTPUT, SOCKET, memory, share, variable
from qemu.guest.command import STDOUT, Command
from qemu.guest.config import DEFAULT_BOOT_SECONDS, DEFAULT_MEMORY_MIB, GuestConfig
from qemu.guest.errors import CommandTimeoutError, GuestError, GuestTimeoutError
from qemu.guest.guest import Guest
from qemu.guest.share import Share

if TYPE_CHECKING:
    from qemu.guest.lan import Lan

_WRITE_SECONDS: Final = 365 * 86400.0  # standard input may wait for a person
_READ_BYTES: Final = 65536


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--arch", type=click.Choice(ARCHES), default="x86_64", show_default=True, help="The guest's processor.")
@click.option(
    "--kernel",
    type=FILE,
    help="Kernel to boot: bzImage or vmlinux; for aarch64 an Image. Default: Debian's cloud kernel, cached.",
)
@click.option("--modules", "modules_dir", type=DIRECTORY, help="lib/modules/RELEASE that belongs to --kernel.")
@click.option("--initrd", type=FILE, help="Root file system (cpio) instead of busybox; the agent is put on top.")
@click.option("--disk", type=FILE, help="Boot the root on this disk (raw, qcow2), which is not written to.")
@click.option("--image", type=FILE, help="One of both: an archive is taken as --initrd, anything else as --disk.")
@click.option("--ssh", "show_ssh", is_flag=True, help="Say on standard error how to log in by ssh (a disk with sshd).")
@click.option(
    "--memory",
    "memory_mib",
    type=memory,
    metavar="SIZE",
    default=DEFAULT_MEMORY_MIB,
    show_default=True,
    help="MiB; 1G.",
)
@click.option("--smp", type=click.IntRange(1, 255), default=1, show_default=True, help="Processors.")
@click.option("--machine", type=click.Choice(["q35", "pc", "virt"]), help="Default: q35, for aarch64 virt.")
@click.option(
    "--share",
    "shares",
    type=share,
    multiple=True,
    metavar="HOSTPATH[:PATH][:rw][:HOW]",
    help="Let the guest see a directory at PATH (default /share), read-only unless :rw is said. HOW is virtiofs, "
    "packed (a COPY in the guest's memory) or 9p; by default the first of these that can be. -v says which.",
)
@click.option("--program", "programs", multiple=True, help="Pack this host program with its libraries.")
@click.option("--module", "modules", multiple=True, help="Load this kernel module, with what it depends on.")
@click.option("--env", "variables", type=variable, metavar="KEY=VALUE", multiple=True, help="For the command.")
@click.option("--cwd", default="", help="Directory in the guest to run the command in.")
@click.option("-i", "--stdin", "pass_stdin", is_flag=True, help="Pass our standard input on to the command.")
@click.option("--pcap", type=OUTPUT, help="Write every frame of the guest's card to this pcapng file.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds the command may take (exit 124).")
@click.option(
    "--boot-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_BOOT_SECONDS,
    show_default=True,
    help="Seconds the guest may take to come up (exit 125).",
)
@click.option("--mtu", type=click.IntRange(68, 65535), default=1500, show_default=True, help="Of the guest's card.")
@click.option("--cid", type=int, help="The guest's vsock CID. Default: 3.")
@click.option("--lan", type=SOCKET, help="Let other programs join the guest's LAN here: guestwire exec --lan PATH.")
@click.option("--no-kvm", is_flag=True, help="Do not even try KVM.")
@click.option("--no-offload", is_flag=True, help="No checksum or segmentation offload on the guest's card.")
@click.option("--no-net", is_flag=True, help="No network card.")
@click.option("--no-vsock", is_flag=True, help="No vsock.")
@click.option("--append", multiple=True, help="Further word for the kernel command line.")
@click.option("--qemu", help="QEMU's name or path. Default: qemu-system-ARCH.")
@click.option("--console", is_flag=True, help="Show the guest's console on standard error.")
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error what is going on.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    command: tuple[str, ...],
    variables: tuple[tuple[str, str], ...],
    cwd: str,
    pass_stdin: bool,
    timeout: float | None,
    lan: Path | None,
    show_ssh: bool,
    no_kvm: bool,
    no_offload: bool,
    no_net: bool,
    no_vsock: bool,
    console: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Boot a guest, run COMMAND in it, return its exit code.

    COMMAND is executed as it is; for a shell say: guestwire run -- sh -c 'echo hi; exit 7'

    Exit codes: the command's own, 128+n if signal n ended it, 124 it took longer than --timeout, 125 the harness
    failed, 77 this machine has nothing to run it with (see guestwire doctor).
    """
    say = _say if verbose else _silent
    config = _config(options, no_kvm, no_offload, no_net, no_vsock, console, say)
    signal.signal(signal.SIGTERM, _terminated)
    with ExitStack() as undo:
        if lan is not None:
            config = replace(config, lan=_open_lan(lan, no_net, undo))
        guest = undo.enter_context(Guest(config))
        say(f"the guest is up after {guest.ready_seconds:.2f} s under {guest.verdict} {guest.address}".rstrip())
        if show_ssh:
            click.echo(shlex.join(guest.ssh_command(via="vsock" if no_net else "net")), err=True)
        process = guest.spawn(list(command), env=dict(variables), cwd=cwd or None, stdin=pass_stdin)
        if pass_stdin:
            threading.Thread(target=_pump_stdin, args=(process,), name="stdin", daemon=True).start()
        return _stream(guest, process, timeout)


def _open_lan(path: Path, no_net: bool, undo: ExitStack) -> Lan:
    from qemu.guest.join import JoinSocket
    from qemu.guest.lan import Lan

    if no_net:
        raise click.UsageError("--lan needs the card that --no-net takes away")
    lan = undo.enter_context(Lan(record=False))
    undo.callback(JoinSocket(lan, path).close)
    return lan


def _config(
    options: dict[str, Any], no_kvm: bool, no_offload: bool, no_net: bool, no_vsock: bool, console: bool, say: Any
) -> GuestConfig:
    machine: Machine | None = options["machine"]
    shares: tuple[Share, ...] = options["shares"]
    pcap: Path | None = options["pcap"]
    if pcap is not None and no_net:
        raise click.UsageError("--pcap needs the card that --no-net takes away")
    return GuestConfig(
        arch=options["arch"],
        kernel=options["kernel"],
        modules_dir=options["modules_dir"],
        initrd=options["initrd"],
        disk=options["disk"],
        image=options["image"],
        memory_mib=options["memory_mib"],
        smp=options["smp"],
        machine=machine,
        qemu=options["qemu"],
        kvm=not no_kvm,
        append=options["append"],
        shares=shares,
        programs=options["programs"],
        modules=options["modules"],
        net=not no_net,
        vsock=not no_vsock,
        mtu=options["mtu"],
        offload=not no_offload,
        cid=options["cid"],
        pcap=pcap,
        boot_timeout=options["boot_timeout"],
        say=say,
        console_tee=_tee if console else None,
    )


def _stream(guest: Guest, process: Command, timeout: float | None) -> int:
    """Copy output until the command ends; its exit code."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        for stream, data in process.output(deadline):
            _write_all(sys.stdout.fileno() if stream == STDOUT else sys.stderr.fileno(), data)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return process.wait(timeout=left)
    except GuestTimeoutError as error:
        if not process.running:
            raise
        process.kill()
        raise CommandTimeoutError(f"the command did not end within {timeout:g} s and was killed") from error
    except GuestError as error:
        raise guest.explained(error) from error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _pump_stdin(process: Command) -> None:
    try:
        while data := os.read(sys.stdin.fileno(), _READ_BYTES):
            process.write(data, timeout=_WRITE_SECONDS)
        process.close_stdin()
    except GuestError:
        pass  # the main thread sees the same failure where it waits, and reports it


def _tee(data: bytes) -> None:
    _write_all(sys.stderr.fileno(), data)


def _say(text: str) -> None:
    click.echo(f"guestwire: {text}", err=True)


def _silent(_: str) -> None:
    pass


def _terminated(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
