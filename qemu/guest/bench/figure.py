"""What a bench finds: rows that compare ways, rates, and single figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity; `beside` says in words what it is compared with, or how it came about."""

    name: str
    value: float
    unit: str
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A rate: per second as the clock counts, and per second of CPU time that our process used for it.

    On a machine that does other things at the same time the second is the steadier one.
    """

    rate: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Row:
    """One measured quantity: a figure per way and round."""

    name: str
    unit: str
    higher_is_better: bool
    figures: dict[str, list[float]]
    notes: dict[str, str] = field(default_factory=dict)  #: by way, why it has no figures

    def median(self, way: str) -> float:
        return median(self.figures[way])

    def spread(self, way: str) -> float:
        """Half of the range, as a fraction of the median."""
        values = self.figures[way]
        middle = median(values)
        return (max(values) - min(values)) / 2 / middle if middle else 0.0

    def ratio(self, way: str, peer: str) -> float:
        """How much better `way` is than `peer`: above 1 is ahead, whatever the unit. 0 if one has no figures."""
        if not self.figures.get(way) or not self.figures.get(peer):
            return 0.0
        ours, theirs = self.median(way), self.median(peer)
        if not ours or not theirs:
            return 0.0
        return ours / theirs if self.higher_is_better else theirs / ours

    def best(self, ways: Iterable[str]) -> str:
        """Whichever of `ways` has the best median; "" if none has any."""
        measured = [way for way in ways if self.figures.get(way)]
        if not measured:
            return ""
        return max(measured, key=self.median) if self.higher_is_better else min(measured, key=self.median)
