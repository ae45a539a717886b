"""The kernel's block devices, files and NVMe character devices as transports of queue pairs. See
ext/kernel/kernel_link.h.
"""

from typing import Any, Self, final

from typing_extensions import Buffer

KINDS: dict[str, int]
MOST_WORKERS: int
PASSTHROUGH_FLAGS: int
ERRNO: int
"""Bit 31 of DW0 of a completion whose error is one of the kernel's; the errno is below it."""

def try_ring(*, passthrough: bool = False, iopoll: bool = False) -> int:
    """0 if this process may have such an io_uring, else the errno."""

def direct_alignment(fd: int) -> tuple[int, int] | None:
    """The alignment that O_DIRECT requires of (memory, offsets) in bytes, 0 if this file doesn't
    support it. None: the kernel doesn't report it.
    """

def namespace_id(fd: int) -> int:
    """NVME_IOCTL_ID of a namespace's node. OSError."""

def passthrough(
    fd: int,
    sqe: Buffer,
    buffer: Buffer | None = None,
    *,
    admin: bool = True,
    to_host: bool = False,
    timeout_ms: int = 0,
) -> tuple[int, int, int]:
    """One command by ioctl; blocks without the GIL. (status, DW0, DW1).

    sqe: 64 bytes, whose pointers are not used. buffer: its data. timeout_ms: 0 is the kernel's own.
    """

@final
class Link:
    """QueuePair.set_transport() makes it that queue pair's; then start(). Threads: the queue
    pair's.

    While in_flight() is not 0 the queue pair must be neither reset nor closed.
    workers: maximum threads for blocking operations.
    """

    binding: Any
    def __new__(cls, *, workers: int = 4) -> Self: ...
    def start(self) -> None:
        """MemoryError, ValueError when it is no queue pair's transport."""

    def use_ring(self, entries: int, *, passthrough: bool = False, iopoll: bool = False) -> None:
        """Commands go through an io_uring of `entries` from here on; before, and without it,
        through the workers. OSError with the reason why there is none.
        """

    def set_target(
        self,
        nsid: int,
        fd: int,
        *,
        kind: str,
        block_size: int,
        blocks: int,
        writable: bool,
        direct: bool = False,
        memory_align: int = 1,
        block_bytes: int = 0,
        metadata: int = 0,
    ) -> None:
        """A namespace, new or changed. kind: one of KINDS. fd: not owned, open until nothing is
        in flight.

        memory_align: of data, in bytes, where `direct`. block_bytes: of a block in a buffer, if
        that is more than block_size. metadata: bytes of each block in a buffer of their own.
        """

    def add_region(self, address: int, nbytes: int, iova: int) -> bool:
        """Memory that commands may name as `iova` in MPTR, and that is registered with the rings
        where they take it (True). It stays the caller's, who keeps it until drop_region().
        OSError: there are too many.
        """

    def drop_region(self, address: int) -> None:
        """The rings forget it; the kernel keeps it pinned until the last command that uses it is
        over.
        """

    def in_flight(self) -> int:
        """Reaps completions. Returns the number of commands whose memory the kernel still
        uses.
        """

    def cancel_all(self) -> None:
        """Asks the kernel to cancel commands that it has not started yet."""

    def close(self) -> None:
        """Closes the ring and ends the threads; nothing, while commands are in flight. May block
        for as long as a thread's command takes.
        """

    @property
    def event_fd(self) -> int:
        """Readable when a command has completed."""

    @property
    def has_ring(self) -> bool: ...
    def inspect(self) -> dict[str, Any]:
        """Counters. From any thread; then a glance, not a snapshot."""

@final
class Relay:
    """A queue pair's commands for Python to execute. Threads: the queue pair's."""

    binding: Any
    def start(self) -> None: ...
    def close(self) -> None: ...
    @property
    def event_fd(self) -> int:
        """Readable when take() has something."""

    @property
    def out(self) -> int: ...
    def take(self) -> list[tuple[int, bytes, bytes | None, int]]:
        """(cid, 64 bytes of command, data that it sends, bytes that it receives) of what was
        posted.
        """

    def answer(self, cid: int, status: int, dw0: int = 0, dw1: int = 0, data: Buffer = b"") -> bool:
        """Ends a command; QueuePair.more() delivers. False: it has no waiter any more."""
