"""Links of kind veth: two interfaces, in one namespace or two, joined by a cable.

Both have a carrier while both are up, and go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.iface.kinds import random_mac
from stack.link.cable import CableEnd, cable

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

VETH_MTU: Final = 1500  # bytes, until told otherwise
MAX_MTU: Final = 65535


def create(netns: NetNamespace, name: str, attributes: Mapping[str, Any]) -> Interface:
    """`data["peer"]` (a mapping) is the other end: ``name``, ``mac``, ``mtu``, ``index``, ``netns``, each if asked for.

    Without a name it gets the first free of veth0, veth1... Raises NetError and leaves nothing behind.
    """
    wanted: Mapping[str, Any] = attributes.get("data", {}).get("peer", {})
    there: NetNamespace = wanted.get("netns") or netns
    rng = netns.scheduler.rng
    mac_a = attributes.get("mac") or random_mac(rng)
    mac_b = wanted.get("mac") or random_mac(rng)
    end_a, end_b = cable(netns.scheduler, mtu=MAX_MTU, mac_a=mac_a, mac_b=mac_b)
    end_a.plug(False)
    # The peer comes first, as on Linux: it has the lower index.
    peer = _add(there, end_b, wanted.get("name") or _free_name(there, name if there is netns else ""), wanted)
    try:
        own = _add(netns, end_a, name, attributes)
    except NetError:
        there.remove_interface(peer)
        raise
    own.link, peer.link = peer, own
    for end, iface, other in ((end_a, own, peer), (end_b, peer, own)):
        iface.on_up = _Carrier(end, iface, other)
        iface.on_removed = _Removal(other)
    return own


def _add(netns: NetNamespace, end: CableEnd, name: str, wanted: Mapping[str, Any]) -> Interface:
    mtu = wanted.get("mtu", VETH_MTU)
    return netns.add_link(end, name, kind="veth", mac=end.mac, mtu=mtu, index=wanted.get("index", 0))


def _free_name(netns: NetNamespace, taken: str) -> str:
    number = 0
    while f"veth{number}" in netns.interfaces or f"veth{number}" == taken:
        number += 1
    return f"veth{number}"


class _Carrier:
    """The cable is whole while both its ends are up."""

    def __init__(self, end: CableEnd, iface: Interface, other: Interface) -> None:
        self._end, self._iface, self._other = end, iface, other

    def __call__(self) -> None:
        self._end.plug(self._iface.up and self._other.up)


class _Removal:
    """With one end goes the other, wherever it is."""

    def __init__(self, other: Interface) -> None:
        self._other = other

    def __call__(self) -> None:
        other = self._other
        other.link = None
        if other.netns is not None:
            other.netns.remove_interface(other)
