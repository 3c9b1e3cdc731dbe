"""What the records of a namespace's changes say beside what changed: the `detail` of `stack.iface.changes.Change`."""

from __future__ import annotations

from typing import Final

#: Of changes to routes that follow from addresses: nobody asked for them.
IMPLIED: Final = "implied"
#: Of changes that Linux does not tell netlink groups of.
SILENT: Final = "silent"
#: Of changes of links that went to, and came from, another namespace.
MOVED: Final = "moved"
ARRIVED: Final = "arrived"
