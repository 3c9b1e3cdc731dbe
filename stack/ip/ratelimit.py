"""How many ICMP errors we send: a token bucket for all together and one per peer (RFC 1812 4.3.2.8, RFC 4443 2.4 f)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_S

if TYPE_CHECKING:
    from stack.scheduler import Scheduler

#: Linux: net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst.
GLOBAL_RATE: Final = 1000
GLOBAL_BURST: Final = 50
#: Linux: net.ipv4.icmp_ratelimit of 1000 ms with XRLIM_BURST_FACTOR.
PEER_RATE: Final = 1
PEER_BURST: Final = 6
MAX_PEERS: Final = 1024


class TokenBucket:
    """`rate` tokens a second, `burst` at most."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: int, burst: int, now: int) -> None:
        self._rate = rate
        self._burst = burst * NS_PER_S
        self._tokens = self._burst  # in units of a billionth of a token
        self._at = now

    def take(self, now: int) -> bool:
        """Take one token at time `now` (ns); False if there is none."""
        tokens = self._tokens + (now - self._at) * self._rate
        self._at = now
        self._tokens = min(tokens, self._burst)
        if self._tokens < NS_PER_S:
            return False
        self._tokens -= NS_PER_S
        return True


class IcmpRateLimit:
    """Asked before every ICMP error that leaves the machine."""

    __slots__ = ("_everybody", "_peers", "_scheduler")

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._everybody = TokenBucket(GLOBAL_RATE, GLOBAL_BURST, scheduler.now)
        self._peers: dict[bytes, TokenBucket] = {}

    def __len__(self) -> int:
        """Peers remembered."""
        return len(self._peers)

    def allow(self, peer: bytes) -> bool:
        """May an error be sent to `peer` now?"""
        now = self._scheduler.now
        bucket = self._peers.get(peer)
        if bucket is None:
            if len(self._peers) >= MAX_PEERS:
                del self._peers[next(iter(self._peers))]  # the oldest; forgetting it grants at most one burst more
            bucket = self._peers[peer] = TokenBucket(PEER_RATE, PEER_BURST, now)
        return bucket.take(now) and self._everybody.take(now)
