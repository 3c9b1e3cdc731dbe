"""Every check of the message layer (reference section 4.1): one test per row, and the device's state afterwards.

A row that says "broken message" must raise `ProtocolError`, which ends the connection; a refusal the protocol knows
must be answered; a ring that breaks must leave the conversation alone.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest

from vhost_user.memory import MAX_REGIONS
from vhost_user.message import RULES, Protocol, ProtocolError, Request
from vhost_user.session import Session

from .raw_front_end import (
    EVENT_IDX,
    GPA,
    LOG_ALL,
    NET_PROTOCOL,
    OFFERED,
    SIZE,
    UVA,
    VSOCK_PROTOCOL,
    FrontEnd,
    RecordingDevice,
    called,
    guest_mappings,
    net_device,
    open_fds,
    vsock_device,
)

U32 = 0xFFFF_FFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    device = net_device(pairs=1)
    yield device
    device.close()


@pytest.fixture
def front(device: RecordingDevice) -> Iterator[FrontEnd]:
    with FrontEnd(Session(device)) as front:
        yield front


@pytest.fixture
def running(front: FrontEnd) -> FrontEnd:
    front.start_net()
    return front


@pytest.fixture
def owned(front: FrontEnd) -> FrontEnd:
    front.handshake(NET_PROTOCOL, [0, 1])
    return front


# -- who may say what, and when -----------------------------------------------------------------------------------

#: A well-formed payload and descriptor count for every request there is.
SAMPLES: dict[int, tuple[bytes, int]] = {request: (bytes(rule.size), rule.min_fds) for request, rule in RULES.items()}

HANDSHAKE = {
    Request.GET_FEATURES,
    Request.SET_OWNER,
    Request.GET_PROTOCOL_FEATURES,
    Request.SET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.GET_MAX_MEM_SLOTS,
    Request.SET_BACKEND_REQ_FD,
}


@pytest.mark.parametrize("request_id", sorted(set(RULES) - HANDSHAKE), ids=lambda r: Request(r).name)
def test_before_set_owner_only_the_handshake_is_spoken(request_id: int) -> None:
    device = RecordingDevice(protocol=NET_PROTOCOL | Protocol.CONFIG)
    with FrontEnd(Session(device)) as front:
        front.say(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", device.protocol_features))
        payload, count = SAMPLES[request_id]
        with pytest.raises(ProtocolError, match=f"{Request(request_id).name} before SET_OWNER"):
            front.say(request_id, payload, [front.memory.fd] * count)
    device.close()


def test_the_back_ends_channel_is_a_socket_and_closed_with_the_session() -> None:
    before = open_fds()
    device = RecordingDevice(protocol=NET_PROTOCOL | Protocol.BACKEND_REQ)
    with FrontEnd(Session(device)) as front:
        front.say(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", device.protocol_features))
        for _ in range(2):  # the second takes the place of the first
            ours, theirs = socket.socketpair()
            with ours, theirs:
                front.say(Request.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
                assert device.tell_config_changed()
                assert ours.recv(100) == bytes.fromhex("02000000 01000000 00000000")
        assert not device.tell_config_changed(), "nobody listens any more"
        with pytest.raises(ProtocolError, match="no socket"):
            front.say(Request.SET_BACKEND_REQ_FD, b"", [front.memory.fd])
    device.close()
    assert not device.tell_config_changed()
    assert open_fds() == before


def test_a_second_owner_is_an_error(owned: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="SET_OWNER: the device already has an owner"):
        owned.say(Request.SET_OWNER)


@pytest.mark.parametrize("bit", [0, 24, 31, 34, 40, 63])
def test_features_that_were_not_offered_are_an_error_not_masked(owned: FrontEnd, bit: int) -> None:
    with pytest.raises(ProtocolError, match=f"feature bits {1 << bit:#x} were not offered"):
        owned.say(Request.SET_FEATURES, struct.pack("<Q", OFFERED | 1 << bit))


@pytest.mark.parametrize("bit", [5, 8, 9, 12, 13, 14, 21, 63])
def test_protocol_features_that_were_not_offered_are_an_error(front: FrontEnd, bit: int) -> None:
    with pytest.raises(ProtocolError, match="protocol feature bits"):
        front.say(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", 1 << bit))


def test_features_may_not_change_under_running_rings(running: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="while rings run"):
        running.say(Request.SET_FEATURES, struct.pack("<Q", OFFERED & ~LOG_ALL & ~EVENT_IDX))


def test_dirty_logging_may_change_under_running_rings(running: FrontEnd, device: RecordingDevice) -> None:
    running.say(Request.SET_FEATURES, struct.pack("<Q", OFFERED))
    assert device.live() == [True, True]
    assert not device.features & LOG_ALL  # transport bits are nobody's business above
    assert not device.features & 1 << 30


def test_features_may_change_once_rings_are_stopped(running: FrontEnd, device: RecordingDevice) -> None:
    running.base(0)
    running.base(1)
    running.say(Request.SET_FEATURES, struct.pack("<Q", OFFERED & ~LOG_ALL & ~EVENT_IDX))
    assert not device.features & EVENT_IDX


# -- acknowledgements -----------------------------------------------------------------------------------------------


def test_need_reply_is_acknowledged_only_when_negotiated(front: FrontEnd) -> None:
    assert front.say(Request.SET_OWNER, flags=9) is None  # REPLY_ACK not negotiated yet
    front.say(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", Protocol.REPLY_ACK))
    assert front.ack(Request.SET_FEATURES, struct.pack("<Q", OFFERED)) == 0
    assert front.say(Request.SET_FEATURES, struct.pack("<Q", OFFERED)) is None


def test_a_message_with_its_own_reply_is_not_acknowledged_on_top(owned: FrontEnd) -> None:
    """`ask` takes exactly one reply; over a session that is all there can be, so its size tells which one it was."""
    assert owned.u64(owned.ask(Request.GET_FEATURES, flags=9)) == OFFERED
    assert owned.ask(Request.GET_VRING_BASE, struct.pack("<II", 1, 0), flags=9) == struct.pack("<II", 1, 0)


def test_status_byte_is_stored(owned: FrontEnd) -> None:
    owned.status(8)
    owned.status(7)
    assert owned.u64(owned.ask(Request.GET_STATUS)) == 15
    owned.say(Request.SET_STATUS, struct.pack("<Q", 0))
    assert owned.u64(owned.ask(Request.GET_STATUS)) == 0


def test_status_is_one_byte(owned: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="not one byte"):
        owned.say(Request.SET_STATUS, struct.pack("<Q", 0x100))


# -- ring indexes: all 32 bits of them --------------------------------------------------------------------------------

STATE_REQUESTS = [
    Request.SET_VRING_NUM,
    Request.SET_VRING_BASE,
    Request.GET_VRING_BASE,
    Request.SET_VRING_ENABLE,
]


@pytest.mark.parametrize("index", [2, 3, 255, 0x100, 0x101, 0x10000, 0x10001, 0x80000000, U32])
@pytest.mark.parametrize("request_id", [*STATE_REQUESTS, Request.SET_VRING_ADDR], ids=lambda r: r.name)
def test_ring_index_is_compared_in_full(owned: FrontEnd, request_id: Request, index: int) -> None:
    """0x100 and 0x10000 are rings 0 to whoever cuts the index down (CVE-2020-10723)."""
    payload = struct.pack("<II", index, 1)
    if request_id == Request.SET_VRING_ADDR:
        payload += bytes(32)
    with pytest.raises(ProtocolError, match=f"{request_id.name}: ring {index} does not exist"):
        owned.say(request_id, payload)


EVENT_REQUESTS = [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]


@pytest.mark.parametrize("index", [2, 255])
@pytest.mark.parametrize("request_id", EVENT_REQUESTS, ids=lambda r: r.name)
def test_ring_index_of_an_event_descriptor(owned: FrontEnd, request_id: Request, index: int) -> None:
    with pytest.raises(ProtocolError, match=f"ring {index} does not exist"):
        owned.say(request_id, struct.pack("<Q", index), [owned.event()])


# -- ring size, base, addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [0, 3, 255, 1000, 1025, 2048, 32768, 65536, 0x10080, U32])
def test_ring_size_is_a_power_of_two_within_the_limit(owned: FrontEnd, num: int) -> None:
    with pytest.raises(ProtocolError, match=f"size {num} is not a power of two"):
        owned.say(Request.SET_VRING_NUM, struct.pack("<II", 0, num))


def test_ring_size_of_a_running_ring_is_fixed(running: FrontEnd) -> None:
    """CVE-2026-5747: a size changed after activation is an out-of-bounds access."""
    with pytest.raises(ProtocolError, match="ring 0 is running"):
        running.say(Request.SET_VRING_NUM, struct.pack("<II", 0, 128))


def test_base_is_a_16_bit_index(owned: FrontEnd) -> None:
    owned.say(Request.SET_VRING_BASE, struct.pack("<II", 0, 0xFFFF))
    assert owned.base(0) == 0xFFFF
    with pytest.raises(ProtocolError, match="16"):
        owned.say(Request.SET_VRING_BASE, struct.pack("<II", 0, 0x10000))


def test_base_of_a_running_ring_is_fixed(running: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="ring 1 is running"):
        running.say(Request.SET_VRING_BASE, struct.pack("<II", 1, 0))


@pytest.mark.parametrize("flags", [2, 4, 3, 1 << 31])
def test_address_flags_are_bit_0_or_nothing(owned: FrontEnd, flags: int) -> None:
    with pytest.raises(ProtocolError, match="flags"):
        owned.say(Request.SET_VRING_ADDR, owned.memory.addr(0, flags=flags))


def set_addr(front: FrontEnd, desc: int, used: int, avail: int, ring: int = 0) -> None:
    front.say(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", ring, 0, desc, used, avail, 0))


@pytest.mark.parametrize(("desc", "used", "avail"), [(8, 0, 0), (1, 0, 0), (0, 2, 0), (0, 1, 0), (0, 0, 1)])
def test_ring_parts_are_aligned(owned: FrontEnd, desc: int, used: int, avail: int) -> None:
    """virtio 1.3 section 2.7: 16, 4 and 2 bytes. Checked before any memory is known."""
    with pytest.raises(ProtocolError, match=r"SET_VRING_ADDR.*misaligned"):
        set_addr(owned, UVA + desc, UVA + 0x2000 + used, UVA + 0x1000 + avail)


N = 256
END = UVA + SIZE


@pytest.mark.parametrize(
    ("desc", "used", "avail"),
    [
        (UVA - 16, UVA + 0x2000, UVA + 0x1000),
        (END - 16 * N + 16, UVA + 0x2000, UVA + 0x1000),
        (UVA, END - (6 + 8 * N) + 2, UVA + 0x1000),
        (UVA, UVA + 0x2000, END - (6 + 2 * N) + 2),
        (END, UVA + 0x2000, UVA + 0x1000),
        (0, UVA + 0x2000, UVA + 0x1000),
        (U64 & ~15, UVA + 0x2000, UVA + 0x1000),
        (UVA, U64 & ~3, UVA + 0x1000),
        (UVA, UVA + 0x2000, U64 & ~1),
        (GPA, GPA + 0x2000, GPA + 0x1000),
    ],
)
def test_the_whole_ring_lies_inside_one_region(owned: FrontEnd, desc: int, used: int, avail: int) -> None:
    """Not just its first byte, and without overflow (DPDK 04c27cb673, CVE-2018-1059 and its follow-ups)."""
    owned.mem_table()
    owned.say(Request.SET_VRING_NUM, struct.pack("<II", 0, N))
    with pytest.raises(ProtocolError, match="SET_VRING_ADDR: ring 0"):
        set_addr(owned, desc & ~15, used & ~3, avail & ~1)


def test_the_last_ring_that_fits(owned: FrontEnd, device: RecordingDevice) -> None:
    owned.mem_table()
    owned.say(Request.SET_VRING_NUM, struct.pack("<II", 0, N))
    set_addr(owned, END - 16 * N, END - 16 * N - (6 + 8 * N) - 2 & ~3, UVA)
    owned.say(Request.SET_VRING_KICK, struct.pack("<Q", 0), [owned.event()])
    owned.enable(0)
    assert device.live()[0]


def test_a_ring_may_not_straddle_two_adjacent_regions(owned: FrontEnd) -> None:
    fd, half = owned.memory.fd, SIZE // 2
    table = struct.pack("<II8Q", 2, 0, GPA, half, UVA, 0, GPA + half, half, UVA + half, half)
    assert owned.ack(Request.SET_MEM_TABLE, table, [fd, fd]) == 0
    owned.say(Request.SET_VRING_NUM, struct.pack("<II", 0, N))
    with pytest.raises(ProtocolError, match="SET_VRING_ADDR"):
        set_addr(owned, UVA + half - 16, UVA + 0x2000, UVA + 0x1000)


def test_addresses_given_before_memory_are_checked_when_the_ring_starts(owned: FrontEnd) -> None:
    owned.say(Request.SET_VRING_NUM, struct.pack("<II", 0, N))
    set_addr(owned, END, END + 0x2000, END + 0x1000)
    owned.mem_table()
    with pytest.raises(ProtocolError, match="SET_VRING_KICK: ring 0"):
        owned.say(Request.SET_VRING_KICK, struct.pack("<Q", 0), [owned.event()])


def test_addresses_of_a_running_ring_may_move_between_bursts(running: FrontEnd, device: RecordingDevice) -> None:
    """Checked, then swapped as a whole; here to the place where ring 3 of a bigger device would be."""
    running.memory.offer(3, 256, b"moved")
    running.say(Request.SET_VRING_ADDR, struct.pack("<I", 1) + running.memory.addr(3)[4:])
    assert bytes(device.rings[1].pop().view) == b"moved"
    with pytest.raises(ProtocolError, match="SET_VRING_ADDR: ring 1"):
        set_addr(running, END, END, END, ring=1)


def test_enable_is_a_boolean(owned: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="enable is 2"):
        owned.say(Request.SET_VRING_ENABLE, struct.pack("<II", 0, 2))


def test_enabled_and_started_are_independent(owned: FrontEnd, device: RecordingDevice) -> None:
    owned.say(Request.SET_FEATURES, struct.pack("<Q", OFFERED))
    owned.mem_table()
    owned.ring(0)
    owned.enable(1)
    assert [(ring.started, ring.enabled) for ring in device.rings] == [(True, False), (False, True)]
    owned.base(0)
    owned.enable(0)
    owned.ring(0)
    assert device.live() == [True, False]


def test_get_vring_base_of_a_ring_that_never_ran(owned: FrontEnd) -> None:
    assert owned.base(1) == 0


def test_reset_owner_disables_the_rings_and_nothing_more(running: FrontEnd, device: RecordingDevice) -> None:
    running.say(Request.RESET_OWNER)
    assert [(ring.started, ring.enabled) for ring in device.rings] == [(True, False)] * 2


# -- kick, call, err ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", EVENT_REQUESTS, ids=lambda r: r.name)
def test_event_descriptor_and_nofd_bit_must_agree(owned: FrontEnd, request_id: Request) -> None:
    with pytest.raises(ProtocolError, match="came with 0 descriptors, expected 1"):
        owned.say(request_id, struct.pack("<Q", 0))
    with pytest.raises(ProtocolError, match="came with 1 descriptors, expected 0"):
        owned.say(request_id, struct.pack("<Q", 0x100), [owned.event()])
    owned.say(request_id, struct.pack("<Q", 0x100))


@pytest.mark.parametrize("request_id", EVENT_REQUESTS, ids=lambda r: r.name)
@pytest.mark.parametrize("kind", ["pipe", "memfd", "socket", "directory", "epoll", "timerfd-like"])
def test_event_descriptor_must_be_an_eventfd(owned: FrontEnd, request_id: Request, kind: str) -> None:
    """A regular file cannot be polled, a socket's write may fail or block, an epoll could contain our own."""
    import select

    extra: list[int] = []
    if kind == "pipe":
        extra = list(os.pipe())
    elif kind == "memfd":
        extra = [os.memfd_create("x")]
    elif kind == "socket":
        extra = [end.detach() for end in socket.socketpair()]
    elif kind == "directory":
        extra = [os.open("/", os.O_RDONLY)]
    elif kind == "epoll":
        epoll = select.epoll()
        extra = [os.dup(epoll.fileno())]
        epoll.close()
    else:
        extra = [os.pidfd_open(os.getpid())]
    before = open_fds()
    with pytest.raises(ProtocolError, match=f"{request_id.name}.*not an eventfd"):
        owned.say(request_id, struct.pack("<Q", 0), [extra[0]])
    assert open_fds() == before
    for fd in extra:
        os.close(fd)


@pytest.mark.parametrize("request_id", EVENT_REQUESTS, ids=lambda r: r.name)
def test_a_new_event_descriptor_replaces_and_closes_the_old(running: FrontEnd, request_id: Request) -> None:
    running.say(request_id, struct.pack("<Q", 0), [running.event()])
    before = len(open_fds())
    for _ in range(20):
        running.say(request_id, struct.pack("<Q", 0), [running.events[-1]])
    assert len(open_fds()) == before


def test_get_vring_base_takes_kick_and_call_away(running: FrontEnd, device: RecordingDevice) -> None:
    before = len(open_fds())
    running.base(0)
    assert len(open_fds()) == before - 2
    os.eventfd_write(running.kick[0], 1)  # QEMU's descriptor lives on, and must not wake us any more
    device.refresh()
    device.clear_events()
    import select

    os.eventfd_write(running.kick[0], 1)
    with select.epoll() as outer:
        outer.register(device.fileno(), select.EPOLLIN)
        assert outer.poll(0) == []


def test_a_full_call_counter_does_not_block_us(running: FrontEnd, device: RecordingDevice) -> None:
    event = os.eventfd(0)  # blocking, as a hostile front-end may leave it
    os.eventfd_write(event, 0xFFFF_FFFF_FFFF_FFFE)
    running.say(Request.SET_VRING_CALL, struct.pack("<Q", 1), [event])
    running.memory.offer(1, 256, b"frame")
    assert device.rings[1].pop().count == 1
    os.close(event)


# -- memory ---------------------------------------------------------------------------------------------------------


def table(front: FrontEnd, regions: Sequence[tuple[int, int, int, int]], fds: int | None = None) -> None:
    payload = struct.pack("<II", len(regions), 0) + b"".join(struct.pack("<4Q", *region) for region in regions)
    front.say(Request.SET_MEM_TABLE, payload, [front.memory.fd] * (len(regions) if fds is None else fds))


PAGE = 0x1000
BAD_TABLES = {
    "size 0": [(GPA, 0, UVA, 0)],
    "gpa overflows": [(U64 - PAGE + 1, 2 * PAGE, UVA, 0)],
    "uva overflows": [(GPA, 2 * PAGE, U64 - PAGE + 1, 0)],
    "offset overflows": [(GPA, 2 * PAGE, UVA, U64 - PAGE + 1)],
    "size overflows everything": [(GPA, U64, UVA, 0)],
    "beyond the file": [(GPA, SIZE + 1, UVA, 0)],
    "beyond the file by its offset": [(GPA, SIZE, UVA, PAGE)],
    "overlap in guest-physical": [(GPA, 2 * PAGE, UVA, 0), (GPA + PAGE, PAGE, UVA + 4 * PAGE, 0)],
    "overlap in user addresses": [(GPA, 2 * PAGE, UVA, 0), (GPA + 8 * PAGE, PAGE, UVA + PAGE, 0)],
    "the same region twice": [(GPA, PAGE, UVA, 0), (GPA, PAGE, UVA, 0)],
}


@pytest.mark.parametrize("regions", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_broken_memory_tables_are_refused_whole(
    running: FrontEnd, device: RecordingDevice, regions: list[tuple[int, int, int, int]]
) -> None:
    """And the table before stays in force: build, then swap, then unmap."""
    before, mapped = device.memory, guest_mappings()
    with pytest.raises(ProtocolError, match="SET_MEM_TABLE: "):
        table(running, regions)
    assert device.memory is before
    assert guest_mappings() == mapped
    running.memory.offer(1, 256, b"frame")
    assert device.rings[1].pop().count == 1


@pytest.mark.parametrize("fds", [1, 3])
def test_every_region_comes_with_one_descriptor(owned: FrontEnd, fds: int) -> None:
    with pytest.raises(ProtocolError, match=f"2 memory regions came with {fds} descriptors"):
        table(owned, [(GPA, PAGE, UVA, 0), (GPA + PAGE, PAGE, UVA + PAGE, PAGE)], fds)


def test_memory_must_be_a_file_that_can_be_mapped_writable(owned: FrontEnd) -> None:
    read_only = os.open(f"/proc/self/fd/{owned.memory.fd}", os.O_RDONLY)
    for fd in (owned.event(), read_only):
        with pytest.raises(ProtocolError, match="SET_MEM_TABLE: "):
            owned.say(Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, *owned.memory.region), [fd])
    os.close(read_only)


def test_a_new_table_replaces_the_old_and_its_mappings(running: FrontEnd, device: RecordingDevice) -> None:
    mapped, fds = guest_mappings(), len(open_fds())
    for _ in range(50):
        running.mem_table()
    assert (guest_mappings(), len(open_fds())) == (mapped, fds)
    running.memory.offer(1, 256, b"frame")
    assert device.rings[1].pop().count == 1


def test_a_table_that_leaves_a_running_ring_behind_breaks_that_ring_only(
    running: FrontEnd, device: RecordingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Ring 1 is at 32 KiB; a table that ends there keeps ring 0. The front-end hears of it by the err descriptor."""
    running.say(Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GPA, 0x8000, UVA, 0), [running.memory.fd])
    assert device.live() == [True, False]
    assert device.rings[1].broken
    assert called(running.err[1])
    assert not called(running.err[0])
    assert len(caplog.records) == 1
    assert running.base(1) == 0  # and the conversation goes on
    running.mem_table()
    running.ring(1)
    assert device.live() == [True, True]


def test_memory_slots_add_and_remove(owned: FrontEnd, device: RecordingDevice) -> None:
    assert owned.u64(owned.ask(Request.GET_MAX_MEM_SLOTS)) == MAX_REGIONS
    fd, half = owned.memory.fd, SIZE // 2
    low, high = (GPA, half, UVA, 0), (GPA + half, half, UVA + half, half)
    for region in (low, high):
        assert owned.ack(Request.ADD_MEM_REG, struct.pack("<5Q", 0, *region), [fd]) == 0
    assert device.memory is not None
    assert [tuple(region) for region in device.memory.regions] == [low, high]
    assert owned.ack(Request.REM_MEM_REG, struct.pack("<5Q", 0, *low), [fd]) == 0  # QEMU sends a descriptor along
    assert owned.ack(Request.REM_MEM_REG, struct.pack("<5Q", 0, *high)) == 0
    assert device.memory is None


def test_an_identical_slot_added_again_changes_nothing(running: FrontEnd, device: RecordingDevice) -> None:
    mapped = guest_mappings()
    for _ in range(8):
        running.mem_slot()
    assert guest_mappings() == mapped
    assert device.memory is not None
    assert len(device.memory.regions) == 1
    assert device.live() == [True, True]


def test_a_slot_overlapping_another_is_an_error(running: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match=r"ADD_MEM_REG: .*overlap"):
        running.say(Request.ADD_MEM_REG, struct.pack("<5Q", 0, GPA, PAGE, UVA + 2 * SIZE, 0), [running.memory.fd])


@pytest.mark.parametrize("delta", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_removing_a_slot_needs_an_exact_match(running: FrontEnd, delta: tuple[int, int, int]) -> None:
    region = [value + PAGE * change for value, change in zip((GPA, SIZE, UVA), delta, strict=True)]
    with pytest.raises(ProtocolError, match="REM_MEM_REG: "):
        running.say(Request.REM_MEM_REG, struct.pack("<5Q", 0, *region, 0))


def test_removing_the_slot_under_running_rings_stops_them_touching_it(
    running: FrontEnd, device: RecordingDevice
) -> None:
    running.say(Request.REM_MEM_REG, struct.pack("<5Q", 0, *running.memory.region))
    assert device.live() == [False, False]
    running.memory.offer(1, 256, b"frame")
    assert device.rings[1].pop().count == 0
    assert running.base(1) == 0


def test_removing_from_nothing_is_an_error(owned: FrontEnd) -> None:
    with pytest.raises(ProtocolError, match="no memory region to remove"):
        owned.say(Request.REM_MEM_REG, struct.pack("<5Q", 0, *owned.memory.region))


def test_more_slots_than_promised_are_an_error(owned: FrontEnd) -> None:
    for slot in range(MAX_REGIONS):
        payload = struct.pack("<5Q", 0, GPA + slot * PAGE, PAGE, UVA + slot * PAGE, 0)
        owned.say(Request.ADD_MEM_REG, payload, [owned.memory.fd])
    beyond = struct.pack("<5Q", 0, GPA + SIZE * 16, PAGE, UVA + SIZE * 16, 0)
    with pytest.raises(ProtocolError, match="ADD_MEM_REG: "):
        owned.say(Request.ADD_MEM_REG, beyond, [owned.memory.fd])


# -- dirty log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (0x10001, 0), (0x10000, 1), (U64, 1), (1, U64)])
def test_dirty_log_lies_inside_its_file(running: FrontEnd, size: int, offset: int) -> None:
    """CVE-2020-10722."""
    log = os.memfd_create("log")
    os.ftruncate(log, 0x10000)
    with pytest.raises(ProtocolError, match="SET_LOG_BASE: "):
        running.say(Request.SET_LOG_BASE, struct.pack("<QQ", size, offset), [log])
    os.close(log)


def test_log_doorbell_is_taken_and_not_kept(owned: FrontEnd) -> None:
    before = open_fds()
    assert owned.ack(Request.SET_LOG_FD, b"", [owned.memory.fd]) == 0
    assert open_fds() == before


# -- device -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mtu", "answer"), [(67, 1), (68, 0), (1500, 0), (9000, 0), (9001, 1), (65536, 1), (U64, 1)])
def test_mtu_is_validated_and_acknowledged(owned: FrontEnd, mtu: int, answer: int) -> None:
    assert owned.ack(Request.NET_SET_MTU, struct.pack("<Q", mtu)) == answer


def test_rarp_carries_six_bytes(owned: FrontEnd, device: RecordingDevice) -> None:
    owned.say(Request.SEND_RARP, b"\x52\x54\x00\xaa\xbb\xcc\xff\xff")
    assert device.events[-1] == ("rarp", b"\x52\x54\x00\xaa\xbb\xcc")


@pytest.fixture
def vsock() -> Iterator[FrontEnd]:
    device = vsock_device(cid=0x1_0000_0003)
    with FrontEnd(Session(device)) as front:
        front.handshake(VSOCK_PROTOCOL, [0, 1])
        yield front
    device.close()


@pytest.mark.parametrize(("offset", "size"), [(0, 8), (0, 4), (4, 4), (7, 1), (8, 0), (0, 0)])
def test_config_is_read_with_the_same_size_back(vsock: FrontEnd, offset: int, size: int) -> None:
    reply = vsock.ask(Request.GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(size))
    config = struct.pack("<Q", 0x1_0000_0003)
    assert reply == struct.pack("<III", offset, size, 0) + config[offset : offset + size]


@pytest.mark.parametrize(("offset", "size"), [(0, 9), (8, 1), (1, 8), (U32, 8), (0, 256)])
def test_config_outside_its_space_is_answered_with_nothing(vsock: FrontEnd, offset: int, size: int) -> None:
    """The protocol's error reply; and never a byte that is not config."""
    assert vsock.ask(Request.GET_CONFIG, struct.pack("<III", offset, size, 0) + bytes(size)) == b""


@pytest.mark.parametrize(("size", "follow"), [(8, 7), (8, 9), (0, 8), (U32, 8)])
def test_config_sizes_must_agree(vsock: FrontEnd, size: int, follow: int) -> None:
    for request in (Request.GET_CONFIG, Request.SET_CONFIG):
        with pytest.raises(ProtocolError, match=f"{request.name}: {size} bytes of config space announced"):
            vsock.say(request, struct.pack("<III", 0, size, 0) + bytes(follow))


def test_vsock_config_is_read_only(vsock: FrontEnd) -> None:
    assert vsock.ack(Request.SET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8)) == 1
    assert vsock.ack(Request.SET_CONFIG, struct.pack("<III", 8, 8, 0) + bytes(8)) == 1


@pytest.mark.parametrize("request_id", [Request.IOTLB_MSG, Request.GET_INFLIGHT_FD, Request.POSTCOPY_ADVISE])
def test_what_was_not_offered_is_an_error_not_a_crash(owned: FrontEnd, request_id: Request) -> None:
    before = open_fds()
    with pytest.raises(ProtocolError, match=f"{request_id.name} is not a request this back-end offers"):
        owned.say(request_id, bytes(32), [owned.memory.fd])
    assert open_fds() == before


@pytest.mark.parametrize("request_id", sorted(RULES), ids=lambda r: Request(r).name)
def test_no_request_keeps_a_descriptor_it_must_not_have(request_id: int) -> None:
    """CVE-2019-14818, CVE-2020-10726, CVE-2022-0669: one descriptor too many, on every request there is."""
    device = RecordingDevice(protocol=NET_PROTOCOL | Protocol.CONFIG | Protocol.BACKEND_REQ, config=bytes(8))
    with FrontEnd(Session(device)) as front:
        front.say(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", device.protocol_features))
        front.say(Request.SET_OWNER)
        before = open_fds()
        payload, _ = SAMPLES[request_id]
        with pytest.raises(ProtocolError, match="descriptors"):
            front.say(request_id, payload, [front.memory.fd] * (RULES[request_id].max_fds + 1))
        assert open_fds() == before
    device.close()


# -- the end ----------------------------------------------------------------------------------------------------------


def test_the_end_of_a_session_releases_everything(device: RecordingDevice) -> None:
    fds, mapped = open_fds(), guest_mappings()
    session = Session(device)
    front = FrontEnd(session)
    front.start_net()
    assert device.live() == [True, True]
    session.close()
    session.close()
    assert device.live() == [False, False]
    assert [(ring.started, ring.enabled, ring.num) for ring in device.rings] == [(False, False, 0)] * 2
    assert device.memory is None
    assert device.features == 0
    assert device.events[-1] == "disconnect"
    front.close()
    assert (open_fds(), guest_mappings()) == (fds, mapped)


def test_the_owner_of_the_device_hears_of_changes_when_it_looks(device: RecordingDevice) -> None:
    """Never from the control thread: `on_change` runs inside `refresh`, and the descriptor says when to look."""
    import select

    heard: list[list[bool]] = []
    device.on_change = lambda: heard.append(device.live())
    with FrontEnd(Session(device)) as front, select.epoll() as outer:
        outer.register(device.fileno(), select.EPOLLIN)
        front.start_net()
        assert heard == []
        assert outer.poll(0)
        assert device.refresh()
        assert heard == [[True, True]]
        device.clear_events()
        assert outer.poll(0) == []
        assert not device.refresh()
        front.base(0)
        assert outer.poll(0)
        device.refresh()
        assert heard[-1] == [False, True]


def test_a_kick_makes_the_device_readable_until_cleared_even_if_the_ring_cannot_run(device: RecordingDevice) -> None:
    import select

    with FrontEnd(Session(device)) as front, select.epoll() as outer:
        front.handshake(NET_PROTOCOL, [0, 1])
        kick = front.event()
        front.say(Request.SET_VRING_KICK, struct.pack("<Q", 1), [kick])  # no size, no addresses
        outer.register(device.fileno(), select.EPOLLIN)
        device.clear_events()
        assert outer.poll(0) == []
        os.eventfd_write(kick, 1)
        assert outer.poll(0)
        device.clear_events()
        assert outer.poll(0) == []
        os.eventfd_write(kick, 1)
        assert outer.poll(0)


def test_a_device_closed_under_its_session_lets_go_at_once(device: RecordingDevice) -> None:
    mapped = guest_mappings()
    with FrontEnd(Session(device)) as front:
        front.start_net()
        device.close()
        assert guest_mappings() == mapped + 1  # the front-end's own
        assert device.fileno() == -1
        device.close()
