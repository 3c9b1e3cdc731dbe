"""What passed a guest's links can be asked for, vsock too, and is written down with what was dropped and why."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.guest import Guest
from qemu.guest.lan import Lan
from stack.link.dissect import dns, frame, tcp, vsock
from stack.link.impaired import PARTITION


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


def test_what_was_dropped_is_written_down_with_the_reason(lan: Lan, guest: Guest, tmp_path: Path) -> None:
    """By the gateway, which is no router, and by a line that is bad, also when it is mended again."""
    with guest.impaired(PARTITION, None):
        assert not guest.run(f"ping -c 2 -W 1 {guest.gateway}").succeeded
    guest.run(f"ip route add 192.0.2.0/24 via {guest.gateway}; ping -c 1 -W 1 192.0.2.1")
    path = tmp_path / "net.pcapng"
    lan.write_pcap(path, comment="a test")
    words = ["capinfos", "-k", "-M", str(path)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "a test" in shown
    assert re.search(r"dropped at the line to guest1: loss \d", shown), shown
    assert re.search(r"dropped at ip of the gateway: .*not-for-us \d", shown), shown


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
