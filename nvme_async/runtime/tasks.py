"""A complement to asyncio: work that finishes although its awaiter is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Awaits make()'s coroutine, in a separate task, to its end; a cancellation takes effect
    afterwards.

    If that task itself is cancelled (as asyncio.run() does with every task at its end), make() is
        called once more: its coroutine must be
    able to continue from any point.
    """
    cancelled: asyncio.CancelledError | None = None
    while True:
        ending = _Ending()
        task = asyncio.ensure_future(ending.after(make))
        task.add_done_callback(ending.over)
        cancelled = await ending.wait(task) or cancelled
        if not task.cancelled():
            break
    if cancelled is not None:
        task.exception()  # the caller sees the cancellation
        raise cancelled
    return task.result()


class _Ending:
    """A wait for the end of a task, which a cancellation of the wait leaves alone. The waiter is
    woken by the task's last step: an event-loop iteration earlier than by its callbacks.
    """

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    async def after(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await make()
        finally:
            self.over()

    def over(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, task: asyncio.Future[Any]) -> asyncio.CancelledError | None:
        """Returns the cancellation of this wait, if there was one."""
        cancelled = None
        while not task.done():
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as error:
                cancelled = error
        return cancelled


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Runs function(*arguments) in a thread of the loop's executor; a cancellation takes effect
    when the thread has returned.

    So nothing is torn down under a running call. For functions that limit their own time.
    """
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    cancelled = await _settle(future)
    if cancelled is not None:
        if not future.cancelled():
            future.exception()
        raise cancelled
    return future.result()


async def _settle(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Waits until it is done; returns the cancellation of this wait, if there was one."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


def cancel_other(task: asyncio.Task[T] | None) -> asyncio.Task[T] | None:
    """Cancels the task and returns it, for its end to be awaited. None if there is none, or if it
    is the caller's own.
    """
    if task is None or task is asyncio.current_task():
        return None
    task.cancel()
    return task


async def together(parts: Iterable[Awaitable[T]]) -> list[T]:
    """Awaits all parts, also after one has failed, so that nothing continues unnoticed; then
    raises the first failure.
    """
    results = await asyncio.gather(*parts, return_exceptions=True)
    values: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
