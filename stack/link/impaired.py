"""Any device behind a bad line: loss, delay, a rate... in each direction, changed while it runs.

Theory of operation
-------------------
`ImpairedDevice` stands between a device (a guest's card, say) and whatever it is plugged into. As long as nothing is
wrong with the line it costs nothing: `receive` and `transmit` *are* the device's own, and it can what the device can
besides (`stack.link.passing`). `impair` puts the two directions through an `ImpairedPath` each, which see each frame by
itself; `mend` takes that out again, once what is under way has arrived.

A direction that is not impaired goes through a perfect path while the other one is, so frames never overtake each
other. What the device refuses waits in a bounded queue, as in a switch's port; what does not fit is dropped and counted
as an overrun of the path, as a line drops it.

`Timeline` changes a line over time: a list of moments, each with the impairments from then on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from stack.link.device import LinkDevice, RxFrame, TxFrame
from stack.link.impairment import ImpairedPath, Impairment, PathStats
from stack.link.loopback import FrameQueue
from stack.link.offload import as_transmit
from stack.link.passing import PassingDevice
from stack.scheduler import NS_PER_S, Scheduler

#: Bytes that may wait at each end: one TCP window of the default limit.
QUEUE_BYTES: Final = 4 << 20
PERFECT: Final = Impairment(per_packet=False)
#: Nothing passes, and nobody is told.
PARTITION: Final = Impairment(loss=1.0)


class ImpairedDevice(PassingDevice):
    """A `LinkDevice` around `device`: use it in its place. The device is closed with it."""

    passes: bool

    def __init__(self, scheduler: Scheduler, device: LinkDevice) -> None:
        super().__init__(device)
        self._on_change: Callable[[], None] | None = None
        self._scheduler = scheduler
        self._out: ImpairedPath | None = None
        self._in: ImpairedPath | None = None
        self._stats = PathStats(), PathStats()
        self._inbox = FrameQueue(QUEUE_BYTES)
        self._outbox: deque[TxFrame] = deque()
        self._outbox_bytes = 0
        self._suppressed = False
        self._direct()
        device.on_change = self._device_changed

    # -- what may be wrong --------------------------------------------------------------------------------------------

    @property
    def impaired(self) -> bool:
        """Frames go through paths; not the case before `impair` and some time after `mend`."""
        return not self.passes

    def impair(self, to_device: Impairment | None = None, from_device: Impairment | None = None) -> None:
        """Lock held. From the next frame on the line is like this; None is a perfect direction.

        `to_device` is the direction of `transmit`: towards the guest, if the device is a guest's card.
        """
        if self._out is None or self._in is None:
            self._out = ImpairedPath(self._scheduler, to_device or PERFECT, self._deliver_out)
            self._in = ImpairedPath(self._scheduler, from_device or PERFECT, self._deliver_in)
            self._stats = self._out.stats, self._in.stats
            self.passes = False
            self.receive = self._receive_impaired
            self.transmit = self._transmit_impaired
            self._changed()
        else:
            self._out.impair(to_device or PERFECT)
            self._in.impair(from_device or PERFECT)

    def mend(self) -> None:
        """Lock held. Nothing is wrong with the line any more; what is under way arrives when it was to."""
        if self._out is not None and self._in is not None:
            self._out.impair(PERFECT)
            self._in.impair(PERFECT)
            self._settle()

    @property
    def stats(self) -> tuple[PathStats, PathStats]:
        """What became of frames since the line was last impaired, also when it is mended: (to the device, from it)."""
        return self._stats

    # -- LinkDevice ---------------------------------------------------------------------------------------------------

    @property
    def on_change(self) -> Callable[[], None] | None:
        """The device's own is ours: what it says may end what is under way."""
        return self._on_change

    @on_change.setter
    def on_change(self, callback: Callable[[], None] | None) -> None:
        self._on_change = callback

    def suppress(self) -> None:
        self._suppressed = True
        super().suppress()

    def arm(self) -> bool:
        self._suppressed = False
        return self.device.arm() or bool(self._inbox.frames)

    def close(self) -> None:
        self._clear()
        self.device.close()

    def _direct(self) -> None:
        self._out = self._in = None
        self.passes = True
        self.receive = self.device.receive
        self.transmit = self.device.transmit

    # -- the bad line -------------------------------------------------------------------------------------------------

    def _receive_impaired(self, budget: int) -> Sequence[RxFrame]:
        path = self._in
        assert path is not None
        for frame in self.device.receive(budget):
            path.push(as_transmit(frame))
        path.run()
        if self._outbox:
            self._flush()
        burst = self._inbox.take(budget)
        self._settle()
        return burst

    def _transmit_impaired(self, burst: Sequence[TxFrame]) -> int:
        path = self._out
        assert path is not None
        if self.carrier:
            for frame in burst:
                path.push(frame)
            path.run()
            self._settle()
        return len(burst)

    def _deliver_in(self, frame: RxFrame) -> bool:
        was_empty = not self._inbox.frames
        taken = self._inbox.put(frame)
        if was_empty and taken:
            self._changed()
        return taken

    def _deliver_out(self, frame: RxFrame) -> bool:
        if self._outbox and self._outbox_bytes + len(frame[0]) > QUEUE_BYTES:
            return False
        if not self._outbox:
            self._scheduler.defer(self._flush)
        self._outbox.append(as_transmit(frame))
        self._outbox_bytes += len(frame[0])
        return True

    def _flush(self) -> None:
        """Hand over what has arrived at the device's end, until it refuses."""
        outbox = self._outbox
        while outbox:
            burst = list(outbox)
            accepted = self.device.transmit(burst)
            for _ in range(accepted):
                self._outbox_bytes -= sum(map(len, outbox.popleft()[0]))
            if accepted < len(burst):
                if not self._suppressed and self.device.arm():
                    self._changed()  # room came meanwhile: whoever serves this device tries again
                return
        self._settle()

    def _settle(self) -> None:
        """Back to the device's own methods, once nothing is wrong, under way or waiting."""
        out, into = self._out, self._in
        if out is None or into is None or out.impairment is not PERFECT or into.impairment is not PERFECT:
            return
        if not (out.in_flight or into.in_flight or self._outbox or self._inbox.frames):
            self._direct()

    def _device_changed(self) -> None:
        if not self.device.carrier:
            self._clear()
        elif self._outbox:
            self._scheduler.defer(self._flush)
        self._changed()

    def _clear(self) -> None:
        """What is under way is lost, as on a cable that is pulled."""
        for path in (self._out, self._in):
            if path is not None:
                path.clear()
        self._inbox.clear()
        self._outbox.clear()
        self._outbox_bytes = 0

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()


@dataclass(frozen=True, slots=True)
class Moment:
    """From `seconds` after the beginning on, the line is like this; None is a perfect direction."""

    seconds: float
    to_device: Impairment | None = None
    from_device: Impairment | None = None


class Timeline:
    """Changes a line over time. Lock held, as for `ImpairedDevice.impair`.

    Raises ValueError for moments that are not in order.
    """

    def __init__(self, scheduler: Scheduler, line: ImpairedDevice, moments: Sequence[Moment]) -> None:
        if any(later.seconds < earlier.seconds for earlier, later in pairwise(moments)):
            raise ValueError("the moments of a timeline come in order")
        if moments and moments[0].seconds < 0:
            raise ValueError("a timeline begins at 0")
        self.done = 0  #: moments that have come
        self._line = line
        self._moments = tuple(moments)
        self._scheduler = scheduler
        self._begun = scheduler.now
        self._timer = scheduler.timer(self._next)
        self._next()

    def cancel(self) -> None:
        """No further changes; the line stays as it is. Idempotent."""
        self.done = len(self._moments)
        self._timer.cancel()

    def _next(self) -> None:
        elapsed = self._scheduler.now - self._begun
        while self.done < len(self._moments):
            moment = self._moments[self.done]
            due = int(moment.seconds * NS_PER_S)
            if due > elapsed:
                self._timer.arm(self._begun + due)
                return
            self.done += 1
            if moment.to_device is None and moment.from_device is None:
                self._line.mend()
            else:
                self._line.impair(moment.to_device, moment.from_device)
