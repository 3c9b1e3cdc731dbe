"""Network namespaces.

Every change to links, addresses and routes is made by a `NetNamespace`, or, for what a device or a neighbour does by
itself, recorded in the same `ChangeLog`, so that those above can tell others.
"""

from stack.netns.implied import METRIC6_USER
from stack.netns.marks import ARRIVED, IMPLIED, MOVED, SILENT
from stack.netns.namespace import NetNamespace
from stack.netns.naming import check_name

__all__ = ["ARRIVED", "IMPLIED", "METRIC6_USER", "MOVED", "SILENT", "NetNamespace", "check_name"]
