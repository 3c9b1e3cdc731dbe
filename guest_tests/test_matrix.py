"""Kernels x images x tests: every cell is run, by any executor, and what is lost is told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from guest_tests.traces import SECONDS, environment, guestwire
from qemu.guest.kernel import find_kernel
from qemu.guest.matrix import Cell, Outcome, Target, cells, run, run_cell, table

#: Says what it was given, and fails on one of the kernels.
TESTS = """
from pathlib import Path

def test_kernel(pytestconfig):
    assert Path(pytestconfig.getoption("guest_kernel") or "good").name != "bad"

def test_image(pytestconfig):
    assert Path(pytestconfig.getoption("guest_image") or "root.cpio").name == "root.cpio"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "test_options.py").write_text(TESTS)
    for name in ("good", "bad", "root.cpio"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider -p no:asyncio")
    return tmp_path


def test_every_kernel_meets_every_image(place: Path) -> None:
    targets = [Target(str(place / "good")), Target(str(place / "bad"))]
    wanted = cells(targets, [None, str(place / "root.cpio")], ["-q"], place)
    assert [cell.name for cell in wanted] == ["good x busybox", "good x root.cpio", "bad x busybox", "bad x root.cpio"]
    wanted = wanted[1:3]
    with ThreadPoolExecutor(2) as executor:
        outcomes = {outcome.cell.name: outcome for outcome in run(executor, wanted)}
    assert {name: (each.code, each.passed, len(each.failed)) for name, each in outcomes.items()} == {
        "good x root.cpio": (0, 2, 0),
        "bad x busybox": (1, 1, 1),
    }
    assert outcomes["bad x busybox"].failed == ("test_options::test_kernel",)
    lines = table(list(outcomes.values())).splitlines()
    assert lines[0].split()[:6] == ["bad", "x", "busybox", "1", "passed,", "1"]


def test_what_cannot_be_run_and_what_does_not_end_are_outcomes(place: Path) -> None:
    nowhere = run_cell(Cell(Target(), None, (), str(place / "nothing")))
    assert (nowhere.code, "cannot run pytest in" in nowhere.output) == (125, True)
    (place / "test_options.py").write_text("import threading\ndef test_it(): threading.Event().wait()\n")
    late = run_cell(Cell(Target(), None, ("-q",), str(place), seconds=1.0))
    assert (late.code, late.output.endswith("not ended after 1 s")) == (125, True)
    assert "no result (exit code 125)" in table([late])


def test_a_worker_that_is_lost_is_an_outcome(place: Path) -> None:
    class Losing(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(ConnectionError("the worker is gone"))
            return future

    [outcome] = run(Losing(), [Cell(Target(), None, (), str(place))])
    assert (outcome.code, outcome.output) == (125, "ConnectionError: the worker is gone")


@pytest.mark.long
def test_the_command_line(place: Path) -> None:
    done = guestwire("matrix", "--kernel", "good", "--kernel", "bad", "--jobs", "2", "-q")
    assert done.returncode == 1
    out = done.stdout.decode()
    assert "--- bad x busybox\n" in out
    assert "FAILED test_options.py::test_kernel" in out
    assert out.splitlines()[-1].split()[:5] == ["good", "x", "busybox", "2", "passed"]
    assert guestwire("matrix", "--kernel", "nothing").returncode == 2


#: In a process of its own: the cluster starts others, and threads that outlive a test.
CLUSTER = """
import sys
from pathlib import Path
from distributed import Client, LocalCluster
from qemu.guest.matrix import Target, cells, run, table

if __name__ == "__main__":
    kernel, modules, place = sys.argv[1:]
    wanted = cells([Target(), Target(kernel, modules)], [None], ["-q", "-p", "no:cacheprovider"], Path(place))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        outcomes = list(run(client.get_executor(), wanted))
        workers = set(client.run(lambda: __import__("os").getpid()).values())
    print(table(outcomes))
    for outcome in outcomes:
        print(outcome.output if not outcome.succeeded else "")
    sys.exit(not (len(workers) == 2 and all(outcome.succeeded for outcome in outcomes)))
"""


@pytest.mark.long
def test_guests_on_a_dask_cluster_of_two_workers(tmp_path: Path) -> None:
    kernel = find_kernel()
    (tmp_path / "test_it.py").write_text("def test_it(guest):\n    assert guest.run('true').succeeded\n")
    (tmp_path / "cluster.py").write_text(textwrap.dedent(CLUSTER))
    done = subprocess.run(
        [sys.executable, "cluster.py", str(kernel.image), str(kernel.modules_dir), str(tmp_path)],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("1 passed") == 2


def test_outcomes_and_cells_can_be_sent() -> None:
    import pickle

    cell = Cell(Target("a", "b"), "c", ("d",), "/")
    outcome = Outcome(cell, 0, 1, (), 2.0, "text")
    assert pickle.loads(pickle.dumps(outcome)) == outcome
