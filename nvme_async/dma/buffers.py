"""The type of buffers, for type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc.Buffer, also for Python 3.11


class ArrayInterface(Protocol):
    """A NumPy array: its type stubs declare it a Buffer only from Python 3.12 on."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


BufferLike: TypeAlias = "Buffer | ArrayInterface"
"""bytes, bytearray, memoryview, mmap, array, DmaBuffer, NumPy arrays: anything with the buffer
protocol.
"""
