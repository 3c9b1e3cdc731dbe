"""The control thread over real sockets: who is served, who is refused, what a broken front-end costs (nobody else)."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhost_user.message import Request
from vhost_user.server import ListenError, Server

from .raw_front_end import (
    OFFERED,
    FrontEnd,
    RecordingDevice,
    guest_mappings,
    net_device,
    open_fds,
    vsock_device,
)

#: Longest any reply may take before a test gives up, in seconds. Nothing here waits for time to pass.
PATIENCE = 20.0


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    device = net_device(pairs=1)
    yield device
    device.close()


@pytest.fixture
def path(server: Server, device: RecordingDevice, tmp_path: Path) -> str:
    path = str(tmp_path / "net.sock")
    server.listen(device, path=path)
    return path


def connect(path: str) -> FrontEnd:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(path)
    return FrontEnd(sock)


def settle(server: Server) -> None:
    """Return when the control thread has handled everything that had arrived before.

    A connection may be accepted in one turn of the thread and its end be seen in the next only.
    """
    for _ in range(4):
        server._call(lambda: None)


def hung_up(front: FrontEnd) -> bool:
    """The back-end closed the connection."""
    assert isinstance(front.target, socket.socket)
    try:
        return front.target.recv(1) == b""
    except ConnectionResetError:
        return True


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_serves_a_front_end_from_the_first_message_to_frames(
    server: Server, device: RecordingDevice, path: str
) -> None:
    with connect(path) as front:
        front.start_net()
        front.memory.offer(1, 256, b"hello")
        assert front.base(0) == 0  # replied to, so everything before was done
        assert bytes(device.rings[1].pop().view) == b"hello"
    settle(server)
    assert not device.connected
    assert server.stats().closed == 1
    assert server.stats().broken == 0


def test_a_device_serves_one_front_end_after_the_other(server: Server, device: RecordingDevice, path: str) -> None:
    """QEMU's `reconnect=`."""
    for _ in range(3):
        with connect(path) as front:
            front.start_net()
            front.base(1)
    settle(server)
    assert device.events.count("connect") == device.events.count("disconnect") == 3


BROKEN = {
    "unknown request": struct.pack("<III", 99, 1, 0),
    "wrong version": struct.pack("<III", 1, 2, 0),
    "reply flag": struct.pack("<III", 1, 5, 0),
    "too long": struct.pack("<III", 5, 1, 0x7FFFFFFF),
    "wrong size": struct.pack("<III", 2, 1, 4) + bytes(4),
    "bad ring": struct.pack("<IIIII", 8, 1, 8, 0x10000, 256),
    "bad features": struct.pack("<IIIQ", 2, 1, 8, 1 << 63),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_message_ends_that_connection_with_one_log_line_and_nothing_else(
    server: Server,
    device: RecordingDevice,
    path: str,
    tmp_path: Path,
    data: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = vsock_device()
    server.listen(other, path=tmp_path / "vsock.sock")
    with connect(str(tmp_path / "vsock.sock")) as bystander:
        bystander.ask(Request.GET_FEATURES)
        with connect(path) as front:
            front.start_net()
            assert isinstance(front.target, socket.socket)
            front.target.sendall(data)
            assert hung_up(front)
        settle(server)
        assert len(warnings(caplog)) == 1
        assert warnings(caplog)[0].startswith(f"dev0: front-end (process {os.getpid()}) disconnected: ")
        assert device.live() == [False, False]
        assert device.memory is None
        assert bystander.u64(bystander.ask(Request.GET_FEATURES)) == OFFERED
    with connect(path) as front:
        front.start_net()
        front.base(0)
        assert device.live() == [False, True]
    assert server.stats().broken == 1
    other.close()


def test_dying_in_the_middle_of_a_message_is_a_broken_connection(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(path) as front:
        front.ask(Request.GET_FEATURES)
        assert isinstance(front.target, socket.socket)
        front.target.sendall(struct.pack("<III", 2, 1, 8) + b"123")
    settle(server)
    assert [line.partition("disconnected: ")[2] for line in warnings(caplog)] == [
        "the front-end closed the connection inside the payload of SET_FEATURES"
    ]


def test_a_bug_of_ours_on_one_connection_does_not_take_others_with_it(
    server: Server, device: RecordingDevice, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(mac: bytes) -> None:
        raise ZeroDivisionError

    device.on_rarp = buggy  # type: ignore[method-assign]  # a hook that fails
    with connect(path) as front:
        front.start_net()
        front.say(Request.SEND_RARP, bytes(8))
        assert hung_up(front)
    settle(server)
    assert "internal error while serving a front-end" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    with connect(path) as front:
        front.ask(Request.GET_FEATURES)


# -- one front-end per device ---------------------------------------------------------------------------------------


def test_a_second_front_end_is_refused_and_the_first_never_notices(
    server: Server, device: RecordingDevice, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(path) as first:
        first.start_net()
        with connect(path) as second:
            second.say(Request.GET_FEATURES)
            assert hung_up(second)
        with connect(path) as second:  # again at once: kept waiting, and not logged a second time
            second.say(Request.GET_FEATURES)
            assert hung_up(second)
        assert warnings(caplog) == [
            f"dev0: front-end (process {os.getpid()}) refused: the device is busy with another front-end"
        ]
        first.memory.offer(1, 256, b"still here")
        assert first.base(0) == 0
        assert bytes(device.rings[1].pop().view) == b"still here"
    assert server.stats().refused == 2


def test_whoever_only_connects_takes_nobodys_place(server: Server, path: str) -> None:
    """A health check that connects and goes away, or connects and sits there (cuttlefish PR 3198)."""
    with connect(path):
        pass
    with connect(path), connect(path) as front:
        front.start_net()
        assert front.base(0) == 0


def test_silent_connections_are_bounded(server: Server, path: str) -> None:
    silent = [connect(path) for _ in range(16)]
    settle(server)
    with connect(path) as one_more:
        assert hung_up(one_more)
    silent[0].ask(Request.GET_FEATURES)  # the earlier ones are as good as ever
    for front in silent:
        front.close()
    settle(server)
    with connect(path) as front:
        front.ask(Request.GET_FEATURES)


def test_a_successor_gets_in_although_the_end_of_the_first_is_still_unread(
    server: Server, device: RecordingDevice, path: str
) -> None:
    """QEMU killed and started again within one instant: both events in the same turn of the control thread."""
    first = connect(path)
    first.start_net()
    first.base(0)
    second = connect(path)
    settle(server)
    with device.control_lock:  # holds the control thread wherever it needs the device
        first.close()
        second.say(Request.GET_FEATURES)
    assert second._exactly(12)
    second.close()
    settle(server)
    assert server.stats().refused == 0


def test_peers_can_be_checked(server: Server, device: RecordingDevice) -> None:
    seen: list[tuple[int, int, int]] = []

    def nobody(pid: int, uid: int, gid: int) -> bool:
        seen.append((pid, uid, gid))
        return False

    name = f"vhost-user-peer-{os.getpid()}"
    server.listen(device, abstract=name, accept_peer=nobody)
    with connect("\0" + name) as front:
        assert hung_up(front)
    assert seen == [(os.getpid(), os.getuid(), os.getgid())]
    assert server.stats().refused == 1


def test_a_peer_check_that_fails_lets_nobody_in_and_hurts_nobody(
    server: Server, device: RecordingDevice, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"vhost-user-failing-check-{os.getpid()}"
    server.listen(device, abstract=name, accept_peer=lambda pid, uid, gid: 1 // 0 == 0)
    with connect("\0" + name) as front:
        assert hung_up(front)
    settle(server)
    assert "ZeroDivisionError" in caplog.text
    with connect(path) as front:
        front.ask(Request.GET_FEATURES)


# -- addresses ------------------------------------------------------------------------------------------------------


def test_listening_on_an_abstract_name(server: Server, device: RecordingDevice) -> None:
    name = f"vhost-user-abstract-{os.getpid()}"
    listening = server.listen(device, abstract=name)
    assert listening.address == "@" + name
    with connect("\0" + name) as front:
        front.ask(Request.GET_FEATURES)


def test_listening_on_a_given_socket(server: Server, device: RecordingDevice, tmp_path: Path) -> None:
    path = str(tmp_path / "given")
    given = socket.socket(socket.AF_UNIX)
    given.bind(path)
    given.listen()
    listening = server.listen(device, listener=given.detach())
    assert listening.address == path
    with connect(path) as front:
        front.ask(Request.GET_FEATURES)


def test_adopting_a_connected_socket(server: Server, device: RecordingDevice) -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    server.adopt(device, ours.detach())
    with FrontEnd(theirs) as front:
        front.start_net()
        assert front.base(0) == 0


def test_exactly_one_address(server: Server, device: RecordingDevice) -> None:
    with pytest.raises(TypeError, match="exactly one"):
        server.listen(device)
    with pytest.raises(TypeError, match="exactly one"):
        server.listen(device, path="a", abstract="b")


def test_two_devices_cannot_share_a_path(server: Server, path: str) -> None:
    other = vsock_device()
    with pytest.raises(ListenError, match="somebody is listening there already"):
        server.listen(other, path=path)
    other.close()


def test_unlinked_once_connected_but_not_by_a_mere_connect(
    server: Server, device: RecordingDevice, tmp_path: Path
) -> None:
    path = tmp_path / "once.sock"
    server.listen(device, path=path, unlink_when_connected=True)
    with connect(str(path)):
        settle(server)
        assert path.exists()
        with connect(str(path)) as front:
            front.ask(Request.GET_FEATURES)
            assert not path.exists()
            front.ask(Request.GET_FEATURES)


def test_closing_a_listening_keeps_its_connection(server: Server, device: RecordingDevice, tmp_path: Path) -> None:
    path = tmp_path / "l.sock"
    listening = server.listen(device, path=path)
    with connect(str(path)) as front:
        front.ask(Request.GET_FEATURES)
        listening.close()
        listening.close()
        assert not path.exists()
        front.ask(Request.GET_FEATURES)


def test_descriptor_exhaustion_rests_the_listener_and_passes(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """accept() fails with EMFILE while the listener stays readable: it must neither spin nor give up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    bystander = connect(path)
    settle(server)
    used = open_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(set(range(max(used) + 2)) - set(used)), hard))
    try:
        sock.connect(path)
        settle(server)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert warnings(caplog) == ["dev0: cannot accept a front-end for now: Too many open files"]
    bystander.close()  # gives a descriptor back: the listener need not sit its second out
    with FrontEnd(sock) as front:
        front.ask(Request.GET_FEATURES)


# -- ends -----------------------------------------------------------------------------------------------------------


def test_closing_the_server_ends_everything(device: RecordingDevice, tmp_path: Path) -> None:
    fds, mapped = open_fds(), guest_mappings()
    path = tmp_path / "s.sock"
    server = Server()
    server.listen(device, path=path)
    with connect(str(path)) as front:
        front.start_net()
        front.base(0)
        server.close()
        server.close()
        assert not path.exists()
        assert hung_up(front)
        assert device.live() == [False, False]
    assert not any(thread.name == "vhost-user control" for thread in threading.enumerate())
    assert (open_fds(), guest_mappings()) == (fds, mapped)
    with pytest.raises(ListenError, match="closed"):
        server.listen(device, path=path)
    assert not path.exists()


def test_closing_a_device_ends_its_connection_and_its_listeners_only(server: Server, tmp_path: Path) -> None:
    doomed, other = net_device(), vsock_device()
    server.listen(doomed, path=tmp_path / "doomed")
    server.listen(other, path=tmp_path / "other")
    with connect(str(tmp_path / "doomed")) as front, connect(str(tmp_path / "other")) as bystander:
        front.start_net()
        front.base(0)
        bystander.ask(Request.GET_FEATURES)
        doomed.close()
        assert hung_up(front)
        assert not (tmp_path / "doomed").exists()
        bystander.ask(Request.GET_FEATURES)
    other.close()


def test_a_closed_device_cannot_be_served(server: Server, tmp_path: Path) -> None:
    device = net_device()
    device.close()
    with pytest.raises(ListenError, match="device is closed"):
        server.listen(device, path=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ListenError, match="device is closed"):
        server.adopt(device, ours)
    assert ours.fileno() == -1


def test_a_listen_error_has_an_errno(server: Server, device: RecordingDevice, path: str) -> None:
    with pytest.raises(ListenError) as caught:
        server.listen(device, path=path)
    assert caught.value.errno == errno.EADDRINUSE


# -- resources --------------------------------------------------------------------------------------------------------


def test_descriptors_and_mappings_are_the_same_after_1000_connects(
    server: Server, device: RecordingDevice, path: str
) -> None:
    """By turns: a whole start, a hang-up inside a message with descriptors, a broken message, silence, a refusal."""
    with connect(path) as front:
        front.start_net()
        front.base(0)
    settle(server)
    fds, mapped = open_fds(), guest_mappings()
    sample = FrontEnd(socket.socket(socket.AF_UNIX))
    for turn in range(1000):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sample.target.close()
        sample.target = sock
        kind = turn % 5
        if kind == 0:
            sample.start_net()
            sample.base(0)
            for event in sample.events:
                os.close(event)
            sample.events.clear()
        elif kind == 1:
            table = struct.pack("<III", Request.SET_MEM_TABLE, 1, 264) + bytes(20)
            socket.send_fds(sock, [table], [sample.memory.fd] * 8)
        elif kind == 2:
            socket.send_fds(sock, [struct.pack("<III", Request.SET_OWNER, 1, 0)], [sample.memory.fd] * 8)
            assert hung_up(sample)
        elif kind == 3:
            with connect(path) as other:
                other.ask(Request.GET_FEATURES)
                sample.say(Request.GET_FEATURES)
                assert hung_up(sample)
    sample.close()
    settle(server)
    assert (open_fds(), guest_mappings()) == (fds, mapped)
    assert server.stats().accepted == 1201


# -- gates ----------------------------------------------------------------------------------------------------------


def test_a_control_message_waits_for_the_gate_of_its_ring_and_no_other(
    server: Server, device: RecordingDevice, path: str
) -> None:
    with connect(path) as front:
        front.start_net()
        front.base(0)
        with device.gates[1]:  # the data path is in a burst of ring 1
            front.enable(0, False)
            front.ask(Request.GET_FEATURES)
            front.say(Request.GET_VRING_BASE, struct.pack("<II", 1, 0))
            front.say(Request.GET_FEATURES)
            assert isinstance(front.target, socket.socket)
            front.target.setblocking(False)
            with pytest.raises(BlockingIOError):
                front.target.recv(1)
            front.target.settimeout(PATIENCE)
        assert struct.unpack_from("<I", front._exactly(20)) == (Request.GET_VRING_BASE,)
        assert struct.unpack_from("<I", front._exactly(20)) == (Request.GET_FEATURES,)


def test_stats_count_and_time_messages(server: Server, path: str) -> None:
    with connect(path) as front:
        for _ in range(10):
            front.ask(Request.GET_FEATURES)
        settle(server)
        stats = server.stats()
    assert (stats.accepted, stats.messages) == (1, 10)
    assert stats.slowest_ns > 0
