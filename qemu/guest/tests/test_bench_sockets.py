"""The bench of socket calls measures what it says, and its limits hold."""

from __future__ import annotations

from qemu.guest.bench import sockets


def test_socket_calls_cost_at_most_so_many_times_the_kernels() -> None:
    """send and recv on a Unix pair 5, on loopback TCP 15, connect, accept and close 20 (least of some rounds)."""
    costs = sockets.costs(rounds=5)
    assert costs.keys() == sockets.LIMITS.keys()
    for name, (theirs, ours) in costs.items():
        assert 0 < theirs < ours < theirs * sockets.LIMITS[name], name


def test_every_kind_of_socket_is_weighed() -> None:
    figures = {each.name: each.value for each in sockets.memory(count=20)}
    assert len(figures) == 5
    assert all(300 < value < 100_000 for value in figures.values())
    assert figures["memory of a connected TCP socket"] > figures["memory of a fresh TCP socket"]


def test_figures_for_the_report() -> None:
    figures = list(sockets.figures(rounds=1, count=5))
    assert [each.unit for each in figures[:6]] == ["us", ""] * 3
    assert all(each.value > 0 for each in figures)
