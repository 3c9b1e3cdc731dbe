"""Builds vhost_user._vring: the C of csrc/ as one cffi extension (API mode).

What Python may call is declared once, in the headers: the text between their ``cdef begin`` and ``cdef end`` marks is
handed to cffi as it is. A file joins the extension by its name in `HEADERS` (in the order of their includes) or
`SOURCES`.

cffi releases the GIL around every one of these calls.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from cffi import FFI

HERE: Final = Path(__file__).resolve().parent
CSRC: Final = HERE / "csrc"

HEADERS: Final = [
    *["memory.h", "checksum.h", "vring.h", "chunk.h", "vnet.h", "gro.h", "train.h", "landing.h", "vvsock.h"],
    *["vdriver.h", "vtrip.h", "vbulk.h"],
    *["steer.h", "pool.h", "route.h", "bridge.h", "take.h"],
]
SOURCES: Final = [
    *["memory.c", "sigbus.c", "checksum.c", "chain.c", "vring.c", "notify.c"],  # rings
    *["pop.c", "push.c", "forward.c", "fault.c"],  # what is done with them
    *["vnet.c", "gro.c", "train.c", "landing.c", "vvsock.c"],  # devices
    *["steer.c", "pool.c", "route.c", "bridge.c", "take.c"],  # queue pairs, and from guest to guest
    *["vdriver.c", "vtrip.c", "vbulk.c"],  # the other side
]

#: -O3 vectorises checksums (3 times faster than -O2).
CFLAGS: Final = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"]

_MARKED: Final = re.compile(r"/\* cdef begin \*/(.*?)/\* cdef end \*/", re.DOTALL)


def declarations() -> str:
    """The marked text of all headers."""
    return "\n".join(text for name in HEADERS for text in _MARKED.findall((CSRC / name).read_text()))


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "vhost_user._vring",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    # Relative: setuptools puts object files where sources are, under its build directory.
    sources=[os.path.relpath(CSRC / name, HERE.parent) for name in SOURCES],
    include_dirs=[os.path.relpath(CSRC, HERE.parent)],
    depends=[os.path.relpath(path, HERE.parent) for path in sorted(CSRC.glob("*.h"))],
    extra_compile_args=CFLAGS,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
