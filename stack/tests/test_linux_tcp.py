"""Our TCP against Linux's own: what one sends the other gets, over good lines and bad, whatever both agreed on."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from stack.link import Impairment, cable
from stack.scheduler import NS_PER_MS
from stack.tests.linux_world import FAMILY, LINUX, OURS, TIMEOUT, LinuxWorld, receive_all, send_all, send_until

BOTH = pytest.mark.parametrize("client", ["ours", "linux"])
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])


def exchange(world: LinuxWorld, one: Any, other: Any, size: int, *, both: bool = True) -> None:
    """`size` bytes from `one` to `other`, and as many back at the same time; every byte is compared."""
    sent: dict[str, str] = {}
    got: dict[str, tuple[int, str]] = {}
    world.spawn(lambda: sent.update(there=send_all(one, size, 1)))
    world.spawn(lambda: got.update(there=receive_all(other)))
    if both:
        world.spawn(lambda: sent.update(back=send_all(other, size, 2)))
        world.spawn(lambda: got.update(back=receive_all(one)))
    world.join()
    assert got == {way: (size, digest) for way, digest in sent.items()}
    one.close()
    other.close()


@BOTH
@VERSIONS
@pytest.mark.parametrize("offload", [True, False], ids=["superframes", "packets"])
def test_bulk_both_ways(client: str, version: int, offload: bool) -> None:
    with LinuxWorld(offload=offload) as world:
        one, other = world.pair(client, version)
        exchange(world, one, other, 24 << 20 if offload else 4 << 20)
        assert not world.linux.tap.dropped


@VERSIONS
@pytest.mark.parametrize("ours", ["reno", "cubic", "bbr"])
def test_bulk_over_a_bad_line(version: int, ours: str) -> None:
    """Loss, bursts of it, reordering, duplicates and corruption in both directions: all arrives, once and in order."""
    line = Impairment(
        loss=0.01,
        burst_loss=0.0005,
        reorder=0.01,
        duplicate=0.01,
        corrupt=0.001,
        delay_ns=2 * NS_PER_MS,
        jitter_ns=1 * NS_PER_MS,
        seed=11,
    )
    with LinuxWorld(to_linux=line, to_us=line) as world:

        def choose(sock: Any) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, ours.encode())

        one, other = world.pair("ours", version, prepare=choose)
        exchange(world, one, other, 1 << 20)


@pytest.mark.parametrize(
    "sysctls",
    [
        {"tcp_sack": "0"},
        {"tcp_timestamps": "0"},
        {"tcp_window_scaling": "0"},
        {"tcp_sack": "0", "tcp_timestamps": "0", "tcp_window_scaling": "0"},
        {"tcp_ecn": "1"},
        {"tcp_rmem": "4096 8192 16384", "tcp_wmem": "4096 8192 16384"},
        {"tcp_congestion_control": "reno", "tcp_recovery": "0", "tcp_early_retrans": "0"},
        {"tcp_syncookies": "2"},
        {"tcp_autocorking": "0", "tcp_slow_start_after_idle": "0", "tcp_dsack": "0"},
    ],
    ids=lambda sysctls: ",".join(f"{name}={value.split()[-1]}" for name, value in sysctls.items()),
)
@BOTH
def test_whatever_linux_agrees_to(client: str, sysctls: dict[str, str]) -> None:
    """Options Linux was told not to use are not used, and the bytes arrive over a line that loses some."""
    line = Impairment(loss=0.01, delay_ns=NS_PER_MS, seed=3)
    with LinuxWorld(to_linux=line, to_us=line) as world:
        for name, value in sysctls.items():
            world.linux.sysctl(f"net.ipv4.{name}", value)
        one, other = world.pair(client, 4)
        mine = one if client == "ours" else other
        options = mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
        assert bool(options & 2) is ("tcp_sack" not in sysctls)
        assert bool(options & 1) is ("tcp_timestamps" not in sysctls)
        exchange(world, one, other, 300_000)


@BOTH
@VERSIONS
def test_requests_and_answers(client: str, version: int) -> None:
    with LinuxWorld() as world:
        one, other = world.pair(client, version)

        def echo() -> None:
            while data := other.recv(4096):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

        world.spawn(echo)
        for number in range(1000):
            question = number.to_bytes(4, "big") * (1 + number % 50)
            one.sendall(question)
            answer = b""
            while len(answer) < len(question):
                answer += one.recv(4096)
            assert answer == question
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
        world.join()
        one.close()
        other.close()


@BOTH
def test_connections_come_and_go(client: str) -> None:
    """Three hundred connections, closed by either side first or reset: none is left over but in TIME-WAIT."""
    server = "linux" if client == "ours" else "ours"
    with LinuxWorld() as world, world.listener(server, 4, backlog=64) as listener:

        def serve() -> None:
            for number in range(300):
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(30)
                    if number % 3 == 0:  # we close first
                        sock.sendall(b"%d" % number)
                    elif number % 3 == 1:  # the client does
                        sock.sendall(b"%d" % number)
                        assert sock.recv(10) == b""
                    else:  # the client resets
                        with pytest.raises(ConnectionResetError):
                            sock.recv(10)

        world.spawn(serve)
        for number in range(300):
            sock = world.connect(client, listener.getsockname(), 4)
            if number % 3 == 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                assert sock.recv(10) == b"%d" % number
            sock.close()
        world.join()
        states = {line.split()[3] for line in world.linux.run("cat", "/proc/self/net/tcp").splitlines()[1:]}
        assert states <= {"06", "0A"}, states  # TIME_WAIT and LISTEN; include/net/tcp_states.h


@BOTH
@VERSIONS
def test_half_of_it_closed(client: str, version: int) -> None:
    """One direction ends, the other goes on."""
    with LinuxWorld() as world:
        one, other = world.pair(client, version)
        one.sendall(b"the end")
        one.shutdown(socket.SHUT_WR)
        assert other.recv(100) == b"the end"
        assert other.recv(100) == b""
        other.sendall(b"x" * 100_000)
        other.close()
        assert receive_all(one)[0] == 100_000
        one.close()


@BOTH
def test_nobody_listens(client: str) -> None:
    with LinuxWorld() as world:
        there = (LINUX if client == "ours" else OURS)[4]
        with pytest.raises(ConnectionRefusedError):
            world.connect(client, (there, 9), 4)


def test_both_connect_at_once() -> None:
    """RFC 9293 section 3.5: two active opens that cross become one connection."""
    line = Impairment(delay_ns=100 * NS_PER_MS)
    with LinuxWorld(to_linux=line, to_us=line) as world:
        ours, linux = (world.socket(side, 4) for side in ("ours", "linux"))
        with ours, linux:
            for sock, address in ((ours, OURS[4]), (linux, LINUX[4])):
                sock.bind((address, 4000))
                sock.setblocking(False)
            # Addresses are resolved first, so that the two SYNs really cross.
            world.linux.run("ping", "-c", "1", OURS[4], check=False)
            for sock, address in ((ours, LINUX[4]), (linux, OURS[4])):
                assert sock.connect_ex((address, 4000)) == errno.EINPROGRESS
            for sock in (ours, linux):
                sock.settimeout(30)
            while linux.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1:
                assert linux.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            linux.sendall(b"to us")
            assert ours.recv(10) == b"to us"
            ours.sendall(b"to linux")
            assert linux.recv(10) == b"to linux"


@BOTH
def test_a_window_that_closes_and_opens_again(client: str) -> None:
    """A receiver that does not read stops the sender without loss; once it reads, everything is there."""
    with LinuxWorld() as world:
        one, other = world.pair(client, 4)
        one.settimeout(1)  # longer than any pause but the one of a closed window
        sent = send_until(one, TimeoutError)
        assert sent > 100_000
        one.settimeout(TIMEOUT)
        world.spawn(send_all, one, 65536, 1)
        assert receive_all(other)[0] == sent + 65536


@pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
@BOTH
def test_a_narrow_link_behind_our_router(client: str, version: int) -> None:
    """Path MTU discovery: Linux learns the 1300 bytes of the far link from our router's ICMP, and we from ours."""
    with LinuxWorld() as world:
        near, far = ({4: "10.99.0.1", 6: "fd99::1"}, {4: "10.99.0.2", 6: "fd99::2"})
        with world.network.lock:
            ends = cable(world.network.scheduler, mtu=1300)
            world.gw.netns.set_forwarding(True)
        host = world.network.stack("host")
        world.gw.add_interface(ends[0], addresses=[f"{near[4]}/24", f"{near[6]}/64"])
        host.add_interface(ends[1], addresses=[f"{far[4]}/24", f"{far[6]}/64"])
        host.add_route("0.0.0.0/0", near[4])
        host.add_route("::/0", near[6])
        for each in (4, 6):
            world.linux.run("ip", f"-{each}", "route", "add", "default", "via", OURS[each])
        with host.socket.socket(FAMILY[version]) as mine, world.socket("linux", version) as theirs:
            mine.settimeout(TIMEOUT)
            if client == "ours":
                theirs.bind((LINUX[version], 0))
                theirs.listen()
                mine.connect(theirs.getsockname()[:2])
                peer, _ = theirs.accept()
                peer.settimeout(TIMEOUT)
                exchange(world, mine, peer, 1 << 20)
            else:
                mine.bind((far[version], 0))
                mine.listen()
                theirs.connect(mine.getsockname()[:2])
                peer, _ = mine.accept()
                peer.settimeout(TIMEOUT)
                exchange(world, theirs, peer, 1 << 20)
