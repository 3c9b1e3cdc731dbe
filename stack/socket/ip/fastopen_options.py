"""The options of Fast Open (section 2.3): its limit for listeners, its keys, and connects that wait for data."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from stack.errors import NetError
from stack.socket.options import Kind, Option
from stack.tcp.fastopen import CLIENT, KEY_LENGTH

if TYPE_CHECKING:
    from stack.socket.ip.stream import StreamSocket

IPPROTO_TCP: Final = 6
# Linux <linux/tcp.h>.
TCP_FASTOPEN: Final = 23
TCP_FASTOPEN_CONNECT: Final = 30
TCP_FASTOPEN_KEY: Final = 33
TCP_FASTOPEN_NO_COOKIE: Final = 34

SOMAXCONN: Final = 4096  # Linux net.core.somaxconn


def _limit(socket: StreamSocket, value: int) -> int:
    if socket.connection is not None:
        raise NetError(errno.EINVAL)
    assert socket.host.netns.tcp.fastopen_key  # from now on there is one
    return min(value, SOMAXCONN)


def _before_connect(socket: StreamSocket, value: int) -> int:
    if not socket.host.netns.tcp.config.fastopen & CLIENT:
        raise NetError(errno.EOPNOTSUPP)
    if socket.connection is not None or socket.phase.listening:
        raise NetError(errno.EINVAL)
    return value


def _not_connected(socket: StreamSocket, value: int) -> int:
    if socket.connection is not None:
        raise NetError(errno.EINVAL)
    return value


def _key(socket: StreamSocket, value: object) -> None:
    if not isinstance(value, bytes) or len(value) not in (KEY_LENGTH, 2 * KEY_LENGTH):
        raise NetError(errno.EINVAL)


def _get_key(socket: StreamSocket) -> bytes:
    own: bytes = socket.options.value(IPPROTO_TCP, TCP_FASTOPEN_KEY)
    return own or socket.host.netns.tcp.fastopen_key_known


FASTOPEN_ROWS: Final = (
    Option(IPPROTO_TCP, TCP_FASTOPEN, "TCP_FASTOPEN", low=0, adjust=_limit),
    Option(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT", low=0, high=1, adjust=_before_connect),
    Option(IPPROTO_TCP, TCP_FASTOPEN_KEY, "TCP_FASTOPEN_KEY", Kind.OPAQUE, default=b"", check=_key, get=_get_key),
    Option(IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE", low=0, high=1, adjust=_not_connected),
)
