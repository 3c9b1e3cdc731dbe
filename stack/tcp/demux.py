"""Who a segment is for: connections by 4-tuple, then listeners by address and port.

A connection's key is (remote address, local address, both ports as one 32-bit number): what an arriving segment has at
hand, the ports being its first four bytes. Half-open connections and those in TIME-WAIT are found the same way
(`minisocks`). Listeners are looked up by the exact local address first, then by the wildcard of its family, then by
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

ANY4: Final = bytes(4)
ANY6: Final = bytes(16)


class Demux:
    __slots__ = ("connections", "listeners", "minisocks")

    def __init__(self) -> None:
        self.connections: dict[Key, Connection] = {}
        self.minisocks: dict[Key, Minisock] = {}
        self.listeners: dict[tuple[bytes, int], list[Listener]] = {}

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

    def listener(self, key: Key) -> Listener | None:
        """The listener for a segment with this key, None without one."""
        local = key[1]
        port = key[2] & 0xFFFF
        listeners = self.listeners
        group = listeners.get((local, port))
        if group is None:
            group = listeners.get((ANY4 if len(local) == 4 else ANY6, port))
        if group is None and len(local) == 4:
            group = [one for one in listeners.get((ANY6, port), ()) if not one.bound.v6only]
        if not group:
            return None
        if len(group) == 1:
            return group[0]
        # Not hash(): that of bytes differs from run to run, and a seed must reproduce a run. Scaled, not modulo, as
        # Linux: a listener more or less moves as few flows as can be.
        return group[crc32(key[0] + key[1] + key[2].to_bytes(4, "big")) * len(group) >> 32]
