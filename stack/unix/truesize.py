"""What a queued message costs its sender's buffer: the memory Linux takes for it, not its length (row UNX-12).

SO_SNDBUF limits memory: the `struct sk_buff`, a block of the slab allocator that holds the beginning of the data and
`struct skb_shared_info`, and whole pages for the rest. One byte costs 768 bytes, which is why a socket with a send
buffer of 212992 takes 278 of them. The sizes are those of 64-bit Linux with pages of 4 KiB, measured with SIOCOUTQ.
"""

from __future__ import annotations

from typing import Final

PAGE: Final = 4096
SK_BUFF: Final = 256  # struct sk_buff, as allocated
SHARED_INFO: Final = 320  # struct skb_shared_info, as aligned
SMALLEST_BLOCK: Final = 512  # of the slab allocator, for data and shared info
ALIGNMENT: Final = 64  # SMP_CACHE_BYTES
#: SKB_MAX_HEAD(0): data in the first block of a stream's message, when it has pages too.
STREAM_HEAD: Final = PAGE - SHARED_INFO
#: The most that one message of a stream holds: longer writes are several.
STREAM_CHUNK: Final = STREAM_HEAD + 32768
#: SKB_MAX_ALLOC: a record up to this length is one block.
RECORD_HEAD: Final = 4 * PAGE - SHARED_INFO
RECORD_PAGES: Final = 17 * PAGE  # MAX_SKB_FRAGS pages; what is longer makes the block longer
#: What a sender may not use of its buffer for one record (row UDG-03).
RECORD_OVERHEAD: Final = 32


def _pages(length: int) -> int:
    return (length + PAGE - 1) & -PAGE


def _block(length: int) -> int:
    """struct sk_buff and a block for `length` bytes of data."""
    need = (length + ALIGNMENT - 1 & -ALIGNMENT) + SHARED_INFO
    return SK_BUFF + (SMALLEST_BLOCK if need <= SMALLEST_BLOCK else 1 << (need - 1).bit_length())


def stream_truesize(length: int) -> int:
    """Of a message of a stream, 1 to STREAM_CHUNK bytes long."""
    if length <= STREAM_HEAD:
        return _block(length)
    paged = min(length, _pages(length - STREAM_HEAD))
    return _block(length - paged) + _pages(paged)


def record_truesize(length: int) -> int:
    """Of a datagram or a seqpacket record."""
    if length <= RECORD_HEAD:
        return _block(length)
    paged = min(_pages(length - RECORD_HEAD), RECORD_PAGES)
    return _block(length - paged) + paged


def stream_chunk(sndbuf: int) -> int:
    """The longest message that a stream with this send buffer makes: two are to fit."""
    return min((sndbuf >> 1) - 64, STREAM_CHUNK)
