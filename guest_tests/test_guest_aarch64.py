"""Guests for another processor than this machine's: aarch64 under TCG, from Debian's arm64 packages, unpacked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_tests.project import run_project
from guest_tests.test_guest_disk import FILL, INIT, create
from guest_tests.traces import SECONDS, guestwire
from qemu.guest import Guest, GuestDiedError, KernelTroubleError, Lan, SetupError, Share, virtiofsd
from qemu.guest.image import find_busybox
from qemu.guest.kernel import find_kernel

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aarch64")


@pytest.fixture(scope="module")
def guest(place: Path) -> Iterator[Guest]:
    """Booted from its beginning, with its card, its vsock and a capture."""
    with Guest(arch="aarch64", pcap=place / "net.pcapng") as guest:
        yield guest


def test_it_boots_from_unpacked_packages_and_runs_commands(guest: Guest) -> None:
    assert guest.run("uname -m").stdout == "aarch64\n"
    assert ("machine", "aarch64") in guest.report
    assert str(guest.verdict) == "tcg: KVM is used for x86-64 guests only, this one is aarch64"
    assert "console=ttyAMA0" in guest.read("/proc/cmdline")
    assert "guestwire-agent: ready" in guest.console.tail()
    for image in (find_kernel(arch="aarch64").image, find_busybox("aarch64")):
        owner = subprocess.run(["dpkg", "-S", str(image)], capture_output=True, text=True, check=False)
        assert owner.returncode != 0  # no package that is installed has it

    failed = guest.run("cat; echo to stderr >&2; exit 7", input=b"\x00\xff", env={"A": "b"}, cwd="/tmp")
    assert (failed.rc, failed.stdout_bytes, failed.stderr) == (7, b"\x00\xff", "to stderr\n")
    guest.put("/tmp/file", bytes(range(256)) * 1000)
    assert guest.get("/tmp/file") == bytes(range(256)) * 1000


def test_its_network_works_both_ways(guest: Guest) -> None:
    assert guest.address == "10.0.2.15"
    assert guest.run(f"ping -c 2 -W 10 {guest.gateway}").succeeded
    guest.write("/www/index.html", "from the guest")
    guest.spawn("httpd -f -p 80 -h /www", ready=guest.listening(80))
    with guest.connect(80) as connection:
        connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.endswith(b"from the guest")

    with guest.stack.socket.create_server(("", 8080)) as listener:
        listener.settimeout(SECONDS)
        sending = guest.spawn(["@load", "send", "tcp", guest.gateway, "8080", "bytes=5000000"])
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(SECONDS)
            received = 0
            while data := connection.recv(1 << 18):
                received += len(data)
        assert (received, sending.wait(timeout=SECONDS)) == (5_000_000, 0)


def test_its_vsock_works_both_ways(guest: Guest) -> None:
    with guest.vsock.listen(1234) as listener:
        listener.settimeout(SECONDS)
        command = guest.spawn(["@pipe", "vsock", "2", "1234"], stdin=True)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(SECONDS)
            command.write(b"up", timeout=SECONDS)
            assert connection.recv(100) == b"up"
            connection.sendall(b"down")
            assert command.read(1, timeout=SECONDS) == b"down"
        command.kill()


def test_its_frames_are_captured(guest: Guest, place: Path) -> None:
    assert guest.run(f"ping -c 1 -W 10 {guest.gateway}").succeeded
    assert guest.capture is not None
    with guest.network.lock:
        guest.capture.flush()
    shown = subprocess.run(
        ["tshark", "-r", str(place / "net.pcapng"), "-Y", "icmp", "-Tfields", "-e", "ip.src"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {guest.address, guest.gateway} <= set(shown.stdout.split())


def test_a_restored_one_has_all_that_an_x86_one_has(tmp_path: Path) -> None:
    """Hot-plug of card, vsock and a shared directory; a cable pulled; a faulty card; snapshot and back; reboot."""
    (tmp_path / "file").write_text("shared")
    with Guest(arch="aarch64", template=True, lazy=True, timeout_scale=2) as guest:
        assert "eth0" not in guest.run("ls /sys/class/net").stdout
        assert guest.address == "10.0.2.15"
        assert guest.vsock.cid >= 3
        with guest.net.faults.lasting("irq.lost"):
            assert not guest.run(f"ping -c 1 -W 1 {guest.gateway}").succeeded
        guest.wait_until(f"ping -c 1 -W 1 {guest.gateway}")
        guest.set_link(False)
        guest.wait_until("grep -q 0 /sys/class/net/eth0/carrier")
        guest.set_link(True)
        guest.wait_until(f"ping -c 1 -W 1 {guest.gateway}")
        if not virtiofsd.why_not(writable=False):
            shared = guest.share(tmp_path, "/src", how="virtiofs")
            assert guest.read("/src/file") == "shared"
            guest.unshare(shared)
        with guest.snapshot() as snapshot:
            guest.write("/tmp/later", "x")
            guest.restore(snapshot)
        assert not guest.run("cat /tmp/later").succeeded
        guest.reboot()
        assert guest.run(f"ping -c 1 -W 10 {guest.gateway}").succeeded


def test_it_meets_an_x86_guest_on_a_lan() -> None:
    with (
        Lan() as lan,
        Guest(lan=lan, arch="aarch64", template=True, vsock=False) as arm,
        Guest(lan=lan, template=True, vsock=False) as x86,
        lan.serve("api.test", {"/": "for both"}) as calls,
    ):
        for one, other in ((arm, x86), (x86, arm)):
            assert one.run(f"ping -c 1 -W 10 {other.address}").succeeded
            assert one.run("wget -q -O - http://api.test/").stdout == "for both"
        assert [call.path for call in calls] == ["/", "/"]


def test_its_kernels_complaints_are_found() -> None:
    with Guest(arch="aarch64", template=True, net=False, vsock=False, watch=True) as guest:
        with pytest.raises((KernelTroubleError, GuestDiedError), match="sysrq triggered crash"):
            guest.run("echo c > /proc/sysrq-trigger; sleep 100", timeout=SECONDS)
        guest.settle_findings()
        assert any(finding.fatal for finding in guest.findings)


@pytest.mark.skipif(virtiofsd.why_not(writable=True) != "", reason=virtiofsd.why_not(writable=True))
def test_a_directory_is_shared_with_it(tmp_path: Path) -> None:
    shares = (Share(tmp_path, "/src", writable=True),)
    with Guest(arch="aarch64", net=False, vsock=False, shares=shares) as guest:
        guest.run("echo from the guest > /src/file", check=True)
        assert (tmp_path / "file").read_text() == "from the guest\n"


def test_its_root_may_be_on_a_disk(tmp_path: Path) -> None:
    with Guest(arch="aarch64", template=True, net=False, vsock=False, modules=("virtio_blk", "ext4")) as vm:
        create(vm, tmp_path / "image", "qcow2", 32 << 20)
        vm.run(FILL, input=INIT, check=True)
    with Guest(arch="aarch64", disk=tmp_path / "image", net=False, vsock=False) as guest:
        guest.wait_until("test -s /run/ready")
        assert guest.read("/run/ready") == "init is process 1\n"
        assert guest.run("uname -m; ls /bin/busybox").stdout == "aarch64\n/bin/busybox\n"


def test_what_belongs_to_another_processor_is_refused() -> None:
    with pytest.raises(SetupError, match=r"cannot pack tar: it is for EM_X86_64, the guest for EM_AARCH64"):
        Guest(arch="aarch64", programs=("tar",)).start()
    with pytest.raises(SetupError, match=r"is no arm64 kernel: expected an Image or Image.gz"):
        Guest(arch="aarch64", kernel=find_kernel().image).start()
    with pytest.raises(SetupError, match="is an arm64 kernel: it needs an aarch64 guest"):
        Guest(kernel=find_kernel(arch="aarch64").image).start()
    with pytest.raises(SetupError, match="on x86-64 only, not on aarch64"):
        Guest(arch="aarch64", credentials={"a": "b"}).start()
    with pytest.raises(SetupError, match="an aarch64 guest cannot be in a q35, but in: virt"):
        Guest(arch="aarch64", machine="q35").start()


def test_from_the_command_line() -> None:
    done = guestwire("run", "--arch", "aarch64", "--no-net", "--no-vsock", "--", "sh", "-c", "uname -m; exit 3")
    assert (done.returncode, done.stdout) == (3, b"aarch64\n"), done.stderr


def test_in_a_users_tests(tmp_path: Path) -> None:
    source = """
        def test_it(guest, net):
            assert guest.run("uname -m").stdout == "aarch64\\n"
            assert guest.run(f"ping -c 1 -W 10 {guest.gateway}").succeeded
    """
    run = run_project(tmp_path, source, "--guest-arch=aarch64")
    assert "1 passed" in run.output, run.output
    assert "aarch64 guests: QEMU" in run.output
    assert "cloud-arm64" in run.junit("test_it")["guest1_kernel"]
