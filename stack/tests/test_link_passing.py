"""Devices around another one that mostly pass everything on (`stack.link.passing`): lines and recorders."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest

from stack.link.capture import INBOUND, OUTBOUND, Capture
from stack.link.capture_ring import CaptureRing
from stack.link.device import NEEDS_CSUM, NOTHING_LANDED, Buffer, LinkDevice, TxFacts, TxFrame, VolleyHead, Wanted
from stack.link.impaired import ImpairedDevice
from stack.link.impairment import Impairment
from stack.link.passing import PassingDevice
from stack.link.volley import unrolled
from stack.scheduler import Scheduler
from stack.testing.links import RecorderDevice
from stack.tests.able_device import ABILITIES, AbleDevice

WANTED: Wanted = (bytes(16), bytes(12), 0, 0, 0, 0, 0, 40, 200)
PLAIN: TxFacts = (0, 0, 0, 0, 0, 0)
SUPER: TxFacts = (NEEDS_CSUM, 1, 14, 40, 0, 0)


def scheduler() -> Scheduler:
    return Scheduler(rng=random.Random(1))


def line(device: LinkDevice) -> PassingDevice:
    return ImpairedDevice(scheduler(), device)


def bad_line(device: LinkDevice) -> PassingDevice:
    line = ImpairedDevice(scheduler(), device)
    line.impair(Impairment())
    return line


def recorded(device: LinkDevice) -> PassingDevice:
    return CaptureRing(scheduler()).tap(device, "eth0")


def paused(device: LinkDevice) -> PassingDevice:
    ring = CaptureRing(scheduler())
    ring.paused = True
    return ring.tap(device, "eth0")


def recorded_line(device: LinkDevice) -> PassingDevice:
    return recorded(line(device))


@pytest.mark.parametrize("ability", ABILITIES)
@pytest.mark.parametrize("device", [RecorderDevice, AbleDevice])
@pytest.mark.parametrize("around", [line, bad_line, recorded, paused, recorded_line])
def test_each_can_what_the_device_inside_can(
    around: Callable[[LinkDevice], PassingDevice], device: type[LinkDevice], ability: type
) -> None:
    inside = device()
    assert isinstance(around(inside), ability) == isinstance(inside, ability)


class Held:
    """A tapped device whose methods were taken when it was plugged in, as an interface does."""

    def __init__(self) -> None:
        self.inside = AbleDevice()
        self.ring = CaptureRing(scheduler())
        tap: Any = self.ring.tap(self.inside, "eth0")
        self.coalesced, self.landing, self.linger = tap.receive_coalesced, tap.receive_landing, tap.linger
        self.alone, self.volley = tap.transmit_alone, tap.transmit_volley

    def kept(self) -> list[tuple[int, bytes, int, int]]:
        """What was recorded since the last call."""
        kept = [(each.direction, each.data, each.gso_size, each.header_length) for each in self.ring.frames]
        self.ring.frames.clear()
        return kept


@pytest.mark.parametrize("recording", [False, True])
def test_a_recorder_may_begin_and_end_between_any_two_calls(recording: bool) -> None:
    """While it records, frames come one by one; what leaves, leaves as ever."""
    held = Held()
    for begun in (False, recording, False, recording):
        held.ring.paused = not begun
        held.inside.feed(b"a" * 60, b"b" * 60)
        frames, count, size = held.coalesced(64)
        assert (len(frames), count, size) == (2 if begun else 1, 2, 120)
        assert held.kept() == ([(INBOUND, b"a" * 60, 0, 0), (INBOUND, b"b" * 60, 0, 0)] if begun else [])
        held.inside.feed(b"c" * 60, b"d" * 60)
        frames, count, size, landed = held.landing(64, WANTED, memoryview(bytearray(200)))
        assert (len(frames), count, size, landed == NOTHING_LANDED) == (2 if begun else 0, 2, 120, begun)
        assert held.kept() == ([(INBOUND, b"c" * 60, 0, 0), (INBOUND, b"d" * 60, 0, 0)] if begun else [])
        assert held.alone((b"h" * 14, b"e" * 46), PLAIN)
        assert held.kept() == ([(OUTBOUND, b"h" * 14 + b"e" * 46, 0, 0)] if begun else [])
        head, last = (b"abcdefgh", SUPER, 100), (b"ABCDEFGH", PLAIN, 30)
        assert held.volley(head, last, 3, (2, 0x61626364), [b"x" * 150, memoryview(b"y" * 80)]) == 3
        expected = [
            (OUTBOUND, b"ababcdgh" + b"x" * 100, 40, 14),
            (OUTBOUND, b"ababc\xc8gh" + b"x" * 50 + b"y" * 50, 40, 14),
            (OUTBOUND, b"ABabd,GH" + b"y" * 30, 0, 0),
        ]
        assert held.kept() == (expected if begun else [])
        held.linger()
    assert held.inside.lingered == 4


def test_only_what_was_accepted_is_recorded() -> None:
    held = Held()
    held.inside.room = 0
    head = b"h" * 14, PLAIN, 50
    assert not held.alone((b"e" * 60,), PLAIN)
    assert not held.volley(head, head, 2, (0, 0), [bytes(100)])
    assert held.kept() == []


def test_a_capture_that_is_closed_is_in_nobodys_way() -> None:
    capture = Capture(io.BytesIO(), scheduler())
    inside = AbleDevice()
    tap: Any = capture.tap(inside, "eth0")
    assert not tap.passes
    capture.close()
    assert tap.passes
    inside.feed(b"a" * 60, b"b" * 60)
    assert len(tap.receive_coalesced(64)[0]) == 1
    assert (capture.packets, capture.missed) == (0, 0)


def cut(rng: random.Random, data: bytes) -> list[Buffer]:
    """The same bytes in parts, some of them empty."""
    ends = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(6)))
    kinds: tuple[Callable[[bytes], Buffer], ...] = (bytes, bytearray, memoryview)
    return [rng.choice(kinds)(data[a:b]) for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


@pytest.mark.parametrize("seed", range(50))
def test_a_volley_is_unrolled_into_its_frames(seed: int) -> None:
    """Made here the other way round: from frames to what they have in common."""
    rng = random.Random(seed)
    count, at, first = rng.randrange(2, 9), rng.randrange(11), rng.choice((0, rng.getrandbits(32), 0xFFFFFF00))
    size = rng.randrange(1, 3000)
    sizes = [size] * (count - 1) + [rng.randrange(1, size + 1)]
    heads: tuple[VolleyHead, VolleyHead] = (rng.randbytes(14), SUPER, size), (rng.randbytes(14), PLAIN, sizes[-1])
    payload = rng.randbytes(sum(sizes))
    frames: list[tuple[bytes, TxFacts]] = []
    begin = 0
    for each in sizes:
        header, facts, _ = heads[len(frames) == count - 1]
        number = ((first + begin) % 2**32).to_bytes(4, "big")
        frames.append((header[:at] + number + header[at + 4 :] + payload[begin : begin + each], facts))
        begin += each
    made: list[TxFrame] = list(unrolled(*heads, count, (at, first), cut(rng, payload)))
    assert [(b"".join(parts), tuple(facts)) for parts, *facts in made] == frames
