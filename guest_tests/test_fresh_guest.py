"""How long a test waits for a fresh guest: from the fixture's entry to the end of the first command, template cached.

The figures are of two cores under TCG that have nothing else to do. On a machine that is shared they are stretched: by
how much is measured beside them, as time over CPU time of a loop that does nothing but count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from guest_tests.project import run_project

#: Seconds at the median, without and with a network card and its lease.
PLAIN, WITH_LEASE = 0.5, 1.0
TESTS = 12

PROJECT = """
    import json, os, time
    from pathlib import Path
    import pytest

    @pytest.fixture
    def began():
        return time.monotonic()

    def note(kind, began):
        with Path(f"seconds-{os.getpid()}.json").open("a") as out:
            out.write(json.dumps([kind, time.monotonic() - began]) + "\\n")

    @pytest.mark.parametrize("number", range(%d))
    def test_plain(began, guest, number):
        guest.run("true", check=True)
        note("plain", began)

    @pytest.mark.parametrize("number", range(%d))
    def test_with_lease(began, guest, net, number):
        guest.run("true", check=True)
        assert guest.address
        note("lease", began)
"""


def slowness() -> float:
    """Time over CPU time of a busy loop: 1 where nobody else wants the processor."""
    wall, cpu = time.monotonic(), time.thread_time()
    while time.thread_time() - cpu < 0.2:
        pass
    return (time.monotonic() - wall) / 0.2


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_fresh_guest_is_there_in_half_a_second(
    workers: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """At most 0.5 s, with card and lease 1.0 s, with one worker; with two, at most twice that."""
    run_project(tmp_path, "def test_it(guest):\n    assert guest.run('true')\n")  # the template is cached then
    stretched = [1.0, slowness()]
    run = run_project(tmp_path, PROJECT % (TESTS, TESTS), *(["-n", str(workers)] if workers > 1 else []))
    stretched.append(slowness())
    assert f"{2 * TESTS} passed" in run.output, run.output
    lines = [json.loads(line) for file in tmp_path.glob("seconds-*.json") for line in file.read_text().splitlines()]
    assert len(list(tmp_path.glob("seconds-*.json"))) == workers
    for kind, bound in (("plain", PLAIN), ("lease", WITH_LEASE)):
        seconds = median(each for what, each in lines if what == kind)
        figure = (
            f"{workers} workers, {kind}: {seconds:.3f} s at the median, machine stretched {max(stretched):.1f} times"
        )
        print(figure)
        record_property(f"{kind}_median_seconds", f"{seconds:.3f}")
        assert seconds <= bound * workers * max(stretched), figure
