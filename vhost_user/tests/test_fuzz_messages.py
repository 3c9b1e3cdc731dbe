"""Any bytes, any descriptors, cut anywhere: nothing leaks, nothing stays, nothing unexpected is raised.

The property test invents front-ends; `python -m vhost_user.fuzz.fuzz_messages` does it guided by coverage, and the
inputs it found worth keeping are played again here.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vhost_user.fuzz
from vhost_user.fuzz.decode import Step, decode
from vhost_user.fuzz.message_world import KINDS, World, whole_start
from vhost_user.message import HEADER, RULES, Request, emit_request

CORPUS = Path(vhost_user.fuzz.__file__).with_name("corpus_messages.txt")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    gc.collect()  # descriptors of earlier tests' garbage are not to be counted
    before = len(os.listdir("/proc/self/fd"))
    logging.getLogger("vhost_user").setLevel(logging.CRITICAL)  # broken rings have a line each
    world = World()
    mapped = world.mappings()
    yield world
    assert world.mappings() == mapped
    world.close()
    logging.getLogger("vhost_user").setLevel(logging.NOTSET)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before  # what others left may have gone meanwhile


def test_the_well_behaved_life_uses_every_request_and_is_never_refused(world: World) -> None:
    assert world.run(whole_start()) == "closed"
    assert {HEADER.unpack_from(step.data)[0] for step in whole_start()} == set(RULES)


def test_the_checks_notice_a_leaked_descriptor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhost_user.connection.Message.close", lambda message: None)
    with pytest.raises(AssertionError, match="descriptors leaked"):
        world.run(whole_start())
    for name in os.listdir("/proc/self/fd"):  # tidy up what was leaked on purpose
        fd = int(name)
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if fd > max(world._own) and ("/memfd:" in target or target == "anon_inode:[eventfd]"):
            os.close(fd)


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 7, 8, 15, 16, 63, 64, 65, 255, 256, 0x10000, 0x3FFFF, 0x40000, 1 << 31, (1 << 32) - 1]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0x7F00_0000_0000 - 16, 0x7F00_0004_0010),
)
FDS = st.lists(st.integers(0, len(KINDS) - 1), max_size=10).map(tuple)


@st.composite
def changed(draw: st.DrawFn) -> Step:
    """A well-behaved message of the start with one number in it, its flags, or its descriptors replaced."""
    data, fds = draw(st.sampled_from(whole_start()))
    body = bytearray(data)
    what = draw(st.integers(0, 3))
    if what <= 1 and len(body) >= HEADER.size + 8:
        width = draw(st.sampled_from([4, 8]))
        at = HEADER.size + width * draw(st.integers(0, (len(body) - HEADER.size) // width - 1))
        body[at : at + width] = (draw(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    elif what == 2:
        body[4] ^= draw(st.integers(0, 255))
    else:
        fds = draw(FDS)
    return Step(bytes(body), fds)


INVENTED = st.builds(
    lambda request, payload, need, fds: Step(emit_request(request, payload, need_reply=need), fds),
    st.one_of(st.sampled_from(list(Request)), st.integers(0, (1 << 32) - 1)),
    st.binary(max_size=80),
    st.booleans(),
    FDS,
)
RAW = st.builds(Step, st.binary(max_size=64), FDS)
LIVES = st.builds(
    lambda head, middle, cut: [*whole_start()[:head], *middle, *whole_start()[head + cut :]],
    st.integers(0, len(whole_start())),
    st.lists(st.one_of(changed(), st.sampled_from(whole_start()), INVENTED, RAW), max_size=12),
    st.integers(0, 3),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=LIVES)
def test_no_front_end_leaves_anything_behind(world: World, steps: list[Step]) -> None:
    world.run(steps)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_program_of_the_fuzzer_leaves_anything_behind(world: World, data: bytes) -> None:
    world.run(decode(data, whole_start()))


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(1, 1200), max_size=40))
def test_cutting_the_stream_anywhere_changes_nothing(world: World, cuts: list[int]) -> None:
    """Messages without descriptors, as one stream in arbitrary pieces: accepted as a whole, as if sent one by one."""
    stream = b"".join(step.data for step in whole_start() if not step.fds and not _needs_memory(step))
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [Step(stream[a:b]) for a, b in itertools.pairwise(edges)]
    assert world.run(pieces) == "closed"


def _needs_memory(step: Step) -> bool:
    return bool(HEADER.unpack_from(step.data)[0] == Request.REM_MEM_REG)


def test_the_fuzzers_corpus(world: World) -> None:
    lines = CORPUS.read_text().split()
    assert len(lines) > 100
    for line in lines:
        world.run(decode(bytes.fromhex(line), whole_start()))
