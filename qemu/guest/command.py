"""One command running in a guest: its streams, its end."""

from __future__ import annotations

import signal as signals
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from qemu.guest import agent_protocol as protocol
from qemu.guest.agent_protocol import MAX_PAYLOAD, OUTPUT_WINDOW, STDIN_WINDOW, Exit, Frame, Type
from qemu.guest.errors import AgentError, CommandTimeoutError, GuestError, GuestTimeoutError, OutputLimitError
from qemu.guest.result import Result

STDOUT: Final = 1
STDERR: Final = 2
#: Bytes of output that `communicate` keeps.
OUTPUT_LIMIT: Final = 16 << 20
_SHOWN_BYTES: Final = 60


class Command:
    """Like `subprocess.Popen` for a command in a guest. Thread-safe; every wait takes a timeout in seconds.

    Output that nobody reads stops the command after a window of 1 MiB per stream, as a full pipe does.
    """

    def __init__(
        self, number: int, args: tuple[str, ...], send: Callable[[bytes], None], forget: Callable[[int], None]
    ) -> None:
        self.args = args
        self.pid = 0  #: in the guest; 0 until it is started
        self.exit: Exit | None = None
        self.began = time.monotonic()
        self.finished: float | None = None  #: when it ended, of `time.monotonic`; None while it runs
        self._number = number
        self._send = send
        self._forget = forget
        self._changed = threading.Condition()
        self._output: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray()}
        self._ended = {STDOUT: False, STDERR: False}
        self._owed = {STDOUT: 0, STDERR: 0}  # bytes taken by the reader, not granted again yet
        self._window = STDIN_WINDOW
        self._failure: GuestError | None = None

    # What the session's reader thread calls.

    def handle(self, frame: Frame) -> None:
        with self._changed:
            match frame.type:
                case Type.STARTED:
                    self.pid = int.from_bytes(frame.payload, "little")
                case Type.STDOUT | Type.STDERR:
                    stream = STDOUT if frame.type is Type.STDOUT else STDERR
                    self._output[stream] += frame.payload
                    self._ended[stream] = not frame.payload
                case Type.CREDIT:
                    self._window += protocol.parse_credit(frame.payload)
                case Type.EXIT:
                    self.exit = protocol.parse_exit(frame.payload)
                    self._ended = dict.fromkeys(self._ended, True)
                case Type.ERROR:
                    text = frame.payload.decode(errors="replace")
                    self._failure = AgentError(f"the agent refused to go on with {' '.join(self.args)!r}: {text}")
                case _:
                    self._failure = AgentError(f"the agent answered a command with {frame.type.name}")
            if frame.type in (Type.EXIT, Type.ERROR):
                self.finished = time.monotonic()
            self._changed.notify_all()
        if frame.type in (Type.EXIT, Type.ERROR):
            self._forget(self._number)

    def fail(self, error: GuestError) -> None:
        with self._changed:
            self._failure = error
            self.finished = time.monotonic()
            self._changed.notify_all()

    # What users call.

    @property
    def running(self) -> bool:
        return self.exit is None and self._failure is None

    def poll(self) -> int | None:
        """The exit code as a shell would say it (128 + n for signal n), or None while it runs."""
        return None if self.exit is None else _shell_code(self.exit)

    def read(self, stream: int = STDOUT, *, timeout: float) -> bytes:
        """What has arrived on `stream` (at least one byte, waits for it); b"" at its end."""
        with self._changed:
            ready = self._changed.wait_for(
                lambda: self._output[stream] or self._ended[stream] or self._failure, timeout
            )
            if not self._output[stream]:
                self._check()
            if not ready:
                raise GuestTimeoutError(f"waited {timeout:g} s for output of {' '.join(self.args)!r} in the guest")
            data, grant = self._take(stream)
        self._grant(stream, grant)
        return data

    def read_line(self, *, timeout: float) -> str:
        """The next line of standard output without its end; "" at the end of the stream."""
        deadline = time.monotonic() + timeout
        buffer = self._output[STDOUT]
        with self._changed:
            ready = self._changed.wait_for(
                lambda: b"\n" in buffer or self._ended[STDOUT] or self._failure, deadline - time.monotonic()
            )
            if not buffer:
                self._check()
            if not ready:
                raise GuestTimeoutError(f"waited {timeout:g} s for a line from {' '.join(self.args)!r} in the guest")
            line, _, rest = bytes(buffer).partition(b"\n")
            _, grant = self._take(STDOUT, len(buffer) - len(rest))
        self._grant(STDOUT, grant)
        return line.decode(errors="replace")

    def output(self, deadline: float | None = None) -> Iterator[tuple[int, bytes]]:
        """(stream, bytes) as they arrive, until both streams have ended.

        `deadline` is of `time.monotonic`; raises GuestTimeoutError when it passes.
        """
        while True:
            with self._changed:
                left = None if deadline is None else deadline - time.monotonic()
                ready = self._changed.wait_for(
                    lambda: any(self._output.values()) or all(self._ended.values()) or self._failure, left
                )
                taken = [(stream, *self._take(stream)) for stream in (STDOUT, STDERR)]
                over = all(self._ended.values())
                if not any(data for _, data, _ in taken) and not over:
                    self._check()
            for stream, data, grant in taken:
                self._grant(stream, grant)
                if data:
                    yield stream, data
            if over:
                return
            if not ready:
                raise GuestTimeoutError(f"{' '.join(self.args)!r} in the guest did not end in time")

    def write(self, data: bytes, *, timeout: float) -> None:
        """Send standard input, waiting while the command does not read it."""
        deadline = time.monotonic() + timeout
        view = memoryview(data)
        while view:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._window > 0 or not self.running, max(0.0, deadline - time.monotonic())
                )
                if self.exit is not None:
                    return  # it ended without reading the rest, as a pipe's reader may
                self._check()
                if self._window <= 0:
                    raise GuestTimeoutError(f"waited {timeout:g} s for {' '.join(self.args)!r} to read its input")
                size = min(len(view), self._window, MAX_PAYLOAD)
                self._window -= size
            self._send(protocol.encode(Type.STDIN, self._number, bytes(view[:size])))
            view = view[size:]

    def close_stdin(self) -> None:
        if self.running:
            self._send(protocol.encode(Type.STDIN, self._number))

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to the command's whole process group."""
        if self.running:
            self._send(protocol.kill(self._number, signal))

    def wait(self, *, timeout: float | None) -> int:
        """Until it ended; its exit code as `poll` says it. Does not read output. None waits for ever."""
        with self._changed:
            self._changed.wait_for(lambda: not self.running, timeout)
            if self.exit is None:
                self._check()
                raise GuestTimeoutError(f"waited {timeout:g} s for {' '.join(self.args)!r} in the guest to end")
            return _shell_code(self.exit)

    def communicate(self, data: bytes | None = None, *, timeout: float, limit: int = OUTPUT_LIMIT) -> Result:
        """Send `data`, close standard input, collect all output until it ends.

        After `timeout` seconds it is killed and CommandTimeoutError raised, with the output so far; after `limit`
        bytes of output OutputLimitError.
        """
        deadline = time.monotonic() + timeout
        collected = {STDOUT: bytearray(), STDERR: bytearray()}
        if data:
            # Input and output at once: a filter stops reading when nobody takes what it writes.
            threading.Thread(target=self._feed, args=(data, timeout), name="guest-stdin", daemon=True).start()
        elif data is not None:
            self.close_stdin()
        try:
            for stream, chunk in self.output(deadline):
                collected[stream] += chunk
                if len(collected[STDOUT]) + len(collected[STDERR]) > limit:
                    last = bytes(collected[stream][-_SHOWN_BYTES:])
                    raise OutputLimitError(
                        f"{' '.join(self.args)!r} in the guest printed more than {limit} bytes and was killed; last "
                        f"came {last!r}. Write it to a file there, let `limit` be larger, or read what spawn() gives "
                        "bit by bit"
                    )
            self.wait(timeout=max(0.0, deadline - time.monotonic()))
        except GuestTimeoutError:
            if not self.running:
                raise
            self.kill()
            raise CommandTimeoutError(
                f"{' '.join(self.args)!r} in the guest did not end within {timeout:g} s and was killed",
                bytes(collected[STDOUT]),
                bytes(collected[STDERR]),
            ) from None
        except BaseException:
            self.kill()
            raise
        return self.result(bytes(collected[STDOUT]), bytes(collected[STDERR]))

    def result(self, stdout: bytes = b"", stderr: bytes = b"") -> Result:
        """The Result of an ended command, with output that was collected elsewhere."""
        if self.exit is None:
            raise ValueError("the command has not ended")
        end = self.exit
        signal = end.code if end.signaled else 0
        return Result(self.args, _shell_code(end), signal, stdout, stderr, end.wall_us * 1e-6, end.cpu_us * 1e-6)

    def _feed(self, data: bytes, timeout: float) -> None:
        try:
            self.write(data, timeout=timeout)
            self.close_stdin()
        except GuestError:
            pass  # whoever reads the output sees the same failure and reports it

    def _take(self, stream: int, size: int | None = None) -> tuple[bytes, int]:
        """Up to `size` bytes (all there is by default) and how much credit to give for them now."""
        data = bytes(self._output[stream][:size])
        del self._output[stream][: len(data)]
        self._owed[stream] += len(data)
        if self._owed[stream] < OUTPUT_WINDOW // 2 or self.exit is not None:
            return data, 0
        grant, self._owed[stream] = self._owed[stream], 0
        return data, grant

    def _grant(self, stream: int, amount: int) -> None:
        if amount:
            self._send(protocol.credit(self._number, stream, amount))

    def _check(self) -> None:
        if self._failure is not None and self.exit is None:
            raise type(self._failure)(*self._failure.args)


def _shell_code(end: Exit) -> int:
    return 128 + end.code if end.signaled else end.code
