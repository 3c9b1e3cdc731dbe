"""The kernel is the oracle: random scripts of operations on Unix sockets give the same answers on both sides.

Compared after every operation: its result or errno, and for every socket its poll bits, names, what SIOCINQ, SIOCOUTQ
and SIOCATMARK say, SO_PEEK_OFF, SO_ACCEPTCONN. Differences, none of them asked for by the scripts:

* Linux collects circles of sockets in flight when it likes; a Stack as soon as nobody can receive them any more.
* Linux goes on counting in SIOCINQ an urgent byte that an ordinary read has passed over (seen on 6.18).
* SIOCATMARK of a listener with connections waiting is 1 on Linux, by accident.

Order of checks, SO_PASSRIGHTS and ECONNRESET after an urgent byte are those of Linux 6.16 and later: an older kernel is
no oracle for whole scripts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from stack.tests.unix_script import Side, scripts
from stack.tests.unix_world import KERNEL, kernel_world, stack_world

pytestmark = pytest.mark.skipif(KERNEL < (6, 16), reason="scripts are compared with a kernel of 6.16 or later")


def _compare(script: list[tuple[Any, ...]]) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        kernel_world(Path(directory)) as theirs,
        stack_world() as ours,
    ):
        one, other = Side(theirs), Side(ours)
        for operation in script:
            assert other.run(operation) == one.run(operation), operation
            assert other.state() == one.state(), operation


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(scripts)
@example([("pair", 1), ("sendmsg", 0, 0, 0, 0, 0), ("close", 1)])  # an empty record is not missed
@example([("pair", 0), ("send", 0, 1, 3), ("recv", 1, 1, 0)])  # an urgent byte is passed over
@example([("pair", 0), ("send", 0, 8, 0), ("send", 0, 9, 3), ("recvmsg", 1, 0, 0, 2)])  # a peek of nothing at the mark
@example(
    [("pair", 0), ("send", 0, 3, 0), ("send", 1, 3, 0), ("close", 0), ("recv", 0, 13, 5)]
)  # MSG_WAITALL takes the error
def test_scripts_give_the_kernels_answers(script: list[tuple[Any, ...]]) -> None:
    _compare(script)


@pytest.mark.long
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(scripts)
def test_many_scripts_give_the_kernels_answers(script: list[tuple[Any, ...]]) -> None:
    _compare(script)
