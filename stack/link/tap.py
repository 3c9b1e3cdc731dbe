"""A TAP device of the Linux kernel as a `LinkDevice`: the kernel's own stack is the other end of the cable.

Theory of operation
-------------------
`open_tap` makes the kernel's side, an interface in the network namespace of whoever calls; it needs CAP_NET_ADMIN
*there*, which anybody has in a namespace of one's own. The descriptor then works from anywhere: pass it over a Unix
socket, and a process without any privilege carries the frames. Nothing of the product needs this device; tests hold
our TCP against Linux's through it, benches measure it as a peer, and host programs join a LAN of ours by it.

Every read and write is one frame behind a struct virtio_net_hdr of 10 bytes (IFF_VNET_HDR, ``include/uapi/linux/
if_tun.h``), so the offload facts of `stack.link.device` cross as they are: superframes both ways, checksums unfinished.
What the kernel may leave to us is set by TUNSETOFFLOAD; what we may leave to the kernel is not negotiated, it takes
all of it. With ``offload=False`` neither side leaves anything to the other, as with an old card.

The kernel reads a frame's header itself and refuses what contradicts itself (EINVAL): counted, and gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final

from stack.link.device import NEEDS_CSUM, Offload, RxFrame, TxFrame
from stack.link.offload import ALL_OFFLOADS, ETHERNET_HEADER, VLAN_TAG

#: From include/uapi/linux/if_tun.h.
TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08

_OFFLOADS: Final = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
_IFREQ: Final = Struct("16sH22x")
#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset (native order, no num_buffers).
_HEADER: Final = Struct("=BBHHHH")
MAX_SUPERFRAME: Final = ETHERNET_HEADER + 65535
_LONGEST: Final = _HEADER.size + MAX_SUPERFRAME + VLAN_TAG
_BURST_BYTES: Final = 512 << 10
DEFAULT_MAC: Final = bytes.fromhex("02677700007a")


def open_tap(name: str = "", *, offload: bool = True) -> tuple[int, str]:
    """A new TAP interface in the caller's network namespace: (descriptor, the interface's name).

    The interface goes when the descriptor is closed. An empty `name` lets the kernel choose. Raises OSError: EPERM
    without CAP_NET_ADMIN, ENOENT where /dev/net/tun is missing, EBUSY for a name in use, EINVAL for one too long.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = _IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        answer = fcntl.ioctl(fd, TUNSETIFF, request)
        fcntl.ioctl(fd, TUNSETOFFLOAD, _OFFLOADS if offload else 0)
    except BaseException:
        os.close(fd)
        raise
    return fd, _IFREQ.unpack(answer)[0].rstrip(b"\0").decode()


class Tap:
    """Our end of a TAP made by `open_tap`; owns `fd` from now on.

    `mac`: suggested for the interface on our side. `mtu`: of the link, in bytes; the kernel's side has its own.
    """

    def __init__(self, fd: int, *, mac: bytes = DEFAULT_MAC, mtu: int = 1500, offload: bool = True) -> None:
        self.mtu = mtu
        self.mac = mac
        self.carrier = True
        # Superframes of UDP are taken by Linux 6.2 and later only, and nothing tells: they are cut on our side.
        self.offloads = ALL_OFFLOADS & ~Offload.USO if offload else Offload.NONE
        self.max_superframe = MAX_SUPERFRAME if offload else ETHERNET_HEADER + mtu
        self.on_change: Callable[[], None] | None = None
        self.dropped: dict[str, int] = {}  #: frames the kernel did not take, by errno's name
        self._fd = fd

    def receive(self, budget: int) -> Sequence[RxFrame]:
        fd = self._fd
        if fd < 0:
            return ()
        frames: list[RxFrame] = []
        size = 0
        while len(frames) < budget and size < _BURST_BYTES:
            try:
                data = os.read(fd, _LONGEST)
            except BlockingIOError:
                break
            except OSError:  # EBADFD: the interface was deleted in its namespace
                self.carrier = False
                break
            size += len(data)
            flags, gso_type, _, gso_size, start, offset = _HEADER.unpack_from(data)
            frames.append((memoryview(data)[_HEADER.size :], flags, gso_type, gso_size, start, offset))
        return frames

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        fd = self._fd
        if fd < 0 or not self.carrier:
            return len(burst)
        for parts, flags, gso_type, hdr_len, gso_size, start, offset in burst:
            header = _HEADER.pack(flags & NEEDS_CSUM, gso_type, hdr_len, gso_size, start, offset)
            try:
                os.writev(fd, (header, *parts))
            except OSError as error:
                reason = errno.errorcode.get(error.errno or 0, "?")
                self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return len(burst)

    def suppress(self) -> None:
        """Nothing to suppress: the descriptor is level-triggered."""

    def arm(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """The kernel's interface goes with it."""
        fd, self._fd = self._fd, -1
        self.carrier = False
        if fd >= 0:
            os.close(fd)
