"""Work that has to be done in the thread of another event loop, which may be stuck, not run, or end
meanwhile.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

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


async def in_thread_of(
    loop: asyncio.AbstractEventLoop, function: Callable[[], T], *, timeout: float, stuck: Exception
) -> T:
    """Runs function() in the thread of that loop; here, if it doesn't run. Raises `stuck` after
    `timeout` seconds without an answer, or
    when cancelled, CancelledError: then function() won't be run.
    """
    if loop is asyncio.get_running_loop() or not loop.is_running():
        return function()
    claimed = threading.Lock()  # by who runs it, or sees to it that nobody does
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        if claimed.acquire(blocking=False):
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

    try:
        loop.call_soon_threadsafe(run)
    except RuntimeError:  # closed meanwhile
        return function()
    waiter = asyncio.wrap_future(done)
    limit, pause = time.monotonic() + timeout, 0.001
    try:
        while not waiter.done():
            await asyncio.wait([waiter], timeout=pause)
            pause = min(2 * pause, 0.1)
            if waiter.done():
                break
            if not loop.is_running() and claimed.acquire(blocking=False):
                return function()
            if time.monotonic() >= limit and claimed.acquire(blocking=False):
                raise stuck
    except asyncio.CancelledError:
        claimed.acquire(blocking=False)
        raise
    return waiter.result()
