"""Our TCP against Linux's own over a line that Linux itself makes bad: `tc netem`, where its kernel has it."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

import pytest

from stack.link import Impairment
from stack.scheduler import NS_PER_MS
from stack.tests.linux_world import LinuxWorld, receive_all, send_all

LINES = {
    "loss": "delay 2ms loss 1%",
    "bursts": "delay 2ms loss gemodel 0.5% 30%",
    "reordering": "delay 2ms reorder 5% 50%",
    "duplicates": "delay 2ms duplicate 2%",
    "corruption": "delay 2ms corrupt 0.2%",
    "jitter": "delay 4ms 2ms",
}


def netem(world: LinuxWorld, line: str) -> None:
    """Whatever Linux sends us goes through `line`. Skips where the kernel has no netem, with its own word for it."""
    tc = shutil.which("tc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")  # users need not have those
    if tc is None:
        pytest.skip("no tc here: it is in the package iproute2")
    try:
        world.linux.run(tc, *f"qdisc add dev {world.linux.interface} root netem limit 1000 {line}".split())
    except RuntimeError as error:
        if "qdisc kind is unknown" not in str(error):
            raise
        pytest.skip(f"the kernel has no netem: {error}")


@pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
@pytest.mark.parametrize("line", LINES.values(), ids=list(LINES))
def test_bulk_over_netem(version: int, line: str) -> None:
    """Both ways at once, with netem on what Linux sends and our own bad line on what we do: every byte arrives."""
    back = Impairment(loss=0.005, delay_ns=2 * NS_PER_MS, seed=5)
    with LinuxWorld(to_linux=back, to_us=Impairment()) as world:
        netem(world, line)
        one, other = world.pair("ours", version)
        sent: dict[str, str] = {}
        got: dict[str, tuple[int, str]] = {}
        size = 400_000

        def move(way: str, source: Any, sink: Any, seed: int) -> None:
            world.spawn(lambda: sent.update({way: send_all(source, size, seed)}))
            world.spawn(lambda: got.update({way: receive_all(sink)}))

        move("there", one, other, 1)
        move("back", other, one, 2)
        world.join()
        assert got == {way: (size, digest) for way, digest in sent.items()}


def test_requests_over_netem() -> None:
    """Requests and answers, and connections that come and go, over losses in the kernel's own direction."""
    with LinuxWorld() as world:
        netem(world, "delay 1ms loss 2%")
        with world.listener("ours", 4) as listener:
            for number in range(20):
                theirs = world.connect("linux", listener.getsockname(), 4)
                ours, _ = listener.accept()
                with theirs, ours:
                    ours.settimeout(20)
                    theirs.sendall(number.to_bytes(4, "big"))
                    assert ours.recv(4, socket.MSG_WAITALL) == number.to_bytes(4, "big")
                    ours.sendall(b"yes")
                    assert theirs.recv(3, socket.MSG_WAITALL) == b"yes"
