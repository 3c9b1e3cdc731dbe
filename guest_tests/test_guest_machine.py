"""A guest as a machine: paused, rebooted, saved and restored, its cables pulled, devices plugged in and out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest, GuestDiedError, GuestError, GuestTimeoutError, SetupError
from qemu.guest.command import Command
from qemu.guest.qmp_client import QmpError


@pytest.fixture(scope="module")
def vm() -> Iterator[Guest]:
    with Guest(template=True) as vm:
        yield vm


def test_a_server_is_waited_for_and_reached(vm: Guest) -> None:
    vm.put("/www/index.html", "hello")
    server = vm.spawn("httpd -f -p 80 -h /www", ready=vm.listening(80))
    try:
        with vm.connect(80) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"hello" in connection.makefile("rb").read()
    finally:
        server.kill()
    server.wait(timeout=SECONDS)
    with pytest.raises(ConnectionRefusedError):
        vm.connect(80)


def test_udp_is_waited_for(vm: Guest) -> None:
    assert vm.address
    vm.put("/etc/udhcpd.conf", "start 10.0.2.240\nend 10.0.2.241\ninterface eth0\n")
    server = vm.spawn("udhcpd -f", ready=vm.listening(67, "udp"))
    server.kill()


def test_a_server_that_ends_instead_is_told_at_once_with_what_it_said(vm: Guest) -> None:
    with pytest.raises(
        GuestError, match=r"(?s)waiting for somebody to listen on tcp port 81, but .* ended with 3\n.*no!"
    ):
        vm.spawn("echo no! >&2; exit 3", ready=vm.listening(81), timeout=SECONDS)


def test_what_never_comes_is_named_and_nothing_goes_on_running(vm: Guest) -> None:
    with pytest.raises(GuestTimeoutError, match=r"waited 0.3 s for somebody to listen on tcp port 82"):
        vm.spawn("sleep 1234", ready=vm.listening(82), timeout=0.3)
    vm.wait_until("! pidof sleep usleep", timeout=SECONDS)


def test_commands_and_functions_are_waited_for(vm: Guest) -> None:
    vm.spawn("sleep 0.2; touch /tmp/there")
    vm.wait_until("test -e /tmp/there")
    looked = iter([False, False, True])
    vm.wait_until(lambda: next(looked))


def test_another_program_reaches_the_guest_by_a_forwarded_port(vm: Guest) -> None:
    import urllib.request

    vm.put("/www/index.html", "hello")
    server = vm.spawn("httpd -f -p 80 -h /www", ready=vm.listening(80))
    with vm.forward(80) as (host, port):
        assert urllib.request.urlopen(f"http://{host}:{port}/", timeout=SECONDS).read() == b"hello"
    server.kill()
    server.wait(timeout=SECONDS)
    with vm.forward(80) as (host, port), pytest.raises(OSError, match=r"reset|closed|Remote end"):
        urllib.request.urlopen(f"http://{host}:{port}/", timeout=SECONDS)


def test_a_paused_guest_does_nothing(vm: Guest) -> None:
    command = vm.spawn("read line && echo $line", stdin=True)
    with vm.paused():
        assert not vm.qmp.execute("query-status")["running"]
        command.write(b"hello\n", timeout=SECONDS)
        with pytest.raises(GuestTimeoutError):
            command.wait(timeout=0.2)
    assert command.communicate(timeout=SECONDS).stdout == "hello\n"


def test_a_pulled_cable_is_seen(vm: Guest) -> None:
    assert vm.address
    vm.set_link(False)
    vm.wait_until('[ "$(cat /sys/class/net/eth0/carrier)" = 0 ]')
    assert not vm.run(f"ping -c 1 -W 1 {vm.gateway}").succeeded
    vm.set_link(True)
    vm.wait_until('[ "$(cat /sys/class/net/eth0/carrier)" = 1 ]')
    assert vm.run(f"ping -c 1 -W 5 {vm.gateway}").succeeded


def test_devices_are_plugged_in_and_out(vm: Guest) -> None:
    disks = "grep -l 0x1af41050 /sys/bus/pci/devices/*/uevent; ls /sys/bus/pci/devices"
    before = vm.run(disks).stdout
    plugged = vm.hotplug("virtio-rng-pci")
    vm.wait_until("grep -q 0x1044 /sys/bus/pci/devices/*/device")
    vm.unplug(plugged)
    assert vm.run(disks).stdout == before
    with pytest.raises(QmpError, match="no-such-device"):
        vm.hotplug("no-such-device")


def test_no_port_left_is_said_and_a_port_given_back_is_used(vm: Guest) -> None:
    assert vm.address
    assert vm.vsock.cid
    plugged = [vm.hotplug("virtio-rng-pci") for _ in range(4)]
    with pytest.raises(SetupError, match="all 6 spare ports of this guest are taken"):
        vm.hotplug("virtio-rng-pci")
    for each in plugged:
        vm.unplug(each)
    vm.unplug(vm.hotplug("virtio-rng-pci"))


def test_a_guest_goes_back_to_what_it_was() -> None:
    with Guest(template=True) as vm:
        address = vm.address
        vm.run("echo before > /tmp/file", check=True)
        server = vm.spawn("httpd -f -p 80", ready=vm.listening(80))
        with vm.snapshot() as snapshot:
            assert vm.address == address
            vm.run("echo after > /tmp/file; touch /tmp/more", check=True)
            with vm.vsock.listen(1234):
                vm.restore(snapshot)
            assert vm.get("/tmp/file") == b"before\n"
            assert not vm.run("test -e /tmp/more").succeeded
            assert vm.address == address
            vm.connect(80).close()  # what ran goes on
            with pytest.raises(GuestDiedError):
                server.wait(timeout=SECONDS)
            drawn = {vm.run("head -c 32 /dev/urandom | sha256sum").stdout}
            vm.restore(snapshot)
            drawn.add(vm.run("head -c 32 /dev/urandom | sha256sum").stdout)
            assert len(drawn) == 2
            assert abs(float(vm.run("date +%s").stdout) - time.time()) < 30
        with pytest.raises(GuestError, match="this snapshot is closed"):
            vm.restore(snapshot)


def test_connections_of_a_guest_that_is_saved_or_goes_back_end_or_go_on_as_is_said() -> None:
    """A snapshot ends those of vsock, and TCP's go on; going back ends both, and no program waits for ever."""
    with Guest(template=True) as vm:
        vm.write("/www/index.html", "hello")
        vm.spawn("httpd -f -p 80 -h /www", ready=vm.listening(80))

        def connect_vsock(port: int) -> tuple[Any, Command]:
            server = vm.spawn(["@pipe", "vsock", "listen", str(port)])
            assert server.read_line(timeout=SECONDS) == '{"listening": true}'
            return vm.vsock.connect(port, timeout=SECONDS), server

        over_vsock, server = connect_vsock(7)
        with over_vsock, vm.connect(80, timeout=SECONDS) as tcp:
            snapshot = vm.snapshot()
            with pytest.raises(ConnectionResetError):
                over_vsock.recv(1)
            server.wait(timeout=SECONDS)
            assert "from the peer: Connection reset by peer" in server.communicate(timeout=SECONDS).stderr
            tcp.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            assert b"hello" in tcp.makefile("rb").read()
        over_vsock, _ = connect_vsock(8)
        with snapshot, over_vsock, vm.connect(80, timeout=SECONDS) as tcp:
            vm.restore(snapshot)
            for connection in (over_vsock, tcp):
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
            vm.connect(80, timeout=SECONDS).close()


def test_a_guest_that_reboots_is_the_same_machine_started_anew() -> None:
    with Guest(template=True) as vm:
        address = vm.address
        boot_id = vm.run("cat /proc/sys/kernel/random/boot_id").stdout
        vm.put("/root/file", "gone with the reboot")
        command = vm.spawn("sleep 1000")
        vm.reboot()
        with pytest.raises(GuestDiedError, match="the guest was rebooted"):
            command.wait(timeout=SECONDS)
        assert vm.run("cat /proc/sys/kernel/random/boot_id").stdout != boot_id
        assert not vm.run("test -e /root/file").succeeded
        assert vm.address == address
        assert vm.run(f"ping -c 1 -W 5 {vm.gateway}").succeeded
        with pytest.raises(GuestDiedError, match="Kernel panic"):  # still no reboot after a panic
            vm.run("echo c > /proc/sysrq-trigger; sleep 100", timeout=SECONDS)


def test_a_guest_that_booted_cannot_be_saved(guest: Guest) -> None:
    with pytest.raises(SetupError, match="only a guest that was started with template=True can be saved"):
        guest.snapshot()
    with pytest.raises(SetupError, match="template=True or spare_ports"):
        guest.hotplug("virtio-rng-pci")
