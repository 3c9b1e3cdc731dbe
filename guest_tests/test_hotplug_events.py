"""A guest's cards come and go while it runs; the host's Stack tells of it as kernel events (UE-07)."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest
from qemu.guest.cli import run_cli
from stack import Network, Stack
from stack.events import Uevent
from stack.kobjects import Subscription
from vhost_user import NetDevice, Server

#: A free slot that cards may be plugged into while the guest runs.
PORT = ("-device", "pcie-root-port,id=spare,chassis=9,slot=9")


def heard(events: Subscription, *wanted: str) -> list[Uevent]:
    """The next events of devices themselves, queues left out, until as many came as are wanted."""
    got: list[Uevent] = []
    while len(got) < len(wanted):
        event = events.get(SECONDS)
        if event.subsystem != "queues":
            got.append(event)
    assert [brief(event) for event in got] == list(wanted)
    return got


def brief(event: Uevent) -> str:
    carrier = event.environment.get("CARRIER")
    return f"{event.action} {event.devpath.rpartition('/')[2]}" + (f" carrier {carrier}" if carrier else "")


@contextmanager
def card(stack: Stack, events: Subscription) -> Iterator[Path]:
    """A card `hot0` of `stack`, waiting for QEMU at the path."""
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as directory, Server() as server:
        device = NetDevice(mac=bytes.fromhex("525400770001"))
        stack.add_interface(device, name="hot0", addresses=["10.77.0.1/24"])
        heard(events, "add hot0")
        server.listen(device, path=Path(directory) / "net")
        try:
            yield Path(directory) / "net"
        finally:
            if "hot0" in stack.netns.interfaces:
                stack.remove_interface("hot0")
            device.close()


@contextmanager
def running(*extra: str) -> Iterator[tuple[Guest, Stack]]:
    with Network() as network:
        network.start()
        with Guest(network=network, extra=extra) as guest:
            yield guest, guest.stack


def plug(guest: Guest, path: Path) -> None:
    backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": str(path)}}, "server": False}}
    guest.qmp.execute("chardev-add", {"id": "chr-hot", "backend": backend})
    guest.qmp.execute("netdev_add", {"type": "vhost-user", "id": "net-hot", "chardev": "chr-hot"})
    # vectors=0: QEMU 7.2 crashes under TCG when a vhost-user card with MSI-X starts.
    card = {"driver": "virtio-net-pci", "id": "hot", "netdev": "net-hot", "bus": "spare", "vectors": 0, "romfile": ""}
    guest.qmp.execute("device_add", {**card, "mac": "52:54:00:77:00:02"})


def unplug(guest: Guest) -> None:
    guest.qmp.execute("device_del", {"id": "hot"})
    guest.qmp.wait_event("DEVICE_DELETED", timeout=SECONDS)
    guest.qmp.execute("netdev_del", {"id": "net-hot"})  # and with it the chardev


def guest_link(guest: Guest) -> str:
    """The name the guest gave the plugged card."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = guest.run("grep -l 52:54:00:77:00:02 /sys/class/net/*/address").stdout.split("/")
        if len(found) > 4:
            return found[4]
    pytest.fail("the guest never saw the card\n" + guest.run("dmesg | tail -20").stdout)


def test_a_card_is_plugged_and_unplugged_and_the_stack_tells() -> None:
    with running(*PORT) as (guest, stack), stack.events.subscribe() as events, card(stack, events) as path:
        before = stack.events.seqnum
        plug(guest, path)
        heard(events, "online hot0")
        name = guest_link(guest)
        guest.run(f"ip link set {name} up && ip addr add 10.77.0.2/24 dev {name}", check=True)
        told = heard(events, "change hot0 carrier 1")
        assert guest.run("ping -c 1 -W 5 10.77.0.1").succeeded
        unplug(guest)
        told += heard(events, "change hot0 carrier 0", "offline hot0")
        stack.remove_interface("hot0")
        told += heard(events, "remove hot0")
        numbers = [event.seqnum for event in told]
        assert numbers == sorted(numbers)
        assert numbers[0] > before
        assert {event.devpath for event in told} == {"/devices/virtual/net/hot0"}
        assert stack.events.seqnum == numbers[-1]


def test_a_guest_that_boots_resets_its_card_and_dies_is_told_of() -> None:
    with Network() as network:
        network.start()
        stack = network.stack("gw")
        with stack.events.subscribe() as events:
            guest = Guest(network=network)
            with guest:
                seen = [brief(each) for each in events.pending() if each.subsystem != "queues"]
                name, vsock = "eth0", f"guest{guest.vsock.cid}"
                for wanted in (f"add {name}", f"online {name}", f"change {name} carrier 1"):
                    assert wanted in seen
                for wanted in (f"add {vsock}", f"online {vsock}", f"change {vsock} carrier 1"):
                    assert wanted in seen
                os.kill(guest.pid, signal.SIGKILL)  # a crash
                gone = [events.get(SECONDS) for _ in range(4)]
                assert sorted(brief(each) for each in gone) == [
                    *(f"change {name} carrier 0", f"change {vsock} carrier 0", f"offline {name}", f"offline {vsock}"),
                ]
            left = [brief(each) for each in events.pending() if each.subsystem != "queues"]
            assert sorted(left) == [f"remove {name}", f"remove {vsock}"]


def test_the_gateways_network_is_administered_from_another_process(capfd: pytest.CaptureFixture[str]) -> None:
    with running() as (guest, _):
        path = guest.control_socket()
        assert run_cli(["ip", "--stack", str(path), "addr", "add", "10.55.0.1/24", "dev", "eth0"]) == 0
        guest.run("ip addr add 10.55.0.2/24 dev eth0", check=True)
        assert guest.run("ping -c 1 -W 5 10.55.0.1").succeeded
        capfd.readouterr()
        assert run_cli(["ip", "--stack", str(path), "-4", "addr", "show", "dev", "eth0"]) == 0
        assert "    inet 10.55.0.1/24 scope global eth0" in capfd.readouterr().out.splitlines()
    assert not path.exists()
