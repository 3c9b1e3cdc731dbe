"""The protocol's host side: frames survive any cut, garbage never does."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu.guest import agent_protocol as protocol
from qemu.guest.agent_protocol import MAX_PAYLOAD, Decoder, Frame, Type
from qemu.guest.errors import AgentError

FROM_AGENT = [Type.HELLO, Type.CREDIT, Type.STARTED, Type.STDOUT, Type.STDERR, Type.EXIT, Type.DONE, Type.ERROR]
frames = st.builds(Frame, st.sampled_from(FROM_AGENT), st.integers(0, 2**32 - 1), st.binary(max_size=300))


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 3000), max_size=12))
def test_frames_come_out_whole_wherever_the_stream_is_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(protocol.encode(*frame) for frame in sent)
    decoder = Decoder()
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    received = [f for at, end in itertools.pairwise(edges) for f in decoder.feed(stream[at:end])]
    assert received == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_agent_error(data: bytes) -> None:
    try:
        Decoder().feed(data)
    except AgentError as error:
        assert "no frame of its protocol" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    "header",
    [(MAX_PAYLOAD + 1, Type.STDOUT, 0, 1), (0, Type.RUN, 0, 1), (0, 99, 0, 1), (0, Type.STDOUT, 1, 1)],
    ids=["too-long", "host-type", "unknown-type", "reserved"],
)
def test_a_lying_header_is_refused_at_once(header: tuple[int, int, int, int]) -> None:
    with pytest.raises(AgentError):
        Decoder().feed(struct.pack("<IHHI", *header))


def test_run_carries_words_and_environment_as_c_strings() -> None:
    data = protocol.run(7, ["a", "b c"], env={"K": "v"}, cwd="/x", window=5)
    length, kind, zero, number = struct.unpack_from("<IHHI", data)
    assert (length, kind, zero, number) == (len(data) - 12, Type.RUN, 0, 7)
    assert struct.unpack_from("<IHHHH", data, 12) == (5, 2, 1, 0, 0)
    assert data[24:] == b"/x\0a\0b c\0K=v\0"


@pytest.mark.parametrize("argv", [[], ["a\0b"]])
def test_run_refuses_what_cannot_be_a_command(argv: list[str]) -> None:
    with pytest.raises(ValueError, match="at least its name, and no NUL"):
        protocol.run(1, argv)


def test_run_refuses_what_does_not_fit_one_frame() -> None:
    with pytest.raises(ValueError, match="at most 65524 fit"):
        protocol.run(1, ["x" * 70000])


def test_exit_tells_signal_from_code() -> None:
    end = protocol.parse_exit(struct.pack("<IIQQ", 1, 9, 1500, 20))
    assert (end.signaled, end.code, end.wall_us, end.cpu_us) == (True, 9, 1500, 20)


@pytest.mark.parametrize("parse", [protocol.parse_exit, protocol.parse_credit, protocol.parse_done])
def test_answers_of_the_wrong_size_are_agent_errors(parse: object) -> None:
    assert callable(parse)
    with pytest.raises(AgentError, match="has 3 bytes instead of"):
        parse(b"abc")


def test_hello_of_another_version_is_told_with_the_remedy() -> None:
    with pytest.raises(AgentError, match="remove the cache"):
        protocol.parse_hello(struct.pack("<II", 2, 0))


def test_hello_keeps_every_problem() -> None:
    report = protocol.parse_hello(struct.pack("<II", 1, 0) + b"kernel=6.1\nproblem=a=b\nproblem=c\n")
    assert report == [("kernel", "6.1"), ("problem", "a=b"), ("problem", "c")]


def test_a_session_that_is_taken_up_again_begins_with_hello() -> None:
    """What is left of the old one, perhaps of the middle of a frame, is passed over, however it is cut."""
    hello = protocol.encode(Type.HELLO, 0, (1).to_bytes(4, "little") + bytes(4) + b"kernel=6.1\n")
    rest = b"\x07\0\0\0" + b"output" * 5000 + protocol.encode(Type.EXIT, 9, bytes(24))
    stream = rest + hello + protocol.encode(Type.STARTED, 10, bytes(4))
    for size in (1, 3, 17, len(stream)):
        decoder = protocol.Decoder(resume=True)
        frames = [frame for at in range(0, len(stream), size) for frame in decoder.feed(stream[at : at + size])]
        assert [(frame.type, frame.id) for frame in frames] == [(Type.HELLO, 0), (Type.STARTED, 10)]
        assert protocol.parse_hello(frames[0].payload) == [("kernel", "6.1")]
