"""Writes with a directive: data placement or streams (Base 2.1, 8.1.8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

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

T = TypeVar("T")


class HasDirectives(Protocol):
    """The part of a Namespace that chooses a directive."""

    placement: Placement
    write_streams: Streams


class Directed(WithMetadata, HasDirectives, Protocol):
    """The part of a Namespace that directed writes need."""

    block_size: int
    has_metadata: bool

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


async def directive_of(ns: HasDirectives, placement: int | None, stream: int | None) -> tuple[DirectiveType, int]:
    """Directive type and value of a write with one of the two. ValueError for a value that the
    namespace doesn't have, ConfigurationError without the directive.
    """
    if placement is not None and stream is not None:
        raise ValueError(f"placement {placement} and stream {stream} exclude each other")
    if placement is not None:
        await ns.placement.check(placement)
        return DirectiveType.DATA_PLACEMENT, placement
    assert stream is not None
    ns.write_streams.check(stream)
    return DirectiveType.STREAMS, stream


async def with_streams(ns: HasDirectives, stream: int | None, once: Callable[[], Awaitable[T]]) -> T:
    """once(). A reset of the controller has disabled streams: then the controller refuses the
    command, streams are enabled again, and the command is sent again.
    """
    try:
        return await once()
    except InvalidField:
        if stream is None or not ns.write_streams.wanted or await ns.write_streams.enabled():
            raise
        await ns.write_streams.enable()
        return await once()


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
    """See Namespace.write()."""
    directive = await directive_of(ns, placement, stream)

    async def once() -> None:
        if ns.has_metadata or metadata is not None or protect is not None:
            options = {"fua": fua, "metadata": metadata, "protect": protect}
            await move(ns, geometry, "write", lba, data, directive=directive, **options)
        else:
            await _write(ns, geometry, lba, data, fua, directive)

    await with_streams(ns, stream, once)
