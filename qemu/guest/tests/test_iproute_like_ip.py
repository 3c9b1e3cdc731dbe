"""`guestwire ip` prints what iproute2 prints: asked of the kernel itself, and of a Stack set up the same way."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.guest.cli import run_cli
from qemu.guest.control import HELLO, MAGIC, ControlSocket, connect
from qemu.guest.errors import SetupError
from qemu.guest.iproute.client import Client
from qemu.guest.iproute.command import Style, run
from stack import Credentials, Network, Stack

SETUP = [
    *("link set lo up", "link add br0 type bridge", "link add v0 type veth peer name v1"),
    *("link set v0 master br0 up", "link set v1 address 02:00:00:00:00:01", "link set v1 up", "link set br0 up"),
    *("addr add 10.9.0.1/24 brd + dev br0", "addr add 10.8.0.1/24 dev v1", "addr add 10.8.0.2/24 dev v1"),
    *("route add 10.77.0.0/16 via 10.8.0.9", "route add default via 10.8.0.8 metric 5"),
    *("route add blackhole 9.9.9.0/24", "neigh add 10.8.0.9 lladdr 02:01:01:01:01:01 dev v1"),
    *("link add v3 type veth peer name v4", "link set v3 alias hello", "link set v4 mtu 1400"),
]
QUESTIONS = [
    *("addr", "link", "route", "neigh", "addr show dev v1", "link show v3", "-4 addr", "-6 addr", "-6 route"),
    *("addr show dev nope", "link set nope up", "link add x0 type nonesuch", "link del lo"),
    *("route add 10.77.0.0/16 via 10.8.0.9", "addr add 10.8.0.1/24 dev v1", "addr del 10.8.0.7/24 dev v1"),
]

#: Run in a network namespace of its own: ip's answers and ours, over the kernel's AF_NETLINK.
KERNEL = """
import json, socket, subprocess, sys, time
from qemu.guest.errors import GuestError
from qemu.guest.iproute.client import Client
from qemu.guest.iproute.command import Style, run
for line in json.loads(sys.argv[1]):
    subprocess.run(["ip", *line.split()], check=True)
deadline = time.monotonic() + 10
while b"tentative" in subprocess.run(["ip", "addr"], capture_output=True).stdout and time.monotonic() < deadline:
    time.sleep(0.1)
answers = []
for question in json.loads(sys.argv[2]):
    for as_json in (False, True):
        words = question.split()
        done = subprocess.run(["ip", *(["-json"] if as_json else []), *words], capture_output=True, text=True)
        family = {"-4": 2, "-6": 10}.get(words[0], 0)
        with socket.socket(16, 3, 0) as netlink:
            netlink.setsockopt(270, 11, 1)
            netlink.bind((0, 0))
            try:
                lines = list(run(Client(netlink), words[1:] if family else words, Style(family, as_json)))
            except GuestError as error:
                lines = [str(error)]
        answers.append((question, done.stdout or done.stderr, "".join(f"{line}\\n" for line in lines)))
print(json.dumps(answers))
"""


CHANGES = [
    *("link add v1 type veth peer name v2", "link set v1 up", "link set v2 up", "addr add 10.8.0.1/24 brd + dev v1"),
    *("addr add 10.8.0.2/24 dev v1", "addr add 10.8.0.3/24 dev v1 valid_lft 900 preferred_lft 0"),
    *("route add 10.77.0.0/16 via 10.8.0.9", "route add default via 10.8.0.8 metric 5"),
    *("route replace 10.77.0.0/16 via 10.8.0.7", "route add blackhole 9.9.9.0/24", "route del default"),
    "route add 10.78.0.0/16 nexthop via 10.8.0.3 nexthop via 10.8.0.4 weight 3",
    *("route del 10.78.0.0/16", "neigh add 10.8.0.9 lladdr 02:01:01:01:01:01 dev v1", "neigh del 10.8.0.9 dev v1"),
    *("link set v1 mtu 1400", "link set v1 alias left", "link set v2 down"),
    *("addr del 10.8.0.1/24 dev v1", "link del v1", "link add br0 type bridge", "link set br0 up"),
]
#: The last one: iproute2 goes on calling a link by its old name where something else names it.
RENAME = ["link add v3 type veth peer name v4", "link set v3 name the-end"]

#: Run in a network namespace of its own: what `ip monitor` prints of the changes, and what we print.
KERNEL_MONITOR = """
import json, socket, subprocess, sys, threading
from qemu.guest.iproute.client import Client
from qemu.guest.iproute.command import Style, groups, run
words = ["monitor", "link", "address", "route", "neigh"]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with subprocess.Popen(["ip", *words], stdout=subprocess.PIPE, text=True) as monitor:
    listening = False  # Eth Pid Groups are the second to fourth column of the kernel's table of netlink sockets
    while not listening and monitor.poll() is None:
        rows = [line.split() for line in open("/proc/net/netlink").readlines()[1:]]
        listening = any(row[1] == "0" and int(row[3], 16) for row in rows)
    with socket.socket(16, 3, 0) as netlink:
        netlink.setsockopt(270, 11, 1)
        netlink.bind((0, groups(words)))
        netlink.settimeout(20)
        for line in json.loads(sys.argv[1]):
            subprocess.run(["ip", *line.split()], check=True)
        theirs, ours = [], []
        for line in monitor.stdout:
            theirs.append(line.rstrip("\\n"))
            if "the-end@" in line:
                break
        for text in run(Client(netlink), words, Style()):
            ours += text.split("\\n")
            if "the-end@" in text:
                break
        monitor.terminate()
print(json.dumps([theirs, ours]))
"""


def kernel_answers() -> list[tuple[str, str, str]]:
    """(question, what ip says, what we say). Skips where no network namespace can be made."""
    kernel_answers_possible()
    command = ["unshare", "-rn", sys.executable, "-c", KERNEL, json.dumps(SETUP), json.dumps(QUESTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [(question, theirs, ours) for question, theirs, ours in json.loads(done.stdout)]


def kernel_answers_possible() -> None:
    """Skips where no network namespace can be made."""
    try:
        possible = subprocess.run(
            ["unshare", "-rn", "ip", "link", "add", "br0", "type", "bridge"], check=False, capture_output=True
        )
    except FileNotFoundError as missing:
        pytest.skip(f"{missing.filename} is not installed")
    if possible.returncode:
        pytest.skip(f"no network namespace with a bridge can be made: {possible.stderr.decode().strip()}")


def test_asked_of_the_kernel_every_answer_is_ips_own_to_the_byte() -> None:
    answers = kernel_answers()
    assert len(answers) == 2 * len(QUESTIONS)
    for question, theirs, ours in answers:
        assert ours == theirs, question


def test_told_by_the_kernel_every_change_is_said_as_ip_monitor_says_it() -> None:
    kernel_answers_possible()
    command = ["unshare", "-rn", sys.executable, "-c", KERNEL_MONITOR, json.dumps(CHANGES + RENAME)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads(done.stdout)
    assert len(theirs) > 2 * len(CHANGES)
    assert ours[: len(theirs)] == theirs


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Stack, Path]]:
    with Network() as network:
        stack = network.stack("gw")
        with ControlSocket(stack, tmp_path / "control") as control:
            yield stack, control.path


def ip(path: Path, line: str) -> int:
    return run_cli(["ip", "--stack", str(path), *line.split()])


def test_the_same_commands_run_on_a_stack(served: tuple[Stack, Path], capfd: pytest.CaptureFixture[str]) -> None:
    stack, path = served
    for line in SETUP:
        assert ip(path, line) == 0, (line, capfd.readouterr())
    assert stack.netns.interface("v0").master is stack.netns.interface("br0")
    capfd.readouterr()
    assert ip(path, "route") == 0
    assert capfd.readouterr().out.splitlines() == [
        "default via 10.8.0.8 dev v1 metric 5 ",
        "blackhole 9.9.9.0/24 ",
        "10.8.0.0/24 dev v1 proto kernel scope link src 10.8.0.1 ",
        "10.9.0.0/24 dev br0 proto kernel scope link src 10.9.0.1 ",
        "10.77.0.0/16 via 10.8.0.9 dev v1 ",
    ]
    assert ip(path, "-4 addr show dev v1") == 0
    assert capfd.readouterr().out.splitlines()[1::2] == [
        "    inet 10.8.0.1/24 scope global v1",
        "    inet 10.8.0.2/24 scope global secondary v1",
    ]
    assert ip(path, "neigh show dev v1") == 0
    assert "10.8.0.9 dev v1 lladdr 02:01:01:01:01:01 PERMANENT " in capfd.readouterr().out.splitlines()
    assert ip(path, "-json link show v3") == 0
    (shown,) = json.loads(capfd.readouterr().out)
    assert (shown["ifname"], shown["link"], shown["ifalias"], shown["operstate"]) == ("v3", "v4", "hello", "DOWN")
    assert ip(path, "link del v3") == 0
    assert ip(path, "link show v4") == 1
    assert capfd.readouterr().err == 'Device "v4" does not exist.\n'
    assert ip(path, "link set v1 mtu 9") == 2
    assert capfd.readouterr().err.startswith(("Error: ", "RTNETLINK answers: "))


def test_vlan_and_macvlan_links(served: tuple[Stack, Path]) -> None:
    stack, path = served
    for line in (
        "link add d0 type dummy",
        "link add link d0 name d0.5 type vlan id 5",
        "link add link d0 m0 type macvlan",
    ):
        assert ip(path, line) == 0
    assert stack.netns.interface("d0.5").kind_data["id"] == 5
    assert stack.netns.interface("m0").link is stack.netns.interface("d0")


def test_monitor_tells_what_changes(served: tuple[Stack, Path]) -> None:
    _, path = served
    from qemu.guest.iproute.command import groups

    with connect(path, groups=groups(["monitor", "link", "address"])) as connection:
        connection.settimeout(10)
        client = Client(connection)
        client.look()  # once it has answered something it is in its groups
        lines = run(client, ["monitor"], Style())
        assert ip(path, "link add d0 type dummy") == 0
        assert next(lines).startswith("2: d0: <BROADCAST,NOARP> mtu 1500")
        assert ip(path, "addr add 10.1.0.1/24 dev d0") == 0
        assert next(lines).startswith("2: d0    inet 10.1.0.1/24 scope global d0")
        assert ip(path, "addr del 10.1.0.1/24 dev d0") == 0
        assert next(lines).startswith("Deleted 2: d0    inet 10.1.0.1/24")


def test_the_socket_is_its_owners_alone_and_gone_afterwards(tmp_path: Path) -> None:
    with Network() as network:
        path = tmp_path / "control"
        with ControlSocket(network.stack("gw"), path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(SetupError, match="in use"):
                ControlSocket(network.stack("other"), path)
        assert not path.exists()
        with pytest.raises(SetupError, match="no Stack answers"):
            connect(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_let_go_at_once() -> None:
    child = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.setresuid(65534, 65534, 65534)
try:
    s.connect(sys.argv[1])
    s.send(bytes.fromhex(sys.argv[2]))
    sys.stdout.write(repr(s.recv(10)))
except OSError as error:
    sys.stdout.write(type(error).__name__)
"""
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as directory, Network() as network:
        Path(directory).chmod(0o755)
        with ControlSocket(network.stack("gw"), Path(directory) / "control") as control:
            control.path.chmod(0o666)  # even if the file let him in
            command = [sys.executable, "-c", child, str(control.path), HELLO.pack(MAGIC, 0, 0).hex()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout in ("b''", "BrokenPipeError", "ConnectionResetError"), done.stderr


@pytest.mark.parametrize("hello", [b"", b"x", HELLO.pack(b"NOPE", 0, 0), HELLO.pack(MAGIC, 9, 0), bytes(1000)])
def test_a_wrong_greeting_ends_the_connection_and_harms_nobody(hello: bytes, served: tuple[Stack, Path]) -> None:
    _, path = served
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.settimeout(10)
        stranger.connect(str(path))
        stranger.send(hello)
        assert stranger.recv(10) == b""
    assert ip(path, "link") == 0


def test_the_control_socket_acts_for_the_stacks_credentials(tmp_path: Path) -> None:
    with Network() as network:
        stack = Stack("gw", network=network, credentials=Credentials.user(1000))
        with ControlSocket(stack, tmp_path / "control") as control:
            assert ip(control.path, "link add d0 type dummy") == 2
        assert list(stack.netns.interfaces) == ["lo"]


def test_serve_offers_the_socket_and_takes_it_away(capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as directory:
        path = Path(directory) / "control"
        words = ["serve", "--net", f"{directory}/net", "--address", "10.9.8.1/24", "--control", str(path)]
        with subprocess.Popen(
            [sys.executable, "-m", "qemu.guest.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline(), "serve ended"  # by then everything is set up
                assert ip(path, "-4 addr show dev eth0") == 0
                assert "    inet 10.9.8.1/24 brd 10.9.8.255 scope global eth0" in capfd.readouterr().out.splitlines()
                process.terminate()
                assert process.wait(30) == 0
            finally:
                process.kill()
        assert not path.exists()
