"""What passed a guest's links can be asked for, vsock too, and is written down with what was dropped and why."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.guest import Guest
from qemu.guest.lan import Lan
from stack.link.dissect import dns, frame, tcp, vsock


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        yield lan


@pytest.fixture(scope="module")
def guest(lan: Lan) -> Iterator[Guest]:
    lan.serve("api.test:80", lambda request: "hello")
    with Guest(lan=lan, template=True) as guest:
        yield guest


def test_what_the_guest_did_is_seen(lan: Lan, guest: Guest) -> None:
    lan.mark("now the guest asks")
    assert guest.run("wget -q -O - http://api.test/", check=True).stdout == "hello"
    asked = lan.ring.filter((tcp.dstport == 80) & tcp.flags.syn, frame.inbound)
    assert len(asked) == 1
    assert asked[0].link == "guest1"
    assert any(b"GET / HTTP" in packet.payload for packet in lan.ring.filter(tcp.dstport == 80))
    assert lan.ring.filter(dns.name == "api.test")
    assert [packet.comment for packet in lan.ring.filter() if packet.comment] == ["now the guest asks"]


def test_vsock_is_recorded_beside_the_card(lan: Lan, guest: Guest, tmp_path: Path) -> None:
    socket = guest.stack.socket
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, 4321))
        listener.listen()
        listener.settimeout(30)
        guest.load("send", "2", 4321, family="vsock", seconds=0.1, size=100)
        connection, (cid, _) = listener.accept()
        with connection:
            assert connection.recv(100)
    packets = lan.ring.filter((vsock.dst_port == 4321) & (vsock.op == 5))
    assert packets[0].vsock is not None
    assert packets[0].vsock["src_cid"] == cid
    assert packets[0].link == "guest1-vsock"
    path = tmp_path / "net.pcapng"
    assert lan.write_pcap(path) > len(packets)
    words = [
        "tshark",
        "-n",
        "-r",
        str(path),
        "-Y",
        "vsock.dst_port == 4321",
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"guest1-vsock"}
