"""Frames to the guest: a virtio header in front of each, and into its receive rings.

Theory of operation
-------------------
A header is packed in front of the frame's parts and everything goes to the ring in a few calls. The stack may always
leave checksums to us (`CSUM`): a guest that takes partial checksums gets them, for another one they are finished here,
in C. Superframes are taken as far as the guest acknowledged GUEST_TSO4/6 and has buffers for them.

Offload facts are few and repeat: what has been judged once (`_special`) is remembered, so a frame like one before it
costs a look-up. One that leaves alone (`transmit_alone`), and superframes of one flow (`transmit_volley`), have shorter
ways, which refuse what they have not seen.

A frame without room ends the burst, so that flows stay in order; the ring it is for is noted, and tells of more when it
is armed.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from .frames import ETHER_HEADER, MAX_SUPERFRAME, MIN_FRAME, NEEDS_CSUM, VLAN_TAG, finished, tagged
from .owed import patience
from .volley import push_volley

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .faults import Faults
    from .frames import Buffer, TxFacts, TxFrame
    from .owed import OwedCall
    from .steering import Steering
    from .virtqueue import Virtqueue
    from .volley import Head

#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
_HEADER: Final = Struct("<BBHHHHH")
_HEADER_BYTES: Final = _HEADER.size
_NUM_BUFFERS_AT: Final = 10
_PADDING: Final = bytes(MIN_FRAME)

#: Frames go to the ring in portions of about this many bytes, so that the guest starts on the first ones while we
#: copy the next: a prototype pushed 4 superframes a call a third faster than 15, which left both sides in lockstep.
PORTION_BYTES: Final = 256 << 10

#: A frame that leaves alone is put together first if its payload is not longer than this, bytes.
_LONE_BYTES: Final = 2048

#: Headers remembered, by offload facts.
_MAX_HEADERS: Final = 256
_UNKNOWN: Final = (b"", 1, 0)  # good for no length


class Delivery:
    """The receive rings of a card, as those see them who have frames for its guest."""

    def __init__(
        self, faults: Faults, steering: Steering, inbox: Any, owed: OwedCall, *, on_broken: Callable[[], None]
    ) -> None:
        """`inbox`: the card's struct vnet_inbox, which knows how much the guest sent last; `on_broken` is called when a
        ring is found to have broken."""
        self._faults = faults
        self._steering = steering
        self._inbox = inbox
        self._owed = owed
        self._on_broken = on_broken
        self.frames = 0  #: accepted by the guest's rings, whoever put them there
        self.drops: dict[str, int] = {}  #: by reason
        self._sinks: list[Virtqueue] = []  # none while there is nobody to send to
        self._mtu = 0
        self._blocked: Virtqueue | None = None  # the ring that had no room for the last frame
        self._blocked_room = 0
        self.take_features(guest_csum=False, merge=False, gso_types=frozenset())

    def take_features(self, *, guest_csum: bool, merge: bool, gso_types: frozenset[int]) -> None:
        """Control thread: what the guest takes. Rings cannot run meanwhile."""
        self._guest_csum = guest_csum
        self._fixup = _NUM_BUFFERS_AT if merge else -1
        self._gso_types = gso_types
        self._headers: dict[tuple[int, ...], tuple[bytes, int, int]] = {}  # last: it is made from the others

    def place(self, rings: Sequence[Virtqueue], mtu: int) -> None:
        """Data thread: frames go into these rings now (none: there is no carrier). `mtu` is for all but superframes."""
        self._sinks = list(rings)
        self._mtu = mtu
        self._blocked = None
        self._headers = {}

    def arm(self) -> bool:
        """Have the ring that had no room tell of some. True: there is some already."""
        return self._blocked is not None and self._blocked.arm(self._blocked_room)

    def transmit(self, burst: Sequence[TxFrame]) -> int:
        """Frames to the guest, in order; returns how many were accepted (see `LinkDevice.transmit`)."""
        sinks = self._sinks
        if not sinks:
            self._drop("no-carrier", len(burst))
            return len(burst)
        if self._faults.stalled:
            return 0
        blocked = self._blocked
        if len(burst) == 1 and self.transmit_alone(burst[0][0], burst[0][1:]):
            return 1
        if blocked is not None and len(sinks) == 1 and blocked.room() <= self._blocked_room and blocked.live:
            return 0  # not a buffer more than when its next frame did not fit
        done = 0
        total = len(burst)
        slots = self._steering.slots(burst) if len(sinks) > 1 else b""
        while done < total:
            ring, end = sinks[0], total
            if slots:
                slot, end = slots[done], done + 1
                ring = sinks[slot]
                while end < total and slots[end] == slot:
                    end += 1
            ready, reason = self._prepare(burst[done:end])
            if ready:
                accepted = ring.push(ready, header_fixup=self._fixup)
                if accepted < len(ready):
                    accepted += self._insist(ring, ready[accepted])
                done += accepted
                self.frames += accepted
                if accepted < len(ready):
                    if ring.live:
                        if self._blocked is None:
                            continue
                        return done
                    # Broken or stopped meanwhile: there is nobody left to wait for.
                    self._drop("no-carrier", total - done)
                    self._on_broken()
                    return total
            if reason:
                self._drop(reason, 1)
                done += 1
        self._blocked = None
        return done

    def transmit_volley(
        self, head: Head, last: Head, count: int, number: tuple[int, int], parts: Sequence[Buffer]
    ) -> int:
        """Superframes that differ in a number; how many were accepted (`stack.link.device.VolleyDevice`)."""
        sinks = self._sinks
        if len(sinks) != 1 or self._blocked is not None or self._faults.stalled:
            return 0
        accepted = push_volley(sinks[0], self._headers, self._fixup, head, last, count, number, parts)
        self.frames += accepted
        return accepted

    def transmit_alone(self, parts: tuple[Buffer, ...], facts: TxFacts) -> bool:
        """One frame of facts seen before, an answer or an ACK: True if it is in the ring. False: nothing was done."""
        sinks = self._sinks
        if (
            len(sinks) != 1
            or self._blocked is not None
            or self._faults.stalled
            or len(parts) > 2
            or len(parts[-1]) > _LONE_BYTES
        ):
            return False
        header, shortest, longest = self._headers.get(facts, _UNKNOWN)
        whole = b"".join((header, *parts))
        length = len(whole) - _HEADER_BYTES
        if not shortest <= length <= longest:
            return False
        if length < MIN_FRAME:
            whole += _PADDING[length:]
        ring = sinks[0]
        if (
            len(parts) == 1
            and self._owed.looking
            and (looks := patience(parts[0], facts[4], facts[5], self._inbox.heard))
        ):
            self._owed.note(ring, looks)
            accepted = ring.push_one(whole, self._fixup, patiently=True)
        else:
            accepted = ring.push_one(whole, self._fixup)
        if not accepted:
            return False
        self.frames += 1
        return True

    def _insist(self, ring: Virtqueue, frame: tuple[Buffer, ...]) -> int:
        """Once more for the first frame there was no room for; 1 if there is now.

        Otherwise notes what to wait for. The guest adds buffers all the time: the room seen *before* an attempt that
        failed is certainly too little, the room seen after it may be all there will ever be.
        """
        room = ring.room()
        accepted = ring.push([frame], header_fixup=self._fixup)
        self._blocked = None if accepted else ring
        self._blocked_room = room
        return accepted

    def _prepare(self, frames: Sequence[TxFrame]) -> tuple[list[tuple[Buffer, ...]], str]:
        """A portion of `frames` with their headers.

        Returns it and, when it ends before a frame that can never be sent, why that one cannot.
        """
        ready: list[tuple[Buffer, ...]] = []
        append = ready.append
        headers = self._headers
        last: tuple[int, ...] = ()
        header, shortest, longest = _UNKNOWN
        size = 0
        for frame in frames:
            facts = frame[1:]
            if facts != last:
                header, shortest, longest = headers.get(facts, _UNKNOWN)
                last = facts
            parts = frame[0]
            length = 0
            for part in parts:
                length += len(part)
            if shortest <= length <= longest:
                append((header, *parts) if length >= MIN_FRAME else (header, *parts, _PADDING[length:]))
            else:
                plain = self._special(frame, length, headers)
                if isinstance(plain, str):
                    return ready, plain
                append(plain)
                last = ()
            size += length
            if size >= PORTION_BYTES:
                break
        return ready, ""

    def _special(
        self, frame: TxFrame, length: int, headers: dict[tuple[int, ...], tuple[bytes, int, int]]
    ) -> tuple[Buffer, ...] | str:
        """A frame that is not like those before it: its parts behind a header, or why it cannot be sent.

        Offload facts are few and repeat; what has been judged once is remembered in `headers`: the header and the
        lengths it is good for as it is.
        """
        parts, flags, gso_type, hdr_len, gso_size, start, offset = frame
        longest = ETHER_HEADER + self._mtu
        if gso_type:
            if gso_type not in self._gso_types:
                return "gso-type"
            if not flags & NEEDS_CSUM or not gso_size:
                return "gso-facts"
            longest = MAX_SUPERFRAME
        elif length > longest and tagged(parts):
            longest += VLAN_TAG
        if length > longest:
            return "long"
        if length < ETHER_HEADER:
            return "short"
        if flags & NEEDS_CSUM and start + offset + 2 > length:
            return "csum-range"
        if flags and not self._guest_csum:
            if flags & NEEDS_CSUM:
                parts = (finished(parts, start, offset),)
            header = _HEADER.pack(0, 0, 0, 0, 0, 0, 1)
        else:
            header = _HEADER.pack(flags, gso_type, hdr_len, gso_size, start, offset, 1)
            if len(headers) >= _MAX_HEADERS:
                headers.clear()
            least = max(ETHER_HEADER, start + offset + 2 if flags & NEEDS_CSUM else 0)
            headers[frame[1:]] = (header, least, MAX_SUPERFRAME if gso_type else ETHER_HEADER + self._mtu)
        if length < MIN_FRAME:
            return (header, *parts, _PADDING[length:])
        return (header, *parts)

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self.drops[reason] = self.drops.get(reason, 0) + count
