"""The agent program on the host, at the other end of a socketpair."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from qemu.guest.agent_client import AgentClient
from qemu.guest.agent_protocol import Decoder, Frame

SECONDS = 20.0


class AgentRig:
    """Raw bytes in, frames out; or `client()` for the real host side."""

    def __init__(self, program: Path) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(SECONDS)
        with theirs:
            self.process = subprocess.Popen(
                [program, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                # The agent closes nothing it inherited before exec; leaks of a process that ends are not of interest.
                env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
            )
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self._client: AgentClient | None = None

    def client(self) -> AgentClient:
        self._client = AgentClient(self.ours)
        return self._client

    def send(self, data: bytes) -> None:
        self.ours.sendall(data)

    def receive(self) -> Frame:
        """The next frame the agent sent. Raises EOFError at the end of the stream."""
        while not self._frames:
            data = self.ours.recv(1 << 18)
            if not data:
                raise EOFError
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    def until_end(self) -> tuple[int, list[Frame], str]:
        """Exit status, the frames sent until then, and what was said on standard error."""
        frames = []
        try:
            while True:
                frames.append(self.receive())
        except (EOFError, ConnectionResetError):
            pass
        _, said = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, frames, said.decode(errors="replace")

    def close(self) -> None:
        """End it in order; whatever a sanitizer found fails the test here."""
        if self._client is not None:
            self._client.close()
        self.ours.close()
        try:
            _, said = self.process.communicate(timeout=SECONDS)
        finally:
            self.process.kill()
        text = said.decode(errors="replace")
        assert "Sanitizer" not in text, text
        assert "runtime error" not in text, text
        assert self.process.returncode in (0, 1, 2), (self.process.returncode, text)
