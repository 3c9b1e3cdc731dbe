"""What can be done with the directories a guest sees while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qemu.guest.guest_system import GuestSystem
from qemu.guest.share import DEFAULT_SHARE, How, Share
from qemu.guest.shares import Shared

if TYPE_CHECKING:
    from qemu.guest.hotplug import Slots


class GuestShares(GuestSystem):
    """A guest that can be given further directories."""

    @property
    def shares(self) -> list[Shared]:
        """The directories of this machine that the guest sees, and the way each takes."""
        return list(self._shares.all)

    def share(self, path: str | Path, at: str = DEFAULT_SHARE, *, how: How = "auto", writable: bool = False) -> Shared:
        """Let the guest see the directory `path` at `at` from now on; the way it takes is in what is returned.

        Without a spare port (``template=True`` or ``spare_ports``) it can be a copy only. Raises SetupError with every
        reason if there is no way, GuestError if the guest cannot mount it.
        """
        with self._plugging:
            return self._shares.add(Share(Path(path), at, how, writable), self._spare_slots())

    def unshare(self, shared: Shared) -> None:
        """The guest does not see it any more (a copy stays). Raises GuestError while one of its programs uses it."""
        with self._plugging:
            self._shares.remove(shared, self._spare_slots())

    def _spare_slots(self) -> Slots | None:
        return self._ports() if self.config.ports else None
