"""Functions of a test called in a guest that has Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest, Share
from qemu.guest.python_call import GuestPythonError

#: Parts of the standard library that no function here needs.
_LEFT_OUT = (
    "test",
    "tests",
    "__pycache__",
    "dist-packages",
    "site-packages",
    "config-*",
    "idlelib",
    "lib2to3",
    "ensurepip",
)


def read(path: str) -> dict[str, object]:
    import os
    from pathlib import Path

    print("reading", path)
    return {"release": os.uname().release, "content": Path(path).read_text()}


@pytest.mark.long
def test_functions_are_called_in_the_guests_python(tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("no python3 of the system's to pack into a guest")
    ask = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    library = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    shutil.copytree(library, tmp_path / "library", ignore=shutil.ignore_patterns(*_LEFT_OUT))
    share = Share(tmp_path / "library", str(library))
    with Guest(net=False, vsock=False, programs=(python,), shares=(share,), memory_mib=512) as guest:
        guest.write("/tmp/file", "words")
        answer = guest.python(read, "/tmp/file", timeout=SECONDS)
        assert answer == {"release": guest.run("uname -r").stdout.strip(), "content": "words"}
        with pytest.raises(GuestPythonError, match="FileNotFoundError") as error:
            guest.python(read, path="/tmp/nothing", timeout=SECONDS)
        assert error.value.kind == "FileNotFoundError"
