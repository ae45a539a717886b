"""Awaiters that come back in the next event-loop iteration: one callback of the loop resumes all of
them (ext/hotpath/turns.pxi), and each task notices nothing of it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from driving import faults

import nvme_async
from nvme_async.emulator import FOREVER

N = 16
WHO: contextvars.ContextVar[int] = contextvars.ContextVar("WHO", default=-1)

runs = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def python_tasks(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
    return asyncio.tasks._PyTask(coroutine, loop=loop, **options)  # type: ignore[attr-defined]


async def check(work: Callable[[Any, int], Coroutine[Any, Any, None]]) -> None:
    """N tasks do it at the same time."""
    async with nvme_async.open("emulated:size=16MiB") as controller:
        await asyncio.gather(*(asyncio.create_task(work(controller.namespaces[1], i)) for i in range(N)))


async def write_and_read(namespace: Any, i: int) -> None:
    task = asyncio.current_task()
    WHO.set(i)
    for turn in range(20):
        data = bytes([i, turn]) * (namespace.block_size // 2)
        await namespace.write(i, data)
        assert await namespace.read(i) == data
        assert WHO.get() == i
        assert asyncio.current_task() is task


@runs
@pytest.mark.parametrize("tasks", ["C", "Python", "debug"])
def test_each_task_keeps_context_and_identity(run: Callable[..., Any], tasks: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        if tasks == "Python":
            loop.set_task_factory(python_tasks)
        loop.set_debug(tasks == "debug")
        await check(write_and_read)

    run(main())


@runs
def test_a_cancelled_task_is_resumed_once_and_the_others_get_their_data(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with nvme_async.open("emulated:size=16MiB") as controller:
            namespace = controller.namespaces[1]
            blocks = [bytes([i + 1]) * namespace.block_size for i in range(N)]
            await asyncio.gather(*(namespace.write(i, blocks[i]) for i in range(N)))
            for turn in range(100):
                ends: list[int] = []

                async def reader(i: int, ends: list[int] = ends) -> bytes:
                    try:
                        return bytes(await namespace.read(i))
                    finally:
                        ends.append(i)

                tasks = [asyncio.create_task(reader(i)) for i in range(N)]
                for _ in range(1 + turn % 3):
                    await asyncio.sleep(0)
                for task in tasks[turn % 2 :: 2]:
                    task.cancel()
                found = await asyncio.gather(*tasks, return_exceptions=True)
                assert sorted(ends) == list(range(N))
                for i, result in enumerate(found):
                    assert result == blocks[i] or (i % 2 == turn % 2 and isinstance(result, asyncio.CancelledError))

    run(main())


@runs
def test_wait_for_shield_and_groups_work_around_it(run: Callable[..., Any]) -> None:
    async def work(namespace: Any, i: int) -> None:
        for _ in range(10):
            assert len(await asyncio.wait_for(namespace.read(i), 600)) == namespace.block_size
            assert len(await asyncio.shield(namespace.read(i))) == namespace.block_size
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(namespace.read(i + k)) for k in range(3)]
            assert all(len(task.result()) == namespace.block_size for task in tasks)

    run(check(work))


def test_all_awaiters_of_an_iteration_share_a_callback_of_the_loop() -> None:
    """Callbacks of the loop for an iteration of commands: far fewer than one each."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        planned = 0

        def call_soon(callback: Callable[..., Any], *arguments: Any, context: Any = None) -> asyncio.Handle:
            nonlocal planned
            planned += 1
            return plain(callback, *arguments, context=context)

        async with nvme_async.open("emulated:size=16MiB", mode="poll") as controller:
            namespace = controller.namespaces[1]
            faults(controller).add(queue="io", opcode=2, delay=FOREVER)
            plain = loop.call_soon
            tasks = [asyncio.create_task(namespace.read(i)) for i in range(N)]
            await asyncio.sleep(0)
            waiters = [task._fut_waiter for task in tasks if not task.done()]  # type: ignore[attr-defined]
            loop.call_soon = call_soon  # type: ignore[method-assign]
            try:
                await asyncio.sleep(0)
            finally:
                del loop.call_soon  # type: ignore[attr-defined]
                faults(controller).clear()
                faults(controller).release()
            assert all(len(block) == namespace.block_size for block in await asyncio.gather(*tasks))
        assert len([waiter for waiter in waiters if type(waiter) is asyncio.Future]) >= N - 3
        assert planned < N

    asyncio.run(main())


def test_one_that_ends_the_loops_run_leaves_the_others_to_be_resumed() -> None:
    loop = asyncio.new_event_loop()

    async def reader(namespace: Any, i: int) -> bytes:
        data = bytes(await namespace.read(i))
        if i == 3:
            raise KeyboardInterrupt
        return data

    async def main(controller: Any, tasks: list[asyncio.Task[bytes]]) -> None:
        tasks += [asyncio.create_task(reader(controller.namespaces[1], i)) for i in range(N)]
        await asyncio.wait(tasks)

    async def results(tasks: list[asyncio.Task[bytes]]) -> list[bytes | BaseException]:
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        opened = nvme_async.open("emulated:size=16MiB")
        controller = loop.run_until_complete(opened.__aenter__())
        tasks: list[asyncio.Task[bytes]] = []
        readers = loop.create_task(main(controller, tasks))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(readers)
        found = loop.run_until_complete(results(tasks))
        assert isinstance(found.pop(3), KeyboardInterrupt)
        assert found == [bytes(controller.namespaces[1].block_size)] * (N - 1)
        loop.run_until_complete(readers)
        loop.run_until_complete(opened.__aexit__(None, None, None))
    finally:
        loop.close()
