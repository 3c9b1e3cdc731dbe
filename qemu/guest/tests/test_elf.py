"""The library closure is what the dynamic linker itself says it would load (ld.so --list)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qemu.guest import elf


def listed_by_ld_so(program: Path) -> set[str]:
    interpreter = elf.read(program).interpreter
    assert interpreter is not None
    out = subprocess.run([interpreter, "--list", str(program)], capture_output=True, text=True, check=True).stdout
    return {Path(match).name for match in re.findall(r"=> (/\S+)", out)}


@pytest.mark.parametrize("name", ["ls", "bash", "tar", "gcc"])
def test_the_closure_is_what_the_dynamic_linker_loads(name: str) -> None:
    found = shutil.which(name)
    assert found is not None
    program = Path(found)
    ours = {Path(path).name for path, _ in elf.closure(program)}
    interpreter = Path(elf.read(program).interpreter or "").name
    assert ours - {interpreter} == listed_by_ld_so(program) - {interpreter}


def test_runpath_with_origin_is_searched(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "f.c").write_text("int f(void) { return 7; }\n")
    (tmp_path / "m.c").write_text("int f(void); int main(void) { return f(); }\n")
    library, program = tmp_path / "lib/libf.so", tmp_path / "m"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "f.c"], check=True)
    subprocess.run(
        [
            "gcc",
            "-o",
            program,
            tmp_path / "m.c",
            f"-L{tmp_path}/lib",
            "-lf",
            "-Wl,--enable-new-dtags,-rpath,$ORIGIN/lib",
        ],
        check=True,
    )
    assert library in [path for _, path in elf.closure(program)]
    library.unlink()
    with pytest.raises(elf.ElfError, match=r"needs libf\.so, which is not on this machine"):
        list(elf.closure(program))


def test_a_static_program_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.c").write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-static", "-o", tmp_path / "m", tmp_path / "m.c"], check=True)
    assert list(elf.closure(tmp_path / "m")) == []


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF" + b"\xff" * 200, b"MZ" + b"\0" * 100])
def test_what_is_no_elf_file_is_an_error_with_its_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "garbage"
    file.write_bytes(content)
    with pytest.raises(elf.ElfError, match="garbage is not a readable ELF file"):
        elf.read(file)
