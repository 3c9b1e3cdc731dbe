"""One guest is booted and shared by every test that does not need one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qemu.guest import Guest


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest
