"""Debian 13 with systemd 257 from a disk image that nothing of ours is installed in: boot, ssh, what systemd reports.

One boot for all of it, about half a minute of processor time under TCG.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest_tests.images import TRIXIE, debian_image, proxy_command
from guest_tests.traces import command_line, environment
from qemu.guest import Guest, SetupError
from qemu.guest.journal import JournalEntry

pytestmark = pytest.mark.long

SCALE = 4.0  # the machine may be busy with other tests
SSH_SECONDS = 240.0
#: What a Debian without a network set up is told to have one: systemd's own words.
NETWORK = ("ip=dhcp", "systemd.wants=systemd-networkd.service", "systemd.wants=systemd-network-generator.service")
FAST = ("systemd.mask=apt-daily.timer", "systemd.mask=apt-daily-upgrade.timer", "systemd.mask=fstrim.timer")


@dataclass
class Machine:
    vm: Guest
    disk: Path
    proxy: str
    uds: Path
    before: bytes
    shown: list[JournalEntry]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    image = debian_image(TRIXIE)
    disk = image / "disk.qcow2"
    before = hashlib.sha256(disk.read_bytes()).digest()
    uds = tmp_path_factory.mktemp("v") / "s"
    shown: list[JournalEntry] = []
    with Guest(
        image=disk,
        memory_mib=512,
        systemd=True,
        journal_tee=shown.append,
        vsock_uds=uds,
        timeout_scale=SCALE,
        append=(*NETWORK, *FAST),
    ) as vm:
        yield Machine(vm, disk, proxy_command(image), uds, before, shown)
    assert not list(uds.parent.glob("s*")), "the hybrid socket goes away with the guest"
    assert hashlib.sha256(disk.read_bytes()).digest() == before, "the image was written to"


def ssh(command: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=SSH_SECONDS, check=False)


def test_systemd_is_process_1_and_the_agent_works_beside_it(machine: Machine) -> None:
    vm = machine.vm
    assert vm.system_state == "running", vm.run("systemctl --failed").stdout
    assert vm.run("cat /proc/1/comm").stdout == "systemd\n"
    assert vm.run("exit 7").rc == 7
    vm.put("/root/file", b"\0binary\xff")
    assert vm.get("/root/file") == b"\0binary\xff"
    assert vm.run("hostname", check=True).stdout == "trixie\n"
    assert vm.findings == []


def test_the_kernels_modules_came_along(machine: Machine) -> None:
    assert machine.vm.run("modprobe vfat && grep -c vfat /proc/filesystems", check=True).stdout == "1\n"


def test_networkd_took_a_lease_from_the_gateway(machine: Machine) -> None:
    vm = machine.vm
    vm.wait_until(lambda: vm.address, timeout=60)
    assert vm.address in vm.run("ip -4 -o addr show", check=True).stdout


def test_readiness_came_over_vsock(machine: Machine) -> None:
    reports = machine.vm.systemd
    assert reports.version == 257
    assert reports.wait("READY", timeout=60) == "1"
    told = {name for message in reports.messages for name in message}
    assert {"X_SYSTEMD_HOSTNAME", "X_SYSTEMD_MACHINE_ID", "X_SYSTEMD_UNIT_ACTIVE", "STATUS"} <= told
    active = [message.get("X_SYSTEMD_UNIT_ACTIVE") for message in reports.messages]
    assert active.index("basic.target") < active.index("multi-user.target")


def test_the_journal_came_over_vsock_with_its_structure(machine: Machine) -> None:
    vm = machine.vm
    vm.run("logger -t probe -p user.warning 'a line of mine' || systemd-cat -t probe -p warning echo 'a line of mine'")
    entry = vm.systemd.wait_entry("a line of mine", timeout=60 * SCALE)
    assert (entry.get("SYSLOG_IDENTIFIER"), entry.priority) == ("probe", "warning")
    assert entry.get("_BOOT_ID").replace("-", "") == vm.read("/proc/sys/kernel/random/boot_id").strip().replace("-", "")
    assert any(each.unit == "ssh.service" or "ssh" in each.message for each in vm.journal)
    assert any(each is entry for each in machine.shown), "journal_tee gets each entry"
    assert vm.journal[0].message.startswith("Linux version ")


@pytest.mark.parametrize("via", ["net", "vsock"])
def test_ssh_logs_in_and_keeps_exit_codes(machine: Machine, via: str) -> None:
    command = machine.vm.ssh_command(via="net" if via == "net" else "vsock")
    done = ssh(command, "echo $SSH_CONNECTION; exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert ("10.0.2." in done.stdout) == (via == "net"), done.stdout


def test_systemds_ssh_proxy_reaches_it_through_the_hybrid_socket(machine: Machine, tmp_path: Path) -> None:
    """`ssh vsock-mux/PATH`, with the lines of systemd's own 20-systemd-ssh-proxy.conf."""
    command = machine.vm.ssh_command(via="vsock")
    theirs = (
        f"Host vsock-mux/*\n    ProxyCommand {machine.proxy} %h %p\n    ProxyUseFdpass yes\n    CheckHostIP no\n"
        "    Port 22\nHost *\n"
    )
    ours = Path(command[2]).read_text().partition("\n")[2]
    config = tmp_path / "config"
    config.write_text(theirs + "".join(f"{line}\n" for line in ours.splitlines() if "HostName" not in line))
    done = ssh(["ssh", "-F", str(config), f"vsock-mux{machine.uds}"], "exit 9")
    assert (done.returncode, done.stderr) == (9, "")


@pytest.mark.parametrize("way", ["guestwire", "socat"])
def test_other_programs_reach_it_through_the_hybrid_socket(machine: Machine, way: str, tmp_path: Path) -> None:
    command = machine.vm.ssh_command(via="vsock")
    proxy = " ".join(command_line("vsock", "connect", str(machine.uds), "22"))
    if way == "socat":
        assert shutil.which("socat"), "tools/system-packages long installs it"
        script = tmp_path / "dial"
        # What a shell does with the protocol: say CONNECT, read the line that answers, join the streams.
        socat = f"socat -t 600 - UNIX-CONNECT:{machine.uds}"
        script.write_text(f"#!/bin/sh\n{{ echo CONNECT 22; cat; }} | {socat} | {{ read -r ok; cat; }}\n")
        script.chmod(0o755)
        proxy = str(script)
    done = subprocess.run(
        [*command[:1], "-o", f"ProxyCommand={proxy}", *command[1:], "exit 5"],
        capture_output=True,
        text=True,
        timeout=SSH_SECONDS,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (5, "")


def test_a_user_there_is_not_is_named(machine: Machine) -> None:
    with pytest.raises(SetupError, match="no user 'nobody-here'"):
        machine.vm.ssh_command(user="nobody-here")


def test_power_off_is_clean_and_its_exit_status_is_told(machine: Machine) -> None:
    """The last one: systemd ends the services, unmounts the disk, and says EXIT_STATUS on its way out."""
    vm = machine.vm
    begun = time.monotonic()
    assert vm.power_off(timeout=60) == 0
    assert vm.systemd.exit_status == 0
    assert vm.systemd.wait("X_SYSTEMD_SHUTDOWN", timeout=1) == "poweroff"
    assert vm.console.wait_for("reboot: Power down", timeout=10)
    assert time.monotonic() - begun < 60 * SCALE
