"""Threads that help with work in C on several rings at once, while one thread waits for all of it (csrc/pool.c)."""

from __future__ import annotations

import os
from typing import Any

from vhost_user._vring import ffi, lib


class Workers:
    """Helpers for whoever serves one device: none by itself, started by `serve`, gone after `close`.

    `limit`: threads at most; None: as many as there are other cores.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"{limit} worker threads")
        self._limit = limit
        self._busy = False
        #: threads running
        self.count = 0
        #: the C side, or NULL
        self.pool: Any = ffi.NULL

    def serve(self, rings: int) -> None:
        """There are `rings` rings to work on now: one of them is the caller's own."""
        cores = len(os.sched_getaffinity(0)) - 1 if self._limit is None else self._limit
        count = max(0, min(rings - 1, cores))
        if count != self.count:
            self.close()
            if count:
                pool = lib.gw_pool_new(count)
                if pool != ffi.NULL:
                    self.pool, self.count = ffi.gc(pool, lib.gw_pool_free), count

    def close(self) -> None:
        """Idempotent."""
        if self.count:
            ffi.release(self.pool)
        self.pool, self.count = ffi.NULL, 0

    @property
    def wake(self) -> bool:
        """Whether the last run had work for more than one: then waking who sleeps is worth it."""
        return self._busy

    def note(self, busy: int) -> None:
        """How many rings of a run had a good deal of work."""
        self._busy = busy > 1
