"""What a Network counts of its own work, and how many items move at a time: histograms, a list increment a burst."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

#: Bucket 0 counts times there was nothing, bucket k those of 2 ** (k - 1) to 2 ** k - 1 items.
BUCKETS: Final = 20


def histogram() -> list[int]:
    """An empty one; count with ``each[size.bit_length()] += 1``."""
    return [0] * BUCKETS


def ranges(counts: list[int]) -> dict[str, int]:
    """The buckets that counted anything, by what they hold: ``{"0": 7, "1": 3, "4-7": 12}``."""
    return {_range(number): count for number, count in enumerate(counts) if count}


def _range(number: int) -> str:
    least, most = (1 << number) >> 1, (1 << number) - 1
    return f"{least}" if least == most or not number else f"{least}-{most}"


class Bursts:
    """What one source of a Network took and sent, burst by burst."""

    __slots__ = ("name", "sent", "taken")

    def __init__(self, name: str, sent: list[int] | None = None) -> None:
        self.name = name
        self.taken = histogram()  #: items served at a time; 0: it was looked at in vain
        self.sent = histogram() if sent is None else sent  #: items its device accepted at a time; 0: it refused

    def __repr__(self) -> str:
        return f"<Bursts {self.name}: taken {ranges(self.taken)}, sent {ranges(self.sent)}>"


@dataclass(slots=True)
class NetworkStats:
    """Counters since creation."""

    calls: int = 0  #: socket calls attempted
    turns: int = 0
    timers: int = 0  #: timer callbacks run
    served: int = 0  #: items of work done by sources
    polls: int = 0  #: times descriptors were looked at without waiting
    sleeps: int = 0  #: times a polling thread went to sleep
    wakeups: int = 0  #: sleeps that a descriptor ended; the others ended by time
    spins: int = 0  #: turns looked in vain without going to sleep
    handovers: int = 0  #: poll tokens passed from thread to thread
    nudges: int = 0  #: sleepers woken for work or deadlines made by other threads
    sources: dict[str, Bursts] = field(default_factory=dict)  #: burst sizes of what is attached, by name
