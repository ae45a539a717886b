"""How large the next pool of a controller may be."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Literal

from nvme_async.dma import limits
from nvme_async.dma.limits import Bound
from nvme_async.native._dma import Pool

_SPARE = 8
"""This fraction of the remaining memory is left to other processes: one part in so many."""
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_pools_lock = threading.Lock()
"""A set must not be iterated over while another thread adds to it; pools are made in threads."""


class Budget:
    """The limits of one controller's pools.

    limit: bytes of all of them; None: half of the memory that this process can have.
    locked: the device's driver pins them, and the kernel counts that against RLIMIT_MEMLOCK.
    Threads: any.
    """

    def __init__(self, limit: int | None, *, hugepages: Literal["auto", "never", "require"], locked: bool) -> None:
        self._limit = limit
        self._huge = hugepages != "never"
        self._locked = locked

    def count(self, pool: Pool) -> None:
        """Records a new pool: its untouched memory counts as used."""
        with _pools_lock:
            _pools.add(pool)

    def room(self, pools: Iterable[Pool], nbytes: int) -> Bound:
        """How large one more pool may be, if there are `pools` and `nbytes` are requested."""
        return min(self._bounds(sum(pool.nbytes for pool in pools), nbytes), key=lambda bound: bound.nbytes)

    def _bounds(self, used: int, nbytes: int) -> Iterator[Bound]:
        limit, what = self._limit, "the option memory_limit"
        if limit is None:
            limit = (limits.memory_size() or 1 << 62) // 2
            what = "half of the memory that this process may use (the option memory_limit changes that)"
        yield Bound(max(0, limit - used), f"its pools use {used} of {limit} bytes, {what}")
        left = limits.memory_left()
        if left is not None and not (self._huge and limits.huge_pages_left() >= nbytes):
            with _pools_lock:
                others = list(_pools)
            promised = sum(_untouched(pool) for pool in others)
            yield Bound(max(0, left.nbytes - left.nbytes // _SPARE - promised), left.reason)
        lockable = limits.lockable() if self._locked else None
        if lockable is not None:
            yield lockable


def _untouched(pool: Pool) -> int:
    """Bytes of a pool that have no memory yet."""
    try:
        return max(0, pool.nbytes - os.fstat(pool.fd).st_blocks * 512)
    except OSError:
        return 0  # closed
