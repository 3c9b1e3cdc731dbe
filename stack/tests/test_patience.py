"""When whoever polls keeps looking instead of sleeping (`stack.patience`)."""

from __future__ import annotations

from stack.patience import MAX_ABSTAIN, MAX_SPIN, MIN_ABSTAIN, STOLEN, Patience

QUICK = MAX_SPIN // 10
SPIN = MAX_SPIN // 2


def waits_until_spinning(patience: Patience) -> int:
    """How many quick waits go by before it spins again."""
    for count in range(2 * MAX_ABSTAIN):
        if patience.window():
            return count
        patience.learn(QUICK)
    raise AssertionError("never spins again")


def test_short_waits_are_spun_through_and_long_ones_slept() -> None:
    patience = Patience()
    assert patience.window() == MAX_SPIN
    for _ in range(50):
        patience.learn(3 * MAX_SPIN)
    assert patience.window() == 0
    for _ in range(50):
        patience.learn(QUICK)
    assert patience.window() == MAX_SPIN


def test_one_long_pause_does_not_end_spinning() -> None:
    patience = Patience()
    for _ in range(50):
        patience.learn(QUICK)
    patience.learn(1000 * MAX_SPIN)
    assert patience.window() == MAX_SPIN


def test_a_spin_on_a_core_that_others_want_is_not_repeated_soon() -> None:
    patience = Patience()
    patience.spun(SPIN, SPIN - STOLEN)
    assert patience.window() == MAX_SPIN
    patience.spun(SPIN, SPIN - STOLEN - 1)
    assert patience.window() == 0
    assert waits_until_spinning(patience) == MIN_ABSTAIN


def test_it_abstains_for_longer_each_time_and_recovers() -> None:
    patience = Patience()
    abstained = []
    for _ in range(12):
        patience.spun(SPIN, 0)
        abstained.append(waits_until_spinning(patience))
    assert abstained == [min(MIN_ABSTAIN << i, MAX_ABSTAIN) for i in range(12)]
    for _ in range(12):
        patience.spun(SPIN, SPIN)
    patience.spun(SPIN, 0)
    assert waits_until_spinning(patience) == MIN_ABSTAIN
