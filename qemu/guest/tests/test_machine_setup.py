"""What the README's commands do before anything else: system packages are installed where that is allowed, otherwise
the exact command is printed and nothing else happens.

The script runs for real, on a PATH of this test's own: tools that are there, tools that are missing, and an apt-get and
a sudo that only write down how they were called.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tools" / "system-packages"
#: What the script itself needs: nothing that installs anything.
TOOLS = ("sh", "sort", "tr", "sed", "head", "tail", "mktemp", "rm", "env", "grep", "true")


class Machine:
    """A directory that is all of PATH. `calls()` is what would have been done to the machine."""

    def __init__(self, path: Path, *, uid: int, sudo: bool, apt: bool = True) -> None:
        self.path, self.log = path, path / "calls"
        for tool in TOOLS:
            (path / tool).symlink_to(shutil.which(tool) or tool)
        self.program("id", f"echo {uid}")
        if apt:
            self.program("apt-get", f'echo "apt-get $*" >>{self.log}')
            self.program("apt-cache", 'echo "  Depends: clang-14"')
        self.program("sudo", f'echo "sudo $*" >>{self.log}; shift; exec "$@"' if sudo else "exit 1")

    def program(self, name: str, body: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.path / name).chmod(0o755)

    def run(self, *purposes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", SCRIPT, *purposes],
            env={"PATH": str(self.path), "TMPDIR": str(self.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


#: What a guest needs at run time. Ubuntu compresses its kernel modules with zstd, which Python cannot read before 3.14.
UBUNTU = "\nID=ubuntu\n" in "\n" + Path("/etc/os-release").read_text()
RUN = ["busybox-static", "qemu-system-x86", *(["zstd"] if UBUNTU else [])]
#: Every purpose on a machine that has nothing.
EVERYTHING = " ".join(
    sorted(
        [
            *RUN,
            *["clang", "cpio", "gcc", "iproute2", "libc6-dev", "libclang-rt-14-dev"],
            *["python3", "python3-dev", "python3-venv", "tshark"],
        ]
    )
)


def test_without_root_and_sudo_the_exact_command_is_printed_and_nothing_else_happens(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000, sudo=False)
    done = machine.run("build", "run", "test", "fuzz")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "System packages are missing, and installing them needs root. Run this, then try again:\n"
        f"    sudo apt-get update && sudo apt-get install -y --no-install-recommends {EVERYTHING}\n"
    )
    assert machine.calls() == []


@pytest.mark.parametrize(("uid", "sudo"), [(0, False), (1000, True)], ids=["root", "sudo"])
def test_with_root_or_sudo_without_a_password_they_are_installed(uid: int, sudo: bool, tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=uid, sudo=sudo)
    done = machine.run("run")
    assert done.returncode == 0, done.stderr
    apt = [call for call in machine.calls() if call.startswith("apt-get")]
    install = f"install -y --no-install-recommends {' '.join(RUN)}"
    assert apt == ["apt-get update -q", f"apt-get {install}"]
    by_sudo = [call for call in machine.calls() if call.startswith("sudo")]
    environment = "env DEBIAN_FRONTEND=noninteractive"
    wanted = ["sudo -n true", f"sudo -n {apt[0]}", f"sudo -n {environment} {apt[1]}"]
    assert by_sudo == (wanted if sudo else [])
    assert not list(tmp_path.glob("tmp.*"))


def test_what_is_there_is_not_installed_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=0, sudo=False)
    machine.program("qemu-system-x86_64", "exit 0")
    machine.program("busybox", "echo udhcpc")
    machine.program("zstd", "exit 0")
    done = machine.run("run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls() == []


def test_a_busybox_without_a_dhcp_client_is_not_enough(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000, sudo=False)
    machine.program("qemu-system-x86_64", "exit 0")
    machine.program("busybox", "echo sh")
    machine.program("zstd", "exit 0")
    assert machine.run("run").stderr.endswith("--no-install-recommends busybox-static\n")


def test_a_failed_installation_shows_what_apt_said(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=0, sudo=False)
    machine.program("apt-get", "echo 'E: no such luck'; exit 100")
    done = machine.run("run")
    assert done.returncode == 1
    assert done.stderr == f"E: no such luck\napt-get could not install: {' '.join(RUN)}\n"


def test_without_apt_the_packages_are_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=0, sudo=False, apt=False)
    done = machine.run("run")
    assert done.returncode == 1
    assert done.stderr.endswith(f"are needed first: {' '.join(RUN)}\n")


def test_an_unknown_purpose_is_refused(tmp_path: Path) -> None:
    done = Machine(tmp_path, uid=0, sudo=False).run("holiday")
    assert (done.returncode, done.stderr) == (2, "tools/system-packages: unknown purpose 'holiday'\n")


def test_the_recipe_for_ci_names_every_package_a_guest_needs(tmp_path: Path) -> None:
    """docs/ci.md lists them for those who install first."""
    recipe = (ROOT / "docs" / "ci.md").read_text()
    listed = re.findall(r"apt-get install -y --no-install-recommends (.*zstd)", recipe)
    needed = Machine(tmp_path, uid=1000, sudo=False).run("build", "run").stderr.split("--no-install-recommends ")[1]
    assert len(listed) == 1
    assert set(needed.split()) - {"python3"} <= set(listed[0].split())


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY:(.*)", makefile, re.MULTILINE)[0].split()
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    lines = dict(re.findall(r"^  make (\S+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert set(lines) == {target for target in targets if not target.startswith("system-")}
    assert {"help", "demo", "test", "bench", "lint", "fuzz", "clean"} <= set(lines)
