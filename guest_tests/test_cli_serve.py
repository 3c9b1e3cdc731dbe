"""`guestwire serve`: a QEMU started by somebody else, with the very arguments it prints."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS, command_line, environment, guestwire
from qemu.guest.agent.build import build_agent
from qemu.guest.argv import QemuConfig, machine_arguments
from qemu.guest.config import DEFAULT_QEMU
from qemu.guest.image import UDHCPC_SCRIPT, ImageContent, write_image
from qemu.guest.kernel import find_kernel
from qemu.guest.launch import Launch, private_directory
from stack.testing import builders
from vhost_user.driver import NetDriver


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as directory:
        yield Path(directory)


@contextmanager
def serving(*words: str, descriptors: Sequence[int] = ()) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`guestwire serve` and the QEMU arguments it printed."""
    with subprocess.Popen(
        command_line("serve", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        pass_fds=descriptors,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            text = ""
            while not text or text.endswith("\\\n"):
                line = process.stdout.readline()
                assert line, process.stderr.read() if process.stderr else ""
                text += line
            yield process, shlex.split(text.replace("\\\n", ""))  # as a shell joins lines
        finally:
            process.kill()


@contextmanager
def booted(printed: list[str]) -> Iterator[Launch]:
    """A guest in a QEMU with the arguments that were printed, and nothing else on its card and vsock."""
    kernel, directory = find_kernel(), private_directory()
    write_image(directory / "initrd", kernel, build_agent(), ImageContent())
    # The printed arguments choose machine and memory exactly as our own launcher does; the rest is added.
    start = 1 + len(machine_arguments(QemuConfig(DEFAULT_QEMU, Path(), Path())))

    def configure(console: int, qmp: int, agent: int) -> QemuConfig:
        config = QemuConfig(DEFAULT_QEMU, kernel.image, directory / "initrd", extra=tuple(printed[start:]))
        assert printed[:start] == [DEFAULT_QEMU, *machine_arguments(config)]
        return replace(config, console_fd=console, qmp_fd=qmp, agent_fd=agent)

    launch = Launch(configure, directory)
    try:
        launch.wait_booted(SECONDS)
        yield launch
    finally:
        launch.close()


def shell(launch: Launch, script: str) -> str:
    result = launch.agent.start(["sh", "-c", script]).communicate(timeout=SECONDS)
    assert result.rc == 0, result.stdout + result.stderr
    return result.stdout


PING_UNTIL_ANSWERED = "until ping -c 1 -W 1 10.9.8.1; do :; done"
TAKE_A_LEASE = f"ip link set eth0 up && udhcpc -i eth0 -n -q -f -s {UDHCPC_SCRIPT}"


def test_a_qemu_with_the_printed_arguments_gets_a_lease_and_a_vsock(place: Path) -> None:
    options = ["--net", str(place / "net"), "--vsock", str(place / "vsock"), "--cid", "77", "--address", "10.9.8.1/24"]
    with serving(*options) as (process, printed):
        with booted(printed) as launch:
            said = shell(launch, f"{TAKE_A_LEASE} && ping -c 1 10.9.8.1")
            assert "lease ip=10.9.8." in said
            assert "10.9.8.1" in said
            refused = launch.agent.start(["@load", "send", "vsock", "2", "9", "bytes=1"]).communicate(timeout=SECONDS)
            assert "Connection reset by peer" in refused.stderr  # CID 2 answers: nobody listens there
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert "front-end connected" in said
        assert list(place.iterdir()) == []  # the socket files are gone


def test_the_network_survives_the_serving_process(place: Path) -> None:
    """QEMU's `reconnect=`, which the printed arguments ask for: however the back-end ended, the next one goes on with
    the same guest, and the guest keeps its address."""
    options = ["--net", str(place / "net"), "--address", "10.9.8.1/24"]
    with serving(*options) as (first, printed), booted(printed) as launch:
        shell(launch, f"{TAKE_A_LEASE} && ping -c 1 10.9.8.1")
        first.send_signal(signal.SIGTERM)
        assert first.wait(SECONDS) == 0
        with serving(*options) as (second, again):
            assert again == printed
            shell(launch, PING_UNTIL_ANSWERED)
            second.kill()  # leaves its socket file behind
            second.wait(SECONDS)
        with serving(*options):
            shell(launch, PING_UNTIL_ANSWERED)


def answer_to_arp(guest: NetDriver) -> bytes:
    """What the gateway's default address answers a guest that asks for it."""
    mac, ours, gateway = bytes.fromhex("020000000009"), bytes((10, 0, 2, 9)), bytes((10, 0, 2, 2))
    guest.send([builders.ethernet(b"\xff" * 6, mac, 0x0806, builders.arp(1, mac, ours, bytes(6), gateway))])
    return bytes(guest.recv(timeout=SECONDS)[0].data[28:32])


@pytest.mark.parametrize("listening", [False, True], ids=["connected", "listening"])
def test_fd_names_the_device_of_type(listening: bool, place: Path) -> None:
    """vhost-user.rst, "Backend program conventions": --fd=FDNUM instead of --socket-path."""
    if listening:
        theirs = socket.socket(socket.AF_UNIX)
        theirs.bind(str(place / "s"))
        theirs.listen()
        target: socket.socket | str = str(place / "s")
    else:
        theirs, target = socket.socketpair()
    number = theirs.fileno()
    with theirs, serving("--fd", str(number), "--type", "net", descriptors=[number]) as (process, printed):
        assert not any("vhost-user" in word for word in printed)  # who passes a descriptor knows where it leads
        with NetDriver(target) as guest:
            assert answer_to_arp(guest) == bytes((10, 0, 2, 2))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_capabilities_follow_qemus_conventions() -> None:
    for kind in ("net", "vsock"):
        done = guestwire("serve", "--type", kind, "--print-capabilities")
        assert (done.returncode, json.loads(done.stdout)["type"]) == (0, kind)


def test_socket_path_names_the_device_of_type(place: Path) -> None:
    with serving("--socket-path", str(place / "s"), "--type", "vsock") as (process, printed):
        assert "vhost-user-vsock-pci,chardev=chr-vsock" in printed
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(place: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(place / "net"))
    stale.close()
    with serving("--net", str(place / "net")) as (process, _):
        second = guestwire("serve", "--net", str(place / "net"))
        assert second.returncode == 125
        assert str(place / "net").encode() in second.stderr
        assert process.poll() is None


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, b"nothing to serve"),
        (["--net", "/tmp/" + "x" * 120], 125, b"Unix sockets allow 1 to 107"),
        (["--vsock", "/tmp/gw-s", "--cid", "2"], 125, b"CID 2 is reserved"),
        (["--net", "/tmp/gw-s", "--address", "10.0.2.2"], 2, b"needs a prefix"),
        (["--fd", "0"], 125, b"is no socket"),
        (["--fd", "3", "--socket-path", "x"], 2, b"exclude each other"),
        (["--net", "/no/such/directory/sock"], 125, b"/no/such/directory"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_message(words: list[str], code: int, message: bytes) -> None:
    done = guestwire("serve", *words)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr
    assert b"Traceback" not in done.stderr
