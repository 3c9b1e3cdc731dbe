"""Everything that can be wrong with a guest is one clear error with its remedy, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_tests.traces import SECONDS, ended, environment, guest_directories
from qemu.guest import Guest, GuestDiedError, GuestTimeoutError, MissingError, SetupError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of its own; afterwards no guest has left anything in it, nor a thread or descriptor."""
    place = Path(tempfile.mkdtemp(prefix="gw-test-", dir="/tmp"))  # short: sockets live below it
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    threads = threading.active_count()
    gc.collect()  # what others left goes now, not in between
    descriptors = len(os.listdir("/proc/self/fd"))
    yield place
    assert guest_directories(place) == []
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    shutil.rmtree(place)


def test_missing_qemu_is_named_with_the_command_that_installs_it(place: Path) -> None:
    with pytest.raises(MissingError, match=r"no qemu-system-nothing on PATH: apt-get install qemu-system-x86"):
        Guest(qemu="qemu-system-nothing").start()


def test_a_kernel_that_is_none_is_named(place: Path) -> None:
    (place / "vmlinuz").write_bytes(b"not a kernel" * 1000)
    with pytest.raises(SetupError, match="is no kernel: expected an x86 bzImage or an ELF vmlinux"):
        Guest(kernel=place / "vmlinuz").start()
    with pytest.raises(SetupError, match="cannot read the kernel"):
        Guest(kernel=place / "missing").start()


def test_an_elf_file_that_is_no_kernel_is_named(place: Path) -> None:
    with pytest.raises(SetupError, match=r"has no PVH entry for QEMU to boot it at: build it with CONFIG_PVH=y"):
        Guest(kernel=Path(sys.executable).resolve(), kvm=False).start()


def test_a_module_that_does_not_exist_is_named(place: Path) -> None:
    with pytest.raises(SetupError, match="kernel module no_such_module is neither in"):
        Guest(modules=("no_such_module",)).start()


def test_a_program_that_cannot_be_packed_is_named(place: Path) -> None:
    with pytest.raises(SetupError, match="no-such-program"):
        Guest(programs=("no-such-program",)).start()


def test_qemus_refusal_is_passed_on(place: Path) -> None:
    with pytest.raises(GuestDiedError, match="no-such-device"):
        Guest(net=False, vsock=False, extra=("-device", "no-such-device")).start()


def test_a_guest_that_panics_ends_at_once_with_the_reason(place: Path) -> None:
    with pytest.raises(
        GuestDiedError, match=r"(?s)the kernel said: Kernel panic - not syncing.*--- the console's last"
    ):
        Guest(append=("rdinit=/no/such/init", "init=/no/such/init"), boot_timeout=SECONDS).start()


def test_a_guest_that_never_answers_times_out_with_the_consoles_tail(place: Path) -> None:
    with pytest.raises(GuestTimeoutError, match=r"(?s)waited .* s for the guest's agent.*last lines\n.*Run /bin/sleep"):
        Guest(append=("rdinit=/bin/sleep", "--", "1000"), boot_timeout=20).start()


def test_a_guest_that_dies_under_a_command_is_reported(place: Path) -> None:
    with Guest(net=False, vsock=False) as guest:
        with pytest.raises(GuestDiedError, match=r"(?s)the kernel said: Kernel panic - not syncing: sysrq"):
            guest.run("echo c > /proc/sysrq-trigger; sleep 1000", timeout=SECONDS)
        with pytest.raises(GuestDiedError):
            guest.run("true")


def test_killing_qemu_ends_what_waits_for_the_guest(place: Path) -> None:
    with Guest(net=False, vsock=False) as guest:
        command = guest.spawn("sleep 1000")
        os.kill(guest.pid, signal.SIGKILL)
        with pytest.raises(GuestDiedError):
            command.wait(timeout=SECONDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cid": 2}, "CID 2 is reserved"),
        ({"mtu": 10}, "mtu 10"),
        ({"address": "10.0.2.2"}, "10.0.2.2"),
        ({"address": "nonsense/24"}, "nonsense"),
        ({"memory_mib": 1}, "at least 64 MiB"),
        ({"pcap": Path("/no/such/directory/x.pcapng")}, "cannot write the capture /no/such/directory"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_parameters_are_named(place: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        Guest(**change).start()


def test_a_cid_in_use_is_named_and_its_owner_lives_on(guest: Guest, place: Path) -> None:
    with pytest.raises(SetupError, match=f"CID {guest.vsock.cid} cannot be used"):
        Guest(stack=guest.stack, net=False, cid=guest.vsock.cid).start()
    assert guest.run("true").succeeded


def test_a_long_tmpdir_still_gives_short_socket_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = place / ("x" * 90) / ("y" * 60)
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Guest() as guest:
        assert guest.run("true").succeeded


def test_interrupting_the_boot_leaves_nothing(place: Path) -> None:
    script = (
        "from qemu.guest import Guest\nprint('go', flush=True)\nGuest(append=('rdinit=/bin/sleep','--','1000')).start()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(TMPDIR=str(place)),
    ) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(3)
        launcher.send_signal(signal.SIGINT)
        _, said = launcher.communicate(timeout=SECONDS)
    assert launcher.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in said


LAUNCHER = """
import os, threading
from qemu.guest import Guest
guest = Guest()
thread = threading.Thread(target=guest.start)  # the thread that forks does not live as long as the guest
thread.start(); thread.join()
print(guest.pid, guest.address, flush=True)
threading.Event().wait()
"""


def test_sigkill_of_the_launcher_leaves_nothing(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, env=environment(TMPDIR=str(place))
    ) as launcher:
        assert launcher.stdout is not None
        pid, address = launcher.stdout.readline().split()
        assert address == b"10.0.2.15"
        [directory] = guest_directories(place)
        assert not list((place / directory).glob("net")) + list((place / directory).glob("vsock"))  # unlinked already
        launcher.kill()
    assert ended(int(pid))
    for _ in range(int(SECONDS / 0.05)):  # QEMU is killed first, then the directory goes
        if not guest_directories(place):
            break
        threading.Event().wait(0.05)
    assert guest_directories(place) == []
