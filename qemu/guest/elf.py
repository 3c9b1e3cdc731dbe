"""Which files an ELF program needs to start: its interpreter and the closure of its shared libraries.

The search is the dynamic linker's (ld.so(8)): DT_RPATH unless there is a DT_RUNPATH, DT_RUNPATH, the configured
directories, the default ones; a candidate of another class or machine is passed over. The files are only read:
unlike ``ldd``, nothing of the program is run, so a program for another architecture or from an untrusted source can
be packed as well.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection, DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

_DEFAULT_DIRECTORIES: Final = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
_LD_SO_CONF: Final = "/etc/ld.so.conf"


class ElfError(ValueError):
    """A file is no usable ELF file, or a library it needs is missing; the message names both."""


@dataclass(frozen=True, slots=True)
class ElfFacts:
    """What the dynamic linker would look at."""

    machine: str  #: e_machine, e.g. "EM_X86_64"
    bits: int  #: 32 or 64
    interpreter: str | None  #: PT_INTERP, None for a static program or a library
    needed: tuple[str, ...]  #: DT_NEEDED, in order
    rpath: tuple[str, ...]  #: DT_RPATH, only where no DT_RUNPATH is present
    runpath: tuple[str, ...]  #: DT_RUNPATH


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def script_interpreter(path: Path) -> list[str]:
    """The programs that a ``#!`` line needs (one, or env(1) and what it looks up); empty if the file is no script."""
    with path.open("rb") as file:
        first = file.readline(256)
    if not first.startswith(b"#!"):
        return []
    words = [word.decode(errors="surrogateescape") for word in first[2:].split()]
    if not words:
        raise ElfError("its '#!' line names no interpreter")
    if words[0].endswith("/env"):
        return words[:1] + [word for word in words[1:] if not word.startswith("-") and "=" not in word][:1]
    return words[:1]


def read(path: Path) -> ElfFacts:
    """Read `path`'s dynamic section. Raises ElfError if it is no ELF file or is cut short."""
    try:
        with path.open("rb") as file:
            return _facts(ELFFile(file))
    except (ELFError, ValueError, OverflowError) as error:
        raise ElfError(f"{path} is not a readable ELF file: {error}") from error


def closure(program: Path) -> Iterator[tuple[str, Path]]:
    """Everything `program` needs to be started, itself not included: (path in the guest, file on this host).

    Raises ElfError naming the first library that cannot be found and who needs it.
    """
    facts = read(program)
    seen: set[str] = set()
    if facts.interpreter is not None:
        interpreter = Path(facts.interpreter)
        if not interpreter.exists():
            raise ElfError(f"{program} needs the interpreter {facts.interpreter}, which is not on this machine")
        seen.add(interpreter.name)
        yield facts.interpreter, interpreter
    # ld.so searches breadth first, and a library once loaded under a name serves every later user of that name.
    waiting: list[tuple[Path, ElfFacts, tuple[str, ...]]] = [(program, facts, ())]
    while waiting:
        user, user_facts, inherited = waiting.pop(0)
        rpath = () if user_facts.runpath else (*_expand(user_facts.rpath, user), *inherited)
        directories = (*rpath, *_expand(user_facts.runpath, user), *_system_directories())
        for name in user_facts.needed:
            if name in seen:
                continue
            seen.add(name)
            library = _search(name, directories, user_facts)
            if library is None:
                raise ElfError(f"{user} needs {name}, which is not on this machine; install the package that has it")
            yield str(library), library
            waiting.append((library, read(library), rpath))


def _facts(elf: ELFFile) -> ElfFacts:
    interpreter: str | None = None
    needed: list[str] = []
    rpath: list[str] = []
    runpath: list[str] = []
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = str(segment.get_interp_name())
        elif isinstance(segment, DynamicSegment | DynamicSection):
            tag: Any  # the string attributes of a tag exist only for its own d_tag: the library's stubs know none
            for tag in segment.iter_tags():
                match tag.entry.d_tag:
                    case "DT_NEEDED":
                        needed.append(str(tag.needed))
                    case "DT_RPATH":
                        rpath += str(tag.rpath).split(":")
                    case "DT_RUNPATH":
                        runpath += str(tag.runpath).split(":")
    return ElfFacts(
        machine=str(elf["e_machine"]),
        bits=int(elf.elfclass),
        interpreter=interpreter,
        needed=tuple(needed),
        rpath=() if runpath else tuple(filter(None, rpath)),
        runpath=tuple(filter(None, runpath)),
    )


def _expand(directories: tuple[str, ...], user: Path) -> tuple[str, ...]:
    origin = str(user.resolve().parent)
    return tuple(d.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for d in directories)


def _search(name: str, directories: tuple[str, ...], user: ElfFacts) -> Path | None:
    if "/" in name:
        return Path(name) if Path(name).exists() else None
    for directory in directories:
        candidate = Path(directory) / name
        if not candidate.is_file():
            continue
        try:
            facts = read(candidate)
        except ElfError:
            continue  # a linker script or a stub: ld.so passes over it too
        if (facts.machine, facts.bits) == (user.machine, user.bits):
            return candidate
    return None


@cache
def _system_directories() -> tuple[str, ...]:
    found = dict.fromkeys(_configured(_LD_SO_CONF, depth=0))
    found.update(dict.fromkeys(_DEFAULT_DIRECTORIES))
    return tuple(found)


def _configured(path: str, depth: int) -> Iterator[str]:
    """The directories that ld.so.conf names, its ``include`` lines followed (at most a few levels)."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return
    for raw in lines:
        line = raw.split("#", 1)[0].strip()
        if line.startswith("include ") and depth < 4:
            for included in sorted(glob.glob(line.split(None, 1)[1])):
                yield from _configured(included, depth + 1)
        elif line.startswith("/"):
            yield line
