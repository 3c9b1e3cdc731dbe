"""What the guest room's tests share: the agent, compiled with sanitizers, driven over a socketpair."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.guest.agent.build import compile_agent
from qemu.guest.tests.agent_rig import AgentRig

_SANITIZED = ("-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def sanitized_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent under ASan and UBSan: any memory error or undefined behaviour ends it with a report."""
    output = tmp_path_factory.mktemp("agent") / "agent"
    compile_agent(output, shutil.which("clang") or "gcc", _SANITIZED)
    return output


@pytest.fixture
def rig(sanitized_agent: Path) -> Iterator[AgentRig]:
    rig = AgentRig(sanitized_agent)
    yield rig
    rig.close()


@pytest.fixture
def fake_qemu() -> list[str]:
    """A program that runs until it is killed."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    subprocess.run([sleep, "0"], check=True)
    return [sleep, "600"]
