"""The rings' C without Python: under ASan and UBSan, and measured: at least 95 % of its branches are tested."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vhost_user.tests import c_programs

#: Percent of branches. What sigbus.c has beyond that is for two threads changing handlers at the same instant, what
#: pool.c and take.c have is for want of memory or threads, and for more rings than a device has. Where threads share
#: the work, a branch or two is taken only when they meet: there is room for those.
WANTED = dict.fromkeys(c_programs.MEASURED, 95.0)
WANTED |= {"sigbus.c": 80.0, "pool.c": 80.0, "take.c": 80.0, "bridge.c": 92.0, "steer.c": 92.0}


@pytest.mark.parametrize("program", c_programs.TESTS, ids=lambda program: program.name)
def test_sanitizers_find_nothing(program: c_programs.Program, tmp_path: Path) -> None:
    done = c_programs.run(program, c_programs.build(program, tmp_path, c_programs.SANITIZE))
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_branches_are_covered(tmp_path: Path) -> None:
    for name, (taken, total, missed) in c_programs.branch_coverage(tmp_path).items():
        assert total > 0
        assert 100 * taken / total >= WANTED[name], f"{name}: {taken} of {total} branches; look at lines {missed}"


def test_threads_that_share_the_work_do_not_race(tmp_path: Path) -> None:
    done = c_programs.run(c_programs.RACES, c_programs.build(c_programs.RACES, tmp_path, c_programs.SANITIZE_THREADS))
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("name", c_programs.MEASURED)
def test_each_file_compiles_alone_as_plain_c11(name: str) -> None:
    flags = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([os.environ.get("CC", "gcc"), *flags, str(c_programs.CSRC / name)], check=True, timeout=60)
