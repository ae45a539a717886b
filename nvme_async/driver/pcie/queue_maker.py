"""A queue pair over PCIe: its memory, its vector, its doorbells, and the commands that create and
delete it.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection
from typing import Any, Protocol

from nvme_async.device import Device
from nvme_async.device.quirks import Quirk
from nvme_async.dma import DmaBuffer
from nvme_async.driver.pcie.cmb_queues import CmbQueues
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.queues.loop_queue import DEAD_VECTOR, LoopQueue
from nvme_async.driver.queues.queue_maker import QueueMaker
from nvme_async.driver.transport import Owner
from nvme_async.errors import CommandError, ControllerError, DeviceError
from nvme_async.native import _hotpath, _placement
from nvme_async.spec import commands
from nvme_async.spec.registers import DOORBELL_BASE, PAGE, Cap, cq_doorbell, sq_doorbell

log: logging.Logger = logging.getLogger("nvme_async")


class PciePieces(Protocol):
    """The part of the PCIe transport that its queues need."""

    device: Device
    memory: DeviceMemory | None
    cap: Cap


class PcieQueueMaker(QueueMaker):
    """Owner of the interrupt vectors' eventfds, of the queue pairs' memory and of the shadow
    doorbells.

    Attributes, besides those of QueueMaker:
        cmb: places for rings in the controller's memory, or None.
    """

    ADMIN_TRANSFER: int = 16 * PAGE

    def __init__(self, controller: Owner, transport: PciePieces) -> None:
        super().__init__(controller)
        self._transport = transport
        self._event_fds: list[int] = []
        self._memory: dict[int, tuple[DmaBuffer, _placement.BounceCache]] = {}  # by qid
        self._shadow: DmaBuffer | None = None
        self.cmb: CmbQueues | None = None

    def allow_sgl(self, kind: int, *, metadata: bool) -> None:
        """What queue pairs that are made from now on may use: SGLS bits 1:0; 11b is reserved."""
        self.sgl = kind if kind in (1, 2) else 0
        self.sgl_metadata = metadata

    # -- interrupts --------------------------------------------------------------------------------

    def open_vectors(self) -> None:
        """One eventfd per usable vector: vector 0 for the admin queue, the others for I/O
        queues. Fewer if the system has no more vectors left.

        ControllerError for a device without MSI-X: the admin queue could not sleep.
        """
        device = self._transport.device
        if device.n_vectors < 1:
            raise ControllerError(f"{device.uri}: the device has no MSI-X vectors; at least one is needed")
        wanted = min(device.n_vectors, self._controller.options.io_queues + 1)
        if Quirk.SINGLE_VECTOR in self._controller.quirks:
            wanted = 1
        try:
            for _ in range(wanted):
                self._event_fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        except OSError as error:
            made = len(self._event_fds)
            self.close_vectors()
            raise DeviceError(
                f"{device.uri}: no eventfd for interrupt vector {made} of {wanted}: {error.strerror} (`ulimit -n`)"
            ) from error
        given = device.set_interrupts(self._event_fds)
        if given < wanted:
            log.warning("%s: only %d of %d interrupt vectors are available", device.uri, given, wanted)
            for fd in self._event_fds[given:]:
                os.close(fd)
            del self._event_fds[given:]

    def set_vectors_again(self) -> None:
        """After a reset of the function, which removes them."""
        device, wanted = self._transport.device, len(self._event_fds)
        if wanted and (given := device.set_interrupts(self._event_fds)) < wanted:
            raise DeviceError(f"{device.uri}: only {given} of {wanted} interrupt vectors are left after the reset")

    def adopt_vectors(self, event_fds: list[int]) -> None:
        """The eventfds that a predecessor set; they become this object's, and the device
        continues to signal them.
        """
        self._event_fds = event_fds

    def close_vectors(self, besides: Collection[int] = ()) -> None:
        """besides: descriptors that the caller closes."""
        for fd in self._event_fds:
            if fd not in besides:
                os.close(fd)
        self._event_fds.clear()

    @property
    def event_fds(self) -> tuple[int, ...]:
        """By vector."""
        return tuple(self._event_fds)

    def _vector(self, qid: int) -> int:
        # With a single vector the only I/O queue shares it with the admin queue.
        return qid if qid < len(self._event_fds) else 0

    def _interrupts(self, qid: int) -> bool:
        return qid == 0 or self._controller.options.mode != "poll"

    @property
    def _spare_entries(self) -> int:
        """How many entries the longest PRP list leaves free at the end of its page."""
        return int(Quirk.PRP_LAST_ENTRY in self._controller.quirks)

    @property
    def longest_transfer(self) -> int:
        """Bytes of one command that PRP lists can describe."""
        return (PAGE // 8 - self._spare_entries) * PAGE if self._spare_entries else 16 << 20

    # -- making ------------------------------------------------------------------------------------

    def memory_for(self, qid: int, entries: int) -> int:
        """The bytes that a queue pair needs in the pool."""
        return _hotpath.queue_memory(entries, entries - 1, self._max_transfer(qid), self._spare_entries)

    async def make_room(self, qid: int, entries: int) -> None:
        assert self._transport.memory is not None
        await self._transport.memory.make_room(self.memory_for(qid, entries))

    def make(self, qid: int, entries: int, loop: asyncio.AbstractEventLoop) -> LoopQueue:
        """Memory, rings, doorbells."""
        assert self._transport.memory is not None
        max_transfer = self._max_transfer(qid)
        n_trackers = entries - 1
        memory = self._transport.memory.alloc(self.memory_for(qid, entries), owner=f"queue {qid}", tag=qid)
        facts = {
            "qid": qid,
            "entries": entries,
            "n_trackers": n_trackers,
            # One id is reserved: a successor may have to send its own command although all others
            # are in use (keepalive).
            "n_reserved": min(1, n_trackers - 1),
            "vector": self._vector(qid),
            "interrupts": self._interrupts(qid),
        }
        try:
            return self.wrap(memory, facts, max_transfer, loop)
        except BaseException:
            memory.free()
            raise

    def wrap(
        self,
        memory: DmaBuffer,
        facts: dict[str, Any],
        max_transfer: int,
        loop: asyncio.AbstractEventLoop,
        *,
        attach: bool = False,
    ) -> LoopQueue:
        """The objects for a queue pair in `memory`. facts: arguments of the native QueuePair.
        attach: a predecessor made it.
        """
        assert self._transport.memory is not None
        qid = facts["qid"]
        bounce = _placement.BounceCache(self._transport.memory.chunk_source(f"bounce {qid}"))
        hot = self._native(
            memory,
            loop,
            **facts,
            max_transfer=max_transfer,
            spare_entries=self._spare_entries,
            attach=attach,
            address_map=self._transport.memory.address_map,
            bounce=bounce,
        )
        try:
            self._connect_doorbells(hot)
        except BaseException:
            hot.close()
            raise
        self._set_waiting(hot, interrupts=facts["interrupts"])
        hot.sgl = self.sgl if qid else 0  # admin commands use PRPs (Base 2.0, 4.1)
        hot.sgl_metadata = self.sgl_metadata
        self._memory[qid] = (memory, bounce)
        return self.face(hot, loop, facts["vector"], facts["interrupts"])

    def face(
        self, hot: _hotpath.QueuePair, loop: asyncio.AbstractEventLoop, vector: int, interrupts: bool
    ) -> LoopQueue:
        assert self._transport.memory is not None
        hot.on_starved = self._transport.memory.feeder(hot, loop)
        return LoopQueue(
            hot,
            loop,
            vector=vector,
            event_fd=self._event_fds[vector],
            interrupts=interrupts,
            on_dead_vector=self._on_dead_vector,
            **self._watching(hot.qid),
        )

    def _connect_doorbells(self, hot: _hotpath.QueuePair) -> None:
        device = self._transport.device
        doorbells = device.doorbells()
        dstrd = self._transport.cap.dstrd
        sq, cq = sq_doorbell(hot.qid, dstrd), cq_doorbell(hot.qid, dstrd)
        base = doorbells.offset - DOORBELL_BASE
        mmio = doorbells.mmio
        if mmio is not None and base + cq + 4 > mmio.nbytes:
            mmio = None  # the window ends before them, as a one-page window with a wide stride does: they are registers

        def ring(register: int, value: int) -> None:
            device.ring(register, value, lambda: hot.rang(register, value))

        hot.set_doorbells(
            mmio,
            base + sq,
            base + cq,
            kick_fd=-1 if doorbells.kick_fd is None else doorbells.kick_fd,
            write32=device.write32 if device.direct else ring,
            later=not device.direct,
            sq_register=sq,
            cq_register=cq,
        )

    def limit_transfer(self, nbytes: int) -> bool:
        return super().limit_transfer(min(nbytes, self.longest_transfer))

    def _on_dead_vector(self, queue: LoopQueue) -> None:
        """From a queue pair, on its loop: no interrupt arrives, and it has started to poll."""
        controller = self._controller
        if not controller.loop.is_closed():
            controller.loop.call_soon_threadsafe(
                controller.degraded.add,
                f"interrupts of vector {queue.vector}",
                f"no interrupt arrived for {DEAD_VECTOR} consecutive completions",
                "completions are polled for, which keeps a core busy while commands are in flight",
            )

    def bounce_of(self, qid: int) -> _placement.BounceCache:
        return self._memory[qid][1]

    def forget(self, queue: LoopQueue) -> None:
        super().forget(queue)
        memory, bounce = self._memory.pop(queue.qid, (None, None))
        if bounce is not None:
            bounce.close()
        if memory is not None:
            memory.free()

    # -- the commands ------------------------------------------------------------------------------

    async def create(self, queue: LoopQueue) -> None:
        """Its rings are in the controller's memory, if there is room and the controller takes
        them.
        """
        controller, hot, cmb = self._controller, queue.hot, self.cmb
        if cmb is not None and cmb.has_room(hot):
            await controller._on_owner(queue, lambda: cmb.place(hot))
            try:
                await self._create(queue)
                return
            except CommandError as error:
                controller.degraded.add(f"queue {hot.qid} in the Controller Memory Buffer", error, "memory of the host")
                await controller._on_owner(queue, hot.rings_home)
        await self._create(queue)

    async def _create(self, queue: LoopQueue) -> None:
        """Create I/O Completion Queue, then Create I/O Submission Queue (5.4, 5.5)."""
        hot, submit = queue.hot, self._controller._submit_admin
        create_cq = commands.create_io_cq(hot.qid, hot.entries, hot.cq_iova, queue.vector, interrupts=queue.interrupts)
        create_sq = commands.create_io_sq(hot.qid, hot.entries, hot.sq_iova, hot.qid)
        self.use_shadow(hot)
        await submit(create_cq)
        try:
            await submit(create_sq)
        except CommandError:
            try:
                await submit(commands.delete_io_cq(hot.qid))
            except CommandError:
                pass
            raise

    async def delete(self, queue: LoopQueue) -> None:
        """Submission queue first (3.3.1.3): a completion queue with a user can't be deleted."""
        controller, hot = self._controller, queue.hot
        await controller._submit_admin(commands.delete_io_sq(queue.qid))

        def last() -> None:
            """No more completions arrive. Reaped completions may not have been acknowledged yet,
            and the next interrupt would do so too late: a doorbell of a queue that doesn't exist
            is an error of the host (Base 2.0, 5.2: Write to Invalid Doorbell Register).
            """
            hot.reap()
            hot.silence(True)

        await controller._on_owner(queue, last)
        await controller._submit_admin(commands.delete_io_cq(queue.qid))

    # -- Doorbell Buffer Config --------------------------------------------------------------------

    @property
    def shadow_offset(self) -> int | None:
        """Its memory in the pool; None: not in use."""
        return None if self._shadow is None else self._shadow.offset

    async def configure_shadow(self, queues: list[LoopQueue]) -> str:
        """Doorbell Buffer Config (5.8). Why the controller refuses it, if it does; then `queues` do
        without.
        """
        controller = self._controller
        assert self._transport.memory is not None
        if self._shadow is None:
            self._shadow = self._transport.memory.alloc(2 * PAGE, owner="shadow doorbells")
        try:
            await controller._submit_admin(commands.doorbell_buffer_config(self._shadow.iova, self._shadow.iova + PAGE))
        except CommandError as error:
            await self.drop_shadow(queues)
            return str(error)
        return ""

    async def drop_shadow(self, queues: list[LoopQueue]) -> None:
        """The controller doesn't use the memory (any more); neither do `queues`."""
        for queue in queues:
            await self._controller._on_owner(queue, queue.hot.drop_shadow_doorbells)
        self.free_shadow()

    def adopt_shadow(self, memory: DmaBuffer | None) -> None:
        """Takes over a predecessor's configuration."""
        self._shadow = memory

    def use_shadow(self, hot: _hotpath.QueuePair) -> None:
        """The queue pair's doorbells go through that memory, if it is in use and has room for
        them.
        """
        if self._shadow is not None:
            dstrd = self._transport.cap.dstrd
            sq, cq = sq_doorbell(hot.qid, dstrd) - DOORBELL_BASE, cq_doorbell(hot.qid, dstrd) - DOORBELL_BASE
            if cq + 4 <= PAGE:
                hot.set_shadow_doorbells(self._shadow, sq, cq, PAGE)

    def free_shadow(self) -> None:
        shadow, self._shadow = self._shadow, None
        if shadow is not None:
            shadow.free()
