"""``make demo``: boots a Linux guest and shows, step by step and measured, what works.

Every step prints one line. The exit status is 0 only if every step worked.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from qemu.guest import Guest, GuestError
from qemu.guest.bench import peers, rows
from qemu.guest.bench.farend import FarEnd, echo

#: What the two HTTP downloads carry, bytes.
_DOWNLOAD: Final = 8 << 20
_BULK_SECONDS: Final = 1.5
_HTTP_PORT: Final = 8000
_VSOCK_ROUNDS: Final = 500
_VSOCK_PORT: Final = 7000


class DemoError(Exception):
    """A step gave a wrong result; the message says which."""


class Demo:
    """The steps, in order, on one guest. A step returns what its line is to say."""

    def __init__(self, console: Console, guest: Guest) -> None:
        self.console = console
        self.guest = guest
        self.failed = 0

    def step(self, title: str, action: Callable[[], str]) -> None:
        began = time.monotonic()
        try:
            with self.console.status(title):
                said = action()
            mark = "[green]ok[/green]  "
        except (GuestError, OSError, DemoError, http.client.HTTPException) as error:
            self.failed += 1
            said, mark = str(error), "[red]FAIL[/red]"
        took = time.monotonic() - began
        self.console.print(f"{mark} {title:<34} {said} [dim]({took:.1f} s)[/dim]", highlight=False, soft_wrap=True)

    def run(self) -> None:
        guest = self.guest
        self.step("boots", self.boot)
        if self.failed:
            return
        self.step("takes a DHCP lease", lambda: f"{guest.address} from {guest.gateway}")
        self.step("pings its gateway", self.ping)
        self.step("downloads from http.server here", self.guest_downloads)
        self.step("serves a download to http.client", self.host_downloads)
        self.step("vsock echo, guest to host", self.vsock_from_guest)
        self.step("vsock echo, host to guest", self.vsock_to_guest)
        with uncaptured(guest):
            paths = [peers.ours(guest), peers.slirp(guest)]
            self.step("bulk TCP guest to host", lambda: self.bulk(rows.guest_to_host, paths))
            self.step("bulk TCP host to guest", lambda: self.bulk(rows.host_to_guest, paths))

    def boot(self) -> str:
        self.guest.start()
        verdict = self.guest.verdict
        how = f", {verdict.accelerator} ({verdict.reason})" if verdict else ""
        release = self.guest.run("uname -r", check=True).stdout.strip()
        return f"{self.guest.boot_seconds:.2f} s, Linux {release}{how}"

    def ping(self) -> str:
        out = self.guest.run(["ping", "-c", "5", "-i", "0.1", self.guest.gateway], check=True).stdout
        times = re.search(r"min/avg/max = ([\d.]+)/([\d.]+)/([\d.]+)", out)
        if times is None:
            raise DemoError(f"ping said: {out}")
        return f"5 of 5, {times[2]} ms on average, {times[1]} at best"

    def guest_downloads(self) -> str:
        content = os.urandom(_DOWNLOAD)
        with served(self.guest, content) as url:
            began = time.monotonic()
            digest = self.guest.run(f"wget -q -O - {url} | sha256sum", check=True).stdout.split()[0]
            took = time.monotonic() - began
        if digest != hashlib.sha256(content).hexdigest():
            raise DemoError("something else arrived")
        return f"{_DOWNLOAD >> 20} MiB with busybox wget, intact, {took:.1f} s with its checksum"

    def host_downloads(self) -> str:
        guest = self.guest
        made = f"mkdir -p /www && head -c {_DOWNLOAD} /dev/urandom > /www/file && sha256sum /www/file"
        digest = guest.run(made, check=True).stdout.split()[0]
        guest.run("httpd -p 80 -h /www", check=True)
        began = time.monotonic()
        with guest.stack.installed():
            connection = http.client.HTTPConnection(guest.address, 80, timeout=20)
            connection.request("GET", "/file")
            content = connection.getresponse().read()
            connection.close()
        took = time.monotonic() - began
        if hashlib.sha256(content).hexdigest() != digest:
            raise DemoError("something else arrived")
        return f"{_DOWNLOAD >> 20} MiB from busybox httpd, intact, {len(content) * 8e-6 / took:.0f} Mb/s"

    def vsock_from_guest(self) -> str:
        sockets = self.guest.stack.socket
        with FarEnd(sockets, "", echo, family=sockets.AF_VSOCK) as far:
            load = self.guest.load("rr", "2", far.port, family="vsock", count=_VSOCK_ROUNDS, size=64, response=64)
            figures = load.result()
        return f"{figures['count']} round trips, {figures['p50_us']:.0f} us at the median"

    def vsock_to_guest(self) -> str:
        load = self.guest.load("echo", "listen", _VSOCK_PORT, family="vsock", count=1, size=64, response=64)
        load.wait_listening()
        times = []
        with self.guest.vsock.connect(_VSOCK_PORT) as connection:
            for _ in range(_VSOCK_ROUNDS):
                message = os.urandom(64)
                began = time.perf_counter()
                connection.sendall(message)
                answer = b""
                while len(answer) < len(message) and (piece := connection.recv(64)):
                    answer += piece
                times.append(time.perf_counter() - began)
                if answer != message:
                    raise DemoError("the guest echoed something else")
        return f"{len(times)} round trips, {sorted(times)[len(times) // 2] * 1e6:.0f} us at the median"

    def bulk(self, measure: Callable[[Guest, peers.Path, float], rows.Figures], paths: list[peers.Path]) -> str:
        ours, slirp = (measure(self.guest, path, _BULK_SECONDS)["gbps"] for path in paths)
        if not ours or not slirp:
            raise DemoError("no bytes arrived")
        return f"[bold]{ours:.2f} Gb/s[/bold], QEMU's slirp {slirp:.2f} Gb/s: {ours / slirp:.1f}x"


@contextmanager
def served(guest: Guest, content: bytes) -> Iterator[str]:
    """A `http.server` of the standard library on the guest's gateway, with one thing to offer; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name http.server calls
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """One line per step is enough."""

    with guest.stack.installed():
        server = http.server.ThreadingHTTPServer((guest.gateway, _HTTP_PORT), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://{guest.gateway}:{_HTTP_PORT}/"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def uncaptured(guest: Guest) -> Iterator[None]:
    """Nothing is captured meanwhile: gigabytes of bulk would say nothing."""
    capture = guest.capture
    if capture is None:
        yield
        return
    capture.paused = True
    try:
        yield
    finally:
        capture.paused = False


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    pcap = Path("artifacts/demo.pcapng")
    pcap.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    console.print("[bold]A Linux guest under QEMU; this Python process is its network and its vsock host.[/bold]")
    guest = Guest(user_net=True, pcap=pcap, say=lambda text: console.print(f"     {text}", style="dim"))
    demo = Demo(console, guest)
    try:
        demo.run()
    finally:
        packets = guest.capture.packets if guest.capture is not None else 0
        guest.close()
    if packets:
        console.print(f"     {packets} packets in {pcap}: open it with Wireshark, or tshark -r {pcap}", highlight=False)
    took = time.monotonic() - began
    if demo.failed:
        console.print(f"[red]{demo.failed} step(s) failed[/red] ({took:.0f} s)")
        return 1
    console.print(f"[green]Every step worked[/green] ({took:.0f} s).", highlight=False)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
