"""The results of many commands that were awaited as one."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.completions import error_from
from nvme_async.driver.transport import BatchOfCommands
from nvme_async.errors import NvmeError

D = TypeVar("D", bound=BufferLike, covariant=True)
Integers: TypeAlias = "BufferLike | Sequence[int]"
"""Block numbers: a buffer of 64-bit integers (a NumPy array, array("Q")) or a sequence of ints."""


def as_lbas(lbas: Any) -> BufferLike:
    """`lbas` as a buffer of 64-bit unsigned integers; ValueError names what doesn't fit."""
    try:
        view = memoryview(lbas)
    except TypeError:
        pass
    else:
        if view.format in ("Q", "L", "q", "l", "<Q", "<q", "=Q", "=q") and view.itemsize == 8 and view.contiguous:
            numbers: BufferLike = lbas
            return numbers
        lbas = view.tolist()
    try:
        return array("Q", lbas)
    except (OverflowError, TypeError) as error:
        raise ValueError(f"lbas must be integers from 0 to 2**64-1: {error}") from None


class Many(Generic[D]):
    """The result of read_many() or write_many().

    Attributes:
        statuses: array("H") with each element's 15-bit status field, 0 = success.
        failed: how many elements failed.
        data: the buffer that was read into or written from.
    """

    __slots__ = ("_batch", "data", "failed", "statuses")

    def __init__(self, batch: BatchOfCommands, data: D, failed: int | None = None) -> None:
        self._batch = batch
        self.statuses: array[int] = batch.statuses
        self.failed: int = batch.failed if failed is None else failed
        self.data: D = data

    def __len__(self) -> int:
        return len(self._batch)

    def error(self, element: int) -> NvmeError | None:
        """The exception that awaiting this element alone would have raised."""
        status = self.statuses[element]
        return error_from(status, 0, self._batch.command(element), False, False) if status else None

    def errors(self) -> dict[int, NvmeError]:
        """{element: exception} of those that failed."""
        return {i: error_from(s, 0, self._batch.command(i), False, False) for i, s in enumerate(self.statuses) if s}

    def __repr__(self) -> str:
        return f"<Many of {len(self)}: {self.failed} failed>"


class BatchError(NvmeError):
    """Some elements of a batch failed; all others were executed. Attribute result: the Many,
    whose errors() lists the failures.
    """

    def __init__(self, result: Many[BufferLike]) -> None:
        self.result = result
        first, error = next(iter(result.errors().items()))
        super().__init__(f"{result.failed} of {len(result)} commands failed, first element {first}: {error}")
