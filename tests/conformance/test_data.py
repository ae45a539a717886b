"""Data come back as they were written, on every kind of controller and namespace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

import nvme_async
from nvme_async.errors import InvalidField, LbaOutOfRange
from nvme_async.spec import commands

Uri = Callable[[str], str]


def pattern(nbytes: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(nbytes)


async def test_identify_and_namespaces(uri: Uri, role: str) -> None:
    async with nvme_async.open(uri(role)) as controller:
        assert controller.state == "ready"
        assert controller.identify.nn >= len(controller.namespaces) >= 1
        for nsid, namespace in controller.namespaces.items():
            assert namespace.nsid == nsid
            assert namespace.blocks == namespace.identify.nsze
            assert namespace.block_size in (512, 4096)
            assert namespace.max_blocks * namespace.block_size <= controller.options.max_transfer
    assert controller.state == "closed"


async def test_each_namespace_keeps_its_own_data(uri: Uri, role: str) -> None:
    async with nvme_async.open(uri(role)) as controller:
        written = {}
        for nsid, namespace in controller.namespaces.items():
            data = pattern(16 * namespace.block_size, nsid)
            await namespace.write(100, data)
            # The last blocks show off-by-one errors.
            await namespace.write(namespace.blocks - 16, data[::-1])
            await namespace.flush()
            written[nsid] = data
        for nsid, namespace in controller.namespaces.items():
            assert await namespace.read(100, 16) == written[nsid]
            assert await namespace.read(namespace.blocks - 16, 16) == written[nsid][::-1]


async def test_every_length_up_to_and_beyond_one_command(uri: Uri, role: str) -> None:
    """One page, two, lists of pages, and requests that take several commands."""
    async with nvme_async.open(uri(role)) as controller:
        namespace = next(iter(controller.namespaces.values()))
        size, most = namespace.block_size, namespace.max_blocks
        per_page = 4096 // size
        lengths = {1, 2, per_page, per_page + 1, 2 * per_page, 2 * per_page + 1, 3 * per_page, most - 1, most}
        lengths |= {most + 1, 2 * most, 3 * most + 1}
        for blocks in sorted(length for length in lengths if 0 < length * size <= 4 << 20):
            data = pattern(blocks * size, blocks)
            await namespace.write(7, data)
            assert await namespace.read(7, blocks) == data
            into = bytearray(len(data))
            assert await namespace.readinto(7, into) == len(data)
            assert into == data


async def test_buffers_at_every_kind_of_offset(uri: Uri, role: str) -> None:
    """PRP entries: the first may begin within a page, all others are whole pages (Base 2.0,
    4.1.1).
    """
    async with nvme_async.open(uri(role)) as controller:
        namespace = next(iter(controller.namespaces.values()))
        size, most = namespace.block_size, namespace.max_blocks
        for offset in (0, 4, 512, 2048, 4092):
            for blocks in sorted({1, 4096 // size, 8192 // size, 12288 // size, min(most, (256 << 10) // size)}):
                nbytes = blocks * size
                with controller.alloc(nbytes + offset) as buffer:
                    data = pattern(nbytes, offset + blocks)
                    buffer[offset : offset + nbytes] = data
                    await namespace.write(64, buffer[offset : offset + nbytes])
                    assert await namespace.read(64, blocks) == data
                    buffer[offset : offset + nbytes] = bytes(nbytes)
                    await namespace.readinto(64, buffer[offset : offset + nbytes])
                    assert bytes(buffer[offset : offset + nbytes]) == data
                    assert bytes(buffer[:offset]) == bytes(offset)


async def test_registered_memory_is_accessed_in_place(uri: Uri, role: str) -> None:
    async with nvme_async.open(uri(role)) as controller:
        namespace = next(iter(controller.namespaces.values()))
        nbytes = 64 << 10
        memory = bytearray(nbytes + 4096)
        with controller.register(memory) as registration:
            assert registration.zero_copy or not controller.device.direct
            view = memoryview(memory)
            for offset in (0, 512, 4096):
                data = pattern(nbytes, offset)
                view[offset : offset + nbytes] = data
                await namespace.write(0, view[offset : offset + nbytes])
                view[offset : offset + nbytes] = bytes(nbytes)
                await namespace.readinto(0, view[offset : offset + nbytes])
                assert view[offset : offset + nbytes] == data


async def test_many_at_once_in_random_order(uri: Uri, role: str) -> None:
    """More commands than the queue holds, reads and writes mixed, each block with its own
    content.
    """
    async with nvme_async.open(uri(role), queue_entries=32) as controller:
        namespace = next(iter(controller.namespaces.values()))
        order = list(range(400))
        random.Random(1).shuffle(order)
        contents = {lba: pattern(namespace.block_size, lba) for lba in order}
        await asyncio.gather(*(namespace.write(lba, contents[lba]) for lba in order))
        random.Random(2).shuffle(order)
        read = await asyncio.gather(*(namespace.read(lba) for lba in order))
        assert dict(zip(order, read, strict=True)) == contents


@pytest.mark.parametrize("mode", ["interrupt", "adaptive", "poll"])
async def test_every_way_to_wait(uri: Uri, mode: str) -> None:
    async with nvme_async.open(uri("plain"), mode=mode) as controller:
        namespace = controller.namespaces[1]
        for number in range(50):
            data = pattern(4096, number)
            await namespace.write(number * 8, data)
            assert await namespace.read(number * 8, 8) == data
        await asyncio.gather(*(namespace.read(number) for number in range(200)))


async def test_zeroes_and_deallocated_blocks(uri: Uri, role: str) -> None:
    async with nvme_async.open(uri(role)) as controller:
        for namespace in controller.namespaces.values():
            data = pattern(64 * namespace.block_size, 3)
            await namespace.write(0, data)
            await namespace.write_zeroes(8, 16)
            expected = bytearray(data)
            expected[8 * namespace.block_size : 24 * namespace.block_size] = bytes(16 * namespace.block_size)
            assert await namespace.read(0, 64) == expected
            await namespace.deallocate([(0, 4), (40, 8)])
            # The controller decides what deallocated blocks read as; the others are unchanged.
            assert (await namespace.read(4, 36)) == expected[4 * namespace.block_size : 40 * namespace.block_size]
            assert (await namespace.read(48, 16)) == expected[48 * namespace.block_size :]


@pytest.mark.usefixtures("provoked")
async def test_compare_tells_equal_from_different(uri: Uri) -> None:
    async with nvme_async.open(uri("plain")) as controller:
        namespace = controller.namespaces[1]
        data = pattern(4096, 5)
        await namespace.write(0, data)
        await namespace.compare(0, data)
        with pytest.raises(nvme_async.CompareFailure):
            await namespace.compare(0, bytes(4096))


async def test_a_refusal_by_the_controller_is_an_exception(uri: Uri) -> None:
    async with nvme_async.open(uri("plain")) as controller:
        namespace = controller.namespaces[1]
        with pytest.raises(LbaOutOfRange, match="LBA out of range"):
            await namespace.read(namespace.blocks, 1)
        assert len(await namespace.read(namespace.blocks - 1, 1)) == namespace.block_size


@pytest.mark.usefixtures("provoked")
async def test_admin_errors_leave_the_controller_working(uri: Uri) -> None:
    async with nvme_async.open(uri("plain")) as controller:
        with pytest.raises(InvalidField):
            await controller.admin(commands.identify(cns=0x55))
        assert await controller.namespaces[1].read(0)
