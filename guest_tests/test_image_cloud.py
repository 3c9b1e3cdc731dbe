"""Debian 12 as cloud images are: a partitioned disk, systemd 252, cloud-init told what to do by the gateway.

One boot for all of it, about a minute of processor time under TCG.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from guest_tests.images import BOOKWORM, ROOT_PARTUUID, debian_image
from qemu.guest import Guest, GuestConfig, GuestError, GuestTimeoutError, SetupError
from qemu.guest.cloud_init import CloudInit

pytestmark = pytest.mark.long

SCALE = 4.0  # the machine may be busy with other tests
SSH_SECONDS = 240.0
USER_DATA = """\
#cloud-config
write_files:
  - {path: /etc/told, content: "by user-data\\n"}
runcmd: [[sh, -c, "echo ran > /run/command"]]
"""
#: What a test guest does without.
FAST = tuple(
    f"systemd.mask={unit}"
    for unit in ("e2scrub_reap.service", "apt-daily.timer", "apt-daily-upgrade.timer", "systemd-binfmt.service")
)


@pytest.fixture(scope="module")
def vm() -> Iterator[Guest]:
    disk = debian_image(BOOKWORM) / "disk.qcow2"
    with Guest(
        image=disk,
        memory_mib=512,
        systemd=True,
        cloud_init=CloudInit(user_data=USER_DATA),
        timeout_scale=SCALE,
        append=FAST,
    ) as guest:
        yield guest


def test_the_partition_with_the_root_was_found(vm: Guest) -> None:
    assert vm.system_state == "running", vm.run("systemctl --failed").stdout
    assert vm.run("findmnt -no SOURCE /", check=True).stdout == "/dev/vda1\n"
    # The image's own fstab: by PARTUUID, and a vfat whose module came along.
    assert vm.run("findmnt -no SOURCE,FSTYPE /boot/efi", check=True).stdout.split() == ["/dev/vda15", "vfat"]


def test_cloud_init_took_what_the_gateway_told(vm: Guest) -> None:
    assert vm.run("cloud-init status", check=True).stdout == "status: done\n"
    assert vm.read("/etc/told") == "by user-data\n"
    assert vm.read("/run/command") == "ran\n"
    assert vm.run("hostname", check=True).stdout == "guest\n"
    assert "DataSourceNoCloudNet" in vm.read("/run/cloud-init/result.json")


def test_its_network_is_what_cloud_init_made_of_it(vm: Guest) -> None:
    assert vm.address
    assert vm.address in vm.run("ip -4 -o addr show", check=True).stdout
    assert "auto" in vm.run("cat /etc/network/interfaces.d/50-cloud-init", check=True).stdout


@pytest.mark.parametrize("user", ["root", "debian"])
def test_cloud_init_let_the_guests_key_in(vm: Guest, user: str) -> None:
    home = "/root" if user == "root" else "/home/debian"
    assert vm.ssh_key in vm.read(f"{home}/.ssh/authorized_keys")
    done = subprocess.run(
        [*vm.ssh_command(user=user), "id -un; exit 3"],
        capture_output=True,
        text=True,
        timeout=SSH_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{user}\n", "")


def test_ssh_over_vsock_where_systemd_has_no_generator_for_it(vm: Guest) -> None:
    done = subprocess.run(
        [*vm.ssh_command(via="vsock"), "exit 4"], capture_output=True, text=True, timeout=SSH_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (4, "")
    assert vm.run("systemctl is-active guestwire-sshd.socket").stdout == "active\n"


def test_what_this_systemd_is_too_old_for_is_said_and_not_waited_for(vm: Guest) -> None:
    assert vm.systemd.version == 252
    with pytest.raises(SetupError, match=r"systemd 252 knows nothing of vmm\.notify_socket: 254 and later do"):
        vm.systemd.wait("READY", timeout=600)
    with pytest.raises(SetupError, match=r"knows nothing of journal\.forward_to_socket: 256 and later"):
        _ = vm.journal


def test_power_off_shuts_it_down_in_order(vm: Guest) -> None:
    assert vm.power_off(timeout=60) == 0
    assert vm.console.wait_for("reboot: Power down", timeout=10)


def test_root_chooses_and_what_was_seen_is_named() -> None:
    """`root=` by PARTUUID, which the agent reads from the partition table; up to the init, which is not waited for."""
    disk = debian_image(BOOKWORM) / "disk.qcow2"
    common = GuestConfig(image=disk, net=False, vsock=False, timeout_scale=SCALE)
    with Guest(common, append=(f"root=PARTUUID={ROOT_PARTUUID}", "rootflags=commit=30"), up_timeout=0) as vm:
        assert "commit=30" in vm.run("cat /proc/mounts", check=True).stdout
        assert vm.system_state == ""
    with pytest.raises(GuestError, match="no partition or disk is root=LABEL=other"):
        Guest(common, append=("root=LABEL=other",)).start()
    with pytest.raises(GuestError, match=r"no root with an init was found \(vda15: no known file system\)"):
        Guest(common, append=("root=PARTLABEL=efi",)).start()


def test_a_system_that_does_not_come_up_is_explained() -> None:
    disk = debian_image(BOOKWORM) / "disk.qcow2"
    guest = Guest(image=disk, net=False, vsock=False, kvm=False, up_timeout=5, timeout_scale=1)
    with pytest.raises(
        GuestTimeoutError, match="waited 5 s for the system in the image to boot; systemd says:"
    ) as told:
        guest.start()
    assert "--- the console's last lines" in str(told.value)
