"""Operations on one device, one after another, on the loop of its worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import attrs

from nvme_async.errors import NvmeError
from nvme_async.manager.workers import Worker
from nvme_async.runtime.spans import span

T = TypeVar("T")


@attrs.define(eq=False)
class _Operation:
    what: str
    make: Callable[[], Coroutine[Any, Any, Any]]
    result: concurrent.futures.Future[Any] = attrs.field(factory=concurrent.futures.Future)
    since: float = attrs.field(factory=time.monotonic)

    def inspect(self) -> dict[str, Any]:
        return {"operation": self.what, "seconds": round(time.monotonic() - self.since, 3)}


class Mailbox:
    """Threads: call(), post() and inspect() from any; everything else on the worker's loop.

    An operation that has started runs to its end even if its caller is cancelled: a half-loaded or
        half-saved device is useless. One
    that has not started is dropped with its caller.
    """

    uri: str
    worker: Worker

    def __init__(self, worker: Worker, uri: str) -> None:
        self.worker, self.uri = worker, uri
        self._waiting: deque[_Operation] = deque()
        self._running: _Operation | None = None
        self._task: asyncio.Task[None] | None = None
        self._refusal: NvmeError | None = None

    async def call(self, what: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs make()'s coroutine when its turn has come; from any loop."""
        future: concurrent.futures.Future[T] = self.post(what, make)
        return await asyncio.wrap_future(future)

    def post(self, what: str, make: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """The same without waiting."""
        operation = _Operation(what, make)
        if self._refusal is not None:
            raise self._refusal
        self.worker.loop.call_soon_threadsafe(self._take, operation)
        return operation.result

    def _take(self, operation: _Operation) -> None:
        if self._refusal is not None:
            _end(operation, self._refusal)
            return
        self._waiting.append(operation)
        if self._task is None:
            self._task = self.worker.loop.create_task(self._run(), name="device operations")

    async def _run(self) -> None:
        try:
            while self._waiting:
                operation = self._running = self._waiting.popleft()
                if not operation.result.set_running_or_notify_cancel():
                    continue
                operation.since = time.monotonic()
                try:
                    with span(f"nvme_async.{operation.what}", uri=self.uri):
                        result = await operation.make()
                    operation.result.set_result(result)
                except asyncio.CancelledError:
                    error = self._refusal
                    operation.result.set_exception(error if error is not None else concurrent.futures.CancelledError())
                    if error is None:
                        raise
                    return
                except BaseException as error:
                    operation.result.set_exception(error)
        finally:
            self._running = self._task = None

    async def shut(self, refusal: NvmeError, seconds: float) -> bool:
        """No more operations: waiting ones end with `refusal`, the running one is cancelled and
        gets `seconds` to clean up. False if it is still running then.
        """
        self._refusal = refusal
        while self._waiting:
            _end(self._waiting.popleft(), refusal)
        task = self._task
        if task is None or task is asyncio.current_task():
            return True
        task.cancel()
        await asyncio.wait([task], timeout=seconds)
        return task.done()

    def inspect(self) -> dict[str, Any]:
        running = self._running
        return {
            "running": running.inspect() if running is not None else None,
            "waiting": [operation.inspect() for operation in list(self._waiting)],
        }


def _end(operation: _Operation, error: NvmeError) -> None:
    if operation.result.set_running_or_notify_cancel():
        operation.result.set_exception(error)
