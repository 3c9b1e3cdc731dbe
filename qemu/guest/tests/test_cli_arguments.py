"""The command line refuses what cannot be meant, says why, and maps every kind of failure to its exit code."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import click
import pytest

from qemu.guest import cli_doctor, cli_options, cli_run
from qemu.guest.cli import run_cli
from qemu.guest.cli_doctor import Finding
from qemu.guest.errors import (
    CommandTimeoutError,
    GuestDiedError,
    GuestError,
    GuestTimeoutError,
    MissingError,
    SetupError,
)
from qemu.guest.share import Share


@pytest.mark.parametrize(
    ("text", "mebibytes"), [("512", 512), ("512M", 512), ("2G", 2048), ("1gib", 1024), ("64MiB", 64)]
)
def test_memory_sizes(text: str, mebibytes: int) -> None:
    assert cli_options.memory(text) == mebibytes


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1", "1T", "lots", "512 M x", "\N{SUPERSCRIPT TWO}"])
def test_what_is_no_memory_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no memory size"):
        cli_options.memory(text)


def test_shares(tmp_path: Path) -> None:
    assert cli_options.share(str(tmp_path)) == Share(tmp_path, "/share")
    assert cli_options.share(f"{tmp_path}:/data") == Share(tmp_path, "/data")
    (tmp_path / "a:b").mkdir()
    assert cli_options.share(f"{tmp_path}/a:b") == Share(tmp_path / "a:b", "/share")
    for text in (f"{tmp_path}/missing", f"{tmp_path}:relative", ""):
        with pytest.raises(click.BadParameter, match="cannot share"):
            cli_options.share(text)


def test_variables() -> None:
    assert cli_options.variable("KEY=a=b") == ("KEY", "a=b")
    assert cli_options.variable("KEY=") == ("KEY", "")
    for text in ("KEY", "=x"):
        with pytest.raises(click.BadParameter, match="is not KEY=VALUE"):
            cli_options.variable(text)


@pytest.mark.parametrize("text", ["10.0.2.2", "10.0.2.2/31", "10.0.2.2/33", "fd00::2/64", "gateway/24"])
def test_an_address_needs_a_prefix_with_room_for_a_guest(text: str) -> None:
    assert cli_options.cidr("10.0.2.2/24") == "10.0.2.2/24"
    with pytest.raises(click.BadParameter, match=r"10\.0\.2\.2/24"):
        cli_options.cidr(text)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MissingError("no qemu"), 77),
        (SetupError("bad"), 125),
        (GuestDiedError("panic"), 125),
        (GuestTimeoutError("did not come up"), 125),
        (GuestError("other"), 125),
        (ZeroDivisionError("a bug of ours"), 125),
        (CommandTimeoutError("too long"), 124),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_every_failure_has_its_exit_code_and_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli_run, "Guest", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # put back what a broken pipe takes away
    assert run_cli(["run", "--", "true"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    if isinstance(error, GuestError):
        assert said.err == f"guestwire: {error}\n"
    if isinstance(error, ZeroDivisionError):
        assert said.err.endswith("ZeroDivisionError: a bug of ours\n")


def test_bad_arguments_of_run_are_told_from_the_commands_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["run"]) == 125
    assert "Missing argument 'COMMAND...'" in capsys.readouterr().err
    assert run_cli(["doctor", "--bogus"]) == 2
    assert run_cli(["no-such-command"]) == 2
    capsys.readouterr()


def test_options_after_the_command_are_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def note(command: tuple[str, ...], **_: object) -> int:
        seen.append(command)
        return 5

    monkeypatch.setattr(cli_run.run, "callback", note)
    assert run_cli(["run", "--no-net", "ls", "-l", "--memory"]) == 5
    assert run_cli(["run", "--", "-x"]) == 5
    assert seen == [("ls", "-l", "--memory"), ("-x",)]


def test_help_is_honest_about_shares_and_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["run", "--help"]) == 0
    assert "COPY in the guest's memory" in " ".join(capsys.readouterr().out.split())
    assert run_cli(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("run", "serve", "doctor"))


def test_doctor_names_what_aarch64_guests_need_besides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    [finding] = [each for each in cli_doctor.examine("qemu") if each.what == "aarch64 guests"]
    assert finding == Finding(
        "aarch64 guests",
        None,  # nobody misses it who has none
        "no qemu-system-aarch64 and no aarch64-linux-gnu-gcc",
        "apt-get install qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    )


def test_doctor_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["doctor", "--qemu", "no-such-qemu"]) == 77
    out = capsys.readouterr().out
    assert "no no-such-qemu on PATH" in out
    assert "apt-get install qemu-system-x86" in out
    monkeypatch.setattr(
        cli_doctor, "examine", lambda _: [Finding("all", True, "fine"), Finding("kvm", None, "tcg: why")]
    )
    assert run_cli(["doctor"]) == 0
    assert "tcg: why" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tool", "check", "remedy"),
    [
        ("busybox", cli_doctor._busybox, "apt-get install busybox-static"),
        ("gcc", cli_doctor._compiler, "apt-get install gcc libc6-dev"),
        ("apt-get", cli_doctor._kernel, "pass --kernel FILE"),
    ],
)
def test_each_missing_tool_has_a_remedy(
    tool: str, check: object, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/usr/bin/{name}")
    assert callable(check)
    finding = check()
    assert (finding.ok, finding.remedy) == (False, remedy)
