"""What the fuzzer of frames does for hours, for a moment: its corpus, and programs of any bytes."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from stack.fuzz.frame_world import FrameWorld
from stack.fuzz.fuzz_frames import main, seeds


def play(data: bytes) -> None:
    with FrameWorld() as world:
        world.play(data)


def test_frame_programs_of_the_corpus() -> None:
    """Each instruction with plausible operands, and mixtures of all."""
    assert len(seeds()) > 50
    for seed in seeds():
        play(seed)
    assert main([]) == 2


def test_frame_programs_around_the_corpus() -> None:
    """The corpus with bytes changed, added and taken away."""
    rng = random.Random(5)
    for seed in rng.sample(seeds(), 20):
        data = bytearray(seed)
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(2)] = rng.randbytes(rng.randrange(3))
        play(bytes(data))


@given(st.binary(max_size=300))
@settings(max_examples=40, deadline=None)
def test_any_bytes_are_a_frame_program(data: bytes) -> None:
    """Nothing comes out of a poll but what is due; every limit holds."""
    play(data)


def test_frame_programs_are_deterministic() -> None:
    """Two runs of one program leave the same behind, to the drop counter."""
    for seed in seeds()[-3:]:
        left = []
        for _ in range(2):
            with FrameWorld() as world:
                world.play(seed)
                left.append((world.stack.netns.stats(), world.clock(), str(world.tcp.stats)))
        assert left[0] == left[1]


def test_the_world_has_what_frames_are_for() -> None:
    """A connection is established, and what its peer sends reaches the user."""
    with FrameWorld() as world:
        connection = world.connection
        assert connection.connected
        world.play(bytes((6, 128 + 8, 0, 0, 1, 4)) + b"data")
        assert world.client.recv(100) == b"data"
