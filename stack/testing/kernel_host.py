"""The Linux kernel's own stack as a node of our Network: in a network namespace of its own, behind a TAP.

Theory of operation
-------------------
A child process moves into a new network namespace (and, without root, a new user namespace in which it is root), makes
a TAP there, and passes its descriptor back: plugged into a Stack or a switch of ours by `stack.link.tap.Tap`, it is a
cable to Linux. A socket belongs to the namespace it was made in and works from any process, so the child also makes
sockets on request and passes them back: the test then uses ordinary `socket.socket` objects that live on the other side
of the cable. `run` runs administration commands (`ip`, `tc`, `sysctl`) in there.

Where the kernel or its policy does not allow a namespace, `KernelHost` raises `NoKernelHostError` with the reason
in one line.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import socket
import subprocess
import sys
from types import TracebackType
from typing import Any, Final, Self

from stack.link.tap import Tap, open_tap

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
_MESSAGE: Final = 1 << 16


class NoKernelHostError(RuntimeError):
    """This machine does not let us make a network namespace with a TAP; the text says which step failed."""


class KernelHost:
    """A Linux node: `tap` is our end of its cable. A context manager; `close` ends its process and everything in it.

    `addresses` as "10.9.0.2/24" are those of the kernel's interface, `mac` its hardware address, `mtu` its MTU;
    `offload=False` makes the kernel segment and checksum everything itself, and us too. Raises NoKernelHostError.
    """

    def __init__(
        self,
        *addresses: str,
        mac: bytes | None = None,
        mtu: int = 1500,
        offload: bool = True,
        our_mac: bytes = bytes.fromhex("02677700007a"),
    ) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stack.testing.kernel_host", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        try:
            answer, fds = self._ask({"open": offload})
            self.interface: str = answer["interface"]
            self.tap = Tap(fds[0], mac=our_mac, mtu=mtu, offload=offload)
            #: The number of `interface` in its namespace.
            self.index = int(self.run("ip", "-o", "link", "show", self.interface).split(":")[0])
            self.run("ip", "link", "set", "lo", "up")
            self.sysctl(f"net.ipv6.conf.{self.interface}.accept_dad", "0")
            hardware = [] if mac is None else ["address", mac.hex(":")]
            self.run("ip", "link", "set", self.interface, "mtu", str(mtu), *hardware, "up")
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []  # usable at once
                self.run("ip", "address", "add", address, "dev", self.interface, *nodad)
        except BaseException:
            self.close()
            raise

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
        """A socket of the kernel's in this namespace. Raises OSError as `socket.socket` does."""
        answer, fds = self._ask({"socket": [int(family), int(kind), proto]})
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"])
        return socket.socket(fileno=fds[0])

    def run(self, *command: str, check: bool = True) -> str:
        """What `command` printed, run in this namespace. Raises RuntimeError naming it if it failed and `check`."""
        answer, _ = self._ask({"run": command})
        if answer["rc"] and check:
            raise RuntimeError(f"`{' '.join(command)}` failed in the namespace: {answer['out'].strip()}")
        return str(answer["out"])

    def sysctl(self, name: str, value: str | None = None) -> str:
        """The value of `name` as "net.ipv4.tcp_sack", after setting it if `value` is given. Raises OSError."""
        path = f"/proc/sys/{name.replace('.', '/')}"
        answer, _ = self._ask({"sysctl": [path, value]})
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"], path)
        return str(answer["value"])

    def close(self) -> None:
        """Idempotent."""
        tap = self.__dict__.get("tap")
        if tap is not None:
            tap.close()
        self._channel.close()  # the child reads the end of its channel, and exits
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        try:
            self._channel.send(json.dumps(request).encode())
            data, fds, _, _ = socket.recv_fds(self._channel, _MESSAGE, 1)
        except OSError as error:
            raise NoKernelHostError(f"the namespace's process is gone: {error}") from None
        answer = json.loads(data or b'{"unavailable": "the namespace\'s process ended"}')
        if "unavailable" in answer:
            raise NoKernelHostError(answer["unavailable"])
        return answer, fds


def _enter_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and libc.unshare(CLONE_NEWNET) == 0:
        return
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise NoKernelHostError(f"no network namespace may be made here: unshare(2) says {reason}")
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{file}", "w") as proc:
            proc.write(text)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The answer and a descriptor that goes with it, or -1."""
    if "open" in request:
        try:
            _enter_namespace()
            fd, name = open_tap(offload=request["open"])
        except NoKernelHostError as error:
            return {"unavailable": str(error)}, -1
        except OSError as error:
            return {"unavailable": f"no TAP may be made here: {error}"}, -1
        return {"interface": name}, fd
    try:
        if "socket" in request:
            return {}, socket.socket(*request["socket"]).detach()
        if "sysctl" in request:
            path, value = request["sysctl"]
            if value is not None:
                with open(path, "w") as proc:
                    proc.write(value)
            with open(path) as proc:
                return {"value": proc.read().strip()}, -1
    except OSError as error:
        return {"errno": error.errno, "error": error.strerror}, -1
    try:
        done = subprocess.run(request["run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        return {"rc": 127, "out": str(error)}, -1
    return {"rc": done.returncode, "out": done.stdout[: _MESSAGE // 2]}, -1


def _serve(channel: socket.socket) -> None:
    while request := channel.recv(_MESSAGE):
        answer, fd = _answer(json.loads(request))
        ancillary = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        channel.sendmsg([json.dumps(answer).encode()], ancillary)
        if fd >= 0:
            os.close(fd)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as served:
        _serve(served)
