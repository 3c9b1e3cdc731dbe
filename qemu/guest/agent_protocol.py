"""The guest agent's protocol, host side, sans-IO: bytes to frames and back (agent/agent.h is the other side).

A frame is a 12-byte header (u32 payload length, u16 type, u16 zero, u32 id; little-endian) and at most 64 KiB of
payload. Ids are chosen by the host, one per command; 0 is the session itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from qemu.guest.errors import AgentError

VERSION: Final = 1
MAX_PAYLOAD: Final = 65536
#: Bytes of standard input a command may be sent before the agent grants more.
STDIN_WINDOW: Final = 65536
#: Bytes of each output stream the agent may send before we grant more.
OUTPUT_WINDOW: Final = 1 << 20
MAX_SEED_BYTES: Final = 512

_HEADER: Final = struct.Struct("<IHHI")
_RUN: Final = struct.Struct("<IHHHH")
_EXIT: Final = struct.Struct("<IIQQ")
_PAIR: Final = struct.Struct("<II")
_RUN_CLEAR_ENV: Final = 1
_RUN_NO_STDIN: Final = 2


class Type(IntEnum):
    HELLO = 1
    RUN = 2
    STDIN = 3
    CREDIT = 4
    KILL = 5
    POWEROFF = 6
    SEED = 7
    TIME = 8
    STARTED = 16
    STDOUT = 17
    STDERR = 18
    EXIT = 19
    DONE = 20
    ERROR = 21


#: How an agent's HELLO looks behind its length: type, zero, id 0, our version, zero. No command's output begins so by
#: chance, and who sends it on purpose harms only his own test.
_HELLO_LENGTH_BYTES: Final = 4
_HELLO_MARK: Final = struct.pack("<HHIII", Type.HELLO, 0, 0, VERSION, 0)

#: What an agent may send; everything else from it is garbage.
_FROM_AGENT: Final = frozenset(
    (Type.HELLO, Type.CREDIT, Type.STARTED, Type.STDOUT, Type.STDERR, Type.EXIT, Type.DONE, Type.ERROR)
)


class Frame(NamedTuple):
    type: Type
    id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended. `code` is its exit code, or the signal's number if `signaled`."""

    signaled: bool
    code: int
    wall_us: int  #: microseconds of the guest's clock from fork to end
    cpu_us: int  #: microseconds of CPU time it and its waited-for children used


class Decoder:
    """Cuts a byte stream into frames. After it raised once, the stream is worthless.

    With `resume` everything up to the first HELLO is passed over: the stream may begin anywhere.
    """

    def __init__(self, *, resume: bool = False) -> None:
        self._pending = bytearray()
        self._seeking = resume

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by `data`. Raises AgentError for bytes that no agent sends."""
        pending = self._pending
        pending += data
        if self._seeking and not self._found_hello():
            return []
        frames: list[Frame] = []
        at = 0
        while len(pending) - at >= _HEADER.size:
            length, kind, zero, number = _HEADER.unpack_from(pending, at)
            if length > MAX_PAYLOAD or zero or kind not in _FROM_AGENT:
                raise AgentError(
                    f"the agent sent no frame of its protocol (type {kind}, {length} bytes): is something else "
                    "writing to the virtio-serial port?"
                )
            end = at + _HEADER.size + length
            if end > len(pending):
                break
            frames.append(Frame(Type(kind), number, bytes(pending[at + _HEADER.size : end])))
            at = end
        del pending[:at]
        return frames

    def _found_hello(self) -> bool:
        """Drop what is before the first HELLO that an agent of our version sends."""
        pending = self._pending
        at = pending.find(_HELLO_MARK)
        while at >= 0:
            start = at - _HELLO_LENGTH_BYTES
            if start >= 0 and int.from_bytes(pending[start:at], "little") <= MAX_PAYLOAD:
                del pending[:start]
                self._seeking = False
                return True
            at = pending.find(_HELLO_MARK, at + 1)
        del pending[: -(_HELLO_LENGTH_BYTES + len(_HELLO_MARK))]
        return False


def encode(kind: Type, number: int, payload: bytes = b"") -> bytes:
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(payload)} bytes: a frame holds at most {MAX_PAYLOAD}")
    return _HEADER.pack(len(payload), kind, 0, number) + payload


def hello() -> bytes:
    return encode(Type.HELLO, 0, _PAIR.pack(VERSION, 0))


def run(
    number: int,
    argv: Sequence[str | bytes],
    *,
    env: Mapping[str, str] | None = None,
    clear_env: bool = False,
    cwd: str = "",
    stdin: bool = True,
    window: int = OUTPUT_WINDOW,
) -> bytes:
    """The request to start `argv`. `env` is added to the agent's environment, or replaces it with `clear_env`.

    Raises ValueError if it holds a NUL, is empty or does not fit into one frame.
    """
    variables = [f"{key}={value}" for key, value in (env or {}).items()]
    strings = [_encoded(word) for word in (cwd, *argv, *variables)]
    if not argv or any(b"\0" in word for word in strings):
        raise ValueError("a command needs at least its name, and no NUL in any word")
    flags = (_RUN_CLEAR_ENV if clear_env else 0) | (0 if stdin else _RUN_NO_STDIN)
    text = b"".join(word + b"\0" for word in strings)
    if _RUN.size + len(text) > MAX_PAYLOAD:
        raise ValueError(f"command and environment of {len(text)} bytes: at most {MAX_PAYLOAD - _RUN.size} fit")
    return encode(Type.RUN, number, _RUN.pack(window, len(argv), len(variables), flags, 0) + text)


def credit(number: int, stream: int, amount: int) -> bytes:
    """Let the agent send `amount` further bytes of `stream` (1 stdout, 2 stderr)."""
    return encode(Type.CREDIT, number, _PAIR.pack(stream, amount))


def kill(number: int, signal: int) -> bytes:
    return encode(Type.KILL, number, struct.pack("<I", signal))


def set_time(number: int, nanoseconds: int) -> bytes:
    """Set the guest's real-time clock to `nanoseconds` since 1970."""
    return encode(Type.TIME, number, struct.pack("<Q", nanoseconds))


def parse_exit(payload: bytes) -> Exit:
    kind, code, wall, cpu = _unpack(_EXIT, payload, "EXIT")
    return Exit(kind == 1, code, wall, cpu)


def parse_credit(payload: bytes) -> int:
    """Bytes of standard input granted."""
    stream, amount = _unpack(_PAIR, payload, "CREDIT")
    if stream != 0:
        raise AgentError(f"the agent granted credit for stream {stream}, which it does not read")
    return amount


def parse_done(payload: bytes) -> int:
    """The errno of a SEED or TIME request, 0 for success."""
    return _unpack(struct.Struct("<I"), payload, "DONE")[0]


def parse_hello(payload: bytes) -> list[tuple[str, str]]:
    """The agent's report: (key, value) pairs; "problem" may come several times."""
    if len(payload) < _PAIR.size or _PAIR.unpack_from(payload)[0] != VERSION:
        raise AgentError("the agent answered HELLO with another protocol version: rebuild it (remove the cache)")
    lines = payload[_PAIR.size :].decode(errors="replace").splitlines()
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def _encoded(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else word.encode(errors="surrogateescape")


def _unpack(layout: struct.Struct, payload: bytes, what: str) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise AgentError(f"the agent's {what} has {len(payload)} bytes instead of {layout.size}")
    return layout.unpack(payload)
