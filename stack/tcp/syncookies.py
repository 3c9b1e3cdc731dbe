"""SYN cookies: under a flood, the handshake's state travels in our sequence number (RFC 4987 section 3.6).

Theory of operation
-------------------
While the SYN queue is full, a SYN is answered without keeping anything. All that is needed to build the connection from
the ACK that ends the handshake is in that ACK:

* our initial sequence number, acknowledged by it, is
  ``hash0(4-tuple) + their ISN + minutes * 2**24 + (hash1(4-tuple, minutes) + index) % 2**24``, where `index` names one
  of four MSS values. Taking the hashes off again shows the minute; one older than `MAX_AGE` is no cookie of ours. Of
  2**29 guesses one is right.
* the six lowest bits of our timestamp, echoed by it, hold what else the SYN said: ECN, SACK, window scale. Without
  timestamps a connection that came by a cookie has none of these.

This is Linux's scheme; only the hash is another. Cookies are looked for only after a queue was full not long ago.
"""

from __future__ import annotations

from hashlib import blake2s
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_S
from stack.tcp.seqnum import MASK

if TYPE_CHECKING:
    from stack.tcp.demux import Key

PERIOD: Final = 60 * NS_PER_S  # ns; Linux TCP_SYNCOOKIE_PERIOD
MAX_AGE: Final = 2  # periods; Linux MAX_SYNCOOKIE_AGE
VALID: Final = MAX_AGE * PERIOD  # ns after the last overflow in which ACKs are tried as cookies
#: Bytes, ascending; what is common, so that rounding down costs little. As Linux.
MSS4: Final = (536, 1300, 1440, 1460)
MSS6: Final = (1280 - 60, 1480 - 60, 1500 - 60, 9000 - 60)

OFF: Final = 0  # values of TcpConfig.syncookies, as Linux's tcp_syncookies
WHEN_FULL: Final = 1
ALWAYS: Final = 2

_BITS: Final = 24
_MASK24: Final = (1 << _BITS) - 1
_STAMP_BITS: Final = 6
_STAMP_MASK: Final = (1 << _STAMP_BITS) - 1
_NO_SCALING: Final = 0xF
_SACK: Final = 1 << 4
_ECN: Final = 1 << 5


class SynCookies:
    """Makes and checks cookies under one secret of 32 bytes."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _hash(self, key: Key, count: int, which: int) -> int:
        data = (
            key[0] + key[1] + (key[2] & MASK).to_bytes(4, "big") + (count & MASK).to_bytes(4, "big") + bytes((which,))
        )
        return int.from_bytes(blake2s(data, key=self._secret, digest_size=4).digest(), "big")

    def make(self, key: Key, irs: int, mss: int, now: int) -> tuple[int, int]:
        """(our ISN, the MSS it stands for) in answer to a SYN with sequence number `irs` and MSS `mss`."""
        table = MSS4 if len(key[0]) == 4 else MSS6
        index = len(table) - 1
        while index and mss < table[index]:
            index -= 1
        count = now // PERIOD
        low = self._hash(key, count, 1) + index & _MASK24
        return (self._hash(key, 0, 0) + irs + (count << _BITS) + low) & MASK, table[index]

    def check(self, key: Key, irs: int, iss: int, now: int) -> int:
        """The MSS that the cookie `iss` stands for, 0 if it is none of ours or too old."""
        count = now // PERIOD
        cookie = (iss - self._hash(key, 0, 0) - irs) & MASK
        age = (count - (cookie >> _BITS)) & (MASK >> _BITS)
        if age >= MAX_AGE:
            return 0
        table = MSS4 if len(key[0]) == 4 else MSS6
        index = (cookie - self._hash(key, count - age, 1)) & _MASK24
        return table[index] if index < len(table) else 0


def stamp(clock: int, scale: int | None, *, sack: bool, ecn: bool) -> int:
    """The timestamp clock `clock`, moved back by up to 63 ticks so that it says what the SYN said."""
    bits = (_NO_SCALING if scale is None else scale) | (_SACK if sack else 0) | (_ECN if ecn else 0)
    value = clock & ~_STAMP_MASK | bits
    return value if value <= clock else value - (1 << _STAMP_BITS)


def unstamp(value: int) -> tuple[int | None, bool, bool]:
    """(window scale or None, SACK, ECN) from an echoed timestamp, our offset taken off."""
    scale = value & _NO_SCALING
    return None if scale == _NO_SCALING else scale, value & _SACK != 0, value & _ECN != 0
