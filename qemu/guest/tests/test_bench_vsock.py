"""The vsock bench measures something on every way, and shows it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qemu.guest.bench import report, vsock
from qemu.guest.bench.figure import Row
from qemu.guest.bench.plan import Section


@pytest.mark.parametrize("mode", ["send", "recv"])
def test_the_gateway_carries_streams_of_the_rig(mode: str) -> None:
    with vsock._rig() as ways:
        assert {vsock.SOCKET, vsock.GATEWAY, vsock.PAIR} <= set(ways)
        assert ways[vsock.GATEWAY](mode, 0.1, 65536, 2) > 0


def test_round_trips_and_connects_are_counted() -> None:
    with vsock._rig() as ways:
        assert ways[vsock.SOCKET]("rr", 0.05, 64, 1) > 0
        assert ways[vsock.SOCKET]("crr", 0.05, 64, 1) > 0
        assert ways[vsock.PAIR]("rr", 0.05, 64, 1) > 0


def test_the_table_shows_ratios_to_the_peer() -> None:
    row = Row("to host, 64 KiB", "Gb/s", True, {vsock.GATEWAY: [5.0], vsock.PAIR: [10.0]})
    section = Section("title", (vsock.GATEWAY, vsock.PAIR), (vsock.PAIR,), [row])
    out = io.StringIO()
    report.show(Console(file=out, width=120), report.content([section], {}))
    assert "5.00  0.50x" in out.getvalue()
