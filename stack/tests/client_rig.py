"""Two Stacks on a cable for tests of other people's clients: servers on one, the process's `socket` on the other."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import trustme

from stack import Network, Stack
from stack.link import cable

#: Seconds after which a client gives up and its test fails; never waited for.
PATIENCE = 30


@dataclass
class Rig:
    """Names resolve: each Stack knows the other as "server" and "client"."""

    network: Network
    server: Stack
    client: Stack


@contextmanager
def joined() -> Iterator[Rig]:
    with Network() as network:
        left, right = cable(network.scheduler)
        server, client = network.stack("server"), network.stack("client")
        server.add_interface(left, addresses=["10.0.0.1/24", "fd00::1/64"])
        client.add_interface(right, addresses=["10.0.0.2/24", "fd00::2/64"])
        yield Rig(network, server, client)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[Any]:
    """`server` answers in a thread of its own meanwhile."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def in_thread(function: Any, *args: Any) -> Iterator[None]:
    """`function` runs in a thread meanwhile; what it raises is raised here."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function(*args)
        except BaseException as failure:  # noqa: BLE001 - handed on
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


@cache
def authority() -> trustme.CA:
    """A certificate authority for these tests."""
    return trustme.CA()


@cache
def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert("server", "10.0.0.1").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context
