"""LANs of guests: names, servers of every kind, VLANs, routers between nodes, programs of this machine among them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from guest_tests.traces import SECONDS, command_line, environment
from qemu.guest import Guest, Lan, SetupError
from qemu.guest.served import Reply, Request
from stack import Network
from stack.link import cable
from stack.wire.dns import Rcode


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        yield lan


@pytest.fixture(scope="module")
def vm(lan: Lan) -> Iterator[Guest]:
    with Guest(lan=lan, template=True, vsock=False, modules=("8021q",)) as vm:
        vm.write("/www/index.html", "hello from the guest")
        vm.spawn("httpd -f -p 80 -h /www", ready=vm.listening(80))
        yield vm


@pytest.fixture(scope="module")
def programs(lan: Lan) -> None:
    """Programs of this machine can join: it lets its users make namespaces and TAP devices."""
    done = lan.exec(["true"])
    if "/dev/net/tun must be open to you" in done.stderr or "User namespaces are switched off" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, done.stderr) == (0, "")


# -- servers ---------------------------------------------------------------------------------------------------------


def test_replies_of_every_kind(lan: Lan, vm: Guest) -> None:
    table = {"/text": "words", "/json": {"a": [1, None]}, "/gone": 410, "/made": Reply(b"\x00\xff", 201, {"X-A": "b"})}
    with lan.serve("kinds.test", table) as calls:
        assert vm.run("wget -q -O - http://kinds.test/text").stdout == "words"
        assert vm.run("wget -q -O - http://kinds.test/json").stdout == '{"a": [1, null]}'
        assert "410 Gone" in vm.run("wget -O - http://kinds.test/gone").stderr
        assert "404 Not Found" in vm.run("wget -O - http://kinds.test/nothing").stderr
        made = vm.run("wget -S -q -O - http://kinds.test/made?x=1")
        assert (made.stdout_bytes, "X-A: b" in made.stderr) == (b"\x00\xff", True)
    assert [call.path for call in calls] == ["/text", "/json", "/gone", "/nothing", "/made"]
    assert calls[-1].query == "x=1"


def test_a_request_has_what_the_guest_sent(lan: Lan, vm: Guest) -> None:
    with lan.serve("post.test:8080", "ok") as calls:
        data = '{"n": 1}'
        vm.run(f"wget -q -O - --header 'X-Name: v' --post-data '{data}' http://post.test:8080/a/b", check=True)
    [call] = calls
    assert isinstance(call, Request)
    assert (call.method, call.path, call.headers["x-name"], call.json()) == ("POST", "/a/b", "v", {"n": 1})
    assert call.peer[0] == vm.address


def test_a_handler_class_of_the_standard_library(lan: Lan, vm: Guest) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"you asked for {self.path}".encode())

    with lan.serve("class.test", Handler) as calls:
        assert vm.run("wget -q -O - http://class.test/x").stdout == "you asked for /x"
    assert [call.path for call in calls] == ["/x"]


def test_a_function_is_given_each_connection(lan: Lan, vm: Guest) -> None:
    def shout(connection: Any) -> None:
        while data := connection.recv(100):
            connection.sendall(data.upper())

    with lan.serve("shout.test:7", connection=shout) as calls:
        assert vm.run("echo hello | nc -w 5 shout.test 7").stdout == "HELLO\n"
    assert [call.peer[0] for call in calls] == [vm.address]


def test_an_asyncio_protocol(lan: Lan, vm: Guest) -> None:
    class Backwards(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            asyncio.get_running_loop().call_later(0, transport.write, b"ready\n")

        def data_received(self, data: bytes) -> None:
            self.transport.write(data.strip()[::-1] + b"\n")
            self.transport.close()

    with lan.serve("back.test:7", protocol=Backwards):
        assert vm.run("echo hello | nc back.test 7").stdout == "ready\nolleh\n"


def test_what_a_handler_raises_is_kept_and_the_guest_gets_an_answer(lan: Lan, vm: Guest) -> None:
    service = lan.serve("wrong.test", lambda request: request.headers["nothing"])
    assert "500" in vm.run("wget -O - http://wrong.test/").stderr
    assert "KeyError: 'nothing'" in service.errors[0]
    service.errors.clear()
    service.close()
    assert "refused" in vm.run("wget -O - http://wrong.test/").stderr


def test_garbage_is_answered_and_the_service_goes_on(lan: Lan, vm: Guest) -> None:
    with lan.serve("garbage.test", "fine") as calls:
        for request in ("nonsense\\r\\n\\r\\n", "GET / HTTP/1.0\\r\\nContent-Length: -1\\r\\n\\r\\n"):
            answer = vm.run(f"printf '{request}' | nc -w 5 garbage.test 80").stdout
            assert answer.startswith(("HTTP/1.1 400 ", "HTTP/1.1 413 "))
        assert vm.run("wget -q -O - http://garbage.test/").stdout == "fine"
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("where", "kinds", "message"),
    [
        ("a b:80", {"handler": "x"}, "is no name of a host"),
        ("name:http", {"handler": "x"}, "'http' is no port"),
        ("name:0", {"handler": "x"}, "'0' is no port"),
        ("name:80", {}, "needs one of"),
        ("name:80", {"handler": "x", "connection": print}, "needs one of"),
    ],
)
def test_what_cannot_be_served_is_named(lan: Lan, where: str, kinds: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        lan.serve(where, **kinds)


# -- names, programs of this machine ---------------------------------------------------------------------------------


def test_guests_gateway_and_servers_have_names(lan: Lan, vm: Guest) -> None:
    lan.add_name("db.test")
    assert vm.run("hostname").stdout == "guest1\n"
    assert lan.stack.socket.gethostbyname("db.test") == lan.add_name("db.test")
    for name in ("gw", "guest1", "db.test"):
        assert vm.run(f"ping -c 1 -W 5 {name}").succeeded, name


def test_programs_of_this_machine_join_without_root(lan: Lan, vm: Guest, programs: None) -> None:
    fetch = "import urllib.request; print(urllib.request.urlopen('http://guest1/').read().decode(), end='')"
    assert lan.exec(["python3", "-c", fetch]).stdout == "hello from the guest"
    seen = lan.exec(["sh", "-c", "ip -br addr show eth0; cat /etc/resolv.conf; id -u; exit 7"])
    assert (seen.returncode, seen.stderr) == (7, "")
    assert "10.0.2." in seen.stdout
    assert f"nameserver {lan.gateway}" in seen.stdout
    assert seen.stdout.split()[-1] == str(os.geteuid())
    assert lan.exec(["cat"], input="hello").stdout == "hello"


def test_a_server_of_this_machine_is_a_host_the_guest_reaches(lan: Lan, vm: Guest, programs: None) -> None:
    ready = "import http.server as h; s = h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler); print('up', flush=True)"
    command = command_line("exec", "--lan", str(lan.join_socket()), "python3", "-c", f"{ready}; s.handle_request()")
    with (
        tempfile.TemporaryDirectory() as place,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=place, env=environment(), text=True
        ) as server,
    ):
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        Path(place, "file").write_text("from this machine")
        [name] = [name for name in lan.stack.hosts if name.startswith("host")]
        assert vm.run(f"wget -q -O - http://{name}/file", check=True).stdout == "from this machine"
        assert server.wait(SECONDS) == 0


def test_who_cannot_join_is_told_why(lan: Lan, tmp_path: Path, programs: None) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            command_line("exec", *words), env=environment(), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    nobody = str(tmp_path / "nobody")
    assert run("--lan", nobody, "true") == (125, f"guestwire: no LAN answers at {nobody}: No such file or directory\n")
    assert run("--lan", str(lan.join_socket()), "no-such-program")[0] == 127
    assert run("true")[0] == 125
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(str(lan.join_socket()))
        stranger.send(b"hello")
        assert stranger.recv(10) == b""


@pytest.mark.long
def test_guestwire_run_lets_programs_onto_its_lan(programs: None) -> None:
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as place:
        path = str(Path(place, "lan"))
        command = command_line("run", "--lan", path, "--no-vsock", "--", "sh", "-c")
        script = "mkdir /www; echo hi > /www/x; httpd -p 80 -h /www; echo up; sleep 1000"
        with subprocess.Popen([*command, script], stdout=subprocess.PIPE, env=environment(), text=True) as guest:
            assert guest.stdout is not None
            assert guest.stdout.readline() == "up\n"
            ask = "import urllib.request; print(urllib.request.urlopen('http://guest1/x').read().decode(), end='')"
            fetch = command_line("exec", "python3", "-c", ask)
            done = subprocess.run(
                fetch, env=environment(GUESTWIRE_LAN=path), capture_output=True, text=True, check=False
            )
            guest.terminate()
        assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")
        assert not Path(path).exists()


# -- several networks ------------------------------------------------------------------------------------------------


def test_a_vlan_is_apart_from_the_rest(lan: Lan, vm: Guest) -> None:
    lan.add_vlan(10, "10.10.0.1/24")
    vm.run("ip link add link eth0 name eth0.10 type vlan id 10 && ip link set eth0.10 up", check=True)
    vm.run("ip addr add 10.10.0.2/24 dev eth0.10", check=True)
    assert vm.run("ping -c 1 -W 5 10.10.0.1").succeeded
    tags = [frame.data[12:16] for frame in lan.ring.frames if frame.data[12:14] == b"\x81\x00"]
    assert tags
    assert set(tags) == {b"\x81\x00\x00\x0a"}
    with pytest.raises(SetupError, match=r"no VLAN 10 with 10\.11\.0\.1/24"):
        lan.add_vlan(10, "10.11.0.1/24")


def test_two_lans_with_routers_between_them() -> None:
    """guest1 - r1 - r2 - guest1 of the other LAN: every hop is a node of this process."""
    with Network() as network:
        network.start()
        with (
            Lan(network, name="left", gateway="r1", address="10.1.0.1/24") as left,
            Lan(network, name="right", gateway="r2", address="10.2.0.1/24") as right,
            Guest(lan=left, template=True, vsock=False) as here,
            Guest(lan=right, template=True, vsock=False) as there,
        ):
            near, far = cable(network.scheduler, mac_a=b"\2\0\0\0\x09\1", mac_b=b"\2\0\0\0\x09\2")
            left.stack.add_interface(near, "wan0", ["10.9.0.1/24"])
            right.stack.add_interface(far, "wan0", ["10.9.0.2/24"])
            left.stack.add_route("10.2.0.0/24", "10.9.0.2")
            right.stack.add_route("10.1.0.0/24", "10.9.0.1")
            with network.lock:
                left.stack.netns.set_forwarding(True)
                right.stack.netns.set_forwarding(True)
            there.write("/www/index.html", "far away")
            there.spawn("httpd -f -p 80 -h /www", ready=there.listening(80))
            assert here.run(f"wget -q -O - http://{there.address}/", check=True).stdout == "far away"
            hops = here.run(f"traceroute -n -q 1 -w 3 -m 4 {there.address}", check=True).stdout.splitlines()
            assert [line.split()[1] for line in hops if line[:2].strip().isdigit()] == [
                "10.1.0.1",
                "10.9.0.2",
                there.address,
            ]
            left.stack.remove_interface("wan0")
            right.stack.remove_interface("wan0")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"address": "10.0.2.2"}, "/24 or larger"), ({"address": "nonsense"}, "is no address of a gateway")],
)
def test_a_lan_that_cannot_be_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        Lan(**change)


def test_the_name_server_fails_on_demand(lan: Lan, vm: Guest) -> None:
    dns = lan.link_services.dns
    assert dns is not None
    lan.add_name("sometimes.test")
    with lan.network.lock:
        fault = dns.faults.rcode(Rcode.SERVFAIL)
    assert not vm.run("ping -c 1 -W 1 sometimes.test").succeeded
    with lan.network.lock:
        dns.faults.clear()
    assert fault.happened
    assert vm.run("ping -c 1 -W 5 sometimes.test").succeeded


def test_guests_of_a_lan_have_ipv6_too() -> None:
    with Lan(address6="fd00:7::2/64") as lan, Guest(lan=lan, template=True, vsock=False) as vm:
        vm.wait_until("ip -6 addr show dev eth0 scope global | grep -q fd00:7::", timeout=SECONDS)
        vm.wait_until("ping6 -c 1 -W 1 fd00:7::2", timeout=SECONDS)
