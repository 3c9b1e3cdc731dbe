"""A message and its answer in one call: a real trip through both rings, or a clear error."""

from __future__ import annotations

import threading

import pytest

from vhost_user.driver import DriverError, NetDriver
from vhost_user.driver.exchange import ANSWER_BYTES
from vhost_user.driver.net import ALL_FEATURES, NET_HEADER
from vhost_user.features import NetFeature
from vhost_user.net import NetDevice

from .device_rig import broadcast, net_rig, plain

HEADER = bytes(NET_HEADER.size)


def test_the_message_is_what_the_device_gets_and_the_answer_what_it_sent() -> None:
    with net_rig() as (device, guest):
        header = bytearray(HEADER + broadcast(60))
        exchange = guest.exchange(header, b"tail")
        for number in range(600):  # both rings go round twice
            header[-1] = number & 0xFF
            device.transmit([plain(broadcast(70 + number % 100))])  # an answer that is there before it is looked for
            assert exchange.ask()[NET_HEADER.size :] == broadcast(70 + number % 100)
            ((frame, *_),) = device.receive(8)
            assert frame == bytes(header[NET_HEADER.size :]) + b"tail"
            assert exchange.nanoseconds > 0
        assert guest.rx().free_buffers == 0  # each went back to the device


def test_what_came_besides_is_looked_at_without_sending_again() -> None:
    with net_rig() as (device, guest):
        exchange = guest.exchange(HEADER, broadcast(60))
        device.transmit([plain(broadcast(61)), plain(broadcast(62))])
        assert len(exchange.ask()) == NET_HEADER.size + 61
        first = exchange.nanoseconds
        assert len(exchange.look()) == NET_HEADER.size + 62
        assert exchange.nanoseconds > first  # since the message was sent
        assert len(device.receive(8)) == 1


def test_a_device_in_another_thread_answers_meanwhile() -> None:
    with net_rig() as (device, guest):
        asked = threading.Barrier(2)

        def answer() -> None:
            asked.wait()
            while not device.receive(1):
                pass
            device.transmit([plain(broadcast(80))])

        thread = threading.Thread(target=answer)
        thread.start()
        exchange = guest.exchange(HEADER, broadcast(60), patience=30.0)
        asked.wait()
        assert len(exchange.ask()) == NET_HEADER.size + 80
        thread.join()


def test_an_answer_in_several_buffers_is_one() -> None:
    with net_rig(NetDevice(mtu=9000), rx_buffer=2048) as (device, guest):
        exchange = guest.exchange(HEADER, broadcast(60))
        device.transmit([plain(broadcast(9000))])
        assert exchange.ask()[NET_HEADER.size :] == broadcast(9000)
        assert guest.rx().free_buffers == 0


@pytest.mark.parametrize("events", [True, False])
def test_the_device_is_kicked_if_it_wants_to_be(events: bool) -> None:
    features = ALL_FEATURES if events else ALL_FEATURES & ~NetFeature.EVENT_IDX
    with net_rig(features=features) as (device, guest):
        exchange = guest.exchange(HEADER, broadcast(60), patience=0.0)
        device.suppress()
        with pytest.raises(TimeoutError, match="no answer"):
            exchange.ask()
        assert exchange.kicks == 0
        assert len(device.receive(8)) == 1
        assert not device.arm()
        with pytest.raises(TimeoutError, match="no answer"):
            exchange.ask()
        assert exchange.kicks == 1
        assert len(device.receive(8)) == 1


def test_errors_say_what_is_wrong() -> None:
    with net_rig(tx_size=2) as (device, guest):
        exchange = guest.exchange(HEADER, broadcast(60), patience=0.0)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                exchange.ask()
        with pytest.raises(DriverError, match="ring 1 has no room"):
            exchange.ask()
        device.receive(8)
        guest.rx().set_used_index(1000)
        with pytest.raises(DriverError, match=r"ring 0: the device moved used\.idx past"):
            exchange.ask()


def test_an_answer_longer_than_any_frame_is_an_error_and_not_a_silence() -> None:
    with net_rig() as (_, guest):
        exchange = guest.exchange(HEADER, broadcast(60), patience=0.0)
        claim_long_answer(guest)
        with pytest.raises(DriverError, match="ring 0: an answer of more than"):
            exchange.ask()


def claim_long_answer(guest: NetDriver) -> None:
    """As a device would that scattered one frame over more buffers than an answer may have bytes for."""
    ring = guest.rx()
    count = ANSWER_BYTES // ring.buffer_size + 1
    memory = guest.memory
    for slot in range(count):
        memory.write(ring.used + 4 + 8 * slot, slot.to_bytes(4, "little") + ring.buffer_size.to_bytes(4, "little"))
    address = int.from_bytes(memory.read(ring.desc, 8), "little")
    memory.write(address + NET_HEADER.size - 2, count.to_bytes(2, "little"))
    ring.set_used_index(count)
