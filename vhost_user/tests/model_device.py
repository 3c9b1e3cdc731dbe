"""The device side of a split virtqueue in plain Python: the oracle the C rings are compared with.

Written from virtio 1.3 section 2.7 and the ring rules, as literally and slowly as possible, sharing no code with the
C: no batching, no scratch space, no private slab, one chain after the other. It works on its own copy of the guest's
file; after the same calls both copies must be equal byte by byte, so used rings, event indexes, payload and *untouched*
memory are all compared at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhost_user.memory import Region

PushMode = Literal["one", "merge"]

#: What the C says, by the name used here.
REASONS: Final = {
    "avail-index": "the available index moved",
    "head": "an available entry names",
    "next": "a descriptor's next",
    "loop": "a loop",
    "indirect-refused": "without having been negotiated",
    "indirect-next": "has a next one",
    "indirect-nested": "contains an indirect descriptor",
    "indirect-length": "not a multiple of 16",
    "order": "follows a device-writable one",
    "writable": "a device-writable buffer in",
    "readable": "a device-readable buffer in",
    "address": "outside guest memory",
    "pieces": "too many pieces",
    "length": "longer than 4 GiB",
    "small": "too small for the device's header",
}


class Broken(Exception):  # noqa: N818 - a state of the ring
    """The ring broke; args[0] is a key of REASONS."""


class NoFit(Exception):  # noqa: N818 - an outcome, not an error
    """A frame that this ring can never take."""


class Shortage(Exception):  # noqa: N818
    """Too few chains for a frame."""


@dataclass
class Chain:
    head: int
    bytes: list[int]  #: the file offset of every single byte


class ModelDevice:
    """One ring. `memory` is a copy of the guest's file and is changed in place."""

    def __init__(
        self,
        memory: bytearray,
        regions: Sequence[Region],
        *,
        num: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        indirect: bool,
        event_idx: bool,
    ) -> None:
        self.memory = memory
        self.regions = regions
        self.num = num
        self.desc, self.avail, self.used = desc, avail, used
        self.last_avail = base
        self.indirect, self.event_idx = indirect, event_idx
        self.broken: str | None = None
        self.calls = 0
        # On start: used index from guest memory, avail_event rewritten, one call (reference section 6.2).
        self.used_idx = self.u16(used + 2)
        self.calls += 1
        try:
            self.arm_now(0)
        except Broken as broken:
            self.broken = broken.args[0]

    # memory

    def place(self, gpa: int) -> int:
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + region.size:
                return region.mmap_offset + gpa - region.gpa
        raise Broken("address")

    def load(self, gpa: int, size: int) -> bytes:
        return bytes(self.memory[self.place(gpa + i)] for i in range(size))

    def store(self, gpa: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.memory[self.place(gpa + i)] = byte

    def u16(self, gpa: int) -> int:
        return int.from_bytes(self.load(gpa, 2), "little")

    def set_u16(self, gpa: int, value: int) -> None:
        self.store(gpa, (value % 65536).to_bytes(2, "little"))

    # the ring

    def available(self) -> int:
        count = (self.u16(self.avail + 2) - self.last_avail) % 65536
        if count > self.num:
            raise Broken("avail-index")
        return count

    def head(self, ahead: int) -> int:
        return self.u16(self.avail + 4 + 2 * ((self.last_avail + ahead) % self.num))

    def buffers(self, head: int) -> Iterator[tuple[int, int, bool]]:
        """(address, length, device-writable) of a chain; raises Broken in the middle."""
        if head >= self.num:
            raise Broken("head")
        table, size, inside = self.desc, self.num, False
        index = head
        seen = 0
        while True:
            entry = table + 16 * index
            address, length, flags, following = struct.unpack("<QIHH", self.load(entry, 16))
            if flags & 4:
                if not self.indirect:
                    raise Broken("indirect-refused")
                if inside:
                    raise Broken("indirect-nested")
                if flags & 1:
                    raise Broken("indirect-next")
                if length == 0 or length % 16 or length // 16 > self.num:
                    raise Broken("indirect-length")
                if address + length >= 1 << 64:
                    raise Broken("address")
                table, size, inside = address, length // 16, True
                index = 0
                continue
            seen += 1
            if seen > self.num:
                raise Broken("loop")
            yield address, length, bool(flags & 2)
            if not flags & 1:
                return
            if following >= size:
                raise Broken("next")
            index = following

    def chain(self, head: int, writable: bool) -> Chain:
        chain = Chain(head, [])
        total = 0
        seen_writable = False
        for address, length, device_writes in self.buffers(head):
            if seen_writable and not device_writes:
                raise Broken("order")
            seen_writable = device_writes
            if device_writes != writable:
                raise Broken("writable" if device_writes else "readable")
            total += length
            if total >= 1 << 32:
                raise Broken("length")
            if address + length >= 1 << 64:
                raise Broken("address")
            chain.bytes.extend(self.span(address, length))
        return chain

    def span(self, address: int, length: int) -> Iterator[int]:
        """File offsets of [address, address+length), region by region (byte by byte would take hours for 4 GiB)."""
        while length:
            offset = self.place(address)
            region = next(r for r in self.regions if r.mmap_offset <= offset < r.mmap_offset + r.size)
            part = min(length, region.gpa + region.size - address)
            yield from range(offset, offset + part)
            address += part
            length -= part

    def finish(self, used: list[tuple[int, int]]) -> None:
        """Publish used entries and decide about the call."""
        if not used:
            return
        for ahead, (head, length) in enumerate(used):
            slot = (self.used_idx + ahead) % self.num
            self.store(self.used + 4 + 8 * slot, struct.pack("<II", head, length))
        old, new = self.used_idx, (self.used_idx + len(used)) % 65536
        self.set_u16(self.used + 2, new)
        self.used_idx = new
        self.last_avail = (self.last_avail + len(used)) % 65536
        if self.event_idx:
            event = self.u16(self.avail + 4 + 2 * self.num)
            # The driver wants a call when the index passes event, i.e. when entry `event` was among the new ones.
            wanted = event in [(old + i) % 65536 for i in range(len(used))]
        else:
            wanted = not self.u16(self.avail) & 1
        self.calls += wanted

    # what Virtqueue offers; each returns nothing (0, [], False) on a broken ring

    def pop(self, budget: int, max_bytes: int, max_chain: int) -> list[bytes]:
        if self.broken:
            return []
        records: list[bytes] = []
        used: list[tuple[int, int]] = []
        try:
            waiting = self.available()
            while len(used) < min(waiting, budget):
                head = self.head(len(used))
                chain = self.chain(head, writable=False)
                if len(chain.bytes) <= max_chain:
                    total = sum(map(len, records)) + len(chain.bytes)
                    if records and total > max_bytes:
                        break
                    records.append(bytes(self.memory[offset] for offset in chain.bytes))
                used.append((head, 0))
        except Broken as broken:
            if not used:
                self.broken = broken.args[0]
        self.finish(used)
        return records

    def discard(self, budget: int) -> int:
        if self.broken:
            return 0
        try:
            heads = [self.head(ahead) for ahead in range(min(self.available(), budget))]
            if any(head >= self.num for head in heads):
                raise Broken("head")
        except Broken as broken:
            self.broken = broken.args[0]
            return 0
        self.finish([(head, 0) for head in heads])
        return len(heads)

    def push(self, frames: Sequence[bytes], mode: PushMode, *, at: int = 0) -> int:
        if self.broken:
            return 0
        used: list[tuple[int, int]] = []
        accepted = 0
        try:
            waiting = self.available()
            for frame in frames:
                try:
                    used += self.place_frame(frame, mode, at, len(used), waiting)
                except NoFit:
                    pass
                except Shortage:
                    break
                accepted += 1
        except Broken as broken:
            if not accepted:
                self.broken = broken.args[0]
        self.finish(used)
        return accepted

    def place_frame(self, frame: bytes, mode: PushMode, at: int, taken: int, waiting: int) -> list[tuple[int, int]]:
        smallest = {"one": 0, "merge": at + 2}[mode]
        if len(frame) < smallest:
            raise NoFit
        chains: list[Chain] = []
        room = 0
        while not chains or room < len(frame):
            if len(chains) == self.num:
                raise NoFit
            if taken + len(chains) == waiting:
                raise Shortage
            chain = self.chain(self.head(taken + len(chains)), writable=True)
            if len(chain.bytes) < smallest:
                raise Broken("small")
            chains.append(chain)
            room += len(chain.bytes)
            if mode == "one" and room < len(frame):
                raise NoFit
        if mode == "merge":
            frame = frame[:at] + len(chains).to_bytes(2, "little") + frame[at + 2 :]
        rest = frame
        used = []
        for chain in chains:
            data = rest[: len(chain.bytes)]
            rest = rest[len(data) :]
            for offset, byte in zip(chain.bytes, data, strict=False):
                self.memory[offset] = byte
            used.append((chain.head, len(data)))
        if mode == "merge":
            # num_buffers is written last, over whatever overlapping buffers made of it.
            for offset, byte in zip(chains[0].bytes[at : at + 2], frame[at : at + 2], strict=True):
                self.memory[offset] = byte
        return used

    def push_split(
        self, frames: Sequence[bytes], *, header_size: int, length_at: int, marks_at: int
    ) -> tuple[int, int]:
        """Packets that may be cut: (accepted whole, payload bytes of the next one that found room)."""
        if self.broken:
            return 0, 0
        used: list[tuple[int, int]] = []
        accepted = placed = 0
        try:
            waiting = self.available()
            for frame in frames:
                placed = 0
                if len(frame) >= header_size:
                    payload = frame[header_size:]
                    while True:
                        if len(used) == waiting:
                            raise Shortage
                        chain = self.chain(self.head(len(used)), writable=True)
                        room = len(chain.bytes) - header_size
                        if room < (placed < len(payload)):
                            raise Broken("small")
                        part = payload[placed : placed + room]
                        placed += len(part)
                        header = bytearray(frame[:header_size])
                        header[length_at : length_at + 4] = len(part).to_bytes(4, "little")
                        if marks_at and placed < len(payload):
                            header[marks_at : marks_at + 4] = bytes(4)
                        for offset, byte in zip(chain.bytes, bytes(header) + part, strict=False):
                            self.memory[offset] = byte
                        used.append((chain.head, header_size + len(part)))
                        if placed == len(payload):
                            break
                placed = 0
                accepted += 1
        except Shortage:
            pass
        except Broken as broken:
            if not accepted and not used:
                self.broken = broken.args[0]
        self.finish(used)
        return accepted, placed

    def suppress(self) -> None:
        if self.broken:
            return
        if self.event_idx:
            self.set_u16(self.used + 4 + 8 * self.num, self.last_avail - 1)
        else:
            self.set_u16(self.used, 1)

    def arm_now(self, beyond: int) -> bool:
        beyond = min(beyond, self.num)
        if self.event_idx:
            self.set_u16(self.used + 4 + 8 * self.num, self.last_avail + beyond)
        else:
            self.set_u16(self.used, 0)
        return self.available() > beyond

    def arm(self, beyond: int) -> bool:
        if self.broken:
            return False
        try:
            return self.arm_now(beyond)
        except Broken as broken:
            self.broken = broken.args[0]
            return False

    def room(self) -> int:
        if self.broken:
            return 0
        try:
            return self.available()
        except Broken as broken:
            self.broken = broken.args[0]
            return 0
