"""The bench of the stack alone: it runs, its parts add up, and the stack is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qemu.guest.bench import cost, paths
from stack.iface.interface import Interface
from stack.tcp.express import Express
from stack.tcp.pcb import Pcb

STEP = 1000


class Clock:
    """Nanoseconds that pass when it is read, as reading a clock takes time, and when somebody works."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += STEP
        return self.now

    def working(self, method: Any, duration: int) -> Callable[..., Any]:
        """`method`, which takes so long."""

        def work(*args: Any) -> Any:
            self.now += duration
            return method(*args)

        return work


def test_stages_are_charged_their_own_work_and_no_clock_reading() -> None:
    clock = Clock()

    class Node:
        def outer(self) -> None:
            clock.now += 70
            self.inner()
            clock.now += 7
            self.inner()

        def inner(self) -> None:
            clock.now += 5

    methods: dict[str, tuple[type, str, Callable[[Any], object]]] = {
        "outer": (Node, "outer", lambda _: "here"),
        "inner": (Node, "inner", lambda _: "here"),
    }
    with cost.Stages(methods, clock) as stages:
        assert (stages.own, stages.around) == (STEP, STEP)
        began = clock()
        Node().outer()
        clock.now += 11
        taken = clock() - began
        assert stages.spent == {("outer", "here"): 77, ("inner", "here"): 10}
        assert stages.calls == {("outer", "here"): 1, ("inner", "here"): 2}
        assert taken - stages.inside == 11 + STEP  # of two readings around it all, the time of one is in `taken`
        stages.clear()
        assert (stages.spent, stages.calls, stages.inside) == ({}, {}, 0)


def test_stages_of_a_superframe_are_the_whole_and_nothing_stays_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for kind, name, duration in (
        (Interface, "service", 1 << 20),
        (Express, "receive", 1 << 18),
        (Pcb, "flush", 1 << 14),
        (Interface, "flush", 1 << 12),
        (Interface, "send_alone", 1 << 10),
    ):
        monkeypatch.setattr(kind, name, clock.working(kind.__dict__[name], duration))
    before = Interface.service, Interface.flush, Interface.send_alone, Express.receive, Pcb.flush
    figures = {figure.name: figure for figure in cost.superframe_stages(0.2, clock)}
    assert (Interface.service, Interface.flush, Interface.send_alone, Express.receive, Pcb.flush) == before
    whole = figures.pop("send to recv, all of it").value
    assert sum(figure.value for figure in figures.values()) == pytest.approx(whole)
    assert figures.pop("socket calls, turns, cable").value == pytest.approx(STEP / 1000 / 25)  # a batch is 25
    durations = {
        "link in": 1 << 20,
        "IP and TCP in": 1 << 18,
        "TCP and IP out": 1 << 14,
        "link out": 1 << 12,
        "lone frame out": 1 << 10,
    }
    everywhere = {f"{stage}, {node}" for stage in durations for node in ("sender", "receiver")}
    # A superframe is queued and flushed, an acknowledgment leaves alone.
    assert set(figures) == everywhere - {"lone frame out, sender", "link out, receiver"}
    for name, figure in figures.items():
        calls = float(figure.beside.removesuffix(" calls"))
        assert calls > 0
        assert figure.value == pytest.approx(durations[name.partition(",")[0]] / 1000 * calls), name
    assert figures["IP and TCP in, receiver"].beside == "1.00 calls"


def test_stages_of_a_superframe_are_measured_by_the_real_clock() -> None:
    figures = cost.superframe_stages(0.01)
    assert len(figures) == 10
    assert figures[-1].value > 0


def test_every_rate_is_measured() -> None:
    assert [figure.unit for figure in cost.packet_rates(0.01)] == ["/s"] * 3
    assert all(figure.value > 0 for figure in cost.packet_rates(0.01))


def test_idle_connections_are_counted_and_closed() -> None:
    figures = cost.idle_connections((0, 20))
    assert [figure.unit for figure in figures] == ["us"] * 4 + ["bytes"]
    assert 1000 < figures[-1].value < 50_000


def test_our_side_of_the_long_path_is_what_theory_gives() -> None:
    assert 0.5 < paths.ours("reno", 30) / paths.theory("reno") < 2
