"""TCP connections by way of source routes: where there is no other way, and set while the connection lives."""

from __future__ import annotations

import errno
import random
import socket as kernel
from typing import Any

from stack import Network
from stack.link.cable import cable
from stack.testing.clock import ManualClock
from stack.tests.kernel_twin import code
from stack.tests.linux_world import LINUX, OURS
from stack.tests.test_source_routes import FAR, IP, LOOSE, NEAR, OPTIONS, RIGHT, add_right, by_way_of


def test_source_routes_on_a_live_connection() -> None:
    """IP_OPTIONS with a source route lead a connection's packets from when they are set until they are taken away."""
    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        one, other = cable(network.scheduler)
        left, middle = network.stack("left"), network.stack("middle")
        left.add_interface(one, addresses=[f"{LINUX[4]}/24"])
        left.add_route("10.8.0.0/24", OURS[4])
        middle.add_interface(other, addresses=[f"{OURS[4]}/24", "10.9.0.7/24"])
        right = add_right(network, middle)
        with right.socket.create_server((RIGHT, 80)) as server, left.socket.create_connection((RIGHT, 80)) as client:
            served, _ = server.accept()
            with served:
                for option in (by_way_of(LOOSE, "10.9.0.7"), b""):
                    client.setsockopt(IP, OPTIONS, option)
                    client.sendall(b"question")
                    assert served.recv(9) == b"question"
                    served.sendall(b"answer")
                    assert client.recv(9) == b"answer"
                    assert (client._sock.connection.route.dst == kernel.inet_aton(RIGHT)) == (not option)


def test_source_routes_where_there_is_no_other_way() -> None:
    """A connection between hosts that have no route to each other: by its source route from the first SYN to the answer
    that TIME-WAIT gives a FIN that comes again.
    """
    came: list[bytes] = []
    sent: list[bytes] = []

    class Tap:
        def received(self, burst: Any) -> None:
            came.extend(bytes(frame) for frame, *_ in burst)

        def transmitted(self, burst: Any) -> None:
            sent.extend(b"".join(parts) for parts, *_ in burst)

    with Network(clock=ManualClock(), rng=random.Random(1)) as network:
        (one, other), (third, last) = cable(network.scheduler), cable(network.scheduler)
        left, middle, right = (network.stack(name) for name in ("left", "middle", "right"))
        iface = left.add_interface(one, addresses=[f"{LINUX[4]}/24"])
        middle.add_interface(other, addresses=[f"{NEAR}/24"])
        middle.add_interface(third, addresses=[f"{FAR}/24"])
        right.add_interface(last, addresses=[f"{RIGHT}/24"])
        network.call(middle.netns.set_forwarding, (True,))
        for stack in (left, middle, right):
            network.call(stack.netns.take_source_routes, (True,))
        iface.taps.append(Tap())
        with right.socket.create_server((RIGHT, 80)) as server, left.socket.socket() as client:
            assert code(client.connect, (RIGHT, 80)) == errno.ENETUNREACH
            client.setsockopt(IP, OPTIONS, by_way_of(LOOSE, NEAR))
            client.connect((RIGHT, 80))
            served, _ = server.accept()
            client.sendall(b"question" * 10_000)
            client.shutdown(kernel.SHUT_WR)
            got = b""
            while data := served.recv(100_000):
                got += data
            assert got == b"question" * 10_000
            served.close()
            assert client.recv(9) == b""
        fin = next(frame for frame in reversed(came) if frame[14 + (frame[14] & 15) * 4 + 13] & 1)
        sent.clear()
        network.call(left.netns.ip.input4.receive, (iface, memoryview(fin), 0, 0, 0))
        network.poll(network.clock())
        [answer] = sent
        assert answer[30:34] == kernel.inet_aton(NEAR)
        assert answer[34:42] == by_way_of(LOOSE, RIGHT)
