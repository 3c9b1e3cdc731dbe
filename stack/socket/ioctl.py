"""Ioctl requests of sockets (section 1.5 of the socket semantics): what is queued, and what interfaces are like.

Order of look-up as in Linux: the family's own requests (FIONREAD, SIOCOUTQ, SIOCATMARK), those of IPv4
about addresses, those about interfaces that any socket answers, then ENOTTY. Requests that concern the open file and
not the socket (FIONBIO, FIOASYNC, FIOCLEX) are the kernel's, which has a real descriptor of ours.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.socket.families import AF_INET, AF_PACKET, AF_VSOCK
from stack.wire.vsock import CID_HOST

if TYPE_CHECKING:
    from stack.iface.address import InterfaceAddress
    from stack.iface.interface import Interface
    from stack.socket.base import Socket

# Linux <asm-generic/ioctls.h>, <linux/sockios.h>, <linux/vm_sockets.h>.
FIONREAD: Final = 0x541B  # also SIOCINQ
SIOCOUTQ: Final = 0x5411  # also TIOCOUTQ
SIOCOUTQNSD: Final = 0x894B
SIOCATMARK: Final = 0x8905
SIOCGIFNAME: Final = 0x8910
SIOCGIFCONF: Final = 0x8912
SIOCGIFFLAGS: Final = 0x8913
SIOCGIFADDR: Final = 0x8915
SIOCGIFDSTADDR: Final = 0x8917
SIOCGIFBRDADDR: Final = 0x8919
SIOCGIFNETMASK: Final = 0x891B
SIOCGIFMETRIC: Final = 0x891D
SIOCGIFMTU: Final = 0x8921
SIOCGIFHWADDR: Final = 0x8927
SIOCGIFINDEX: Final = 0x8933
SIOCGIFTXQLEN: Final = 0x8942
IOCTL_VM_SOCKETS_GET_LOCAL_CID: Final = 0x7B9
_FILE_REQUESTS: Final = frozenset({0x5421, 0x5452, 0x5451, 0x5450})  # FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX
_COUNTS: Final[dict[int, Callable[[Socket], int]]] = {
    FIONREAD: lambda sock: sock.input_queue(),
    SIOCOUTQ: lambda sock: sock.output_queue(),
    SIOCOUTQNSD: lambda sock: sock.unsent_queue(),
    SIOCATMARK: lambda sock: sock.at_mark(),
}

_BUFFER: Final = 1024  # bytes that fcntl.ioctl hands to the kernel, whatever the caller's are
_IFREQ: Final = 40  # sizeof(struct ifreq) on 64-bit Linux
_NAME: Final = 16  # IFNAMSIZ
_INT: Final = struct.Struct("@i")
_U32: Final = struct.Struct("@I")
_SOCKADDR_IN: Final = struct.Struct("@H2x4s8x")
_HWADDR: Final = struct.Struct("@H6s8x")
_IFCONF: Final = struct.Struct("@i4xQ")
_FLAGS: Final = struct.Struct("@h")


def ioctl(sock: Socket, fd: Callable[[], int], request: int, arg: Any = 0, mutate_flag: bool = True) -> Any:
    """As fcntl.ioctl on this socket, whose descriptor `fd` tells if it is needed.

    `arg` is an int, or the struct: bytes, answered as bytes; a writable buffer is changed, and 0 the answer. Raises
    OSError: ENOTTY for an unknown request, ENODEV, EADDRNOTAVAIL, EINVAL, EFAULT.
    """
    request &= 0xFFFFFFFF
    if request in _FILE_REQUESTS:
        return _ioctl(fd(), request, arg, mutate_flag)
    if isinstance(arg, int):
        sock.call(_ask, sock, request, bytearray(_BUFFER))
        raise OSError(errno.EFAULT, "this request needs room for its answer: give it bytes")
    if isinstance(arg, str):
        arg = arg.encode()
    view = memoryview(arg).cast("B")
    room = bytearray(max(_BUFFER, len(view)))
    room[: len(view)] = view
    sock.call(_ask, sock, request, room)
    if view.readonly or not mutate_flag:
        return bytes(room[: len(view)])
    view[:] = room[: len(view)]
    return 0


def _ask(sock: Socket, request: int, room: bytearray) -> None:
    """Lock held: the answer is put in `room`."""
    if request in _COUNTS:
        _INT.pack_into(room, 0, int(_COUNTS[request](sock)))
    elif request == IOCTL_VM_SOCKETS_GET_LOCAL_CID and sock.family == AF_VSOCK:
        _U32.pack_into(room, 0, CID_HOST)
    elif request == SIOCGIFCONF:
        _conf(sock, room)
    elif request in _ADDRESSES and sock.family in (AF_INET, AF_PACKET):
        _address(sock, request, room)
    elif request == SIOCGIFNAME:
        iface = sock.host.netns.interface(_INT.unpack_from(room, _NAME)[0])
        room[:_NAME] = iface.name.encode().ljust(_NAME, b"\0")
    elif request in _LINK:
        _LINK[request](_named(sock, room), room)
    else:
        raise NetError(errno.ENOTTY)


def _named(sock: Socket, room: bytearray) -> Interface:
    name = bytes(room[: _NAME - 1]).split(b"\0", 1)[0].split(b":", 1)[0]
    return sock.host.netns.interface(name.decode(errors="surrogateescape"))


def _flags(iface: Interface, room: bytearray) -> None:
    flags = int(iface.flags) & 0xFFFF
    _FLAGS.pack_into(room, _NAME, flags - 0x10000 if flags & 0x8000 else flags)


def _hardware(iface: Interface, room: bytearray) -> None:
    _HWADDR.pack_into(room, _NAME, iface.link_type, iface.mac)


def _number(read: Callable[[Interface], int]) -> Callable[[Interface, bytearray], None]:
    return lambda iface, room: _INT.pack_into(room, _NAME, read(iface))


_LINK: Final[dict[int, Callable[[Interface, bytearray], None]]] = {
    SIOCGIFFLAGS: _flags,
    SIOCGIFMETRIC: _number(lambda iface: 0),
    SIOCGIFMTU: _number(lambda iface: iface.mtu),
    SIOCGIFHWADDR: _hardware,
    SIOCGIFINDEX: _number(lambda iface: iface.index),
    SIOCGIFTXQLEN: _number(lambda iface: iface.tx_queue_length),
}


def _mask(address: InterfaceAddress) -> bytes:
    return (0xFFFFFFFF << 32 - address.prefix_length & 0xFFFFFFFF).to_bytes(4, "big")


#: The address itself, its other end (the same, but on point-to-point links), broadcast (none on lo), mask.
_ADDRESSES: Final[dict[int, Callable[[InterfaceAddress], bytes]]] = {
    SIOCGIFADDR: lambda address: address.address,
    SIOCGIFDSTADDR: lambda address: address.address,
    SIOCGIFBRDADDR: lambda address: address.broadcast or bytes(4),
    SIOCGIFNETMASK: _mask,
}


def _address(sock: Socket, request: int, room: bytearray) -> None:
    iface = _named(sock, room)
    address = next((each for each in iface.addresses if len(each.address) == 4), None)
    if address is None:
        raise NetError(errno.EADDRNOTAVAIL)
    _SOCKADDR_IN.pack_into(room, _NAME, AF_INET, _ADDRESSES[request](address))


def _conf(sock: Socket, room: bytearray) -> None:
    """(length, pointer) to memory of the caller's: whole entries only; without a pointer, what all would take."""
    length, pointer = _IFCONF.unpack_from(room)
    entries = [
        name.encode().ljust(_NAME, b"\0") + _SOCKADDR_IN.pack(AF_INET, each.address).ljust(_IFREQ - _NAME, b"\0")
        for name, iface in sock.host.netns.interfaces.items()
        for each in iface.addresses
        if len(each.address) == 4
    ]
    if pointer:
        if length < 0:
            raise NetError(errno.EINVAL)
        entries = entries[: length // _IFREQ]
        ctypes.memmove(pointer, b"".join(entries), len(entries) * _IFREQ)
    _IFCONF.pack_into(room, 0, len(entries) * _IFREQ, pointer)


_ioctl: Final = fcntl.ioctl
