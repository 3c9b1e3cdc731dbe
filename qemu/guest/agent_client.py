"""Talks to the agent in a guest: one session over one stream socket, any number of commands at once.

Theory of operation
-------------------
One background thread reads frames and hands them to the `Command` they belong to; whoever waits, waits on that
command's condition. Credit (agent/agent.h) keeps every stream bounded on both sides: the agent sends at most a
window of output that nobody has read, we send at most a window of input the command has not read. So one command
whose output nobody takes stops by itself and disturbs no other.

When the stream ends or turns to garbage, every wait there is ends with GuestDiedError or AgentError, at once.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from qemu.guest import agent_protocol as protocol
from qemu.guest.agent_protocol import Frame, Type
from qemu.guest.command import Command
from qemu.guest.errors import AgentError, GuestDiedError, GuestError, GuestTimeoutError

_READ_BYTES: Final = 1 << 18
#: The agent always reads, so a send that takes this long means the guest has stopped.
_SEND_SECONDS: Final = 30.0
_SESSION: Final = 0
_HISTORY: Final = 500
#: Numbers of commands are used once in this process: what goes on in a restored guest is not taken for a new one.
_numbers = itertools.count(1)


class AgentClient:
    """One session with an agent. Thread-safe. `report` is what it said in HELLO."""

    def __init__(self, connection: socket.socket, *, resume: bool = False) -> None:
        """Owns `connection`, the stream to the agent's port. `resume`: the agent may be in the middle of a frame."""
        self.report: list[tuple[str, str]] = []
        self.history: deque[Command] = deque(maxlen=_HISTORY)  #: commands started lately, ended ones too
        self._connection = connection
        connection.settimeout(None)
        # SO_SNDTIMEO, not settimeout: the reader thread is to wait for ever.
        seconds = int(_SEND_SECONDS)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds.to_bytes(8, "little") + bytes(8)
        )  # struct timeval
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._commands: dict[int, Command] = {}
        self._answers: dict[int, Frame] = {}
        self._decoder = protocol.Decoder(resume=resume)
        self._failure: GuestError | None = None
        self._reader = threading.Thread(target=self._read, name="guest-agent", daemon=True)
        self._reader.start()

    def hello(self, timeout: float) -> None:
        """Wait for the agent to come up and introduce itself. Raises GuestError."""
        answer = self._ask(_SESSION, protocol.hello(), timeout, "the guest's agent to answer")
        self.report = protocol.parse_hello(answer.payload)

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        clear_env: bool = False,
        cwd: str = "",
        stdin: bool = False,
    ) -> Command:
        """Start a command; returns at once. `stdin` false: it reads end of file."""
        with self._changed:
            self._check()
            number = next(_numbers)
            command = Command(number, tuple(argv), self.send, self._forget)
            self._commands[number] = command
            self.history.append(command)
        try:
            self.send(protocol.run(number, argv, env=env, clear_env=clear_env, cwd=cwd, stdin=stdin))
        except BaseException:
            self._forget(number)
            raise
        return command

    def seed(self, entropy: bytes, timeout: float) -> None:
        """Mix `entropy` into the guest's random pool and credit it: a fresh guest has next to none."""
        number = next(_numbers)
        self._succeed(number, protocol.encode(Type.SEED, number, entropy), timeout, "the guest to take entropy")

    def set_time(self, nanoseconds: int, timeout: float) -> None:
        number = next(_numbers)
        self._succeed(number, protocol.set_time(number, nanoseconds), timeout, "the guest to set its clock")

    def power_off(self) -> None:
        """Ask for it; the guest ends a moment later."""
        self.send(protocol.encode(Type.POWEROFF, _SESSION))

    def close(self) -> None:
        """End the session. Idempotent; whoever still waits gets GuestDiedError."""
        with suppress(OSError):  # QEMU closed its end already
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._reader is not threading.current_thread():
            self._reader.join()
        self._connection.close()

    def restart(self, error: GuestError) -> None:
        """At the other end is a new agent, or an old one in another state: commands end with `error`.

        `hello` is next; what comes before its answer is of the old session, perhaps of the middle of a frame.
        """
        with self._changed:
            commands = list(self._commands.values())
            self._commands.clear()
            self._answers.clear()
            self._decoder = protocol.Decoder(resume=True)
        for command in commands:
            command.fail(error)

    def fail(self, error: GuestError) -> None:
        """End every wait there is, and every one to come, with `error`. The first failure counts."""
        with self._changed:
            if self._failure is not None:
                return
            self._failure = error
            commands = list(self._commands.values())
            self._changed.notify_all()
        for command in commands:
            command.fail(error)

    def send(self, data: bytes) -> None:
        with self._sending:
            try:
                self._connection.sendall(data)
                return
            except BlockingIOError:
                failure: GuestError = GuestTimeoutError(
                    f"waited {_SEND_SECONDS:g} s for the guest's agent to read: the guest hangs"
                )
            except OSError:
                failure = GuestDiedError("the connection to the guest's agent is closed")
        self.fail(failure)
        with self._changed:
            self._check()

    def _ask(self, number: int, request: bytes, timeout: float, what: str) -> Frame:
        deadline = time.monotonic() + timeout
        with self._changed:
            self._check()
            self._answers.pop(number, None)
        self.send(request)
        with self._changed:
            self._changed.wait_for(
                lambda: number in self._answers or self._failure is not None, deadline - time.monotonic()
            )
            if number in self._answers:
                answer = self._answers.pop(number)
                if answer.type is Type.ERROR:
                    raise AgentError(f"the agent refused: {answer.payload.decode(errors='replace')}")
                return answer
            self._check()
        raise GuestTimeoutError(f"waited {timeout:g} s for {what}")

    def _succeed(self, number: int, request: bytes, timeout: float, what: str) -> None:
        error = protocol.parse_done(self._ask(number, request, timeout, what).payload)
        if error:
            raise AgentError(f"asked {what}, it could not: {os.strerror(error)}")

    def _check(self) -> None:
        if self._failure is not None:
            # A fresh exception each time: one object raised in several threads would mix their tracebacks.
            raise type(self._failure)(*self._failure.args)

    def _forget(self, number: int) -> None:
        with self._changed:
            self._commands.pop(number, None)

    def _read(self) -> None:
        try:
            while data := self._connection.recv(_READ_BYTES):
                for frame in self._decoder.feed(data):
                    self._handle(frame)
        except AgentError as error:
            self.fail(error)
        except OSError:
            pass  # reset: QEMU was killed
        self.fail(GuestDiedError("the connection to the guest's agent ended"))

    def _handle(self, frame: Frame) -> None:
        with self._changed:
            command = self._commands.get(frame.id)
            if command is None:
                # Output of a command that was given up may still be on its way; only answers are kept.
                if frame.type in (Type.HELLO, Type.DONE, Type.ERROR):
                    self._answers[frame.id] = frame
                    self._changed.notify_all()
                return
        command.handle(frame)
