"""Deliberate mistakes. Each line with an ignore comment has one, which mypy --strict and pyright
strict must report: an ignore that is not needed is an error (test_typing.py, pyrightconfig.json).
"""

from __future__ import annotations

import asyncio

import nvme_async
from nvme_async import AsyncNamespace, Controller, Manager, Namespace


async def opening() -> None:
    nvme_async.open("emulated:", mode="polling")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nvme_async.open("emulated:", mod="poll")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nvme_async.open("emulated:", queue_entries="64")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nvme_async.open("emulated:", keepalive=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nvme_async.open("emulated:", "poll")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    nvme_async.open("emulated:", hugepages=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    nvme_async.take_over("/run/x", keeper_wait=1.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    async with nvme_async.open("emulated:") as controller:
        controller.namespace[1]  # type: ignore[attr-defined]  # pyright: ignore


async def managing() -> None:
    Manager(mode="polling")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Manager(hotplug="on")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Manager(spin=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    async with Manager() as manager:
        await manager.load("emulated:", retry=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        handle = await manager.namespace("emulated:", "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await handle.write(0, "text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def moving(ns: Namespace) -> None:
    await ns.write(0, "text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ns.write(b"data", 0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ns.readinto(0, 4096)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ns.pwrite("text", 0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ns.writev(["a", "b"], 0)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await ns.read(0, protect="host")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ns.read_many([0.5])  # type: ignore[list-item]  # pyright: ignore
    await ns.submit(b"\2" * 64)  # type: ignore[arg-type]  # pyright: ignore
    text: str = await ns.read(0)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    task: asyncio.Task[str] = asyncio.create_task(ns.read(0))  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    print(text, task)
    ns.write(0, b"")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]


async def streaming(ns: AsyncNamespace) -> None:
    async for chunk in ns.stream(chunk="1 MiB"):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        chunk.encode()  # type: ignore[attr-defined]  # pyright: ignore
    async with ns.file() as file:
        await file.write("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def memory(controller: Controller) -> None:
    controller.alloc("4 KiB")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    controller.register("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    controller.alloc(4096)[0:1] = "x"  # type: ignore[call-overload]  # pyright: ignore
    await controller.admin(b"\6" * 64)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
