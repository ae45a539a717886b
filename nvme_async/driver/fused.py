"""Compare and Write, the fused operation of the NVM command set (NVM Command Set 1.1, 3.3.1 and
3.3.6; Base 2.1, 3.4.2).
"""

from __future__ import annotations

from typing import Protocol

import attrs

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.metadata import Plan, WithMetadata, format_of
from nvme_async.driver.queues.fusing import submit_fused
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.errors import CommandError, ConfigurationError
from nvme_async.native._hotpath import Geometry
from nvme_async.native._placement import byte_view
from nvme_async.spec.identify import Fuses, Nsfeat
from nvme_async.spec.opcodes import NvmOpcode
from nvme_async.spec.status import GenericStatus, StatusCodeType

_FIRST, _SECOND = 1, 2
_FAILED_FUSED = (StatusCodeType.GENERIC, GenericStatus.ABORTED_FAILED_FUSED)


class Fusible(WithMetadata, Protocol):
    """The part of a Namespace that fused operations need."""

    block_size: int
    geometry: Geometry


def fused_limit(namespace: Fusible) -> int:
    """The most blocks of a compare and write. ConfigurationError where there is none."""
    controller = namespace.controller
    if Fuses.COMPARE_AND_WRITE not in controller.identify.fused_operations or not controller.transport.fuses:
        raise ConfigurationError(f"{controller.uri} has no fused compare and write (Identify Controller, FUSES)")
    identify = namespace.identify
    own = Nsfeat.NAMESPACE_ATOMICITY in identify.features and identify.nacwu
    most = identify.nacwu + 1 if own else controller.identify.max_fused_blocks
    return min(most, namespace.max_blocks)


async def compare_and_write(namespace: Fusible, lba: int, expected: BufferLike, data: BufferLike, fua: bool) -> None:
    """See Namespace.compare_and_write()."""
    geometry = namespace.geometry
    old, new = byte_view(expected), byte_view(data)
    size = namespace.block_size
    if old.nbytes != new.nbytes or not new.nbytes or new.nbytes % size:
        raise ValueError(
            f"expected has {old.nbytes} bytes and data has {new.nbytes}: both must have the same length, a positive "
            f"multiple of the block size of {size}"
        )
    blocks = new.nbytes // size
    namespace._check(NvmOpcode.WRITE, lba, blocks)
    most = fused_limit(namespace)
    if blocks > most:
        raise ValueError(f"{blocks} blocks are over this namespace's limit of {most} for a compare and write (ACWU)")
    form = await format_of(namespace)
    plans = [Plan.of(method, form, None, None) for method in ("compare", "write")]
    if any(plan.carries for plan in plans):
        raise ConfigurationError(
            f"namespace {namespace.nsid} has metadata besides protection information: no compare and write"
        )
    first, second = (plan.command(namespace.nsid, lba, blocks, fua, 0) for plan in plans)
    queue = await namespace._queue()
    assert isinstance(queue, LoopQueue)
    outcomes = await submit_fused(
        queue,
        (attrs.evolve(first, fuse=_FIRST), attrs.evolve(second, fuse=_SECOND)),
        (old, new),
        geometry,
    )
    failures = [outcome for outcome in outcomes if isinstance(outcome, CommandError)]
    if failures:
        raise _cause(failures)


def _cause(failures: list[CommandError]) -> CommandError:
    """The error that ended the operation. A half that was aborted because the other one failed says
    nothing about the reason (Base 2.1, 3.4.2), and it can be the first half: a controller may check
    both commands before it executes one.
    """
    return next((error for error in failures if (error.sct, error.sc) != _FAILED_FUSED), failures[0])
