"""`Guest` against a real Linux: commands, files, load, addresses, and what it is made of."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from qemu.guest import CommandFailedError, CommandTimeoutError, Guest, GuestTimeoutError
from qemu.guest.initramfs import Initramfs
from stack.link import Switch

MIB = 1 << 20


def test_a_command_has_output_error_output_and_exit_code(guest: Guest) -> None:
    result = guest.run("echo hi; echo oops >&2; exit 7")
    assert (result.rc, result.stdout, result.stderr, result.signal) == (7, "hi\n", "oops\n", 0)
    assert 0 < result.duration < 30


def test_a_sequence_is_executed_without_a_shell(guest: Guest) -> None:
    assert guest.run(["echo", "$HOME", "a  b"]).stdout == "$HOME a  b\n"


def test_a_signal_is_told_from_an_exit_code(guest: Guest) -> None:
    result = guest.run("kill -SEGV $$")
    assert (result.rc, result.signal, result.returncode) == (128 + signal.SIGSEGV, signal.SIGSEGV, -signal.SIGSEGV)


def test_input_environment_and_directory(guest: Guest) -> None:
    result = guest.run('cat; echo "$COLOUR $PWD"', input="one\n", env={"COLOUR": "blue"}, cwd="/sys/class")
    assert result.stdout == "one\nblue /sys/class\n"


def test_check_raises_with_everything_known(guest: Guest) -> None:
    with pytest.raises(
        CommandFailedError, match=r"(?s)returned 3 after .*--- stderr\nno such luck\n--- console"
    ) as caught:
        guest.run("echo no such luck >&2; exit 3", check=True)
    assert getattr(caught.value.result, "rc", None) == 3


def test_a_command_that_hangs_is_killed_and_says_so(guest: Guest) -> None:
    with pytest.raises(CommandTimeoutError, match=r"did not end within 0\.5 s and was killed(?s:.*)before") as caught:
        guest.run("echo before; exec sleep 1000", timeout=0.5)
    assert caught.value.stdout == b"before\n"
    assert isinstance(caught.value, GuestTimeoutError | TimeoutError)
    assert guest.run("pidof sleep", timeout=20).rc == 1


def test_megabytes_through_a_filter_arrive_whole(guest: Guest) -> None:
    data = random.Random(3).randbytes(4 * MIB)
    assert guest.run(["cat"], input=data).stdout_bytes == data


def test_files_go_both_ways(guest: Guest) -> None:
    data = random.Random(4).randbytes(MIB)
    guest.put("/tmp/some/where/file", data, mode=0o755)
    assert guest.get("/tmp/some/where/file") == data
    assert guest.run("stat -c %a /tmp/some/where/file").stdout == "755\n"
    with pytest.raises(CommandFailedError, match="/no/such/file: No such file or directory"):
        guest.get("/no/such/file")


def test_many_commands_at_once(guest: Guest) -> None:
    results: dict[int, str] = {}

    def ask(number: int) -> None:
        results[number] = guest.run(f"echo {number}; sleep 0.2; echo {number}").stdout

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number}\n{number}\n" for number in range(12)}


def test_a_spawned_command_is_talked_to_and_killed(guest: Guest) -> None:
    command = guest.spawn("while read line; do echo got $line; done", stdin=True)
    for word in ("one", "two"):
        command.write(f"{word}\n".encode(), timeout=20)
        assert command.read_line(timeout=20) == f"got {word}"
    command.kill(signal.SIGTERM)
    assert command.wait(timeout=20) == 128 + signal.SIGTERM


def test_it_has_an_address_and_a_way_to_its_gateway(guest: Guest) -> None:
    assert guest.address == "10.0.2.15"
    assert guest.gateway == "10.0.2.2"
    assert guest.run(["ping", "-c", "1", "-W", "5", guest.gateway]).succeeded


def test_the_console_was_captured_and_shows_no_trouble(guest: Guest) -> None:
    assert "Linux version" in guest.console.text
    assert guest.console.wait_for("guestwire-agent: ready", 10)
    assert guest.console.trouble == ""


def test_qmp_answers(guest: Guest) -> None:
    assert guest.qmp.execute("query-status")["status"] == "running"
    kinds = {kind["name"] for kind in guest.qmp.execute("qom-list-types", {"implements": "virtio-pci"})}
    assert {"virtio-net-pci", "vhost-user-vsock-pci"} <= kinds


def test_boot_took_seconds_not_minutes_and_the_accelerator_has_a_reason(guest: Guest) -> None:
    assert 0 < guest.boot_seconds <= guest.ready_seconds < guest.config.boot_timeout
    assert guest.verdict is not None
    assert guest.verdict.reason


def test_the_random_pool_is_ready(guest: Guest) -> None:
    """getrandom(2) blocks until the pool is initialised; the agent was seeded at boot."""
    assert len(guest.run("head -c 32 /dev/random", timeout=20).stdout_bytes) == 32


@pytest.mark.parametrize("mode", ["rr", "crr"])
def test_load_of_transactions(guest: Guest, mode: str) -> None:
    server = guest.load("echo", "listen", 7001)
    server.wait_listening()
    figures = guest.load(mode, "127.0.0.1", 7001, count=50).result()
    server.stop()
    assert figures["count"] == 50
    assert 0 < figures["min_us"] <= figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]


def test_bulk_load_from_the_guest_over_tcp(guest: Guest) -> None:
    with guest.stack.socket.create_server((guest.gateway, 7002)) as server:
        server.settimeout(30)
        load = guest.load("send", guest.gateway, 7002, bytes=8 * MIB)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(30)
            received = 0
            while data := connection.recv(MIB):
                received += len(data)
    assert received == 8 * MIB
    assert load.result()["bytes"] == 8 * MIB


def test_bulk_load_to_the_guest_over_tcp(guest: Guest) -> None:
    load = guest.load("recv", "listen", 7003)
    load.wait_listening()
    with guest.stack.socket.create_connection((guest.address, 7003), timeout=30) as connection:
        connection.sendall(bytes(8 * MIB))
    assert load.result()["bytes"] == 8 * MIB


def test_bulk_load_both_ways_over_vsock(guest: Guest) -> None:
    with guest.vsock.listen(7004, timeout=30) as listener:
        load = guest.load("send", "2", 7004, family="vsock", bytes=4 * MIB)
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(30)
            received = 0
            while data := connection.recv(MIB):
                received += len(data)
    assert peer[0] == guest.vsock.cid
    assert (received, load.result()["bytes"]) == (4 * MIB, 4 * MIB)
    load = guest.load("recv", "listen", 7005, family="vsock")
    load.wait_listening()
    with guest.vsock.connect(7005, timeout=30) as connection:
        connection.sendall(bytes(4 * MIB))
    assert load.result()["bytes"] == 4 * MIB


def test_a_root_of_the_users_own_runs_the_agent_on_top(tmp_path: Path) -> None:
    root = Initramfs()
    root.add_program("busybox", "/bin/cat")
    root.add_bytes("/hello", b"from my own root\n")
    root.write(tmp_path / "root")
    with Guest(initrd=tmp_path / "root", net=False, vsock=False, machine="pc") as own:
        assert own.run(["cat", "/hello"]).stdout == "from my own root\n"
        assert own.run("true").rc == 127  # there is no shell in it
        assert own.power_off() == 0


def test_a_second_guest_on_the_same_node_gets_a_subnet_and_a_cid_of_its_own(guest: Guest) -> None:
    with Guest(stack=guest.stack) as second:
        assert second.network is guest.network
        assert (second.gateway, second.address) == ("10.0.3.2", "10.0.3.15")
        assert second.vsock.cid != guest.vsock.cid
        assert second.run(["ping", "-c", "1", "-W", "5", second.gateway]).succeeded
        assert guest.run(["ping", "-c", "1", "-W", "5", guest.gateway]).succeeded
    assert guest.run(["ping", "-c", "1", "-W", "5", guest.gateway]).succeeded


def test_guests_on_a_switch_reach_each_other(guest: Guest) -> None:
    network = guest.network
    switch = Switch(network.scheduler)
    options: dict[str, Any] = {"network": network, "switch": switch, "vsock": False}
    with Guest(**options) as left, Guest(**options) as right:
        left.run("ip link set eth0 up; ip addr add 192.168.9.1/24 dev eth0", check=True)
        right.run("ip link set eth0 up; ip addr add 192.168.9.2/24 dev eth0", check=True)
        assert left.run(["ping", "-c", "2", "-i", "0.2", "-W", "5", "192.168.9.2"]).succeeded
