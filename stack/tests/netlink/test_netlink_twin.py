"""A kernel network namespace and a Stack are asked the same, and told the same (rows RT-01..RT-17, RT-E1..RT-E15).

What differs is listed here, and in docs/netlink.md.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from stack import Network
from stack.tests.netlink import monitor_script, script

#: The first kernel with IFLA_NETNS_IMMUTABLE, IFLA_HEADROOM and IFLA_TAILROOM.
OLDEST = (6, 16)
#: IFLA_AF_SPEC: settings and counters of IPv4 and IPv6, by numbers that are the kernel's own.
ATTRIBUTES_LEFT_OUT = {("NEWLINK", number) for number in (26,)}

#: Steps whose notifications differ in order or number: the end is the same.
#: * a veth's first message does not name its peer yet, where Linux says 0 or the peer's index;
#: * whether a link without carrier is RUNNING, the kernel's link watch finds out later;
#: * a carrier that comes with `up` is told before it, and LOWER_UP with RUNNING; Linux's link watch tells it later;
#: * Linux takes both ends of a veth down before it removes either.
TOLD_OTHERWISE = {"new link", "up without carrier", "up with carrier", "down", "up again", "link gone"}


@cache
def may_unshare() -> bool:
    """There are network namespaces with veth links to be had from this kernel."""
    if os.geteuid() or shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    command = ["unshare", "-n", "ip", "link", "add", "va", "type", "veth", "peer", "name", "vb"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def comparable() -> bool:
    """A network namespace can be had, of a kernel that says what Linux 6.18 does: older ones lack attributes."""
    release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return release >= OLDEST and may_unshare()


def kernel_namespaces() -> None:
    """Skips where the kernel has none for us."""
    if not may_unshare():
        pytest.skip("needs root, unshare(1), ip(8) and veth: a network namespace of the kernel to compare with")


def kernel(module: str) -> Any:
    """What the script `module` hears in a fresh network namespace of the kernel. Skips where there is none for it."""
    kernel_namespaces()
    if not comparable():
        pytest.skip(f"the answers are those of Linux 6.18, which this kernel is too old for: {os.uname().release}")
    command = ["unshare", "-n", sys.executable, "-m", f"stack.tests.netlink.{module}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def plain(value: Any) -> Any:
    """As it looks after a trip through a pipe."""
    return ast.literal_eval(repr(value))


def settled(label: str, heard: list[Any]) -> list[Any]:
    """The kernel lists neighbours in the order of a random hash."""
    return sorted(heard, key=repr) if label == "neighbours" else heard


def test_every_answer_is_the_kernels() -> None:
    theirs, their_attributes = kernel("script")
    with Network() as network:
        ours, our_attributes = script.run(network.stack("gw").socket)
    assert list(theirs) == list(ours)
    for label in theirs:
        assert settled(label, plain(ours[label])) == settled(label, theirs[label]), label
    assert their_attributes - our_attributes == ATTRIBUTES_LEFT_OUT
    assert our_attributes <= their_attributes


def final(told: list[Any]) -> dict[Any, Any]:
    """The last word about each link, and everything else in order."""
    links = {each[5]["index"]: (each[0], each[5]["flags"], each[6]["operstate"]) for each in told if "LINK" in each[0]}
    return {**links, "rest": [each for each in told if "LINK" not in each[0]]}


def test_rt_17_every_notification_is_the_kernels() -> None:
    """What the groups hear of every change - addresses, port and number of who asked, flags, order - is what a kernel
    tells them.
    """
    theirs = kernel("monitor_script")
    with Network() as network:
        ours = monitor_script.run(network.stack("gw").socket, 0, 0)
    assert list(theirs) == list(ours)
    for label in theirs:
        mine = plain(ours[label])
        if label in TOLD_OTHERWISE:
            assert mine[0] == theirs[label][0], label
            assert final(mine[1:]) == final(theirs[label][1:]), label
        else:
            assert mine == theirs[label], label
