"""The sources of a Network: what is attached, how each is called and counted, and the descriptors they are slept on by.

Whoever has the Network's lock may ask and change it. A turn (`Network.turn`) serves what is in `hot`, what `ready`
names, and what `by_fd` has for the descriptors that `epoll` reports.
"""

from __future__ import annotations

import errno
import select
from functools import partial
from typing import TYPE_CHECKING

from stack.alarm import Alarm
from stack.bursts import Bursts

if TYPE_CHECKING:
    from stack.bursts import NetworkStats
    from stack.iface.source import Source


class Sources:
    """The dictionaries stay the same ones: who looks at them in every turn keeps them."""

    def __init__(self, stats: NetworkStats) -> None:
        self._stats = stats
        self._names: dict[str, int] = {}  # how many sources were called so
        self._bursts: dict[Source, Bursts] = {}
        self.taken: dict[Source, list[int]] = {}  #: the histograms in them: looked up for every burst
        self.fds: dict[Source, int] = {}  #: every attached source and its descriptor (-1: none)
        self.by_fd: dict[int, Source] = {}
        self.ready: dict[Source, None] = {}  #: said so by `on_ready`, or to be looked at once more
        self.hot: dict[Source, None] = {}  #: suppressed: every turn asks them
        self.epoll = select.epoll()
        self.alarm = Alarm()  #: ends a sleep in `epoll`
        self.epoll.register(self.alarm, select.EPOLLIN | select.EPOLLET)

    def add(self, source: Source, name: str) -> None:
        """See `Network.attach_locked`."""
        if source in self.fds:
            return
        bursts = Bursts(self._name(source, name), getattr(source, "sent_bursts", None))
        self._bursts[source] = bursts
        self.taken[source] = bursts.taken
        self._stats.sources[bursts.name] = bursts
        source.on_ready = partial(self.ready.__setitem__, source, None)
        self.fds[source] = -1
        self.follow(source)
        self.ready[source] = None

    def remove(self, source: Source) -> None:
        """See `Network.detach_locked`."""
        fd = self.fds.pop(source, None)
        if fd is None:
            return
        source.on_ready = None
        del self.taken[source], self._stats.sources[self._bursts.pop(source).name]
        self.ready.pop(source, None)
        self.hot.pop(source, None)
        self._unregister(fd)

    def follow(self, source: Source) -> None:
        """The source's descriptor may have become another one."""
        old, new = self.fds[source], source.fileno()
        if new == old:
            return
        self._unregister(old)
        self.fds[source] = new
        if new >= 0:
            self.epoll.register(new, select.EPOLLIN)
            self.by_fd[new] = source

    def close(self) -> None:
        self.epoll.close()
        self.alarm.close()

    def _name(self, source: Source, name: str) -> str:
        """One that no other source has."""
        wanted = name or str(getattr(source, "name", "")) or type(source).__name__
        number = self._names[wanted] = self._names.get(wanted, 0) + 1
        return wanted if number == 1 else f"{wanted} #{number}"

    def _unregister(self, fd: int) -> None:
        if fd >= 0 and self.by_fd.pop(fd, None) is not None:
            try:
                self.epoll.unregister(fd)
            except OSError as error:  # closed before it was detached: the kernel forgot it by itself
                if error.errno not in (errno.EBADF, errno.ENOENT):
                    raise
