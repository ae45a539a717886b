"""Everything works the same with and without the internal attributes of asyncio's loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

import nvme_async
from nvme_async.runtime import loop_internals


async def exercise() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        namespace = controller.namespaces[1]
        data = [bytes([i]) * namespace.block_size for i in range(64)]
        await asyncio.gather(*(namespace.write(i, data[i]) for i in range(64)))
        assert await asyncio.gather(*(namespace.read(i) for i in range(64))) == data
        for i in range(64):
            assert await namespace.read(i) == data[i]

        async def elsewhere() -> None:
            assert await namespace.read(1) == data[1]

        await asyncio.to_thread(asyncio.run, elsewhere())


def test_asyncio_has_both_attributes() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ready = loop_internals.ready_callbacks(loop)
        assert ready is not None
        before = len(ready)
        loop.call_soon(lambda: None)
        assert len(ready) == before + 1
        assert loop_internals.shows_thread(loop)

    asyncio.run(main())


def test_uvloop_has_neither_attribute() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop_internals.ready_callbacks(loop) is None
        assert not loop_internals.shows_thread(loop)

    uvloop.run(main())


def test_attributes_with_another_meaning_are_not_used() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        thread, ready = loop._thread_id, loop._ready
        try:
            loop._thread_id = thread + 1
            assert not loop_internals.shows_thread(loop)
            loop._ready = iter(ready)
            assert loop_internals.ready_callbacks(loop) is None
        finally:
            loop._thread_id, loop._ready = thread, ready

    asyncio.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("shown", [True, False], ids=["as it is", "nothing shown"])
def test_io_works_with_and_without_the_attributes(
    monkeypatch: pytest.MonkeyPatch, shown: bool, run: Callable[..., Any]
) -> None:
    if not shown:
        monkeypatch.setattr(loop_internals, "ready_callbacks", lambda loop: None)
        monkeypatch.setattr(loop_internals, "shows_thread", lambda loop: False)
    run(exercise())


def test_requests_work_without_the_am_send_slot() -> None:
    """Does what `await` does without the am_send slot: __await__, then __next__ until
    StopIteration.
    """

    class Plain:
        """An awaitable that hides the slot."""

        def __init__(self, request: Any) -> None:
            self._request = request

        def __await__(self) -> Any:
            steps = iter(self._request)
            while True:
                try:
                    yielded = next(steps)
                except StopIteration as stop:
                    return stop.value
                yield yielded if yielded is None else None

    async def main() -> None:
        async with nvme_async.open("emulated:size=16MiB") as controller:
            namespace = controller.namespaces[1]
            data = bytes(range(256)) * (namespace.block_size // 256)
            assert await Plain(namespace.write(3, data)) is None
            assert await Plain(namespace.read(3)) == data

    asyncio.run(main())
