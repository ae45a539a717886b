"""Opening, closing, resetting, several controllers and several event loops."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import nvme_async
from nvme_async.errors import QueueShutdown

Uri = Callable[[str], str]


async def test_repeated_opening_and_closing(uri: Uri) -> None:
    place = uri("plain")
    if place.startswith("vfio-user:"):
        pytest.skip("QEMU's vfio-user server ends with its first client")
    for _ in range(5):
        async with nvme_async.open(place) as controller:
            assert len(await controller.namespaces[1].read(0)) == 512
        with pytest.raises(QueueShutdown):
            await controller.namespaces[1].read(0)


async def test_two_controllers_at_once_keep_their_own_data(uri: Uri) -> None:
    async with nvme_async.open(uri("plain")) as first, nvme_async.open(uri("second")) as second:

        async def work(namespace: nvme_async.Namespace, worker: int) -> None:
            numbers = random.Random(f"{namespace.controller.uri} {worker}")
            for _ in range(30):
                data = numbers.randbytes(8 * namespace.block_size)
                lba = worker * 8000 + numbers.randrange(1000) * 8
                await namespace.write(lba, data)
                assert await namespace.read(lba, 8) == data

        both = (first.namespaces[1], second.namespaces[1])
        await asyncio.gather(*(work(namespace, worker) for namespace in both for worker in range(4)))


async def test_a_reset_under_load_loses_nothing(uri: Uri) -> None:
    async with nvme_async.open(uri("plain")) as controller:
        namespace = controller.namespaces[1]
        blocks = [random.Random(number).randbytes(4096) for number in range(64)]

        async def work(number: int) -> None:
            for _ in range(5):
                await namespace.write(number * 8, blocks[number])
                assert await namespace.read(number * 8, 8) == blocks[number]

        tasks = [asyncio.ensure_future(work(number)) for number in range(64)]
        await asyncio.sleep(0.01)
        await controller.reset()
        await asyncio.gather(*tasks)
        assert controller.resets == 1


async def test_cancelled_commands_do_not_affect_others(uri: Uri) -> None:
    async with nvme_async.open(uri("plain"), mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        data = random.Random(9).randbytes(128 << 10)
        await namespace.write(0, data)
        for number in range(30):
            tasks = [asyncio.ensure_future(namespace.read(0, 256)) for _ in range(8)]
            await asyncio.sleep(0)
            for task in tasks[:: 1 + number % 3]:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, asyncio.CancelledError) or result == data


def run_loops(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Runs `count` threads with one event loop each at the same time."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        async def main() -> None:
            await work(number)

        try:
            asyncio.run(main())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


async def on_loops(controller: Any, count: int) -> None:
    namespace = controller.namespaces[1]

    async def work(number: int) -> None:
        numbers = random.Random(number)
        base = 4096 * (1 + number)
        for _ in range(20):
            data = numbers.randbytes(8 * namespace.block_size)
            lba = base + numbers.randrange(256) * 8
            await namespace.write(lba, data)
            assert await namespace.read(lba, 8) == data

    await asyncio.to_thread(run_loops, count, work)


async def test_each_event_loop_has_its_own_queue_pair(uri: Uri) -> None:
    async with nvme_async.open(uri("plain"), mode="interrupt") as controller:
        await on_loops(controller, 3)
        pairs = controller.inspect()["io_queues"]
        assert [pair["qid"] for pair in pairs][:1] == [1]
        assert controller.queues.shared == 0


@pytest.mark.parametrize("role", ["one-queue", "one-vector"])
async def test_a_controller_with_one_queue_or_vector_serves_many_loops(uri: Uri, role: str) -> None:
    async with nvme_async.open(uri(role), mode="interrupt") as controller:
        await on_loops(controller, 3)
        if role == "one-queue":
            assert controller.queues.shared == 3
