"""What only our emulated controller had, with QEMU's: Scatter Gather Lists, data in a
Controller Memory Buffer, and queues there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nvme_async


def bounced(controller: nvme_async.Controller) -> int:
    queues = controller.transport.queues.all()
    total: int = sum(queue.hot.inspect()["bounced"] for queue in queues if queue.qid)  # type: ignore[attr-defined]
    return total


async def test_scattered_and_odd_buffers_are_not_copied(address: Callable[[str], str]) -> None:
    async with nvme_async.open(f"pci:{address('plain')}") as controller:
        assert controller.identify.sgls & 3 == 1
        ns = controller.namespaces[1]
        data = bytes(range(256)) * (8 * ns.block_size // 256)
        await ns.write(0, data)
        before = bounced(controller)
        with controller.alloc(64 << 10) as memory:
            sizes = [1, 510, 3 * ns.block_size, 7]
            sizes.append(len(data) - sum(sizes))
            parts = [memory[8192 * at + 3 : 8192 * at + 3 + size] for at, size in enumerate(sizes)]
            assert await ns.readv(parts, 0) == len(data)
            assert b"".join(parts) == data
            assert await ns.writev(parts, 100 * ns.block_size) == len(data)
            assert bounced(controller) == before
            for part in parts:
                part.release()
        assert await ns.read(100, 8) == data


async def test_data_in_the_controllers_memory(address: Callable[[str], str]) -> None:
    async with nvme_async.open(f"pci:{address('cmb')}") as controller:
        ns = controller.namespaces[1]
        data = bytes(range(256)) * 256
        await ns.write(0, data)
        before = bounced(controller)
        with await controller.regions.cmb() as memory:
            assert memory.nbytes == 16 << 20
            await ns.readinto(0, memory.buffer[: len(data)])
            assert memory.buffer[: len(data)] == data
            await ns.write(1000, memory.buffer[: len(data)])
            await controller.reset()
            await ns.write(2000, memory.buffer[: len(data)])
            assert bounced(controller) == before
        blocks = len(data) // ns.block_size
        assert await ns.read(1000, blocks) == data
        assert len(await ns.read(2000, blocks)) == len(data)  # the reset may have changed the buffer


async def test_submission_queues_in_the_controllers_memory(address: Callable[[str], str]) -> None:
    """QEMU's buffer is for submission queues, and not for completion queues."""
    async with nvme_async.open(f"pci:{address('cmb')}", cmb_queues="submission") as controller:
        ns = controller.namespaces[1]
        for _ in range(2):
            assert [queue["rings_in_cmb"] for queue in controller.inspect()["io_queues"]] == ["submission"]
            blocks = [bytes([at]) * ns.block_size for at in range(250)]
            await asyncio.gather(*(ns.write(at, block) for at, block in enumerate(blocks)))
            assert await asyncio.gather(*(ns.read(at) for at in range(250))) == blocks
            await controller.reset()
    async with nvme_async.open(f"pci:{address('cmb')}", cmb_queues="all") as controller:
        assert [queue["rings_in_cmb"] for queue in controller.inspect()["io_queues"]] == [""]
        assert any("not for completion queues" in reason for reason in controller.inspect()["degraded"].values())
