"""Waiting for long operations, and reporting their progress."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from nvme_async.errors import CommandError, CommandTimeout

T = TypeVar("T")
Progress = Callable[[float], object]

DAY = 86400.0
"""The default limit of an operation in seconds."""
INTERVAL = 0.5
"""Seconds between two progress checks."""


async def until(
    look: Callable[[], Awaitable[float | None]],
    what: str,
    *,
    progress: Progress | None,
    interval: float,
    timeout: float,
) -> None:
    """Calls `look()` until it returns None, when the operation is over; other results are the
    progress. CommandTimeout after `timeout` seconds; the operation continues.
    """
    try:
        async with asyncio.timeout(timeout) as limit:
            while (done := await look()) is not None:
                if progress is not None:
                    progress(done)
                await asyncio.sleep(interval)
    except TimeoutError:
        if limit.expired():
            raise CommandTimeout(
                f"{what} has not finished within {timeout:g} s; it continues in the controller"
            ) from None
        raise
    if progress is not None:
        progress(1.0)


async def watched(
    operation: Awaitable[T],
    look: Callable[[], Awaitable[float | None]],
    what: str,
    *,
    progress: Progress | None,
    interval: float,
    timeout: float,
) -> T:
    """The result of a command that completes at the end of the operation, with the progress
    meanwhile.

    CommandTimeout after `timeout` seconds. If the caller is cancelled, or the time is over, the
    command stays with the controller, which can't be stopped.
    """
    task = asyncio.ensure_future(operation)
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    try:
        while True:
            left = end - loop.time()
            done, _ = await asyncio.wait({task}, timeout=max(0.0, min(interval, left)))
            if done:
                break
            if left <= 0:
                raise CommandTimeout(f"{what} has not finished within {timeout:g} s; it continues in the controller")
            if progress is not None:
                try:
                    fraction = await look()
                except CommandError:
                    continue  # it can't report it just now
                if fraction is not None and not task.done():
                    progress(fraction)
        result = task.result()
    finally:
        if not task.done():
            task.cancel()
    if progress is not None:
        progress(1.0)
    return result
