"""The C on its own: builds, runs, measures and fuzzes the programs of csrc/tests without Python in the process.

As a program::

    python -m vhost_user.tests.c_programs test --out DIR              every test program under ASan and UBSan
    python -m vhost_user.tests.c_programs coverage --out DIR          branch coverage of each file by those programs
    python -m vhost_user.tests.c_programs fuzz --out DIR --seconds N  libFuzzer (clang), N seconds for all harnesses

A fuzz harness defines LLVMFuzzerTestOneInput; built with -DSTANDALONE it feeds itself and is a test program too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

CSRC: Final = Path(__file__).resolve().parent.parent / "csrc"

#: The rings' files, and what works on several rings at once: what is measured.
RINGS: Final = [
    *["vring.c", "notify.c", "pop.c", "push.c", "forward.c", "fault.c", "chain.c", "memory.c", "sigbus.c"],
    "checksum.c",
]
PAIRS: Final = ["bridge.c", "route.c", "take.c", "steer.c", "pool.c", "landing.c"]
#: The driver's, for benches.
DRIVER: Final = ["vbulk.c", "vdriver.c"]
MEASURED: Final = [*RINGS, *PAIRS, "vbulk.c"]
#: What the tests of those need beside them.
ALL: Final = [*MEASURED, "vnet.c", "gro.c", "train.c", "vdriver.c"]

FLAGS: Final = ["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZE: Final = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZE_THREADS: Final = ["-O1", "-fsanitize=thread"]


class Program(NamedTuple):
    name: str
    sources: list[str]
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


TESTS: Final = [
    Program("test_vring", RINGS, flags=("-Wl,--wrap=malloc,--wrap=calloc",)),
    Program("test_push", RINGS),
    Program("test_notify", RINGS),
    Program("test_forward", RINGS),
    Program("test_sigbus", RINGS),
    Program("test_races", RINGS, ("50000", "50000")),
    Program("fuzz_vring", RINGS, ("200000",), ("-DSTANDALONE",)),
    Program("fuzz_forward", RINGS, ("50000",), ("-DSTANDALONE",)),
    Program("test_landing", ALL),
    Program("test_bridge", ALL),
    Program("test_bridge_kinds", ALL),
    Program("test_pairs", ALL, ("5000", "5000")),
    Program("fuzz_bridge", ALL, ("50000",), ("-DSTANDALONE",)),
    Program("test_bulk", DRIVER),
]

#: What threads share, for a race detector: without guests that write while we read, which is a race by intention.
RACES: Final = Program("test_pairs", ALL, ("2000", "0"))

HARNESSES: Final = [
    Program("fuzz_vring", RINGS, ("-max_len=2048",)),
    Program("fuzz_forward", RINGS, ("-max_len=4096",)),
    Program("fuzz_bridge", ALL, ("-max_len=4096",)),
    Program("fuzz_headers", ["vnet.c", "gro.c", "train.c", "vvsock.c", "checksum.c"], ("-max_len=4096",)),
    Program("fuzz_gro", ["gro.c", "train.c", "vnet.c", "checksum.c"], ("-max_len=4096",)),
    Program("fuzz_driver", DRIVER, ("-max_len=4096",)),
]


def build(program: Program, out: Path, flags: list[str], *, compiler: str | None = None) -> Path:
    """Compiles `program` into the directory `out`; raises CalledProcessError with the compiler's words on stderr."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / program.name
    sources = [CSRC / "tests" / f"{program.name}.c", *(CSRC / name for name in program.sources)]
    command = [compiler or os.environ.get("CC", "gcc"), *FLAGS, *flags, *program.flags, *map(str, sources)]
    subprocess.run([*command, "-o", str(target)], check=True, timeout=300)
    return target


def run(program: Program, target: Path) -> subprocess.CompletedProcess[str]:
    """Runs a built test program; its output is captured."""
    return subprocess.run([str(target), *program.arguments], capture_output=True, text=True, check=False, timeout=600)


def branch_coverage(out: Path) -> dict[str, tuple[int, int, list[int]]]:
    """Runs all test programs against objects built for gcov: (branches taken, branches, lines with one not taken)."""
    out.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "gcc")
    objects = []
    for name in ALL:
        target = out / name.replace(".c", ".o")
        target.with_suffix(".gcda").unlink(missing_ok=True)
        command = [compiler, *FLAGS, "-O0", "--coverage", "-c", str(CSRC / name), "-o", str(target)]
        subprocess.run(command, check=True, timeout=300)
        objects.append(str(target))
    for program in TESTS:
        target = out / program.name
        main = str(CSRC / "tests" / f"{program.name}.c")
        command = [compiler, *FLAGS, "--coverage", *program.flags, main, *objects, "-o", str(target)]
        subprocess.run(command, check=True, timeout=300)
        done = run(program, target)
        if done.returncode:
            raise RuntimeError(f"{program.name}: {done.stderr}")
    return {name: _gcov(out, name) for name in MEASURED}


def _gcov(out: Path, name: str) -> tuple[int, int, list[int]]:
    data = out / name.replace(".c", ".gcda")
    command = ["gcov", "--branch-probabilities", "--json-format", "--stdout", str(data)]
    report = subprocess.run(command, check=True, capture_output=True, text=True, cwd=out, timeout=60)
    taken = total = 0
    missed = set()
    for file in json.loads(report.stdout)["files"]:
        if Path(file["file"]).name != name:  # headers are measured where they are used, not here
            continue
        for line in file["lines"]:
            for branch in line["branches"]:
                total += 1
                taken += branch["count"] > 0
                if not branch["count"]:
                    missed.add(line["line_number"])
    return taken, total, sorted(missed)


def fuzz(out: Path, seconds: int) -> int:
    """Fuzzes every harness for its share of `seconds`; the corpus in `out` is kept for the next time.

    Returns 0, or the first failing harness's exit code; the input that failed is then in `out`.
    """
    share = max(1, seconds // len(HARNESSES))
    for harness in HARNESSES:
        target = build(harness, out, [*SANITIZE, "-fsanitize=fuzzer"], compiler=os.environ.get("FUZZ_CC", "clang"))
        corpus = out / f"{harness.name}.corpus"
        corpus.mkdir(exist_ok=True)
        print(f"{harness.name}: {share} s", flush=True)
        command = [str(target), f"-max_total_time={share}", "-print_final_stats=1", *harness.arguments, str(corpus)]
        done = subprocess.run([*command, f"-artifact_prefix={out}/"], check=False)
        if done.returncode:
            print(f"{harness.name} failed; the input is in {out}, run {target} with it", file=sys.stderr)
            return done.returncode
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["test", "coverage", "fuzz"])
    parser.add_argument("--out", type=Path, required=True, help="directory for everything built and found")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    out = options.out.resolve()
    if options.what == "fuzz":
        return fuzz(out, options.seconds)
    if options.what == "coverage":
        for name, (taken, total, missed) in branch_coverage(out).items():
            print(f"{name}: {taken}/{total} branches = {100 * taken / total:.1f} %, missed in lines {missed}")
        return 0
    for program in TESTS:
        done = run(program, build(program, out, SANITIZE))
        print(program.name, done.stdout.strip(), done.stderr)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
