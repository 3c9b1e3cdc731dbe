"""Kinds of links that can be made by name (IFLA_INFO_KIND): a registry from kind to factory.

A kind is registered once, by the module that implements it, and made through `create`: by rtnetlink, by a script, by a
test. The factory gets the namespace, the wanted name and *attributes*, a mapping whose keys are:

    ``mac`` (6 bytes), ``mtu`` (int), ``index`` (int), ``link`` (the Interface below it), each only if it was asked for;
    ``data`` (mapping): what the kind itself wants, by the names of its IFLA_INFO_DATA attributes.

It adds the interface to the namespace, down, with ``kind`` set, and returns it; or raises NetError and leaves nothing
behind. What the kind shows of itself is ``Interface.kind_data``; how it holds ports, ``Interface.ports``; what goes
with it, ``Interface.on_removed``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from stack.errors import NetError
from stack.link.dummy import DUMMY_MTU, Dummy

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace
    from stack.scheduler import Randomness

Attributes: TypeAlias = Mapping[str, Any]
Factory: TypeAlias = Callable[["NetNamespace", str, Attributes], "Interface"]

_factories: Final[dict[str, Factory]] = {}


def register(kind: str, factory: Factory) -> None:
    """Make links of `kind` by `factory`. Raises ValueError if the kind is taken."""
    if kind in _factories:
        raise ValueError(f"there is a link kind {kind!r} already")
    _factories[kind] = factory


def kinds() -> tuple[str, ...]:
    """The registered kinds, in order of their names."""
    return tuple(sorted(_factories))


def create(netns: NetNamespace, kind: str, name: str, attributes: Attributes) -> Interface:
    """A new link, down. Raises NetError: EOPNOTSUPP for an unknown kind, EEXIST, EINVAL and what the kind refuses."""
    factory = _factories.get(kind)
    if factory is None:
        raise NetError(errno.EOPNOTSUPP, "Unknown device type")
    return factory(netns, name, attributes)


def random_mac(rng: Randomness) -> bytes:
    """A locally administered unicast address, as Linux's eth_random_addr."""
    first, *rest = rng.getrandbits(48).to_bytes(6, "big")
    return bytes((first & 0xFC | 0x02, *rest))


def _dummy(netns: NetNamespace, name: str, attributes: Attributes) -> Interface:
    mac = attributes.get("mac") or random_mac(netns.scheduler.rng)
    return netns.add_link(
        Dummy(mac=mac),
        name,
        kind="dummy",
        mac=mac,
        mtu=attributes.get("mtu", DUMMY_MTU),
        index=attributes.get("index", 0),
        noarp=True,
    )


def _veth(netns: NetNamespace, name: str, attributes: Attributes) -> Interface:
    from stack.iface import veth

    return veth.create(netns, name, attributes)


def _bridge(netns: NetNamespace, name: str, attributes: Attributes) -> Interface:
    from stack.iface import bridge

    return bridge.create(netns, name, attributes)


def _vlan(netns: NetNamespace, name: str, attributes: Attributes) -> Interface:
    from stack.iface import vlan

    return vlan.create(netns, name, attributes)


def _macvlan(netns: NetNamespace, name: str, attributes: Attributes) -> Interface:
    from stack.iface import macvlan

    return macvlan.create(netns, name, attributes)


for _kind, _factory in (
    ("dummy", _dummy),
    ("veth", _veth),
    ("bridge", _bridge),
    ("vlan", _vlan),
    ("macvlan", _macvlan),
):
    register(_kind, _factory)
