"""pyroute2, unchanged, over our AF_NETLINK sockets: IPRoute, NDB, the event monitor; the same script on a kernel."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from typing import Any

import pytest

from stack import Network
from stack.tests.netlink.test_netlink_twin import kernel_namespaces

SCRIPTS = ("iproute", "monitor", "ndb")


def run(*command: str) -> Any:
    program = [sys.executable, "-m", "stack.tests.netlink.pyroute2_script"]
    done = subprocess.run(
        [*command[:-1], *program, *command[-1].split()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


@pytest.fixture(scope="module", autouse=True)
def client() -> None:
    pytest.importorskip("pyroute2", reason="pyroute2 is a development dependency")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_same_script_hears_the_same(script: str) -> None:
    ours = run(f"{script} --stack")
    assert ours
    kernel_namespaces()
    assert ours == run("unshare", "-n", script)


def test_a_socket_of_a_stack_can_be_given_to_it() -> None:
    """Whenever pyroute2 was imported, and for several stacks at once."""
    from pyroute2 import IPRoute

    with Network() as network:
        stacks = [network.stack("one"), network.stack("two")]
        clients = [IPRoute(use_socket=stack.socket.socket(16, 2, 0)) for stack in stacks]
        for number, (stack, client) in enumerate(zip(stacks, clients, strict=True)):
            client.link("add", ifname=f"dm{number}", kind="dummy")
            assert [each.get("ifname") for each in client.get_links()] == ["lo", f"dm{number}"]
            assert list(stack.netns.interfaces) == ["lo", f"dm{number}"]
        for client in clients:
            client.close()
            client.asyncore.use_socket.close()


# --- descriptors ------------------------------------------------------------------------------------------------------


def test_a_duplicate_of_the_descriptor_keeps_the_socket() -> None:
    """os.dup, close, socket(fileno=...): the open socket, its port id and its queue are what they were."""
    with Network() as network:
        module = network.stack("gw").socket
        first = module.socket(16, 3, 0)
        first.bind((4711, 1))
        copy = os.dup(first.fileno())
        first.close()
        again = module.socket(fileno=copy)
        assert (again.fileno(), again.getsockname(), again.family, again.type) == (copy, (4711, 1), 16, 3)
        again.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(copy)
        with module.socket(16, 3, 0) as other:
            other.bind((4711, 0))  # the port is free again


def test_a_duplicate_beside_an_open_socket_is_a_second_one() -> None:
    with Network() as network:
        module = network.stack("gw").socket
        with module.socket(16, 3, 0) as first:
            first.bind((4711, 0))
            with module.socket(fileno=os.dup(first.fileno())) as second:
                assert second.getsockname() == (4711, 0)
            assert first.getsockname() == (4711, 0)


def test_a_duplicate_that_is_only_closed_lets_the_socket_go() -> None:
    with Network() as network:
        stack = network.stack("gw")
        first = stack.socket.socket(16, 3, 0)
        first.bind((4711, 0))
        copy = os.dup(first.fileno())
        first.close()
        table = stack.netns.netlink
        assert table is not None
        assert 4711 in table[0].ports
        os.close(copy)
        stack.socket.socket(16, 3, 0).close()  # noticed when the next one is closed
        assert 4711 not in table[0].ports


def test_what_a_duplicate_keeps_ends_with_its_stack() -> None:
    with Network() as network:
        stack = network.stack("gw")
        first = stack.socket.socket(16, 3, 0)
        copy = os.dup(first.fileno())
        first.close()
    os.close(copy)


def test_a_duplicate_of_a_file_is_no_socket() -> None:
    with Network() as network:
        module = network.stack("gw").socket
        reading, writing = os.pipe()
        with pytest.raises(OSError, match="Socket operation on non-socket"):
            module.socket(fileno=reading)
        os.close(reading)
        os.close(writing)
