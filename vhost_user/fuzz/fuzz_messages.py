"""Coverage-guided fuzzing of the message layer: ``python -m vhost_user.fuzz.fuzz_messages SECONDS [DIRECTORY]``.

Uses atheris, libFuzzer for Python (`pip install atheris`; wheels for CPython 3.11 on x86-64). Every input is a
program for a front-end: it starts from one that does everything right, drops, repeats, corrupts and invents messages,
cuts them anywhere and attaches descriptors of any kind. `World` checks the promises. An input that breaks one is
written to DIRECTORY (default: the working directory), which also keeps the corpus; running with that file instead of
SECONDS plays it again. The exit code is 0 when nothing was found.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, Final

from .decode import decode

#: Longest input in bytes: room for about a hundred steps.
_MAX_INPUT: Final = 1024
#: Modules that need no instrumentation, or cannot be loaded twice.
_KEEP: Final = {"vhost_user._vring", "vhost_user.fuzz", "vhost_user.fuzz.decode"}
#: Reading /proc/self/maps costs more than a life; a leaked mapping stays, so a look now and then finds it.
_LIVES_PER_LOOK: Final = 256


def main(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("fuzzing messages needs atheris: python -m pip install atheris\n")
        return 3
    for name in [name for name in sys.modules if name.startswith("vhost_user.") and name not in _KEEP]:
        del sys.modules[name]  # imported too early to be instrumented
    with atheris.instrument_imports(include=["vhost_user"]):
        world_module = importlib.import_module("vhost_user.fuzz.message_world")
    logging.disable(logging.CRITICAL)
    world = world_module.World()
    base = world_module.whole_start()
    mapped = world.mappings()

    def one_input(data: bytes) -> None:
        world.run(decode(data, base))
        if world.lives % _LIVES_PER_LOOK == 0:
            assert world.mappings() == mapped, "a mapping leaked"

    directory = Path(arguments[1] if len(arguments) > 1 else ".")
    options = [sys.argv[0], f"-max_len={_MAX_INPUT}", f"-artifact_prefix={directory}{os.sep}"]
    if arguments[0].isdigit():
        corpus = directory / "corpus-messages"
        corpus.mkdir(parents=True, exist_ok=True)
        options += [f"-max_total_time={arguments[0]}", "-print_final_stats=1", str(corpus)]
    else:
        options.append(arguments[0])
    atheris.Setup(options, one_input)
    atheris.Fuzz()  # does not return: libFuzzer ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
