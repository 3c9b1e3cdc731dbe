"""Requests and dumps over a socket that carries netlink datagrams."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Protocol

from qemu.guest.errors import GuestError
from stack.wire.netlink import ack
from stack.wire.netlink.header import (
    HEADER_LENGTH,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    pack,
    split,
)
from stack.wire.netlink.link import LINK
from stack.wire.netlink.message import Message, MessageType
from stack.wire.netlink.rtnetlink import Rtm

MAX_DATAGRAM: Final = 1 << 17  # bytes; a dump's are at most 32 KiB


class Datagrams(Protocol):
    """A netlink socket, or what stands for one."""

    def send(self, data: bytes, /) -> int: ...
    def recv(self, size: int, /) -> bytes: ...


class AnswerError(GuestError):
    """The kernel side refused; the message is what iproute2 says."""

    def __init__(self, outcome: ack.Outcome) -> None:
        self.errno = outcome.errno
        told = f"Error: {outcome.message}." if outcome.message else ""
        super().__init__(told or f"RTNETLINK answers: {os.strerror(outcome.errno)}")


class NoDeviceError(GuestError):
    """There is no link of that name."""


class Client:
    """One conversation."""

    def __init__(self, socket: Datagrams) -> None:
        self._socket = socket
        # Not from 1: what groups are told bears the numbers of other clients' requests.
        self._seq = int.from_bytes(os.urandom(4), "little") >> 1
        self._unasked: deque[tuple[int, bytes]] = deque()
        self.links: dict[int, Message] = {}  #: by index, as last dumped

    def change(self, kind: int, body: bytes, flags: int = 0) -> None:
        """A request that is acknowledged. Raises AnswerError."""
        for _ in self._ask(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body):
            pass

    def dump(self, kind: int, layout: MessageType, family: int = 0) -> list[Message]:
        """Everything of a kind. Raises AnswerError."""
        body = layout.emit({"family": family})
        return [layout.parse(each) for _, each in self._ask(kind, NLM_F_REQUEST | NLM_F_DUMP, body)]

    def look(self) -> dict[int, Message]:
        """Dump the links and remember them."""
        self.links = {each.fields["index"]: each for each in self.dump(Rtm.GETLINK, LINK)}
        return self.links

    def name(self, index: int) -> str:
        """Of a link, as iproute2 prints it."""
        link = self.links.get(index)
        return str(link.attributes["ifname"]) if link is not None else f"if{index}"

    def learn(self, index: int) -> None:
        """Ask for a link that nothing was heard of yet. One that is gone stays unknown."""
        if index and index not in self.links:
            try:
                found = list(self._ask(Rtm.GETLINK, NLM_F_REQUEST | NLM_F_ACK, LINK.emit({"index": index})))
            except AnswerError:
                return
            self.links.update((index, LINK.parse(each)) for _, each in found)

    def index(self, name: str) -> int:
        """Of the link called `name`. Raises NoDeviceError."""
        for index, link in (self.links or self.look()).items():
            if link.attributes["ifname"] == name:
                return index
        raise NoDeviceError(f'Cannot find device "{name}"')

    def listen(self) -> Iterator[tuple[int, memoryview]]:
        """(type, body) of what is told to the groups the socket is in, for ever."""
        while True:
            while self._unasked:
                kind, body = self._unasked.popleft()
                yield kind, memoryview(body)
            data = self._socket.recv(MAX_DATAGRAM)
            if not data:
                return
            # All of it is put by first: whoever is told one may ask something, which listens too.
            self._unasked.extend((header.type, bytes(whole[HEADER_LENGTH:])) for header, whole in split(data))

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, memoryview]]:
        self._seq += 1
        self._socket.send(pack(kind, flags, self._seq, 0, body))
        for header, whole in self._messages():
            rest = whole[HEADER_LENGTH:]
            if header.seq != self._seq:
                self._unasked.append((header.type, bytes(rest)))
                continue
            if header.type in (NLMSG_ERROR, NLMSG_DONE):
                outcome = ack.parse(header.type, header.flags, rest)
                if outcome.errno:
                    raise AnswerError(outcome)
                return
            yield header.type, rest
        raise AnswerError(ack.Outcome(errno.ENOLINK, "EOF on netlink"))

    def _messages(self) -> Iterator[Any]:
        while data := self._socket.recv(MAX_DATAGRAM):
            yield from split(data)
