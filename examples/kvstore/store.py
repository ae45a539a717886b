"""Keys and values on a log: an index in memory; writes that arrive at the same time are
committed at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from log import MAX_KEY, MAX_VALUE, Log, LogFull, Place

from nvme_async import AsyncNamespace

BATCH = 512 << 10
"""Bytes that are committed with one write, unless a single value is larger."""


class StoreFull(Exception):
    """The stored data leaves no room for more."""


class Store:
    """`store = await Store.open(namespace)`; on one event loop. Once put() or delete() returns,
    the change is on the media.
    """

    def __init__(self, namespace: AsyncNamespace) -> None:
        self._log = Log(namespace)
        self._index: dict[bytes, Place] = {}
        self._live = 0  # bytes of live keys and values
        self._pending: deque[tuple[bytes, bytes | None, asyncio.Future[None]]] = deque()
        self._committer: asyncio.Task[None] | None = None
        self._readers: Counter[int] = Counter()  # by generation
        self.commits = 0

    @classmethod
    async def open(cls, namespace: AsyncNamespace) -> Store:
        store = cls(namespace)
        async for key, place in store._log.open():
            store._set(key, place)
        return store

    def __len__(self) -> int:
        return len(self._index)

    def _set(self, key: bytes, place: Place | None) -> None:
        before = self._index.pop(key, None)
        if before is not None:
            self._live -= len(key) + before.nbytes
        if place is not None:
            self._index[key] = place
            self._live += len(key) + place.nbytes

    async def get(self, key: bytes) -> bytes | None:
        place = self._index.get(key)
        if place is None:
            return None
        # An area isn't written to again while it is being read.
        self._readers[place.generation] += 1
        try:
            return await self._log.read(place)
        finally:
            self._readers[place.generation] -= 1

    async def put(self, key: bytes, value: bytes) -> None:
        if not 0 < len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            raise ValueError(
                f"a key has 1 to {MAX_KEY} bytes, a value at most {MAX_VALUE}; these are {len(key)} and {len(value)}"
            )
        await self._commit(key, value)

    async def delete(self, key: bytes) -> None:
        if key in self._index or any(pending[0] == key for pending in self._pending):
            await self._commit(key, None)

    async def _commit(self, key: bytes, value: bytes | None) -> None:
        done = asyncio.get_running_loop().create_future()
        self._pending.append((key, value, done))
        if self._committer is None:
            self._committer = asyncio.create_task(self._work())
        await asyncio.shield(done)

    async def settle(self) -> None:
        """Runs until nothing is left to commit."""
        while self._committer is not None:
            await asyncio.wait([self._committer])

    async def _work(self) -> None:
        try:
            while self._pending:
                batch = [self._pending.popleft()]
                nbytes = len(batch[0][1] or b"")
                while self._pending and nbytes + len(self._pending[0][1] or b"") < BATCH:
                    batch.append(self._pending.popleft())
                    nbytes += len(batch[-1][1] or b"") + 64
                try:
                    await self._append([(key, value) for key, value, _ in batch])
                except Exception as error:
                    for _, _, done in batch:
                        done.set_exception(error)
                        done.exception()  # the waiter gets it, if it still waits
                else:
                    for _, _, done in batch:
                        done.set_result(None)
        finally:
            self._committer = None

    async def _append(self, records: list[tuple[bytes, bytes | None]]) -> None:
        try:
            places = await self._log.append(records)
        except LogFull:
            await self._compact()
            try:
                places = await self._log.append(records)
            except LogFull:
                raise StoreFull(f"{self._live} bytes of {self._log.capacity} are in use") from None
        self.commits += 1
        for (key, _), place in zip(records, places, strict=True):
            self._set(key, place)

    async def _compact(self) -> None:
        """Copies the live data to the other area and continues there."""
        other = self._log.other_area()
        while self._readers[other.generation - 2]:  # of the area's former content
            await asyncio.sleep(0.001)
        moved: dict[bytes, Place] = {}
        batch: list[tuple[bytes, bytes | None]] = []
        nbytes = 0
        keys = list(self._index)
        for number, key in enumerate(keys):
            value = await self._log.read(self._index[key])
            batch.append((key, value))
            nbytes += len(value)
            if nbytes >= BATCH or number == len(keys) - 1:
                try:
                    places = await other.append(batch)
                except LogFull:
                    raise StoreFull(f"{self._live} bytes of {self._log.capacity} are in use") from None
                moved.update({key: place for (key, _), place in zip(batch, places, strict=True) if place is not None})
                batch, nbytes = [], 0
        await self._log.switch_to(other)
        self._index = moved

    def inspect(self) -> dict[str, int]:
        return {
            "keys": len(self._index),
            "live_bytes": self._live,
            "free_bytes": self._log.free,
            "generation": self._log.generation,
            "commits": self.commits,
        }
