"""Finds a virtiofsd that works here, and runs one for each share.

Theory of operation
-------------------
There are two programs of that name: QEMU's own, in C (until QEMU 7.2; Debian keeps it in /usr/lib/qemu), and the one in
Rust that took its place. Both put themselves into a sandbox of namespaces or a chroot, which needs privileges that a
container may not give, so each way there is of starting one is tried, once in the life of this process: a daemon that
answers the first question of vhost-user (which features it has) works. An ordinary user's daemon runs in a user
namespace of its own, where that user is root: what the guest's root writes belongs to the user.

Read-only is the host's affair: with ``--readonly`` where the daemon has it, otherwise the daemon sees the directory
through a mount that is read-only, in a mount namespace of its own.

The socket is ours, listening before the daemon starts; the daemon gets its descriptor. So there is nothing to wait
for, and no file of the daemon's beside it.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu.guest.errors import SetupError
from qemu.guest.process import QemuProcess

_PLACES: Final = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
_HELP_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 5.0
#: vhost-user's header: request, flags (version 1), size of the payload (interop/vhost-user.rst).
_HEADER: Final = struct.Struct("<III")
_GET_FEATURES: Final = 1
_VERSION: Final = 1
_REPLY: Final = 4
_STDERR_BYTES: Final = 4000
_LAST_WORDS_SECONDS: Final = 2.0
#: For the directory in $0; the rest is the daemon's command.
_READ_ONLY: Final = 'mount --bind "$0" "$0" && mount -o "$1" "$0" && shift && exec "$@"'
_LOCKED_FLAGS: Final = (
    (os.ST_NOSUID, "nosuid"),
    (os.ST_NODEV, "nodev"),
    (os.ST_NOEXEC, "noexec"),
    (os.ST_NOATIME, "noatime"),
    (os.ST_RELATIME, "relatime"),
)


@dataclass(frozen=True, slots=True)
class Method:
    """One way to start a virtiofsd."""

    program: str
    rust: bool
    sandbox: str
    user_namespace: bool
    has_readonly: bool  #: the daemon has the option

    def command(self, directory: Path, descriptor: int, *, writable: bool) -> list[str]:
        if self.rust:
            words = [self.program, f"--fd={descriptor}", f"--shared-dir={directory}", f"--sandbox={self.sandbox}"]
            words += ["--cache=auto", *([] if writable or not self.has_readonly else ["--readonly"])]
        else:
            # timeout=0: the guest asks again each time, so what the host changes is seen at once.
            source = f"source={_escaped(str(directory))}"
            words = [self.program, "-f", f"--fd={descriptor}", "-o", source, "-o", f"sandbox={self.sandbox}"]
            words += ["-o", "cache=auto", "-o", "timeout=0"]
        mounts = not writable and not self.has_readonly
        if mounts:
            words = ["sh", "-c", _READ_ONLY, str(directory), _remount(directory), *words]
        if mounts or self.user_namespace:
            own = ["--mount"] if mounts else []
            own += ["--user", "--map-root-user"] if self.user_namespace else []
            words = ["unshare", *own, "--", *words]
        return words

    def __str__(self) -> str:
        where = ", user namespace" if self.user_namespace else ""
        return f"{self.program}, sandbox {self.sandbox}{where}"


class Daemon:
    """One virtiofsd that serves `directory` on the socket `path`. Ends with its guest, or by `close`."""

    def __init__(self, method: Method, directory: Path, path: Path, *, writable: bool) -> None:
        self._stderr = bytearray()
        self._closing = False
        self._died: Callable[[str], None] | None = None
        self._ended = threading.Event()
        with ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen(1)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, writer)
            self._reader = threading.Thread(target=self._read, args=(reader,), name="guest-virtiofsd", daemon=True)
            self._reader.start()
            self._process = QemuProcess(
                method.command(directory, listener.fileno(), writable=writable),
                inherit=[listener.fileno()],
                stderr=writer,
                remove=[path],
                on_exit=self._on_exit,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> str:
        """The end of what it said."""
        return bytes(self._stderr).decode(errors="replace").strip()

    def watch(self, died: Callable[[str], None]) -> None:
        """`died(what it said)` is called from another thread if it ends before `close`; at once if it has."""
        self._died = died
        if self._ended.is_set():
            self._on_exit()

    def let_go(self) -> None:
        """Its guest is about to let go of it: its end is no surprise."""
        self._closing = True

    def close(self) -> None:
        """End it. Idempotent."""
        self._closing = True
        self._process.close()
        self._reader.join()

    def _on_exit(self) -> None:
        self._ended.set()
        died = self._died
        if not self._closing and died is not None:
            self._died = None
            self._reader.join(_LAST_WORDS_SECONDS)
            died(self.stderr)

    def _read(self, descriptor: int) -> None:
        try:
            while data := os.read(descriptor, 4096):
                self._stderr += data
                del self._stderr[:-_STDERR_BYTES]
        finally:
            os.close(descriptor)


def method(*, writable: bool) -> Method:
    """The first way that works here. Raises SetupError with what each program said."""
    found, why = _find(writable)
    if found is None:
        raise SetupError(why)
    return found


def why_not(*, writable: bool) -> str:
    """Why there is none that works here, or ""."""
    return _find(writable)[1]


@functools.cache
def _find(writable: bool) -> tuple[Method | None, str]:
    programs = _programs()
    if not programs:
        return None, "there is no virtiofsd here (Debian: qemu-system-common, later virtiofsd)"
    said = []
    for program in programs:
        words = "it does not run"
        for method in _methods(program):
            works, words = _probe(method, writable=writable)
            if works:
                return method, ""
        said.append(f"{program} does not work here ({words})")
    return None, "; ".join(said)


def _programs() -> list[str]:
    found = [shutil.which("virtiofsd"), *(place for place in _PLACES if os.access(place, os.X_OK))]
    return list(dict.fromkeys(each for each in found if each is not None))


def _methods(program: str) -> Iterator[Method]:
    try:
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=_HELP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    rust, readonly = "--shared-dir" in done.stdout, "--readonly" in done.stdout
    root = os.geteuid() == 0
    sandboxes = ["namespace", "chroot"]
    if rust and not root:
        # Of its own accord it makes the user namespace for the one; "none" does without, and can do what its user can.
        yield Method(program, rust, "namespace", False, readonly)
        yield Method(program, rust, "none", False, readonly)
        sandboxes = ["chroot"]
    for sandbox in sandboxes:
        yield Method(program, rust, sandbox, not root, readonly)


def _probe(method: Method, *, writable: bool) -> tuple[bool, str]:
    """(whether a daemon started so answers, the last thing it said)."""
    with tempfile.TemporaryDirectory(prefix="guestwire-") as directory:
        shared = Path(directory, "shared")
        shared.mkdir()
        try:
            daemon = Daemon(method, shared, Path(directory, "socket"), writable=writable)
        except (SetupError, OSError) as error:
            return False, str(error)
        try:
            answered = _answers(Path(directory, "socket"))
        finally:
            daemon.close()
        lines = daemon.stderr.splitlines()
        return answered, lines[-1] if lines else "it said nothing"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.settimeout(_PROBE_SECONDS)
        connection.connect(str(path))
        connection.sendall(_HEADER.pack(_GET_FEATURES, _VERSION, 0))
        answer = b""
        while len(answer) < _HEADER.size + 8:
            more = connection.recv(_HEADER.size + 8 - len(answer))
            if not more:
                return False
            answer += more
        request, flags, length = _HEADER.unpack_from(answer)
        return (request, length) == (_GET_FEATURES, 8) and bool(flags & _REPLY)
    return False


def _remount(directory: Path) -> str:
    """In a user namespace the flags that a mount has must stay."""
    flags = os.statvfs(directory).f_flag
    return ",".join(["remount", "bind", "ro", *(word for bit, word in _LOCKED_FLAGS if flags & bit)])


def _escaped(text: str) -> str:
    """FUSE's option parser: a comma separates, a backslash takes the meaning from what follows."""
    return text.replace("\\", "\\\\").replace(",", "\\,")
