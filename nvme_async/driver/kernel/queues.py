"""Queue pairs whose commands the kernel executes, and the one for admin commands."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
from typing import Any, Protocol

from nvme_async.driver.kernel.admin import AdminService, Backend, Learn
from nvme_async.driver.kernel.memory import KernelMemory
from nvme_async.driver.kernel.nodes import Node
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.queues.queue_maker import CarriedQueueMaker
from nvme_async.driver.queues.queue_set import QueueSet
from nvme_async.driver.transport import Owner
from nvme_async.errors import CommandError, ControllerTimeout, NvmeError, command_error
from nvme_async.native import _kernel
from nvme_async.spec.commands import Command
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.opcodes import command_name
from nvme_async.spec.status import GenericStatus, status_text

log: logging.Logger = logging.getLogger("nvme_async")
QUIET_SECONDS = 5.0
"""How long to wait for the kernel, after everything was cancelled, before its commands are
abandoned.
"""
GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.ENOMEDIUM})

_left: list[Any] = []
"""Queues whose commands the kernel has not returned, with the nodes: their memory is never
reused.
"""


class KernelQueue(LoopQueue):
    """A queue pair over a link. nodes: of the namespaces, by nsid."""

    def __init__(self, *arguments: Any, link: _kernel.Link, **options: Any) -> None:
        super().__init__(*arguments, event_fd=link.event_fd, **options)
        self.link = link

    def in_flight_now(self) -> int:
        """Reaps completions. Returns the number of commands whose memory the kernel still has.
        In the loop's thread, or after the loop has ended.
        """
        if self.hot.closed:
            return 0
        in_flight = self.link.in_flight()
        self.hot.reap()
        return in_flight

    def in_flight_and_cancelled(self) -> int:
        """The same, after the kernel was asked to cancel what it can."""
        if not self.hot.closed:
            self.link.cancel_all()
        return self.in_flight_now()

    def close(self) -> None:
        super().close()
        self.link.close()

    def add_region(self, address: int, nbytes: int, iova: int) -> None:
        """In the loop's thread. Where the kernel doesn't take it, I/O goes on as without."""
        if self.hot.closed:
            return
        try:
            self.link.add_region(address, nbytes, iova)
        except OSError as error:
            log.debug("queue %d: %d bytes at %#x: %s", self.qid, nbytes, address, error)

    def drop_region(self, address: int) -> None:
        """In the loop's thread."""
        if not self.hot.closed:
            self.link.drop_region(address)

    def quiet_now(self, seconds: float) -> bool:
        """Without a loop: blocks until the end. True if the kernel has returned everything."""
        until = time.monotonic() + seconds
        while self.in_flight_and_cancelled():
            if time.monotonic() >= until:
                return False
            time.sleep(0.001)
        return True

    def inspect(self) -> dict[str, Any]:
        return {**super().inspect(), "kernel": self.link.inspect()}


class RelayQueue(LoopQueue):
    """The admin queue: Python executes its commands."""

    def __init__(
        self,
        *arguments: Any,
        relay: _kernel.Relay,
        backend: Backend,
        learn: Learn,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, event_fd=relay.event_fd, **options)
        self.relay = relay
        self._service = AdminService(relay, backend, on_answer=self.hot.more, learn=learn)

    def listen(self, *others: LoopQueue) -> None:
        self.worker: str = threading.current_thread().name
        self._on_interrupt = self._posted
        self.loop.add_reader(self.event_fd, self._posted)

    def close(self) -> None:
        super().close()
        self.relay.close()

    def _posted(self) -> None:
        try:
            os.read(self.event_fd, 8)
        except BlockingIOError:
            pass
        self._service.take()


class KernelPieces(Protocol):
    """The part of the transport that its queues need."""

    uri: str
    nodes: dict[int, Node]
    identified: dict[int, IdentifyNamespace]
    backend: Backend
    memory: KernelMemory
    why_threads: str

    def gone(self, reason: str) -> None: ...
    def without_ring(self, error: OSError) -> None: ...
    async def learn(self, nsid: int, page: bytes) -> None: ...


class KernelQueueMaker(CarriedQueueMaker):
    """A queue pair is a link to the kernel, which knows nothing of it."""

    def __init__(self, controller: Owner, transport: KernelPieces) -> None:
        super().__init__(controller)
        self._transport = transport

    def make(self, qid: int, entries: int, loop: asyncio.AbstractEventLoop) -> LoopQueue:
        """A link that can be used at once. Ends with forget()."""
        carrier = self._link(entries) if qid else _kernel.Relay()
        hot = self._rings(qid, entries, loop)
        hot.set_transport(carrier)
        carrier.start()
        self._set_waiting(hot, interrupts=not (qid and self._controller.options.io_poll))
        common: dict[str, Any] = {"vector": qid, "interrupts": True, **self._watching(qid)}
        if isinstance(carrier, _kernel.Relay):
            pieces = self._transport
            return RelayQueue(hot, loop, relay=carrier, backend=pieces.backend, learn=pieces.learn, **common)
        queue = KernelQueue(hot, loop, link=carrier, **common)
        self.set_targets(queue)
        for region in self._transport.memory.regions:
            queue.add_region(*region)
        return queue

    def _link(self, entries: int) -> _kernel.Link:
        threads = bool(self._transport.why_threads)
        link = _kernel.Link(workers=_kernel.MOST_WORKERS if threads else 4)
        if threads:
            return link
        options = self._controller.options
        passthrough = any(node.kind == "passthrough" for node in self._transport.nodes.values())
        try:
            link.use_ring(entries, passthrough=passthrough, iopoll=options.io_poll)
            return link
        except OSError as error:
            if options.engine == "io_uring" or options.io_poll:
                raise
            self._transport.without_ring(error)
        link.close()
        return _kernel.Link(workers=_kernel.MOST_WORKERS)

    def set_targets(self, queue: KernelQueue) -> None:
        """The namespaces of the queue, as known now."""
        for nsid, node in self._transport.nodes.items():
            identify = self._transport.identified.get(nsid)
            block_size = identify.block_size if identify is not None else node.block_size
            if block_size < 512:
                continue  # not identified yet
            metadata = identify.metadata_size if identify is not None and node.kind == "passthrough" else 0
            extended = bool(identify is not None and identify.flbas >> 4 & 1)
            queue.link.set_target(
                nsid,
                node.fd,
                kind=node.kind,
                block_size=block_size,
                blocks=identify.nsze if identify is not None else node.blocks,
                writable=not node.read_only,
                direct=node.direct,
                memory_align=node.memory_align,
                block_bytes=block_size + (metadata if extended else 0),
                metadata=0 if extended else metadata,
            )

    def _error(self, status: int, dw0: int, sqe: bytes, admin: bool, timed_out: bool) -> NvmeError:
        error = super()._error(status, dw0, sqe, admin, timed_out)
        why = self._why(status, dw0, sqe, admin) if isinstance(error, CommandError) else ""
        if not why:
            return error
        command = Command.unpack(sqe, admin=admin)
        return command_error(
            status,
            opcode=command.opcode,
            nsid=command.nsid,
            lba=None if admin else command.lba,
            blocks=None if admin else command.blocks,
            admin=admin,
            dw0=0,
            text=f"{status_text(status >> 8 & 7, status & 0xFF)}: {why}",
            command=command_name(command.opcode, admin=admin),
        )

    def _why(self, status: int, dw0: int, sqe: bytes, admin: bool) -> str:
        code = dw0 & ~_kernel.ERRNO if dw0 & _kernel.ERRNO else 0
        if code in GONE:
            self._transport.gone(os.strerror(code))
        command = Command.unpack(sqe, admin=admin)
        if admin and status & 0x7FF in (GenericStatus.INVALID_OPCODE, GenericStatus.OPERATION_DENIED):
            why = self._transport.backend.why(command)
            if why:
                return why
        node = self._transport.nodes.get(command.nsid)
        if (
            not admin
            and status & 0x7FF == GenericStatus.NAMESPACE_WRITE_PROTECTED
            and node is not None
            and node.read_only
        ):
            return node.read_only
        return os.strerror(code) if code else ""

    def _on_stray(self, qid: int, n: int, n_sqid: int, cid: int, sqid: int) -> None:
        log.error("%s: queue %d: the completion with id %#06x belongs to no command", self._controller.uri, qid, cid)

    async def create(self, queue: LoopQueue) -> None:
        """The queue learns what is known of namespaces by now."""
        assert isinstance(queue, KernelQueue)
        await self.on(queue, lambda: self.set_targets(queue))

    async def quiet(self, queue: LoopQueue, seconds: float) -> bool:
        """Cancels commands in flight, and waits until the kernel has none of their memory any
        more. False: not in time.
        """
        if not isinstance(queue, KernelQueue):
            return True
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        in_flight = queue.in_flight_and_cancelled
        while await self.on(queue, in_flight):
            if loop.time() >= until:
                return False
            in_flight = queue.in_flight_now
            await asyncio.sleep(0.001)
        return True

    async def delete(self, queue: LoopQueue) -> None:
        """Waits until nothing is in flight. ControllerTimeout."""
        if not await self.quiet(queue, QUIET_SECONDS):
            raise ControllerTimeout(f"{self._controller.uri}: the kernel still has commands of queue {queue.qid}")


class KernelQueueSet(QueueSet):
    """Queues whose memory the kernel may hold beyond all limits."""

    def __init__(self, owner: Owner, transport: Any) -> None:
        self._kernel_maker = KernelQueueMaker(owner, transport)
        super().__init__(owner, transport, self._kernel_maker)

    @property
    def has_admin(self) -> bool:
        """Was there a bring-up before?"""
        return self._admin is not None

    async def begin(self) -> None:
        """As many queues as the options allow: the kernel has no limit of its own."""
        self._grant(self._controller.options.io_queues)

    async def quiet(self, seconds: float) -> list[LoopQueue]:
        """Asks the kernel to cancel what it can. Returns the queues whose memory it still has
        after that time.
        """
        queues = [*self.io_queues(), *self.unsettled]
        quiet = await asyncio.gather(*(self._kernel_maker.quiet(queue, seconds) for queue in queues))
        return [queue for queue, is_quiet in zip(queues, quiet, strict=True) if not is_quiet]

    def leave(self, queue: LoopQueue, nodes: dict[int, Node]) -> None:
        """The kernel doesn't return it: neither the queue's memory nor its callers' is reused."""
        _left.append((queue, nodes))
        for loop in [loop for loop, its in self.io.items() if its is queue]:
            del self.io[loop]
            self.hot.pop(loop, None)
        for group in (self.spare, self.unsettled):
            if queue in group:
                group.remove(queue)
