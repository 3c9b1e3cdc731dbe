"""Names that the LAN does not know, asked of the host's resolvers: the forwarder of `stack.services.dns_server`.

Theory of operation
-------------------
Each question goes out on a socket of its own, over UDP, from a port drawn at random, with an identifier drawn at random
(RFC 5452 section 9), both from the Network's source of randomness. The socket is connected, so that the kernel lets
nothing in but what comes from that resolver. A datagram counts as the answer if it has the identifier and the question;
anything else is counted and waited past. An answer that was cut is asked for again over TCP, of the same resolver.

Resolvers are asked in turn, each for `TRY` seconds, two rounds. Then there is no answer. The same question asked by
several clients at a time goes out once: more would only make it easier to guess an identifier (RFC 5452 section 5).

Nothing here waits: sockets are non-blocking, and the Network tells when they have something (`stack.services.
host_sockets`). Attach `hosts` to the Network. Questions under way are bounded; more have no answer at once.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.flags
import dns.message
import dns.name
import dns.rdataclass

from stack.errors import Drops
from stack.scheduler import NS_PER_S, Scheduler
from stack.services.host_sockets import HostSockets
from stack.wire import dns as wire
from stack.wire.error import WireError

#: Questions under way.
MAX_QUESTIONS: Final = 256
#: Clients that wait for the same one.
MAX_WAITING: Final = 256
TRY: Final = 2 * NS_PER_S  # for each resolver; clients give up after 5 s (resolv.conf(5), timeout)
ROUNDS: Final = 2
#: Datagrams looked at in one turn on one socket.
BUDGET: Final = 16
#: Ports that are tried before the kernel is left to choose.
_PORT_DRAWS: Final = 8
_FIRST_PORT: Final = 1024
_LAST_PORT: Final = 65535
_RESOLV_CONF: Final = "/etc/resolv.conf"
#: The kernel's, also while a Stack stands in for the module (`stack.socket.installed`).
_KernelSocket: Final = socket.socket

Done = Callable[[dns.message.Message | None], None]
_Key = tuple[str, int, bool]


def host_resolvers(path: str = _RESOLV_CONF) -> list[str]:
    """The host's name servers, as resolv.conf(5) lists them; its default, the host itself, if it lists none."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with suppress(ValueError):
                ip_address(words[1].partition("%")[0])
                found.append(words[1])
    return found or ["127.0.0.1"]


class HostDns:
    """A `Forwarder`. `resolvers` are addresses as text, "192.0.2.1", or pairs of address and port.

    Lock held by the caller, always. Raises ValueError for an address that is none, or no resolver at all.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        resolvers: Iterable[str | tuple[str, int]] | None = None,
        *,
        limit: int = MAX_QUESTIONS,
    ) -> None:
        self.scheduler = scheduler
        self.hosts = HostSockets()
        self.drops = Drops()
        found = [(each, wire.PORT) if isinstance(each, str) else each for each in resolvers or host_resolvers()]
        for address, _ in found:
            ip_address(address.partition("%")[0])
        self.resolvers = found
        self._limit = limit
        self._questions: dict[_Key, _Question] = {}

    def __len__(self) -> int:
        """Questions under way."""
        return len(self._questions)

    def forward(self, name: dns.name.Name, rdtype: int, dnssec: bool, done: Done) -> None:
        key = (wire.text_of(name), rdtype, dnssec)
        question = self._questions.get(key)
        if question is not None:
            if len(question.waiting) < MAX_WAITING:
                question.waiting.append(done)
            else:
                self.drops.count("too-many-waiting")
                done(None)
            return
        if len(self._questions) >= self._limit:
            self.drops.count("too-many-questions")
            done(None)
            return
        question = self._questions[key] = _Question(self, key, name, done)
        question.next_try()

    def finish(self, question: _Question, response: dns.message.Message | None) -> None:
        """Called by a question that has its answer, or will have none."""
        del self._questions[question.key]
        for done in question.waiting:
            done(response)

    def close(self) -> None:
        """Questions under way have no answer, and nobody is told. Idempotent."""
        for question in tuple(self._questions.values()):
            question.abandon()
        self._questions.clear()
        self.hosts.close()


class _Question:
    """One question until its answer: a `host_sockets.Task` for each socket it uses, one at a time."""

    def __init__(self, owner: HostDns, key: _Key, name: dns.name.Name, done: Done) -> None:
        self.key = key
        self.waiting = [done]
        self._owner = owner
        self._name = name
        self._tries = 0
        self._identifier = 0
        self._sock: socket.socket | None = None
        self._stream = False
        self._output = b""  # of the stream, not sent yet
        self._input = bytearray()
        self._timer = owner.scheduler.timer(self._expired)

    def next_try(self) -> None:
        """Ask the next resolver; the end, without an answer, when all were asked."""
        resolvers = self._owner.resolvers
        while self._tries < ROUNDS * len(resolvers):
            target = resolvers[self._tries % len(resolvers)]
            self._tries += 1
            if self._start(target, stream=False):
                return
        self._end(None)

    def abandon(self) -> None:
        self._timer.cancel()
        self._close()

    # -- host_sockets.Task --------------------------------------------------------------------------------------------

    def hint(self, *, hung_up: bool) -> None:
        """`run` asks the kernel itself."""

    def run(self) -> bool:
        if self._sock is None:
            return False
        try:
            return self._run_stream(self._sock) if self._stream else self._run_datagram(self._sock)
        except BlockingIOError:
            return False
        except OSError:  # refused, unreachable, reset: the next one
            self._owner.drops.count("resolver-unreachable")
            self.next_try()
            return False

    # -- asking -------------------------------------------------------------------------------------------------------

    def _start(self, target: tuple[str, int], *, stream: bool) -> bool:
        """Whether the question is on its way to `target`."""
        self._close()
        owner = self._owner
        self._stream = stream
        self._identifier = owner.scheduler.rng.getrandbits(16)
        message = wire.make_query(self._name, self.key[1], self._identifier, dnssec=self.key[2]).to_wire()
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        try:
            sock = _KernelSocket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            owner.drops.count("no-socket")
            return False
        self._sock = sock
        try:
            if not stream:
                self._bind(sock)
            error = sock.connect_ex(target)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, "connect")
            if stream:
                self._output = len(message).to_bytes(2, "big") + message
            else:
                sock.send(message)
            owner.hosts.add(sock, self)
        except OSError:
            owner.drops.count("resolver-unreachable")
            self._close()
            return False
        self._timer.arm_in(TRY)
        return True

    def _bind(self, sock: socket.socket) -> None:
        """A random port. Left to the kernel when the first few are taken."""
        rng = self._owner.scheduler.rng
        for _ in range(_PORT_DRAWS):
            with suppress(OSError):
                sock.bind(("", rng.randrange(_FIRST_PORT, _LAST_PORT + 1)))
                return

    # -- the answer ---------------------------------------------------------------------------------------------------

    def _run_datagram(self, sock: socket.socket) -> bool:
        for _ in range(BUDGET):
            response = self._checked(sock.recv(wire.MAXIMUM_STREAM))
            if response is None:
                continue
            if response.flags & dns.flags.TC:
                target = sock.getpeername()[:2]
                if not self._start(target, stream=True):
                    self.next_try()
            else:
                self._end(response)
            return False
        return True

    def _run_stream(self, sock: socket.socket) -> bool:
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connect")
        while self._output:
            try:
                sent = sock.send(self._output)
            except BrokenPipeError:  # not connected yet
                return False
            self._output = self._output[sent:]
        data = sock.recv(wire.MAXIMUM_STREAM)
        self._input += data
        length = 2 + int.from_bytes(self._input[:2], "big")
        if len(self._input) > 2 and len(self._input) >= length:
            response = self._checked(bytes(self._input[2:length]))
            if response is None:
                self.next_try()
            else:
                self._end(response)
            return False
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the stream ended within a message")
        return True

    def _checked(self, data: bytes) -> dns.message.Message | None:
        """The response, if it answers what was asked (RFC 5452 section 9.1)."""
        try:
            response = wire.parse_response(data)
        except WireError:
            self._owner.drops.count("bad-response")
            return None
        text, rdtype, _ = self.key
        asked = [(wire.text_of(each.name), int(each.rdtype), each.rdclass) for each in response.question]
        if response.id != self._identifier or asked != [(text, rdtype, dns.rdataclass.IN)]:
            self._owner.drops.count("not-what-was-asked")
            return None
        return response

    def _expired(self) -> None:
        self._owner.drops.count("resolver-silent")
        self.next_try()

    def _end(self, response: dns.message.Message | None) -> None:
        self.abandon()
        self._owner.finish(self, response)

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        self._output = b""
        self._input.clear()
        if sock is not None:
            self._owner.hosts.remove(sock, self)
            sock.close()
