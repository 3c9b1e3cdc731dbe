"""The pytest plugin: guests as fixtures. Loaded through the entry point, no conftest needed.

Fixtures: `guest` (one for the test, restored from the session's template), `guest_factory` (as many as wanted), `net`
(the LAN they are on, with its gateway), `guest_settings`. Options and their places: settings.py.

This file is imported by every project that has Guestwire installed, so it imports nothing but pytest; what is behind
a fixture is imported when the first test asks for it. A run without such tests shows nothing of the plugin.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from qemu.guest.plugin.settings import OPTIONS, Settings, add_options, read_settings

if TYPE_CHECKING:
    from collections.abc import Generator

    from qemu.guest.guest import Guest
    from qemu.guest.lan import Lan
    from qemu.guest.plugin.world import GuestFactory, World

#: Fixtures a test of ours has at least one of.
FIXTURES = frozenset({"guest", "guest_factory", "net", "guest_settings"})
_WORLD = pytest.StashKey["World"]()
_SETTINGS = pytest.StashKey[Settings]()
_TOLD = pytest.StashKey[bool]()


# -- set-up ----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "guest(allow=PATTERN, **config): changes for the test's guests, fields of qemu.guest.GuestConfig "
        "(memory_mib=512, programs=('curl',) ...); complaints of the kernel that match `allow` do not fail the test",
    )
    if os.environ.get("GITHUB_STEP_SUMMARY") and not hasattr(config, "workerinput"):
        from qemu.guest.plugin.github import StepSummary

        config.pluginmanager.register(StepSummary(os.environ["GITHUB_STEP_SUMMARY"]), "guestwire-step-summary")
    if config.getoption("guest_report") or os.environ.get("GUESTWIRE_REPORT") or config.getini("guest_report"):
        path = settings_of(config).report
        if path is not None and not hasattr(config, "workerinput"):
            from qemu.guest.plugin.page import SessionPage

            config.pluginmanager.register(SessionPage(path), "guestwire-session-page")


def settings_of(config: pytest.Config) -> Settings:
    """The session's settings, read once. Raises pytest.UsageError for a value that cannot be."""
    if _SETTINGS not in config.stash:
        config.stash[_SETTINGS] = read_settings(config)
    return config.stash[_SETTINGS]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """With any of our options or ini keys set, the project is known to use guests: say with what before it starts."""
    chosen = any(config.getoption(each.dest) is not None or config.getini(each.ini) for each in OPTIONS)
    return _header(config) if chosen else []


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    if any(FIXTURES.intersection(getattr(item, "fixturenames", ())) for item in items):
        return _header(config)
    return []


def _header(config: pytest.Config) -> list[str]:
    if config.stash.get(_TOLD, False):
        return []
    config.stash[_TOLD] = True
    from qemu.guest.plugin.summary import header

    return header(settings_of(config))


# -- fixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def guest_settings(pytestconfig: pytest.Config) -> Settings:
    """What was chosen by options, environment and ini file."""
    return settings_of(pytestconfig)


@pytest.fixture
def _guest_world(request: pytest.FixtureRequest, guest_settings: Settings) -> Iterator[World]:
    """Everything of one test; torn down after its report was made."""
    from qemu.guest.plugin.world import World

    world = World(guest_settings, request.node)
    request.node.stash[_WORLD] = world
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
def net(_guest_world: World) -> Lan:
    """The LAN of the test's guests: `network`, its gateway `stack`, its `switch`, `serve`; see qemu.guest.lan.Lan."""
    _guest_world.wants_net = True
    return _guest_world.lan


@pytest.fixture
def guest_factory(_guest_world: World) -> GuestFactory:
    """Makes guests that end with the test: ``guest_factory(memory_mib=512)``. All are on the LAN `net`."""
    return _guest_world.make_guest


@pytest.fixture
def guest(request: pytest.FixtureRequest, _guest_world: World) -> Guest:
    """A guest that is up, restored from the session's template.

    With the fixture `net` it has its card and a lease; otherwise it gets them when something asks for its address,
    its network or its vsock.
    """
    if "net" in request.fixturenames:
        _guest_world.wants_net = True
    return _guest_world.make_guest()


# -- reports ---------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    world = item.stash.get(_WORLD, None)
    if world is not None and call.when in ("setup", "call"):
        from qemu.guest.plugin.evidence import complete

        complete(world, item, call, report)
    return report
