"""A worker's queues: native queue pairs in its own memory that the owner creates, and admin
commands by message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from nvme_async.driver.completions import error_from
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.pcie.queue_maker import PcieQueueMaker
from nvme_async.driver.pcie.restored_queues import RestoredQueues
from nvme_async.driver.plain_queues import PlainQueue
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.driver.transport import Owner
from nvme_async.errors import ConfigurationError, NvmeError
from nvme_async.sharing.leased_device import LeasedDevice
from nvme_async.sharing.protocol import MAX_DATA, Message
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.opcodes import AdminOpcode, Direction
from nvme_async.spec.registers import Cap

ADMIN_DEPTH = 33
_EVENTS = 64


class Leased(Protocol):
    """The part of the worker's transport that its queues need."""

    device: LeasedDevice
    memory: DeviceMemory | None
    cap: Cap
    life: int

    async def request(
        self, kind: str, body: dict[str, Any] | None = None, *, data: bytes = b"", repeatable: bool = True
    ) -> Message: ...


class LeasedQueueMaker(PcieQueueMaker):
    """Vectors are those of the lease, by index; creation and deletion are requests."""

    def __init__(self, controller: Owner, transport: Leased) -> None:
        super().__init__(controller, transport)  # type: ignore[arg-type]  # less of a device is enough
        self._leased = transport
        self._qids: list[int] = []

    def open_vectors(self) -> None:
        device = self._leased.device
        self._qids = sorted(device.event_fds)
        self._event_fds = [device.event_fds.pop(qid) for qid in self._qids]  # closed by close_vectors()

    def _vector(self, qid: int) -> int:
        return self._qids.index(qid)

    def wrap(self, *arguments: Any, attach: bool = False, **options: Any) -> LoopQueue:
        queue = super().wrap(*arguments, attach=attach, **options)
        if attach:
            self._obey_stop_word(queue)
        return queue

    def _obey_stop_word(self, queue: LoopQueue) -> int:
        leased = self._leased
        queue.hot.set_stop_word(leased.device.stops, 4 * leased.device.grant.slot, leased.life)
        return leased.life

    async def create(self, queue: LoopQueue) -> None:
        """Create I/O Completion and Submission Queue, by the owner."""
        hot, leased = queue.hot, self._leased
        life = self._obey_stop_word(queue)
        body = {
            "qid": hot.qid,
            "entries": hot.entries,
            "cq": hot.cq_iova,
            "sq": hot.sq_iova,
            "interrupts": queue.interrupts,
            "life": life,
        }
        await leased.request("create", body)

    async def delete(self, queue: LoopQueue) -> None:
        """Deletes both queues, by the owner. No doorbell is rung any more at that point."""

        def last() -> None:
            queue.hot.reap()
            queue.hot.silence(True)

        await self._controller._on_owner(queue, last)
        await self._leased.request("delete", {"qid": queue.qid})


# Admin commands that may be executed twice without another effect. A second Format NVM would erase
# what was written since the first.
_REPEATABLE = frozenset(
    {
        AdminOpcode.IDENTIFY,
        AdminOpcode.GET_LOG_PAGE,
        AdminOpcode.GET_FEATURES,
        AdminOpcode.SET_FEATURES,
        AdminOpcode.ABORT,
        AdminOpcode.KEEP_ALIVE,
        AdminOpcode.GET_LBA_STATUS,
        AdminOpcode.DIRECTIVE_RECEIVE,
    }
)


class LeasedQueues(RestoredQueues):
    """See RestoredQueues. There is no native admin queue: all() has the I/O queues only."""

    maker: LeasedQueueMaker

    def __init__(self, controller: Owner, transport: Leased) -> None:
        super().__init__(controller, transport, LeasedQueueMaker(controller, transport))
        self._leased = transport
        self._events: deque[tuple[int, int]] = deque(maxlen=_EVENTS)
        self._waiting_for_events: deque[asyncio.Future[tuple[int, int]]] = deque()
        self._messages = PlainQueue(0, controller.loop, self._execute, ADMIN_DEPTH, controller.options.admin_timeout)

    @property
    def admin(self) -> PlainQueue:  # type: ignore[override]
        """Admin commands, which the owner sends."""
        return self._messages

    def _grant(self, limit: int) -> None:
        taken = {queue.qid for queue in [*self.io_queues(), *self.unsettled]}
        self._free_qids = [qid for qid in sorted(self._leased.device.grant.qids, reverse=True) if qid not in taken]
        # The owner assigns the ids, which need not start at 1.
        self.limit: int = max(self._leased.device.grant.qids)

    async def negotiate(self) -> None:
        """The lease's resources."""
        self._grant(0)

    def grant_rest(self) -> None:
        """The ids that a predecessor's queue pairs don't have are free."""
        self._grant(0)

    def fail_messages(self, error: NvmeError) -> None:
        """Admin commands, and event requests, end with `error`."""
        self._messages.refuse(error)
        self._messages.fail_waiters(error)
        self._end_events(error)

    def listen(self, queue: LoopQueue) -> None:
        queue.listen()

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        await super().fail(error, admin=admin)
        if admin:
            self.fail_messages(error)

    async def restart(self, retryable: frozenset[int], error: NvmeError) -> None:
        self._end_events(error)
        await super().restart(retryable, error)

    async def release(self, reason: NvmeError) -> None:
        await super().release(reason)
        self.fail_messages(reason)

    def refuse_in_child(self, error: NvmeError) -> None:
        super().refuse_in_child(error)
        self._messages._refusal = error

    def inspect(self) -> dict[str, Any]:
        found = super().inspect()
        found["admin_queue"] = self._messages.inspect()
        found["io_queues"] = [queue.inspect() for queue in self.io_queues()]
        found["io_queue_limit"] = len(self._leased.device.grant.qids)
        return found

    # -- admin commands ----------------------------------------------------------------------------

    def event(self, dw0: int, dw1: int) -> None:
        """The owner has received an asynchronous event: it completes this driver's request."""
        while self._waiting_for_events:
            future = self._waiting_for_events.popleft()
            if not future.done():
                future.set_result((dw0, dw1))
                return
        if (dw0, dw1) not in self._events:
            self._events.append((dw0, dw1))

    def _end_events(self, error: NvmeError) -> None:
        while self._waiting_for_events:
            future = self._waiting_for_events.popleft()
            if not future.done():
                future.set_exception(error)
                future.exception()  # it needs no waiter any more

    async def _execute(self, queue: PlainQueue, command: Command, buffer: memoryview | None, nbytes: int) -> Completion:
        if command.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
            if self._events:
                dw0, dw1 = self._events.popleft()
            else:
                future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
                self._waiting_for_events.append(future)
                dw0, dw1 = await future
            return Completion(dw0=dw0, dw1=dw1)
        if nbytes > MAX_DATA:
            raise ConfigurationError(
                f"{command.name} of {nbytes} bytes; a worker's admin command may transfer at most {MAX_DATA}"
            )
        sqe = command.pack()
        sends = command.direction is Direction.HOST_TO_CONTROLLER
        data = sqe + bytes(buffer) if sends and buffer is not None else sqe
        answer = await self._leased.request(
            "admin", {"nbytes": nbytes}, data=data, repeatable=command.opcode in _REPEATABLE
        )
        answer.close()
        if "status" in answer.body:
            raise error_from(answer.number("status", 0, 0x7FFF), answer.number("dw0"), sqe, True, False)
        dw0, dw1 = answer.number("dw0"), answer.number("dw1")
        if sends or not nbytes:
            return Completion(dw0=dw0, dw1=dw1)
        if buffer is not None:
            buffer[:] = answer.data
            return Completion(dw0=dw0, dw1=dw1)
        return Completion(dw0=dw0, dw1=dw1, data=answer.data)
