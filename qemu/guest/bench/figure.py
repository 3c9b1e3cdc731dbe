"""One figure of a bench that is not a comparison of paths, and what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass


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
