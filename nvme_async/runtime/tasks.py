"""What asyncio doesn't have of its own: work that comes to its end although whoever awaits it is
cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Awaits make()'s coroutine, in a task of its own, to its end; a cancellation goes through
    afterwards.

    Where that task itself is cancelled (asyncio.run() does so to every task at its end), make() is
        called once more: what it makes must be
    able to go on from wherever it was left.
    """
    cancelled: asyncio.CancelledError | None = None
    while True:
        task = asyncio.ensure_future(make())
        cancelled = await _settle(task) or cancelled
        if not task.cancelled():
            break
    if cancelled is not None:
        task.exception()  # the cancellation is what the caller sees
        raise cancelled
    return task.result()


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments) in a thread of the loop's executor; a cancellation goes through when the
    thread has come back.

    So nothing is torn down below a call that is under way. For functions which are bounded in time
    by themselves.
    """
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    cancelled = await _settle(future)
    if cancelled is not None:
        if not future.cancelled():
            future.exception()
        raise cancelled
    return future.result()


async def _settle(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Waits until it is done; the cancellation of this wait, if there was one."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def together(parts: Iterable[Awaitable[T]]) -> list[T]:
    """Awaits all parts, also after one has failed, so that nothing goes on behind the caller's
    back; then raises the first failure.
    """
    results = await asyncio.gather(*parts, return_exceptions=True)
    values: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
