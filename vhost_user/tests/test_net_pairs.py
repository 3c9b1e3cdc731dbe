"""Several queue pairs: all enabled ones are served, a flow's answers go where it came from, the others are discarded.

virtio 1.3 sections 5.1.6.5.5 and 5.1.6.5.6.1; vhost-user: SET_VRING_ENABLE.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vhost_user.driver import NetDriver, NetFrame
from vhost_user.net import NetDevice
from vhost_user.tests.device_rig import broadcast, ether, ipv4, ipv6, net_rig, plain, superframe4, udp
from vhost_user.workers import Workers


@contextmanager
def rig(pairs: int, *, workers: int = 1, **driver: Any) -> Iterator[tuple[NetDevice, NetDriver]]:
    with net_rig(NetDevice(queues=pairs, workers=workers), queues=pairs, **driver) as (device, guest):
        yield device, guest


def flow_frames(version: int, port: int) -> tuple[bytes, bytes]:
    """A datagram of the guest's, and the answer to it."""
    there = udp(b"question")
    there = there[:2] + port.to_bytes(2, "big") + there[4:6] + bytes(2) + there[8:]  # no checksum
    back = there[2:4] + there[:2] + there[4:]
    if version == 4:
        packet = ipv4(17, there)
        return ether(0x0800, packet), ether(0x0800, packet[:12] + packet[16:20] + packet[12:16] + back)
    packet = ipv6(17, there)
    return ether(0x86DD, packet), ether(0x86DD, packet[:8] + packet[24:40] + packet[8:24] + back)


@pytest.mark.parametrize("version", [4, 6])
def test_the_answer_goes_to_the_pair_the_flow_came_from(version: int) -> None:
    """5.1.6.5.5: automatic receive steering."""
    with rig(4) as (device, guest):
        homes = {port: port * 7 % 4 for port in range(1000, 1040)}
        for port, queue in homes.items():
            question, _ = flow_frames(version, port)
            guest.send([question], queue=queue)
        assert len(device.receive(256)) == 40
        answers = [flow_frames(version, port)[1] for port in homes]
        assert device.transmit([plain(answer) for answer in answers]) == 40
        got = {bytes(frame.data): queue for queue in range(4) for frame in guest.recv(256, queue=queue)}
        # A few flows may share an entry of the table, and then the last of them has its way.
        right = sum(
            got[answer.ljust(60, b"\0")] == queue for answer, queue in zip(answers, homes.values(), strict=True)
        )
        assert len(got) == 40
        assert right >= 37


def test_a_flow_that_moves_to_another_pair_is_followed() -> None:
    with rig(2) as (device, guest):
        question, answer = flow_frames(4, 1000)
        for queue in (0, 1, 0):
            guest.send([question], queue=queue)
            device.receive(256)
            device.transmit([plain(answer[:20], answer[20:])])
            assert len(guest.recv(queue=queue)) == 1


def test_a_flow_the_guest_never_sent_stays_in_one_pair() -> None:
    with rig(4) as (device, guest):
        device.transmit([plain(flow_frames(4, port)[1]) for port in range(200)] * 2)
        rings = [[bytes(frame.data) for frame in guest.recv(256, queue=queue)] for queue in range(4)]
        assert all(len(ring) > 20 for ring in rings)
        assert all(ring[: len(ring) // 2] == ring[len(ring) // 2 :] for ring in rings)


def test_a_pair_switched_off_while_running_is_discarded_and_its_flows_go_on_elsewhere() -> None:
    """The driver's VQ_PAIRS_SET, as a front-end tells of it: SET_VRING_ENABLE 0 for both rings of a pair."""
    with rig(2, tx_size=8) as (device, guest):
        question, answer = flow_frames(4, 1000)
        guest.send([question], queue=1)
        device.receive(256)
        for ring in (2, 3):
            guest.frontend.set_vring_enable(ring, False)
        guest.frontend.get_features()  # has been done when this is answered
        for _ in range(5):
            assert guest.send([broadcast(60, 1)] * 8, queue=1) == 8
            guest.send([broadcast(60, 0)], queue=0)
            assert len(device.receive(256)) == 1  # pair 0's; and the other one never fills up, though nobody sleeps
            guest.tx(1).reclaim()
        assert device.drops == {"rx-disabled": 40}
        assert device.transmit([plain(answer)] * 3) == 3
        assert len(guest.recv(queue=0)) == 3
        assert guest.recv(queue=1) == []
        for ring in (2, 3):
            guest.frontend.set_vring_enable(ring, True)
        guest.frontend.get_features()
        guest.send([question], queue=1)
        assert len(device.receive(256)) == 1
        assert device.transmit([plain(answer)] * 3) == 3
        assert len(guest.recv(queue=1)) == 3


def test_without_the_first_pair_there_is_no_carrier_whatever_the_others_do() -> None:
    with rig(2) as (device, guest):
        guest.frontend.set_vring_enable(0, False)
        guest.frontend.get_features()  # has been done when this is answered
        device.arm()
        assert not device.carrier
        frame = plain(broadcast(60))
        assert device.transmit([frame, frame]) == 2
        assert not device.transmit_alone(frame[0], frame[1:])
        assert device.drops == {"tx-no-carrier": 2}
        assert guest.recv(4, queue=1) == []


def test_pairs_come_back_after_a_reset_and_with_another_driver() -> None:
    with rig(2) as (device, guest):
        for _ in range(2):
            for queue in (0, 1):
                guest.send([broadcast(60, queue)] * 3, queue=queue)
            assert len(device.receive(256)) == 6
            guest.reset()
            assert device.receive(256) == []
            guest.start()
            device.refresh()
        assert device.workers.count == 1
        assert device.hang_up("the end of a test")
        device.refresh()
        assert device.workers.count == 0


def test_what_several_threads_take_is_what_one_takes() -> None:
    """The same frames through one and through two threads: the same frames, drops and counters."""
    results = []
    for workers in (0, 1):
        draw = random.Random(5)
        frames = [
            broadcast(draw.randrange(60, 1500), n) if n % 7 else ether(0x0800, ipv4(17, udp(b"x" * n, spoil=1)))
            for n in range(120)
        ]
        with rig(2, workers=workers) as (device, guest):
            taken: list[bytes] = []
            for begin in range(0, 120, 10):
                guest.send(frames[begin : begin + 5], queue=0)
                guest.send(frames[begin + 5 : begin + 10], queue=1)
                while got := device.receive(64):
                    taken += [bytes(frame[0]) for frame in got]
            assert device.workers.count == workers
            results.append((sorted(taken), device.drops, device.frames_in, device.bytes_in))
    assert results[0] == results[1]
    assert results[0][1]["rx-checksum"] == 18


def test_a_budget_is_shared_and_every_ring_has_its_turn() -> None:
    with rig(4) as (device, guest):
        for queue in range(4):
            guest.send([broadcast(60, queue)] * 20, queue=queue)
        counts = [0] * 4
        homes = {broadcast(60, queue): queue for queue in range(4)}
        for _ in range(8):
            got = device.receive(3)
            assert len(got) == 3
            for frame in got:
                counts[homes[bytes(frame[0])]] += 1
        assert counts == [6, 6, 6, 6]


def test_superframes_of_several_pairs_survive_the_burst_they_came_in() -> None:
    with rig(2) as (device, guest):
        data = superframe4(60000)
        big = NetFrame(data, 1, 1, 0, 1448, 34, 16)
        for queue in (0, 1):
            guest.send([big] * 4, queue=queue)
        kept = device.receive(256)
        for queue in (0, 1):
            guest.send([broadcast(1000, 9)] * 50, queue=queue)
        device.receive(256)
        assert len(kept) == 8
        assert all(bytes(frame[0]) == data for frame in kept)


def test_a_ring_that_breaks_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    with rig(3) as (device, guest):
        guest.tx(1).set_avail_index(5000)
        for queue in (0, 2):
            guest.send([broadcast(60, queue)], queue=queue)
        assert len(device.receive(256)) == 2
        assert [ring.index for ring in device.rings if ring.broken] == [3]
        assert "ring 3 stopped" in caplog.text


def test_workers_are_as_many_as_there_is_work_for() -> None:
    with pytest.raises(ValueError, match="-1 worker threads"):
        Workers(-1)
    workers = Workers(3)
    counts = []
    for rings in (1, 2, 8, 0):
        workers.serve(rings)
        counts.append(workers.count)
    assert counts == [0, 1, 3, 0]
    wishes = []
    for busy in (0, 2, 1):
        workers.note(busy)
        wishes.append(workers.wake)
    assert wishes == [False, True, False]
    workers.close()
    workers.close()
