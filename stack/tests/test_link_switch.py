"""The learning switch: where frames go, what is bounded, and that nothing is copied on the way."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from stack.errors import DropReason
from stack.link import Offload, Switch
from stack.link.device import GSO_TCPV4, NEEDS_CSUM, RxFrame, TxFrame
from stack.link.switch import MAC_AGEING, PORT_QUEUE_BYTES, DevicePort, StackPort
from stack.scheduler import Scheduler
from stack.testing import builders as b
from stack.testing.links import RecorderDevice

BROADCAST = b.BROADCAST


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def frame(dst: bytes, src: bytes, payload: bytes = b"payload") -> bytes:
    return b.ethernet(dst, src, 0x0800, payload)


class Segment:
    """A switch with two guests and one stack."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(rng=random.Random(1))
        self.switch = Switch(self.scheduler)
        self.devices = [RecorderDevice(), RecorderDevice()]
        self.ports: list[DevicePort] = [self.switch.attach(device) for device in self.devices]
        self.stack: StackPort = self.switch.port("stack")

    def guest_sends(self, guest: int, *frames: bytes) -> None:
        self.devices[guest].feed(*frames)
        self.turn()

    def stack_sends(self, *frames: bytes) -> None:
        self.stack.transmit([((data,), 0, 0, 0, 0, 0, 0) for data in frames])
        self.turn()

    def turn(self) -> None:
        for port in list(self.ports):
            while port.service(64):
                pass
        self.scheduler.run_deferred()

    def seen(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """What arrived since the last look at guest 0, guest 1 and the stack."""
        return self.devices[0].take(), self.devices[1].take(), [bytes(f[0]) for f in self.stack.receive(10000)]


def test_an_unknown_destination_is_flooded_and_a_learned_one_is_not() -> None:
    lan = Segment()
    question = frame(BROADCAST, mac(1))
    lan.guest_sends(0, question)
    assert lan.seen() == ([], [question], [question])
    answer = frame(mac(1), mac(9))
    lan.stack_sends(answer)
    assert lan.seen() == ([answer], [], [])
    lan.guest_sends(1, frame(mac(9), mac(2)))
    assert lan.seen() == ([], [], [frame(mac(9), mac(2))])
    unknown = frame(mac(77), mac(1))
    lan.guest_sends(0, unknown)
    assert lan.seen() == ([], [unknown], [unknown])


def test_group_addresses_are_flooded_except_the_bridges_own() -> None:
    """IEEE 802.1D table 7-10."""
    lan = Segment()
    multicast = frame(bytes.fromhex("01005e0000fb"), mac(1))
    lan.guest_sends(0, multicast)
    assert lan.seen() == ([], [multicast], [multicast])
    lan.guest_sends(0, frame(bytes.fromhex("0180c200000e"), mac(1)))
    assert lan.seen() == ([], [], [])


def test_a_frame_never_goes_out_where_it_came_in() -> None:
    lan = Segment()
    lan.guest_sends(0, frame(BROADCAST, mac(1)), frame(BROADCAST, mac(2)))
    lan.seen()
    lan.guest_sends(0, frame(mac(2), mac(1)))
    assert lan.seen() == ([], [], [])


def test_an_address_follows_its_host_to_another_port() -> None:
    lan = Segment()
    lan.guest_sends(0, frame(BROADCAST, mac(1)))
    lan.guest_sends(1, frame(BROADCAST, mac(1)))
    lan.seen()
    lan.stack_sends(frame(mac(1), mac(9)))
    assert lan.seen() == ([], [frame(mac(1), mac(9))], [])
    assert {(address, port) for address, port, _ in lan.switch.addresses()} == {(mac(1), "port1"), (mac(9), "stack")}


def test_addresses_age() -> None:
    """IEEE 802.1D section 7.9: an entry not refreshed for the ageing time is flooded to again."""
    lan = Segment()
    lan.guest_sends(0, frame(BROADCAST, mac(1)))
    lan.seen()
    lan.scheduler.now += MAC_AGEING
    lan.stack_sends(frame(mac(1), mac(9)))
    assert lan.seen()[1] == []
    lan.scheduler.now += 1
    lan.stack_sends(frame(mac(1), mac(9)))
    assert lan.seen()[1] != []


def test_a_port_inventing_addresses_displaces_only_its_own() -> None:
    lan = Segment()
    lan.guest_sends(1, frame(BROADCAST, mac(1)))
    lan.guest_sends(0, *(frame(BROADCAST, mac(number)) for number in range(1000, 2000)))
    assert len(list(lan.switch.addresses())) == 257
    lan.seen()
    lan.stack_sends(frame(mac(1), mac(9)), frame(mac(1999), mac(9)), frame(mac(1000), mac(9)))
    assert [len(x) for x in lan.seen()] == [2, 2, 0], "mac 1 known at guest 1, 1999 at guest 0, 1000 forgotten"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", DropReason.TOO_SHORT),
        (bytes(11), DropReason.TOO_SHORT),
        (frame(mac(9), b"\x01" + bytes(5)), DropReason.MARTIAN_SOURCE),
        (frame(mac(9), BROADCAST), DropReason.MARTIAN_SOURCE),
    ],
)
def test_bad_frames_are_counted_at_their_port_and_nothing_else_is_lost(bad: bytes, reason: DropReason) -> None:
    lan = Segment()
    good = frame(BROADCAST, mac(1))
    lan.guest_sends(0, bad, good)
    assert lan.seen() == ([], [good], [good])
    assert lan.ports[0].drops[reason] == 1
    lan.stack_sends(bad, good)
    assert lan.stack.drops[reason] == 1


def test_frames_above_the_ports_mtu_are_dropped_there_alone() -> None:
    lan = Segment()
    lan.devices[1].mtu = 4000
    long = frame(BROADCAST, mac(1), bytes(3000))
    lan.guest_sends(0, long)
    assert lan.seen() == ([], [long], [])
    assert lan.stack.drops[DropReason.TOO_LONG] == 1


def test_the_view_that_arrived_is_the_view_passed_on() -> None:
    """No copy from a device to a stack, nor to another device."""
    lan = Segment()
    slab = bytearray(frame(BROADCAST, mac(1), bytes(1000)))
    view = memoryview(slab)
    transmitted: list[TxFrame] = []

    def spy(burst: Sequence[TxFrame]) -> int:
        transmitted.extend(burst)
        return len(burst)

    lan.devices[1].transmit = spy  # type: ignore[method-assign]
    lan.devices[0].feed_frames((view, 0, 0, 0, 0, 0))
    lan.turn()
    assert lan.stack.receive(8)[0][0].obj is slab
    assert transmitted[0][0][0] is view


def test_what_a_stack_sends_is_safe_from_later_changes() -> None:
    """`transmit` has copied what is mutable when it returns, although the device gets it at the end of the turn."""
    lan = Segment()
    scratch = bytearray(frame(BROADCAST, mac(9)))
    lan.stack.transmit([((scratch,), 0, 0, 0, 0, 0, 0)])
    expected = bytes(scratch)
    scratch[:] = bytes(len(scratch))
    lan.turn()
    assert lan.seen()[:2] == ([expected], [expected])


def superframe() -> tuple[bytes, RxFrame]:
    src, dst = b"\x0a\0\2\2", b"\x0a\0\2\x0f"
    body = b.tcp(src, dst, 1, 2, payload=bytes(3000), checksum=b.partial_checksum(src, dst, 6, 3020))
    whole = b.ethernet(BROADCAST, mac(1), 0x0800, b.ipv4(src, dst, 6, body))
    return whole, (memoryview(whole), NEEDS_CSUM, GSO_TCPV4, 1000, 34, 16)


def test_offloads_are_adapted_for_each_port() -> None:
    """A flooded superframe stays whole for who takes it and is cut for who does not."""
    lan = Segment()
    lan.devices[1].offloads = Offload.NONE
    whole, fact = superframe()
    lan.devices[0].feed_frames(fact)
    lan.turn()
    at_stack = lan.stack.receive(8)
    assert at_stack == [fact]
    pieces = lan.devices[1].sent
    assert [(len(piece[0]), piece[1], piece[2]) for piece in pieces] == [(1054, 0, 0)] * 3
    lan.devices[1].sent = []
    lan.stack.transmit([((whole,), *fact[1:3], 54, *fact[3:])])
    lan.turn()
    assert lan.devices[0].sent == [fact]
    assert len(lan.devices[1].sent) == 3


def test_superframes_with_lying_facts_are_counted_where_they_cannot_be_cut() -> None:
    lan = Segment()
    lan.devices[1].offloads = Offload.NONE
    _, fact = superframe()
    lan.devices[0].feed_frames((*fact[:3], 0, *fact[4:]))
    lan.turn()
    assert lan.devices[1].sent == []
    assert lan.ports[1].drops[DropReason.BAD_HEADER] == 1
    assert lan.ports[1].queued == 0


def test_a_burst_is_transmitted_in_one_call() -> None:
    lan = Segment()
    lan.stack_sends(*(frame(BROADCAST, mac(9)) for _ in range(40)))
    assert lan.devices[0].bursts == [40]


def test_what_a_device_refuses_waits_in_order_and_is_retried() -> None:
    lan = Segment()
    lan.devices[0].room = 2
    frames = [frame(BROADCAST, mac(9), bytes([i])) for i in range(5)]
    lan.stack_sends(*frames[:4])
    lan.stack_sends(frames[4])
    assert lan.seen()[0] == frames[:2]
    assert lan.ports[0].queued == sum(map(len, frames[2:]))
    lan.devices[0].room = None
    lan.devices[0].changed()
    lan.turn()
    assert lan.seen()[0] == frames[2:]
    assert lan.ports[0].queued == 0


def test_frames_that_go_on_arriving_retry_what_was_refused_though_nobody_sleeps() -> None:
    # A Network that always has work never arms the device that refused: no kick says that there is room again.
    lan = Segment()
    lan.devices[0].room = 0
    frames = [frame(mac(8), mac(9), bytes([i])) for i in range(3)]
    lan.guest_sends(0, frame(BROADCAST, mac(8)))
    lan.seen()
    for number, data in enumerate(frames):
        lan.devices[1].feed(data)
        lan.ports[1].service(64)
        lan.scheduler.run_deferred()
        lan.devices[0].room = None if number == 1 else lan.devices[0].room
    assert lan.devices[0].take() == frames


def test_a_guest_that_stops_reading_costs_bounded_memory_and_others_nothing() -> None:
    lan = Segment()
    lan.devices[0].room = 0
    big = frame(BROADCAST, mac(9), bytes(1400))
    rounds = PORT_QUEUE_BYTES // len(big) // 100 + 5
    for _ in range(rounds):
        lan.stack_sends(*(big for _ in range(100)))
        assert len(lan.devices[1].take()) == 100
    assert lan.ports[0].queued <= PORT_QUEUE_BYTES
    assert lan.ports[0].drops[DropReason.QUEUE_FULL] > 0
    sent = rounds * 100
    held = lan.ports[0].queued // len(big)
    assert held + lan.ports[0].drops[DropReason.QUEUE_FULL] == sent


def test_a_stack_that_stops_reading_is_bounded_too() -> None:
    lan = Segment()
    big = frame(BROADCAST, mac(1), bytes(1400))
    for _ in range(PORT_QUEUE_BYTES // len(big) // 100 + 5):
        lan.guest_sends(0, *(big for _ in range(100)))
        lan.devices[1].take()
    assert lan.stack.drops[DropReason.QUEUE_FULL] > 0


def test_a_device_that_loses_its_guest_is_forgotten_and_returns() -> None:
    lan = Segment()
    lan.guest_sends(0, frame(BROADCAST, mac(1)))
    lan.seen()
    lan.devices[0].carrier = False
    ready: list[int] = []
    lan.ports[0].on_ready = lambda: ready.append(1)
    lan.devices[0].changed()
    assert ready
    assert list(lan.switch.addresses()) == []
    lan.stack_sends(frame(mac(1), mac(9)))
    assert lan.seen()[1] != [], "flooded, for nobody knows where it is"
    assert lan.devices[0].bursts == []
    lan.devices[0].carrier = True
    lan.devices[0].changed()
    lan.stack_sends(frame(BROADCAST, mac(9)))
    assert len(lan.seen()[0]) == 1


def test_ports_leave_and_others_stay() -> None:
    lan = Segment()
    lan.guest_sends(0, frame(BROADCAST, mac(1)))
    device = lan.ports[0].detach()
    assert device is lan.devices[0]
    assert not lan.devices[0].closed
    lan.ports[0].detach()
    lan.ports.pop(0)
    lan.devices[0].take()
    lan.stack_sends(frame(mac(1), mac(9)))
    assert lan.seen()[0] == []
    lan.stack.close()
    lan.stack.close()
    assert lan.stack.transmit([((frame(BROADCAST, mac(9)),), 0, 0, 0, 0, 0, 0)]) == 1
    lan.ports[0].service(8)


def test_new_work_at_a_stacks_port_is_reported_once() -> None:
    lan = Segment()
    events: list[int] = []
    lan.stack.on_change = lambda: events.append(1)
    lan.guest_sends(0, frame(BROADCAST, mac(1)), frame(BROADCAST, mac(1)))
    assert events == [1]
    assert lan.stack.arm()
    assert lan.stack.fileno() == -1


def test_macs_of_ports_are_local_unicast_and_differ() -> None:
    switch = Switch(Scheduler(rng=random.Random(2)))
    macs = {switch.port().mac for _ in range(20)}
    assert len(macs) == 20
    assert all(address[0] & 3 == 2 for address in macs)
