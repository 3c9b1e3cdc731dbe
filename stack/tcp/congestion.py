"""Congestion control: how much may be in flight. An object per connection, chosen by name (TCP_CONGESTION)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stack.tcp.algorithm import UNLIMITED, CongestionControl, initial_window
from stack.tcp.bbr import Bbr
from stack.tcp.cubic import Cubic
from stack.tcp.reno import NewReno

__all__ = ["ALGORITHMS", "UNLIMITED", "Bbr", "CongestionControl", "Cubic", "NewReno", "initial_window"]

#: TCP_CONGESTION names this package knows, as Linux has them: each makes one from (MSS, initial window in segments).
ALGORITHMS: Final[dict[str, Callable[[int, int], CongestionControl]]] = {
    "bbr": Bbr,
    "cubic": Cubic,
    "reno": NewReno,
}
