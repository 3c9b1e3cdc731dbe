"""Credit: how much each side of a vsock stream may send (virtio 1.3 section 5.10.6.3; row VS-12).

Theory of operation
-------------------
Every packet carries two 32-bit numbers about the direction *towards* its sender: `buf_alloc`, the size of its receive
buffer, and `fwd_cnt`, how many bytes its user has consumed since the connection began. A sender that counts what it
sent (`tx_cnt`) may send ``buf_alloc - (tx_cnt - fwd_cnt)`` more, modulo 2**32. A Linux receiver drops what exceeds that
without a word, so this must be exact.

Here the counts are Python ints that never wrap; only what goes on or comes from the wire is 32 bits wide. A received
`fwd_cnt` is placed on the unbounded line next to the last one:

* up to what was sent: normal;
* behind the last one: packets prepared at the same time by two threads of a guest kernel may overtake each other; the
  older number is ignored;
* ahead of what was sent: a lie. It would make the free space larger than the buffer; the connection is to be reset.

In the other direction the *edge* is kept: the highest count ever granted. A buffer may shrink while packets are under
way, but what was granted stays granted; what goes beyond it was never allowed, and the connection is to be reset.
"""

from __future__ import annotations

from typing import Final

from stack.wire.vsock import MAX_PAYLOAD

MASK: Final = 0xFFFFFFFF
HALF: Final = 1 << 31
#: A credit update is sent once less than this of the buffer is left unreported: as Linux does.
UPDATE_BELOW: Final = MAX_PAYLOAD


class Credit:
    """Both directions of one connection. Sizes and counts are bytes."""

    __slots__ = ("buffer", "consumed", "edge", "peer_buffer", "peer_consumed", "received", "reported", "sent")

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer  #: our receive buffer: `buf_alloc`
        self.received = 0  #: from the peer
        self.consumed = 0  #: by our user: `fwd_cnt`
        self.reported = 0  #: the `consumed` that the peer was told last
        self.edge = 0  #: `received` must not pass this
        self.sent = 0  #: to the peer: `tx_cnt`
        self.peer_buffer = 0
        self.peer_consumed = 0

    @property
    def free(self) -> int:
        """Bytes that may be sent now; never negative, however far the peer shrank its buffer.

        Linux also limits what is under way to the sender's own buffer size, which bounds the memory a peer with a huge
        buffer can make us hold.
        """
        return max(0, min(self.peer_buffer, self.buffer) - (self.sent - self.peer_consumed))

    @property
    def unreported(self) -> int:
        """Bytes consumed that the peer does not know of."""
        return self.consumed - self.reported

    def hear(self, buf_alloc: int, fwd_cnt: int) -> bool:
        """Take the numbers of a packet that arrived. False: they cannot be true."""
        ahead = (fwd_cnt - self.peer_consumed) & MASK
        if ahead <= self.sent - self.peer_consumed:
            self.peer_consumed += ahead
        elif ahead < HALF:
            return False
        self.peer_buffer = buf_alloc
        return True

    @property
    def numbers(self) -> tuple[int, int]:
        """What `tell` would answer."""
        return self.buffer & MASK, self.consumed & MASK

    def tell(self) -> tuple[int, int]:
        """(buf_alloc, fwd_cnt) for a packet that is leaving now."""
        self.reported = self.consumed
        self.edge = max(self.edge, self.consumed + self.buffer)
        return self.numbers

    def receive(self, length: int) -> bool:
        """Count a payload that arrived. False, and nothing counted: it goes beyond what was granted."""
        if self.received + length > self.edge:
            return False
        self.received += length
        return True

    def consume(self, length: int, wanted: int) -> bool:
        """Our user took `length` bytes. True: the peer should be told now.

        `wanted` is what the user waits for at least (SO_RCVLOWAT): the peer must be allowed to send that much.
        """
        self.consumed += length
        unreported = self.unreported
        if not unreported:
            return False
        # Linux guests (6.x) keep no more under way than their own buffer holds, however large ours is.
        window = min(self.buffer, self.peer_buffer)
        return window - unreported < UPDATE_BELOW or self.edge - self.consumed < wanted
