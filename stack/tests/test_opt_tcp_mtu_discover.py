"""IP_MTU_DISCOVER of TCP sockets: DF in the headers, identifications, and what ICMP does. Linux is the oracle."""

from __future__ import annotations

import errno
import socket as kernel
import struct
from typing import Any

import pytest

from stack.ip.packet import IcmpError
from stack.tcp import TcpOptions, TcpState
from stack.tests.linux_world import LinuxWorld
from stack.tests.tcp.script import Script
from stack.wire.tcp import ACK, PSH

IP, MTU_DISCOVER = kernel.IPPROTO_IP, 10
IPV6, MTU_DISCOVER6 = kernel.IPPROTO_IPV6, 23
DF = 0x4000
#: By mode, IP_PMTUDISC_DONT to _OMIT: whether Linux forbids routers to cut TCP's segments.
SETS_DF = [False, True, True, False, False, False]


class Tap:
    """Ports, identification and flags of the IPv4 packets that pass an interface with TCP, resets apart."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, int, int]] = []
        self.came: list[tuple[bytes, int, int]] = []

    def received(self, burst: Any) -> None:
        for frame, *_ in burst:
            self._note(bytes(frame[:80]), self.came)

    def transmitted(self, burst: Any) -> None:
        for parts, *_ in burst:
            self._note(b"".join(parts), self.sent)

    def _note(self, frame: bytes, heads: list[tuple[bytes, int, int]]) -> None:
        if frame[12:14] == b"\x08\x00" and frame[23] == 6 and not frame[47] & 4:
            ident, flags = struct.unpack_from("!HH", frame, 18)
            heads.append((frame[34:38], ident, flags & 0x7FFF))


@pytest.mark.parametrize("side", ["ours", "linux"])
def test_opt_ip_mtu_discover_of_tcp_on_the_wire(side: str) -> None:
    """IP_MTU_DISCOVER of a connection: WANT and DO set DF, the others do not and number their packets, as Linux."""
    with LinuxWorld() as world:
        tap = Tap()
        with world.network.lock:
            next(each for each in world.gw.netns.ip.interfaces.values() if each.name == "eth0").taps.append(tap)
        for mode in range(6):

            def prepare(sock: Any, mode: int = mode) -> None:
                sock.setsockopt(IP, MTU_DISCOVER, mode)

            one, other = world.pair(side, 4, prepare=prepare)
            total = 0
            one.sendall(bytes(20_000))
            while total < 20_000:
                total += len(other.recv(65536))
            one.send(b"x")
            assert other.recv(1) == b"x"
            port = one.getsockname()[1].to_bytes(2, "big")
            with world.network.lock:  # what is sent is noted at the end of the turn
                heads = [
                    head for head in (tap.sent if side == "ours" else tap.came) if port in (head[0][:2], head[0][2:])
                ]
            assert heads
            assert {flags for _, _, flags in heads} == {DF if SETS_DF[mode] else 0}, mode
            if not SETS_DF[mode]:
                idents = [ident for _, ident, _ in heads]
                assert len(set(idents)) == len(idents)


@pytest.mark.parametrize("side", ["ours", "linux"])
def test_opt_ip_mtu_discover_changed_and_inherited_by_tcp(side: str) -> None:
    """IP_MTU_DISCOVER counts from the moment it is set, and for what a listener accepts."""
    with LinuxWorld() as world:
        tap = Tap()
        with world.network.lock:
            next(each for each in world.gw.netns.ip.interfaces.values() if each.name == "eth0").taps.append(tap)
        heads = tap.sent if side == "ours" else tap.came
        with world.listener(side, 4) as listener:
            listener.setsockopt(IP, MTU_DISCOVER, 0)
            client = world.connect("linux" if side == "ours" else "ours", listener.getsockname(), 4)
            served, _ = listener.accept()
        with served:
            assert served.getsockopt(IP, MTU_DISCOVER) == 0
            served.send(b"a")
            assert client.recv(1) == b"a"
            with world.network.lock:  # what is sent is noted at the end of the turn
                assert heads.pop(0)[2] == DF or side == "linux"  # the SYN|ACK: short, so that nobody cuts it
                assert {flags for _, _, flags in heads} == {0}
            for mode, expected in ((2, DF), (3, 0)):
                with world.network.lock:
                    heads.clear()
                served.setsockopt(IP, MTU_DISCOVER, mode)
                served.send(b"b")
                assert client.recv(1) == b"b"
                with world.network.lock:
                    assert {flags for _, _, flags in heads} == {expected}


def too_big(s: Script, mtu: int, version: int) -> None:
    """A router cannot pass the first segment."""
    ports = s.our_port.to_bytes(2, "big") + s.peer_port.to_bytes(2, "big")
    s.ip.on_error(
        IcmpError(
            version=version,
            type=3 if version == 4 else 2,
            code=4 if version == 4 else 0,
            errno=errno.EMSGSIZE,
            hard=False,
            mtu=mtu,
            info=0,
            src=s.peer,
            local=s.us,
            remote=s.peer,
            proto=6,
            payload=memoryview(ports + ((s.iss + 1) & 0xFFFFFFFF).to_bytes(4, "big")),
        )
    )
    s.turn()


def resent(s: Script) -> tuple[int, int]:
    """Bytes of the next (super)frame, and of each segment of it."""
    sent = s.drain()[0]
    return len(sent.data), sent.gso_size


@pytest.mark.parametrize("mode", range(6))
def test_opt_ip_mtu_discover_and_fragmentation_needed(mode: int) -> None:
    """DONT, INTERFACE and OMIT leave what was too big to the retransmission timer; all learn what the path takes."""
    s = Script().established(TcpOptions(discover=mode))
    s.write(bytes(1460))
    s.expect(PSH | ACK, length=1460)
    too_big(s, 1000, 4)
    assert s.connection.mss == 960
    if mode in (1, 2, 3):
        assert resent(s) == (1460, 960)
    else:
        s.expect_nothing()
        s.wait(1100)
        assert resent(s)[0] == 960
    assert s.in_state(TcpState.ESTABLISHED)


@pytest.mark.parametrize("mode", range(6))
def test_opt_ipv6_mtu_discover_and_packet_too_big(mode: int) -> None:
    """Over IPv6 INTERFACE and OMIT do not believe ICMP; the others send again at once."""
    s = Script(six=True).established(TcpOptions(discover6=mode))
    s.write(bytes(1440))
    s.expect(PSH | ACK, length=1440)
    too_big(s, 1300, 6)
    if mode < 4:
        assert resent(s) == (1440, 1240)
    else:
        s.expect_nothing()
        assert s.connection.mss == 1440


def test_opt_mtu_discover_reaches_tcp() -> None:
    """Both levels' values come to the connection they are set on."""
    from stack import Network

    with Network() as network:
        stack = network.stack("gw")
        with stack.socket.socket(kernel.AF_INET6) as listener, stack.socket.socket(kernel.AF_INET6) as client:
            listener.bind(("::1", 0))
            listener.listen()
            client.setsockopt(IPV6, MTU_DISCOVER6, 4)
            client.connect(listener.getsockname()[:2])
            client.setsockopt(IP, MTU_DISCOVER, 3)
            options = client._sock.phase.connection.options
            assert (options.discover, options.discover6) == (3, 4)
