"""`Guest`: a real Linux guest as a context manager, its card and vsock served by this process.

>>> with Guest() as guest:
...     guest.run("uname -r").stdout
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from qemu.guest import accel
from qemu.guest.agent.build import build_agent
from qemu.guest.argv import QemuConfig
from qemu.guest.command import Command
from qemu.guest.config import GuestConfig, choose_kernel, find_qemu
from qemu.guest.console import Log
from qemu.guest.errors import AgentError, CommandTimeoutError, GuestError, SetupError
from qemu.guest.image import UDHCPC_SCRIPT, ImageContent, write_image
from qemu.guest.launch import Launch, private_directory
from qemu.guest.load import Load
from qemu.guest.result import Result

if TYPE_CHECKING:
    from qemu.guest.control import ControlSocket
    from qemu.guest.qmp_client import Qmp
    from qemu.guest.systemd import SystemdReports
    from qemu.guest.vsock import GuestVsock
    from qemu.guest.wiring import Wiring
    from stack import Network, Stack
    from stack.link import Capture
    from vhost_user import NetDevice

DEFAULT_RUN_SECONDS: Final = 60.0
_AGENT_SECONDS: Final = 20.0
_SEED_BYTES: Final = 256
_NET_SECONDS: Final = 30.0


class Guest:
    """One guest. `start` boots it, `close` ends it and leaves nothing behind; a ``with`` block does both.

    Takes the fields of `GuestConfig` as keywords, or a `GuestConfig` and keywords that change it.
    Methods may be called from any thread; every wait has a deadline and says what it waited for.
    """

    def __init__(self, config: GuestConfig | None = None, **changes: Any) -> None:
        self.config = dataclasses.replace(config or GuestConfig(), **changes)
        self.boot_seconds = 0.0  #: from the start of QEMU until the agent answered
        self.ready_seconds = 0.0  #: from the start of QEMU until `start` returned, the lease included
        self.address = ""  #: the guest's address on its card, once it has a lease
        self.verdict: accel.Verdict | None = None  #: which accelerator was chosen, and why
        self._launch: Launch | None = None
        self._wiring: Wiring | None = None
        self._vsock: GuestVsock | None = None
        self._control: ControlSocket | None = None
        self._systemd: SystemdReports | None = None
        self._started = False
        self._undo = ExitStack()
        self._closing = threading.Lock()

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
        deadline = time.monotonic() + config.boot_timeout
        try:
            launch = self._boot()
            self.boot_seconds = launch.wait_booted(max(0.0, deadline - time.monotonic()))
            # A guest has next to no entropy of its own, and TCG gives it none.
            launch.agent.seed(os.urandom(_SEED_BYTES), _AGENT_SECONDS)
            problems = [value for key, value in launch.agent.report if key == "problem"]
            if problems:
                raise GuestError(launch.explain("the guest did not boot properly: " + "; ".join(problems)))
            # A root of the user's own has no DHCP client of ours; on a switch, leases are the user's affair.
            if config.net and config.dhcp and config.switch is None and config.initrd is None:
                self._configure_network()
            self.ready_seconds = time.monotonic() - launch.started
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
            self._undo.close()

    def power_off(self, timeout: float = DEFAULT_RUN_SECONDS) -> int:
        """Shut it down in order; QEMU's exit status. Raises GuestTimeoutError."""
        launch = self._running()
        launch.agent.power_off()
        return launch.process.wait(timeout)

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
    ) -> Result:
        """Run a command to its end. A string goes to the guest's shell, a sequence is executed as it is.

        `env` adds to the environment. Raises CommandTimeoutError (the command is killed then), CommandFailedError
        with `check` if it did not succeed, GuestDiedError.
        """
        data = input.encode() if isinstance(input, str) else input
        launch = self._running()
        try:
            command = launch.agent.start(_argv(cmd), env=env, cwd=cwd or "", stdin=data is not None)
            result = command.communicate(data, timeout=timeout)
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

    def put(self, path: str, data: str | bytes, *, mode: int = 0o644, timeout: float = DEFAULT_RUN_SECONDS) -> None:
        """Make `data` the content of the guest's file `path`, whole or not at all. Parent directories are made."""
        content = data.encode() if isinstance(data, str) else data
        self.run(["@put", path, f"{mode:o}"], input=content, timeout=timeout, check=True)

    def get(self, path: str, *, timeout: float = DEFAULT_RUN_SECONDS) -> bytes:
        """The content of the guest's file `path`."""
        return self.run(["@get", path], timeout=timeout, check=True).stdout_bytes

    def load(self, mode: str, address: str, port: int, *, family: str = "tcp", **options: float) -> Load:
        """Start the agent's load generator (agent/load.c: send, recv, rr, crr, echo); see `Load`.

        `address` is where to connect to, or "listen". Options: seconds, bytes, count, size, response, timeout.
        """
        words = [f"{key}={value}" for key, value in options.items()]
        return Load(self.spawn(["@load", mode, family, address, str(port), *words]))

    # -- what it is made of ---------------------------------------------------------------------------------------

    @property
    def console(self) -> Log:
        """What the guest printed on its serial console."""
        return self._running().console

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
    def network(self) -> Network:
        return self._wired().network

    @property
    def stack(self) -> Stack:
        """The node at the other end of the guest's cable: its gateway, and CID 2 on its vsock."""
        return self._wired().stack

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

    def control_socket(self) -> Path:
        """Where `guestwire ip --stack PATH` reaches the gateway from another process: a private place, until `close`.

        Whoever can connect administers the gateway's network: see `qemu.guest.control`.
        """
        if self._control is None:
            from qemu.guest.control import ControlSocket

            directory = self._undo.enter_context(tempfile.TemporaryDirectory(prefix="guestwire-"))
            self._control = ControlSocket(self.stack, Path(directory) / "control")
            self._undo.callback(self._control.close)
        return self._control.path

    @property
    def gateway(self) -> str:
        """The gateway's address on this guest's link."""
        return self._wired().gateway

    @property
    def vsock(self) -> GuestVsock:
        """The guest's vsock: its CID, and sockets to and from it."""
        if self._vsock is None:
            raise GuestError("this guest has no vsock: vsock=False")
        return self._vsock

    @property
    def systemd(self) -> SystemdReports:
        """What the guest's systemd reports, with `systemd=True`: readiness, exit status, journal."""
        if self._systemd is None:
            raise GuestError("this guest was not asked to report: systemd=False, or not started")
        return self._systemd

    # -- inside ---------------------------------------------------------------------------------------------------

    def _boot(self) -> Launch:
        config = self.config
        qemu = find_qemu(config.qemu)
        kernel = choose_kernel(config)
        agent = build_agent()
        self.verdict = accel.choose(qemu, allow_kvm=config.kvm)
        verdict = self.verdict
        directory = private_directory()
        try:
            content = ImageContent(config.machine, config.modules, config.programs, config.shares, config.initrd)
            write_image(directory / "initrd", kernel, agent, content)
            wiring = self._wire()
            cards, vsock_card = wiring.offer(directory) if wiring is not None else ((), None)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

        def configure(console: int, qmp: int, channel: int) -> QemuConfig:
            return QemuConfig(
                binary=qemu,
                kernel=kernel.image,
                initrd=directory / "initrd",
                accelerator=verdict.accelerator,
                machine=config.machine,
                memory_mib=config.memory_mib,
                smp=config.smp,
                append=config.append,
                console_fd=console,
                qmp_fd=qmp,
                agent_fd=channel,
                net=cards,
                vsock=vsock_card,
                user_net=config.user_net,
                extra=(*self._credentials(), *config.extra),
            )

        self._launch = Launch(configure, directory, tee=config.console_tee)
        self._undo.callback(self._launch.close)
        return self._launch

    def _wire(self) -> Wiring | None:
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

    def _configure_network(self) -> None:
        """Bring the card up and take a lease; what the script says (image.py) becomes `address`."""
        client = f"udhcpc -i eth0 -n -q -f -t 10 -T 1 -s {UDHCPC_SCRIPT}"
        done = self.run(f"ip link set eth0 up && {client}", timeout=_NET_SECONDS)
        lease = dict(word.partition("=")[::2] for word in done.stdout.split() if "=" in word)
        if not done.succeeded or not lease.get("ip"):
            raise AgentError(self._running().explain(f"the guest got no lease:\n{done.stdout}{done.stderr}".rstrip()))
        self.address = lease["ip"]

    def explained(self, error: GuestError) -> GuestError:
        """`error` with the console's tail and QEMU's last words added, if it means that the guest is gone."""
        return error if self._launch is None else self._launch.failure(error)

    def _running(self) -> Launch:
        if self._launch is None:
            raise GuestError("this guest was not started: use it in a with block, or call start()")
        return self._launch

    def _wired(self) -> Wiring:
        if self._wiring is None:
            raise GuestError("this guest has no network: net=False and vsock=False, or not started")
        return self._wiring


def _argv(cmd: str | Sequence[str]) -> list[str]:
    return ["sh", "-c", cmd] if isinstance(cmd, str) else list(cmd)
