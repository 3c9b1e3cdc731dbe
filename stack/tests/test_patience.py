"""When whoever polls keeps looking instead of sleeping (`stack.patience`)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from stack.patience import BLOCK, LONGEST, MAX_SPIN, MAX_WAIT, Patience

#: Waits until every favourite there can be has been tried and tried again.
SETTLED = 4 * BLOCK * LONGEST
QUICK, SLOW = MAX_SPIN // 4, MAX_SPIN


def spun(patience: Patience, wait: Callable[[bool], int], count: int) -> float:
    """Let it wait `count` times, each as long as `wait` says for spinning or not; the share it spun in."""
    spins = 0
    for _ in range(count):
        window = patience.window()
        assert window in (0, MAX_SPIN)
        spins += window > 0
        patience.learn(wait(window > 0))
    return spins / count


@pytest.mark.parametrize(("spinning", "sleeping", "expected"), [(QUICK, SLOW, True), (SLOW, QUICK, False)])
def test_what_makes_waits_shorter_is_done(spinning: int, sleeping: int, expected: bool) -> None:
    """All but a block in `LONGEST`."""
    patience = Patience()
    spun(patience, lambda spins: spinning if spins else sleeping, SETTLED)
    share = spun(patience, lambda spins: spinning if spins else sleeping, BLOCK * (LONGEST + 1))
    assert share == pytest.approx((LONGEST if expected else 1) / (LONGEST + 1))


@pytest.mark.parametrize("wait", [QUICK, MAX_WAIT, 1000 * MAX_WAIT])
def test_a_core_is_not_spent_for_nothing(wait: int) -> None:
    """Waits as long either way, or longer than any spin: it sleeps, but for a trial now and then."""
    patience = Patience()
    spun(patience, lambda _: wait, SETTLED)
    assert spun(patience, lambda _: wait, BLOCK * (LONGEST + 1)) == pytest.approx(1 / (LONGEST + 1))


def test_a_sixteenth_is_not_enough_for_spinning() -> None:
    patience = Patience()
    share = spun(patience, lambda spins: 15 * QUICK if spins else 16 * QUICK, SETTLED)
    assert share < 0.1
    assert spun(Patience(), lambda spins: (15 * QUICK - 16 if spins else 16 * QUICK) // 16, SETTLED) > 0.9


def test_the_first_wait_is_spun_through() -> None:
    assert Patience().window() == MAX_SPIN


def test_one_long_pause_does_not_decide() -> None:
    """It is capped: the other waits of its block outweigh it."""
    patience = Patience()
    rng = random.Random(1)

    def wait(spins: bool) -> int:
        if rng.randrange(BLOCK) == 0:
            return 10_000 * MAX_WAIT
        return QUICK if spins else SLOW

    spun(patience, wait, SETTLED)
    assert spun(patience, wait, SETTLED) > 0.9


def test_it_follows_a_change() -> None:
    """The machine becomes busy, and idle again: the next trial shows it, and the one after that comes soon."""
    patience = Patience()
    for better in (True, False) * 3:
        waits = {better: QUICK, not better: SLOW}
        spun(patience, waits.__getitem__, BLOCK * (LONGEST + 1))
        share = spun(patience, waits.__getitem__, BLOCK * (LONGEST + 1))
        assert share > 0.8 if better else share < 0.2


def test_trials_become_rarer() -> None:
    patience = Patience()
    runs: list[int] = []
    for _ in range(9):
        count = 0
        while patience.window():
            patience.learn(QUICK)
            count += 1
        runs.append(count // BLOCK)
        while not patience.window():
            patience.learn(SLOW)
    assert runs == [1, 2, 4, 8, 16, 32, 32, 32, 32]
