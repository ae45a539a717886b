"""Memory that a device may access. Layout and crash consistency: ext/dma/pool.h."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, SupportsIndex, final, overload

from typing_extensions import Buffer

PAGE_SIZE: int
MAX_TEXT_BYTES: int

SlotState = Literal["free", "allocated", "pending-restore", "leaked"]

class Slot(NamedTuple):
    """One allocation as the pool's own table records it. Free space has no slot."""

    offset: int
    nbytes: int
    owner: str
    tag: int
    state: SlotState
    persistent: bool

@final
class Pool:
    """One memfd, mapped shared into this process and meant to be mapped for a device at one
    fixed IOVA.

    `nbytes` counts everything, the pool's own header and table (about 1/64) included; it is rounded
        up to the page size of the backing. With hugepages="auto" 2 MiB huge pages are used if the
        machine has enough free ones, "require" fails without them (OutOfDmaMemory), "never" doesn't
        try. `iova` is a multiple of 4096.
    `nodes`: equal parts of the pool prefer these NUMA nodes, in order (mbind(2), MPOL_PREFERRED);
        the attribute lists the parts as (node, offset, bytes), and is empty for an attached pool or
        without kernel support.

    The descriptor is sealed against shrinking, so that no holder of it can make another's access
    fail (SIGBUS). Methods may be called from any thread under the GIL (a free-threaded interpreter
    enables it for this module). After fork() only the parent can use it; a child may attach() the
    inherited descriptor once the parent has stopped.
    """

    nbytes: int
    iova: int
    name: str
    backing: str
    nodes: tuple[tuple[int, int, int], ...]
    id: str
    page_size: int
    def __init__(
        self,
        nbytes: int,
        *,
        iova: int,
        name: str = "pool",
        hugepages: Literal["auto", "never", "require"] = "auto",
        nodes: Sequence[int] = (),
    ) -> None: ...
    @staticmethod
    def attach(fd: int, *, expect_iova: int | None = None) -> Pool:
        """Maps an existing pool and rebuilds its free list from the slot table, without changing
        it.

        `fd` is duplicated; the caller still owns it. Every allocation found is "pending-restore",
        and its pages aren't reused, until claim(), mark_leaked() or reclaim(). Only one process may
        allocate: the former one must be dead or have stopped. Raises InvalidSavedState if this
        isn't a pool, or its table is inconsistent; the message gives details.
        """
    @staticmethod
    def size_for(nbytes: int) -> int:
        """The nbytes to ask for so that allocations of `nbytes`, a multiple of 4096, fit."""
    @property
    def fd(self) -> int:
        """The memory's descriptor, owned by the pool. -1 once closed."""
    @property
    def address(self) -> int:
        """Where this process has it mapped."""
    @property
    def data_offset(self) -> int:
        """Where allocations start; below are header and table."""
    @property
    def free_bytes(self) -> int: ...
    @property
    def used_bytes(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def alloc(
        self,
        nbytes: int,
        *,
        owner: str,
        tag: int = 0,
        align: int = 4096,
        persistent: bool = False,
        zero: bool = True,
    ) -> DmaBuffer:
        """First fit, contiguous, whole pages, zeroed unless zero=False. `align`, a power of two,
        counts for the IOVA.

        `owner` (1 to 31 bytes of UTF-8) and `tag` (64 bits) go into the slot table for a successor
        to read. A persistent buffer's pages are released only by free(), never by garbage
        collection. Raises OutOfDmaMemory when no free run of pages is long enough.
        """
    def claim(self, offset: int) -> DmaBuffer:
        """The buffer of an existing allocation at `offset` that has no object: how a successor
        gets it.
        """
    def mark_leaked(self, offset: int) -> None:
        """Records that the allocation was not claimed; its pages aren't reused, also in later
        processes.
        """
    def reclaim(self, offset: int) -> None:
        """Frees an allocation without an object. Only if no controller can access it any more
        (after a reset).
        """
    def slots(self) -> list[Slot]: ...
    def inspect(self) -> dict[str, object]:
        """Plain data for people and tools: sizes, backing, free extents' longest run, slots."""
    def refresh(self) -> None:
        """Reads the slot table again: for a successor that attached while its predecessor still
        allocated.

        Raises InvalidSavedState, with nothing changed, when an allocation that this process holds
        isn't there any more.
        """

    def populate(self, slots: Iterable[Slot]) -> None:
        """Maps the pages of these allocations into this process now, so that their first use costs
        nothing. Has no effect before Linux 5.14, or where memory is short.
        """

    def verify(self) -> None:
        """Raises InvalidSavedState when the slot table is damaged: a slot differs from its
        checksum, or its state and flags from one another.

        For a pool whose last writer kept checksums; seal() makes one of what a release before 0.2
        left. An owner of more than 27 bytes leaves its slot no room for one.
        """

    def seal(self) -> None:
        """Adds the checksums that verify() requires to a valid table that another release wrote."""

    def pause(self) -> None:
        """Doesn't change the slot table until resume(): buffers freed meanwhile are released
        then.

        alloc() raises OutOfDmaMemory.
        """

    def resume(self) -> None: ...
    def detach(self) -> None:
        """The pool belongs to a successor from now on: this process never touches its table
        again.

        Neither free() nor garbage collection does; everything else raises ValueError. The mapping
        goes with the last buffer.
        """

    @property
    def detached(self) -> bool: ...
    def close(self) -> None:
        """Unmaps and closes the descriptor; buffers are unusable from then on. BufferError while
        any is exported.

        The table is left as it is: a successor with the descriptor finds every buffer that wasn't
        freed.
        """
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

@final
class DmaBuffer:
    """A run of whole pages of a pool, with the buffer protocol (writable, one dimension of bytes).

    Views of it (memoryview, NumPy, a command in flight) are exports. free() ends its use at once:
    new views and accesses raise ValueError, as a released memoryview does; the pages return to the
    pool when the last export is released. Dropping the last reference has the effect of free(),
    unless it is persistent. Made by Pool.alloc() and Pool.claim() only.
    """

    nbytes: int
    iova: int
    offset: int
    pool: Pool
    persistent: bool
    @property
    def owner(self) -> str: ...
    @property
    def tag(self) -> int: ...
    @property
    def freed(self) -> bool: ...
    def free(self) -> None:
        """Does nothing if already freed."""
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> memoryview: ...
    @overload
    def __setitem__(self, key: SupportsIndex, value: int, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer, /) -> None: ...
    @property
    def __array_interface__(self) -> dict[str, Any]:
        """For NumPy and what follows its protocol: bytes, one dimension. An array made of it is
        an export.
        """

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0): memory of the CPU, which the NVMe controller can access too."""

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A DLPack capsule of its bytes, without copying: torch.from_dlpack(buffer). It is an
        export until the consumer drops it. ConfigurationError without NumPy, which makes it.
        """

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
