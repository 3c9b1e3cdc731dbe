"""The core of `Guest`: its life, the commands run in it, its files, and what it is made of.

A guest boots from its beginning, its devices there from the start; or it continues a saved one (templates.py), its
devices plugged in afterwards: at once, or with `lazy` when something on this side first asks for them.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from qemu.guest import accel, boot
from qemu.guest.command import OUTPUT_LIMIT, Command
from qemu.guest.config import GuestConfig
from qemu.guest.console import Log
from qemu.guest.dmesg import Finding, Watcher
from qemu.guest.errors import (
    AgentError,
    CommandTimeoutError,
    GuestDiedError,
    GuestError,
    GuestTimeoutError,
    KernelTroubleError,
    SetupError,
)
from qemu.guest.image import UDHCPC_SCRIPT
from qemu.guest.launch import Launch
from qemu.guest.result import Result
from qemu.guest.shares import Shares, plan

if TYPE_CHECKING:
    from qemu.guest.control import ControlSocket
    from qemu.guest.hotplug import Plugged, Slots
    from qemu.guest.link_services import LinkServices
    from qemu.guest.qmp_client import Qmp
    from qemu.guest.saved import Saved
    from qemu.guest.systemd import SystemdReports
    from qemu.guest.vsock import GuestVsock
    from qemu.guest.wiring import Wiring
    from stack import Network, Stack
    from stack.link import Capture
    from vhost_user import NetDevice
    from vhost_user.device import Device

DEFAULT_RUN_SECONDS: Final = 60.0
_NET_SECONDS: Final = 30.0
_PLUG_SECONDS: Final = 30.0


class GuestCore:
    """One guest. `start` boots it, `close` ends it and leaves nothing behind; a ``with`` block does both.

    Takes the fields of `GuestConfig` as keywords, or a `GuestConfig` and keywords that change it.
    Methods may be called from any thread; every wait has a deadline and says what it waited for.
    """

    def __init__(self, config: GuestConfig | None = None, **changes: Any) -> None:
        self.config = dataclasses.replace(config or GuestConfig(), **changes)
        self.began = 0.0  #: when `start` was called, of `time.monotonic`
        self.boot_seconds = 0.0  #: from the start of QEMU until the agent answered
        self.ready_seconds = 0.0  #: how long `start` took, the lease included
        self.verdict: accel.Verdict | None = None  #: which accelerator was chosen, and why
        self._address = ""
        self._launch: Launch | None = None
        self._wiring: Wiring | None = None
        self._saved: Saved | None = None
        self._slots: Slots | None = None
        self._spare: Slots | None = None  #: of a guest that booted with its card
        self._net_card: Plugged | None = None
        self._vsock_card: Plugged | None = None
        self._plugging = threading.RLock()
        self._shares = Shares(self)
        self._undo = ExitStack()
        self._undo.callback(self._shares.close)
        self._vsock: GuestVsock | None = None
        self._control: ControlSocket | None = None
        self._systemd: SystemdReports | None = None
        self._started = False
        self._closing = threading.Lock()
        self._watcher = Watcher(self._complained, allow=self.config.allow)

    # -- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Boot it, and wait until it is up and, with a network, has an address.

        Raises MissingError (nothing to run it with), SetupError (a parameter is wrong), GuestDiedError or
        GuestTimeoutError (with the console's tail). Nothing is left behind then.
        """
        if self._started:
            raise GuestError("this guest was started already")
        self._started = True
        config = self.config
        begun = self.began = time.monotonic()
        try:
            if config.template:
                self._restore_template()
            else:
                self._boot(config.boot_timeout * config.timeout_scale)
            self.ready_seconds = time.monotonic() - begun
        except GuestError as error:
            failure = self.explained(error)
            self.close()
            if failure is error:
                raise
            raise failure from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it at once and remove everything it needed. Idempotent."""
        with self._closing:
            # QEMU first: nobody else's end of a device goes away while it still runs.
            if self._launch is not None:
                self._launch.close()
                self._watcher.close()
            self._undo.close()

    def power_off(self, timeout: float = DEFAULT_RUN_SECONDS) -> int:
        """Shut it down in order; QEMU's exit status. Raises GuestTimeoutError."""
        launch = self._running()
        launch.agent.power_off()
        return launch.process.wait(timeout * self.config.timeout_scale)

    # -- commands -------------------------------------------------------------------------------------------------

    def run(
        self,
        cmd: str | Sequence[str],
        *,
        timeout: float = DEFAULT_RUN_SECONDS,
        check: bool = False,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess.run calls it
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        limit: int = OUTPUT_LIMIT,
    ) -> Result:
        """Run a command to its end. A string goes to the guest's shell, a sequence is executed as it is.

        `env` adds to the environment. Raises CommandTimeoutError (the command is killed then), OutputLimitError (it
        printed more than `limit` bytes, likewise), CommandFailedError with `check` if it did not succeed,
        GuestDiedError, KernelTroubleError.
        """
        __tracebackhide__ = True  # pytest shows the test's line, not ours
        data = input.encode() if isinstance(input, str) else input
        timeout *= self.config.timeout_scale
        launch = self._running()
        try:
            command = launch.agent.start(_argv(cmd), env=env, cwd=cwd or "", stdin=data is not None)
            result = command.communicate(data, timeout=timeout, limit=limit)
        except CommandTimeoutError as error:
            text = "\n".join(
                f"--- {name}\n{output.decode(errors='replace').rstrip()[-4000:]}"
                for name, output in (("stdout", error.stdout), ("stderr", error.stderr))
                if output.strip()
            )
            explained = launch.explain(f"{error}\n{text}".rstrip())
            raise CommandTimeoutError(explained, error.stdout, error.stderr) from None
        except GuestError as error:
            raise launch.failure(error) from None
        return result.check(launch.console.tail()) if check else result

    def spawn(
        self,
        cmd: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bool = False,
    ) -> Command:
        """Start a command and leave it running; see `Command`. With `stdin` its input can be written."""
        return self._running().agent.start(_argv(cmd), env=env, cwd=cwd or "", stdin=stdin)

    # -- what it is made of ---------------------------------------------------------------------------------------

    @property
    def console(self) -> Log:
        """What the guest printed on its serial console."""
        return self._running().console

    @property
    def findings(self) -> list[Finding]:
        """What the guest's kernel complained of so far: see `qemu.guest.dmesg`."""
        return list(self._watcher.findings)

    @property
    def commands(self) -> list[Command]:
        """The commands started in it lately, oldest first."""
        return list(self._launch.agent.history) if self._launch is not None else []

    def settle_findings(self) -> None:
        """A report the kernel is in the middle of counts as it is."""
        self._watcher.flush()

    @property
    def started(self) -> bool:
        """QEMU was started; it may have ended since."""
        return self._launch is not None

    @property
    def report(self) -> list[tuple[str, str]]:
        """What the agent said of the boot: ("kernel", release) and more."""
        return list(self._launch.agent.report) if self._launch is not None else []

    @property
    def launch(self) -> Launch:
        """QEMU as it runs, with its channels. Raises GuestError before `start`."""
        return self._running()

    @property
    def qemu_stderr(self) -> str:
        """The last lines QEMU wrote to its standard error."""
        return self._running().stderr.tail()

    @property
    def qmp_events(self) -> list[dict[str, Any]]:
        """The events QEMU sent since QMP was first used, newest last."""
        return self._running().qmp_events

    def devices(self) -> list[tuple[str, Device]]:
        """The vhost-user devices of this guest that were made so far, by name."""
        wiring = self._wiring
        made: list[tuple[str, Device]] = []
        if wiring is not None and wiring.net is not None:
            made.append(("net", wiring.net))
        if wiring is not None and wiring.vsock is not None:
            made.append(("vsock", wiring.vsock.device))
        return made

    @property
    def qmp(self) -> Qmp:
        """QEMU's control channel."""
        return self._running().qmp

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._running().process.pid

    @property
    def argv(self) -> list[str]:
        """QEMU's command line."""
        return self._running().argv

    @property
    def address(self) -> str:
        """The guest's address on its card, once it has a lease; "" without."""
        if self.config.net and self._launch is not None:
            wiring = self._wired()
            if not self._address and self._has_own_root and self.config.dhcp:
                return wiring.leased()  # by a client of its own, whenever that is
        return self._address

    @property
    def network(self) -> Network:
        return self._wired().network

    @property
    def stack(self) -> Stack:
        """The node at the other end of the guest's cable: its gateway, and CID 2 on its vsock."""
        return self._wired().stack

    @property
    def services(self) -> LinkServices | None:
        """What the gateway serves on the guest's own link: names, leases; None on a switch or a LAN."""
        return self._wired().services

    @property
    def net(self) -> NetDevice:
        """The network card as this process serves it."""
        device = self._wired().net
        if device is None:
            raise GuestError("this guest has no network card: net=False")
        return device

    @property
    def capture(self) -> Capture | None:
        """What records the card's frames, with `pcap`."""
        return self._wiring.capture if self._wiring is not None else None

    @property
    def gateway(self) -> str:
        """The gateway's address on this guest's link."""
        return self._wired().gateway

    @property
    def vsock(self) -> GuestVsock:
        """The guest's vsock: its CID, and sockets to and from it."""
        if self._started and self.config.vsock:
            self._plug_vsock()
        if self._vsock is None:
            raise GuestError("this guest has no vsock: vsock=False, or not started")
        return self._vsock

    @property
    def systemd(self) -> SystemdReports:
        """What the guest's systemd reports, with `systemd=True`: readiness, exit status, journal."""
        if self._systemd is None:
            raise GuestError("this guest was not asked to report: systemd=False, or not started")
        return self._systemd

    # -- inside ---------------------------------------------------------------------------------------------------

    def _boot(self, timeout: float) -> None:
        """From the beginning, with its devices."""
        deadline = time.monotonic() + timeout
        recipe = boot.Recipe.find(self.config)
        self.verdict = recipe.verdict
        wiring = self._wire()
        extra = (*self._credentials(), *self.config.extra)
        offer = wiring.offer if wiring is not None else lambda _: ((), None)
        self._shares.adopt(recipe.shares, recipe.kernel)
        launch = boot.cold(recipe, offer, extra, self._console_tee, self._shares.offer)
        self._launch = launch
        self.boot_seconds = launch.wait_booted(max(0.0, deadline - time.monotonic()))
        boot.freshen(launch)
        boot.check_report(launch)
        self._shares.mount_all()
        self._configure_network()

    def _restore_template(self) -> None:
        """From the cache; with `lazy`, without its devices for now."""
        from qemu.guest.templates import template

        config = self.config
        found = template(config)
        self._shares.adopt(plan(config), found.saved.recipe.kernel)
        self.verdict = found.saved.recipe.verdict
        begun = time.monotonic()
        try:
            self._continue(found.saved, config.boot_timeout * config.timeout_scale)
        except GuestDiedError:
            # It was whole when it was opened and still does not run: the next one is to be a new one.
            found.forget()
            raise
        self.boot_seconds = time.monotonic() - begun
        assert self._slots is not None
        self._shares.plug_all(self._slots)
        if not config.lazy:
            self._plug_all()

    def _continue(self, saved: Saved, timeout: float) -> None:
        from qemu.guest.hotplug import slots_of
        from qemu.guest.saved import restore

        ninep = self._shares.fsdevs(plugged=False)
        self._launch = restore(saved, timeout=timeout, tee=self._console_tee, ninep=ninep)
        self._saved = saved
        self._net_card = self._vsock_card = None
        self._slots = slots_of(self._launch)

    def _plug_all(self) -> None:
        if self.config.net:
            self._wired()
        if self.config.vsock:
            self._plug_vsock()

    def _plug_net(self) -> None:
        """Plug the card into a guest that was restored without."""
        with self._plugging:
            if self._slots is None or self._net_card is not None or not self.config.net:
                return
            wiring = self._wire()
            assert wiring is not None
            try:
                self._net_card = self._slots.plug_net(wiring.offer_net(self._running().directory))
                self._configure_network()
            except GuestError as error:
                raise self.explained(error) from None

    def _plug_vsock(self) -> None:
        with self._plugging:
            if self._slots is None or self._vsock_card is not None:
                return
            wiring = self._wire()
            assert wiring is not None
            try:
                self._vsock_card = self._slots.plug_vsock(wiring.offer_vsock(self._running().directory))
                self._await_in_guest("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*", "its vsock")
            except GuestError as error:
                raise self.explained(error) from None

    def _await_in_guest(self, path: str, what: str) -> None:
        """Until `path`, which may be a pattern, exists in the guest."""
        look = f"until set -- {path}; [ -e $1 ]; do usleep 2000; done"
        try:
            self.run(look, timeout=_PLUG_SECONDS)
        except CommandTimeoutError:
            raise GuestTimeoutError(
                self._running().explain(f"waited {_PLUG_SECONDS:g} s for the guest to see {what} ({path})")
            ) from None

    def _wire(self) -> Wiring | None:
        """The host's side of the devices, made when first asked for."""
        if self._wiring is not None:
            return self._wiring
        if self.config.systemd and not self.config.vsock:
            raise SetupError("a guest's systemd reports over vsock: vsock=False and systemd=True exclude each other")
        if not (self.config.net or self.config.vsock):
            return None
        from qemu.guest.vsock import GuestVsock
        from qemu.guest.wiring import Wiring

        self._wiring = Wiring(self.config)
        self._undo.callback(self._wiring.close)
        if self._wiring.vsock is not None:
            self._vsock = GuestVsock(self._wiring.stack, self._wiring.vsock)
        if self.config.systemd:
            from qemu.guest.systemd import SystemdReports

            self._systemd = SystemdReports(self._wiring.stack, on_entry=self.config.journal_tee)
            self._undo.callback(self._systemd.close)
        return self._wiring

    def _credentials(self) -> list[str]:
        """QEMU's options for what the guest's systemd is told."""
        credentials = dict(self.config.credentials)
        if self._systemd is not None:
            credentials = self._systemd.credentials | credentials
        if not credentials:
            return []
        from qemu.guest.systemd import smbios_arguments

        return smbios_arguments(credentials)

    @property
    def _has_own_root(self) -> bool:
        return self.config.initrd is not None or self.config.disk is not None

    def _configure_network(self) -> None:
        """Bring the card up and take a lease; what the script says (image.py) becomes `address`.

        A root of the user's own has no DHCP client of ours; on a switch, leases are the user's affair.
        """
        config = self.config
        if not (config.net and config.dhcp) or config.switch is not None or self._has_own_root:
            return
        if self._slots is not None:
            self._await_in_guest("/sys/class/net/eth0", "its network card")
        client = f"udhcpc -i eth0 -n -q -f -t 10 -T 1 -s {UDHCPC_SCRIPT}"
        commands = f"ip link set eth0 up && {client}"
        if config.lan is not None:
            assert self._wiring is not None
            name = self._wiring.name
            commands = f"hostname {name} && {commands} -x hostname:{name}"
        done = self.run(commands, timeout=_NET_SECONDS)
        lease = dict(word.partition("=")[::2] for word in done.stdout.split() if "=" in word)
        if not done.succeeded or not lease.get("ip"):
            raise AgentError(self._running().explain(f"the guest got no lease:\n{done.stdout}{done.stderr}".rstrip()))
        self._address = lease["ip"]

    def _console_tee(self, data: bytes) -> None:
        self._watcher.feed(data)
        if self.config.console_tee is not None:
            self.config.console_tee(data)

    def _complained(self, finding: Finding) -> None:
        """The kernel printed a report: with `watch`, whoever waits for this guest hears it now."""
        if self.config.watch and finding.fatal and self._launch is not None:
            self._launch.agent.fail(KernelTroubleError(f"the guest's kernel reported a {finding.kind}:\n{finding}"))

    def explained(self, error: GuestError) -> GuestError:
        """`error` with the console's tail and QEMU's last words added, if it means that the guest is gone."""
        return error if self._launch is None else self._launch.failure(error)

    def _running(self) -> Launch:
        if self._launch is None:
            raise GuestError("this guest was not started: use it in a with block, or call start()")
        return self._launch

    def _wired(self) -> Wiring:
        if self._launch is not None:
            self._plug_net()
        if self._wiring is None:
            raise GuestError("this guest has no network: net=False and vsock=False, or not started")
        return self._wiring


def _argv(cmd: str | Sequence[str]) -> list[str]:
    return ["sh", "-c", cmd] if isinstance(cmd, str) else list(cmd)
