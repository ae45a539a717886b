"""A mapped window of a BAR, or of the page that stands for one, with volatile accesses of
exactly one width.
"""

from types import TracebackType
from typing import Self, final

def file_system(fd: int) -> int:
    """The magic number of the file system that `fd` is in (statfs(2))."""

@final
class Mmio:
    """`nbytes` bytes of `fd` from `file_offset` (a multiple of the page size), mapped shared.

    The mapping outlives `fd`, which the caller still owns. Accesses are single aligned loads and
    stores, never split or merged; the caller must ensure their order relative to other memory. From
    any thread; close() must not race an access by another thread's C code.

    Lost memory (a peer truncates the file, the kernel refuses the access) doesn't end the process:
    zeroes replace it, `lost` becomes true, and the eventfd `lost_fd`, if there is one, is
    signalled. That eventfd belongs to the caller, is non-blocking, and stays open until close(), or
    until `lost_fd` is set to another (-1: none).

    It is a buffer of bytes, for windows that are memory; close() raises BufferError while such
    buffers exist, and the mapping ends with the last of them.

    Raises ValueError for a window that is empty, misaligned or longer than a regular file behind
    it, OSError when mmap fails.
    """

    nbytes: int
    writable: bool
    lost_fd: int
    def __new__(cls, fd: int, file_offset: int, nbytes: int, *, writable: bool = True, lost_fd: int = -1) -> Self: ...
    @property
    def lost(self) -> bool:
        """Whether an access found the memory lost: accesses have no effect since then."""
    @property
    def closed(self) -> bool: ...
    def read32(self, offset: int) -> int: ...
    def read64(self, offset: int) -> int: ...
    def write32(self, offset: int, value: int) -> None: ...
    def write64(self, offset: int, value: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
