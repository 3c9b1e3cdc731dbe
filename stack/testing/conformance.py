"""docs/conformance.md, generated from the tests: which rule of Linux is shown by which test, and on what.

Theory of operation
-------------------
A test is named after the rows it asserts, `test_tcp_07_...`, `test_unx_03_04_...`; the first sentence of its docstring
says in words what is expected. (Older ones name the rows at the beginning of the docstring: "VS-09, VS-10: ...".)
Flags, ioctls and addresses have names instead of numbers: `test_msg_peek_...`, `test_ioctl_...`, `test_addr_...`.
A test of options, `test_opt_...`, says in name or docstring which, one of a row may just use it: every option
in the tables of the sockets must have one, which shows what it does, or that it does nothing (`OPTIONS_EXEMPT`: none).
The tests are read, not run. Where a test runs on the kernel's sockets as well as on a Stack's shows in its fixtures or
parameters, one of which says "kernel".

`ROWS` is the list of what there is to show; `EXEMPT` what has no test, and why. Constants called DIFFERENCES in test
modules, {row: text}, are where a Stack and a kernel part, or two kernels.

Run it as ``python -m stack.testing.conformance`` to write the page anew.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "conformance.md"
_PLACES: Final = ("stack", "vhost_user", "qemu", "guest_tests")

#: (family, what it is about, how many rows it has); rows are numbered from 01.
FAMILIES: Final = (
    ("CORE", "Every socket", 19),
    ("MM", "Messages and batches", 6),
    ("TCP", "TCP sockets", 39),
    ("UDP", "UDP sockets", 18),
    ("UNX", "Unix stream and seqpacket sockets", 19),
    ("UDG", "Unix datagram sockets", 8),
    ("CTRL", "Control messages and credentials of Unix sockets", 10),
    ("NL", "Netlink sockets", 18),
    ("RT", "Routing netlink", 17),
    ("UE", "Kernel events", 10),
    ("VS", "Vsock", 21),
    ("IF", "Interfaces", 15),
    ("UTS", "Names of a node", 7),
    ("SEC", "Who may do what", 10),
)
#: Flags of send and receive calls that do something.
FLAGS: Final = (
    *("OOB", "PEEK", "DONTROUTE", "CTRUNC", "PROBE", "TRUNC", "DONTWAIT", "EOR", "WAITALL", "CONFIRM", "ERRQUEUE"),
    *("NOSIGNAL", "MORE", "WAITFORONE", "ZEROCOPY", "FASTOPEN", "CMSG_CLOEXEC"),
)
#: Sections whose tests have words for names, and their titles.
NAMED: Final = {"MSG": "Flags of calls", "ADDR": "Addresses", "IOCTL": "Ioctls", "OPT": "Options"}

ROWS: Final = tuple(f"{name}-{number:02}" for name, _, count in FAMILIES for number in range(1, count + 1))

#: Rows without a test, and why.
EXEMPT: Final[Mapping[str, str]] = {
    "CORE-11": "/proc/PID/fdinfo has no meaning for sockets of a Stack: they are no files of the process",
    "CORE-18": "EFAULT in the middle of a copy cannot happen: Python's buffers are memory that is there",
    "IF-14": "a virtio-net device is no part of the stack: vhost_user's tests and guests show it",
}

#: Options that no test names, and why.
OPTIONS_EXEMPT: Final[Mapping[str, str]] = {}

_OPTION_NAME: Final = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
_FAMILY_NAMES: Final = frozenset(name for name, _, _ in FAMILIES)
_CITED: Final = re.compile(rf"\b({'|'.join(sorted(_FAMILY_NAMES))})-(\d\d)(?:\.\.(\d\d))?")
_LEADING: Final = re.compile(
    rf"^((?:(?:{'|'.join(sorted(_FAMILY_NAMES))})-\d\d(?:\.\.\d\d)?|\d\d|[Ss]ections? [\d.]+)(?:, | and )?)+[:.,]? ?"
)


@dataclass(slots=True)
class Shown:
    """One test."""

    name: str
    file: Path  # relative to the root
    expected: str  #: in words
    where: str  #: "kernel, stack", "stack", "Linux over TAP" or "guest"
    rows: tuple[str, ...] = ()
    section: str = ""  #: of `NAMED`
    mentions: frozenset[str] = field(default_factory=frozenset)  #: names in it
    named: frozenset[str] = field(default_factory=frozenset)  #: names in capitals in its docstring


def collect(root: Path = ROOT) -> list[Shown]:
    """Every test, in order of files."""
    tests: list[Shown] = []
    for place in _PLACES:
        for path in sorted((root / place).rglob("test_*.py")):
            tests.extend(_of_file(path, root))
    return tests


def differences(root: Path = ROOT) -> list[tuple[str, str]]:
    """(row or name, text) of every DIFFERENCES."""
    found: list[tuple[str, str]] = []
    for place in _PLACES:
        for path in sorted((root / place).rglob("test_*.py")):
            for node in _tree(path).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                if any(isinstance(each, ast.Name) and each.id == "DIFFERENCES" for each in targets):
                    value = getattr(node, "value", None)
                    found.extend(ast.literal_eval(value).items() if value is not None else ())
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _of_file(path: Path, root: Path) -> Iterator[Shown]:
    tree = _tree(path)
    twins = _twin_fixtures(path, root)
    file = path.relative_to(root)
    tables = _tables(tree)
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or not node.name.startswith("test_"):
            continue
        text = (ast.get_docstring(node) or "").strip()
        rows, section = rows_of(node.name)
        if not rows:
            rows = _cited(text)
        mentions = frozenset(_names(node))
        yield Shown(
            name=node.name,
            file=file,
            expected=_in_words(text, node.name),
            where=_where(file, node, twins),
            rows=rows,
            section=section,
            mentions=mentions.union(*(tables[name] for name in mentions & tables.keys())),
            named=frozenset(_OPTION_NAME.findall(text)),
        )


def rows_of(name: str) -> tuple[tuple[str, ...], str]:
    """The rows a test's name begins with, or the named section."""
    rows: list[str] = []
    family = ""
    for word in name.split("_")[1:]:
        upper = word.upper()
        if upper in _FAMILY_NAMES and (not rows or family != upper):
            family = upper
        elif family and re.fullmatch(r"\d\d", word):
            rows.append(f"{family}-{word}")
        elif not rows and not family and upper in NAMED:
            return (), upper
        else:
            break
    return tuple(rows), ""


def _cited(text: str) -> tuple[str, ...]:
    """Rows at the very beginning of a docstring: "VS-09, VS-10: ...", "UDP-01, 03, 09."."""
    match = _LEADING.match(text)
    if match is None:
        return ()
    rows: list[str] = []
    family = ""
    for name, first, last in re.findall(r"(?:([A-Z]+)-)?\b(\d\d)\b(?:\.\.(\d\d))?", match.group()):
        family = name or family
        rows += [f"{family}-{number:02}" for number in range(int(first), int(last or first) + 1)] if family else []
    return tuple(rows)


def _in_words(text: str, name: str) -> str:
    rest = _LEADING.sub("", " ".join(text.split()))
    sentence = re.split(r"(?<=[.!?]) ", rest, maxsplit=1)[0].strip()
    if not sentence:
        words = [word for word in name.split("_")[1:] if not word.isdecimal() and word.upper() not in _FAMILY_NAMES]
        sentence = " ".join(words)
    return sentence


def _tables(tree: ast.Module) -> dict[str, frozenset[str]]:
    """What the constants of a module mention: tests are driven by tables."""
    found = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and isinstance(targets[0], ast.Name):
            found[targets[0].id] = frozenset(_names(value))
    return found


def _names(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.Name):
            yield each.id


def _where(file: Path, node: ast.FunctionDef | ast.AsyncFunctionDef, twins: frozenset[str]) -> str:
    if file.parts[0] == "guest_tests":
        return "guest"
    if file.name.startswith("test_linux_"):
        return "Linux over TAP"
    arguments = {each.arg for each in node.args.args}
    if arguments & twins or any(_says_kernel(each) for each in node.decorator_list):
        return "kernel, stack"
    return "stack"


def _says_kernel(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Constant) and each.value == "kernel" for each in ast.walk(node))


@cache
def _twin_fixtures(path: Path, root: Path) -> frozenset[str]:
    """Fixtures of a test file, its own or imported, that run their tests on the kernel's sockets too."""
    found: set[str] = set()
    tree = _tree(path)
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and ".tests." in node.module:
            source = root.joinpath(*node.module.split(".")).with_suffix(".py")
            if source.exists():
                theirs = _twin_fixtures(source, root)
                found |= {alias.asname or alias.name for alias in node.names if alias.name in theirs}
    fixtures = {each.name: each for each in functions if any("fixture" in _text(d) for d in each.decorator_list)}
    found |= {name for name, each in fixtures.items() if any(_says_kernel(d) for d in each.decorator_list)}
    grown = True
    while grown:
        more = {
            name for name, each in fixtures.items() if name not in found and {a.arg for a in each.args.args} & found
        }
        found |= more
        grown = bool(more)
    return frozenset(found)


def _text(node: ast.AST) -> str:
    return ast.unparse(node)


def missing(tests: Iterable[Shown]) -> list[str]:
    """Rows and flags without test or exemption, exemptions that have a test, and tests of rows that do not exist."""
    tests = list(tests)
    shown = {row for test in tests for row in test.rows}
    wrong = [row for row in ROWS if row not in shown and row not in EXEMPT]
    wrong += [f"{row} is exempt and has a test" for row in EXEMPT if row in shown]
    wrong += [f"{row} is no row" for row in sorted(shown - set(ROWS))]
    return wrong + [f"MSG_{flag}" for flag in FLAGS if not any(_of_flag(test, flag) for test in tests)]


def _of_flag(test: Shown, flag: str) -> bool:
    return f"MSG_{flag}" in test.mentions or test.name.startswith(f"test_msg_{flag.lower()}")


def options_missing(tests: Iterable[Shown]) -> list[str]:
    """Options that no test names and nothing excuses, and excuses that are not needed."""
    tests = list(tests)
    shown = {name for name, *_ in options() if any(_names_option(test, name) for test in tests)}
    wrong = [
        f"{name} of level {level}"
        for name, level, _, _ in options()
        if name not in shown and name not in OPTIONS_EXEMPT
    ]
    return wrong + [f"{name} is exempt and has a test" for name in OPTIONS_EXEMPT if name in shown]


def _names_option(test: Shown, name: str) -> bool:
    """By its docstring, by its name in full, or as `test_opt_` and what follows the option's prefix. Tests of rows and
    named sections need only use it.
    """
    words = name.lower().partition("_")[2]
    called = f"{test.name}_"
    if name in test.named or f"_{name.lower()}_" in called or f"_opt_{words}_" in called:
        return True
    return bool(test.section or test.rows) and name in test.mentions


@cache
def options() -> list[tuple[str, int, int, str]]:
    """(name, level, number, which sockets have it) of every option there is, from the tables that drive them."""
    from stack.socket.ip.datagram_options import DATAGRAM6_OPTIONS, DATAGRAM_OPTIONS
    from stack.socket.ip.raw_options import PING4_OPTIONS, PING6_OPTIONS, RAW4_OPTIONS, RAW6_OPTIONS
    from stack.socket.ip.stream_options import STREAM6_OPTIONS
    from stack.socket.netlink.options import NETLINK_OPTIONS
    from stack.socket.packet.options import PACKET_OPTIONS
    from stack.socket.unix.options import UNIX_OPTIONS
    from stack.socket.vsock.options import VSOCK_OPTIONS

    tables = {
        "TCP": (STREAM6_OPTIONS,),
        "UDP": (DATAGRAM_OPTIONS, DATAGRAM6_OPTIONS),
        "raw": (RAW4_OPTIONS, RAW6_OPTIONS),
        "ping": (PING4_OPTIONS, PING6_OPTIONS),
        "Unix": (UNIX_OPTIONS,),
        "netlink": (NETLINK_OPTIONS,),
        "packet": (PACKET_OPTIONS,),
        "vsock": (VSOCK_OPTIONS,),
    }
    found: dict[tuple[int, int, str], list[str]] = {}
    for kind, each in tables.items():
        rows = [row for table in each for row in table if row.readable or row.writable]
        for key in {(row.level, row.number, row.name) for row in rows}:
            found.setdefault(key, []).append(kind)
    return [(name, level, number, ", ".join(kinds)) for (level, number, name), kinds in sorted(found.items())]


# -- the page: text ---------------------------------------------------------------------------------------------------

_HEAD: Final = """\
# Conformance

Written by `python -m stack.testing.conformance` from the tests; a test checks that it is current. Each line is one rule
of Linux, by its [row](rows.md), with the tests that assert it. *kernel, stack*: the same test runs on the kernel's
sockets and on a Stack's; *Linux over TAP*: our stack talks to the kernel's; *guest*: to a guest's; *stack*: only the
Stack's can be asked (virtual time, other users, hostile peers).
"""


_OPTIONS: Final = """\
Tests that name an option. Besides, [one test](../stack/tests/test_socket_bad_input.py) sets and reads every number of
level SOL_SOCKET, and those of the other levels, with values of every length, on the kernel's sockets and on a Stack's.
"""


def page(tests: list[Shown], parted: list[tuple[str, str]]) -> str:
    """The whole text."""
    parts = [_HEAD, _summary(tests)]
    for name, title, count in FAMILIES:
        parts.append(f"\n## {name}: {title}\n\n| row | expected | shown on | tests |\n|---|---|---|---|\n")
        for number in range(1, count + 1):
            row = f"{name}-{number:02}"
            parts.append(_line(row, [test for test in tests if row in test.rows]))
    for section, title in NAMED.items():
        chosen = [test for test in tests if test.section == section]
        parts.append(f"\n## {section}: {title}\n\n| test | expected | shown on |\n|---|---|---|\n")
        parts.extend(f"| {_link(test)} | {_cell(test.expected)} | {test.where} |\n" for test in chosen)
    parts.append("\n### Flags\n\n| flag | tests |\n|---|---|\n")
    parts.extend(f"| MSG_{flag} | {_few([test for test in tests if _of_flag(test, flag)])} |\n" for flag in FLAGS)
    parts.append(f"\n### Options\n\n{_OPTIONS}\n| option | level | number | sockets | tests |\n|---|---|---|---|---|\n")
    for name, level, number, kinds in options():
        chosen = [test for test in tests if _names_option(test, name)]
        told = _few(chosen) if chosen else _cell(OPTIONS_EXEMPT.get(name, "-"))
        parts.append(f"| {name} | {level} | {number} | {kinds} | {told} |\n")
    parts.append(
        "\n## Differences\n\nWhere a Stack and a kernel part, or two kernels.\n\n| about | difference |\n|---|---|\n"
    )
    parts.extend(f"| {about} | {_cell(text)} |\n" for about, text in sorted(parted))
    return "".join(parts)


def _summary(tests: list[Shown]) -> str:
    lines = ["\n| | rows | shown | on the kernel too | exempt |\n|---|---|---|---|---|\n"]
    for name, _, count in FAMILIES:
        rows = [f"{name}-{number:02}" for number in range(1, count + 1)]
        shown = [row for row in rows if any(row in test.rows for test in tests)]
        both = [row for row in rows if any(row in test.rows and test.where != "stack" for test in tests)]
        lines.append(f"| {name} | {count} | {len(shown)} | {len(both)} | {sum(row in EXEMPT for row in rows)} |\n")
    return "".join(lines)


def _line(row: str, tests: list[Shown]) -> str:
    if not tests:
        return f"| {row} | {_cell(EXEMPT.get(row, 'not shown yet'))} | - | - |\n"
    words = list(dict.fromkeys(test.expected for test in tests))
    places = sorted({test.where for test in tests})
    return f"| {row} | {_cell(' '.join(words[:4]))} | {'; '.join(places)} | {_few(tests)} |\n"


def _few(tests: list[Shown], most: int = 4) -> str:
    named = ", ".join(_link(test) for test in tests[:most])
    return f"{named} and {len(tests) - most} more" if len(tests) > most else named or "-"


def _link(test: Shown) -> str:
    return f"[{test.name.removeprefix('test_')}](../{test.file.as_posix()})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the page; the exit code says whether something is missing."""
    tests = collect()
    PAGE.write_text(page(tests, differences()), encoding="utf-8")
    wrong = missing(tests) + options_missing(tests)
    for each in wrong:
        sys.stderr.write(f"not shown: {each}\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
