"""Reads and writes of data in several places with one command each, by Scatter Gather Lists (Base
2.0, 4.1.2): nothing is copied.

The lists are built in ext/hotpath/sgl.pxi. Without SGLs, or for memory that the device doesn't
reach, the callers copy.
"""

from __future__ import annotations

from typing import Protocol

from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.transport import CommandQueue
from nvme_async.native._hotpath import Geometry, scatter_room, scattered
from nvme_async.native._placement import Scatter
from nvme_async.runtime.tasks import together
from nvme_async.spec import commands


def cut(queue: LoopQueue, data: Scatter, metadata: Scatter | None, size: int, extra: int, most: int) -> list[Scatter]:
    """`data` in parts of up to `most` blocks of `size` bytes, each with the metadata of its blocks
    of `extra` bytes, that one command each transfers in place. [] if that isn't possible.
    """
    room = scatter_room(queue.hot, data, metadata)
    blocks = data.nbytes // size
    parts: list[Scatter] = []
    at = 0
    while room and at < blocks:
        count = min(most, blocks - at)
        while True:
            part = data.part(at * size, count * size)
            if metadata is not None:
                part.metadata = metadata.part(at * extra, count * extra)
            if part.entries <= room:
                break
            if count == 1:
                return []
            count = min(count // 2, max(1, count * room // part.entries))
        parts.append(part)
        at += count
    return parts


class _Queues(Protocol):
    async def for_this_loop(self) -> CommandQueue | None: ...


class HasBlocks(Protocol):
    """The part of a Namespace that this module needs."""

    nsid: int
    block_size: int
    max_blocks: int
    has_metadata: bool
    geometry: Geometry

    async def _own_queue(self) -> CommandQueue | None: ...


async def move_scattered(namespace: HasBlocks, lba: int, data: Scatter, *, write: bool, fua: bool = False) -> bool:
    """Reads into `data` from block `lba` on, or writes from there, in place. False: that isn't
    possible, and nothing was sent. `data` has whole blocks that exist.

    More than fits one command (max_blocks, places) goes with several at the same time.
    """
    geometry = namespace.geometry
    if namespace.has_metadata:
        return False
    queue = await namespace._own_queue()
    room = scatter_room(queue.hot, data) if isinstance(queue, LoopQueue) else 0
    parts = data.split(namespace.block_size, namespace.max_blocks * namespace.block_size, room) if room else None
    if parts is None:
        return False
    assert isinstance(queue, LoopQueue)
    geometry.check()
    requests = []
    for part in parts:
        blocks = part.nbytes // namespace.block_size
        build = commands.write if write else commands.read
        command = build(namespace.nsid, lba, blocks, fua)
        requests.append(scattered(queue.hot, command.pack(), part, to_host=not write, geometry=geometry))
        lba += blocks
    await together(requests)
    return True
