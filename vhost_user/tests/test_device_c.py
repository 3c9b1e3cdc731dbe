"""The devices' and the driver's C alone, under ASan and UBSan, fed by their fuzz harnesses.

The harnesses check what they call: records inside the slab, checksum fields inside the frame, no buffer lost or
doubled. `make fuzz` runs the same functions under a coverage-guided fuzzer.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-DSTANDALONE"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

HARNESSES = {
    "fuzz_headers": ["vnet.c", "gro.c", "train.c", "vvsock.c", "checksum.c"],
    "fuzz_gro": ["gro.c", "train.c", "vnet.c", "checksum.c"],
    "fuzz_driver": ["vdriver.c", "vbulk.c"],
}


@pytest.mark.parametrize("harness", HARNESSES)
def test_whatever_the_bytes_the_c_keeps_its_promises(harness: str, tmp_path: Path) -> None:
    program = tmp_path / harness
    sources = [CSRC / "tests" / f"{harness}.c", *(CSRC / name for name in HARNESSES[harness])]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *FLAGS, *SANITIZE, *map(str, sources), "-o", str(program)], check=True, timeout=120)
    done = subprocess.run([str(program), "50000"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "50000 rounds\n"
