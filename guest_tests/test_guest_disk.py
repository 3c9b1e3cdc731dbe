"""A guest with a root of its own on a disk: its init runs, the agent comes along, the image is not written to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from guest_tests.project import run_project
from guest_tests.traces import SECONDS, guestwire
from qemu.guest import Guest, GuestDiedError, GuestError, Lan, SetupError
from qemu.guest.argv import disk_format

MIB = 1 << 20
INIT = """\
#!/bin/sh
mount -t tmpfs tmpfs /run
ip link set lo up
ip link set eth0 up
udhcpc -i eth0 -b -q -s /etc/lease &
echo "init is process $$" > /run/ready
while :; do sleep 1000; done
"""
LEASE = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
"""
FILL = """
set -e
mke2fs /dev/vda >/dev/null
mkdir /new && mount -t ext4 /dev/vda /new
cd /new && mkdir bin sbin etc dev proc sys run tmp root
cp /bin/busybox bin && for name in sh ls cat ip udhcpc sleep mount; do ln -s busybox bin/$name; done
cat > sbin/init && chmod 755 sbin/init
cd / && umount /new
"""


def create(vm: Guest, path: Path, kind: str, size: int) -> None:
    """Have QEMU make an image, and plug it into `vm` as /dev/vda."""

    def job(options: dict[str, Any]) -> None:
        vm.qmp.execute("blockdev-create", {"job-id": "create", "options": options})
        while True:
            event = vm.qmp.wait_event("JOB_STATUS_CHANGE", timeout=SECONDS)
            if event["data"]["status"] == "concluded":
                break
        assert "error" not in vm.qmp.execute("query-jobs")[0]
        vm.qmp.execute("job-dismiss", {"id": "create"})

    job({"driver": "file", "filename": str(path), "size": size if kind == "raw" else 0})
    vm.qmp.execute("blockdev-add", {"driver": "file", "node-name": "file", "filename": str(path)})
    if kind == "qcow2":
        job({"driver": "qcow2", "file": "file", "size": size})
    vm.qmp.execute("blockdev-add", {"driver": kind, "node-name": "image", "file": "file"})
    vm.hotplug("virtio-blk-pci", drive="image")
    vm.wait_until("test -b /dev/vda")


@pytest.fixture(scope="module", params=["qcow2", pytest.param("raw", marks=pytest.mark.long)])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that a guest has put a root on."""
    path = tmp_path_factory.mktemp("disk") / "image"
    with Guest(template=True, net=False, vsock=False, modules=("virtio_blk", "ext4")) as vm:
        create(vm, path, request.param, 32 * MIB)
        vm.run(FILL, input=INIT, check=True)
        vm.run(
            "mount -t ext4 /dev/vda /new && cat > /new/etc/lease && chmod 755 /new/etc/lease", input=LEASE, check=True
        )
        vm.run("umount /new", check=True)
    assert disk_format(path) == request.param
    return path


def test_its_own_init_runs_and_the_image_stays_as_it_is(image: Path) -> None:
    before = hashlib.sha256(image.read_bytes()).digest()
    with Lan() as lan, Guest(disk=image, lan=lan, vsock=False) as vm:
        vm.wait_until("test -s /run/ready", timeout=SECONDS)
        assert vm.read("/run/ready") == "init is process 1\n"
        assert vm.findings == []
        assert "/dev/vda on / type ext4" in vm.run("mount", check=True).stdout
        vm.wait_until(lambda: vm.address, timeout=SECONDS)  # its own client has asked for it
        vm.wait_until(f"ip addr show dev eth0 | grep -qw {vm.address}", timeout=SECONDS)
        vm.put("/root/file", "written")
        assert vm.get("/root/file") == b"written"
        vm.run("sync", check=False)
        assert vm.power_off() == 0
    assert hashlib.sha256(image.read_bytes()).digest() == before


@pytest.mark.long
def test_a_disk_without_a_root_is_told_of(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    with empty.open("wb") as file:
        file.truncate(MIB)
    with pytest.raises(GuestError, match=r"no root with an init was found \(vda: no known file system\)"):
        Guest(disk=empty, net=False, vsock=False).start()


def test_a_disk_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot read the disk .*/missing: No such file"):
        Guest(disk=tmp_path / "missing", net=False, vsock=False).start()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"QFI\xfb" + b"\xff" * 1000)
    with pytest.raises(GuestDiedError, match="QEMU's standard error"):
        Guest(disk=damaged, net=False, vsock=False).start()


@pytest.mark.long
def test_the_plugin_and_the_command_line_take_a_disk(image: Path, tmp_path: Path) -> None:
    source = "def test_it(guest):\n    assert guest.read('/proc/1/cmdline').startswith('/bin/sh')\n"
    run = run_project(tmp_path, source, f"--guest-image={image}")
    assert "1 passed" in run.output, run.output
    for option in ("--disk", "--image"):
        done = guestwire("run", "--no-net", "--no-vsock", option, str(image), "--", "cat", "/proc/1/cmdline")
        assert (done.returncode, done.stdout.replace(b"\0", b" ")) == (0, b"/bin/sh /sbin/init ")
    done = guestwire("run", "--no-vsock", "--image", str(image), "--ssh", "--", "true")
    assert (done.returncode, b"the guest has no sshd" in done.stderr) == (125, True)
