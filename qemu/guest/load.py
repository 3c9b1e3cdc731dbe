"""A run of the guest's load generator (agent/load.c), seen from the host."""

from __future__ import annotations

import json
import time
from typing import Any

from qemu.guest.command import Command
from qemu.guest.errors import AgentError


class Load:
    """Started by `Guest.load`. `result` waits for the figures, `stop` ends a server."""

    def __init__(self, command: Command) -> None:
        self.command = command

    def wait_listening(self, *, timeout: float = 30.0) -> None:
        """Until a load with address "listen" accepts connections."""
        line = self.command.read_line(timeout=timeout)
        if not line.startswith('{"listening"'):
            raise AgentError(self._complaint(f"the load generator did not listen: {line}"))

    def result(self, *, timeout: float = 60.0) -> dict[str, Any]:
        """The figures: bytes, seconds and gbps of bulk load; count, seconds and microseconds (min_us, p50_us, p90_us,
        p99_us, max_us) of transactions. Raises AgentError with its complaint if it failed, GuestTimeoutError.
        """
        deadline = time.monotonic() + timeout
        last = ""
        while line := self.command.read_line(timeout=max(0.0, deadline - time.monotonic())):
            last = line
        if self.command.wait(timeout=max(0.0, deadline - time.monotonic())) != 0 or not last.startswith("{"):
            raise AgentError(self._complaint("the load generator failed"))
        figures: dict[str, Any] = json.loads(last)
        return figures

    def stop(self) -> None:
        """Kill it. What it would have reported is lost."""
        self.command.kill()

    def _complaint(self, what: str) -> str:
        said = self.command.read(2, timeout=5.0).decode(errors="replace").strip()
        return f"{what}: {said}" if said else what
