"""What can be done with a guest as a machine: stop it for a while, start it anew, save it and go back to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from qemu.guest import boot
from qemu.guest.errors import GuestDiedError, GuestError, SetupError
from qemu.guest.guest_shares import GuestShares
from qemu.guest.ram import copy_ram
from qemu.guest.saved import Snapshot, save

_RESET_SECONDS: Final = 30.0


class GuestMachine(GuestShares):
    """A guest that can be paused, started anew, saved and restored."""

    def pause(self) -> None:
        """Stop its processors; its devices stay, unanswered. `resume` lets it go on."""
        self.qmp.execute("stop")

    def resume(self) -> None:
        self.qmp.execute("cont")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Paused for the length of a ``with`` block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def reboot(self, *, timeout: float | None = None) -> None:
        """Let the guest's kernel start anew, with the devices it has; returns when it is up and has its lease again.

        Commands that run end with GuestDiedError. Raises GuestTimeoutError (by default after the boot's time-out).
        """
        config = self.config
        seconds = (config.boot_timeout if timeout is None else timeout) * config.timeout_scale
        launch = self._running()
        # A reset otherwise ends QEMU, so that a panic is seen at once (-no-reboot).
        self.qmp.execute("set-action", {"reboot": "reset"})
        try:
            with self._plugging:
                self.qmp.events.clear()
                self.spawn("sync; reboot -f")
                self.qmp.wait_event("RESET", timeout=_RESET_SECONDS * config.timeout_scale)
                launch.agent.restart(GuestDiedError("the guest was rebooted"))
                launch.wait_booted(seconds)
                boot.freshen(launch)
                boot.check_report(launch)
                self._shares.rebooted()
                self._address = ""
                if self._wiring is not None and (self._slots is None or self._net_card is not None):
                    self._configure_network()
                self._await_system()
        except GuestError as error:
            raise self.explained(error) from None
        finally:
            self.qmp.execute("set-action", {"reboot": "shutdown"})

    def snapshot(self) -> Snapshot:
        """What the guest is at this moment, to go back to with `restore`, or to start others from.

        Its card, vsock and shared directories are unplugged for it and plugged in again, for vhost-user devices cannot
        be saved: connections of its vsock end with ECONNRESET on both sides, those of TCP go on when it has its lease
        again, and no program may have a file of a share open. Raises SetupError for a guest that was not started with
        ``template=True``.
        """
        saved = self._saved
        launch = self._running()
        if saved is None or launch.ram < 0:
            raise SetupError("only a guest that was started with template=True can be saved")
        with self._plugging:
            net, vsock = self._net_card is not None, self._vsock_card is not None
            try:
                self._shares.unplug_all(self._ports())
                self.unplug("net")
                self.unplug("vsock")
                try:
                    state = save(launch)
                    kept = replace(saved, ram=copy_ram(launch.ram), initrd=os.dup(saved.initrd), state=state)
                finally:
                    self.qmp.execute("cont")
                snapshot = Snapshot(kept, net, vsock, self._shares.made)
                self._plug_again(net, vsock)
            except GuestError as error:
                raise self.explained(error) from None
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Make the guest what it was when `snapshot` was taken, entropy and time of day aside.

        Commands that run end with GuestDiedError; what ran when it was taken goes on, out of reach. Connections between
        it and its gateway, TCP's and vsock's, end with ECONNRESET here. Raises GuestDiedError or GuestTimeoutError if
        it does not come up; the guest is then at its end.
        """
        with self._plugging:
            self._shares.go_back(snapshot.shares)
            self._end_connections()
            self._running().close()
            self._address = ""
            self._continue(snapshot.saved, self.config.boot_timeout * self.config.timeout_scale)
            self._plug_again(snapshot.net, snapshot.vsock)

    def _end_connections(self) -> None:
        """A guest that goes back knows nothing of what was said since: who waits for it would wait for ever."""
        wiring = self._wiring
        if wiring is None or wiring.network.closed:
            return
        with wiring.network.lock:
            netns = wiring.stack.netns
            entries = [entry for each in netns.interfaces.values() for entry in each.neighbours]
            gone = {entry.address for entry in entries if entry.mac == wiring.mac}
            for (remote, _, _), connection in list(netns.tcp.demux.connections.items()):
                if remote in gone:
                    connection.fail(errno.ECONNRESET)
            wiring.network.finish()

    def _plug_again(self, net: bool, vsock: bool) -> None:
        self._shares.plug_all(self._ports())
        if net:
            self._plug_net()
        if vsock:
            self._plug_vsock()
