"""Whatever a guest, a command or a user does wrong ends in a clear report, with nothing left running or kept wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_tests.project import run_project
from guest_tests.traces import SECONDS, environment, guest_directories
from qemu.guest import (
    CommandTimeoutError,
    Guest,
    GuestConfig,
    GuestDiedError,
    KernelTroubleError,
    OutputLimitError,
)
from qemu.guest.templates import template


@pytest.fixture
def vm() -> Iterator[Guest]:
    with Guest(template=True, net=False, vsock=False) as vm:
        yield vm


def test_a_guest_that_hangs_is_told_of_in_time(vm: Guest) -> None:
    vm.pause()  # no processor runs any more: nothing in it will ever answer
    with pytest.raises(CommandTimeoutError, match=r"'sh -c true' in the guest did not end within 0.5 s and was killed"):
        vm.run("true", timeout=0.5)


def test_a_guest_that_fills_its_console_can_be_worked_with(vm: Guest) -> None:
    noise = vm.spawn("while :; do dmesg > /dev/console; yes 'BUG or not' | head -c 100000 > /dev/console; done")
    done = vm.run("for n in 1 2 3 4 5; do echo $n; usleep 20000; done", timeout=SECONDS, check=True)
    assert done.stdout.split() == ["1", "2", "3", "4", "5"]
    noise.kill()
    noise.wait(timeout=SECONDS)
    assert len(vm.console.text) <= vm.console.limit
    assert vm.console.dropped or vm.console.text


def test_a_guest_that_runs_out_of_memory_says_who_was_killed_and_lives_on(vm: Guest) -> None:
    result = vm.run("tail /dev/zero", timeout=SECONDS)
    assert (result.succeeded, result.signal) == (False, signal.SIGKILL)
    assert [finding.kind for finding in vm.findings] == ["out of memory"]
    assert not vm.findings[0].fatal
    assert "Out of memory: Killed process" in str(vm.findings[0])
    assert vm.run("echo still here").stdout == "still here\n"


def test_binary_output_comes_back_as_it_was(vm: Guest) -> None:
    data = bytes(range(256)) * 400
    result = vm.run("cat", input=data)
    assert result.stdout_bytes == data
    assert result.stdout.count("\N{REPLACEMENT CHARACTER}")


def test_a_command_that_prints_without_end_is_stopped_and_named(vm: Guest) -> None:
    with pytest.raises(OutputLimitError, match=r"'sh -c yes' in the guest printed more than 16777216 bytes .*y\\ny"):
        vm.run("yes", timeout=SECONDS)
    vm.run("until ! pidof yes; do usleep 10000; done", timeout=SECONDS, check=True)
    assert vm.run("echo still here").stdout == "still here\n"


@pytest.mark.long
def test_a_root_that_does_not_boot_is_reported_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qemu.guest.templates.cache_root", lambda: tmp_path)
    broken = tmp_path / "root.cpio"
    broken.write_bytes(b"this is no archive" * 1000)
    config = GuestConfig(initrd=broken, append=("rdinit=/nothing",), template=True, net=False, vsock=False)
    with pytest.raises(GuestDiedError, match=r"(?s)ended before its agent answered.*Kernel panic - not syncing"):
        template(config)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


SHARING = """
import sys
from pathlib import Path
from qemu.guest import GuestConfig, Guest, templates
templates.cache_root = lambda: Path(sys.argv[1])
with Guest(template=True, net=False, vsock=False, memory_mib=128, say=print) as guest:
    print(guest.run("echo up").stdout, flush=True)
"""


def test_two_sessions_that_share_a_cache_make_one_template(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARING, str(tmp_path)]
    sessions = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    said = [session.communicate(timeout=SECONDS)[0].split("\n") for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0]
    assert all("up" in lines for lines in said)
    assert sum("booting a guest to make a template of" in lines for lines in said) == 1
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


#: On a file system of its own, of so many MiB, in a namespace where this user may mount one.
_SMALL = 'mount -t tmpfs -o size={size}m small "$0" && exec "$@"'
FULL = """
import os, sys
from pathlib import Path
from qemu.guest import Guest, SetupError, templates
place = Path(sys.argv[1])
if sys.argv[2] == "cache":
    templates.cache_root = lambda: place
else:
    os.environ["TMPDIR"] = str(place)
try:
    Guest(template=sys.argv[3] == "template", net=False, vsock=False, memory_mib=128).start()
except SetupError as error:
    print(error)
print([path.name for path in place.iterdir() if path.is_dir()])
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "full", "how", "said"),
    [
        (1, "tmp", "boot", "root of .* cannot be written to {}/.*: No space left on device; .*TMPDIR"),
        (1, "tmp", "template", "root of .* cannot be written to {}/.*: No space left on device; .*TMPDIR"),
        (20, "cache", "template", "template.* cannot be kept in {}: No space left on device; .*XDG_CACHE_HOME"),
    ],
)
def test_a_disk_that_is_really_full_is_named_and_nothing_is_kept(
    size: int, full: str, how: str, said: str, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as place:
        enter = ["unshare", "-Urm", "sh", "-c", _SMALL.format(size=size), place]
        if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this machine lets its users mount nothing in namespaces of theirs")
        done = subprocess.run(
            [*enter, sys.executable, "-c", FULL, place, full, how],
            capture_output=True, text=True, timeout=SECONDS, env=environment(), check=True,
        )  # fmt: skip
        *words, kept = done.stdout.splitlines()
        assert re.match(said.format(place), " ".join(words).removeprefix("the guest's ")), done.stdout
        assert kept == "[]"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("BUG: KASAN: use-after-free in words", "KASAN"),
        ("WARNING: possible circular locking dependency detected", "lockdep"),
        ("kernel BUG at words.c:7!", "BUG"),
        ("Oops: 0002 [#1] PREEMPT SMP", "oops"),
        ("Kernel panic - not syncing: words", "panic"),
    ],
)
def test_a_complaint_of_each_kind_ends_what_is_waited_for_at_once(words: str, kind: str) -> None:
    with Guest(template=True, net=False, vsock=False, watch=True) as guest:
        with pytest.raises(KernelTroubleError, match=rf"the guest's kernel reported a {kind}:\n{re.escape(words)}"):
            guest.run(f"echo '{words}' > /dev/kmsg; sleep 1000", timeout=900)
        assert [(each.kind, each.fatal) for each in guest.findings] == [(kind, True)]


def test_evidence_that_cannot_be_written_costs_no_report(tmp_path: Path) -> None:
    source = "def test_it(guest):\n    guest.run('echo words; exit 3', check=True)\n"
    (tmp_path / "file").touch()
    run = run_project(tmp_path, source, "--guest-artifacts=file/below")
    assert run.code == 1
    assert "returned 3" in run.output
    assert "could not be written to" in run.sections("guest: evidence")[0]


#: Sends itself Ctrl-C at the first call of a function of ours, as a user might at any moment.
CONFTEST = """
import functools, importlib, os, signal
import pytest

def pytest_configure():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who started us may have it ignored
    name, _, attribute = {moment!r}.rpartition(":")
    module, _, kind = name.partition("/")
    owner = importlib.import_module(module)
    owner = getattr(owner, kind) if kind else owner
    wrapped = getattr(owner, attribute)

    @functools.wraps(wrapped)
    def interrupted(*arguments, **options):
        setattr(owner, attribute, wrapped)
        if {before}:
            os.kill(os.getpid(), signal.SIGINT)
        result = wrapped(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    setattr(owner, attribute, interrupted)
"""
MOMENTS = [
    "qemu.guest.templates:_build",
    "qemu.guest.launch/Launch:wait_booted",
    "qemu.guest.hotplug/Slots:plug_net",
    "qemu.guest.boot/Recipe:write_image",
    "qemu.guest.ram:new_ram",
    "qemu.guest.saved:copy_ram",
    "qemu.guest.saved:_continue",
    "qemu.guest.boot:freshen",
    "qemu.guest.process/QemuProcess:__init__",
    "qemu.guest.wiring/Wiring:__init__",
    "qemu.guest.command/Command:communicate",
    "qemu.guest.plugin.world/World:close",
    "qemu.guest.launch/Launch:close",
]
QUICK = [(MOMENTS[2], False)]
ALL = [(moment, before) for moment in MOMENTS for before in (True, False)]


@pytest.mark.parametrize(
    ("moment", "before"), [each if each in QUICK else pytest.param(*each, marks=pytest.mark.long) for each in ALL]
)
def test_ctrl_c_leaves_nothing_behind(moment: str, before: bool, tmp_path: Path) -> None:
    # Short, because sockets live below it.
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as place:
        (tmp_path / "conftest.py").write_text(CONFTEST.format(moment=moment, before=before))
        source = "def test_it(guest, net):\n    assert guest.run('true').succeeded\n"
        if moment.endswith("_build"):
            source = (
                "from pathlib import Path\nfrom qemu.guest import templates\n"
                f"templates.cache_root = lambda: Path({str(tmp_path)!r})\n{source}"
            )
        run = run_project(tmp_path, source, environment={"TMPDIR": place})
        assert run.code == 2, run.output  # interrupted
        # Who is interrupted in the middle of cleaning up leaves the rest to the reaper, a moment later.
        for _ in range(int(SECONDS / 0.05)):
            if not guest_directories(Path(place)) and not _processes_with(place):
                break
            threading.Event().wait(0.05)
        assert guest_directories(Path(place)) == []
        assert _processes_with(place) == []
    assert [path for path in tmp_path.glob("template-*") if not (path / "template.json").exists()] == []


@pytest.mark.long
def test_ctrl_c_with_several_workers_leaves_nothing_behind(tmp_path: Path) -> None:
    """At a terminal it reaches all of them at once."""
    (tmp_path / "conftest.py").write_text("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\nfrom pathlib import Path\n"
        "@pytest.mark.parametrize('number', range(4))\n"
        "def test_it(guest, net, number):\n"
        "    Path(f'up-{number}').touch()\n    guest.run('sleep 1000', timeout=900)\n"
    )
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as place:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "2",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:asyncio",
            "test_it.py",
        ]
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(TMPDIR=place),
            start_new_session=True,
            stdout=subprocess.PIPE,
            text=True,
        ) as session:
            try:
                for _ in range(int(SECONDS / 0.05)):
                    if len(list(tmp_path.glob("up-*"))) == 2:
                        break
                    threading.Event().wait(0.05)
                assert sum("qemu-system" in line for line in _processes_with(place)) == 2
                os.killpg(session.pid, signal.SIGINT)
                said, _ = session.communicate(timeout=SECONDS)
            finally:
                session.kill()
        assert session.returncode == 2, said
        assert "KeyboardInterrupt" in said
        for _ in range(int(SECONDS / 0.05)):
            if not guest_directories(Path(place)) and not _processes_with(place):
                break
            threading.Event().wait(0.05)
        assert guest_directories(Path(place)) == []
        assert _processes_with(place) == []


def _processes_with(text: str) -> list[str]:
    """Command lines of processes that name `text` there or in their environment, which a restored QEMU inherits."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                words = line + (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in words:
                found.append(line)
    return found
