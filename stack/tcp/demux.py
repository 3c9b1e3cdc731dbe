"""Who a segment is for: connections by 4-tuple, then listeners by address and port.

A connection's key is (remote address, local address, both ports as one 32-bit number): what an arriving segment has at
hand, the ports being its first four bytes. Of what is tied to one interface (SO_BINDTODEVICE; a link-local peer) that
one's index stands above the ports: `tied`. So a segment is looked for as it is, and only then, if anything was ever
tied, as one of the interface it came in by: two links may use the same addresses. Half-open connections and those in
TIME-WAIT are found the same way (`minisocks`).

Listeners are looked up by the exact local address first, then by the wildcard of its family, then by
the dual-stack wildcard (row TCP-38). Several listeners of one address and port (SO_REUSEPORT) share by a hash of the
4-tuple, so that a peer's retransmissions meet the same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias
from zlib import crc32

if TYPE_CHECKING:
    from stack.tcp.connection import Connection
    from stack.tcp.listener import Listener
    from stack.tcp.minisock import Minisock

Key: TypeAlias = tuple[bytes, bytes, int]

_PORTS: Final = 0xFFFFFFFF
_TIE_SHIFT: Final = 32
ANY4: Final = bytes(4)
ANY6: Final = bytes(16)


def flow_key(key: Key) -> bytes:
    """Addresses and ports of a key as they are in a frame of a segment, one behind the other."""
    return key[0] + key[1] + (key[2] & _PORTS).to_bytes(4, "big")


class Demux:
    __slots__ = ("connections", "listeners", "minisocks", "ties")

    def __init__(self) -> None:
        self.connections: dict[Key, Connection] = {}
        self.minisocks: dict[Key, Minisock] = {}
        self.listeners: dict[tuple[bytes, int], list[Listener]] = {}
        self.ties = False  #: something was tied to an interface

    def add_listener(self, listener: Listener) -> None:
        self.listeners.setdefault(listener.local, []).append(listener)

    def remove_listener(self, listener: Listener) -> None:
        group = self.listeners.get(listener.local)
        if group and listener in group:
            group.remove(listener)
            if not group:
                del self.listeners[listener.local]

    def group(self, listener: Listener) -> list[Listener]:
        """`listener` and those it shares address and port with."""
        return self.listeners.get(listener.local) or [listener]

    def tied(self, key: Key, ifindex: int) -> Key:
        """The key of what has `key` on one interface only; 0: of what takes segments from all of them."""
        if not ifindex:
            return key
        self.ties = True
        return key[0], key[1], key[2] & _PORTS | ifindex << _TIE_SHIFT

    def found(self, key: Key, ifindex: int) -> Connection | Minisock | None:
        """The connection, half-open or in TIME-WAIT included, for a segment with this key through `ifindex`."""
        found = self.connections.get(key) or self.minisocks.get(key)
        if found is None and self.ties:
            key = self.tied(key, ifindex)
            found = self.connections.get(key) or self.minisocks.get(key)
        return found

    def listener(self, key: Key, ifindex: int) -> Listener | None:
        """The listener for a segment with this key that came in through interface `ifindex`, None without one."""
        local = key[1]
        port = key[2] & 0xFFFF
        listeners = self.listeners
        group = _hearing(listeners.get((local, port)), ifindex)
        if not group:
            group = _hearing(listeners.get((ANY4 if len(local) == 4 else ANY6, port)), ifindex)
        if not group and len(local) == 4:
            both = [one for one in listeners.get((ANY6, port), ()) if not one.bound.v6only]
            group = _hearing(both, ifindex)
        if not group:
            return None
        if len(group) == 1:
            return group[0]
        # Not hash(): that of bytes differs from run to run, and a seed must reproduce a run. Scaled, not modulo, as
        # Linux: a listener more or less moves as few flows as can be.
        return group[crc32(key[0] + key[1] + (key[2] & _PORTS).to_bytes(4, "big")) * len(group) >> 32]


def _hearing(group: list[Listener] | None, ifindex: int) -> list[Listener] | None:
    """Those of `group` that hear the interface: the ones that are there for it alone, or else for all."""
    if not group or (len(group) == 1 and not group[0].options.device):
        return group
    hearing = [one for one in group if one.options.device in (0, ifindex)]
    return [one for one in hearing if one.options.device] or hearing
