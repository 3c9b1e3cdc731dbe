"""Interfaces: queueing, what the device refuses, changes of carrier, offloads and MTU, ARP (IF-08), bounds."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

import pytest

from stack.errors import NetError
from stack.iface.address import InterfaceAddress, broadcast_of, parse_prefix
from stack.iface.changes import ChangeKind, ChangeLog
from stack.iface.facts import InterfaceFlags
from stack.iface.interface import TX_QUEUE_BYTES, TX_QUEUE_FRAMES, Interface
from stack.link.device import GSO_TCPV4, NEEDS_CSUM, Offload, RxFrame, TxFrame
from stack.link.neighbour import NeighbourState
from stack.link.offload import ALL_OFFLOADS
from stack.scheduler import Scheduler
from stack.testing import builders
from stack.tests.ip_rig import EVERYBODY, ME, MY_MAC, PEER, PEER_MAC, Host, ScriptedDevice

EVERY_MAC = b"\xff" * 6


def plain(number: int, size: int = 60) -> TxFrame:
    return ((bytes((number,)) * size,), 0, 0, 0, 0, 0, 0)


def queue(host: Host, *numbers: int, size: int = 60) -> None:
    for number in numbers:
        host.eth.enqueue(plain(number, size), size)


def numbers(host: Host) -> list[int]:
    return [frame[0][0][0] for frame in host.device.sent]


def superframe() -> tuple[TxFrame, int]:
    """A TCP superframe of three segments, 1000 bytes each."""
    segment = bytearray(builders.tcp(ME, PEER, 1, 2, payload=bytes(3000)))
    segment[16:18] = builders.partial_checksum(ME, PEER, 6, len(segment)).to_bytes(2, "big")
    frame = builders.ethernet(PEER_MAC, MY_MAC, 0x0800, builders.ipv4(ME, PEER, 6, bytes(segment)))
    return ((frame,), NEEDS_CSUM, GSO_TCPV4, 54, 1000, 34, 16), len(frame)


def test_what_the_device_refuses_stays_in_order_and_is_retried_when_served() -> None:
    host = Host()
    host.device.accept = 2
    queue(host, 1, 2, 3, 4)
    host.scheduler.run_deferred()
    assert (numbers(host), host.eth.queued) == ([1, 2], 2)
    queue(host, 5)
    host.device.accept = 1
    host.scheduler.run_deferred()
    assert (numbers(host), host.eth.queued) == ([1, 2, 3], 2)
    host.device.accept = None
    host.eth.service(64)
    assert (numbers(host), host.eth.queued) == ([1, 2, 3, 4, 5], 0)


@pytest.mark.parametrize(("suppressed", "arms"), [(False, 1), (True, 0)])
def test_a_refusal_while_nobody_looks_asks_to_be_told_of_room(suppressed: bool, arms: int) -> None:
    """Frames may be refused between polls, by a socket call of another thread: the device must not stay silent."""
    host = Host()
    asked: list[int] = []
    woken: list[int] = []
    host.device.on_arm = lambda: asked.append(1)
    host.device.room_appears = True
    host.eth.on_ready = lambda: woken.append(1)
    if suppressed:
        host.eth.suppress()
    host.device.accept = 0
    queue(host, 1)
    host.scheduler.run_deferred()
    assert (len(asked), len(woken)) == (arms, arms)


def test_the_queue_is_bounded_in_frames_and_drops_at_the_tail() -> None:
    host = Host()
    host.device.accept = 0
    queue(host, *(number % 256 for number in range(TX_QUEUE_FRAMES + 50)))
    host.scheduler.run_deferred()
    queue(host, 7)
    assert (host.eth.queued, host.eth.drops["queue-full"]) == (TX_QUEUE_FRAMES, 51)


def test_the_queue_is_bounded_in_bytes() -> None:
    host = Host()
    host.device.accept = 0
    size = 65_000
    queue(host, *range(200), size=size)
    for number in range(300):
        queue(host, number % 256, size=size)
    assert host.eth.queued == TX_QUEUE_BYTES // size


def test_room_in_the_queue_returns_as_frames_leave() -> None:
    host = Host()
    for _ in range(5):
        for number in range(200):
            queue(host, number, size=65_000)
        host.scheduler.run_deferred()
    assert (len(host.device.sent), host.eth.drops.total) == (1000, 0)


def test_a_superframe_for_a_device_without_tso_is_cut_once() -> None:
    host = Host(offloads=Offload.CSUM)
    frame, length = superframe()
    host.eth.enqueue(frame, length)
    host.device.accept = 1
    host.scheduler.run_deferred()
    assert (len(host.device.sent), host.eth.queued) == (1, 2)
    host.device.accept = None
    host.eth.service(64)
    assert [len(b"".join(frame[0])) for frame in host.device.sent] == [1054] * 3


def test_frames_made_ready_are_looked_at_again_when_offloads_go() -> None:
    """A guest's driver is reset and comes back with less."""
    host = Host()
    host.device.accept = 0
    frame, length = superframe()
    host.eth.enqueue(frame, length)
    host.scheduler.run_deferred()
    assert host.eth.queued == 1
    host.device.offloads = Offload.NONE
    host.device.max_superframe = 1514
    host.device.changed()
    host.device.accept = None
    host.scheduler.run_deferred()
    assert [frame[1:3] for frame in host.device.sent] == [(0, 0)] * 3


def test_offloads_that_go_in_the_middle_of_a_transmit() -> None:
    """The device reports the change from inside `transmit`: nothing is sent twice, nothing lost."""
    host = Host()
    host.device.accept = 1
    frame, length = superframe()

    def reset() -> None:
        host.device.on_transmit = None
        host.device.offloads = Offload.NONE
        host.device.max_superframe = 1514
        host.device.accept = None
        host.device.changed()

    host.device.on_transmit = reset
    queue(host, 1)
    host.eth.enqueue(frame, length)
    host.scheduler.run_deferred()
    assert [len(b"".join(frame[0])) for frame in host.device.sent] == [60, 1054, 1054, 1054]
    assert host.eth.queued == 0


def test_frames_with_impossible_facts_are_dropped_and_counted() -> None:
    host = Host(offloads=Offload.NONE)
    host.eth.enqueue(((b"short",), NEEDS_CSUM, 0, 0, 0, 34, 16), 5)
    queue(host, 1)
    host.scheduler.run_deferred()
    assert (numbers(host), host.eth.drops["device-error"]) == ([1], 1)


def test_statistics() -> None:
    host = Host()
    queue(host, 1, 2, size=100)
    host.receive(bytes(50), bytes(60))
    stats = host.eth.stats
    assert (stats.tx_packets, stats.tx_bytes, stats.rx_packets, stats.rx_bytes) == (2, 200, 2, 110)


def test_taps_see_both_directions() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.rx: list[bytes] = []
            self.tx: list[bytes] = []

        def received(self, burst: Sequence[RxFrame]) -> None:
            self.rx += [bytes(frame[0]) for frame in burst]

        def transmitted(self, burst: Sequence[TxFrame]) -> None:
            self.tx += [b"".join(frame[0]) for frame in burst]

    host = Host()
    tap = Recorder()
    host.eth.taps.append(tap)
    queue(host, 1)
    host.receive(bytes(20))
    assert (tap.rx, tap.tx) == ([bytes(20)], [bytes((1,)) * 60])


def test_flags_follow_administration_and_carrier() -> None:
    """IF-02."""
    host = Host()
    running = InterfaceFlags.RUNNING | InterfaceFlags.LOWER_UP
    assert host.eth.flags == InterfaceFlags.UP | InterfaceFlags.BROADCAST | InterfaceFlags.MULTICAST | running
    host.device.carrier = False
    host.device.changed()
    assert not host.eth.flags & running
    host.eth.set_up(False)
    assert host.eth.flags == InterfaceFlags.BROADCAST | InterfaceFlags.MULTICAST


def test_changes_of_the_device_are_recorded_and_reported() -> None:
    host = Host()
    cursor = host.changes.end
    woken: list[int] = []
    host.eth.on_ready = lambda: woken.append(1)
    host.device.carrier = False
    host.device.changed()
    host.device.carrier = True
    host.device.mtu = 1400
    host.device.offloads = Offload.NONE
    host.device.changed()
    host.device.changed()  # only work, no change
    records = [each for each in host.changes.since(cursor)[0] if each.kind is ChangeKind.NEW_LINK]
    assert [each.detail for each in records] == ["no carrier", "offloads, mtu, carrier"]
    assert (host.eth.mtu, len(woken)) == (1400, 3)


def test_losing_the_carrier_forgets_neighbours() -> None:
    host = Host(resolved=False)
    entry = host.eth.neighbours.lookup(PEER)
    host.device.carrier = False
    host.device.changed()
    assert entry.state is NeighbourState.DEAD


def test_going_down_drops_what_is_queued() -> None:
    host = Host()
    queue(host, 1, 2)
    host.eth.set_up(False)
    host.scheduler.run_deferred()
    assert (host.device.sent, host.eth.drops["link-down"]) == ([], 2)


@pytest.mark.parametrize("mtu", [67, 1501])
def test_mtus_no_link_has(mtu: int) -> None:
    host = Host()
    with pytest.raises(NetError) as caught:
        host.eth.set_mtu(mtu)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(ValueError, match=f"MTU {mtu} is not within 68..1500"):
        Interface(host.scheduler, ScriptedDevice(), name="eth9", index=9, changes=ChangeLog(), mtu=mtu)


@pytest.mark.parametrize("mac", [b"", bytes(5), EVERY_MAC, bytes.fromhex("01005e000001")])
def test_macs_no_host_has(mac: bytes) -> None:
    host = Host()
    with pytest.raises(NetError):
        host.eth.set_mac(mac)
    with pytest.raises(ValueError, match="not the MAC address of a host"):
        Interface(host.scheduler, ScriptedDevice(), name="eth9", index=9, changes=ChangeLog(), mac=mac)


def test_a_smaller_mtu_set_by_hand_survives_the_device() -> None:
    host = Host()
    host.eth.set_mtu(1200)
    host.device.mtu = 9000
    host.device.changed()
    assert host.eth.mtu == 1200


def test_closing_lets_go_of_the_device() -> None:
    host = Host()
    queue(host, 1)
    host.eth.close()
    host.eth.close()
    host.scheduler.run_deferred()
    assert (host.device.on_change, host.device.sent, host.eth.fileno()) == (None, [], -1)


# --- ARP ------------------------------------------------------------------------------------------------------------


def arp(operation: int, sender_mac: bytes, sender: bytes, target: bytes, *, to: bytes = EVERY_MAC) -> bytes:
    return builders.ethernet(to, sender_mac, 0x0806, builders.arp(operation, sender_mac, sender, bytes(6), target))


def test_a_request_for_us_is_answered_and_its_sender_remembered() -> None:
    """IF-08; RFC 826."""
    host = Host(resolved=False)
    host.receive(arp(1, PEER_MAC, PEER, ME) + bytes(18))
    reply = builders.arp(2, MY_MAC, ME, PEER_MAC, PEER)
    assert host.sent() == [builders.ethernet(PEER_MAC, MY_MAC, 0x0806, reply)]
    entry = host.eth.neighbours.get(PEER)
    assert entry is not None
    assert (entry.mac, entry.state) == (PEER_MAC, NeighbourState.STALE)


def test_a_probe_is_answered_but_teaches_nothing() -> None:
    """RFC 5227 2.1.1."""
    host = Host(resolved=False)
    host.receive(arp(1, PEER_MAC, bytes(4), ME))
    assert (len(host.sent()), len(host.eth.neighbours)) == (1, 0)


@pytest.mark.parametrize(
    "frame",
    [
        arp(1, PEER_MAC, PEER, bytes((10, 0, 2, 77))),
        arp(2, PEER_MAC, PEER, ME),
        arp(1, PEER_MAC, PEER, PEER),
        arp(1, PEER_MAC, EVERYBODY, ME),
        arp(1, PEER_MAC, bytes((127, 0, 0, 1)), ME),
        arp(1, bytes.fromhex("010000000002"), PEER, ME),
        arp(3, PEER_MAC, PEER, ME),
        arp(1, PEER_MAC, ME, ME),
    ],
    ids=["for another", "unasked reply", "announcement", "broadcast", "loopback", "group MAC", "operation", "our own"],
)
def test_these_are_neither_answered_nor_remembered(frame: bytes) -> None:
    host = Host(resolved=False)
    host.receive(frame)
    assert (host.sent(), len(host.eth.neighbours)) == ([], 0)


def test_an_announcement_updates_a_neighbour_we_have() -> None:
    """RFC 826's merge: a machine that moved says so."""
    host = Host(resolved=False)
    host.receive(arp(1, PEER_MAC, PEER, ME))
    moved = bytes.fromhex("020000000044")
    host.receive(arp(1, moved, PEER, PEER))
    entry = host.eth.neighbours.get(PEER)
    assert entry is not None
    assert (entry.mac, entry.state) == (moved, NeighbourState.STALE)


def test_a_storm_of_senders_stays_bounded() -> None:
    host = Host(resolved=False)
    for number in range(3000):
        host.receive(arp(1, PEER_MAC, bytes((10, 0, 3 + (number >> 8), number & 255)), ME))
    assert len(host.eth.neighbours) <= 1024


def test_we_do_not_ask_without_an_address() -> None:
    host = Host(resolved=False)
    host.eth.addresses.clear()
    host.eth.neighbours.lookup(PEER).resolve()
    assert host.sent() == []


# --- small parts ------------------------------------------------------------------------------------------------------


def test_a_reader_of_changes_that_was_away_learns_what_it_lost() -> None:
    log = ChangeLog(limit=4)
    noted: list[int] = []
    log.observers.append(lambda: noted.append(log.end))
    for number in range(3):
        log.append(ChangeKind.NEW_ROUTE, number, 1)
    records, lost = log.since(1)
    assert ([each.subject for each in records], lost) == ([1, 2], 0)
    cursor = log.end
    for number in range(3, 10):
        log.append(ChangeKind.NEW_ROUTE, number, 1)
    records, lost = log.since(cursor)
    assert ([each.subject for each in records], lost) == ([6, 7, 8, 9], 3)
    assert log.since(log.end) == ([], 0)
    assert noted == list(range(1, 11))


@pytest.mark.parametrize(
    "text", ["", "10.0.2", "10.0.2.2/33", "10.0.2.2/", "10.0.2.2/-1", "fd00::/129", "x/24", "1.2.3.4/٣"]
)
def test_text_that_is_no_prefix_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="not an"):
        parse_prefix(text)


@pytest.mark.parametrize("text", ["224.0.0.1/4", "0.0.0.0/0", "::/0", "ff02::1/64", "255.255.255.255/32"])
def test_addresses_no_interface_has(text: str) -> None:
    with pytest.raises(ValueError, match="not an address that an interface can have"):
        InterfaceAddress.parse(text)


@pytest.mark.parametrize(
    ("text", "broadcast"),
    [("10.0.2.2/24", "10.0.2.255"), ("10.0.2.2/30", "10.0.2.3"), ("10.0.2.2/31", None), ("10.0.2.2/32", None)],
)
def test_directed_broadcasts(text: str, broadcast: str | None) -> None:
    """IF-13; RFC 3021 for /31."""
    found = broadcast_of(*parse_prefix(text))
    assert (None if found is None else ".".join(map(str, found))) == broadcast


def test_the_scheduler_is_asked_once_per_turn() -> None:
    scheduler = Scheduler(rng=random.Random(1))
    device = ScriptedDevice(offloads=ALL_OFFLOADS)
    iface = Interface(scheduler, device, name="eth0", index=1, changes=ChangeLog())
    for number in range(10):
        iface.enqueue(plain(number), 60)
    assert scheduler.run_deferred() == 1
    assert device.bursts == [10]
