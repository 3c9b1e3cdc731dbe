"""Options of the plugin: command line over environment over ini file, for each of them."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from qemu.guest.plugin.evidence import directory_name
from qemu.guest.plugin.settings import OPTIONS, Option, Settings, read_settings


class FakeConfig:
    """As much of pytest.Config as the settings look at."""

    def __init__(self, place: Path) -> None:
        self.options: dict[str, str] = {}
        self.ini: dict[str, str] = {}
        self.rootpath = place / "root"
        self.inipath = place / "root" / "pytest.ini"
        self.invocation_params = types.SimpleNamespace(dir=place)

    def getoption(self, name: str) -> str | None:
        return self.options.get(name)

    def getini(self, name: str) -> str | None:
        return self.ini.get(name)

    def read(self) -> Settings:
        config: Any = self
        return read_settings(config)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeConfig:
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    (tmp_path / "root").mkdir()
    for name in ("a", "b", "root/c"):
        (tmp_path / name).touch()
        (tmp_path / f"{name}.d").mkdir()
    return FakeConfig(tmp_path)


#: Three values for each option: for the command line, the environment and the ini file.
VALUES: dict[str, tuple[str, str, str]] = {
    "arch": ("aarch64", "x86_64", "aarch64"),
    "kernel": ("a", "b", "c"),
    "modules": ("a.d", "b.d", "c.d"),
    "image": ("a", "b", "c"),
    "share": ("a.d:/x", "a.d:/x\nb.d:/y:rw", "c.d:/z:9p"),
    "accel": ("kvm", "tcg", "auto"),
    "timeout-scale": ("2", "3.5", "10"),
    "artifacts": ("x", "y", "z"),
    "pcap": ("always", "never", "on-failure"),
    "report": ("x.html", "y.html", "z.html"),
    "seed": ("1", "0", "-7"),
    "keep": ("yes", "no", "on"),
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_command_line_goes_before_the_environment_before_the_ini_file(
    option: Option, config: FakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said, variable, ini = VALUES[option.name]
    field = option.name.replace("-", "_")

    def expected(text: str, base: Path) -> object:
        return option.parse(text, base)

    root = tmp_path / "root"
    default = root / "guest-artifacts" if field == "artifacts" else option.default
    assert getattr(config.read(), field) == default
    config.ini[option.ini] = ini
    assert getattr(config.read(), field) == expected(ini, root)
    monkeypatch.setenv(option.variable, variable)
    assert getattr(config.read(), field) == expected(variable, tmp_path)
    config.options[option.dest] = said
    assert getattr(config.read(), field) == expected(said, tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("kernel", "nothing", "--guest-kernel: no such file: "),
        ("modules", "a", "--guest-modules: no such directory: "),
        ("timeout-scale", "0", "--guest-timeout-scale: 0 is no factor above zero"),
        ("timeout-scale", "fast", "--guest-timeout-scale: could not convert"),
        ("share", "nowhere:/x", r"--guest-share: cannot share .*/nowhere: not a directory"),
        ("pcap", "sometimes", "--guest-pcap: 'sometimes' is none of on-failure, always, never"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_place(
    option: str, value: str, message: str, config: FakeConfig
) -> None:
    config.options[f"guest_{option.replace('-', '_')}"] = value
    with pytest.raises(pytest.UsageError, match=message):
        config.read()


def test_the_place_of_a_wrong_value_is_the_variable_or_the_file(
    config: FakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.ini["guest_keep"] = "perhaps"
    with pytest.raises(pytest.UsageError, match=r"pytest\.ini: guest_keep: 'perhaps' is neither yes nor no"):
        config.read()
    monkeypatch.setenv("GUESTWIRE_KEEP", "maybe")
    with pytest.raises(pytest.UsageError, match="GUESTWIRE_KEEP: 'maybe' is neither"):
        config.read()


def test_what_differs_from_the_defaults_is_known_as_options(config: FakeConfig, tmp_path: Path) -> None:
    assert config.read().given == ()
    config.ini["guest_accel"] = "tcg"
    config.ini["guest_pcap"] = "on-failure"
    config.options |= {"guest_kernel": "a", "guest_keep": "yes", "guest_artifacts": "x"}
    assert config.read().given == (f"--guest-kernel={tmp_path / 'a'}", "--guest-accel=tcg", "--guest-keep")


def test_names_of_directories_tell_the_test_and_stay_apart() -> None:
    assert directory_name("tests/test_x.py::TestY::test_z[a/b-c d]") == "tests-test_x.py-TestY-test_z-a-b-c-d"
    long = [directory_name("test_x.py::test_y[" + "v" * 300 + end + "]") for end in ("1", "2")]
    assert len(set(long)) == 2
    assert all(len(name) <= 100 for name in long)
