"""Asking recorded frames, with tshark as the oracle: the same question to both gives the same packets."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import Network
from stack.link import cable
from stack.link.capture_ring import CaptureRing
from stack.link.dissect import Predicate, arp, dns, eth, frame, icmp, ip, ipv6, tcp, udp, vsock
from stack.link.offload import ALL_OFFLOADS
from stack.scheduler import NS_PER_S
from stack.testing.clock import ManualClock
from stack.testing.vsock import ScriptedGuest
from stack.vsock import VsockEngine

QUERY = bytes.fromhex("1234010000010000000000000377777707") + b"example\x03com\x00\x00\x01\x00\x01"


@pytest.fixture(scope="module")
def ring() -> Iterator[CaptureRing]:
    """A little of everything between two stacks."""
    with Network(clock=ManualClock(), rng=random.Random(3)) as network:
        ring = CaptureRing(network.scheduler)
        one, other = cable(network.scheduler, offloads=ALL_OFFLOADS)
        near, far = network.stack("near"), network.stack("far")
        near.add_interface(ring.tap(one, "lan", description="a cable"), addresses=["10.0.0.1/24", "fd00::1/64"])
        far.add_interface(other, addresses=["10.0.0.2/24", "fd00::2/64"])
        network.advance(3 * NS_PER_S)
        for address in ("10.0.0.2", "fd00::2"):
            with far.socket.create_server((address, 80), family=10 if ":" in address else 2) as listener:
                ring.comment(f"over to {address}")
                with near.socket.create_connection((address, 80)) as client:
                    served, _ = listener.accept()
                    with served:
                        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                        assert served.recv(100)
                        served.sendall(bytes(5000))
                        assert client.recv(10_000)
        with near.socket.socket(2, 2) as sock:
            sock.sendto(QUERY, ("10.0.0.2", 53))  # nobody there: an ICMP error comes back
            sock.sendto(b"x" * 3000, ("10.0.0.2", 9))  # in fragments
        network.advance(NS_PER_S)
        yield ring


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((tcp.dstport == 80) & tcp.flags.syn, "tcp.dstport == 80 && tcp.flags.syn == 1"),
        ((tcp.len > 0) & ~tcp.flags.fin, "tcp.len > 0 && !(tcp.flags.fin == 1)"),
        (
            ((ip.dst == "10.0.0.2") | (ipv6.dst == "fd00::2")) & tcp,
            "(ip.dst == 10.0.0.2 || ipv6.dst == fd00::2) && tcp",
        ),
        ((arp.opcode == 1) | (eth.type == 0x86DD), "arp.opcode == 1 || eth.type == 0x86dd"),
        ((icmp.type == 3) | (frame.len > 1400), "icmp.type == 3 || frame.len > 1400"),
        ((ip.proto == 17) & (udp.dstport == 53), "ip.proto == 17 && udp.dstport == 53 && !icmp"),
        (dns.name == "www.example.com", 'dns.qry.name == "www.example.com" && !icmp'),
    ],
    ids=str,
)
def test_tshark_finds_the_same(ring: CaptureRing, ours: Predicate, theirs: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    ring.write(path)
    command = ["tshark", "-n", "-r", str(path), "-o", "ip.defragment:FALSE", "-Y", theirs, "-T", "fields"]
    done = subprocess.run([*command, "-e", "frame.number"], capture_output=True, text=True, check=True)
    wanted = [int(line) for line in done.stdout.split()]
    everything = ring.filter()
    found = [everything.index(packet) + 1 for packet in everything if ours(packet)]
    assert found == wanted
    assert [packet.data for packet in ring.filter(ours)] == [everything[number - 1].data for number in wanted]


def test_a_packet_tells_what_it_is(ring: CaptureRing) -> None:
    syn = ring.filter(tcp.flags.syn & ~tcp.flags.ack, ip)[0]
    assert syn.tcp.dport == 80
    assert syn.link == "lan"
    assert syn.summary.startswith("TCP 10.0.0.1:")
    assert "[SYN] seq" in syn.summary
    assert [packet.payload for packet in ring.filter(tcp.dstport == 80, tcp.len > 0)] == [b"GET / HTTP/1.0\r\n\r\n"] * 2
    marked = ring.filter(frame.comment != None)  # noqa: E711  (a Field's own comparison)
    assert [packet.comment for packet in marked] == ["over to 10.0.0.2", "over to fd00::2"]


def test_questions_that_cannot_be_asked_are_explained() -> None:
    with pytest.raises(AttributeError, match=r"tcp has no field 'dport'; there are .*dstport"):
        _ = tcp.dport
    with pytest.raises(AttributeError, match=r"tcp\.flags has no 'synn'"):
        _ = tcp.flags.synn
    with pytest.raises(TypeError, match="combine with"):
        _ = tcp.dstport == 80 and tcp.flags.syn
    assert repr((tcp.dstport == 80) & ~udp) == "((tcp.dstport == 80) & ~udp)"


@pytest.mark.parametrize("seed", range(3))
def test_frames_of_any_bytes_are_looked_at_without_harm(seed: int) -> None:
    rng = random.Random(seed)
    with Network(clock=ManualClock()) as network:
        ring = CaptureRing(network.scheduler)
        one, _ = cable(network.scheduler)
        ring.tap(one, "lan")
        for _ in range(1000):
            data = bytearray(rng.randbytes(rng.randrange(0, 120)))
            data[12:14] = rng.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06"))
            data[14:15] = rng.choice((b"\x45", b"\x60", b"\x4f"))
            data[23:24] = rng.choice((b"\x06", b"\x11", b"\x01"))
            ring.record(0, 1, (bytes(data),))
        wanted = [tcp.dstport > 0, udp.srcport > 0, dns.name == "x", icmp.type == 1, arp.src == "1.2.3.4", ip.ttl > 3]
        for predicate in wanted:
            ring.filter(predicate)
        assert all(packet.summary for packet in ring.filter())


def test_vsock_packets_are_recorded_as_linux_records_them(tmp_path: Path) -> None:
    with Network(clock=ManualClock()) as network:
        ring = CaptureRing(network.scheduler)
        transport = ScriptedGuest(3)
        engine = VsockEngine(network.scheduler)
        port = engine.add_guest(ring.tap_vsock(transport, "guest's vsock"))
        connection = engine.connect(3, 1234)
        network.scheduler.run_deferred()
        transport.feed(2, connection.local[1], 1234)
        port.service(10)
        connection.write(b"hello guest")
        network.scheduler.run_deferred()
        assert [packet.vsock["op"] for packet in ring.filter(vsock) if packet.vsock] == [1, 2, 5]
        (said,) = ring.filter((vsock.op == 5) & (vsock.dst_port == 1234))
        assert said.payload == b"hello guest"
        assert "RW len 11" in said.summary
        path = tmp_path / "vsock.pcapng"
        assert ring.write(path) == 3
        words = ["tshark", "-n", "-r", str(path), "-T", "fields", "-e", "vsock.dst_cid", "-e", "virtio.op"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:  # a tshark that names the fields otherwise still has to know the link type
            words = ["tshark", "-n", "-r", str(path), "-T", "fields", "-e", "vsock.dst_cid"]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["3", "2", "3"]
        connection.abort()
