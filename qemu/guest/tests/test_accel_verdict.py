"""KVM is used only after it ran guest code; the verdict says why."""

from __future__ import annotations

import pytest

from qemu.guest import accel
from qemu.guest.accel import PROBE_STATUS, judge, probe_image, run_probe
from qemu.guest.config import DEFAULT_QEMU


def test_the_probe_image_really_runs_to_its_end() -> None:
    """Under TCG, which runs everywhere: real mode, long mode, paging, the loop, the exit port."""
    status, said = run_probe(DEFAULT_QEMU, "tcg", seconds=20)
    assert (status, said) == (PROBE_STATUS, "")


def test_the_image_is_one_firmware_rom() -> None:
    assert len(probe_image()) == 65536


def test_an_image_that_stops_early_is_not_taken_for_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "probe_image", lambda: b"\xf4" * 65536)
    status, _ = run_probe(DEFAULT_QEMU, "tcg", seconds=1.0)
    assert status is None
    assert judge(status, "").accelerator == "tcg"


@pytest.mark.parametrize(
    ("status", "said", "accelerator", "reason"),
    [
        (PROBE_STATUS, "", "kvm", "guest code ran under KVM"),
        (None, "", "tcg", "did not run guest code at a processor's speed"),
        (
            1,
            "qemu: Could not access KVM kernel module: denied\nqemu: failed\n",
            "tcg",
            "Could not access KVM kernel module",
        ),
        (1, "qemu: warning: host lacks x\nqemu: error: failed to set MSR\n", "tcg", "failed to set MSR"),
        (0, "", "tcg", "QEMU ended with status 0"),
        (-6, "", "tcg", "QEMU ended with status -6"),
    ],
)
def test_verdicts_carry_their_reason(status: int | None, said: str, accelerator: str, reason: str) -> None:
    verdict = judge(status, said)
    assert verdict.accelerator == accelerator
    assert reason in verdict.reason
    assert str(verdict).startswith(f"{accelerator}: ")


def test_a_missing_qemu_means_tcg_and_does_not_raise() -> None:
    assert run_probe("no-such-qemu", "kvm") == (127, "cannot run no-such-qemu: No such file or directory")


def test_kvm_that_is_not_wanted_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "run_probe", lambda *_: pytest.fail("must not run"))
    assert accel.choose("qemu", allow_kvm=False).accelerator == "tcg"
