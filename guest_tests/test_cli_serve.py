"""`guestwire serve`: a QEMU started by somebody else, with the very arguments it prints."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS, command_line, environment, guestwire
from qemu.guest.agent.build import build_agent
from qemu.guest.argv import QemuConfig, machine_arguments
from qemu.guest.config import DEFAULT_QEMU
from qemu.guest.image import UDHCPC_SCRIPT, ImageContent, write_image
from qemu.guest.kernel import find_kernel
from qemu.guest.launch import Launch, private_directory


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as directory:
        yield Path(directory)


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`guestwire serve` and the QEMU arguments it printed."""
    with subprocess.Popen(
        command_line("serve", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
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


def test_a_qemu_with_the_printed_arguments_gets_a_lease_and_a_vsock(place: Path) -> None:
    options = ["--net", str(place / "net"), "--vsock", str(place / "vsock"), "--cid", "77", "--address", "10.9.8.1/24"]
    with serving(*options) as (process, printed):
        kernel, directory = find_kernel(), private_directory()
        write_image(directory / "initrd", kernel, build_agent(), ImageContent())
        # The printed arguments choose machine and memory exactly as our own launcher does; the rest is added.
        start = 1 + len(machine_arguments(QemuConfig(DEFAULT_QEMU, Path(), Path())))

        def configure(console: int, qmp: int, agent: int) -> QemuConfig:
            config = QemuConfig(DEFAULT_QEMU, kernel.image, directory / "initrd", extra=tuple(printed[start:]))
            assert printed[:start] == [DEFAULT_QEMU, *machine_arguments(config)]
            return QemuConfig(
                config.binary,
                config.kernel,
                config.initrd,
                console_fd=console,
                qmp_fd=qmp,
                agent_fd=agent,
                extra=config.extra,
            )

        launch = Launch(configure, directory)
        try:
            launch.wait_booted(SECONDS)
            script = f"ip link set eth0 up && udhcpc -i eth0 -n -q -f -s {UDHCPC_SCRIPT} && ping -c 1 10.9.8.1"
            result = launch.agent.start(["sh", "-c", script]).communicate(timeout=SECONDS)
            assert result.rc == 0, result.stdout + result.stderr
            assert "lease ip=10.9.8." in result.stdout
            assert "10.9.8.1" in result.stdout
            refused = launch.agent.start(["@load", "send", "vsock", "2", "9", "bytes=1"]).communicate(timeout=SECONDS)
            assert "Connection reset by peer" in refused.stderr  # CID 2 answers: nobody listens there
        finally:
            launch.close()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert "front-end connected" in said
        assert list(place.iterdir()) == []  # the socket files are gone


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
