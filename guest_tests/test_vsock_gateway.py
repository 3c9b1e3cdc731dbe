"""Programs of the host and a real guest's vsock: through the hybrid Unix socket, forwards, and `guestwire serve`."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS, command_line, environment, guestwire
from qemu.guest import Guest
from vhost_user.driver import VsockDriver
from vhost_user.driver.vsock import OP_REQUEST, OP_RESPONSE, OP_RW

MIB = 1 << 20


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def vm(place: Path) -> Iterator[Guest]:
    with Guest(net=False, vsock_uds=place / "v") as guest:
        yield guest


def dial(path: Path, port: int) -> socket.socket:
    """What socat, ssh's vsock-mux and every Firecracker harness do."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(SECONDS)
    sock.connect(str(path))
    sock.sendall(b"CONNECT %d\n" % port)
    return sock


def line(sock: socket.socket) -> bytes:
    """Up to the newline and not a byte further."""
    said = b""
    while not said.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            return said + b"<end>"
        said += byte
    return said


def rest(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 20):
        data += piece
    return data


@contextmanager
def server(path: Path, port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}_{port}")
        listener.listen()
        listener.settimeout(SECONDS)
        yield listener


def test_a_host_program_talks_to_a_guest_program(vm: Guest, place: Path) -> None:
    command = vm.spawn(["@pipe", "vsock", "listen", "1000"], stdin=True)
    assert command.read_line(timeout=SECONDS).startswith('{"listening"')
    with dial(place / "v", 1000) as sock:
        assert line(sock).startswith(b"OK ")
        sock.sendall(b"from the host")
        sock.shutdown(socket.SHUT_WR)
        command.write(b"from the guest", timeout=SECONDS)
        command.close_stdin()
        assert rest(sock) == b"from the guest"
    result = command.communicate(timeout=SECONDS)
    assert (result.rc, result.stdout) == (0, "from the host")


def test_a_guest_program_talks_to_a_host_program(vm: Guest, place: Path) -> None:
    with server(place / "v", 1001) as listener:
        command = vm.spawn(["@pipe", "vsock", "2", "1001"], stdin=True)
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(SECONDS)
            command.write(b"from the guest", timeout=SECONDS)
            command.close_stdin()
            assert rest(sock) == b"from the guest"  # its half-close arrives ...
            sock.sendall(b"from the host")  # ... and the other direction stays open
        result = command.communicate(timeout=SECONDS)
    assert (result.rc, result.stdout) == (0, "from the host")


def test_refused_both_ways_and_at_once(vm: Guest, place: Path) -> None:
    with dial(place / "v", 999) as sock:
        assert line(sock) == b"<end>"
    complaint = vm.run(["@pipe", "vsock", "2", "998"], timeout=SECONDS)
    assert "Connection reset by peer" in complaint.stderr


def test_bulk_both_ways_arrives_whole(vm: Guest, place: Path) -> None:
    total = 8 * MIB
    with server(place / "v", 1002) as listener:
        load = vm.load("send", "2", 1002, family="vsock", bytes=total)
        sock, _ = listener.accept()
        with sock:
            received = len(rest(sock))
        assert load.result(timeout=SECONDS)["bytes"] == received == total
        load = vm.load("recv", "2", 1002, family="vsock")
        sock, _ = listener.accept()
        with sock:
            sock.sendall(bytes(total))
        assert load.result(timeout=SECONDS)["bytes"] == total


def test_a_client_that_never_reads_holds_up_only_itself(vm: Guest, place: Path) -> None:
    stuck = vm.load("send", "listen", 1003, family="vsock", seconds=5)
    stuck.wait_listening()
    with dial(place / "v", 1003) as silent:
        assert line(silent).startswith(b"OK ")
        echo = vm.load("echo", "listen", 1004, family="vsock", count=1, size=4096, response=4096)
        echo.wait_listening()
        with dial(place / "v", 1004) as sock:
            line(sock)
            for _ in range(100):
                sock.sendall(b"y" * 4096)
                got = 0
                while got < 4096:
                    got += len(sock.recv(4096))
    stuck.stop()


def test_ports_forwarded_to_a_server_and_from_a_listener(vm: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        web.settimeout(SECONDS)
        vm.vsock.forward(80, f"tcp:127.0.0.1:{web.getsockname()[1]}")
        command = vm.spawn(["@pipe", "vsock", "2", "80"], stdin=True)
        sock, _ = web.accept()
        with sock:
            command.write(b"GET /", timeout=SECONDS)
            command.close_stdin()
            sock.settimeout(SECONDS)
            assert rest(sock) == b"GET /"
            sock.sendall(b"page")
        assert command.communicate(timeout=SECONDS).stdout == "page"
    command = vm.spawn(["@pipe", "vsock", "listen", "22"])
    command.read_line(timeout=SECONDS)
    address = vm.vsock.expose("tcp:127.0.0.1:0", 22)
    with socket.create_connection(address, timeout=SECONDS) as sock:
        sock.sendall(b"SSH-2.0-test\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b""
    assert command.communicate(timeout=SECONDS).stdout == "SSH-2.0-test\r\n"


def test_ssh_by_way_of_vsock_mux(vm: Guest, place: Path) -> None:
    """systemd-ssh-proxy says CONNECT 22 and hands the socket to ssh, which sees our OK before the server's version.

    RFC 4253 section 4.2: a server may send other lines before it, and clients skip them.
    """
    sshd = vm.spawn(["@pipe", "vsock", "listen", "22"], stdin=True)
    sshd.read_line(timeout=SECONDS)
    with dial(place / "v", 22) as ssh:
        sshd.write(b"SSH-2.0-guest\r\n", timeout=SECONDS)
        lines: list[bytes] = []
        while not lines or not lines[-1].startswith(b"SSH-"):
            lines.append(line(ssh))
        assert [text[:3] for text in lines] == [b"OK ", b"SSH"]
        ssh.sendall(b"SSH-2.0-host\r\n")
        assert sshd.read_line(timeout=SECONDS) == "SSH-2.0-host\r"
        sshd.close_stdin()
    sshd.communicate(timeout=SECONDS)


# -- guestwire serve in vhost-device-vsock's place ----------------------------------------------------------------


@contextmanager
def serving(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command_line("serve", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), process.stderr.read() if process.stderr else ""
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def answer(driver: VsockDriver, op: int) -> tuple[int, int]:
    """(host port, guest port) of the next packet, which is an `op`."""
    (packet,) = driver.recv(1, timeout=SECONDS)
    assert packet.op == op, packet
    return packet.src_port, packet.dst_port


def exchange(driver: VsockDriver, path: Path) -> None:
    """A host program reaches the guest that the driver plays, by the hybrid socket, and is reached."""
    with dial(path, 7) as sock:
        host, guest = answer(driver, OP_REQUEST)
        assert guest == 7
        driver.send([driver.packet(OP_RESPONSE, guest, host)])
        assert line(sock) == b"OK %d\n" % host
        driver.send([driver.packet(OP_RW, guest, host, b"hello")])
        assert sock.recv(100) == b"hello"
    with server(path, 8) as listener:
        driver.send([driver.packet(OP_REQUEST, 50, 8)])
        listener.accept()[0].close()
        seen = {packet.op for packet in driver.recv(64, timeout=SECONDS)}
        while OP_RESPONSE not in seen:
            seen |= {packet.op for packet in driver.recv(64, timeout=SECONDS)}


@pytest.mark.parametrize("form", ["vm", "config", "single"])
def test_serve_takes_the_options_of_vhost_device_vsock(form: str, place: Path) -> None:
    sockets = [place / f"vhost-{form}-{cid}" for cid in (3, 4)]
    paths = [place / f"uds-{form}-{cid}" for cid in (3, 4)]
    if form == "vm":
        words = [
            word
            for cid, sock, path in zip((3, 4), sockets, paths, strict=True)
            for word in (
                "--vm",
                f"guest-cid={cid},socket={sock},uds-path={path},tx-buffer-size=65536,queue-size=1024,groups=a+b",
            )
        ]
    elif form == "config":
        entries = [
            f"  - guest_cid: {cid}\n    socket: {sock}\n    uds_path: {path}\n    tx_buffer_size: 65536\n"
            f"    queue_size: 1024\n    groups: a+b\n"
            for cid, sock, path in zip((3, 4), sockets, paths, strict=True)
        ]
        (place / "config.yaml").write_text("vms:\n" + "".join(entries))
        words = ["--config", str(place / "config.yaml")]
    else:
        sockets, paths = sockets[:1], paths[:1]
        words = ["--guest-cid", "3", "--socket", str(sockets[0]), "--uds-path", str(paths[0]), "--groups", "a"]
    with serving(*words):
        for cid, sock, path in zip((3, 4), sockets, paths, strict=False):
            with VsockDriver(sock) as driver:
                assert driver.guest_cid == cid
                exchange(driver, path)
    assert not [path for path in (*sockets, *paths) if path.exists()]


def test_serve_forwards_and_exposes_ports(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        options = ["--forward", f"80=tcp:127.0.0.1:{web.getsockname()[1]}", "--expose", f"unix:{place}/ssh=22"]
        with serving("--vsock", str(place / "fwd"), *options), VsockDriver(place / "fwd") as driver:
            driver.send([driver.packet(OP_REQUEST, 50, 80)])
            web.settimeout(SECONDS)
            web.accept()[0].close()
            assert answer(driver, OP_RESPONSE) == (80, 50)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(place / "ssh"))
                while (packet := driver.recv(1, timeout=SECONDS)[0]).op != OP_REQUEST:
                    pass
                assert packet.dst_port == 22


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vm", "guest-cid=3"], b"says no socket"),
        (["--vm", "socket"], b"is not KEY=VALUE"),
        (["--vm", "socket=/tmp/s,colour=blue"], b"colour is not known"),
        (["--vm", "socket=/tmp/s,guest-cid=x"], b"guest-cid cannot be 'x'"),
        (["--vm", "socket=/tmp/s,socket=/tmp/t"], b"given twice"),
        (["--vm", "socket=/tmp/s", "--vm", "socket=/tmp/t"], b"two guests have the guest-cid 3"),
        (["--vm", "socket=/tmp/s", "--vm", "socket=/tmp/s,guest-cid=4"], b"two guests have the socket"),
        (["--vm", "socket=/tmp/s,guest-cid=2"], b"CID 2 is reserved"),
        (["--vm", "socket=/tmp/s,queue-size=1000"], b"power of two"),
        (["--vm", "socket=/tmp/s,uds-path=/no/such/place"], b"cannot listen on /no/such/place"),
        (["--vm", "socket=/tmp/s,uds-path=/tmp/u,forward-cid=1"], b"exclude each other"),
        (["--socket", "/tmp/s", "--uds-path", "/tmp/u", "--forward-cid", "1"], b"exclude each other"),
        (["--socket", "/tmp/s", "--forward-listen", "9001"], b"goes with forward-cid"),
        (["--socket", "/tmp/s", "--forward-cid", "1", "--forward-listen", "9001,2"], b"vsock ports joined by +"),
        (["--vsock", "/tmp/s", "--forward", "80"], b"is no address"),
        (["--vsock", "/tmp/s", "--forward", "x=unix:/tmp/t"], b"is no vsock port"),
        (["--forward", "80=unix:/tmp/t", "--net", "/tmp/s"], b"are for a vsock"),
    ],
)
def test_serve_says_what_is_wrong_with_a_vm(words: list[str], message: bytes) -> None:
    done = guestwire("serve", *words)
    assert done.returncode in (2, 125)
    assert message in done.stderr
    assert b"Traceback" not in done.stderr


# -- guestwire vsock ----------------------------------------------------------------------------------------------


def test_the_command_connects_listens_and_forwards(vm: Guest, place: Path) -> None:
    """`guestwire vsock` against the hybrid socket of a guest that somebody else serves."""
    path = str(place / "v")
    command = vm.spawn(["@pipe", "vsock", "listen", "1100"], stdin=True)
    command.read_line(timeout=SECONDS)
    command.write(b"from the guest", timeout=SECONDS)
    command.close_stdin()
    done = guestwire("vsock", "connect", path, "1100", stdin=b"from the host")
    assert (done.returncode, done.stdout) == (0, b"from the guest")
    assert command.communicate(timeout=SECONDS).stdout == "from the host"
    refused = guestwire("vsock", "connect", path, "999", stdin=b"")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"port 999" in refused.stderr
    with subprocess.Popen(
        command_line("vsock", "listen", path, "1101"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as listening:
        assert listening.stderr is not None
        assert b"listening" in listening.stderr.readline()
        said = vm.spawn(["@pipe", "vsock", "2", "1101"], stdin=True)
        answered = threading.Thread(target=said.write, args=(b"to the command",), kwargs={"timeout": SECONDS})
        answered.start()
        answered.join()
        said.close_stdin()
        out, _ = listening.communicate(b"answer", timeout=SECONDS)
        assert (listening.returncode, out) == (0, b"to the command")
        assert said.communicate(timeout=SECONDS).stdout == "answer"


def test_the_command_forwards_ports_of_a_guest_others_serve(vm: Guest, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        web.settimeout(SECONDS)
        options = ["--forward", f"1200=tcp:127.0.0.1:{web.getsockname()[1]}", "--expose", f"unix:{place}/door=1201"]
        words = command_line("vsock", "forward", str(place / "v"), *options)
        with subprocess.Popen(words, stderr=subprocess.PIPE, env=environment()) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == b"forwarding\n"
            said = vm.spawn(["@pipe", "vsock", "2", "1200"])
            with web.accept()[0] as sock:
                assert rest(sock) == b""
                sock.sendall(b"page")
            assert said.communicate(timeout=SECONDS).stdout == "page"
            command = vm.spawn(["@pipe", "vsock", "listen", "1201"])
            command.read_line(timeout=SECONDS)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(place / "door"))
                client.sendall(b"knock")
                client.shutdown(socket.SHUT_WR)
                assert rest(client) == b""
            assert command.communicate(timeout=SECONDS).stdout == "knock"
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
    assert not (place / "v_1200").exists()


def test_the_command_measures_an_echo(vm: Guest, place: Path) -> None:
    echo = vm.load("echo", "listen", 1300, family="vsock", size=64, response=64)
    echo.wait_listening()
    done = guestwire("vsock", "bench", str(place / "v"), "1300", "--seconds", "0.2")
    echo.stop()
    assert done.returncode == 0, done.stderr
    assert b"median" in done.stdout
    assert b"connects" in done.stdout
