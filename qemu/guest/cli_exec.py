"""`guestwire exec`: a program of this machine on a LAN of ours, without root.

Theory of operation
-------------------
The process moves itself into new user, network and mount namespaces, where it may make a TAP device and set it up, and
hands the device's descriptor to whoever holds the LAN (join.py). Then it becomes the program. The connection stays
open in it as a descriptor, so the LAN learns of its end however that comes. In there it sees the LAN, its
loopback, and nothing else of the machine's network; its files are the machine's, but for /etc/resolv.conf.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from qemu.guest.cli_options import SOCKET
from qemu.guest.errors import SetupError

VARIABLE: Final = "GUESTWIRE_LAN"
_NOT_FOUND: Final = 127  # as shells have it
_NOT_EXECUTABLE: Final = 126

_CLONE_NEWNS: Final = 0x00020000  # include/uapi/linux/sched.h
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18  # include/uapi/linux/mount.h
_SIOCADDRT: Final = 0x890B  # include/uapi/linux/sockios.h
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_SIOCSIFMTU: Final = 0x8922
_SIOCSIFHWADDR: Final = 0x8924
_ARPHRD_ETHER: Final = 1  # include/uapi/linux/if_arp.h
_IFF_UP: Final = 1
_RTF_UP_GATEWAY: Final = 3
_INTERFACE: Final = "eth0"
_ANY: Final = bytes(4)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--lan",
    type=SOCKET,
    envvar=VARIABLE,
    show_envvar=True,
    required=True,
    help="Socket of the LAN: what `guestwire run --lan` was given, or Lan.join_socket() returns.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(lan: Path, command: tuple[str, ...]) -> None:
    """Run COMMAND, a program of this machine, on a LAN with guests: guestwire exec -- curl http://guest1/

    It has an interface, an address, a default route and a name server there, and no other network. No root is needed.
    Exit codes: the program's own; 126 or 127 if it cannot be started, 125 if it cannot be put on the LAN.
    """
    connection, place = enter(lan)
    os.set_inheritable(connection.fileno(), True)
    with suppress(OSError):  # a machine without it, or where nothing may be mounted: addresses still work
        _use_resolver(place["dns"])
    environment = {**os.environ, VARIABLE: str(lan.absolute())}
    try:
        os.execvpe(command[0], list(command), environment)  # noqa: S606 - no shell is the point
    except FileNotFoundError:
        click.echo(f"guestwire: {command[0]}: not found", err=True)
        os._exit(_NOT_FOUND)
    except OSError as error:
        click.echo(f"guestwire: {command[0]}: {error.strerror}", err=True)
        os._exit(_NOT_EXECUTABLE)


def enter(lan: Path) -> tuple[socket.socket, dict[str, Any]]:
    """Put this process, which must have one thread, on the LAN. Raises SetupError; then it is of no further use."""
    from qemu.guest.join import join
    from stack.link.tap import open_tap

    path = lan.absolute()
    _unshare()
    try:
        descriptor, _ = open_tap(_INTERFACE)
    except OSError as error:
        raise SetupError(f"no TAP device can be made: {error.strerror} (/dev/net/tun must be open to you)") from error
    try:
        connection, place = join(path, descriptor)
    finally:
        os.close(descriptor)
    try:
        _set_up(place)
    except OSError as error:
        connection.close()
        raise SetupError(f"the interface cannot be set up: {error.strerror}") from error
    return connection, place


def _unshare() -> None:
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS) == 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    elif uid != 0 or libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS) != 0:  # root needs no user namespace
        reason = os.strerror(ctypes.get_errno())
        raise SetupError(
            f"no namespaces of its own for the program: {reason}. User namespaces are switched off here? "
            "(sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)"
        )
    libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)


def _set_up(place: dict[str, Any]) -> None:
    """Hardware address, address, netmask, MTU, up, default route: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def tell(request: int, name: str, value: bytes) -> None:
            fcntl.ioctl(control, request, struct.pack("16s24s", name.encode(), value))

        mask = (0xFFFFFFFF << (32 - place["prefix"])) & 0xFFFFFFFF
        tell(_SIOCSIFFLAGS, "lo", struct.pack("=h", _IFF_UP))
        hardware = struct.pack("=H6s", _ARPHRD_ETHER, bytes.fromhex(place["mac"].replace(":", "")))
        tell(_SIOCSIFHWADDR, _INTERFACE, hardware)
        tell(_SIOCSIFMTU, _INTERFACE, struct.pack("=i", place["mtu"]))
        tell(_SIOCSIFADDR, _INTERFACE, _address(place["address"]))
        tell(_SIOCSIFNETMASK, _INTERFACE, _address(struct.pack("!I", mask)))
        tell(_SIOCSIFFLAGS, _INTERFACE, struct.pack("=h", _IFF_UP))
        # struct rtentry: pad, destination, gateway, netmask, flags, and what stays zero (include/uapi/linux/route.h).
        gateway = _address(place["gateway"])
        route = struct.pack("@L16s16s16sH", 0, _address(_ANY), gateway, _address(_ANY), _RTF_UP_GATEWAY)
        fcntl.ioctl(control, _SIOCADDRT, route.ljust(128, b"\0"))


def _address(address: str | bytes) -> bytes:
    """struct sockaddr_in."""
    packed = socket.inet_aton(address) if isinstance(address, str) else address
    return struct.pack("=HH4s8x", socket.AF_INET, 0, packed)


def _use_resolver(server: str) -> None:
    """Let /etc/resolv.conf name the LAN's server, in this mount namespace."""
    with tempfile.NamedTemporaryFile("w", prefix="guestwire-resolv-") as file:
        file.write(f"nameserver {server}\n")
        file.flush()
        Path(file.name).chmod(0o644)
        libc = ctypes.CDLL(None, use_errno=True)
        target = str(Path("/etc/resolv.conf").resolve(strict=True))
        libc.mount(file.name.encode(), os.fsencode(target), None, _MS_BIND, None)
        # The mount keeps the file; its name goes.
