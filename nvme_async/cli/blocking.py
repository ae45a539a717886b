"""Reads and writes of files and pipes that may never return, next to an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def beside(call: Callable[[], T]) -> T:
    """Runs call() in a thread that is abandoned if this is cancelled, and at the program's end:
    a read of a terminal, or a write into an unread pipe, ends only when the other side acts.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = call()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=work, name="file", daemon=True).start()
    return await future


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it, however little each write accepts."""
    with memoryview(data) as rest:
        at = 0
        while at < len(rest):
            at += os.write(fd, rest[at:])


def read_up_to(fd: int, nbytes: int) -> bytes:
    """`nbytes`, or less at the end. A pipe is read repeatedly."""
    parts, left = [], nbytes
    while left and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
