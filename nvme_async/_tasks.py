"""What asyncio doesn't have of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Awaits `coroutine` to its end even if the caller is cancelled meanwhile, then lets the cancellation through."""
    task = asyncio.ensure_future(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:
            break
    if cancelled is not None:
        task.exception() if not task.cancelled() else None
        raise cancelled
    return task.result()
