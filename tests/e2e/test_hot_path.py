"""What the hot path guarantees besides speed: doorbells, copies, and turns for all other tasks on
the loop.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

import nvme_async
from nvme_async.keepalive.controller import Controller

EAGER_IN_A_ROW = 32  # ext/hotpath/waiting.h


def queue(controller: Controller) -> dict[str, Any]:
    (found,) = controller.inspect()["io_queues"]
    return dict(found)


@pytest.mark.parametrize(
    ("uri", "options", "used"),
    [("dbbuf=on", {}, True), ("dbbuf=off", {}, False), ("dbbuf=on", {"shadow_doorbells": False}, False)],
    ids=["offered", "not offered", "not wanted"],
)
async def test_doorbell_buffers_are_used_if_offered(uri: str, options: dict[str, Any], used: bool) -> None:
    async with nvme_async.open(f"emulated:size=16MiB,{uri}", **options) as controller:
        namespace = controller.namespaces[1]
        for lba in range(200):
            await namespace.write(lba, lba.to_bytes(2, "little") * (namespace.block_size // 2))
        got = await asyncio.gather(*(namespace.read(lba) for lba in range(200)))
        assert got == [lba.to_bytes(2, "little") * (namespace.block_size // 2) for lba in range(200)]
        state = queue(controller)
        assert state["shadow_doorbells"] is used
        registers = state["sq"]["doorbells"] + state["cq"]["doorbells"]
        if used:
            # The controller polls the buffers while there is work: most doorbells never reach a
            # register.
            assert state["doorbells_saved"] > 0
        else:
            assert state["doorbells_saved"] == 0
            assert registers > 200  # each lone write is rung at once
        assert state["doorbells_per_command"] == pytest.approx(registers / state["sq"]["submitted"], abs=0.001)


async def test_read_copies_once_and_readinto_never() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        namespace = controller.namespaces[1]
        own = bytearray(namespace.block_size)
        with controller.alloc(namespace.block_size) as buffer:
            await namespace.write(7, b"\x5a" * namespace.block_size)
            before = queue(controller)["bounced"]
            for _ in range(10):
                await namespace.readinto(7, buffer)
            assert queue(controller)["bounced"] == before
            assert bytes(buffer) == b"\x5a" * namespace.block_size
            for _ in range(10):
                assert await namespace.read(7) == b"\x5a" * namespace.block_size
            assert queue(controller)["bounced"] == before + 10
            await namespace.readinto(7, own)
            assert queue(controller)["bounced"] == before + 11


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_many_readers_let_other_tasks_run(run: Callable[..., Any]) -> None:
    """However fast the controller is, each reader gets at most EAGER_IN_A_ROW results per
    event-loop iteration, then all others have their turn.
    """
    readers = 8

    async def storm() -> None:
        async with nvme_async.open("emulated:size=64MiB,medium=null") as controller:
            namespace = controller.namespaces[1]
            done = 0

            async def reader() -> None:
                nonlocal done
                for lba in range(2000):
                    await namespace.read(lba)
                    done += 1

            tasks = [asyncio.create_task(reader()) for _ in range(readers)]
            most = before = 0
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                most, before = max(most, done - before), done
            await asyncio.gather(*tasks)
            assert done == readers * 2000
            assert most <= readers * (EAGER_IN_A_ROW + 2)

    run(storm())


async def test_consecutive_batches_let_other_tasks_run() -> None:
    """A batch yields after 100 us; so do consecutive short ones that never have to wait."""
    async with nvme_async.open("emulated:size=64MiB,medium=null") as controller:
        namespace = controller.namespaces[1]
        lbas = array("Q", range(500))
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        with controller.alloc(namespace.block_size * len(lbas)) as buffer:
            task = asyncio.create_task(other())
            for _ in range(200):
                result = await namespace.read_many(lbas, into=buffer)
                assert result.failed == 0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        # On any machine, 100 000 commands take a hundred times as long as other tasks may be
        # delayed.
        assert turns >= 20


async def test_depth_is_limited_by_the_queue() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        namespace = controller.namespaces[1]
        for depth in (4097, 1 << 40):
            assert len(await namespace.read_many(range(300), depth=depth)) == 300
