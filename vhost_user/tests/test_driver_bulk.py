"""The driver's bulk in C: what a slow model in Python sends and acknowledges, through real rings, or a clear error."""

from __future__ import annotations

import struct
import threading
from random import Random
from typing import NamedTuple

import pytest

from vhost_user.driver import BulkEnd, BulkNumbers, BulkSegment, DriverError, NetDriver
from vhost_user.driver.bulk import HEADERS, OUT_BYTES, Bulk
from vhost_user.driver.net import ALL_FEATURES, NET_HEADER
from vhost_user.features import NetFeature
from vhost_user.net import NetDevice

from .device_rig import GUEST_MAC, HOST_MAC, checksum, net_rig, plain

US, PEER = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))
OUR_PORT, PEER_PORT = 40000, 5001
ACK, PSH, FIN, RST = 0x10, 0x08, 0x01, 0x04
MASK = 0xFFFFFFFF
#: Shortly before numbers wrap.
BEGIN = BulkNumbers(0xFFFFF000, 0xFFFFF000, 0xFFFFE000, 1 << 20)


class Said(NamedTuple):
    """What a segment of ours says."""

    seq: int
    ack: int
    payload: bytes


def segment(
    seq: int,
    ack: int,
    payload: bytes = b"",
    *,
    flags: int = ACK,
    window: int = 1024,
    ours: bool = False,
    port: int = PEER_PORT,
    options: bytes = b"",
    total: int | None = None,
) -> bytes:
    """An Ethernet frame, checksums and all."""
    source, destination = (US, PEER) if ours else (PEER, US)
    ports = (OUR_PORT, port) if ours else (port, OUR_PORT)
    offset = (5 + len(options) // 4) << 12
    tcp = struct.pack("!HHIIHHHH", *ports, seq & MASK, ack & MASK, offset | flags, window, 0, 0) + options + payload
    whole = source + destination + struct.pack("!HH", 6, len(tcp)) + tcp
    tcp = tcp[:16] + struct.pack("!H", checksum(whole)) + tcp[18:]
    length = 20 + len(tcp) if total is None else total
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, 6, 0) + source + destination
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    macs = (HOST_MAC + GUEST_MAC) if ours else (GUEST_MAC + HOST_MAC)
    return macs + b"\x08\x00" + ip + tcp


def template(payload: bytes = b"") -> BulkSegment:
    """A segment of ours whose numbers are 0: its checksum is the complement of everything else."""
    frame = segment(0, 0, payload, ours=True)
    covered = int.from_bytes(frame[50:52], "big")
    return BulkSegment(bytes(NET_HEADER.size) + frame[:54], payload, ~covered & 0xFFFF)


def made(guest: NetDriver, payload: bytes = b"", *, patience: int = 0, **numbers: int) -> Bulk:
    """Never waits: the device is in the same thread."""
    bulk = Bulk(
        guest.tx(),
        guest.rx(),
        template(),
        template(payload) if payload else None,
        merge=10 if guest.has(NetFeature.MRG_RXBUF) else -1,
        scale=7,
        looks=0,
        patience=patience,
    )
    bulk.numbers = BEGIN._replace(**numbers)
    return bulk


def said(device: NetDevice) -> list[Said]:
    """What the guest sent, each with good checksums."""
    found = []
    while frames := device.receive(256):
        for frame, *_ in frames:
            data = bytes(frame)
            seq, ack = struct.unpack_from("!II", data, 38)
            assert data == segment(seq, ack, data[54:], ours=True)
            found.append(Said(seq, ack, data[54:]))
    return found


class Model:
    """The guest's end as it would be written in Python."""

    def __init__(self, numbers: BulkNumbers, payload: bytes) -> None:
        self.una, self.nxt, self.rcv, self.window = numbers
        self.payload = payload
        self.sent: list[Said] = []

    def send(self, most: int) -> None:
        end = self.nxt + most
        size = len(self.payload)
        while self.nxt + size <= min(end, self.una + self.window):
            self.sent.append(Said(self.nxt & MASK, self.rcv & MASK, self.payload))
            self.nxt += size

    def hear(self, acknowledged: int, window: int, length: int) -> None:
        self.una = acknowledged
        self.window = window << 7
        self.rcv += length

    def acknowledge(self) -> None:
        self.sent.append(Said(self.nxt & MASK, self.rcv & MASK, b""))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("merge", [True, False])
def test_a_flood_is_what_the_model_sends(seed: int, merge: bool) -> None:
    random = Random(seed)
    payload = random.randbytes(random.choice((1, 536, 1459, 1460)))
    features = ALL_FEATURES if merge else ALL_FEATURES & ~NetFeature.MRG_RXBUF
    with net_rig(features=features) as (device, guest):
        model = Model(BEGIN, payload)
        bulk = made(guest, payload)
        for _ in range(40):
            size = random.randrange(20 * len(payload))
            whole = model.nxt + size // len(payload) * len(payload)
            came = bulk.flood(size)
            model.send(size)
            assert came is (BulkEnd.MOVED if model.nxt == whole else BulkEnd.IDLE)
            acknowledged = random.randrange(model.una, model.nxt + 1)
            window = random.choice((0, 1, 50, 1024))
            device.transmit([plain(segment(model.rcv, acknowledged, window=window))])
            assert bulk.drain(1) is BulkEnd.IDLE  # there was no data
            model.hear(acknowledged, window, 0)
            assert said(device) == model.sent
            model.sent.clear()
            assert bulk.numbers == (model.una, model.nxt, model.rcv, model.window)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("merge", [True, False])
def test_what_is_drained_is_acknowledged_as_by_the_model(seed: int, merge: bool) -> None:
    random = Random(seed)
    features = ALL_FEATURES if merge else ALL_FEATURES & ~NetFeature.MRG_RXBUF
    with net_rig(NetDevice(mtu=9000), features=features, rx_buffer=2048 if merge else 9100) as (device, guest):
        model = Model(BEGIN, b"")
        bulk = made(guest)
        for _ in range(40):
            frames, wanted = [], model.rcv
            for _ in range(random.randrange(1, 12)):
                payload = random.randbytes(random.choice((1, 100, 1460, 8900)))
                frames.append(segment(wanted, model.nxt, payload, flags=ACK | random.choice((0, PSH))))
                wanted += len(payload)
            assert device.transmit([plain(frame) for frame in frames]) == len(frames)
            assert bulk.drain(1) is BulkEnd.MOVED
            model.hear(model.nxt, 1024, wanted - model.rcv)
            model.acknowledge()
            assert said(device) == model.sent
            model.sent.clear()
            assert bulk.numbers == (model.una, model.nxt, model.rcv, model.window)
            assert bytes(bulk.frame[NET_HEADER.size :])[: len(frames[-1])] == frames[-1]
            assert guest.rx().free_buffers == 0  # each went back to the device


def test_a_poll_is_acknowledged_once_and_the_next_one_again() -> None:
    with net_rig() as (device, guest):
        bulk = made(guest)
        start = BEGIN.rcv_nxt
        device.transmit([plain(segment(start + i, BEGIN.snd_nxt, b"x")) for i in range(100)])
        assert bulk.drain(100) is BulkEnd.MOVED
        assert [message.ack for message in said(device)] == [(start + 64) & MASK, (start + 100) & MASK]


def test_data_that_comes_while_we_send_is_acknowledged_by_what_we_send() -> None:
    with net_rig() as (device, guest):
        bulk = made(guest, b"abc")
        device.transmit([plain(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"data"))])
        assert bulk.flood(27) is BulkEnd.MOVED  # nine segments; a burst is eight
        acks = [message.ack - BEGIN.rcv_nxt for message in said(device)]
        assert acks == [0] * 8 + [4] * 2


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(bytes(60), id="no packet of ours"),
        pytest.param(segment(BEGIN.rcv_nxt - 1, BEGIN.snd_nxt, b"a"), id="came before"),
        pytest.param(segment(BEGIN.rcv_nxt + 1, BEGIN.snd_nxt, b"a"), id="ahead of its turn"),
        pytest.param(segment(BEGIN.rcv_nxt - 1, BEGIN.snd_nxt), id="probe"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt + 1, b"a"), id="acknowledges what was not sent"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt - 1, b"a"), id="acknowledges less than before"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"a", flags=ACK | FIN), id="FIN"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, flags=RST), id="RST"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"a", port=9), id="another port"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"a", options=b"\1" * 4), id="options"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"a", total=200), id="less than it says"),
        pytest.param(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"a", total=39), id="shorter than its headers"),
    ],
)
def test_what_is_not_plain_is_the_callers_and_changes_nothing(frame: bytes) -> None:
    with net_rig() as (device, guest):
        bulk = made(guest, b"abc")
        device.transmit([plain(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt)), plain(frame), plain(frame)])
        assert bulk.drain(1000) is BulkEnd.OTHER
        assert bytes(bulk.frame[NET_HEADER.size :])[: len(frame)] == frame
        assert bulk.numbers == BEGIN._replace(window=1024 << 7)
        bulk.numbers = BEGIN._replace(window=0)
        assert bulk.flood(3) is BulkEnd.OTHER
        assert bulk.numbers == BEGIN._replace(window=0)
        assert said(device) == []
        assert guest.rx().free_buffers == 0


def test_what_came_before_it_is_acknowledged() -> None:
    with net_rig() as (device, guest):
        bulk = made(guest)
        device.transmit([plain(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"good")), plain(bytes(60))])
        assert bulk.drain(1000) is BulkEnd.OTHER
        assert [message.ack for message in said(device)] == [(BEGIN.rcv_nxt + 4) & MASK]


@pytest.mark.parametrize("events", [True, False])
def test_the_device_is_kicked_if_it_wants_to_be(events: bool) -> None:
    features = ALL_FEATURES if events else ALL_FEATURES & ~NetFeature.EVENT_IDX
    with net_rig(features=features) as (device, guest):
        bulk = made(guest, b"abc")
        device.suppress()
        bulk.flood(3)
        assert bulk.kicks == 0
        assert len(said(device)) == 1
        assert not device.arm()
        bulk.flood(24)  # one burst
        assert bulk.kicks == 1
        assert len(said(device)) == 8


def test_an_acknowledgment_waits_for_a_buffer() -> None:
    with net_rig(tx_size=2) as (device, guest):
        bulk = made(guest, b"abc")
        assert bulk.flood(6) is BulkEnd.MOVED
        device.transmit([plain(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"data"))])
        assert bulk.drain(4) is BulkEnd.MOVED
        assert bulk.flood(3) is BulkEnd.IDLE  # nor is there room for this
        assert not guest.tx().free_buffers
        bulk.wait(0.0)
        assert [message.payload for message in said(device)] == [b"abc"] * 2
        assert bulk.drain(1) is BulkEnd.IDLE
        assert said(device) == [Said((BEGIN.snd_nxt + 6) & MASK, (BEGIN.rcv_nxt + 4) & MASK, b"")]
        bulk.wait(0.0)


def test_a_device_in_another_thread_is_waited_for() -> None:
    with net_rig() as (device, guest):
        bulk = made(guest, patience=100)
        going = threading.Barrier(2)

        def send() -> None:
            going.wait()
            device.transmit([plain(segment(BEGIN.rcv_nxt, BEGIN.snd_nxt, b"data"))])

        thread = threading.Thread(target=send)
        thread.start()
        going.wait()
        while bulk.drain(4) is BulkEnd.IDLE:
            bulk.wait(30.0)
        thread.join()
        assert bulk.numbers.rcv_nxt == BEGIN.rcv_nxt + 4


def test_superframes_leave_as_they_are_and_the_device_cuts_nothing() -> None:
    payload = bytes(range(256)) * 250
    frame = segment(0, 0, payload, ours=True)
    header = NET_HEADER.pack(1, 1, 54, 1460, 34, 16, 0) + frame[:54]
    with net_rig() as (device, guest):
        bulk = Bulk(guest.tx(), guest.rx(), template(), BulkSegment(header, payload), merge=10, patience=0)
        bulk.numbers = BEGIN
        assert bulk.flood(3 * len(payload)) is BulkEnd.MOVED
        sent = device.receive(8)
        assert [bytes(entry[0][54:]) for entry in sent] == [payload] * 3
        assert [int.from_bytes(entry[0][38:42], "big") for entry in sent] == [
            (BEGIN.snd_nxt + i * len(payload)) & MASK for i in range(3)
        ]
        assert {bytes(entry[0][50:52]) for entry in sent} == {frame[50:52]}  # the device's to make


def test_errors_say_what_is_wrong() -> None:
    with net_rig() as (_, guest):
        with pytest.raises(ValueError, match="65 bytes of headers, must be 66"):
            guest.bulk(BulkSegment(bytes(HEADERS - 1)))
        with pytest.raises(DriverError, match=r"a segment of 70066 bytes, buffers of ring 1 hold"):
            guest.bulk(BulkSegment(bytes(HEADERS)), BulkSegment(bytes(HEADERS), bytes(70000)))
        bulk = guest.bulk(template())
        with pytest.raises(ValueError, match="nothing to send"):
            bulk.flood()
        guest.rx().set_used_index(1000)
        with pytest.raises(DriverError, match=r"ring 0: the device moved used\.idx past"):
            bulk.drain()


def test_a_frame_longer_than_any_is_an_error_and_not_a_silence() -> None:
    """As from a device that scattered one frame over more buffers than there is memory for."""
    with net_rig(rx_buffer=8192) as (_, guest):
        ring, memory = guest.rx(), guest.memory
        count = OUT_BYTES // ring.buffer_size + 1
        for slot in range(count):
            memory.write(ring.used + 4 + 8 * slot, slot.to_bytes(4, "little") + ring.buffer_size.to_bytes(4, "little"))
        address = int.from_bytes(memory.read(ring.desc, 8), "little")
        memory.write(address + NET_HEADER.size - 2, count.to_bytes(2, "little"))
        ring.set_used_index(count)
        bulk = made(guest)
        with pytest.raises(DriverError, match="ring 0: a frame of more than"):
            bulk.drain(1)
        assert bulk.numbers == BEGIN
