"""Coverage-guided fuzzing of a whole node: ``python -m stack.fuzz.fuzz_frames SECONDS [DIRECTORY]``.

Uses atheris, libFuzzer for Python (`pip install atheris`). Every input is a program for `stack.fuzz.frame_world`: what
the link brings, as time passes, while users do things. An input that breaks a promise is written to DIRECTORY
(default: the working directory), which also keeps the corpus; running with that file instead of SECONDS plays it again.
The exit code is 0 when nothing was found.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

_MAX_INPUT: Final = 1024  # bytes: some forty instructions


def seeds() -> list[bytes]:
    """The programs of `corpus_frames.txt`, one in hexadecimal per line."""
    text = Path(__file__).with_name("corpus_frames.txt").read_text()
    return [bytes.fromhex(line) for line in text.splitlines() if line and not line.startswith("#")]


def main(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("fuzzing frames needs atheris: python -m pip install atheris\n")
        return 3
    for name in [name for name in sys.modules if name.startswith("stack.") and not name.startswith("stack.fuzz")]:
        del sys.modules[name]  # imported too early to be instrumented
    with atheris.instrument_imports(include=["stack"]):
        world_module = importlib.import_module("stack.fuzz.frame_world")
        for seed in seeds():  # much is imported only when it is needed first
            with world_module.FrameWorld() as world:
                world.play(seed)

    def one_input(data: bytes) -> None:
        with world_module.FrameWorld() as world:
            world.play(data)

    directory = Path(arguments[1] if len(arguments) > 1 else ".")
    options = [sys.argv[0], f"-max_len={_MAX_INPUT}", f"-artifact_prefix={directory}{os.sep}"]
    if arguments[0].isdigit():
        corpus = directory / "corpus-frames"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        options += [f"-max_total_time={arguments[0]}", "-print_final_stats=1", str(corpus)]
    else:
        options.append(arguments[0])
    atheris.Setup(options, one_input)
    atheris.Fuzz()  # does not return: libFuzzer ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
