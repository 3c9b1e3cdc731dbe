"""Kernel events, row by row (UE-01..UE-10), as a Linux 6.18 sent them."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest

from stack import Credentials, Network, Stack
from stack.errors import NetError
from stack.events import Uevent, parse_synthetic
from stack.iface import kinds
from stack.kobjects import QUEUE_EVENTS
from stack.netns import NetNamespace
from stack.socket.api import StackSocket
from stack.testing.clock import ManualClock
from stack.testing.vsock import ScriptedGuest
from stack.tests.ip_rig import ScriptedDevice

LO = "/devices/virtual/net/lo"
UUID = "12345678-1234-1234-1234-123456789abc"
AF_NETLINK, SOCK_RAW, KOBJECT_UEVENT = 16, 3, 15


@pytest.fixture
def node() -> Iterator[Stack]:
    with Network(clock=ManualClock(), rng=random.Random(3)) as network:
        stack = network.stack("node")
        network.advance(1)  # the events of lo are out
        yield stack


def listener(node: Stack, groups: int = 1) -> StackSocket:
    sock: StackSocket = node.socket.socket(AF_NETLINK, SOCK_RAW, KOBJECT_UEVENT)
    sock.bind((0, groups))
    sock.settimeout(0)
    return sock


def received(sock: StackSocket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(sock.recv(4096))
        except BlockingIOError:
            return messages


def make(node: Stack, kind: str, name: str, netns: NetNamespace | None = None) -> None:
    with node.network.lock:
        kinds.create(netns or node.netns, kind, name, {})
        node.network.finish()


def brief(events: list[Uevent]) -> list[str]:
    return [f"{event.action} {event.devpath.removeprefix('/devices/virtual/')}" for event in events]


# What was written to /sys/class/net/lo/uevent, and the variables the event had beside those of every event of lo.
SYNTHETIC = [
    ("add", "add", {"SYNTH_UUID": "0"}),
    ("add\n", "add", {"SYNTH_UUID": "0"}),
    ("change", "change", {"SYNTH_UUID": "0"}),
    (f"remove {UUID}", "remove", {"SYNTH_UUID": UUID}),
    (f"add {UUID} A=1 B=xyz", "add", {"SYNTH_UUID": UUID, "SYNTH_ARG_A": "1", "SYNTH_ARG_B": "xyz"}),
    (f"add {UUID.upper()}", "add", {"SYNTH_UUID": UUID.upper()}),
    ("move", "move", {"SYNTH_UUID": "0"}),
    ("online", "online", {"SYNTH_UUID": "0"}),
    ("offline", "offline", {"SYNTH_UUID": "0"}),
    ("bind", "bind", {"SYNTH_UUID": "0"}),
    ("unbind", "unbind", {"SYNTH_UUID": "0"}),
]
REFUSED = [
    *("add 12345678-1234-1234-1234-12345678901", f"add {UUID} A_1=2", f"add {UUID} A=", f"add {UUID} =1"),
    *(f"add {UUID} A", "bogus", "add ", "ADD", " add", f"add  {UUID}", f"add {UUID} ", "add\n\n", "add é", "\n"),
    f"add {UUID} " + " ".join(f"K{n}=1" for n in range(64)),
]


@pytest.mark.parametrize(("text", "action", "variables"), SYNTHETIC)
def test_ue_01_03_05_a_synthetic_event_byte_by_byte(
    node: Stack, text: str, action: str, variables: dict[str, str]
) -> None:
    """An event is ACTION@DEVPATH, ACTION, DEVPATH, SUBSYSTEM, SYNTH_UUID and SYNTH_ARGs, the object's own, SEQNUM,
    each with a zero at its end.
    """
    with listener(node) as sock:
        assert node.kobject("/sys/class/net/lo/uevent").uevent(text) == len(text)
        number = node.events.seqnum
        synthetic = "".join(f"{key}={value}\0" for key, value in variables.items())
        assert received(sock) == [
            f"{action}@{LO}\0ACTION={action}\0DEVPATH={LO}\0SUBSYSTEM=net\0{synthetic}"
            f"INTERFACE=lo\0IFINDEX=1\0SEQNUM={number}\0".encode()
        ]


@pytest.mark.parametrize("text", REFUSED)
def test_ue_03_05_what_is_no_synthetic_event(node: Stack, text: str) -> None:
    """Other actions, bad UUIDs, keys and blanks are EINVAL, and no event."""
    before = node.events.seqnum
    with pytest.raises(OSError, match="Invalid argument") as refused:
        node.kobject(LO).uevent(text)
    assert refused.value.errno == errno.EINVAL
    assert node.events.seqnum == before


def test_ue_05_an_empty_write_is_no_event_and_no_error(node: Stack) -> None:
    """Nothing written is no event and no error."""
    before = node.events.seqnum
    assert node.kobject(LO).uevent(b"") == 0
    assert node.events.seqnum == before


def test_ue_05_synthetic_input_never_raises_anything_but_einval() -> None:
    """Whatever is written is an event or EINVAL."""
    rng = random.Random(5)
    seeds = [text.encode() for text, *_ in SYNTHETIC]
    for _ in range(5000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        code, parsed = 0, None
        try:
            parsed = parse_synthetic(bytes(data))
        except NetError as error:
            code = error.errno
        assert code == errno.EINVAL or (parsed is not None and "SYNTH_UUID" in parsed[1])


def test_ue_05_only_root_writes_to_uevent_files(node: Stack) -> None:
    """Writing to an uevent file wants root (EACCES), reading does not; an object that is not there is ENOENT."""
    with node.acting(Credentials.user(1000)), pytest.raises(PermissionError) as refused:
        node.kobject(LO).uevent("add")
    assert refused.value.errno == errno.EACCES
    assert node.kobject(LO).read() == "INTERFACE=lo\nIFINDEX=1\n"
    with pytest.raises(FileNotFoundError):
        node.kobject("/devices/virtual/net/none")


def test_ue_02_events_come_from_the_kernel_to_group_1(node: Stack) -> None:
    """Events come from port 0, to group 1."""
    with listener(node) as sock:
        node.kobject(LO).uevent("change")
        assert sock.recvfrom(4096)[1] == (0, 1)


def test_ue_04_the_number_goes_up_by_one_whether_anybody_listens_or_not(node: Stack) -> None:
    """Each event of a node, in whatever namespace and heard by whomever, has the next number."""
    before = node.events.seqnum
    node.kobject(LO).uevent("change")
    elsewhere = node.add_netns("elsewhere")
    make(node, "dummy", "d0", elsewhere)
    with node.events.subscribe() as events:
        node.kobject(LO).uevent("change")
        (event,) = events.pending()
    assert event.seqnum == node.events.seqnum == before + 1 + 3 + 3 + 1, "lo's and d0's device and two queues each"


def test_ue_06_who_may_listen_and_send(node: Stack) -> None:
    """Everybody may listen to group 1; sending to a group wants a capability (EPERM), and what goes to the kernel is
    ignored.
    """
    with node.acting(Credentials.user(1000)), listener(node) as sock:
        assert sock.sendto(b"to the kernel", (0, 0)) == 13, "accepted and ignored"
        with pytest.raises(PermissionError):
            sock.sendto(b"to a group", (0, 2))
    with listener(node, groups=2) as udev, listener(node) as sock:
        node.kobject(LO).uevent("change")
        assert received(udev) == []
        assert len(received(sock)) == 1
        sock.setsockopt(270, 2, 1)  # NETLINK_DROP_MEMBERSHIP
        node.kobject(LO).uevent("change")
        assert received(sock) == []


def test_ue_07_08_links_and_their_queues_come_and_go_in_linuxs_order(node: Stack) -> None:
    """A link is added, then its queues; a rename is a move with DEVPATH_OLD; queues are removed before their link."""
    with node.events.subscribe() as events:
        make(node, "veth", "dm0")
        assert brief(events.pending()) == [
            *("add net/veth0", "add net/veth0/queues/rx-0", "add net/veth0/queues/tx-0"),
            *("add net/dm0", "add net/dm0/queues/rx-0", "add net/dm0/queues/tx-0"),
        ]
        with node.network.lock:
            node.netns.rename(node.netns.interface("dm0"), "dm1")
            node.network.finish()
        (moved,) = events.pending()
        assert (
            moved.emit()
            == (
                f"move@/devices/virtual/net/dm1\0ACTION=move\0DEVPATH=/devices/virtual/net/dm1\0SUBSYSTEM=net\0"
                f"DEVPATH_OLD=/devices/virtual/net/dm0\0INTERFACE=dm1\0IFINDEX=3\0SEQNUM={moved.seqnum}\0"
            ).encode()
        )
        with node.network.lock:
            node.netns.remove_interface("dm1")
            node.network.finish()
        assert brief(events.pending()) == [
            *("remove net/dm1/queues/rx-0", "remove net/dm1/queues/tx-0", "remove net/dm1"),
            *("remove net/veth0/queues/rx-0", "remove net/veth0/queues/tx-0", "remove net/veth0"),
        ]


def test_ue_08_several_renames_in_one_turn_are_told_by_their_names_of_then(node: Stack) -> None:
    """Each event has the name of its moment, however late it is told."""
    make(node, "dummy", "d0")
    with node.events.subscribe() as events:
        with node.network.lock:
            for name in ("d1", "d2"):
                node.netns.rename(node.netns.interface(2), name)
            node.netns.remove_interface("d2")
            node.network.finish()
        told = events.pending()
    assert [event.environment.get("DEVPATH_OLD", "")[-2:] for event in told[:2]] == ["d0", "d1"]
    assert brief(told)[:2] == ["move net/d1", "move net/d2"]


def test_ue_08_a_bridge_says_its_type(node: Stack) -> None:
    """A bridge's event has DEVTYPE=bridge."""
    make(node, "bridge", "br0")
    assert node.kobject("/sys/class/net/br0").read() == "DEVTYPE=bridge\nINTERFACE=br0\nIFINDEX=2\n"


def test_ue_07_an_event_is_heard_in_the_namespace_of_its_object_alone(node: Stack) -> None:
    """Events are heard in the namespace of their object; a link that moves is removed in one and added in the other."""
    blue = node.add_netns("blue")
    make(node, "veth", "v0")
    with node.events.subscribe(blue) as there, node.events.subscribe(node.netns) as here, listener(node) as sock:
        moved = node.move_interface("v0", blue)
        assert brief(here.pending()) == ["remove net/v0"]
        assert brief(there.pending()) == ["add net/v0"], "of the device alone, as measured"
        assert len(received(sock)) == 1
        assert moved.index == 3, "its index stays if it is free"


def test_ue_07_a_guests_card_and_vsock_tell_of_front_end_and_driver(node: Stack) -> None:
    """A guest's card and vsock say when QEMU comes and goes, and when the driver is ready or reset."""
    device, transport = ScriptedDevice(), ScriptedGuest(7)
    with node.events.subscribe() as events:
        for plugged in (device, transport):
            plugged.connected, plugged.carrier = False, False  # type: ignore[union-attr]  # as vhost_user's devices
        node.add_interface(device, name="eth0")
        node.add_vsock(transport)
        assert brief(events.pending()) == [
            *("add net/eth0", "add net/eth0/queues/rx-0", "add net/eth0/queues/tx-0", "add vsock/guest7"),
        ]
        steps = [("connected", True), ("carrier", True), ("carrier", False), ("connected", False)]
        told = []
        for attribute, value in steps:
            for plugged in (device, transport):
                setattr(plugged, attribute, value)
                with node.network.lock:
                    assert plugged.on_change is not None
                    plugged.on_change()
                    node.network.finish()
            told += [(each.action, each.subsystem, each.environment.get("CARRIER")) for each in events.pending()]
        assert told == [
            *(("online", "net", None), ("online", "vsock", None)),
            *(("change", "net", "1"), ("change", "vsock", "1")),
            *(("change", "net", "0"), ("change", "vsock", "0")),
            *(("offline", "net", None), ("offline", "vsock", None)),
        ]
        node.remove_interface("eth0")
        node.remove_vsock(7)
        assert brief(events.pending())[-2:] == ["remove net/eth0", "remove vsock/guest7"]


def test_ue_09_events_lost_are_reported_once(node: Stack) -> None:
    """A listener whose queue overflows gets ENOBUFS once, and what was queued."""
    with node.events.subscribe() as events, listener(node) as sock:
        for _ in range(QUEUE_EVENTS + 1):
            node.kobject(LO).uevent("change")
        for reader in (events.get, lambda _: sock.recv(4096)):
            with pytest.raises(OSError, match=r"buffer space|were lost") as lost:
                reader(0)
            assert lost.value.errno == errno.ENOBUFS
            reader(0)
        assert len(events.pending()) == QUEUE_EVENTS - 1
        with pytest.raises(TimeoutError):
            events.get(0)


def test_ue_10_a_short_buffer_truncates(node: Stack) -> None:
    """A short buffer truncates the event, with MSG_TRUNC."""
    with listener(node) as sock:
        node.kobject(LO).uevent("change")
        data, _, flags, _ = sock.recvmsg(10)
        assert (data, flags) == (b"change@/de", 0x20)  # MSG_TRUNC


def test_events_can_be_read_back() -> None:
    event = Uevent("add", "/devices/x", "net", {"INTERFACE": "x", "EMPTY": ""}, 7)
    assert Uevent.parse(event.emit()) == event
    for bad in (b"", b"libudev\0\xfe\xed", b"add@/x\0ACTION=add\0DEVPATH=/y\0SUBSYSTEM=n\0SEQNUM=1\0"):
        with pytest.raises(ValueError, match="no kernel event"):
            Uevent.parse(bad)
