"""What vhost-device-vsock's options and configuration files mean here."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu.guest.errors import SetupError
from qemu.guest.vms import DEFAULT_GROUP, ServedVsock, check_distinct, parse_vm, read_config
from qemu.guest.vsock_plug import DEFAULT_BUFFER, DEFAULT_QUEUE_SIZE, VsockConfig

FULL = ServedVsock(
    Path("/tmp/vhost3.socket"),
    VsockConfig(cid=3, uds_path=Path("/tmp/vm3.vsock"), buffer=65536, queue_size=1024, groups=("group1", "groupA")),
)


def test_every_key_of_a_vm() -> None:
    text = "guest-cid=3,socket=/tmp/vhost3.socket,uds-path=/tmp/vm3.vsock,tx-buffer-size=65536,queue-size=1024"
    assert parse_vm(text + ",groups=group1+groupA") == FULL


def test_a_socket_is_enough() -> None:
    served = parse_vm("socket=/tmp/s")
    assert (served.socket, served.config.cid, served.config.uds_path) == (Path("/tmp/s"), 3, None)
    assert (served.config.buffer, served.config.queue_size) == (DEFAULT_BUFFER, DEFAULT_QUEUE_SIZE)
    assert served.config.groups == (DEFAULT_GROUP,)


@pytest.mark.parametrize("joint", ["-", "_"])
def test_a_configuration_file(joint: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"vms:\n"
        f"  - guest{joint}cid: 3\n"
        f"    socket: /tmp/vhost3.socket\n"
        f"    uds{joint}path: /tmp/vm3.vsock\n"
        f"    tx{joint}buffer{joint}size: 65536\n"
        f"    queue{joint}size: 1024\n"
        f"    groups: group1+groupA\n"
        f"  - guest{joint}cid: 4\n"
        f"    socket: /tmp/vhost4.socket\n"
        f"    groups: [group1]\n"
    )
    first, second = read_config(path)
    assert first == FULL
    assert (second.config.cid, second.config.groups) == (4, ("group1",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a list called vms"),
        ("vms: 3", "a list called vms"),
        ("vms: []", "a list called vms"),
        ("vms: [3]", "a list called vms"),
        ("- a\n- b", "a list called vms"),
        ("vms: [{guest_cid: 3}]", "entry 1: says no socket"),
        ("vms: [{socket: /s}, {socket: 5}]", "entry 2: socket cannot be 5"),
        ("vms: [{socket: /s, guest_cid: true}]", "guest-cid cannot be True"),
        ("vms: [{socket: /s, guest_cid: [1]}]", "guest-cid cannot be"),
        ("vms: [{socket: /s, groups: 3}]", "groups cannot be 3"),
        ("vms: [{socket: /s, color: blue}]", "color is not known"),
        ("vms: {", "is no YAML"),
        ("vms: !!python/object/apply:os.system [true]", "is no YAML"),
    ],
)
def test_a_file_that_makes_no_sense_says_where(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SetupError, match=message):
        read_config(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot read"):
        read_config(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SetupError, match="is no YAML"):
        read_config(tmp_path / "binary")


@pytest.mark.parametrize("joint", ["-", "_"])
def test_the_hosts_own_vsock_instead_of_a_unix_socket(joint: str, tmp_path: Path) -> None:
    """vhost-device-vsock's other backend: forward-cid and forward-listen, in a --vm and in a file."""
    served = parse_vm(f"guest{joint}cid=5,socket=/s,forward{joint}cid=1,forward{joint}listen=9001+9002")
    assert (served.config.uds_path, served.config.forward_cid) == (None, 1)
    assert served.config.forward_listen == (9001, 9002)
    assert parse_vm("socket=/s,forward-cid=1").config.forward_listen == ()
    path = tmp_path / "c.yaml"
    for written in ("9001+9002", "[9001, 9002]"):
        path.write_text(f"vms: [{{guest_cid: 5, socket: /s, forward{joint}cid: 1, forward{joint}listen: {written}}}]")
        assert read_config(path) == [served]
    path.write_text("vms: [{socket: /s, forward_cid: 1, forward_listen: 9001}]")
    assert read_config(path)[0].config.forward_listen == (9001,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("uds-path=/u,forward-cid=1", "uds-path and forward-cid exclude each other"),
        ("uds-path=/u,forward-listen=1", "forward-listen goes with forward-cid"),
        ("forward-listen=1", "forward-listen goes with forward-cid"),
        ("forward-cid=one", "forward-cid cannot be 'one'"),
        ("forward-cid=4294967296", "forward-cid cannot be"),
        ("forward-cid=1,forward-listen=9001,9002", "'9002' is not KEY=VALUE"),
        ("forward-cid=1,forward-listen=9001+", r"forward-listen cannot be '9001\+'"),
        ("forward-cid=1,forward-listen=-1", "forward-listen cannot be"),
        ("forward-cid=1,forward_cid=2", "forward_cid is given twice"),
    ],
)
def test_the_two_ways_to_the_host_exclude_each_other(words: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        parse_vm(f"socket=/s,{words}")


def test_guests_share_neither_cid_nor_sockets() -> None:
    with pytest.raises(SetupError, match="guest-cid 3"):
        check_distinct([parse_vm("socket=/a"), parse_vm("socket=/b")])
    with pytest.raises(SetupError, match="uds-path /u"):
        check_distinct([parse_vm("socket=/a,uds-path=/u"), parse_vm("socket=/b,guest-cid=4,uds-path=/u")])
    check_distinct([parse_vm("socket=/a"), parse_vm("socket=/b,guest-cid=4")])
