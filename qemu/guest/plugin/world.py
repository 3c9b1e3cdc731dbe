"""One test's guests, LAN and evidence."""

from __future__ import annotations

import inspect
import time
import zlib
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

from qemu.guest.config import GuestConfig, with_image
from qemu.guest.errors import GuestError, SetupError
from qemu.guest.guest import Guest
from qemu.guest.lan import Lan
from qemu.guest.templates import why_not

if TYPE_CHECKING:
    from qemu.guest.dmesg import Finding
    from qemu.guest.plugin.settings import Settings

_CONFIG_FIELDS: Final = frozenset(GuestConfig.__dataclass_fields__)


class GuestFactory(Protocol):
    def __call__(self, **changes: Any) -> Guest: ...


class World:
    """Made by the first fixture of a test that needs it; `close` ends everything."""

    def __init__(self, settings: Settings, item: pytest.Item) -> None:
        self.settings = settings
        self.item = item
        #: The same for the same test each time, unless it is chosen.
        self.seed = zlib.crc32(item.nodeid.encode()) if settings.seed is None else settings.seed
        self.lan = Lan(seed=self.seed)
        self.wants_net = False  #: the test works with the LAN, so its guests are plugged in from the start
        self.guests: list[Guest] = []
        self.started = time.monotonic()
        self.reported = False  #: the call's report was made: nothing later can fail the test there
        self._undo = ExitStack()
        self._undo.callback(self.lan.close)

    def make_guest(self, **changes: Any) -> Guest:
        """Start one more guest. Keywords are fields of GuestConfig, over those of the test's marker."""
        config = self._config({**self._marked(), **changes})
        guest = Guest(config)
        self.guests.append(guest)
        self._undo.callback(guest.close)
        guest.start()
        if self.settings.accel == "kvm" and guest.verdict is not None and guest.verdict.accelerator != "kvm":
            raise SetupError(f"--guest-accel=kvm, but: {guest.verdict.reason}")
        return guest

    def findings(self) -> list[tuple[str, Finding]]:
        """(guest, complaint of its kernel), in order."""
        return [(name, finding) for name, guest in self.named() for finding in guest.findings]

    def faults(self) -> list[str]:
        """What fails the test although nobody in it may have looked: kernels' complaints, handlers that raised."""
        kernels = [f"{name}'s kernel reported a {each.kind}:\n{each}" for name, each in self.findings() if each.fatal]
        handlers = [
            f"the handler of {service.name}:{service.port} failed:\n{error}"
            for service in self.lan.services
            for error in service.errors
        ]
        return kernels + handlers

    def named(self) -> list[tuple[str, Guest]]:
        return [(f"guest{number}", guest) for number, guest in enumerate(self.guests, start=1)]

    def close(self) -> None:
        """End the guests. Raises GuestError if something was found too late for the test's own report."""
        self._undo.close()
        late = self.faults()
        if late and not self.reported:
            raise GuestError("\n\n".join(late))

    def _marked(self) -> dict[str, Any]:
        marked: dict[str, Any] = {}
        for mark in reversed(list(self.item.iter_markers("guest"))):
            if mark.args:
                raise pytest.UsageError(f"{self.item.nodeid}: the marker guest takes keywords only")
            marked |= mark.kwargs
        return marked

    def _config(self, changes: dict[str, Any]) -> GuestConfig:
        unknown = set(changes) - _CONFIG_FIELDS
        if unknown:
            raise pytest.UsageError(
                f"{self.item.nodeid}: {', '.join(sorted(unknown))}: no fields of qemu.guest.GuestConfig; see "
                f"{inspect.getsourcefile(GuestConfig)}"
            )
        settings = self.settings
        chosen: dict[str, Any] = {
            "arch": settings.arch,
            "kernel": settings.kernel,
            "modules_dir": settings.modules,
            "image": None if {"image", "disk", "initrd"} & set(changes) else settings.image,
            "shares": settings.share,
            "kvm": settings.accel != "tcg",
            "timeout_scale": settings.timeout_scale,
            "watch": True,
        }
        if not {"network", "stack", "switch", "lan", "address", "address6"} & set(changes):
            chosen["lan"] = self.lan
        config = with_image(GuestConfig(**{**chosen, **changes}))
        if "template" not in changes and not why_not(config):
            lazy = "lazy" not in changes and not self.wants_net
            config = replace(config, template=True, lazy=changes.get("lazy", lazy))
        return config
