"""Interrupts the guest can wait for: owed, and made with the next one, or half a millisecond later, or before we sleep.

Virtio 1.3 section 2.7.7 says whether the guest is to be told of used buffers, not how soon. What is owed is never
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vhost_user.driver import DriverRing, NetDriver, NetFrame
from vhost_user.features import NetFeature
from vhost_user.frames import TxFrame
from vhost_user.net import NetDevice
from vhost_user.owed import ACK_LOOKS, FLOOD
from vhost_user.virtqueue import OWED_LOOKS

from .device_rig import GUEST_MAC, HOST_MAC, PSEUDO6, ether, ipv4, ipv6, net_rig, superframe4, tcp, udp

NEEDS_CSUM = 1
GSO_TCPV4 = 1
FIN, ACK = 1, 16


@pytest.fixture(name="rig", params=[0, NetFeature.EVENT_IDX], ids=["event index", "flags"])
def _rig(request: pytest.FixtureRequest) -> Iterator[tuple[NetDevice, NetDriver]]:
    """Both see to what there is; the guest wants to hear of everything."""
    with net_rig(NetDevice(disable=request.param)) as (device, guest):
        device.suppress()
        assert device.transmit([farewell(ACK), farewell(ACK, six=True)]) == 2  # the usual facts are known
        assert len(guest.recv()) == 2
        for ring in (guest.rx(), guest.tx()):
            ring.arm()
            ring.drain_calls()
        yield device, guest


def calls(ring: DriverRing) -> int:
    """Interrupts since the last time; the next one is wanted as well."""
    ring.reclaim()
    ring.arm()
    return ring.drain_calls()


BARE = [ether(0x0800, ipv4(6, tcp(b""))), ether(0x86DD, ipv6(6, tcp(b"", pseudo=PSEUDO6))),
        ether(0x0800, ipv4(6, tcp(b"", words=8))), ether(0x0800, ipv4(6, tcp(b"")), vlans=1)]  # fmt: skip
OTHERS = [ether(0x0800, ipv4(6, tcp(b"?"))), ether(0x86DD, ipv6(6, tcp(b"?", pseudo=PSEUDO6))),
          ether(0x0800, ipv4(17, udp(b""))), ether(0x0806, bytes(46)),
          ether(0x0800, ipv4(6, tcp(b""), fragment=0x2000)), ether(0x0800, ipv4(6, b"short"))]  # fmt: skip


@pytest.mark.parametrize("frame", BARE)
def test_the_buffer_of_a_segment_without_data_can_wait(rig: tuple[NetDevice, NetDriver], frame: bytes) -> None:
    """It is given back at once, and no program waits for it to be free."""
    device, guest = rig
    assert guest.send([frame]) == 1
    assert len(device.receive(64)) == 1
    assert guest.tx().pending == 1
    assert guest.tx().drain_calls() == 0
    for _ in range(OWED_LOOKS - 1):
        assert not device.receive(64)
    assert guest.tx().drain_calls() == 0
    assert not device.receive(64)
    assert calls(guest.tx()) == 1
    for _ in range(2 * OWED_LOOKS):
        device.receive(64)
    assert calls(guest.tx()) == 0


@pytest.mark.parametrize("frame", OTHERS)
def test_any_other_buffer_is_told_of_at_once(rig: tuple[NetDevice, NetDriver], frame: bytes) -> None:
    """Data may wait for room in the sender's buffer, and who sends datagrams waits for theirs."""
    device, guest = rig
    assert guest.send([frame]) == 1
    device.receive(64)
    assert calls(guest.tx()) == 1


def bulk(size: int) -> NetFrame:
    """A superframe with `size` bytes of payload."""
    return NetFrame(superframe4(size), NEEDS_CSUM, GSO_TCPV4, gso_size=1460, csum_start=34, csum_offset=16)


@pytest.mark.parametrize(("size", "told"), [(16383, 1), (16384, 0)])
def test_the_buffer_of_a_bulk_transfer_can_wait(rig: tuple[NetDevice, NetDriver], size: int, told: int) -> None:
    """Its sender hears of the acknowledgment soon, and sees all buffers that are free when it does."""
    device, guest = rig
    assert guest.send([bulk(size)]) == 1
    assert len(device.receive(64)) == 1
    assert calls(guest.tx()) == told


@pytest.mark.parametrize(("size", "told"), [(16000, 1), (16384, 0)])
def test_an_acknowledgment_in_a_bulk_transfer_can_wait(rig: tuple[NetDevice, NetDriver], size: int, told: int) -> None:
    """For half as many looks as others: its sender may have reached the end of its window after all."""
    device, guest = rig
    assert guest.send([bulk(size)]) == 1
    assert len(device.receive(64)) == 1
    assert device.transmit([farewell(ACK)]) == 1
    assert guest.rx().drain_calls() == told
    for _ in range(ACK_LOOKS):
        assert guest.rx().drain_calls() == 0
        assert not device.receive(64)
    assert guest.rx().drain_calls() == 1 - told


@pytest.mark.parametrize(("count", "told"), [(4, 0), (5, 1)])
def test_a_flood_is_acknowledged_at_once(rig: tuple[NetDevice, NetDriver], count: int, told: int) -> None:
    """Who sends a quarter of a megabyte before we look is quicker than we are, and about to stop at its window."""
    device, guest = rig
    frames = [bulk(60_000)] * count
    assert sum(len(frame.data) for frame in frames) // FLOOD == told
    assert guest.send(frames) == count
    assert len(device.receive(64)) == count
    assert device.transmit([farewell(ACK)]) == 1
    assert guest.rx().drain_calls() == told


def test_a_call_that_is_owed_comes_with_the_next_one(rig: tuple[NetDevice, NetDriver]) -> None:
    device, guest = rig
    for frame in (BARE[0], BARE[1], OTHERS[0]):
        assert guest.tx().drain_calls() == 0
        assert guest.send([frame]) == 1
        device.receive(64)
    assert calls(guest.tx()) == 1
    assert guest.send([BARE[0], OTHERS[0], BARE[0]]) == 3
    assert len(device.receive(64)) == 3
    assert calls(guest.tx()) == 1


def test_nothing_is_owed_to_a_guest_while_we_sleep(rig: tuple[NetDevice, NetDriver]) -> None:
    device, guest = rig
    assert guest.send([BARE[0]]) == 1
    device.receive(64)
    assert device.transmit([farewell()]) == 1
    assert guest.rx().drain_calls() == guest.tx().drain_calls() == 0
    assert not device.arm()
    assert calls(guest.tx()) == 1
    assert guest.rx().drain_calls() == 1


# to the guest


def farewell(flags: int = FIN | ACK, payload: bytes = b"", six: bool = False) -> TxFrame:
    """A segment as our stack sends it."""
    segment = bytearray(tcp(b"", partial=True))
    segment[13] = flags
    packet = ipv6(6, bytes(segment)) if six else ipv4(6, bytes(segment))
    header = GUEST_MAC + HOST_MAC + (b"\x86\xdd" if six else b"\x08\x00") + packet
    start = len(header) - 20
    return ((header, payload) if payload else (header,), NEEDS_CSUM, 0, len(header), 0, start, 16)


@pytest.mark.parametrize("six", [False, True])
def test_our_goodbye_can_wait(rig: tuple[NetDevice, NetDriver], six: bool) -> None:
    """In the ring at once; the interrupt for it may be the next segment's."""
    device, guest = rig
    assert device.transmit([farewell(six=six)]) == 1
    assert guest.rx().pending == 1
    assert guest.rx().drain_calls() == 0
    assert device.transmit([farewell(ACK, b"!")]) == 1
    assert guest.rx().drain_calls() == 1
    assert len(guest.recv()) == 2
    guest.rx().arm()
    assert device.transmit([farewell(six=six)]) == 1
    for _ in range(OWED_LOOKS):
        assert guest.rx().drain_calls() == 0
        assert not device.receive(64)
    assert guest.rx().drain_calls() == 1


@pytest.mark.parametrize("frame", [farewell(ACK), farewell(ACK | FIN, b"!"), farewell(ACK, six=True)])
def test_what_a_program_may_wait_for_is_told_of_at_once(rig: tuple[NetDevice, NetDriver], frame: TxFrame) -> None:
    device, guest = rig
    assert device.transmit([frame]) == 1
    assert guest.rx().drain_calls() == 1


def test_a_ring_that_stops_owes_nothing(rig: tuple[NetDevice, NetDriver]) -> None:
    """Who takes it over from us finds no guest that waits for a call of ours."""
    device, guest = rig
    assert guest.send([BARE[0]]) == 1
    device.receive(64)
    assert guest.tx().drain_calls() == 0
    guest.stop()
    assert guest.tx().drain_calls() == 1


def test_what_leaves_while_nobody_looks_is_told_of_at_once(rig: tuple[NetDevice, NetDriver]) -> None:
    """A program closes its socket while all others sleep: there will be no looks in vain, and nobody about to sleep."""
    device, guest = rig
    assert not device.arm()
    assert device.transmit([farewell()]) == 1
    assert guest.rx().drain_calls() == 1
    device.suppress()
    assert len(guest.recv()) == 1
    guest.rx().arm()
    assert device.transmit([farewell()]) == 1
    assert guest.rx().drain_calls() == 0
    device.notify_change()
    device.refresh()
    assert guest.rx().drain_calls() == 1
