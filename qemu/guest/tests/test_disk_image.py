"""What a disk image takes on this side: its arguments, the disk of modules, cloud-init's data source, refusals."""

from __future__ import annotations

import json
import shlex
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from qemu.guest import Guest, GuestConfig, SetupError
from qemu.guest.argv import MODULES_SERIAL, QemuConfig, arguments
from qemu.guest.cloud_init import CloudInit, Seed
from qemu.guest.config import with_image
from qemu.guest.errors import MissingError
from qemu.guest.modules_disk import find_tool, modules_disk
from qemu.guest.ssh import _AUTHORIZE
from qemu.guest.systemd import SystemdReports
from qemu.guest.templates import why_not
from stack import Network


def test_an_image_is_what_it_begins_as(tmp_path: Path) -> None:
    """An archive is the first root; qcow2, raw, and whatever else it may be, a disk."""
    for name, head in (("cpio", b"070701"), ("gzip", b"\x1f\x8b"), ("qcow2", b"QFI\xfb"), ("raw", bytes(512))):
        path = tmp_path / name
        path.write_bytes(head)
        config = with_image(GuestConfig(image=path))
        assert (config.initrd, config.disk) == ((path, None) if name in ("cpio", "gzip") else (None, path))
        assert config.image is None


def test_a_guest_has_one_root(tmp_path: Path) -> None:
    """image=, disk= and initrd= exclude each other; an image that cannot be read is named."""
    with pytest.raises(SetupError, match="one root: image=, disk= and initrd= exclude each other"):
        with_image(GuestConfig(image=tmp_path, disk=tmp_path))
    with pytest.raises(SetupError, match=r"cannot read the image .*missing: No such file"):
        Guest(image=tmp_path / "missing").start()


def test_the_disks_are_a_copy_and_the_modules(tmp_path: Path) -> None:
    """The image under a copy-on-write layer, the modules read-only and known by their serial."""
    disk = tmp_path / "a,b.qcow2"
    disk.write_bytes(b"QFI\xfb")
    words = arguments(QemuConfig("qemu", Path("kernel"), Path("initrd"), disk=disk, modules_disk=Path("/modules.ext2")))
    drives = [word for at, word in enumerate(words) if words[at - 1] == "-drive"]
    assert "a,,b.qcow2,format=qcow2,snapshot=on" in drives[0]
    assert drives[1] == "id=modules,if=none,file=/modules.ext2,format=raw,read-only=on"
    assert f"virtio-blk-pci,drive=modules,serial={MODULES_SERIAL}" in words
    assert "guestwire.root=disk" in words[words.index("-append") + 1].split()


def test_the_modules_disk_has_files_and_index_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of modules becomes a file system with what depmod says of it; a changed one another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    modules = tmp_path / "lib/modules/6.1.0-test"
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel/a.ko").write_bytes(b"no module, but a file")
    (modules / "modules.builtin").write_text("kernel/b.ko\n")
    (modules / "modules.order").write_text("kernel/a.ko\n")
    (modules / "source").symlink_to("/usr/src")
    made = modules_disk(modules)
    assert modules_disk(modules) == made
    listed = subprocess.run(
        [find_tool("debugfs", "e2fsprogs"), "-R", "ls -p /", str(made)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split("/")[5] for line in listed.splitlines() if line.count("/") > 5}
    assert {"kernel", "modules.dep.bin", "modules.builtin"} <= names
    assert "source" not in names
    assert not (made.parent / "staging").exists()
    (modules / "kernel/a.ko").write_bytes(b"another")
    assert modules_disk(modules) != made


def test_a_tool_that_is_missing_is_named_with_its_package() -> None:
    """MissingError says what to install."""
    with pytest.raises(MissingError, match=r"no no-such-tool here.*apt-get install a-package"):
        find_tool("no-such-tool", "a-package")


def test_cloud_init_is_told_where_to_ask_and_what() -> None:
    """The machine's serial names the gateway's service; meta-data has the key; each guest is its own instance."""
    with Network() as network:
        network.start()
        stack = network.stack("gw")
        seed = Seed(stack, "127.0.0.1", "guest", CloudInit(user_data="#!/bin/sh\n"), ["ssh-ed25519 AAAA"])
        other = Seed(stack, "127.0.0.1", "guest2", CloudInit(network_config="version: 2\n"), [])
        try:
            assert seed.smbios_arguments == ["-smbios", f"type=1,serial=ds=nocloud-net;s={seed.url}"]
            assert seed.url != other.url
            with stack.installed():
                meta = json.loads(urllib.request.urlopen(f"{seed.url}meta-data").read())
                assert urllib.request.urlopen(f"{seed.url}user-data").read() == b"#!/bin/sh\n"
                assert urllib.request.urlopen(f"{seed.url}vendor-data").read().startswith(b"#cloud-config\n")
                assert urllib.request.urlopen(f"{other.url}network-config").read() == b"version: 2\n"
                theirs = json.loads(urllib.request.urlopen(f"{other.url}meta-data").read())
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(f"{seed.url}network-config")
            assert (meta["local-hostname"], meta["public-keys"]) == ("guest", ["ssh-ed25519 AAAA"])
            assert meta["instance-id"] != theirs["instance-id"]
            assert seed.requests[0].path == "/meta-data"
        finally:
            seed.close()
            other.close()


def test_cloud_init_needs_a_disk_and_a_gateway(tmp_path: Path) -> None:
    """Without a disk there is no cloud-init, without a card nobody to ask."""
    with pytest.raises(SetupError, match="cloud_init= is for the system in a disk image"):
        Guest(cloud_init=CloudInit(), vsock=False).start()
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 16))
    with pytest.raises(SetupError, match="cloud-init asks the guest's gateway"):
        Guest(image=disk, cloud_init=CloudInit(), net=False).start()


def test_what_a_systemd_is_too_old_for_is_said_at_once() -> None:
    """Readiness needs systemd 254, the journal 256; before the version is known both are waited for."""
    with Network() as network:
        reports = SystemdReports(network.stack("gw"))
        assert reports.journal == []
        reports.version = 255
        with pytest.raises(SetupError, match="systemd 255 knows nothing of journal"):
            reports.wait_entry("x", timeout=600)
        reports.version = 253
        with pytest.raises(SetupError, match=r"systemd 253 knows nothing of vmm\.notify_socket: 254"):
            reports.wait("READY", timeout=600)
        reports.close()


def test_the_key_is_let_in_once_and_for_whom_there_is(tmp_path: Path) -> None:
    """The script that the agent runs: the user's own directory, one line however often, code 3 for nobody."""
    home = tmp_path / "home"
    home.mkdir()
    status = home.stat()
    accounts = tmp_path / "passwd"
    accounts.write_text(f"root:x:0:0::/nowhere:/bin/sh\nme:x:{status.st_uid}:{status.st_gid}::{home}:/bin/sh\n")
    script = _AUTHORIZE.replace("/etc/passwd", shlex.quote(str(accounts)))

    def run(account: str) -> int:
        environment = {"ACCOUNT": account, "PATH": "/usr/bin:/bin"}
        command = ["sh", "-c", script]
        return subprocess.run(command, input="ssh-ed25519 KEY me\n", text=True, env=environment, check=False).returncode

    assert [run("me"), run("me"), run("nobody")] == [0, 0, 3]
    keys = home / ".ssh/authorized_keys"
    assert keys.read_text() == "ssh-ed25519 KEY me\n"
    assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_no_template_of_a_disk(tmp_path: Path) -> None:
    """What is on a disk belongs to the guest it was saved with: each guest of an image boots."""
    assert why_not(GuestConfig(disk=tmp_path)) == "what is on a disk belongs to the guest it was saved with"
