"""`guestwire serve`: the devices of a QEMU that somebody else starts.

Besides its own options it follows QEMU's conventions for vhost-user back-end programs (docs/interop/vhost-user.rst,
"Backend program conventions"): ``--socket-path``, ``--fd``, ``--print-capabilities``, stays in the foreground, and ends
cleanly on SIGTERM. There one program serves one device, so ``--type`` says which.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from qemu.guest.argv import (
    Accelerator,
    QemuConfig,
    SocketName,
    VsockCard,
    machine_arguments,
    net_arguments,
    socket_options,
    vsock_arguments,
)
from qemu.guest.cli_options import FILE, OUTPUT, SOCKET, cidr, memory
from qemu.guest.config import DEFAULT_MEMORY_MIB, DEFAULT_QEMU, GuestConfig
from qemu.guest.errors import SetupError
from qemu.guest.vms import (
    DEFAULT_CID,
    DEFAULT_GROUP,
    ServedVsock,
    check_distinct,
    check_ways,
    groups,
    parse_vm,
    ports,
    read_config,
)
from qemu.guest.vsock import GuestVsock
from qemu.guest.vsock_plug import DEFAULT_BUFFER, DEFAULT_QUEUE_SIZE, VsockConfig, VsockPlug

if TYPE_CHECKING:
    from qemu.guest.wiring import Wiring
    from vhost_user import NetDevice, VsockDevice

DEFAULT_ADDRESS: Final = "10.0.2.2/24"
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_GROUPS_HELP: Final = "Guests with a group in common reach each other over vsock."
_VM_HELP: Final = (
    "One more guest's vsock, as vhost-device-vsock takes it: guest-cid=, socket=, uds-path=, tx-buffer-size=, "
    "queue-size=, groups=A+B, and instead of uds-path forward-cid= and forward-listen=PORT+PORT."
)
_FORWARD_HELP: Final = (
    "What the first vsock's guest connects to this port goes to a server: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT."
)
_FORWARD_CID_HELP: Final = (
    "Instead of --uds-path: what the guest connects to CID 2 goes to that port of this CID of the host's own kernel."
)
_FORWARD_LISTEN_HELP: Final = "These ports of the host's own kernel are the guest's; with --forward-cid."
_EXPOSE_HELP: Final = "Listen on this address of the host for that port of the first vsock's guest."


@click.command()
@click.option("--net", "net_path", type=SOCKET, metavar="SOCK", help="Serve a network card on this socket.")
@click.option("--vsock", "--socket", "vsock_path", type=SOCKET, metavar="SOCK", help="Serve a vsock on this socket.")
@click.option("--socket-path", type=SOCKET, metavar="SOCK", help="Serve the device of --type on this socket.")
@click.option("--fd", type=click.IntRange(min=0), help="Serve the device of --type on this descriptor.")
@click.option("--type", "kind", type=click.Choice(["net", "vsock"]), default="net", show_default=True)
@click.option("--print-capabilities", is_flag=True, help="Print what --type can do as JSON, and end.")
@click.option("--cid", "--guest-cid", type=int, default=DEFAULT_CID, show_default=True, help="The guest's CID.")
@click.option(
    "--uds-path",
    type=SOCKET,
    metavar="PATH",
    help="Hybrid Unix socket of the vsock: programs connect here, the guest to PATH_<port>.",
)
@click.option("--forward-cid", type=click.IntRange(0, 0xFFFFFFFF), metavar="CID", help=_FORWARD_CID_HELP)
@click.option("--forward-listen", metavar="PORT+PORT", help=_FORWARD_LISTEN_HELP)
@click.option("--groups", "group_names", metavar="A+B", default=DEFAULT_GROUP, show_default=True, help=_GROUPS_HELP)
@click.option("--tx-buffer-size", type=click.IntRange(min=1), default=DEFAULT_BUFFER, show_default=True)
@click.option("--queue-size", type=int, default=DEFAULT_QUEUE_SIZE, show_default=True, help="Largest ring taken.")
@click.option("--vm", "vm_texts", multiple=True, metavar="KEY=VALUE,...", help=_VM_HELP)
@click.option("--config", "config_path", type=FILE, metavar="FILE", help="The same as YAML: a list called vms.")
@click.option("--forward", "forwards", multiple=True, metavar="PORT=ADDRESS", help=_FORWARD_HELP)
@click.option("--expose", "exposed", multiple=True, metavar="ADDRESS=PORT", help=_EXPOSE_HELP)
@click.option(
    "--address", type=cidr, metavar="CIDR", default=DEFAULT_ADDRESS, show_default=True, help="Of the gateway."
)
@click.option("--mtu", type=click.IntRange(68, 65535), default=1500, show_default=True)
@click.option("--queues", type=click.IntRange(1, 8), default=1, show_default=True, help="Queue pairs of the card.")
@click.option("--no-offload", is_flag=True, help="No checksum or segmentation offload on the card.")
@click.option("--control", type=SOCKET, metavar="SOCK", help="Let `guestwire ip --stack SOCK` reach the gateway.")
@click.option("--pcap", type=OUTPUT, help="Write every frame of the card to this pcapng file.")
@click.option("--memory", "memory_mib", type=memory, metavar="SIZE", default=DEFAULT_MEMORY_MIB, show_default=True)
@click.option("--kvm", is_flag=True, help="Print arguments for a QEMU with KVM instead of TCG.")
def serve(
    net_path: Path | None,
    vsock_path: Path | None,
    socket_path: Path | None,
    fd: int | None,
    kind: str,
    print_capabilities: bool,
    cid: int,
    uds_path: Path | None,
    forward_cid: int | None,
    forward_listen: str | None,
    group_names: str,
    tx_buffer_size: int,
    queue_size: int,
    vm_texts: tuple[str, ...],
    config_path: Path | None,
    forwards: tuple[str, ...],
    exposed: tuple[str, ...],
    address: str,
    mtu: int,
    queues: int,
    no_offload: bool,
    control: Path | None,
    pcap: Path | None,
    memory_mib: int,
    kvm: bool,
) -> int:
    """Serve the devices of a QEMU you start yourself, until SIGTERM or Ctrl-C.

    Prints the QEMU arguments to paste. The guest's network has a gateway that answers ping and gives out leases.
    Takes vhost-device-vsock's options, too, and its place.
    """
    if print_capabilities:
        click.echo(json.dumps({"type": kind}))
        return 0
    if socket_path is not None and fd is not None:
        raise click.UsageError("--socket-path and --fd exclude each other")
    if kind == "net":
        net_path = net_path or socket_path
    else:
        vsock_path = vsock_path or socket_path
    vms = [parse_vm(text) for text in vm_texts] + (read_config(config_path) if config_path is not None else [])
    vsock_fd = fd if kind == "vsock" else None
    try:
        listen = ports(forward_listen) if forward_listen is not None else ()
    except ValueError as error:
        raise click.UsageError(f"--forward-listen {forward_listen}: vsock ports joined by + are wanted") from error
    check_ways(uds_path, forward_cid, listen, "options")
    own = VsockConfig(
        cid=cid,
        uds_path=uds_path,
        forward_cid=forward_cid,
        forward_listen=listen,
        buffer=tx_buffer_size,
        queue_size=queue_size,
        groups=groups(group_names),
    )
    if vsock_path is not None or vsock_fd is not None:
        vms.insert(0, ServedVsock(vsock_path, own, vsock_fd))
    check_distinct(vms)
    wants_net = net_path is not None or (fd is not None and kind == "net")
    if not (wants_net or vms):
        raise click.UsageError("nothing to serve: say --net SOCK, --vsock SOCK, --vm ..., --socket-path SOCK or --fd N")
    if (forwards or exposed) and not vms:
        raise click.UsageError("--forward and --expose are for a vsock: say --vsock SOCK")
    config = GuestConfig(
        net=wants_net,
        vsock=False,
        address=address,
        mtu=mtu,
        queues=queues,
        offload=not no_offload,
        pcap=pcap,
    )
    for path in (net_path, *(vm.socket for vm in vms)):
        if path is not None:
            socket_options(SocketName(str(path)))  # too long a path is said before anything is set up
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="guestwire: %(message)s")
    accelerator: Accelerator = "kvm" if kvm else "tcg"
    shown = QemuConfig(DEFAULT_QEMU, Path(), Path(), accelerator=accelerator, memory_mib=memory_mib)
    with ExitStack() as undo:
        # Blocked before there is any other thread: the signal would be delivered to one that does not wait for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        undo.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, _ENDING)
        from qemu.guest.wiring import Wiring

        wiring = Wiring(config)
        undo.callback(wiring.close)
        if control is not None:
            from qemu.guest.control import ControlSocket

            undo.enter_context(ControlSocket(wiring.stack, control))
        if wiring.net is not None:
            _listen(wiring, wiring.net, net_path, fd if kind == "net" else None)
        plugs = [_plug(wiring, vm.config, undo) for vm in vms]
        if plugs:
            join_ports(GuestVsock(wiring.stack, plugs[0]), forwards, exposed)
        for plug, vm in zip(plugs, vms, strict=True):
            _listen(wiring, plug.device, vm.socket, vm.fd)
        click.echo(paste(wiring, shown, net_path, vms[0].socket if vms else None))
        for vm in vms[1:]:
            click.echo(paste(wiring, shown, None, vm.socket))
        sys.stdout.flush()
        signal.sigwait(_ENDING)
    return 0


def paste(wiring: Wiring, shown: QemuConfig, net_path: Path | None, vsock_path: Path | None) -> str:
    """The QEMU arguments, quoted for a shell, one option a line."""
    words = machine_arguments(shown)
    if net_path is not None:
        words += net_arguments(wiring.card(SocketName(str(net_path.absolute())), reconnect=True), shown)
    if vsock_path is not None:
        words += vsock_arguments(VsockCard(SocketName(str(vsock_path.absolute()))), shown)
    pairs = [f"{option} {shlex.quote(value)}" for option, value in zip(words[::2], words[1::2], strict=True)]
    return " \\\n".join([shown.binary, *(f"    {pair}" for pair in pairs)])


def join_ports(vsock: GuestVsock, forwards: tuple[str, ...], exposed: tuple[str, ...]) -> None:
    """What --forward and --expose ask for. Raises SetupError."""
    from qemu.guest.hybrid import read_port

    for text in forwards:
        port, _, target = text.partition("=")
        vsock.forward(read_port(port, f"--forward {text}"), target)
    for text in exposed:
        where, _, port = text.rpartition("=")
        vsock.expose(where, read_port(port, f"--expose {text}"))


def _plug(wiring: Wiring, config: VsockConfig, undo: ExitStack) -> VsockPlug:
    plug = VsockPlug(wiring.stack, config)
    undo.callback(plug.close)
    return plug


def _listen(wiring: Wiring, device: NetDevice | VsockDevice, path: Path | None, fd: int | None) -> None:
    from vhost_user.server import ListenError

    try:
        if path is not None:
            wiring.server.listen(device, path=path)
        if fd is not None:
            _adopt(wiring, device, fd)
    except ListenError as error:
        raise SetupError(str(error)) from error


def _adopt(wiring: Wiring, device: NetDevice | VsockDevice, fd: int) -> None:
    """Descriptors are passed both ways in practice: connected to the front-end already, or listening."""
    try:
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SetupError(f"--fd {fd} is no socket: {error.strerror}") from error
    if listening:
        wiring.server.listen(device, listener=sock)
    else:
        wiring.server.adopt(device, sock)
