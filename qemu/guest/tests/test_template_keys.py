"""A template is found again for the same guest on the same machine, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qemu.guest import templates
from qemu.guest.accel import Verdict
from qemu.guest.boot import Recipe
from qemu.guest.config import GuestConfig
from qemu.guest.kernel import Kernel
from qemu.guest.templates import _key, why_not


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for name in ("qemu", "kernel", "agent", "image"):
        (tmp_path / name).write_text(name)
    config = GuestConfig(template=True)
    kernel = Kernel(tmp_path / "kernel", None, "")
    return Recipe(config, str(tmp_path / "qemu"), kernel, tmp_path / "agent", Verdict("tcg", "said so"))


def key(recipe: Recipe) -> str:
    return _key(recipe, recipe.agent.parent / "image")


def test_the_same_guest_has_the_same_key(recipe: Recipe, tmp_path: Path) -> None:
    again = replace(recipe, config=GuestConfig(template=True, say=print), verdict=Verdict("tcg", "another reason"))
    assert key(recipe) == key(again)
    moved = tmp_path / "elsewhere"
    moved.write_text("kernel")
    assert key(replace(recipe, kernel=Kernel(moved, None, "x"))) == key(recipe)  # its content counts


@pytest.mark.parametrize(
    "change",
    [{"memory_mib": 128}, {"smp": 2}, {"append": ("quiet",)}, {"spare_ports": 3}, {"arch": "aarch64"}],
    ids=str,
)
def test_what_makes_another_guest_makes_another_key(change: dict[str, object], recipe: Recipe) -> None:
    config = replace(recipe.config, **change)  # type: ignore[arg-type]  # a mixture of fields
    assert key(replace(recipe, config=config)) != key(recipe)


def test_another_kernel_image_or_qemu_makes_another_key(recipe: Recipe, tmp_path: Path) -> None:
    before = key(recipe)
    for name in ("kernel", "image", "qemu"):
        (tmp_path / name).write_text("another")
        assert key(recipe) != before
        before = key(recipe)


def test_under_kvm_the_hosts_processor_is_part_of_the_key(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest with ``-cpu host`` cannot go on upon another; under TCG the processor is QEMU's."""
    kvm = replace(recipe, verdict=Verdict("kvm", "guest code ran"))
    keys = []
    for processor in ("one", "another"):
        monkeypatch.setattr(templates, "_host_processor", lambda processor=processor: processor)
        keys.append((key(recipe), key(kvm)))
    assert keys[0][0] == keys[1][0]
    assert len({keys[0][0], keys[0][1], keys[1][1]}) == 3


def test_what_has_no_template_is_said() -> None:
    assert why_not(GuestConfig()) == ""
    assert why_not(GuestConfig(arch="aarch64")) == ""
    assert "on a q35 only, not on pc" in why_not(GuestConfig(machine="pc"))
