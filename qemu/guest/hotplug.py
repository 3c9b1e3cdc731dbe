"""Plugs vhost-user devices into a guest that runs, and takes them out again: QMP on the spare root ports.

A card is a chardev (the socket of our back-end), for a network card a netdev on it, and a device on a port. They go
in the opposite order, the device when the guest has let go of it: that is what DEVICE_DELETED means.

On a q35 ACPI tells the guest of it. A virt has PCI Express's own way: what QEMU does is a push of the slot's button,
and the guest waits five seconds for a second push that would take the first one back. So there the guest is told as
well to power the slot off, which it does at once.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qemu.guest.argv import (
    FIRST_SPARE_SLOT,
    RECONNECT_SECONDS,
    NetCard,
    QemuConfig,
    VirtiofsCard,
    VsockCard,
    net_options,
    spare_port_name,
)
from qemu.guest.errors import GuestError, GuestTimeoutError, SetupError
from qemu.guest.qmp_client import Qmp, QmpError

if TYPE_CHECKING:
    from qemu.guest.launch import Launch

UNPLUG_SECONDS: Final = 15.0
_POWER_SECONDS: Final = 5.0


def slots_of(launch: Launch) -> Slots:
    """Those of a QEMU whose guest's agent answers."""

    def power_off(slot: int) -> None:
        with suppress(GuestError):  # a guest without a shell takes its five seconds
            command = launch.agent.start(["sh", "-c", f"echo 0 > /sys/bus/pci/slots/{slot}/power"])
            command.communicate(timeout=_POWER_SECONDS)

    return Slots(launch.qmp, launch.config, power_off if launch.config.machine == "virt" else None)


@dataclass(frozen=True, slots=True)
class Plugged:
    """A device in a spare port."""

    device: str  #: QEMU's id of the device
    port: int
    netdev: str = ""
    chardev: str = ""


class Slots:
    """The spare root ports of one QEMU. Thread-safe."""

    def __init__(self, qmp: Qmp, config: QemuConfig, power_off: Callable[[int], None] | None = None) -> None:
        """`power_off(slot number)` asks the guest to do so, where it would take its time otherwise."""
        self._power_off = power_off
        self._qmp = qmp
        self._config = config
        self._free = list(range(config.spare_ports))
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def plug_net(self, card: NetCard) -> Plugged:
        """Raises QmpError with QEMU's reason, SetupError without a free port."""
        if card.queues < 1:
            raise SetupError(f"a network card needs at least one queue pair, not {card.queues}")
        with self._lock:
            name = f"card{next(self._numbers)}"
            port = self._take_port()
            netdev: dict[str, object] = {"type": "vhost-user", "id": f"net-{name}", "chardev": f"chr-{name}"}
            if card.queues > 1:
                netdev["queues"] = card.queues
            device: dict[str, object] = {"driver": "virtio-net-pci", "netdev": f"net-{name}"}
            device |= net_options(card, self._config.machine, self._config.accelerator)
            plugged = Plugged(name, port, f"net-{name}", f"chr-{name}")
            self._plug(plugged, card, netdev, device)
            return plugged

    def plug_vsock(self, card: VsockCard) -> Plugged:
        """Raises QmpError with QEMU's reason, SetupError without a free port."""
        with self._lock:
            name = f"vsock{next(self._numbers)}"
            plugged = Plugged(name, self._take_port(), "", f"chr-{name}")
            self._plug(plugged, card, None, {"driver": "vhost-user-vsock-pci", "chardev": f"chr-{name}"})
            return plugged

    def plug_virtiofs(self, card: VirtiofsCard) -> Plugged:
        """Raises QmpError with QEMU's reason, SetupError without a free port."""
        with self._lock:
            name = f"fs{next(self._numbers)}"
            plugged = Plugged(name, self._take_port(), "", f"chr-{name}")
            device = {"driver": "vhost-user-fs-pci", "chardev": f"chr-{name}", "tag": card.tag}
            self._plug(plugged, card, None, device)
            return plugged

    def plug(self, driver: str, options: Mapping[str, object]) -> Plugged:
        """Any PCI device that QEMU has. Raises QmpError, SetupError."""
        with self._lock:
            plugged = Plugged(f"device{next(self._numbers)}", self._take_port())
            self._plug(plugged, None, None, {"driver": driver, **options})
            return plugged

    def unplug(self, plugged: Plugged, *, timeout: float = UNPLUG_SECONDS) -> None:
        """Ask the guest to let go of it, and take it out. Raises GuestTimeoutError if the guest does not."""
        with self._lock:
            self._qmp.execute("device_del", {"id": plugged.device})
            if self._power_off is not None:
                self._power_off(FIRST_SPARE_SLOT + plugged.port)
            self._await_deletion(plugged.device, timeout)
            self._remove_back_end(plugged)
            self._free.append(plugged.port)
            self._free.sort()

    def _plug(
        self,
        plugged: Plugged,
        card: NetCard | VsockCard | VirtiofsCard | None,
        netdev: Mapping[str, object] | None,
        device: Mapping[str, object],
    ) -> None:
        try:
            if card is not None:
                address = {"type": "unix", "data": {"path": card.socket.name, "abstract": card.socket.abstract}}
                data: dict[str, object] = {"addr": address, "server": False}
                if isinstance(card, NetCard) and card.reconnect:
                    data["reconnect"] = RECONNECT_SECONDS
                backend = {"type": "socket", "data": data}
                self._qmp.execute("chardev-add", {"id": plugged.chardev, "backend": backend})
            if netdev is not None:
                self._qmp.execute("netdev_add", netdev)
            place = {"id": plugged.device, "bus": spare_port_name(plugged.port)}
            self._qmp.execute("device_add", {**device, **place})
        except GuestError:
            self._free.insert(0, plugged.port)
            self._remove_back_end(plugged)
            raise

    def _remove_back_end(self, plugged: Plugged) -> None:
        for command, name in (("netdev_del", plugged.netdev), ("chardev-remove", plugged.chardev)):
            if name:
                with suppress(QmpError):  # it never came to be, or went away with its netdev
                    self._qmp.execute(command, {"id": name})

    def _take_port(self) -> int:
        if not self._free:
            raise SetupError(
                f"all {self._config.spare_ports} spare ports of this guest are taken: unplug a card, or start it "
                "with more (spare_ports)"
            )
        return self._free.pop(0)

    def _await_deletion(self, device: str, timeout: float) -> None:
        try:
            while True:
                event = self._qmp.wait_event("DEVICE_DELETED", timeout=timeout)
                if event["data"].get("device") == device:
                    return
        except GuestTimeoutError:
            raise GuestTimeoutError(
                f"waited {timeout:g} s for the guest to let go of {device}; does its kernel have PCI hot-plug, and "
                "does it still run?"
            ) from None
