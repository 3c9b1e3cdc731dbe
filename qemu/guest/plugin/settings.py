"""What can be chosen about the guests of a test session, and where: command line over environment over ini file.

The option ``--guest-kernel`` is the variable ``GUESTWIRE_KERNEL`` and the ini key ``guest_kernel``, and so are all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

if TYPE_CHECKING:
    from qemu.guest.arch import Arch
    from qemu.guest.share import Share

Pcap = Literal["on-failure", "always", "never"]
_TRUE: Final = frozenset({"1", "yes", "true", "on"})
_FALSE: Final = frozenset({"", "0", "no", "false", "off"})


@dataclass(frozen=True, slots=True)
class Option:
    name: str
    help: str
    parse: Callable[[str, Path], Any]  #: text and what a relative path is relative to; raises ValueError
    metavar: str | None = None
    default: Any = None

    @property
    def dest(self) -> str:
        return f"guest_{self.name.replace('-', '_')}"

    @property
    def ini(self) -> str:
        return self.dest

    @property
    def variable(self) -> str:
        return f"GUESTWIRE_{self.name.replace('-', '_').upper()}"


def _file(text: str, base: Path) -> Path:
    path = base / Path(text).expanduser()
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return path


def _directory(text: str, base: Path) -> Path:
    path = base / Path(text).expanduser()
    if not path.is_dir():
        raise ValueError(f"no such directory: {path}")
    return path


def _path(text: str, base: Path) -> Path:
    return base / Path(text).expanduser()


def _shares(text: str, base: Path) -> tuple[Share, ...]:
    """One on each line."""
    from qemu.guest.errors import SetupError
    from qemu.guest.share import parse_share

    lines = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return tuple(parse_share(str(_absolute(line, base))) for line in lines)
    except SetupError as error:
        raise ValueError(str(error)) from None


def _one_of(*words: str) -> Callable[[str, Path], str]:
    def parse(text: str, _: Path) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}")
        return text

    return parse


def _scale(text: str, _: Path) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError(f"{text} is no factor above zero")
    return value


def _whole(text: str, _: Path) -> int:
    return int(text)


def _yes(text: str, _: Path) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither yes nor no")
    return text.lower() in _TRUE


OPTIONS: Final = (
    Option(
        "arch",
        "the guests' processor: x86_64 (default) or aarch64, under TCG",
        _one_of("x86_64", "aarch64"),
        None,
        "x86_64",
    ),
    Option(
        "kernel",
        "kernel to boot: bzImage or vmlinux, for aarch64 an Image (default: Debian's cloud kernel, cached)",
        _file,
        "FILE",
    ),
    Option("modules", "lib/modules/RELEASE that belongs to the kernel", _directory, "DIR"),
    Option(
        "image",
        "root instead of busybox: a disk (qcow2, raw), which is not written to, or a cpio archive",
        _file,
        "FILE",
    ),
    Option(
        "share",
        "let guests see a directory, read-only unless :rw is said; HOW is virtiofs, packed or 9p (default: the first "
        "that can be). Several times, or one on each line",
        _shares,
        "DIR[:PATH][:rw][:HOW]",
        (),
    ),
    Option(
        "accel", "kvm, tcg, or auto: KVM if it proves to work (default)", _one_of("auto", "kvm", "tcg"), None, "auto"
    ),
    Option("timeout-scale", "what every time-out of a guest is multiplied by (default 1)", _scale, "N", 1.0),
    Option(
        "artifacts",
        "where directories of evidence go (default: guest-artifacts)",
        _path,
        "DIR",
        Path("guest-artifacts"),
    ),
    Option(
        "pcap",
        "write the frames of a test's network: on-failure (default), always, never",
        _one_of("on-failure", "always", "never"),
        None,
        "on-failure",
    ),
    Option(
        "report",
        "write a page of the session: a timeline of each test with its packets (needs guestwire[report])",
        _path,
        "FILE.html",
    ),
    Option("seed", "what chance in a test's network is drawn from (default: the test's name)", _whole, "N"),
    Option("keep", "keep the evidence of tests that passed as well", _yes, None, False),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The session's choices."""

    arch: Arch
    kernel: Path | None
    modules: Path | None
    image: Path | None
    share: tuple[Share, ...]
    accel: Literal["auto", "kvm", "tcg"]
    timeout_scale: float
    artifacts: Path
    pcap: Pcap
    report: Path | None
    seed: int | None
    keep: bool
    given: tuple[str, ...]  #: what differs from the defaults, as options, to repeat the run with


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("guest", "guests (guestwire)")
    for option in OPTIONS:
        where = f"{option.help}; also {option.variable}, ini {option.ini}"
        if option.parse is _yes:
            group.addoption(f"--guest-{option.name}", dest=option.dest, action="store_const", const="yes", help=where)
        elif option.parse is _shares:
            group.addoption(
                f"--guest-{option.name}", dest=option.dest, metavar=option.metavar, action="append", help=where
            )
        else:
            group.addoption(f"--guest-{option.name}", dest=option.dest, metavar=option.metavar, help=where)
        kind: Literal["linelist", "string"] = "linelist" if option.parse is _shares else "string"
        parser.addini(option.ini, option.help, type=kind, default=None)


def read_settings(config: pytest.Config) -> Settings:
    """Raises pytest.UsageError naming the place of a value that cannot be."""
    values: dict[str, Any] = {}
    given: list[str] = []
    for option in OPTIONS:
        value = option.default
        text, where, base = _text(config, option)
        if text is not None:
            try:
                value = option.parse(text, base)
            except ValueError as error:
                raise pytest.UsageError(f"{where}: {error}") from None
            if option.parse is _shares:
                given += [f"--guest-share={_absolute(line, base)}" for line in text.splitlines() if line.strip()]
            elif value != option.default and option.name not in ("artifacts", "report"):
                given.append(f"--guest-{option.name}" + ("" if value is True else f"={value}"))
        values[option.name.replace("-", "_")] = value
    values["artifacts"] = Path(config.rootpath) / values["artifacts"]
    return Settings(**values, given=tuple(given))


def _absolute(line: str, base: Path) -> Path:
    return base / Path(line.strip()).expanduser()


def _text(config: pytest.Config, option: Option) -> tuple[str | None, str, Path]:
    """What was said, where, and what a relative path in it is relative to."""
    said = config.getoption(option.dest)
    if said is not None:
        said = "\n".join(said) if isinstance(said, list) else said
        return said, f"--guest-{option.name}", Path(config.invocation_params.dir)
    if option.variable in os.environ:
        return os.environ[option.variable], option.variable, Path(config.invocation_params.dir)
    ini = config.getini(option.ini)
    if ini:
        text = "\n".join(map(str, ini)) if isinstance(ini, list) else str(ini)
        return text, f"{config.inipath or 'ini'}: {option.ini}", Path(config.rootpath)
    return None, "", Path()
