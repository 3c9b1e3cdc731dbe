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
