"""The kernel's end of a protocol: requests in, answers, acks and dumps out (rows RT-E1..RT-E14).

Theory of operation
-------------------
A datagram is a sequence of messages, handled one after the other. A handler answers by `Request.reply` or starts a
dump by `Request.dump`; it refuses by raising `NetlinkError`, or `NetError` from below. What follows is here: the ack,
if one was asked for and no dump runs, or the error that echoes the request, cut to its header for NETLINK_CAP_ACK,
with words and offset for NETLINK_EXT_ACK. A malformed message ends the datagram silently.

A dump is a generator of messages over a snapshot of what there is. It is cut into datagrams as large as the reader has
shown to take, and ends with NLMSG_DONE in one of its own. If what is dumped changed since it began, the messages from
then on say so (NLM_F_DUMP_INTR).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from stack.errors import NetError
from stack.link.device import Buffer
from stack.socket.netlink.endpoint import KERNEL, Datagram, Endpoint
from stack.socket.netlink.options import NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK
from stack.wire.netlink import ack
from stack.wire.netlink.attribute import LEFTOVER
from stack.wire.netlink.error import NetlinkError
from stack.wire.netlink.header import (
    HEADER_LENGTH,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_MIN_TYPE,
    Header,
    align,
    pack,
    split,
)
from stack.wire.netlink.message import Message, MessageType

#: Bytes of one datagram of a dump: NLMSG_GOODSIZE of a 4096-byte page, and SKB_WITH_OVERHEAD(32768).
SMALLEST_DUMP: Final = 3776
LARGEST_DUMP: Final = 32448


class Request:
    """One message from a socket, and the ways to answer it."""

    __slots__ = ("body", "capable", "dumping", "endpoint", "flags", "seq", "strict", "type", "warning", "whole")

    def __init__(self, endpoint: Endpoint, header: Header, whole: memoryview, *, capable: bool) -> None:
        self.endpoint = endpoint
        self.type = header.type
        self.flags = header.flags
        self.seq = header.seq
        self.whole = whole
        self.body = whole[HEADER_LENGTH:]
        self.capable = capable  #: the sender has CAP_NET_ADMIN
        self.strict = endpoint.flag(NETLINK_GET_STRICT_CHK)
        self.dumping = False
        self.warning = ""  #: what an extended ack of success says

    @property
    def wants_dump(self) -> bool:
        return bool(self.flags & NLM_F_DUMP)

    @property
    def origin(self) -> tuple[int, int]:
        return self.endpoint.port, self.seq

    def parse(self, kind: MessageType, *, strict: bool = False) -> Message:
        message = kind.parse(self.body, strict=strict)
        if message.leftover:
            self.warning = LEFTOVER
        return message

    def reply(self, kind: int, payload: Buffer, flags: int = 0) -> None:
        endpoint = self.endpoint
        endpoint.deliver(Datagram(pack(kind, flags, self.seq, endpoint.port, payload), 0, 0, KERNEL))

    def dump(
        self,
        messages: Iterable[tuple[int, bytes]],
        *,
        generation: Callable[[], int],
        flags: int = 0,
    ) -> None:
        """Answer with (type, body) after (type, body). `generation` changes when what is dumped does.

        A NetlinkError from `messages` ends the dump. Raises NetlinkError(EBUSY) while the socket has one under way.
        """
        endpoint = self.endpoint
        if endpoint.dump is not None:
            raise NetlinkError(errno.EBUSY)
        self.dumping = True
        endpoint.dump = self._datagrams(iter(messages), generation, flags)
        endpoint.pump()

    def _datagrams(
        self, messages: Iterator[tuple[int, bytes]], generation: Callable[[], int], flags: int
    ) -> Iterator[tuple[bytes, bool]]:
        endpoint = self.endpoint
        began = generation()
        gathered: list[bytes] = []
        size = 0
        error: NetlinkError | None = None
        flags |= NLM_F_MULTI
        try:
            for kind, body in messages:
                limit = min(max(endpoint.longest_read, SMALLEST_DUMP), LARGEST_DUMP)
                if gathered and size + HEADER_LENGTH + align(len(body)) > limit:
                    yield b"".join(gathered), False
                    gathered, size = [], 0
                if generation() != began:
                    flags |= NLM_F_DUMP_INTR
                gathered.append(pack(kind, flags, self.seq, endpoint.port, body))
                size += len(gathered[-1])
        except NetlinkError as failure:
            error = failure
        if gathered:
            yield b"".join(gathered), False
        if generation() != began:
            flags |= NLM_F_DUMP_INTR
        yield (
            ack.done(
                self.seq,
                endpoint.port,
                error.errno if error else 0,
                flags=flags,
                extended=self.extended(error) if error else None,
            ),
            True,
        )

    def extended(self, error: NetlinkError) -> ack.Extended | None:
        """What an extended ack says of `error`, for those who asked for it."""
        if not self.endpoint.flag(NETLINK_EXT_ACK):
            return None
        return ack.Extended(error.told, error.offset, error.missing)

    def _warned(self) -> ack.Extended | None:
        return ack.Extended(self.warning) if self.warning and self.endpoint.flag(NETLINK_EXT_ACK) else None

    def acknowledge(self, error: NetlinkError | None) -> None:
        endpoint = self.endpoint
        answer = ack.acknowledge(
            self.whole,
            endpoint.port,
            error.errno if error else 0,
            capped=endpoint.flag(NETLINK_CAP_ACK),
            extended=self.extended(error) if error else self._warned(),
        )
        endpoint.deliver(Datagram(answer, 0, 0, KERNEL))


class KernelSocket:
    """Takes requests apart and sees to acks; a protocol says in `handle` what a request means."""

    def receive(self, endpoint: Endpoint, data: bytes, capable: bool) -> None:
        """Everything in one datagram from `endpoint`; `capable`: its sender may change the network."""
        for header, whole in split(data):
            request = Request(endpoint, header, whole, capable=capable)
            error: NetlinkError | None = None
            if header.flags & NLM_F_REQUEST and header.type >= NLMSG_MIN_TYPE:
                try:
                    self.handle(request)
                except NetlinkError as refusal:
                    error = refusal
                except NetError as refusal:
                    error = NetlinkError(refusal.errno, _told(refusal))
            if error is not None or (header.flags & NLM_F_ACK and not request.dumping):
                request.acknowledge(error)

    def handle(self, request: Request) -> None:
        """Raises NetlinkError or NetError to refuse, before anything has changed."""
        raise NotImplementedError


def _told(refusal: NetError) -> str:
    """The words of an error from below, unless they are but the errno's."""
    return "" if refusal.message == os.strerror(refusal.errno) else refusal.message
