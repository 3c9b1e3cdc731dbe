"""Captures are read back by tshark: names, nanoseconds, directions, comments, superframes."""

from __future__ import annotations

import errno
import io
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stack.link.capture import Capture
from stack.link.device import GSO_TCPV4, NEEDS_CSUM, Offload
from stack.scheduler import Scheduler
from stack.testing import builders as b
from stack.testing.links import RecorderDevice

FIELDS = [
    "frame.time_epoch",
    "frame.interface_name",
    "frame.interface_description",
    "frame.len",
    "frame.cap_len",
    "frame.comment",
    "frame.packet_flags_direction",
    "tcp.len",
    "tcp.checksum.status",
    "ip.len",
    "ip.checksum.status",
]
SRC, DST = b"\x0a\0\2\2", b"\x0a\0\2\x0f"


def packet(payload: bytes = b"", *, flags: int = b.ACK) -> bytes:
    segment = b.tcp(SRC, DST, 1000, 2000, payload=payload, flags=flags)
    return b.ethernet(b"\x02bbbbb", b"\x02aaaaa", 0x0800, b.ipv4(SRC, DST, 6, segment))


def tshark(path: Path) -> list[dict[str, Any]]:
    """Every packet's fields as tshark understands them, checksums verified."""
    command = ["tshark", "-r", str(path), "-T", "json", "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    for field in FIELDS:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "damaged" not in done.stderr + done.stdout
    packets = json.loads(done.stdout)
    return [{name: values[0] for name, values in found["_source"]["layers"].items()} for found in packets]


def test_tshark_reads_names_times_directions_and_comments(tmp_path: Path) -> None:
    scheduler = Scheduler(rng=random.Random(1), now=5)
    path = tmp_path / "run.pcapng"
    inner = RecorderDevice()
    epoch = 1_700_000_000_000_000_000
    with Capture(path, scheduler, epoch_ns=epoch, comment="one run") as capture:
        left = capture.tap(inner, "eth0", description="guest \N{SNOWMAN}")
        inner.feed(packet(b"in"))
        left.receive(8)
        right = capture.tap(RecorderDevice(), "eth1")  # a second interface, after packets were written
        scheduler.now = 123_456_789
        capture.comment("step: download")
        right.transmit([((packet(b"out")[:20], packet(b"out")[20:]), 0, 0, 0, 0, 0, 0)])
    first, second = tshark(path)
    assert first["frame.interface_name"] == "eth0"
    assert first["frame.interface_description"] == "guest \N{SNOWMAN}"
    assert first["frame.time_epoch"] == "1700000000.000000005"
    assert int(first["frame.packet_flags_direction"], 0) == 1
    assert first["tcp.len"] == "2"
    assert "frame.comment" not in first
    assert second["frame.interface_name"] == "eth1"
    assert second["frame.time_epoch"] == "1700000000.123456789"
    assert int(second["frame.packet_flags_direction"], 0) == 2
    assert second["frame.comment"] == "step: download"
    assert first["tcp.checksum.status"] == second["tcp.checksum.status"] == "1", "good"


def test_tshark_reads_the_largest_superframe_whole(tmp_path: Path) -> None:
    """65535 bytes of IP: the total length is true, nothing is cut, the comment says what the wire carries."""
    payload = bytes(65535 - 40)
    whole = packet(payload, flags=b.ACK | b.PSH)
    path = tmp_path / "super.pcapng"
    with Capture(path, Scheduler(rng=random.Random(1))) as capture:
        device = capture.tap(RecorderDevice(), "eth0")
        device.transmit([((whole[:54], memoryview(whole)[54:]), NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)])
        device.device.feed_frames((memoryview(whole), NEEDS_CSUM, GSO_TCPV4, 1448, 34, 16))  # type: ignore[attr-defined]
        device.receive(1)
    for found in tshark(path):
        assert found["frame.len"] == found["frame.cap_len"] == str(14 + 65535)
        assert found["ip.len"] == "65535"
        assert found["tcp.len"] == str(len(payload))
        assert found["ip.checksum.status"] == "1"
        assert found["frame.comment"] == "superframe: 46 packets of up to 1448 bytes of payload"


def test_a_limit_ends_the_recording_and_counts_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "limited.pcapng"
    with Capture(path, Scheduler(rng=random.Random(1)), max_bytes=1000) as capture:
        device = capture.tap(RecorderDevice(), "eth0")
        for _ in range(10):
            device.transmit([((packet(bytes(500)),), 0, 0, 0, 0, 0, 0)])
    assert capture.packets + capture.missed == 10
    assert len(tshark(path)) == capture.packets == 2
    assert path.stat().st_size == capture.bytes


def test_overlong_text_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "text.pcapng"
    with Capture(path, Scheduler(rng=random.Random(1))) as capture:
        capture.comment("\N{SNOWMAN}" * 30000)
        capture.tap(RecorderDevice(), "eth0").transmit([((packet(),), 0, 0, 0, 0, 0, 0)])
    assert set(tshark(path)[0]["frame.comment"]) == {"\N{SNOWMAN}"}


def test_only_accepted_frames_are_recorded() -> None:
    file = io.BytesIO()
    capture = Capture(file, Scheduler(rng=random.Random(1)))
    device = capture.tap(RecorderDevice(room=1), "eth0")
    assert device.transmit([((packet(),), 0, 0, 0, 0, 0, 0)] * 3) == 1
    assert capture.packets == 1
    capture.close()
    capture.close()
    assert not file.closed, "a file that was handed in stays its owner's"
    device.transmit([])
    device.device.feed(packet())  # type: ignore[attr-defined]
    assert len(device.receive(8)) == 1, "the link goes on after the capture ended"
    assert capture.packets == 1


def test_a_tap_is_the_device_in_everything_else() -> None:
    inner = RecorderDevice(mtu=4000)
    device = Capture(io.BytesIO(), Scheduler(rng=random.Random(1))).tap(inner, "eth0")
    assert (device.mtu, device.mac, device.carrier) == (4000, inner.mac, True)
    inner.offloads = Offload.NONE
    assert device.offloads == Offload.NONE
    events: list[int] = []
    device.on_change = lambda: events.append(1)
    inner.changed()
    assert events == [1]
    assert device.fileno() == -1
    device.suppress()
    states = [inner.armed]
    assert not device.arm()
    assert [*states, inner.armed] == [False, True]
    device.close()
    assert (inner.closed, inner.carrier) == (True, False)


class FullDisk(io.RawIOBase):
    """Takes some bytes, then fails as a full disk does."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.room < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return len(data)


@pytest.mark.parametrize("room", [0, 150, 400])
def test_a_full_disk_ends_the_capture_and_not_the_traffic(room: int) -> None:
    capture = Capture(FullDisk(room), Scheduler(rng=random.Random(1)))  # type: ignore[arg-type]  # a raw file is enough
    inner = RecorderDevice()
    device = capture.tap(inner, "eth0")
    for _ in range(5):
        assert device.transmit([((packet(bytes(100)),), 0, 0, 0, 0, 0, 0)]) == 1
    assert len(inner.sent) == 5
    assert capture.error is not None
    assert capture.error.errno == errno.ENOSPC
    capture.close()


def test_a_file_that_cannot_be_created_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Capture(tmp_path / "no" / "such", Scheduler(rng=random.Random(1)))
