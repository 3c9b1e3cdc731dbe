"""Other ways out of the same guest: QEMU's slirp, passt, and the kernel behind a TAP.

Theory of operation
-------------------
Each is one more card of the guest that our own card is in. slirp's is there from the start (``user_net``); the others
are plugged into spare root ports over QMP. passt is a vhost-user back-end like ours, so it is a process of its own,
and it takes the kernel's sockets of this host. The TAP is made in a network namespace of its own (in a user namespace
where we are not root), its descriptor passed to QEMU; the far end's sockets are made in that namespace too. With
struct virtio_net_hdr it carries superframes and unfinished checksums both ways, so it is the ceiling for anything that
copies packets between guest and host: the far end is the Linux kernel itself.

A peer that cannot be had here raises `NotComparable`, whose text is what its column says.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Final

from qemu.guest.argv import spare_port_name
from qemu.guest.guest import Guest
from qemu.guest.qmp_client import QmpError
from stack.testing.kernel_host import KernelHost, NoKernelHostError

OURS: Final = "guestwire"
SLIRP: Final = "slirp"
PASST: Final = "passt"
TAP: Final = "TAP"
#: Every column, in the table's order.
NAMES: Final = (OURS, PASST, SLIRP, TAP)
#: Where the guest finds this host behind each peer; QEMU's slirp has its network from argv.py.
SLIRP_HOST: Final = "10.0.3.2"
TAP_HOST: Final = "10.0.4.2"
PASST_HOST: Final = "10.0.5.2"
_GUEST_PART: Final = ".15"
#: Spare root ports a guest needs to be plugged into TAP and passt.
PORTS: Final = 2
_WAIT_SECONDS: Final = 15.0


class NotComparable(Exception):  # noqa: N818 - no error: a fact about this machine, put in the table
    """This peer cannot be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class Path:
    """One way from the guest to this process."""

    name: str
    sockets: Any  #: the module whose sockets are at the far end, or what looks like it
    bind: str  #: the far end's address there
    reach: str  #: the same, as the guest sees it
    processes: tuple[int, ...] = field(default=())  #: processes that carry its bytes, besides QEMU and this one


def ours(guest: Guest) -> Path:
    return Path(OURS, guest.stack.socket, guest.gateway, guest.gateway)


def slirp(guest: Guest, *, mtu: int = 1500) -> Path:
    """The guest's second card, on QEMU's own user network; brings it up."""
    _configure(guest, "eth1", SLIRP_HOST, mtu)
    return Path(SLIRP, socket, "127.0.0.1", SLIRP_HOST)


class _NamespaceSockets:
    """The `socket` module, except that sockets are made in another network namespace."""

    def __init__(self, host: KernelHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
        return self._host.socket(family, kind, proto)


@contextmanager
def tap(guest: Guest, *, mtu: int = 1500, offload: bool = True) -> Iterator[Path]:
    """A card on the kernel's TAP. Raises NotComparable where no namespace or TAP may be made."""
    try:
        host = KernelHost(f"{TAP_HOST}/24", mtu=mtu, offload=offload)
    except NoKernelHostError as error:
        raise NotComparable(str(error)) from error
    with host:
        guest.qmp.pass_descriptor("bench-tap", host.tap.fileno())
        with _plugged(guest, 0, {"type": "tap", "fd": "bench-tap"}, TAP_HOST, mtu):
            yield Path(TAP, _NamespaceSockets(host), TAP_HOST, TAP_HOST)


def passt_program(setting: str | None) -> str:
    """The passt to measure: `setting`, or the one on PATH. Raises NotComparable if it has no vhost-user."""
    found = shutil.which(setting or "passt")
    if found is None:
        raise NotComparable(f"no {setting}" if setting else "no passt on PATH; PASST=path names one")
    try:
        said = subprocess.run([found, "--help"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotComparable(f"{found} does not run: {error}") from error
    if "--vhost-user" not in said.stdout + said.stderr:
        raise NotComparable(f"{found} was built without vhost-user")
    return found


@contextmanager
def passt(guest: Guest, program: str, *, mtu: int = 1500) -> Iterator[Path]:
    """A card on passt's vhost-user back-end. Raises NotComparable if it does not start."""
    with tempfile.TemporaryDirectory(prefix="guestwire-passt-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103 - passt gives up root before it opens the socket
        path = FilePath(directory) / "net"
        words = [program, "--vhost-user", "--foreground", "--one-off", "--quiet", "--ipv4-only", "-s", str(path)]
        words += ["-a", _in_guest(PASST_HOST), "-n", "24", "-g", PASST_HOST, "--map-host-loopback", PASST_HOST]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                _connect(guest, process, path)
                with _plugged(guest, 1, {"type": "vhost-user", "chardev": "bench-passt"}, PASST_HOST, mtu):
                    yield Path(PASST, socket, "127.0.0.1", PASST_HOST, (process.pid,))
            finally:
                process.kill()


def _connect(guest: Guest, process: subprocess.Popen[bytes], path: FilePath) -> None:
    """Join QEMU to passt's socket, which takes one connection only: QEMU tries until it listens."""
    address = {"type": "unix", "data": {"path": str(path), "abstract": False}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            raise NotComparable(f"passt did not start: {said.splitlines()[-1] if said else 'no word from it'}")
        if path.exists():
            with suppress(QmpError):
                guest.qmp.execute("chardev-add", {"id": "bench-passt", "backend": backend})
                return
        time.sleep(0.02)


@contextmanager
def _plugged(guest: Guest, port: int, netdev: dict[str, object], host: str, mtu: int) -> Iterator[None]:
    """A virtio-net card on `netdev` in a spare port, up and with an address in the guest."""
    name = f"bench{port}"
    before = set(_cards(guest))
    guest.qmp.execute("netdev_add", {"id": f"net-{name}", **netdev})
    device: dict[str, object] = {"driver": "virtio-net-pci", "netdev": f"net-{name}", "romfile": ""}
    verdict = guest.verdict
    if netdev["type"] == "vhost-user" and verdict is not None and verdict.accelerator == "tcg":
        device["vectors"] = 0  # see argv.net_options
    guest.qmp.execute("device_add", {**device, "id": f"card-{name}", "bus": spare_port_name(port)})
    deadline = time.monotonic() + _WAIT_SECONDS
    while not (new := set(_cards(guest)) - before):
        if time.monotonic() > deadline:
            raise NotComparable(f"the guest did not see the card of {netdev['type']}")
        time.sleep(0.1)
    _configure(guest, new.pop(), host, mtu)
    try:
        yield
    finally:
        guest.qmp.execute("device_del", {"id": f"card-{name}"})


def _cards(guest: Guest) -> list[str]:
    return guest.run("ls /sys/class/net", check=True).stdout.split()


def _configure(guest: Guest, card: str, host: str, mtu: int) -> None:
    guest.run(f"ip addr add {_in_guest(host)}/24 dev {card} && ip link set {card} mtu {mtu} up", check=True)


def _in_guest(host: str) -> str:
    return host.rpartition(".")[0] + _GUEST_PART
