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
        task = asyncio.ensure_future(make())
        cancelled = await _settle(task) or cancelled
        if not task.cancelled():
            break
    if cancelled is not None:
        task.exception()  # the caller sees the cancellation
        raise cancelled
    return task.result()


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
