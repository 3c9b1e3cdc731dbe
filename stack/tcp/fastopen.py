"""TCP Fast Open (RFC 7413): data in the SYN, for peers that have shown a cookie.

Theory of operation
-------------------
A cookie is a keyed hash of the two addresses; whoever has it could receive what we sent to that address. A server
gives it in a SYN|ACK to who asks, and takes the data of a SYN that brings it: the connection is made at once, in
SYN-RECEIVED, goes to the accept queue, and may be written to before the handshake ends. How many such there may be at a
time is the listener's limit (TCP_FASTOPEN); one that is reset after it was accepted counts for another minute, because
that is what an attack with a stolen cookie looks like (section 5.1).

A client keeps cookies by server address. A connect with data either has one, and sends it with what fits into a SYN,
or asks for one. Data that the SYN|ACK does not acknowledge is sent again, as if for the first time; a SYN that is sent
again is a plain one. After three time-outs in a row Fast Open may pause for everybody (`fastopen_blackhole_timeout`).
"""

from __future__ import annotations

import errno
from collections import deque
from hashlib import blake2s
from typing import TYPE_CHECKING, Final

from stack.scheduler import NS_PER_S
from stack.tcp.handshake import send_syn
from stack.tcp.mib import Mib
from stack.tcp.states import FAST_OPENED
from stack.tcp.transitions import TcpState

if TYPE_CHECKING:
    from stack.link.device import Buffer
    from stack.tcp.connection import Connection
    from stack.tcp.demux import Key
    from stack.tcp.layer import TcpLayer
    from stack.tcp.listener import Listener
    from stack.tcp.pcb import Pcb
    from stack.tcp.request import Request
    from stack.tcp.segment import Segment

#: Bits of TcpConfig.fastopen, as Linux's tcp_fastopen.
CLIENT: Final = 1
SERVER: Final = 2
CLIENT_NO_COOKIE: Final = 4  # send data with or without a cookie
SERVER_NO_COOKIE: Final = 0x200  # take data with or without a cookie
SERVER_ALL: Final = 0x400  # listeners need not ask for it

KEY_LENGTH: Final = 16  # bytes; two of them: the second is the one before
COOKIE_LENGTH: Final = 8  # bytes; what Linux gives
CACHE_MAX: Final = 1024  # servers whose cookie is kept
OPTIONS_MAX: Final = 40  # bytes a SYN's options may take; so much less data
RESET_COUNTS_FOR: Final = 60 * NS_PER_S  # ns, section 5.1 and Linux
BLACKHOLE_TIMEOUTS: Final = 2  # time-outs before the one that counts as a sign of a broken path
_PAUSE_DOUBLINGS: Final = 6


class FastOpen:
    """Of one connection: what its SYN or SYN|ACK says, and what became of it."""

    __slots__ = ("acked", "asked", "option", "sent")

    def __init__(self, option: bytes | None, *, asked: bool = False) -> None:
        self.option = option  #: cookie for the first SYN, or for each SYN|ACK; b"" asks, None: no option
        self.asked = asked  #: a client that wants or has a cookie
        self.sent = 0  #: bytes of data in the SYN
        self.acked = False  #: data in a SYN was taken, by the peer or by us

    def timed_out(self, connection: Pcb, *, over: bool) -> None:
        """A retransmission time-out; `over`: the last."""
        retries = connection.sender.retries
        used = self.asked or self.sent
        if used and (retries == BLACKHOLE_TIMEOUTS or (retries < BLACKHOLE_TIMEOUTS and over)):
            connection.layer.mib.count(Mib.FASTOPEN_ACTIVE_FAIL)
            connection.layer.fastopen.pause()

    def dress(self, connection: Pcb) -> tuple[bytes | None, int]:
        """(option, bytes of data) for the SYN or SYN|ACK about to leave."""
        if connection.state is not TcpState.SYN_SENT:
            return (None if self.asked else self.option), 0
        if connection.sender.retries:
            return None, 0
        return self.option, self.sent

    def answered(self, connection: Pcb, seg: Segment, ack: int) -> None:
        """The SYN|ACK `seg`, which acknowledges up to `ack`: section 4.2.2."""
        layer = connection.layer
        sender = connection.sender
        mib = layer.mib
        if self.asked:
            layer.fastopen.learn(connection.remote[0], seg.options.fastopen, connection.peer_mss)
        if ack > sender.snd_una:
            sender.acknowledge(ack, None)
        if self.sent and ack < sender.iss + 1 + self.sent:
            # Not taken: nothing of it was ever sent, as far as loss and congestion are concerned.
            sender.snd_nxt = sender.snd_max = ack
            mib.count(Mib.FASTOPEN_ACTIVE_FAIL)
        elif self.sent:
            self.acked = True
            layer.fastopen.worked()
            mib.count(Mib.FASTOPEN_ACTIVE)
        if seg.payload:
            receiver = connection.receiver
            receiver.text(receiver.rcv_nxt, seg.payload[: min(receiver.space, 65535)], 0)


class FastOpenClient:
    """What a namespace knows about servers."""

    __slots__ = ("_cookies", "_layer", "_paused_until", "_pauses")

    def __init__(self, layer: TcpLayer) -> None:
        self._layer = layer
        self._cookies: dict[bytes, tuple[bytes, int]] = {}  # address: cookie and MSS, the latest last
        self._pauses = 0
        self._paused_until = 0

    def __len__(self) -> int:
        return len(self._cookies)

    @property
    def paused(self) -> bool:
        return self._layer.scheduler.now < self._paused_until

    def ready(self, address: bytes, *, no_cookie: bool) -> bool:
        """Whether a SYN to `address` may carry data."""
        if self.paused:
            return False
        return no_cookie or bool(self._layer.config.fastopen & CLIENT_NO_COOKIE) or address in self._cookies

    def begin(self, connection: Connection, data: Buffer) -> None:
        """`connection`, about to send its SYN, was asked to send `data` with it (b"": to get a cookie)."""
        if self.paused:
            return
        address = connection.remote[0]
        cookie, mss = self._cookies.get(address, (b"", 0))
        free = not cookie and self.ready(address, no_cookie=connection.options.fastopen_no_cookie)
        fast = connection.fastopen = FastOpen(None if free else cookie, asked=not free)
        if not cookie and not free:
            return
        most = min(mss or connection.peer_mss, connection.path_mtu - connection.ip_header - 20) - OPTIONS_MAX
        fast.sent = connection.sender.queue.append(data, max(most, 0))

    def learn(self, address: bytes, cookie: bytes | None, mss: int) -> None:
        """What a SYN|ACK told."""
        known = self._cookies
        before = known.pop(address, None)
        if cookie:
            known[address] = (cookie, mss)
            if len(known) > CACHE_MAX:
                del known[next(iter(known))]
        elif before is not None:
            known[address] = (before[0], mss)

    def pause(self) -> None:
        """Perhaps something on the way swallows such SYNs: none for a while, twice as long each time."""
        base = self._layer.config.fastopen_blackhole_timeout
        if not base or self.paused:
            return
        self._layer.mib.count(Mib.FASTOPEN_BLACKHOLE)
        self._paused_until = self._layer.scheduler.now + (base << min(self._pauses, _PAUSE_DOUBLINGS))
        self._pauses += 1

    def worked(self) -> None:
        """Data in a SYN got through."""
        self._pauses = 0


class FastOpenServer:
    """Of one listener."""

    __slots__ = ("_listener", "_resets", "pending")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.pending = 0  #: connections whose handshake is not complete
        self._resets: deque[int] = deque()  # until when each counts, ns

    def take(self, request: Request, seg: Segment) -> Connection | None:
        """A connection for the SYN `seg`, if it brings what it takes; else `request` goes on, perhaps with a cookie."""
        listener = self._listener
        layer = listener.layer
        config, options = layer.config, listener.options
        shown = seg.options.fastopen
        if shown == b"":
            layer.mib.count(Mib.FASTOPEN_COOKIE_REQD)
        if not config.fastopen & SERVER or (shown is None and not seg.payload) or not self._room():
            return None
        own: list[bytes] = []
        if not (config.fastopen & SERVER_NO_COOKIE or options.fastopen_no_cookie):
            if shown is None:
                return None
            own = [cookie_of(key, request.key) for key in self._keys()]
            if shown not in own:
                if shown:
                    layer.mib.count(Mib.FASTOPEN_PASSIVE_FAIL)
                request.fastopen = own[0]
                return None
        connection = request.connection()
        if connection is None:
            layer.mib.count(Mib.FASTOPEN_PASSIVE_FAIL)
            return None
        fast = connection.fastopen = FastOpen(None)
        if own and shown != own[0]:
            layer.mib.count(Mib.FASTOPEN_PASSIVE_ALT_KEY)
            fast.option = own[0]
        layer.mib.count(Mib.FASTOPEN_PASSIVE)
        self.pending += 1
        connection.listener = listener
        connection.ladder = FAST_OPENED
        sender, receiver = connection.sender, connection.receiver
        sender.snd_wnd = sender.max_window = sender.raw_window = seg.window
        payload = seg.payload[: request.window]
        if payload:
            receiver.text(receiver.rcv_nxt, payload, 0)
            fast.acked = True
        send_syn(connection)
        return connection

    def _keys(self) -> list[bytes]:
        keys = self._listener.options.fastopen_key or self._listener.layer.fastopen_key
        return [keys[at : at + KEY_LENGTH] for at in range(0, len(keys), KEY_LENGTH)]

    def _room(self) -> bool:
        listener = self._listener
        limit = listener.options.fastopen
        if not limit and listener.layer.config.fastopen & SERVER_ALL:
            limit = listener.limit
        if not limit:
            return False
        resets = self._resets
        if self.pending + len(resets) >= limit:
            if not resets or resets[0] > listener.layer.scheduler.now:
                listener.layer.mib.count(Mib.FASTOPEN_LISTEN_OVERFLOW)
                return False
            resets.popleft()
        return True

    def completed(self) -> None:
        """The handshake of one has ended."""
        self.pending -= 1

    def failed(self, connection: Pcb) -> None:
        """... without success, perhaps by a reset."""
        self.pending -= 1
        listener = self._listener
        if connection.error == errno.ECONNRESET and not listener.closed and not listener.holds(connection):
            self._resets.append(listener.layer.scheduler.now + RESET_COUNTS_FOR)


def cookie_of(key: bytes, where: Key) -> bytes:
    """The cookie of the peer `where` comes from (section 4.1.2)."""
    return blake2s(where[0] + where[1], key=key, digest_size=COOKIE_LENGTH).digest()
