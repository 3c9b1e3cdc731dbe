"""A real QEMU without a guest: its CPU halts at once, and Python is the driver of its virtio devices through -qtest.

Debian's QEMU lacks the qtest accelerator, but the qtest *socket* works beside TCG with a firmware that only halts. A
boot takes about half a second and no KVM. Devices sit on virtio-mmio (microvm), registers by virtio 1.3 section 4.2.2.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

#: Longest wait for anything QEMU does, in seconds.
PATIENCE = 30.0

MMIO_BASE = 0xFEB0_0000
MMIO_SLOTS = 24
MMIO_STRIDE = 512
NET, VSOCK = 1, 19  #: device IDs, virtio 1.3 section 5

MAGIC, DEVICE_ID = 0x000, 0x008
DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
STATUS, QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE, CONFIG = 0x070, 0x080, 0x090, 0x0A0, 0x100

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8

#: The last 16 bytes of the firmware: cli; hlt; jmp back to the hlt.
_HALT = bytes.fromhex("faf4ebfd").ljust(16, b"\xf4")


class Machine:
    """A microvm with 64 MiB of shared memory and the given extra arguments. Gone at the end of the with block."""

    def __init__(self, directory: Path, arguments: list[str]) -> None:
        qemu = shutil.which("qemu-system-x86_64")
        if qemu is None:
            pytest.fail("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
        firmware = directory / "halt.bin"
        firmware.write_bytes(b"\xf4" * (0x10000 - 16) + _HALT)
        self._listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        paths = [str(directory / "qtest.sock"), str(directory / "qmp.sock")]
        for listener, path in zip(self._listeners, paths, strict=True):
            listener.settimeout(PATIENCE)
            listener.bind(path)
            listener.listen(1)
        command = [
            *(["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []),
            *[qemu, "-accel", "tcg", "-bios", str(firmware), "-M", "microvm,memory-backend=m", "-m", "64"],
            *["-object", "memory-backend-memfd,id=m,size=64M,share=on", "-nodefaults", "-display", "none"],
            *["-global", "virtio-mmio.force-legacy=false", "-qtest", f"unix:{paths[0]}", "-qtest-log", "none"],
            *["-qmp", f"unix:{paths[1]}", *arguments],
        ]
        self.log = directory / "qemu.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._sockets: list[socket.socket] = []
        self._buffers = [b"", b""]

    def __enter__(self) -> Self:
        try:
            for listener in self._listeners:
                self._sockets.append(self._accept(listener))
            self._json()  # QMP's greeting
            self.qmp("qmp_capabilities")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        listener.settimeout(0.2)
        while True:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"QEMU did not come up: {self.log.read_text()}")
                continue
            sock.settimeout(PATIENCE)
            return sock

    def close(self) -> None:
        """Kill QEMU if it is still there, and wait for it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for sock in [*self._sockets, *self._listeners]:
            sock.close()

    def quit(self) -> int:
        """Ask QEMU to end; its exit code."""
        self._sockets[1].sendall(b'{"execute": "quit"}')
        return self.process.wait(PATIENCE)

    # -- QMP ------------------------------------------------------------------------------------------------------

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute and return what came back; events are skipped."""
        self._sockets[1].sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = self._json()
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, answer

    def _json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self._line(1))
        return value

    # -- qtest ------------------------------------------------------------------------------------------------------

    def _line(self, which: int) -> bytes:
        while b"\n" not in self._buffers[which]:
            data = self._sockets[which].recv(65536)
            if not data:
                pytest.fail(f"QEMU hung up: {self.log.read_text()}")
            self._buffers[which] += data
        line, _, self._buffers[which] = self._buffers[which].partition(b"\n")
        return line

    def qtest(self, command: str) -> str:
        self._sockets[0].sendall(command.encode() + b"\n")
        line = self._line(0).decode()
        assert line.startswith("OK"), f"{command}: {line}"
        return line[2:].strip()

    def readl(self, address: int) -> int:
        return int(self.qtest(f"readl {address:#x}"), 16)

    def writel(self, address: int, value: int) -> None:
        self.qtest(f"writel {address:#x} {value:#x}")

    def read(self, address: int, size: int) -> bytes:
        return bytes.fromhex(self.qtest(f"read {address:#x} {size:#x}")[2:])

    def write(self, address: int, data: bytes) -> None:
        self.qtest(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def virtio(self, device_id: int) -> VirtioMmio:
        """The (only) virtio-mmio device of that kind."""
        for slot in range(MMIO_SLOTS):
            base = MMIO_BASE + slot * MMIO_STRIDE
            if self.readl(base + MAGIC) == 0x7472_6976 and self.readl(base + DEVICE_ID) == device_id:
                return VirtioMmio(self, base)
        pytest.fail(f"no virtio device {device_id} in QEMU")


class VirtioMmio:
    """A driver's view of one device, with split rings at places of our choosing in guest memory."""

    def __init__(self, machine: Machine, base: int) -> None:
        self.machine = machine
        self.base = base
        self.rings: dict[int, DriverRing] = {}

    def get(self, register: int) -> int:
        return self.machine.readl(self.base + register)

    def set(self, register: int, value: int) -> None:
        self.machine.writel(self.base + register, value)

    def features(self) -> int:
        value = 0
        for half in (0, 1):
            self.set(DEVICE_FEATURES_SEL, half)
            value |= self.get(DEVICE_FEATURES) << 32 * half
        return value

    def config(self, offset: int, size: int) -> bytes:
        return b"".join(
            self.get(CONFIG + offset + at).to_bytes(4, "little") for at in range(0, size, 4)
        )[:size]  # fmt: skip

    def reset(self) -> None:
        self.set(STATUS, 0)

    def start(self, accept: int, rings: dict[int, int], *, at: int) -> None:
        """Reset to DRIVER_OK; `rings`: size by index, laid out in guest memory from `at` on, 64 KiB each."""
        self.reset()
        self.set(STATUS, ACKNOWLEDGE | DRIVER)
        features = self.features() & accept
        for half in (0, 1):
            self.set(DRIVER_FEATURES_SEL, half)
            self.set(DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert self.get(STATUS) & FEATURES_OK
        for index, size in rings.items():
            self.rings[index] = DriverRing(self, index, size, at + 0x10000 * index)
        self.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)


class DriverRing:
    """One split ring: `at` the descriptors, +0x4000 the available ring, +0x5000 the used ring, +0x8000 buffers."""

    BUFFER = 2048  #: bytes of one buffer; sixteen of them fit

    def __init__(self, device: VirtioMmio, index: int, size: int, at: int) -> None:
        self.device, self.index, self.size, self.at = device, index, size, at
        self._available = 0
        self._next = 0
        machine = device.machine
        machine.write(at, bytes(0x8000))
        device.set(QUEUE_SEL, index)
        assert device.get(QUEUE_NUM_MAX) >= size
        device.set(QUEUE_NUM, size)
        for register, address in ((QUEUE_DESC, at), (QUEUE_DRIVER, at + 0x4000), (QUEUE_DEVICE, at + 0x5000)):
            device.set(register, address)
            device.set(register + 4, 0)
        device.set(QUEUE_READY, 1)

    def add(self, data: bytes | None) -> int:
        """A readable buffer with `data`, or an empty writable one; returns its address."""
        return self.add_chain([data])

    def add_chain(self, parts: list[bytes | None]) -> int:
        """One chain of readable buffers, then (None) writable ones; kicks; returns the first one's address."""
        machine, head = self.device.machine, self._next
        for left, data in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            slot = self._next
            self._next = (slot + 1) % self.size
            address = self.at + 0x8000 + self.BUFFER * (slot % 16)
            if data is not None:
                machine.write(address, data)
            flags = (1 if left else 0) | (2 if data is None else 0)
            length = self.BUFFER if data is None else len(data)
            machine.write(self.at + 16 * slot, struct.pack("<QIHH", address, length, flags, self._next if left else 0))
        machine.write(self.at + 0x4004 + 2 * (self._available % self.size), struct.pack("<H", head))
        self._available += 1
        machine.write(self.at + 0x4002, struct.pack("<H", self._available & 0xFFFF))
        self.device.set(QUEUE_NOTIFY, self.index)
        return self.at + 0x8000 + self.BUFFER * (head % 16)

    def used(self) -> int:
        """The used index the device has published."""
        return int.from_bytes(self.device.machine.read(self.at + 0x5002, 2), "little")
