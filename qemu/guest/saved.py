"""A saved guest: its memory and the state of its devices; and how QEMU saves and continues one.

Theory of operation
-------------------
The memory is a file of its own (`x-ignore-shared`: QEMU leaves shared memory out of the migration stream), so the
stream is some 300 KiB and restoring is a copy of the memory file plus a moment. A machine is stopped when it is saved
and waits for `cont` when it is restored.

vhost-user devices cannot be in a saved machine (upstream's vhost-user-vsock is unmigratable, its net needs a back-end
that logs): they are plugged in afterwards, and unplugged before one is saved.

The agent's session survives in the guest; on this side it begins anew with HELLO. So nothing may be under way on it
when the machine is saved.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from qemu.guest.argv import NinePCard, QemuConfig
from qemu.guest.boot import Recipe, check_report, freshen
from qemu.guest.errors import GuestError, SetupError
from qemu.guest.launch import Launch, private_directory
from qemu.guest.qmp_client import Qmp, QmpError
from qemu.guest.ram import MIB, check_room, copy_ram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_STATE_SECONDS: Final = 30.0
_READ_BYTES: Final = 1 << 18
_CAPABILITIES: Final = ("x-ignore-shared", "events")


@dataclass(frozen=True, slots=True)
class Saved:
    """What a guest was at one moment. `ram` is the descriptor of its memory file, which is only read from."""

    recipe: Recipe
    initrd: int  #: the descriptor of its first root, which QEMU loads again for a guest that reboots
    ram: int
    state: bytes  #: QEMU's migration stream without memory
    boot_seconds: float  #: how long the boot took that this one is spared


@dataclass(slots=True)
class Snapshot:
    """A saved guest that its user keeps: `Guest.snapshot`. Its memory is freed by `close`, or with the last reference.

    A context manager.
    """

    saved: Saved
    net: bool  #: it had its card
    vsock: bool  #: it had its vsock
    shares: int = 0  #: how many directories had been shared with it so far

    def close(self) -> None:
        """Idempotent. No guest can be restored from it then; those that were go on."""
        saved, self.saved = self.saved, replace(self.saved, ram=-1, initrd=-1)
        for descriptor in (saved.ram, saved.initrd):
            if descriptor >= 0:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def save(launch: Launch) -> bytes:
    """Stop the machine and return its state. Its memory is then in the file it was started on.

    Raises SetupError naming the device that cannot be saved.
    """
    qmp = launch.qmp
    qmp.execute("stop")
    _set_capabilities(qmp)
    path = launch.directory / "state"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(_STATE_SECONDS)
        received = bytearray()
        reader = threading.Thread(target=_receive, args=(listener, received), name="guest-state", daemon=True)
        reader.start()
        try:
            qmp.execute("migrate", {"uri": f"unix:{path}"})
            _await_migration(qmp)
        except QmpError as error:
            raise SetupError(f"this guest cannot be saved: {error}") from error
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # ends an accept that QEMU never came to
            reader.join(_STATE_SECONDS)
            path.unlink(missing_ok=True)
    if not received:
        raise GuestError("QEMU sent no state of the guest to be saved")
    return bytes(received)


def restore(
    saved: Saved,
    *,
    timeout: float,
    tee: Callable[[bytes], object] | None = None,
    ninep: tuple[NinePCard, ...] = (),
) -> Launch:
    """Start a guest from `saved`, on a copy of its memory, with entropy and time of its own.

    `ninep` are directories whose devices are to be plugged in afterwards.

    Raises SetupError without room for it, GuestDiedError or GuestTimeoutError if it does not come up.
    """
    if saved.ram < 0:
        raise GuestError("this snapshot is closed")
    deadline = time.monotonic() + timeout
    recipe = saved.recipe
    check_room(recipe.config.memory_mib * MIB)
    ram = copy_ram(saved.ram)
    incoming, feed = os.pipe2(os.O_CLOEXEC)
    try:
        # A thread, because a pipe holds less than the state; it ends with QEMU at the latest.
        threading.Thread(target=_feed, args=(feed, saved.state), name="guest-state", daemon=True).start()
        initrd = Path(f"/proc/self/fd/{saved.initrd}")
        base = replace(recipe.qemu_config(initrd), ram=f"/proc/self/fd/{ram}", incoming=True, ninep=ninep)

        def configure(console: int, qmp: int, channel: int) -> QemuConfig:
            return replace(base, console_fd=console, qmp_fd=qmp, agent_fd=channel)

        inherit = (ram, incoming, saved.initrd)
        launch = Launch(configure, private_directory(), tee=tee, inherit=inherit, resume=True)
    except BaseException:
        os.close(ram)
        raise
    finally:
        os.close(incoming)
    launch.ram = ram
    try:
        _continue(launch, incoming)
        launch.wait_booted(max(0.0, deadline - time.monotonic()))
        freshen(launch)
        check_report(launch)
    except BaseException as error:
        explained = launch.failure(error) if isinstance(error, GuestError) else error
        launch.close()
        if explained is error:
            raise
        raise explained from error
    return launch


def _continue(launch: Launch, incoming: int) -> None:
    qmp = launch.qmp
    _set_capabilities(qmp)
    qmp.execute("migrate-incoming", {"uri": f"fd:{incoming}"})
    _await_migration(qmp)
    qmp.execute("cont")


def _set_capabilities(qmp: Qmp) -> None:
    wanted = [{"capability": name, "state": True} for name in _CAPABILITIES]
    qmp.execute("migrate-set-capabilities", {"capabilities": wanted})


def _await_migration(qmp: Qmp) -> None:
    deadline = time.monotonic() + _STATE_SECONDS
    while True:
        event: Mapping[str, Any] = qmp.wait_event("MIGRATION", timeout=max(0.0, deadline - time.monotonic()))
        status = event["data"]["status"]
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            told = qmp.execute("query-migrate").get("error-desc", "QEMU does not say why")
            raise GuestError(f"QEMU could not move the guest's state: {told}")


def _receive(listener: socket.socket, received: bytearray) -> None:
    with suppress(OSError):  # QEMU never came, or went away: the state is then short, and the migration has failed
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_STATE_SECONDS)
            while data := connection.recv(_READ_BYTES):
                received += data


def _feed(descriptor: int, state: bytes) -> None:
    view = memoryview(state)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError:
        pass  # QEMU has ended; whoever waits for it says so
    finally:
        os.close(descriptor)
