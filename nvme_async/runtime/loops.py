"""Work that must be done in the thread of another event loop, which may be stuck, not run, or
end meanwhile.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def on_loop(
    loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]], *, ended: Exception
) -> T:
    """Runs make()'s coroutine on another thread's loop. Raises `ended` if that loop doesn't run, or
    ends before the coroutine does.
    """

    async def run() -> T:
        return await make()

    if not loop.is_running():
        raise ended
    coroutine = run()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # closed meanwhile
        coroutine.close()
        raise ended from None
    waiter = asyncio.wrap_future(future)
    try:
        while not waiter.done():
            await asyncio.wait([waiter], timeout=1.0)
            if not waiter.done() and not loop.is_running():
                raise ended
    finally:
        waiter.cancel()
    if waiter.cancelled():
        raise ended  # as asyncio.run() does to all tasks at its end
    return waiter.result()


async def until_done(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs make()'s coroutine on another thread's loop, which runs. If the caller is cancelled, so
    is the coroutine, and this takes effect when it has ended: what it uses may be closed then.
    RuntimeError if that loop ends first.
    """
    outcome: concurrent.futures.Future[None] = concurrent.futures.Future()
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        tasks.append(loop.create_task(make(), name="call from another loop"))
        tasks[0].add_done_callback(lambda _: outcome.set_result(None))

    loop.call_soon_threadsafe(begin)
    waiter = asyncio.wrap_future(outcome)
    cancelled: asyncio.CancelledError | None = None
    while not waiter.done():
        try:
            await asyncio.wait([waiter], timeout=1.0)
        except asyncio.CancelledError as error:
            cancelled = error
            loop.call_soon_threadsafe(lambda: tasks[0].cancel())
        if not waiter.done() and not loop.is_running():
            raise RuntimeError("the other thread's loop has ended")
    if cancelled is not None:
        if not tasks[0].cancelled():
            tasks[0].exception()  # the caller sees the cancellation
        raise cancelled
    return tasks[0].result()


class Trip(Generic[T]):
    """function() on its way to the thread of another loop, which runs; begun by making it, ended
    by wait(). What is waited for is one call from there, and nothing is made for it that a short
    trip does not need.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], T]) -> None:
        self._home = asyncio.get_running_loop()
        self._loop = loop
        self._function = function
        self._claimed = threading.Lock()  # by the code that runs it, or prevents it from running
        self._arrived = self._home.create_future()
        self._done = False
        self._result: T
        self._error: BaseException | None = None
        self._closed = False
        try:
            loop.call_soon_threadsafe(self._run)
        except RuntimeError:  # closed meanwhile
            self._closed = True

    def _run(self) -> None:
        if not self._claimed.acquire(blocking=False):
            return
        self._call()
        try:
            self._home.call_soon_threadsafe(self._arrive)
        except RuntimeError:
            pass  # who asked is no more

    def _call(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self._done = True

    def _arrive(self) -> None:
        if not self._arrived.done():
            self._arrived.set_result(None)

    async def wait(self, timeout: float, stuck: Exception) -> T:
        """What function() returned or raised. Runs it here, if the loop was closed or doesn't
        run any more. Raises `stuck` after `timeout` seconds without an answer, or when
        cancelled, CancelledError: then function() won't be run.
        """
        limit, pause = time.monotonic() + timeout, 0.001
        try:
            while not self._done:
                if (self._closed or not self._loop.is_running()) and self._claimed.acquire(blocking=False):
                    self._call()
                    break
                if time.monotonic() >= limit and self._claimed.acquire(blocking=False):
                    raise stuck
                await asyncio.wait([self._arrived], timeout=pause)
                pause = min(2 * pause, 0.1)
        except asyncio.CancelledError:
            self._claimed.acquire(blocking=False)
            raise
        if self._error is not None:
            raise self._error
        return self._result


async def in_thread_of(
    loop: asyncio.AbstractEventLoop, function: Callable[[], T], *, timeout: float, stuck: Exception
) -> T:
    """Runs function() in the thread of that loop, or here if the loop doesn't run. Raises
    `stuck` after `timeout` seconds without an answer, or
    when cancelled, CancelledError: then function() won't be run.
    """
    if loop is asyncio.get_running_loop() or not loop.is_running():
        return function()
    return await Trip(loop, function).wait(timeout, stuck)
