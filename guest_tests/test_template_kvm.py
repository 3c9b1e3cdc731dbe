"""The way of a template under KVM, on machines without it: QEMU is told of KVM, and a script makes TCG of that.

What differs from TCG is in the arguments (processor, vectors, words for the kernel) and in the template's key; nothing
here depends on how fast the guest is. The card is left out: QEMU 7.2's TCG crashes at one with MSI-X, as KVM has it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_tests.traces import SECONDS
from qemu.guest import Guest, accel, templates
from qemu.guest.accel import Verdict

SCRIPT = """#!{python}
import os, sys
words = [word.replace("accel=kvm", "accel=tcg") for word in sys.argv[1:]]
words = ["qemu64" if before == "-cpu" else word for before, word in zip(["", *words], words)]
os.execv("{qemu}", ["qemu", *words])
"""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(templates, "cache_root", lambda: tmp_path)
    yield
    for kept in [each for each in templates.opened.values() if each.entry.parent == tmp_path]:
        kept.forget()


@pytest.mark.long
@pytest.mark.usefixtures("own_cache")
def test_a_guest_is_saved_and_restored_as_under_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(SCRIPT.format(python=sys.executable, qemu=shutil.which("qemu-system-x86_64")))
    qemu.chmod(0o755)
    monkeypatch.setattr(accel, "choose", lambda *_, **__: Verdict("kvm", "pretended"))
    for _ in range(2):
        with Guest(template=True, qemu=str(qemu), net=False) as guest:
            assert str(guest.verdict) == "kvm: pretended"
            assert "q35,accel=kvm,memory-backend=ram" in guest.argv
            assert "tsc=reliable" not in guest.read("/proc/cmdline")
            with guest.vsock.listen(1234) as listener:
                listener.settimeout(SECONDS)
                command = guest.spawn(["@pipe", "vsock", "2", "1234"], stdin=True)
                connection, _ = listener.accept()
                connection.close()
                command.kill()
            with guest.snapshot() as snapshot:
                guest.write("/tmp/later", "x")
                guest.restore(snapshot)
            assert not guest.run("cat /tmp/later").succeeded
