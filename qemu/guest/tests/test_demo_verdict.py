"""The demo's exit status says whether every step worked, and one that failed does not hide the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from qemu.guest import GuestDiedError, demo

STEPS: Final = [name for name in vars(demo.Demo) if name not in ("step", "run", "bulk") and not name.startswith("_")]


class NoGuest:
    """Stands in for the guest: the steps that would use it are replaced."""

    address, gateway, capture = "10.0.2.15", "10.0.2.2", None

    def __init__(self, **_: Any) -> None:
        self.closed = False
        NoGuest.last = self

    last: NoGuest

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A demo whose every step works and is written down."""
    names: list[str] = []

    def works(name: str) -> Callable[..., str]:
        def step(*_: object) -> str:
            names.append(name)
            return "fine"

        return step

    monkeypatch.chdir(tmp_path)  # the capture goes below the current directory
    monkeypatch.setattr(demo, "Guest", NoGuest)
    for name in (*STEPS, "bulk"):
        monkeypatch.setattr(demo.Demo, name, works(name))
    for path in ("ours", "slirp"):
        monkeypatch.setattr(f"qemu.guest.bench.peers.{path}", lambda _: None)
    return names


def test_every_step_worked(ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    assert ran == [*STEPS, "bulk", "bulk"]
    out = capsys.readouterr().out
    assert out.count("ok  ") == len(ran) + 1  # and the lease, which is a line about the boot
    assert "Every step worked" in out
    assert NoGuest.last.closed


@pytest.mark.parametrize("broken", STEPS[1:])
@pytest.mark.parametrize("error", [demo.DemoError("wrong bytes"), TimeoutError("timed out"), GuestDiedError("gone")])
def test_a_step_that_fails_is_the_exit_status_and_the_others_still_run(
    broken: str, error: Exception, ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> str:
        raise error

    monkeypatch.setattr(demo.Demo, broken, fails)
    assert demo.main() == 1
    assert ran == [*(name for name in STEPS if name != broken), "bulk", "bulk"]
    out = capsys.readouterr().out
    assert out.count("FAIL") == 1
    assert str(error) in out
    assert "1 step(s) failed" in out
    assert "Every step worked" not in out


def test_without_a_guest_there_is_nothing_to_show(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> str:
        raise GuestDiedError("Kernel panic")

    monkeypatch.setattr(demo.Demo, "boot", fails)
    assert demo.main() == 1
    assert ran == []
    assert "Kernel panic" in capsys.readouterr().out
    assert NoGuest.last.closed
