"""What type checkers must accept without a word."""

from __future__ import annotations

import array
import asyncio
import mmap

import numpy as np

import nvme_async
from nvme_async import AsyncNamespace, Controller, DriverOptions, ManagedNamespace, Many, Namespace
from nvme_async.spec import commands


async def options() -> None:
    fast: DriverOptions = {"mode": "poll", "spin_us": 5.0}
    async with nvme_async.open("emulated:", keepalive=True, keeper="none", **fast) as controller:
        assert isinstance(controller, Controller)
    controller = await nvme_async.open("emulated:")
    await controller.close()
    async with nvme_async.Manager(workers=1, hotplug="off", **fast) as manager:
        await manager.load("emulated:", pool_pages="off", latency=True)


async def tasks(ns: Namespace) -> bytes:
    task: asyncio.Task[bytes] = asyncio.create_task(ns.read(0))
    async with asyncio.TaskGroup() as group:
        group.create_task(ns.write(0, b""))
        group.create_task(ns.flush())
        length: asyncio.Task[int] = group.create_task(ns.readinto(0, bytearray(4096)))
    first, second = await asyncio.gather(ns.read(0), ns.readinto(1, bytearray(512)))
    print(length.result(), second)
    last: bytes = await asyncio.wait_for(ns.read(1), 1)
    return last + first + await task


async def buffers(ns: AsyncNamespace, controller: Controller) -> None:
    for memory in (b"", bytearray(8), memoryview(b""), array.array("Q"), mmap.mmap(-1, 4096), controller.alloc(4096)):
        await ns.write(0, memory)
    await ns.readinto(0, np.zeros(512, np.uint8))
    many: Many[bytearray] = await ns.read_many([1, 2, 3])
    many.data.append(1)
    into = np.zeros((3, 4096), np.uint8)
    filled = await ns.read_many(np.arange(3), into)
    filled.data.fill(0)
    await ns.readv([bytearray(8), into], 3)
    results = await ns.submit([commands.flush(1)])
    print([result.status for result in results if isinstance(result, nvme_async.Completion)])


async def either(plain: Namespace, managed: ManagedNamespace) -> None:
    namespaces: list[AsyncNamespace] = [plain, managed]
    for ns in namespaces:
        async with ns.stream(chunk=1 << 20) as chunks:
            async for chunk in chunks:
                print(chunk.hex())
        async with ns.file() as file:
            print((await file.read(100)).hex(), await file.tell(), ns.nbytes)
