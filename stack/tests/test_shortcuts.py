"""The shortcuts of TCP (header prediction, header templates, lone pieces) change nothing that can be seen.

The general ways are the oracle: the same seeds, with and without shortcuts, are equal to the packet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stack.ip.layer import IpLayer
from stack.socket.ip import stream
from stack.tcp import pcb
from stack.tests.test_simulation import run

SEEDS = range(2, 40, 4)


def never_predicted(connection: Any) -> None:
    connection.predicted = 0


def without_templates(original: Callable[..., None]) -> Callable[..., None]:
    def make(layer: Any, *args: Any) -> None:
        original(layer, *args)
        layer.template = lambda *_, **__: None

    return make


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the shortcuts away."""

    def take_away() -> None:
        monkeypatch.setattr(pcb.Pcb, "predict", never_predicted)
        monkeypatch.setattr(pcb, "busy", lambda _: True)
        monkeypatch.setattr(pcb, "send_lone", lambda _: False)
        monkeypatch.setattr(stream, "say", lambda *_: False)
        monkeypatch.setattr(IpLayer, "__init__", without_templates(IpLayer.__init__))

    return take_away


@pytest.mark.parametrize("seed", SEEDS)
def test_shortcuts_change_no_packet(seed: int, plain: Callable[[], None]) -> None:
    """A random network, random lines, random programs: the digests of all frames are the same."""
    short = run(seed)
    plain()
    assert run(seed) == short


@pytest.mark.long
@pytest.mark.parametrize("batch", range(4))
def test_shortcuts_change_no_packet_of_hundreds_of_seeds(batch: int, plain: Callable[[], None]) -> None:
    seeds = range(5000 + 100 * batch, 5000 + 100 * (batch + 1))
    short = [run(seed) for seed in seeds]
    plain()
    assert [run(seed) for seed in seeds] == short
