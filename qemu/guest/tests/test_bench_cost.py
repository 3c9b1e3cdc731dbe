"""The bench of the stack alone: it runs, its parts add up, and the stack is as it was afterwards."""

from __future__ import annotations

from qemu.guest.bench import cost, paths
from stack.iface.interface import Interface
from stack.tcp.pcb import Pcb


def test_stages_of_a_superframe_are_counted_and_nothing_stays_wrapped() -> None:
    before = Interface.service, Pcb.flush
    figures = {figure.name: figure for figure in cost.superframe_stages(0.2)}
    assert (Interface.service, Pcb.flush) == before
    assert len(figures) == 12
    whole = figures.pop("send to recv, all of it").value
    assert whole > 0
    # What the wrappers cost is taken out: the stages are the whole, but for what measuring cannot tell apart.
    assert 0.7 < sum(figure.value for figure in figures.values()) / whole < 1.4
    assert all(-0.05 * whole < figure.value < 0.6 * whole for figure in figures.values())
    assert figures["TCP in, receiver"].beside == "1.00 calls"


def test_every_rate_is_measured() -> None:
    assert [figure.unit for figure in cost.packet_rates(0.01)] == ["/s"] * 3
    assert all(figure.value > 100 for figure in cost.packet_rates(0.01))


def test_idle_connections_are_counted_and_closed() -> None:
    figures = cost.idle_connections((0, 20))
    assert [figure.unit for figure in figures] == ["us"] * 4 + ["bytes"]
    assert 1000 < figures[-1].value < 50_000


def test_our_side_of_the_long_path_is_what_theory_gives() -> None:
    assert 0.5 < paths.ours("reno", 30) / paths.theory("reno") < 2
