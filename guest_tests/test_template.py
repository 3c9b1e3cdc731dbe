"""Guests from a template: restored in a fraction of a second, each on memory, numbers and time of its own."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest, GuestConfig, SetupError, templates
from qemu.guest.templates import template
from stack import Network


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache for templates that no other test uses."""
    monkeypatch.setattr(templates, "cache_root", lambda: tmp_path)
    yield tmp_path
    for kept in [each for each in templates.opened.values() if each.entry.parent == tmp_path]:
        kept.forget()


def forget_opened(cache: Path) -> None:
    """As a new process: nothing is known of the templates in `cache`."""
    for memo in [memo for memo, each in templates.opened.items() if each.entry.parent == cache]:
        templates.opened.pop(memo).close()


def test_guests_of_one_template_share_nothing(network: Network) -> None:
    with (
        Guest(template=True, network=network) as one,
        Guest(template=True, network=network) as other,
    ):
        one.run("echo one > /tmp/file; echo one > /root/file", check=True)
        assert other.run("cat /tmp/file /root/file").stdout == ""
        draw = "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/boot_id"
        drawn = [*one.run(draw).stdout.split(), *other.run(draw).stdout.split()]
        assert len({each for each in drawn if each != "-"}) == 4
        assert one.net is not other.net
        assert (
            len(
                {one.run("cat /sys/class/net/eth0/address").stdout, other.run("cat /sys/class/net/eth0/address").stdout}
            )
            == 2
        )
        assert one.vsock.cid != other.vsock.cid
        for guest in (one, other):
            assert guest.run(f"ping -c 1 -W 5 {guest.gateway}").succeeded
            assert abs(float(guest.run("date +%s").stdout) - time.time()) < 30
            assert guest.address in guest.run("ip -4 addr show dev eth0").stdout


def test_cards_are_plugged_in_when_first_used() -> None:
    with Guest(template=True, lazy=True) as guest:
        cards = "ls /sys/class/net; ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
        assert "eth0" not in guest.run(cards).stdout
        assert guest.address == "10.0.2.15"
        seen = guest.run(cards).stdout.split()
        assert "eth0" in seen
        assert not [name for name in seen if name.startswith("virtio")]
        with guest.vsock.listen(1234) as listener:
            listener.settimeout(SECONDS)
            command = guest.spawn(["@pipe", "vsock", "2", "1234"], stdin=True)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(SECONDS)
                command.write(b"hello", timeout=SECONDS)
                assert connection.recv(100) == b"hello"
            command.kill()


def test_a_guest_without_devices_starts_from_a_template_too() -> None:
    with Guest(template=True, net=False, vsock=False) as guest:
        assert guest.address == ""
        assert guest.run("uname").stdout == "Linux\n"


def test_the_template_is_made_once_and_again_when_it_is_damaged(own_cache: Path) -> None:
    said: list[str] = []
    config = GuestConfig(net=False, vsock=False, template=True, memory_mib=128, say=said.append)
    boots = "booting a guest to make a template of"
    first = template(config)
    assert said == [boots]
    assert template(config) is first
    forget_opened(own_cache)
    assert template(config).key == first.key
    assert said == [boots]  # the next process starts from it

    recipe = first.saved.recipe
    for name in ("state", "initrd", "template.json"):  # whichever file a machine that lost power left short
        whole = (first.entry / name).read_bytes()
        (first.entry / name).write_bytes(whole[: len(whole) // 2])
        assert templates._load(first.entry, recipe) is None  # without a boot for each
        (first.entry / name).write_bytes(whole)
    with (first.entry / "ram").open("r+b") as ram:
        ram.truncate(1 << 20)
    forget_opened(own_cache)
    with Guest(config) as guest:
        assert guest.run("true").succeeded
    assert said == [boots, boots]
    assert [path.name for path in own_cache.iterdir() if path.is_dir()] == [first.entry.name]


@pytest.mark.long
def test_a_full_disk_is_named_and_nothing_wrong_is_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = GuestConfig(net=False, vsock=False, template=True, memory_mib=128)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SetupError, match=r"cannot be kept in .*: No space left on device; make room there"):
        template(config)
    assert [path for path in own_cache.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"machine": "pc"}, "on a q35 only, not on pc"),
        ({"extra": ("-device", "edu")}, "further arguments"),
        ({"user_net": True}, "user_net"),
        ({"systemd": True}, "systemd"),
    ],
)
def test_what_cannot_be_saved_is_said(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(SetupError, match=f"no template of this guest can be made: .*{reason}"):
        Guest(template=True, **change).start()


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        network.start()
        yield network
