"""Templates: guests that were booted once, saved in the cache, and are restored from there ever after.

Theory of operation
-------------------
A template is a guest with the agent's port, spare root ports and no card, saved when its agent answers. Its key is a
hash over everything that decides what it is: QEMU, kernel, initramfs, command line, processor model. So a change of
any of them makes another template, and the next session starts from the same one.

An entry of the cache is complete or absent (cache.py), and carries its sizes and checksums, which are compared when a
process first opens it: one that was cut short or damaged is made again. While a process uses a template it holds its
files open, so that nobody can take them away.

What cannot be saved is said at once: see `why_not`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qemu.guest.argv import QemuConfig, arguments
from qemu.guest.boot import AGENT_SECONDS, Recipe, check_report, freshen
from qemu.guest.cache import cache_root, cached, discard, prune, used
from qemu.guest.config import GuestConfig
from qemu.guest.errors import GuestError, SetupError
from qemu.guest.launch import Launch, private_directory
from qemu.guest.ram import MIB, check_room, checksum, new_ram, save_ram
from qemu.guest.saved import Saved, save
from qemu.guest.shares import plan

#: Changes whenever a saved guest of an older version could not be used any more.
_FORMAT: Final = 1
_PREFIX: Final = "template-"
#: Templates kept in the cache (each 80 to 100 MB): those used last.
KEPT: Final = 8

opened: dict[Hashable, Template] = {}  #: what this process uses, by what decided it
_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Template:
    """A saved guest and where it is in the cache."""

    saved: Saved
    entry: Path
    key: str

    def forget(self) -> None:
        """Take it out of the cache: the next one to ask makes it anew."""
        with _opening:
            for memo in [memo for memo, template in opened.items() if template is self]:
                del opened[memo]
        discard(self.entry)
        self.close()

    def close(self) -> None:
        """Close its files: no guest can start from it any more."""
        os.close(self.saved.ram)
        os.close(self.saved.initrd)


def why_not(config: GuestConfig) -> str:
    """Why guests of this configuration cannot start from a template, or ""."""
    if config.board not in config.facts.hotplug:
        return f"cards can be plugged into a running guest on a {config.facts.hotplug[0]} only, not on {config.board}"
    if config.extra:
        return "QEMU's further arguments (extra) may stand for things a template cannot know"
    if config.disk is not None:
        return "what is on a disk belongs to the guest it was saved with"
    if config.user_net:
        return "QEMU's own network card (user_net) is there from the start"
    if config.systemd or config.credentials:
        return "a guest's systemd is told at its start where to report"
    return ""


def template(config: GuestConfig) -> Template:
    """The template of that configuration, made and cached first if there is none (one boot, some two seconds).

    Raises SetupError if there cannot be one, or if the cache has no room; what booting a guest raises.
    """
    reason = why_not(config)
    if reason:
        raise SetupError(f"no template of this guest can be made: {reason}")
    with _opening:
        try:
            memo = _memo(config)
            if memo is not None and memo in opened:
                return opened[memo]
            found = _find(config)
        except OSError as error:
            raise SetupError(
                f"the template of the guest cannot be kept in {error.filename or cache_root()}: "
                f"{error.strerror or error}; make room there (about 100 MB), or name another place with XDG_CACHE_HOME"
            ) from error
        if memo is not None:
            opened[memo] = found
        return found


def _find(config: GuestConfig) -> Template:
    recipe = Recipe.find(config)
    directory = private_directory()
    try:
        image = directory / "initrd"
        recipe.write_image(image)
        key = _key(recipe, image)
        found: list[Saved] = []

        def sound(entry: Path) -> bool:
            saved = _load(entry, recipe)
            found.extend([saved] if saved is not None else [])
            return saved is not None

        def build(entry: Path) -> None:
            config.say("booting a guest to make a template of")
            shutil.copyfile(image, entry / "initrd")
            _build(recipe, entry)

        entry = cached(_PREFIX + key, build, root=cache_root(), check=sound)
        used(entry)
        if not found and not sound(entry):
            raise SetupError(f"the template just written to {entry} cannot be read back: is the disk sound?")
        prune(entry.parent, _PREFIX + "*", KEPT)
        return Template(found[-1], entry, key)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _build(recipe: Recipe, entry: Path) -> None:
    """Boot the guest and write it to `entry`."""
    config = recipe.config
    check_room(config.memory_mib * MIB)
    ram = new_ram(config.memory_mib * MIB)
    try:
        base = replace(recipe.qemu_config(entry / "initrd"), ram=f"/proc/self/fd/{ram}")

        def configure(console: int, qmp: int, channel: int) -> QemuConfig:
            return replace(base, console_fd=console, qmp_fd=qmp, agent_fd=channel)

        launch = Launch(configure, private_directory(), tee=config.console_tee, inherit=(ram,))
        try:
            boot_seconds = launch.wait_booted(config.boot_timeout * config.timeout_scale)
            freshen(launch)
            check_report(launch)
            # What the first command of every guest needs is in memory then, and its first random number is not late.
            launch.agent.start(["/bin/sh", "-c", "true"]).communicate(timeout=AGENT_SECONDS)
            state = save(launch)
        except GuestError as error:
            explained = launch.failure(error)
            raise explained from error
        finally:
            launch.close()
        (entry / "state").write_bytes(state)
        save_ram(ram, entry / "ram")
    finally:
        os.close(ram)
    with (entry / "ram").open("rb") as file:
        described = {
            "format": _FORMAT,
            "kernel": recipe.kernel.release,
            "boot_seconds": round(boot_seconds, 3),
            "state_sha256": hashlib.sha256(state).hexdigest(),
            "initrd_bytes": (entry / "initrd").stat().st_size,
            "ram_crc32": checksum(file.fileno()),
        }
    (entry / "template.json").write_text(json.dumps(described, indent=1) + "\n")


def _load(entry: Path, recipe: Recipe) -> Saved | None:
    """What is in the cache at `entry`, with its memory opened; None if it is not whole."""
    files: list[int] = []
    try:
        files.append(ram := os.open(entry / "ram", os.O_RDONLY | os.O_CLOEXEC))
        files.append(initrd := os.open(entry / "initrd", os.O_RDONLY | os.O_CLOEXEC))
        described: dict[str, Any] = json.loads((entry / "template.json").read_text())
        state = (entry / "state").read_bytes()
        whole = (
            described["format"] == _FORMAT
            and described["state_sha256"] == hashlib.sha256(state).hexdigest()
            and described["initrd_bytes"] == os.fstat(initrd).st_size
            and described["ram_crc32"] == checksum(ram)
        )
        if whole:
            return Saved(recipe, initrd, ram, state, float(described["boot_seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for descriptor in files:
        os.close(descriptor)
    return None


def _key(recipe: Recipe, image: Path) -> str:
    """A hash over everything that decides what the saved guest is."""
    digest = hashlib.sha256()

    def add(*words: object) -> None:
        for word in words:
            text = str(word).encode(errors="surrogateescape")
            digest.update(len(text).to_bytes(8, "little") + text)

    generic = replace(recipe.qemu_config(Path("initrd")), binary="qemu", kernel=Path("kernel"), ram="ram")
    qemu = Path(recipe.qemu).resolve()
    status = qemu.stat()
    add(_FORMAT, *arguments(generic), qemu, status.st_size, status.st_mtime_ns, status.st_ino)
    add(_sha256(recipe.kernel.image), _sha256(image))
    if recipe.verdict.accelerator == "kvm":
        add(_host_processor())
    return digest.hexdigest()[:20]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error


def _host_processor() -> str:
    """A guest under KVM has the host's processor: a saved one cannot go on upon another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines if line.startswith(("model", "vendor", "stepping", "microcode", "flags")))


def _memo(config: GuestConfig) -> Hashable | None:
    """What a process may remember the template by; None where that would overlook a change.

    The content of files named by a path is looked at through size and time; a directory to be copied is not.
    """
    ways = {each.way for each in plan(config)}
    if config.programs or "packed" in ways:
        return None
    return (
        _identity(config.kernel),
        str(config.modules_dir),
        _identity(config.initrd),
        *(config.arch, config.memory_mib, config.smp, config.qemu, config.kvm, config.append, config.modules),
        *(tuple(sorted(ways)), config.ports, str(cache_root()), os.environ.get("PATH")),
    )


def _identity(path: Path | None) -> Hashable:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
