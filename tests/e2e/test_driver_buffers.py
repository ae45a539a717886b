"""The kinds of data memory: the driver's own, the application's, registered, aligned or not, with
every form of PRPs.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import FAST, eventually, faults, pattern, within

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.emulator import FOREVER
from nvme_async.errors import ConfigurationError, OutOfDmaMemory
from nvme_async.keepalive.controller import Controller

PAGE = 4096


def bounced(controller: Controller) -> int:
    return sum(queue["bounced"] for queue in controller.inspect()["io_queues"])


def mapped(nbytes: int) -> mmap.mmap:
    """Memory that even a process without capabilities can pass to a peer: a shared mapping of an
    open file.
    """
    fd = os.memfd_create("shared")
    try:
        os.truncate(fd, nbytes)
        return mmap.mmap(fd, nbytes)  # which keeps its own descriptor
    finally:
        os.close(fd)


@pytest.fixture
def shared() -> Iterator[mmap.mmap]:
    area = mapped(4 << 20)
    yield area
    area.close()


# -- PRPs ------------------------------------------------------------------------------------------


@pytest.mark.both_loops
@pytest.mark.options(max_transfer=16 << 20)
async def test_transfers_with_every_form_of_prps(controller: Controller, ns: Namespace) -> None:
    """One page, two pages, or a list, starting at any dword-aligned offset in a page, up to the
    controller's longest transfer.
    """
    size, most = ns.block_size, ns.max_blocks * ns.block_size
    rng = random.Random(1)
    offsets = [0, 4, 8, 512, 2048, PAGE - 512, PAGE - 4]
    lengths = {
        size,
        2 * size,
        PAGE,
        PAGE + size,
        2 * PAGE,
        2 * PAGE + size,
        3 * PAGE,
        64 << 10,
        most // 2,
        most - size,
        most,
    }
    with controller.alloc(most + 2 * PAGE) as buffer:
        data = np.asarray(buffer)
        for nbytes in sorted(n // size * size for n in lengths if size <= n <= most):
            for offset in offsets if nbytes < 256 << 10 else rng.sample(offsets, 2):
                want = np.frombuffer(pattern(nbytes, offset), dtype=np.uint8)
                data[:] = 0xEE
                data[offset : offset + nbytes] = want
                lba = rng.randrange(ns.blocks - nbytes // size)
                await ns.write(lba, data[offset : offset + nbytes])
                data[:] = 0xDD
                assert await ns.readinto(lba, data[offset : offset + nbytes]) == nbytes
                assert (data[offset : offset + nbytes] == want).all(), (nbytes, offset)
                assert (data[:offset] == 0xDD).all()
                assert (data[offset + nbytes :] == 0xDD).all()
        assert bounced(controller) == 0
        del data


@pytest.mark.both_loops
async def test_bounced_transfers_of_every_size(controller: Controller, ns: Namespace) -> None:
    size = ns.block_size
    rng = random.Random(2)
    for _ in range(40):
        blocks = rng.choice([1, 2, 3, 7, 8, 9, rng.randrange(1, ns.max_blocks + 1), ns.max_blocks])
        lba = rng.randrange(ns.blocks - blocks)
        misaligned = bytearray(blocks * size + 7)
        at = rng.randrange(8)
        view = memoryview(misaligned)[at : at + blocks * size]
        view[:] = pattern(blocks * size, at)
        await ns.write(lba, view)
        assert await ns.read(lba, blocks) == pattern(blocks * size, at)
        view[:] = bytes(blocks * size)
        assert await ns.readinto(lba, view) == blocks * size
        assert view == pattern(blocks * size, at)
        assert misaligned[:at] == bytes(at)
    assert bounced(controller) > 0


async def test_pool_memory_that_is_not_dword_aligned_is_bounced(controller: Controller, ns: Namespace) -> None:
    size = ns.block_size
    with controller.alloc(size + PAGE) as buffer, memoryview(buffer) as whole:
        for at in (1, 2, 3, 5):
            before = bounced(controller)
            whole[at : at + size] = pattern(size, at)
            await ns.write(1, whole[at : at + size])
            assert bounced(controller) == before + 1
            assert await ns.read(1) == pattern(size, at)


# -- kinds of buffers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: np.frombuffer(data, dtype=np.uint8),
        lambda data: np.frombuffer(data, dtype=np.uint64).reshape(-1, 8),
        lambda data: np.frombuffer(data, dtype=">u4"),
        lambda data: np.frombuffer(data, dtype=[("a", "<u4"), ("b", "<f4")]),
        lambda data: np.frombuffer(data, dtype=np.float32),
        lambda data: np.frombuffer(data, dtype=np.uint8)[: len(data)].copy(order="F"),
    ],
    ids=["bytes", "bytearray", "memoryview", "uint8", "2-D", "big-endian", "structured", "float", "copy"],
)
async def test_every_kind_of_buffer_is_accepted(
    controller: Controller, ns: Namespace, make: Callable[[bytes], Any]
) -> None:
    for blocks in (1, ns.max_blocks + 3):  # the last one is split
        data = pattern(blocks * ns.block_size)
        await ns.write(2, make(data))
        assert await ns.read(2, blocks) == data
        await ns.compare(2, make(data))
        assert await ns.pwrite(make(data), 2 * ns.block_size) == len(data)


@pytest.mark.parametrize("dtype", ["u1", "<u8", ">u2", [("a", "<u4"), ("b", "<f4")]], ids=str)
async def test_reading_into_arrays(ns: Namespace, dtype: Any) -> None:
    for blocks in (4, ns.max_blocks + 4):
        data = pattern(blocks * ns.block_size)
        await ns.write(0, data)
        array = np.zeros(len(data) // np.dtype(dtype).itemsize, dtype=dtype)
        assert await ns.readinto(0, array) == len(data)
        assert array.tobytes() == data
        square = np.zeros((4, array.size // 4), dtype=dtype)
        await ns.readinto(0, square)
        assert square.tobytes() == data
        await ns.readinto(1, square[1:3])  # contiguous rows
        assert square[1:3].tobytes() == data[ns.block_size : ns.block_size + square[1:3].nbytes]


@pytest.mark.parametrize(
    "make",
    [
        lambda size: np.zeros((size, 4), dtype=np.uint8)[:, 1],
        lambda size: np.zeros(4 * size, dtype=np.uint8)[::2],
        lambda size: np.zeros((size, 8), dtype=np.uint8, order="F"),
        lambda size: memoryview(bytearray(2 * size))[::2],
        lambda size: memoryview(bytearray(size))[::-1],
    ],
    ids=["column", "every second", "Fortran", "memoryview", "reversed"],
)
async def test_buffers_that_are_not_contiguous_are_refused(ns: Namespace, make: Callable[[int], Any]) -> None:
    buffer = make(ns.block_size)
    for call in (
        lambda: ns.write(0, buffer),
        lambda: ns.readinto(0, buffer),
        lambda: ns.compare(0, buffer),
        lambda: ns.pwrite(buffer, 0),
    ):
        with pytest.raises(ValueError, match=r"of shape \(.*\) with strides \(.*\) is not C-contiguous"):
            await call()
    with pytest.raises(ValueError, match="not C-contiguous"):
        await ns.write_many([0], buffer)
    with pytest.raises(ValueError, match="not C-contiguous"):
        ns.controller.register(buffer)


async def test_read_only_buffers_can_be_written_but_not_read_into(ns: Namespace) -> None:
    array = np.frombuffer(pattern(ns.block_size), dtype=np.uint8)
    assert not array.flags.writeable
    await ns.write(0, array)
    with pytest.raises(ValueError, match="the ndarray is read-only, and data were to be read into it"):
        await ns.readinto(0, array)
    with pytest.raises(ValueError, match="the memoryview is read-only"):
        await ns.readinto(0, memoryview(pattern(2 * ns.max_blocks * ns.block_size)))
    with pytest.raises(ValueError, match="the ndarray is read-only"):
        await ns.read_many([0], array)


# -- memory that the device can access


@pytest.mark.both_loops
async def test_allocated_memory(controller: Controller, ns: Namespace) -> None:
    size = ns.block_size
    buffer = controller.alloc(8 * size, tag=42)
    assert len(buffer) == 8 * size
    assert bytes(buffer) == bytes(8 * size)
    buffer[:] = pattern(8 * size)
    await ns.write(0, buffer)
    await ns.write(8, buffer[2 * size : 3 * size])
    array = np.asarray(buffer)
    array[:] = 0
    assert await ns.readinto(8, array[size : 2 * size]) == size
    assert bytes(buffer[size : 2 * size]) == pattern(8 * size)[2 * size : 3 * size]
    assert bounced(controller) == 0
    slots = [slot for pool in controller.inspect()["memory"]["pools"] for slot in pool["slots"]]
    assert [slot["tag"] for slot in slots if slot["owner"] == "application"] == [42]
    del array
    buffer.free()
    with pytest.raises(ValueError, match="freed"):
        await ns.write(0, buffer)
    with pytest.raises(ValueError, match="nbytes is 0, must be 1 or more"):
        controller.alloc(0)


async def test_memory_grows_with_demand(controller: Controller, ns: Namespace) -> None:
    buffers = [controller.alloc(3 << 20) for _ in range(8)]  # the pool has 8 MiB
    assert len(controller.inspect()["memory"]["pools"]) > 1
    for i, buffer in enumerate(buffers):
        buffer[: ns.block_size] = bytes([i]) * ns.block_size
        await ns.write(i, buffer[: ns.block_size])
    for i in range(8):
        assert (await ns.read(i))[0] == i
    assert bounced(controller) == 8  # the reads
    with pytest.raises((OutOfDmaMemory, ValueError, OverflowError)):
        controller.alloc(1 << 62)
    for buffer in buffers:
        buffer.free()


async def test_a_freed_buffer_keeps_its_pages_until_its_command_completes(failing: Controller) -> None:
    ns = failing.namespaces[1]
    rule = faults(failing).add(queue="io", opcode=0x02, delay=FOREVER)
    buffer = failing.alloc(4 * PAGE)
    at = buffer.iova
    task = asyncio.create_task(ns.readinto(0, buffer))
    await eventually(lambda: rule.hits)
    task.cancel()
    buffer.free()
    others = [failing.alloc(PAGE) for _ in range(16)]
    assert all(not at <= other.iova < at + 4 * PAGE for other in others)
    (held,) = faults(failing).outstanding()
    assert [(r.iova, r.nbytes) for r in held.ranges if r.write] == [(at + i * PAGE, PAGE) for i in range(4)]
    faults(failing).release()
    await eventually(lambda: not failing.queues.io[asyncio.get_running_loop()].hot.n_outstanding)
    del buffer
    again = failing.alloc(4 * PAGE)
    assert again.iova == at
    for other in [*others, again]:
        other.free()


@pytest.mark.both_loops
async def test_registered_memory_is_accessed_in_place(controller: Controller, ns: Namespace, shared: mmap.mmap) -> None:
    size = ns.block_size
    with controller.register(shared) as registration:
        assert registration.zero_copy
        assert registration.nbytes == len(shared)
        view = memoryview(shared)
        view[: 64 * size] = pattern(64 * size)
        await ns.write(0, view[: 64 * size])
        for at in (0, PAGE, PAGE + 512, 12):
            await ns.readinto(5, view[at : at + 3 * size])
            assert view[at : at + 3 * size] == pattern(64 * size)[5 * size : 8 * size]
        assert bounced(controller) == 0
        await ns.write(0, pattern(size))
        assert bounced(controller) == 1
        with pytest.raises(ConfigurationError, match=r"the memory at 0x[0-9a-f]+ is already registered"):
            controller.register(shared)
        view.release()
    assert controller.inspect()["memory"]["registered"] == []
    view = memoryview(shared)[:size]
    await ns.write(9, view)
    assert bounced(controller) == 2
    view.release()


async def test_anonymous_shared_memory_is_accessed_in_place_if_the_process_may_open_it(
    controller: Controller,
) -> None:
    with mmap.mmap(-1, 1 << 20) as anonymous, controller.register(anonymous) as registration:
        assert registration.zero_copy is (may_open_any_mapping() or controller.device.direct)


def may_open_any_mapping() -> bool:
    """Whether it has CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, which /proc/self/map_files
    requires.
    """
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    return bool(effective & (1 << 21 | 1 << 40))


async def test_part_of_a_mapping_can_be_registered(controller: Controller, ns: Namespace, shared: mmap.mmap) -> None:
    size = ns.block_size
    whole = memoryview(shared)
    part = whole[PAGE + 512 : PAGE + 512 + 8 * size]
    with controller.register(part) as registration:
        assert registration.zero_copy
        part[:] = pattern(8 * size)
        await ns.write(0, part)
        assert bounced(controller) == 0
        await ns.write(8, whole[:size])  # outside the registered range
        assert bounced(controller) == 1
        assert await ns.read(0, 8) == pattern(8 * size)
    part.release()
    whole.release()


async def test_private_memory_is_bounced_or_pinned(controller: Controller, ns: Namespace) -> None:
    array = np.frombuffer(bytearray(pattern(16 * PAGE)), dtype=np.uint8)
    with controller.register(array) as registration:
        assert registration.zero_copy is controller.device.direct  # VFIO pins it; it can't be passed to another process
        await ns.write(0, array)
        assert (bounced(controller) == 0) is registration.zero_copy
        array[:] = 0
        await ns.readinto(0, array)
        assert array.tobytes() == pattern(16 * PAGE)
    with pytest.raises(ConfigurationError, match="0 bytes"):
        controller.register(b"")


async def test_a_registration_lasts_until_its_commands_complete(failing: Controller, shared: mmap.mmap) -> None:
    """Closing unmaps the memory only then: its device addresses must not be reused for other memory
    before.
    """
    ns = failing.namespaces[1]
    unmapped: list[int] = []
    original = failing.device.unmap_dma

    def unmap_dma(iova: int, nbytes: int) -> None:
        unmapped.append(iova)
        original(iova, nbytes)

    failing.device.unmap_dma = unmap_dma  # type: ignore[method-assign]
    rule = faults(failing).add(queue="io", opcode=0x02, delay=FOREVER)
    await ns.write(0, pattern(512))
    registration = failing.register(shared)
    iova = registration.iova
    view = memoryview(shared)
    task = asyncio.create_task(ns.readinto(0, view[:512]))
    await eventually(lambda: rule.hits)
    registration.close()
    assert unmapped == []
    with mapped(1 << 20) as other, failing.register(other) as second:
        assert second.iova != iova
    assert iova not in unmapped
    faults(failing).release()
    assert await within(10, task) == 512
    assert view[:512] == pattern(512)
    view.release()
    with mapped(1 << 20) as other, failing.register(other):
        assert iova in unmapped


async def test_closing_the_controller_ends_its_registrations(faulty: str, shared: mmap.mmap) -> None:
    async with nvme_async.open(faulty, **FAST) as controller:
        registration = controller.register(shared)
        buffer = controller.alloc(PAGE)
        array = np.asarray(buffer)
        array[:] = 7
    assert not registration.zero_copy
    registration.close()
    assert (array == 7).all()  # views stay valid; the device can no longer access them
    del array, buffer
