"""Initial sequence numbers (RFC 6528) and timestamp offsets, from a keyed hash of the 4-tuple."""

from __future__ import annotations

from hashlib import blake2s

from stack.scheduler import NS_PER_US, Randomness
from stack.tcp.seqnum import MASK


class SequenceSource:
    """ISN = M + F(localip, localport, remoteip, remoteport, secretkey), RFC 6528 section 3."""

    __slots__ = ("_secret",)

    def __init__(self, rng: Randomness) -> None:
        self._secret = rng.getrandbits(256).to_bytes(32, "big")

    def draw(self, local: tuple[bytes, int], remote: tuple[bytes, int], now: int) -> tuple[int, int]:
        """(ISN, timestamp offset), 32 bits each. M is a clock of 4 microseconds.

        The offset depends on the 4-tuple alone, so that timestamps go on rising from one incarnation of a connection
        to the next (RFC 7323 section 5.4), as RFC 6191 wants them.
        """
        tuple_ = local[0] + local[1].to_bytes(2, "big") + remote[0] + remote[1].to_bytes(2, "big")
        digest = blake2s(tuple_, key=self._secret, digest_size=8).digest()
        clock = now // (4 * NS_PER_US)
        return (int.from_bytes(digest[:4], "big") + clock) & MASK, int.from_bytes(digest[4:], "big")
