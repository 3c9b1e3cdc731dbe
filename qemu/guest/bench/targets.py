"""What the rows are to reach, as ratios within one run on two cores without KVM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from qemu.guest.bench.figure import Row
from qemu.guest.bench.peers import OURS, PASST, SLIRP, TAP
from qemu.guest.bench.resources import IDLE

#: Whichever peer is best in that row.
BEST: Final = "best peer"
#: Copying the same bytes twice, measured beside the driver rig's rows.
COPIES: Final = "two copies"
#: No peer: the figure itself.
ABSOLUTE: Final = ""


@dataclass(frozen=True, slots=True)
class Target:
    """`row` of `section` is to be at least (`most`: at most) `bound` times `peer`, or `bound` itself without a peer."""

    section: str
    row: str
    peer: str
    bound: float
    most: bool = False

    @property
    def text(self) -> str:
        bound = f"{self.bound / 1e6:g} M" if self.bound >= 1e6 else f"{self.bound:g}"
        return f"{'<=' if self.most else '>='} {bound}{f' x {self.peer}' if self.peer else ''}"


@dataclass(frozen=True, slots=True)
class Judged:
    """A target and what was measured; `met` is None where the peer is missing."""

    target: Target
    value: float
    met: bool | None

    @property
    def verdict(self) -> str:
        return "not comparable" if self.met is None else "met" if self.met else "not met"

    def as_dict(self) -> dict[str, Any]:
        target = self.target
        return {"row": target.row, "section": target.section, "target": target.text, "value": self.value} | {
            "met": self.met
        }


MTU_1500: Final = "guest at MTU 1500"
MTU_65520: Final = "guest at MTU 65520"
NO_OFFLOAD: Final = "guest without offloads"
NEIGHBOURS: Final = "busy neighbour"
POLLING: Final = "polling"
RIG: Final = "driver rig"
PAIRS: Final = "two queue pairs, two threads"
ONE_THREAD: Final = "one thread"
#: Frames that C alone moves, with checksums to verify on the way: the row two threads are judged by.
SWITCHED: Final = "1514-byte frames switched to two pairs"

TARGETS: Final = (
    Target(MTU_1500, "TCP guest to host", PASST, 2.0),
    Target(MTU_1500, "TCP guest to host", SLIRP, 8.0),
    Target(MTU_1500, "TCP guest to host", TAP, 1.0),
    Target(MTU_1500, "TCP host to guest", PASST, 1.5),
    Target(MTU_1500, "TCP host to guest", TAP, 1.2),
    Target(MTU_65520, "TCP host to guest", PASST, 1.0),
    Target(MTU_1500, "TCP request/response, median", BEST, 0.85, most=True),
    Target(MTU_1500, "TCP connect/request/close", BEST, 1.2),
    Target(MTU_1500, IDLE, ABSOLUTE, 0.1, most=True),
    Target(RIG, "TCP driver to socket, 64 KiB superframes", COPIES, 0.5),
    Target(RIG, "TCP socket to driver, 64 KiB superframes", COPIES, 0.5),
    # Half of what a prototype without timers or congestion control had.
    Target(RIG, "TCP driver to socket, 1500-byte frames, no offload", ABSOLUTE, 3.5),
    Target(RIG, "ring, 64-byte frames read one by one", ABSOLUTE, 4e6),
    Target(RIG, "UDP driver to socket, 64-byte frames, recvmmsg", ABSOLUTE, 1e6),
    Target(RIG, "round trip of a 1-byte segment, median", ABSOLUTE, 12.0, most=True),
    Target(RIG, "switch, 64-byte frames between two guests", ABSOLUTE, 5e6),
    Target(PAIRS, SWITCHED, ONE_THREAD, 1.5),
)
_PEERS: Final = (PASST, SLIRP, TAP)


def of(section: str, name: str) -> list[Target]:
    return [target for target in TARGETS if (target.section, target.row) == (section, name)]


def judge(section: str, row: Row) -> list[Judged]:
    """Each of the row's targets with the verdict. Nothing for a row without targets, or without figures of ours."""
    if not row.figures.get(OURS):
        return []
    judged = []
    for target in of(section, row.name):
        peer = row.best(_PEERS) if target.peer == BEST else target.peer
        if target.peer and not row.figures.get(peer):
            judged.append(Judged(target, 0.0, None))
            continue
        value = row.median(OURS) / (row.median(peer) if target.peer else 1.0)
        judged.append(Judged(target, value, value <= target.bound if target.most else value >= target.bound))
    return judged
