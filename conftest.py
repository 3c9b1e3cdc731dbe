"""Options of the whole test suite: running a sample of the long tests, chosen by a seed; hypothesis without a clock."""

from __future__ import annotations

import signal
from random import Random

import pytest
from hypothesis import settings

# No test depends on the clock: an example that is slow beside a busy neighbour is not a failure. Nor on chance: what is
# run twice is the same twice; new examples are for the fuzzers.
settings.register_profile("guestwire", deadline=None, derandomize=True)
settings.load_profile("guestwire")

# Who runs the tests in the background of a shell has told them, and every program they start, to ignore Ctrl-C. Tests
# that press it want it as a program in the foreground has it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sample")
    group.addoption("--sample", type=int, metavar="N", help="run only N of the selected tests, chosen by the seed")
    group.addoption("--sample-seed", default="0", metavar="TEXT", help="what --sample is drawn by (default: 0)")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    size = config.getoption("--sample")
    if size is None or size >= len(items):
        return
    drawn = set(Random(config.getoption("--sample-seed")).sample(range(len(items)), size))
    config.hook.pytest_deselected(items=[item for index, item in enumerate(items) if index not in drawn])
    items[:] = [item for index, item in enumerate(items) if index in drawn]


def pytest_report_header(config: pytest.Config) -> str | None:
    size = config.getoption("--sample")
    return None if size is None else f"sample: {size} tests, seed {config.getoption('--sample-seed')}"
