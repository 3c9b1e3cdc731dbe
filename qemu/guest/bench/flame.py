"""Sampled stacks as a flame graph: an SVG whose frames are as wide as their share, Python's and C's in two colours.

Stacks come in the collapsed form that samplers agree on: frames from the outermost to the innermost, separated by
semicolons, then how often they were seen. Threads that wait are seen as often as those that work, so stacks that end
in a wait are left out: what remains is where CPU time goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Final

#: C's frames that mean waiting: for descriptors, for locks, and for the interpreter's own.
_WAITS: Final = re.compile(
    r"^(epoll_wait|epoll_pwait|poll|ppoll|select|recv|read|accept4?|waitpid|wait4|clock_nanosleep|sem_\w+|futex\w*|"
    r"pthread_\w+|PyThread_acquire_lock_timed|lock_PyThread_acquire_lock|take_gil|drop_gil|sock_recv_guts) "
    r"\((?!.*\.py:)"
)
#: How far from the end of a stack such a frame counts: below it come the C library's own, often without names.
_TAIL: Final = 5
_ROW: Final = 17
_WIDTH: Final = 1600
_MARGIN: Final = 12
_HEAD: Final = 54
_LEAST_WIDTH: Final = 0.6
_CHARACTER: Final = 6.6
_PYTHON: Final = re.compile(r"\.pyx?:\d+\)$|<frozen |^<module>")
_BOOTSTRAP: Final = ("Thread._bootstrap", "Thread.run ", "_run_module_as_main", "thread_run", "_bootstrap_inner")


@dataclass(slots=True)
class Frame:
    """One function as called from those above it."""

    name: str
    samples: int = 0
    inner: dict[str, Frame] = field(default_factory=dict)


def parse(text: str) -> list[tuple[list[str], int]]:
    """Collapsed stacks; lines that are none are left out."""
    stacks = []
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        if frames and count.isdigit():
            stacks.append((frames.split(";"), int(count)))
    return stacks


def waits(frames: list[str]) -> bool:
    return any(_WAITS.match(frame) for frame in frames[-_TAIL:])


def tree(stacks: Iterable[tuple[list[str], int]]) -> Frame:
    """Working stacks, joined; what every thread begins with is left out."""
    root = Frame("all")
    for frames, count in stacks:
        if waits(frames):
            continue
        root.samples += count
        frame = root
        for name in _without_bootstrap(frames):
            frame = frame.inner.setdefault(name, Frame(name))
            frame.samples += count
    return root


def _without_bootstrap(frames: list[str]) -> list[str]:
    last = max((i for i, name in enumerate(frames) if name.startswith(_BOOTSTRAP)), default=-1)
    return frames[last + 1 :]


def draw(root: Frame, title: str, note: str = "") -> str:
    """The picture. Every frame says its share when pointed at."""
    depth = _depth(root)
    height = _HEAD + (depth + 1) * _ROW + 2 * _MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="monospace" font-size="11">'
    )
    parts = [
        head,
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="22" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="{_MARGIN}" y="42" fill="#606060">{escape(note)}  Python: blue, C: orange.</text>',
    ]
    _draw(root, root.samples or 1, _MARGIN, 0, _WIDTH - 2 * _MARGIN, parts)
    return "\n".join([*parts, "</svg>", ""])


def _depth(frame: Frame) -> int:
    return 1 + max(map(_depth, frame.inner.values()), default=0)


def _draw(frame: Frame, whole: int, x: float, level: int, width: float, parts: list[str]) -> None:
    y = _HEAD + level * _ROW
    colour = "#e4e4e4" if not level else "#9cc2ea" if _PYTHON.search(frame.name) else "#f2b36b"
    share = f"{escape(frame.name)}: {frame.samples / whole:.1%}"
    parts.append(
        f'<g><title>{share}</title><rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.3):.1f}" height="{_ROW - 1}" '
        f'fill="{colour}" rx="1"/>'
    )
    room = int((width - 6) / _CHARACTER)
    if room >= 4:
        name = frame.name if len(frame.name) <= room else frame.name[: room - 1] + "…"
        parts.append(f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(name)}</text>')
    parts.append("</g>")
    # The widest first: where the time goes reads from left to right.
    for inner in sorted(frame.inner.values(), key=lambda each: -each.samples):
        part = width * inner.samples / frame.samples
        if part >= _LEAST_WIDTH:
            _draw(inner, whole, x, level + 1, part, parts)
        x += part
