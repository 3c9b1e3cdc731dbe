"""Kernel events as NETLINK_KOBJECT_UEVENT carries them: text form, actions, synthetic input.

Pure format; what has events and who hears them is `stack.kobjects`. Rows UE-01, UE-03, UE-05 of section 3.5.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from stack.errors import NetError

#: UEVENT_BUFFER_SIZE and UEVENT_NUM_ENVP of <linux/kobject.h>: bytes and variables of one event's environment.
MAX_BYTES: Final = 2048
MAX_VARIABLES: Final = 64
NO_UUID: Final = "0"

_UUID: Final = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_SYNTHETIC: Final = re.compile(
    rf"(?P<action>[a-z]+)(?: (?P<uuid>{_UUID})(?P<arguments>(?: [0-9A-Za-z]+=[0-9A-Za-z]+)*))?"
)


class Action(StrEnum):
    """What happened to an object; the same words in the same spelling on the wire (UE-03)."""

    ADD = "add"
    REMOVE = "remove"
    CHANGE = "change"
    MOVE = "move"
    ONLINE = "online"
    OFFLINE = "offline"
    BIND = "bind"
    UNBIND = "unbind"


@dataclass(frozen=True, slots=True)
class Uevent:
    """One event. `environment` is what follows SUBSYSTEM, in order, without SEQNUM."""

    action: str
    devpath: str  #: below /sys, as /devices/virtual/net/lo
    subsystem: str
    environment: Mapping[str, str] = field(default_factory=dict)
    seqnum: int = 0  #: counts the events of a Stack from 1

    def emit(self) -> bytes:
        """``ACTION@DEVPATH``, then ``KEY=VALUE`` each, SEQNUM last; every string ends with a zero byte (UE-01)."""
        pairs = {
            "ACTION": self.action,
            "DEVPATH": self.devpath,
            "SUBSYSTEM": self.subsystem,
            **self.environment,
            "SEQNUM": str(self.seqnum),
        }
        strings = [f"{self.action}@{self.devpath}", *(f"{key}={value}" for key, value in pairs.items())]
        return "".join(f"{each}\0" for each in strings).encode("utf-8", "surrogateescape")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The opposite of `emit`, for readers of the socket. Raises ValueError for what is no kernel event."""
        head, *strings = data.decode("utf-8", "surrogateescape").split("\0")
        pairs = dict(each.partition("=")[::2] for each in strings if each)
        try:
            action, devpath, subsystem, seqnum = (pairs.pop(key) for key in _FIXED)
        except KeyError as missing:
            raise ValueError(f"no kernel event, it lacks {missing}: {data[:80]!r}") from None
        if head != f"{action}@{devpath}" or not seqnum.isdecimal() or not data.endswith(b"\0"):
            raise ValueError(f"no kernel event: {data[:80]!r}")
        return cls(action, devpath, subsystem, pairs, int(seqnum))

    def __str__(self) -> str:
        return f"{self.seqnum} {self.action} {self.devpath} ({self.subsystem})"


_FIXED: Final = ("ACTION", "DEVPATH", "SUBSYSTEM", "SEQNUM")


def parse_synthetic(text: bytes) -> tuple[Action, dict[str, str]] | None:
    """What is written to an object's uevent file: ``ACTION[ UUID[ KEY=VALUE...]]`` and at most one line end (UE-05).

    Returns the action and the SYNTH_* variables, or None for nothing at all, which is no event and no error. Raises
    NetError(EINVAL).
    """
    if not text:
        return None
    if text[-1:] in (b"\n", b"\0"):
        text = text[:-1]
    try:
        match = _SYNTHETIC.fullmatch(text.decode("ascii"))
        if match is None:
            raise NetError(errno.EINVAL)
        action = Action(match["action"])
    except ValueError:
        raise NetError(errno.EINVAL) from None
    variables = {"SYNTH_UUID": match["uuid"] or NO_UUID}
    pairs = [argument.partition("=")[::2] for argument in (match["arguments"] or "").split()]
    if len(text) > MAX_BYTES or len(pairs) >= MAX_VARIABLES:
        raise NetError(errno.EINVAL)
    variables.update((f"SYNTH_ARG_{key}", value) for key, value in pairs)
    return action, variables
