"""Links of kind vlan: IEEE 802.1Q sub-interfaces.

Frames are tagged on their way down and untagged on their way up, offload facts moved along: a superframe stays one, and
the parent's device, or the software path before it, cuts it behind the tag. Priority is not mapped: tags carry 0.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from stack.errors import NetError
from stack.link.device import NEEDS_CSUM, Buffer, Offload, RxFrame, TxFrame
from stack.link.loopback import FrameQueue
from stack.link.offload import VLAN_TAG, wire_length

if TYPE_CHECKING:
    from stack.iface.interface import Interface
    from stack.netns import NetNamespace

PROTOCOL_8021Q: Final = 0x8100
_REORDER: Final = {"flags": 1, "mask": 0xFFFFFFFF}  # VLAN_FLAG_REORDER_HDR, as Linux's by default
MAX_ID: Final = 4094  # IEEE 802.1Q-2018 table 9-2: 4095 is reserved
_ID_MASK: Final = 0xFFF
_MACS: Final = 12  # bytes before the tag
_TAG: Final = struct.Struct("!HH")


def create(netns: NetNamespace, name: str, attributes: Mapping[str, Any]) -> Interface:
    """On ``link``, with ``data["id"]`` 0..4094. Raises NetError: EINVAL, ERANGE, EEXIST, and leaves nothing behind."""
    parent: Interface | None = attributes.get("link")
    data: Mapping[str, Any] = attributes.get("data", {})
    if parent is None:
        raise NetError(errno.EINVAL, "link not specified")
    number = data.get("id")
    if number is None:
        raise NetError(errno.EINVAL, "VLAN properties not specified")
    if not 0 <= number <= MAX_ID:
        raise NetError(errno.ERANGE, "Invalid VLAN id")
    if data.get("protocol", PROTOCOL_8021Q) != PROTOCOL_8021Q:
        raise NetError(errno.EPROTONOSUPPORT, "Invalid VLAN protocol")
    if parent.loopback:
        raise NetError(errno.EOPNOTSUPP, "VLANs are not supported on this device")
    owners = (getattr(hook, "__self__", None) for hook in parent.rx_hooks)
    trunk = next((each for each in owners if isinstance(each, Trunk)), None)
    if trunk is not None and number in trunk.links:
        raise NetError(errno.EEXIST, "VLAN device already exists")
    mtu = attributes.get("mtu", parent.mtu)
    if mtu > parent.mtu:
        raise NetError(errno.EINVAL, "MTU greater than the parent's")
    mac = attributes.get("mac") or parent.mac
    device = VlanLink(parent, number, mac)
    iface = netns.add_link(device, name, kind="vlan", mac=mac, mtu=mtu, index=attributes.get("index", 0))
    iface.link = parent
    parent.uppers.append(iface)
    device.iface = iface
    iface.kind_data = {"protocol": PROTOCOL_8021Q, "id": number, "flags": _REORDER}
    iface.on_up = device.check_up
    if trunk is None:
        trunk = Trunk(parent)
    trunk.add(device)
    iface.on_removed = device.close
    return iface


class Trunk:
    """What carries the VLANs of one parent: its hook, which sorts arriving frames by their tags."""

    def __init__(self, parent: Interface) -> None:
        self.parent = parent
        self.links: dict[int, VlanLink] = {}
        parent.rx_hooks.insert(0, self.took)  # tags are looked at before a bridge takes the rest, as on Linux
        parent.watchers.append(self._changed)

    def add(self, link: VlanLink) -> None:
        link.trunk = self
        self.links[link.number] = link

    def remove(self, link: VlanLink) -> None:
        """With the last VLAN goes the hook."""
        if self.links.pop(link.number, None) is not None and not self.links:
            self.parent.rx_hooks.remove(self.took)
            self.parent.watchers.remove(self._changed)

    def took(self, burst: Sequence[RxFrame]) -> Sequence[RxFrame]:
        """A hook of the parent: frames of VLANs that are here go to them, everything else stays."""
        rest = []
        for frame in burst:
            view = frame[0]
            if len(view) >= _MACS + _TAG.size + 2:
                ethertype, tag = _TAG.unpack_from(view, _MACS)
                link = self.links.get(tag & _ID_MASK) if ethertype == PROTOCOL_8021Q else None
                if link is not None:
                    link.arrived(frame)
                    continue
            rest.append(frame)
        return rest

    def _changed(self, parent: Interface, what: str) -> None:
        for link in tuple(self.links.values()):
            link.follow()
            iface = link.iface
            if what in ("up", "down") and iface is not None and iface.netns is not None:
                iface.netns.set_up(iface, parent.up)  # they go up and down together, as on Linux


class VlanLink:
    """The `LinkDevice` of one VLAN."""

    def __init__(self, parent: Interface, number: int, mac: bytes) -> None:
        self.parent = parent
        self.number = number
        self.mac = mac
        self.trunk: Trunk | None = None
        self.iface: Interface | None = None
        self.on_change: Callable[[], None] | None = None
        self._inbox = FrameQueue()
        self._closed = False
        self.carrier = parent.running
        self._tag = _TAG.pack(PROTOCOL_8021Q, number)

    @property
    def mtu(self) -> int:
        return self.parent.mtu

    @property
    def offloads(self) -> int:
        return int(self.parent.offloads) & ~int(Offload.USO)

    @property
    def max_superframe(self) -> int:
        return self.parent.max_superframe - VLAN_TAG

    def receive(self, budget: int) -> Sequence[RxFrame]:
        return self._inbox.take(budget)

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        parent = self.parent
        if self.carrier and parent.up and not self._closed:
            for frame in burst:
                parent.enqueue(self._tagged(frame), wire_length(frame) + VLAN_TAG)
        return len(burst)

    def suppress(self) -> None:
        """Work is reported by `on_change`, which is cheap."""

    def arm(self) -> bool:
        return bool(self._inbox.frames)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._closed = True
        self.carrier = False
        self._inbox.clear()
        if self.trunk is not None:
            self.trunk.remove(self)
        if self.iface is not None:
            self.parent.uppers.remove(self.iface)
            self.iface = None

    def check_up(self) -> None:
        """A VLAN cannot be up on a parent that is down: NetError(ENETDOWN)."""
        if self.iface is not None and self.iface.up and not self.parent.up:
            raise NetError(errno.ENETDOWN)

    def follow(self) -> None:
        """The parent changed: carrier, MTU, offloads."""
        self.carrier = self.parent.running and not self._closed
        if self.on_change is not None:
            self.on_change()

    def arrived(self, frame: RxFrame) -> None:
        """Take the tag off. The frame is copied: what a receiver gets is one contiguous view."""
        view, flags, gso_type, gso_size, csum_start, csum_offset = frame
        bare = memoryview(b"".join((view[:_MACS], view[_MACS + VLAN_TAG :])))
        if flags & NEEDS_CSUM:
            csum_start -= VLAN_TAG
        was_empty = not self._inbox.frames
        taken = self._inbox.put((bare, flags, gso_type, gso_size, csum_start, csum_offset))
        if taken and was_empty and self.on_change is not None:
            self.on_change()

    def _tagged(self, frame: TxFrame) -> TxFrame:
        parts, flags, gso_type, header_length, gso_size, csum_start, csum_offset = frame
        head: Buffer = parts[0]
        if len(head) < _MACS:
            parts = (b"".join(parts),)
            head = parts[0]
        first = b"".join((head[:_MACS], self._tag, head[_MACS:]))
        if flags & NEEDS_CSUM:
            csum_start += VLAN_TAG
        if header_length:
            header_length += VLAN_TAG
        return (first, *parts[1:]), flags, gso_type, header_length, gso_size, csum_start, csum_offset
