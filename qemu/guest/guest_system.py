"""What a guest with a system of its own on a disk has besides: an init that boots, ssh, cloud-init, a journal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from qemu.guest.config import with_image
from qemu.guest.errors import CommandTimeoutError, GuestError, GuestTimeoutError, SetupError
from qemu.guest.guest_network import GuestNetwork

if TYPE_CHECKING:
    from qemu.guest.journal import JournalEntry
    from qemu.guest.ssh import SshAccess

#: Debian with cloud-init takes some 60 s under TCG on a core of its own, a tenth of that under KVM.
UP_SECONDS: Final = {"kvm": 90.0, "tcg": 360.0}
_ASK_SECONDS: Final = 30.0
#: Whether process 1 is systemd; it need not have made /run/systemd/system yet.
_IS_SYSTEMD: Final = (
    "for path in /usr/lib/systemd/systemd /lib/systemd/systemd; do"
    " [ /proc/1/exe -ef $path ] && exit 0; done; [ -d /run/systemd/system ]"
)
#: On a slow machine process 1 may be too busy to answer systemctl within its 25 s: that is "unknown", and asked again.
_AWAIT: Final = """\
until [ -S /run/systemd/private ]; do sleep 0.2; done
while :; do
    state=$(systemctl is-system-running --wait 2>/dev/null)
    case $state in running|degraded|maintenance|stopping) break ;; esac
    sleep 0.5
done
echo "$state"
"""
_DIAGNOSIS: Final = "systemctl --no-pager --plain list-jobs; systemctl --no-pager --plain --failed"


class GuestSystem(GuestNetwork):
    """A guest whose root may be a disk image with systemd, cloud-init and sshd."""

    system_state: str = ""  #: what systemd said when it had booted: "running", or "degraded" where a unit failed

    def start(self) -> None:
        if not self._started:
            self.config = with_image(self.config)
        super().start()

    def wait_up(self, *, timeout: float | None = None) -> str:
        """Until the systemd of a disk image has booted; what it calls its state: "running", "degraded".

        "" at once where another init runs. `start` has done so already, unless ``up_timeout=0``. Raises
        GuestTimeoutError with what it still waits for (by default after 90 s under KVM, 360 s without).
        """
        accelerator = self.verdict.accelerator if self.verdict is not None else "tcg"
        seconds = UP_SECONDS[accelerator] if timeout is None else timeout
        if not self.run(_IS_SYSTEMD, timeout=_ASK_SECONDS).succeeded:
            return ""
        try:
            done = self.run(_AWAIT, timeout=seconds)
        except CommandTimeoutError:
            told = ""
            try:
                told = self.run(_DIAGNOSIS, timeout=_ASK_SECONDS).stdout.strip()
            except GuestError as error:
                told = str(error).splitlines()[0]
            scaled = seconds * self.config.timeout_scale
            what = f"waited {scaled:g} s for the system in the image to boot; systemd says:\n{told}"
            raise GuestTimeoutError(self._running().explain(what)) from None
        state = self.system_state = done.stdout.strip()
        if state not in ("running", "degraded"):
            what = f"the system in the image did not boot: systemd calls it {state or done.stderr.strip()!r}"
            raise GuestError(self._running().explain(what))
        if self._systemd is not None:
            self._systemd.version = self._systemd_version()
        return state

    @property
    def journal(self) -> list[JournalEntry]:
        """The guest's journal so far, with ``systemd=True``, oldest first: see `qemu.guest.systemd`."""
        return self.systemd.journal

    def ssh_command(self, *, user: str = "root", via: Literal["net", "vsock"] = "net") -> list[str]:
        """The beginning of a command line for this machine's ssh: ``[*guest.ssh_command(), "uname -r"]``.

        By the guest's card, or by its vsock, where systemd's own way is used or made. A key of this guest's own is
        let in and its host key is known: nothing is asked. It is good until the guest is closed. Raises MissingError
        without an ssh client, SetupError if the guest has no sshd or no such user.
        """
        return self._ssh_access().command(user, via)

    @property
    def ssh_key(self) -> str:
        """The public key that `ssh_command` uses; the private one goes away with the guest. Raises MissingError."""
        return self._ssh_access().public_key

    def _ssh_access(self) -> SshAccess:
        if self._ssh is None:
            from qemu.guest.ssh import SshAccess

            self._ssh = SshAccess(self, self.verdict is None or self.verdict.accelerator == "tcg")
            self._undo.callback(self._ssh.close)
        return self._ssh

    _ssh: SshAccess | None = None

    def _boot(self, timeout: float) -> None:
        super()._boot(timeout)
        self._await_system()

    def _await_system(self) -> None:
        """After each start of the kernel's."""
        if self.config.disk is not None and self.config.up_timeout != 0:
            self.wait_up(timeout=self.config.up_timeout)

    def _credentials(self) -> list[str]:
        options = super()._credentials()
        seed = self.config.cloud_init
        if seed is None:
            return options
        if self.config.disk is None:
            raise SetupError("cloud_init= is for the system in a disk image: image= or disk=")
        wiring = self._wiring
        if wiring is None or not wiring.gateway:
            raise SetupError("cloud-init asks the guest's gateway what to do: a card on a switch of yours has none")
        from qemu.guest.cloud_init import Seed

        served = Seed(wiring.stack, wiring.gateway, wiring.name, seed, self._key_if_any())
        self._undo.callback(served.close)
        return [*options, *served.smbios_arguments]

    def _key_if_any(self) -> Sequence[str]:
        from qemu.guest.ssh import has_client

        return [self.ssh_key] if has_client() else []

    def _systemd_version(self) -> int | None:
        said = self.run(["systemctl", "--version"], timeout=_ASK_SECONDS).stdout
        found = re.match(r"systemd (\d+)", said)
        return int(found.group(1)) if found else None
