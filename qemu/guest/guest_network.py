"""What can be done with a guest's network: reach its ports, wait for them, pull cables, plug devices in and out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from qemu.guest.command import Command
from qemu.guest.errors import GuestError, GuestTimeoutError, SetupError
from qemu.guest.guest_files import GuestFiles

if TYPE_CHECKING:
    from qemu.guest.forward import Forward
    from qemu.guest.hotplug import Plugged, Slots
    from stack import Network
    from stack.link import Impairment, PathStats
    from stack.link.impaired import ImpairedDevice, Moment, Timeline

READY_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.05
#: The column `st` of /proc/net/tcp and /proc/net/udp for a socket that takes what comes (net/tcp_states.h).
_WAITING_STATE: Final = {"tcp": "0A", "udp": "07"}


class _Line(NamedTuple):
    """A guest's cable, and the Network whose lock guards it."""

    network: Network
    device: ImpairedDevice


@dataclass(frozen=True, slots=True)
class Listening:
    """That somebody in the guest listens on a port: for `spawn` and `wait_until`."""

    port: int
    protocol: Literal["tcp", "udp"]

    def command(self) -> str:
        """A shell command of the guest's that ends when it is so."""
        state = _WAITING_STATE[self.protocol]
        tables = f"/proc/net/{self.protocol} /proc/net/{self.protocol}6"
        look = f"grep -qsE '^ *[0-9]+: [0-9A-F]+:{self.port:04X} [0-9A-F]+:0000 {state} ' {tables}"
        return f"until {look}; do sleep 0.01; done"

    def __str__(self) -> str:
        return f"somebody to listen on {self.protocol} port {self.port}"


#: What can be waited for: a listener, a shell command of the guest's that succeeds, a function that is true.
Ready = Listening | str | Callable[[], object]


class GuestNetwork(GuestFiles):
    """A guest whose network can be used and changed."""

    def listening(self, port: int, protocol: Literal["tcp", "udp"] = "tcp") -> Listening:
        """That the guest listens on `port`: ``spawn("httpd -f", ready=guest.listening(80))``."""
        if not 0 < port < 65536:
            raise SetupError(f"{port} is no port")
        return Listening(port, protocol)

    def wait_until(self, ready: Ready, *, timeout: float = READY_SECONDS, command: Command | None = None) -> None:
        """Until `ready` is so. Raises GuestTimeoutError, or GuestError at once if `command` ends before that."""
        seconds = timeout * self.config.timeout_scale
        deadline = time.monotonic() + seconds
        waiting: Command | None = None
        if not callable(ready):
            look = ready.command() if isinstance(ready, Listening) else f"until {ready}; do sleep 0.01; done"
            waiting = self.spawn(f"({look}) >/dev/null 2>&1")
        try:
            while True:
                if waiting is None and callable(ready) and ready():
                    return
                try:
                    # Whatever is waited for, a command that ends is noticed soon.
                    if waiting is not None:
                        waiting.wait(timeout=_LOOK_SECONDS)
                        return
                    if command is not None:
                        command.wait(timeout=_LOOK_SECONDS)
                    else:
                        time.sleep(_LOOK_SECONDS)
                except GuestTimeoutError:
                    pass
                if command is not None and command.exit is not None:
                    raise GuestError(f"waiting for {_named(ready)}, but {_ended(command)}")
                if time.monotonic() > deadline:
                    raise GuestTimeoutError(self._running().explain(f"waited {seconds:g} s for {_named(ready)}"))
        finally:
            if waiting is not None:
                waiting.kill()

    def spawn(
        self,
        cmd: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bool = False,
        ready: Ready | None = None,
        timeout: float = READY_SECONDS,
    ) -> Command:
        """Start a command and leave it running; see `Command`. With `stdin` its input can be written.

        With `ready` it is waited for, `timeout` seconds at most; a command that is not ready by then is killed.
        """
        command = super().spawn(cmd, env=env, cwd=cwd, stdin=stdin)
        if ready is not None:
            try:
                self.wait_until(ready, timeout=timeout, command=command)
            except BaseException:
                command.kill()
                raise
        return command

    def connect(self, port: int, *, timeout: float = _CONNECT_SECONDS) -> Any:
        """A TCP connection from the gateway to the guest's `port`: a socket of `stack.socket`, with that timeout.

        Raises OSError as `socket.create_connection` does.
        """
        seconds = timeout * self.config.timeout_scale
        return self.stack.socket.create_connection((self._lease(), port), timeout=seconds)

    def forward(self, port: int) -> Forward:
        """Make the guest's TCP `port` reachable for other programs: ``host, number = guest.forward(80).address``.

        It listens on 127.0.0.1, on a port the kernel chooses, until it is closed or the guest is.
        """
        from qemu.guest.forward import Forward

        forward = Forward(lambda: self.connect(port))
        self._undo.callback(forward.close)
        return forward

    def set_link(self, up: bool) -> None:
        """Pull the card's cable, or put it back: the guest sees its carrier go and come."""
        self._wired()
        name = self._net_card.device if self._net_card is not None else "net0"
        self.qmp.execute("set_link", {"name": name, "up": up})

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

    def impair(self, to_guest: Impairment | None = None, from_guest: Impairment | None = None) -> None:
        """From now on the card's line is like this, each direction by itself; None is a perfect direction.

        `stack.link.impaired.PARTITION` lets nothing through without the guest seeing its carrier go. A seed in the
        impairments makes a run repeatable as far as a real guest is. Packets are impaired one by one, as a wire would.
        """
        line = self._line()
        with line.network.lock:
            line.device.impair(to_guest, from_guest)
            line.network.finish()

    def mend(self) -> None:
        """Nothing is wrong with the card's line any more; what is under way still arrives when it was to."""
        line = self._line()
        with line.network.lock:
            line.device.mend()
            line.network.finish()

    @contextmanager
    def impaired(self, to_guest: Impairment | None = None, from_guest: Impairment | None = None) -> Iterator[None]:
        """`impair` and `mend` around a block."""
        self.impair(to_guest, from_guest)
        try:
            yield
        finally:
            self.mend()

    def timeline(self, moments: Sequence[Moment]) -> Timeline:
        """Impair the line as planned, from now on; `cancel` of what is returned, lock held, ends that.

        Raises ValueError for moments that are not in order.
        """
        from stack.link.impaired import Timeline

        line = self._line()
        with line.network.lock:
            timeline = Timeline(line.network.scheduler, line.device, moments)
            line.network.finish()
        return timeline

    @property
    def line_stats(self) -> tuple[PathStats, PathStats]:
        """What became of packets since the line was last impaired: (to the guest, from the guest)."""
        return self._line().device.stats

    def _line(self) -> _Line:
        wiring = self._wired()
        if wiring.line is None:
            raise GuestError("this guest has no network card: net=False")
        return _Line(wiring.network, wiring.line)

    def hotplug(self, driver: str, **options: object) -> Plugged:
        """Plug one of QEMU's PCI devices into a spare root port: ``guest.hotplug("virtio-rng-pci")``.

        Underscores in names of options stand for dashes. Raises SetupError without a free port, QmpError with QEMU's
        reason.
        """
        return self._ports().plug(driver, {key.replace("_", "-"): value for key, value in options.items()})

    def unplug(self, plugged: Plugged | Literal["net", "vsock"], *, timeout: float = 15.0) -> None:
        """Take a device out: what `hotplug` returned, or the guest's own card or vsock.

        These come back when they are used again. Connections over the vsock end with ECONNRESET, those over the card
        as over a pulled cable. Raises GuestTimeoutError if the guest does not let go of it.
        """
        with self._plugging:
            slots = self._ports()
            own = {"net": self._net_card, "vsock": self._vsock_card}.get(plugged) if isinstance(plugged, str) else None
            if isinstance(plugged, str):
                if own is None:
                    return
                plugged_device = own
            else:
                plugged_device = plugged
            slots.unplug(plugged_device, timeout=timeout * self.config.timeout_scale)
            if plugged == "net":
                self._net_card, self._address = None, ""
            elif plugged == "vsock":
                self._vsock_card = None

    def _lease(self) -> str:
        address = self.address
        if not address:
            raise GuestError("this guest has no address: no card, no lease, or on a switch of yours")
        return address

    def _ports(self) -> Slots:
        if self._slots is None and self.config.ports and self._launch is not None:
            with self._plugging:
                if self._spare is None:
                    from qemu.guest.hotplug import slots_of

                    self._spare = slots_of(self._launch)
                return self._spare
        if self._slots is None:
            raise SetupError("devices can be plugged into a guest that was started with template=True or spare_ports")
        return self._slots


def _named(ready: Ready) -> str:
    if isinstance(ready, Listening):
        return str(ready)
    return f"{ready!r} to succeed" if isinstance(ready, str) else f"{getattr(ready, '__name__', ready)} to be true"


def _ended(command: Command) -> str:
    streams = []
    for stream, name in ((1, "stdout"), (2, "stderr")):
        text = b""
        try:
            while data := command.read(stream, timeout=1.0):
                text += data
        except GuestError:
            pass
        if text.strip():
            streams.append(f"--- {name}\n{text.decode(errors='replace').rstrip()[-4000:]}")
    return "\n".join([f"{' '.join(command.args)!r} ended with {command.poll()}", *streams])
