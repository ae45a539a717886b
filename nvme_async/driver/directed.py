"""Writes with a directive: data placement or streams (Base 2.1, 8.1.8)."""

from __future__ import annotations

from typing import Any, Protocol

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.command_io import blocks_in
from nvme_async.driver.metadata import WithMetadata, move
from nvme_async.driver.placement import Placement
from nvme_async.driver.protection import Protect
from nvme_async.driver.streams import Streams
from nvme_async.errors import InvalidField
from nvme_async.native._hotpath import Geometry
from nvme_async.native._placement import byte_view
from nvme_async.runtime.tasks import together
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.opcodes import DirectiveType, NvmOpcode


class Directed(WithMetadata, Protocol):
    """The part of a Namespace that directed writes need."""

    block_size: int
    has_metadata: bool
    placement: Placement
    write_streams: Streams

    async def _send(
        self, geometry: Geometry, command: Command, buffer: BufferLike | None = None, tag: int = 0
    ) -> Completion: ...


async def _write(
    ns: Directed, geometry: Geometry, lba: int, data: BufferLike, fua: bool, directive: tuple[DirectiveType, int]
) -> None:
    view = byte_view(data)
    size = ns.block_size
    blocks = blocks_in(view.nbytes, size)
    ns._check(NvmOpcode.WRITE, lba, blocks)
    kind, value = directive
    step = ns.max_blocks
    await together(
        ns._send(
            geometry,
            commands.write(ns.nsid, lba + at, min(step, blocks - at), fua, dtype=kind, dspec=value),
            view[at * size : (at + step) * size],
        )
        for at in range(0, blocks, step)
    )


async def write_directed(
    ns: Directed,
    geometry: Geometry,
    lba: int,
    data: BufferLike,
    *,
    fua: bool,
    metadata: Any,
    protect: Protect | None,
    placement: int | None,
    stream: int | None,
) -> None:
    """See Namespace.write(). A reset of the controller has disabled streams: then they are
    enabled again, and the data written again.
    """
    if placement is not None and stream is not None:
        raise ValueError(f"placement {placement} and stream {stream} exclude each other")
    if placement is not None:
        await ns.placement.check(placement)
        directive = (DirectiveType.DATA_PLACEMENT, placement)
    else:
        assert stream is not None
        ns.write_streams.check(stream)
        directive = (DirectiveType.STREAMS, stream)

    async def once() -> None:
        if ns.has_metadata or metadata is not None or protect is not None:
            options = {"fua": fua, "metadata": metadata, "protect": protect}
            await move(ns, geometry, "write", lba, data, directive=directive, **options)
        else:
            await _write(ns, geometry, lba, data, fua, directive)

    try:
        await once()
    except InvalidField:
        if stream is None or not ns.write_streams.wanted or await ns.write_streams.enabled():
            raise
        await ns.write_streams.enable()
        await once()
