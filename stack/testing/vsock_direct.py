"""A scripted guest whose ring has so many buffers, and who is given bytes straight from sockets as a device does."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

from stack.testing.vsock import GUEST_CID, ScriptedGuest
from stack.vsock.transport import VsockTx
from stack.wire.vsock import HEADER

#: Bytes of one buffer and the number of them in a Linux guest's receive ring.
BUFFER: Final = 4096
BUFFERS: Final = 128
_PORTION: Final = BUFFER - HEADER.size


class DirectGuest(ScriptedGuest):
    """Offers `receive_from`; every packet takes buffers, which come back when the guest `drain`s them."""

    def __init__(self, guest_cid: int = GUEST_CID, *, buffers: int = BUFFERS) -> None:
        super().__init__(guest_cid)
        self.buffers = buffers  #: free ones
        self.parched = False
        self._held: deque[tuple[VsockTx, int]] = deque()

    def transmit(self, burst: Sequence[VsockTx]) -> int:
        count = self.partial = 0
        for packet in burst:
            cost = -(-max(len(packet[9]), 1) // _PORTION)
            if cost > self.buffers:
                self.partial = self.buffers * _PORTION
                if self.partial:
                    self._hold((*packet[:9], bytes(packet[9][: self.partial])), self.buffers)
                break
            self._hold((*packet[:9], bytes(packet[9])), cost)
            count += 1
        return count

    def receive_from(self, packet: VsockTx, fd: int, limit: int) -> int | None:
        """As `vhost_user.VsockDevice.receive_from`."""
        if not self.buffers:
            self.parched = True
            return None
        with socket.socket(fileno=fd) as sock:
            try:
                data = sock.recv(min(limit, self.buffers * _PORTION), socket.MSG_DONTWAIT)
            finally:
                sock.detach()  # it is its owner's
        self.parched = False
        for at in range(0, len(data), _PORTION):
            self._hold((*packet[:9], data[at : at + _PORTION]), 1)
        return len(data)

    @property
    def roomy(self) -> bool:
        return not self.parched or self.buffers > 0

    def arm(self) -> bool:
        return super().arm() or (self.parched and self.buffers > 0)

    def drain(self, buffers: int) -> None:
        """The guest takes what lies in up to so many buffers, and gives them back."""
        while self._held and self._held[0][1] <= buffers:
            packet, cost = self._held.popleft()
            buffers -= cost
            self.buffers += cost
            self.sent.append(packet)

    def _hold(self, packet: VsockTx, cost: int) -> None:
        self._held.append((packet, cost))
        self.buffers -= cost
