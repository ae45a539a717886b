"""The Host Memory Buffer: memory of this host that the controller uses as its own (Base 2.1, 8.2.3;
feature 0Dh).

Given at each bring-up and reset to a controller that asks for it (HMPRE), as Linux does: without it
the controller works, perhaps slowly, so nothing here is fatal. From Set Features on the controller
may write to these pages at any time, until it has confirmed their return (EHM=0) or was reset. Only
then are they freed. A lost Set Features leaves that open: the pages stay until the next reset.

    free ──allocate──► ours ──Set Features, EHM=1──► given ──reset──► ours, returned with MR=1
                        ▲                              │
                        └────Set Features, EHM=0───────┘

A successor finds them in the pool by their owner: the descriptor list with tag 0, the pieces with
tags 1, 2, …; the last 16 bytes of the list's allocation say that they were given (MARK).

On the controller's home loop.
"""

from __future__ import annotations

import logging
import struct
from typing import Any

from nvme_async.dma import PAGE_SIZE, DmaBuffer, Pool
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.transport import Owner
from nvme_async.errors import CommandError, NvmeError, OutOfDmaMemory
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec import commands
from nvme_async.spec.features import HostMemoryBuffer, HostMemoryDescriptor
from nvme_async.spec.identify import IdentifyController
from nvme_async.spec.opcodes import Feature

log: logging.Logger = logging.getLogger("nvme_async")

OWNER = "host memory"
DEFAULT_LIMIT = 128 << 20
"""Most bytes without the option host_memory, as with Linux's max_host_mem_size_mb."""
MARK: struct.Struct = struct.Struct("<8sII")
"""The end of the descriptor list's allocation: magic, entries, pages."""
_MAGIC = b"NVMEHMB1"
_ENTRY = 16
_MOST_ENTRIES = (16 * PAGE_SIZE - MARK.size) // _ENTRY


class HostMemory:
    """Owner of the pages. Attributes:
    given: the controller has them.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._pieces: list[DmaBuffer] = []
        self._list: DmaBuffer | None = None
        self._returned = False  # the controller knows these pages, and nothing was changed since it had them
        self._in_doubt = False  # a Set Features was lost
        self.given: bool = False

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self._pieces)

    async def give(self, memory: DeviceMemory) -> None:
        """A step of bring-up and reset. Raises why the controller gets none: OutOfDmaMemory,
        CommandError, ControllerTimeout.
        """
        identify = self._owner.identify
        wanted, least = self._sizes(identify)
        if not least <= self.nbytes <= wanted or self.nbytes == 0:
            self.free()
        if not wanted:
            return
        if not self._pieces:
            await in_thread(lambda: self._allocate(memory, wanted, least, identify))
        if self._returned:
            try:
                await self._enable(HostMemoryBuffer(ehm=True, mr=True))
                return
            except CommandError as error:
                self._returned = False
                log.info("%s: the host memory buffer is given as a new one: %s", self._owner.uri, error)
        await self._enable(HostMemoryBuffer(ehm=True))

    def without(self) -> str:
        """The fallback of that step."""
        if not self._in_doubt:
            self.free()
        return "the controller works without memory of the host"

    def was_reset(self) -> None:
        """CC.EN=0, and RDY=0: the controller doesn't use the pages any more."""
        self._returned = self.given
        self.given = self._in_doubt = False

    async def take_back(self) -> None:
        """Before a shutdown (8.2.3). Raises NvmeError; then the reset ends the use."""
        if not self.given:
            return
        await self._owner._submit_admin(commands.set_features(Feature.HOST_MEMORY_BUFFER, 0))
        self.given = self._returned = False

    def free(self) -> None:
        """Frees the pages. Only if the controller doesn't have them, was reset, or can't access
        memory any more.
        """
        pieces, self._pieces = self._pieces, []
        descriptors, self._list = self._list, None
        self.given = self._returned = self._in_doubt = False
        for buffer in (descriptors, *pieces):
            if buffer is not None:
                buffer.free()

    # -- sizes and memory --------------------------------------------------------------------------

    def _sizes(self, identify: IdentifyController) -> tuple[int, int]:
        """The bytes that the controller gets, and the fewest that help it. (0, 0): none.

        OutOfDmaMemory if it needs more than the limit.
        """
        limit = self._owner.options.host_memory
        preferred, least = identify.hmpre * PAGE_SIZE, max(1, identify.hmmin) * PAGE_SIZE
        if not preferred or limit == 0:
            return 0, 0
        if least > (DEFAULT_LIMIT if limit is None else limit):
            raise OutOfDmaMemory(
                f"the controller needs {least} bytes of host memory, more than "
                + (f"the default limit of {DEFAULT_LIMIT}" if limit is None else f"host_memory={limit}")
            )
        if limit is None and identify.hmmin:
            return least, least
        return min(preferred, DEFAULT_LIMIT if limit is None else limit) // PAGE_SIZE * PAGE_SIZE, least

    def _allocate(self, memory: DeviceMemory, wanted: int, least: int, identify: IdentifyController) -> None:
        """In a thread. Fewer and longer pieces first, then shorter ones, then the minimum."""
        entries = min(identify.hmmaxd or _MOST_ENTRIES, _MOST_ENTRIES)
        smallest = max(identify.hmminds, 1) * PAGE_SIZE
        refused = OutOfDmaMemory("no memory")
        for total in dict.fromkeys((wanted, least)):
            length = total
            while length >= smallest and -(-total // length) <= entries:
                try:
                    self._take(memory, total, max(length, smallest), smallest)
                    return
                except NvmeError as error:
                    refused = error if isinstance(error, OutOfDmaMemory) else OutOfDmaMemory(str(error))
                length = length // 2 // PAGE_SIZE * PAGE_SIZE
            if length == total:
                raise OutOfDmaMemory(f"{total} bytes of host memory don't fit the controller's descriptor entries")
        raise refused

    def _take(self, memory: DeviceMemory, total: int, length: int, smallest: int) -> None:
        if self._owner.options.keepalive and (room := memory.pools[0].free_bytes) < 2 * total:
            raise OutOfDmaMemory(
                f"{total} bytes of host memory are more than half of what is free in the pool ({room} bytes); the "
                "option pool_bytes makes it larger"
            )
        pieces: list[DmaBuffer] = []
        left = total
        try:
            while left > 0:
                size = max(min(length, left), smallest)
                pieces.append(memory.alloc(size, owner=OWNER, tag=len(pieces) + 1))
                left -= size
            nbytes = -(-(len(pieces) * _ENTRY + MARK.size) // PAGE_SIZE) * PAGE_SIZE
            descriptors = memory.alloc(nbytes, owner=OWNER)
        except BaseException:
            for piece in pieces:
                piece.free()
            raise
        for index, piece in enumerate(pieces):
            entry = HostMemoryDescriptor(badd=piece.iova, bsize=piece.nbytes // PAGE_SIZE)
            descriptors[index * _ENTRY : (index + 1) * _ENTRY] = entry.encode()
        self._pieces, self._list = pieces, descriptors

    async def _enable(self, value: HostMemoryBuffer) -> None:
        descriptors = self._list
        assert descriptors is not None
        pages = self.nbytes // PAGE_SIZE
        self._in_doubt = True
        try:
            await self._owner._submit_admin(
                commands.set_features(
                    Feature.HOST_MEMORY_BUFFER,
                    value.to_int(),
                    cdw12=pages,
                    cdw13=descriptors.iova & 0xFFFF_FFFF,
                    cdw14=descriptors.iova >> 32,
                    cdw15=len(self._pieces),
                )
            )
        except CommandError:
            self._in_doubt = False
            raise
        self._in_doubt, self.given = False, True
        descriptors[descriptors.nbytes - MARK.size : descriptors.nbytes] = MARK.pack(_MAGIC, len(self._pieces), pages)
        log.info("%s: a host memory buffer of %d bytes in %d pieces", self._owner.uri, self.nbytes, len(self._pieces))

    # -- a predecessor's ---------------------------------------------------------------------------

    def adopt(self, pool: Pool) -> None:
        """The controller may have these pages of a predecessor: they stay allocated, and are
        returned like our own.
        """
        slots = sorted((slot for slot in pool.slots() if slot.owner == OWNER), key=lambda slot: slot.tag)
        found = [(slot.tag, pool.claim(slot.offset)) for slot in slots if slot.state == "pending-restore"]
        self._pieces = [buffer for tag, buffer in found if tag]
        self._list = next((buffer for tag, buffer in found if not tag), None)
        if not found:
            return
        self.given = self._is_marked()
        if not self.given:
            # Nothing says that the controller has them, and nothing that it hasn't.
            self._in_doubt = True

    def _is_marked(self) -> bool:
        if self._list is None:
            return False
        at = self._list.nbytes - MARK.size
        return bytes(self._list[at:]) == MARK.pack(_MAGIC, len(self._pieces), self.nbytes // PAGE_SIZE)

    def inspect(self) -> dict[str, Any] | None:
        """None: the controller asks for none, or gets none."""
        if not self._pieces:
            return None
        return {"nbytes": self.nbytes, "pieces": len(self._pieces), "given": self.given}
