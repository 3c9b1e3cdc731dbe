"""QEMU's arguments are a pure function of the configuration; every trap has its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qemu.guest.arch import Machine
from qemu.guest.argv import (
    MAX_SOCKET_PATH_BYTES,
    NetCard,
    QemuConfig,
    SocketName,
    VsockCard,
    arguments,
    kernel_words,
    net_arguments,
    socket_options,
    vsock_arguments,
)
from qemu.guest.errors import SetupError

CARD = NetCard(SocketName("/run/net"), bytes.fromhex("525400000001"))
CONFIG = QemuConfig("qemu", Path("/boot/vmlinuz"), Path("/tmp/initrd"), console_fd=3, qmp_fd=4, agent_fd=5)


def option(words: list[str], name: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == name]


def test_same_configuration_same_arguments() -> None:
    assert arguments(CONFIG) == arguments(replace(CONFIG))
    assert arguments(CONFIG)[0] == "qemu"


def test_guest_memory_can_be_shared_and_is_what_the_machine_uses() -> None:
    words = arguments(CONFIG)
    assert option(words, "-object") == ["memory-backend-memfd,id=ram,size=256M,share=on"]
    assert option(words, "-m") == ["256M"]
    assert "memory-backend=ram" in option(words, "-machine")[0]


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_vhost_user_net_under_tcg_has_no_msix(machine: Machine) -> None:
    """QEMU 7.2 crashes in msix_set_vector_notifiers otherwise (measured: QEMU 7.2.22)."""
    config = replace(CONFIG, machine=machine, net=(CARD,))
    [device] = [word for word in option(arguments(config), "-device") if word.startswith("virtio-net")]
    assert "vectors=0" in device.split(",")
    assert "romfile=" in device.split(",")


def test_with_kvm_msix_stays_and_covers_every_queue() -> None:
    config = replace(CONFIG, accelerator="kvm")
    assert "vectors" not in net_arguments(CARD, config)[-1]
    assert "vectors=10" in net_arguments(replace(CARD, queues=4), config)[-1].split(",")


def test_tcg_never_gets_cpu_max() -> None:
    """It advertises ERMS and FSRM, and TCG runs `rep movsb` byte by byte (measured: QEMU 7.2.22)."""
    assert option(arguments(CONFIG), "-cpu") == ["qemu64"]
    assert option(arguments(replace(CONFIG, accelerator="kvm")), "-cpu") == ["host"]


def test_an_aarch64_guest_is_in_a_virt_with_what_belongs_to_it() -> None:
    config = replace(CONFIG, machine="virt", net=(CARD,), vsock=VsockCard(SocketName("/run/vsock")), spare_ports=1)
    words = arguments(config)
    assert option(words, "-machine") == ["virt,accel=tcg,memory-backend=ram"]
    assert option(words, "-cpu") == ["cortex-a57"]
    assert option(words, "-object") == ["memory-backend-memfd,id=ram,size=256M,share=on"]
    kernel = kernel_words(config)
    assert kernel[0] == "console=ttyAMA0"
    assert not {"tsc=reliable", "no_timer_check", "console=ttyS0"} & set(kernel)
    devices = [word.split(",")[0] for word in option(words, "-device")]
    assert devices == [
        *("virtio-serial-pci", "virtserialport", "virtio-net-pci", "vhost-user-vsock-pci", "pcie-root-port"),
    ]


def test_microvm_speaks_modern_virtio_over_mmio() -> None:
    """Its transport is legacy unless told otherwise (measured: QEMU 7.2.22)."""
    words = arguments(replace(CONFIG, machine="microvm", net=(CARD,), vsock=VsockCard(SocketName("/run/vsock"))))
    assert option(words, "-global") == ["virtio-mmio.force-legacy=false"]
    devices = option(words, "-device")
    assert all("-pci" not in device and "vectors" not in device for device in devices)


def test_queues_mtu_and_reconnect() -> None:
    chardev, netdev, device = net_arguments(replace(CARD, queues=2, mtu=9000, reconnect=True), CONFIG)[1::2]
    assert chardev == "socket,id=chr-net0,path=/run/net,reconnect=1"
    assert netdev == "vhost-user,id=net0,chardev=chr-net0,queues=2"
    assert {"mq=on", "host_mtu=9000", "mac=52:54:00:00:00:01"} <= set(device.split(","))


def test_vsock_connects_once() -> None:
    assert vsock_arguments(VsockCard(SocketName("name", abstract=True)), CONFIG) == [
        "-chardev",
        "socket,id=chr-vsock,path=name,abstract=on",
        "-device",
        "vhost-user-vsock-pci,chardev=chr-vsock",
    ]


def test_own_channels_are_inherited_sockets() -> None:
    chardevs = option(arguments(CONFIG), "-chardev")
    assert chardevs == ["socket,id=console,fd=3", "socket,id=qmp,fd=4", "socket,id=agent,fd=5"]


def test_a_dead_guest_ends_its_qemu() -> None:
    assert "-no-reboot" in arguments(CONFIG)
    assert {"panic=-1", "oops=panic", "console=ttyS0"} <= set(kernel_words(CONFIG))


def test_words_for_the_kernel_come_last_so_that_they_win() -> None:
    words = option(arguments(replace(CONFIG, append=("quiet", "panic=5"))), "-append")[0].split()
    assert words[-2:] == ["quiet", "panic=5"]


def test_commas_in_paths_are_doubled() -> None:
    assert socket_options(SocketName("/tmp/a,b")) == "path=/tmp/a,,b"


def test_longest_socket_path_is_accepted_and_one_more_is_not() -> None:
    name = "/" + "x" * (MAX_SOCKET_PATH_BYTES - 1)
    assert socket_options(SocketName(name)) == f"path={name}"
    with pytest.raises(SetupError, match=r"108 bytes: Unix sockets allow 1 to 107; use a shorter path"):
        socket_options(SocketName(name + "x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": "pc", "spare_ports": 1}, "on a q35 only, not on pc"),
        ({"memory_mib": 16}, "at least 64 MiB of memory, not 16"),
        ({"smp": 0}, "at least one CPU"),
        ({"net": (replace(CARD, mac=bytes.fromhex("015400000001")),)}, "no unicast hardware address"),
        ({"net": (replace(CARD, mac=b"12345"),)}, "no unicast hardware address"),
        ({"net": (replace(CARD, queues=0),)}, "at least one queue pair"),
        ({"append": ("a\nb",)}, "line ends"),
    ],
)
def test_values_qemu_would_choke_on_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        arguments(replace(CONFIG, **change))  # type: ignore[arg-type]  # the point is a mixture of fields
