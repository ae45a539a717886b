"""Every command of a namespace, on every medium, in every mode, on both event loops; and invalid
arguments.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from driving import FAST, faults, pattern, within

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.errors import (
    CommandError,
    CompareFailure,
    InvalidField,
    InvalidOpcode,
    LbaOutOfRange,
    MediaError,
    UnrecoveredReadError,
)
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature

MODES = ("adaptive", "interrupt", "poll", "hybrid")
ONCS_COMPARE, ONCS_UNCORRECTABLE, ONCS_DSM, ONCS_ZEROES, ONCS_VERIFY, ONCS_COPY = (
    1 << bit for bit in (0, 1, 2, 3, 7, 8)
)


def needs(controller: Controller, bit: int) -> None:
    if not controller.identify.oncs & bit:
        pytest.skip("the controller doesn't offer this command")


@pytest.mark.both_loops
@pytest.mark.media("512", "4096", "file512", "file4096", "null512", "null4096")
@pytest.mark.parametrize("mode", MODES)
async def test_written_data_is_read_back(address: str, mode: str) -> None:
    async with nvme_async.open(address, **FAST, mode=mode) as controller:
        ns = controller.namespaces[min(controller.namespaces)]
        size = ns.block_size
        nothing = "medium=null" in address
        for lba, blocks in [(0, 1), (1, 1), (7, 3), (ns.blocks - 1, 1), (ns.blocks - 5, 5), (100, 4096 * 8 // size)]:
            data = pattern(blocks * size, lba)
            assert await ns.write(lba, data) is None
            got = await ns.read(lba, blocks)
            assert type(got) is bytes
            assert len(got) == len(data)
            into = bytearray(len(data))
            assert await ns.readinto(lba, into) == len(data)
            assert nothing or got == into == data
        assert await ns.flush() is None
        requests = [ns.write(i, pattern(size, i)) for i in range(200)]
        await asyncio.gather(*requests)
        got_many = await asyncio.gather(*(ns.read(i) for i in range(200)))
        if not nothing:
            assert list(got_many) == [pattern(size, i) for i in range(200)]


@pytest.mark.media("file512", "file4096")
async def test_a_file_medium_holds_flushed_data(address: str) -> None:
    if "path=" not in address:
        pytest.skip("needs to see the medium")
    async with nvme_async.open(address, **FAST) as controller:
        ns = controller.namespaces[1]
        await ns.write(3, pattern(2 * ns.block_size), fua=True)
        await ns.write(9, pattern(ns.block_size, 1))
        await ns.flush()
        path = address.partition("path=")[2]
        with open(path, "rb") as file:
            file.seek(3 * ns.block_size)
            assert file.read(2 * ns.block_size) == pattern(2 * ns.block_size)
            file.seek(9 * ns.block_size)
            assert file.read(ns.block_size) == pattern(ns.block_size, 1)
    # The next process that opens the file finds it.
    async with nvme_async.open(address, **FAST) as controller:
        assert await controller.namespaces[1].read(9) == pattern(ns.block_size, 1)


@pytest.mark.both_loops
async def test_bytes_at_offsets(ns: Namespace) -> None:
    size = ns.block_size
    data = pattern(5 * size)
    assert await ns.pwrite(data, 10 * size) == len(data)
    assert await ns.pread(len(data), 10 * size) == data
    assert await ns.pread(size, 12 * size) == data[2 * size : 3 * size]
    assert await ns.pwrite(bytearray(size), 10 * size, fua=True) == size
    assert await ns.read(10) == bytes(size)


@pytest.mark.both_loops
async def test_zeroes(ns: Namespace, controller: Controller) -> None:
    needs(controller, ONCS_ZEROES)
    size = ns.block_size
    await ns.write(0, pattern(32 * size))
    await ns.write_zeroes(4, 8)
    assert await ns.read(0, 32) == pattern(32 * size)[: 4 * size] + bytes(8 * size) + pattern(32 * size)[12 * size :]
    await ns.write_zeroes(0, 2, deallocate=True, fua=True)
    assert await ns.read(0, 2) == bytes(2 * size)
    if ns.blocks > 65536 + 100:
        await ns.write(65536 + 99, pattern(size))
        await ns.write_zeroes(0, 65536 + 100)  # more than one command can cover
        assert await ns.read(65536 + 99) == bytes(size)


@pytest.mark.both_loops
async def test_deallocated_blocks_read_as_zeroes(ns: Namespace, controller: Controller) -> None:
    needs(controller, ONCS_DSM)
    size = ns.block_size
    data = pattern(64 * size)
    await ns.write(0, data)
    await ns.deallocate(8, 8)
    await ns.deallocate([(i * 2, 1) for i in range(16, 32)])
    await ns.deallocate([(i % 64, 1) for i in range(300)])  # more ranges than one command has
    await ns.deallocate([])
    got = await ns.read(0, 64)
    if ns.identify.dlfeat & 7 == 1:
        assert got == bytes(64 * size)


@pytest.mark.both_loops
async def test_compare(ns: Namespace, controller: Controller) -> None:
    needs(controller, ONCS_COMPARE)
    size = ns.block_size
    data = pattern(4 * size)
    await ns.write(20, data)
    assert await ns.compare(20, data) is None
    with pytest.raises(CompareFailure, match=r"Compare on namespace \d+ lba 20\+4: .*Compare Failure") as caught:
        await ns.compare(20, data[:-1] + b"\x00")
    assert (caught.value.sct, caught.value.sc, caught.value.lba, caught.value.blocks) == (2, 0x85, 20, 4)
    assert isinstance(caught.value, OSError)


@pytest.mark.both_loops
async def test_verify_and_uncorrectable_blocks(ns: Namespace, controller: Controller) -> None:
    needs(controller, ONCS_VERIFY)
    needs(controller, ONCS_UNCORRECTABLE)
    await ns.write(50, bytes(4 * ns.block_size))
    await ns.verify(50, 4)
    await ns.write_uncorrectable(51, 2)
    with pytest.raises(UnrecoveredReadError, match=r"Read on namespace \d+ lba 50\+4"):
        await ns.read(50, 4)
    with pytest.raises(MediaError):
        await ns.verify(52, 1)
    assert await ns.read(50) == bytes(ns.block_size)
    into = bytearray(b"\x11" * ns.block_size)
    with pytest.raises(UnrecoveredReadError):
        await ns.readinto(51, into)
    assert into == b"\x11" * ns.block_size  # unchanged where it failed
    await ns.write(51, bytes(2 * ns.block_size))
    await ns.verify(50, 4)


@pytest.mark.both_loops
async def test_copy(ns: Namespace, controller: Controller) -> None:
    needs(controller, ONCS_COPY)
    size = ns.block_size
    data = pattern(16 * size)
    await ns.write(0, data)
    await ns.copy([(8, 4), (0, 2)], 100)
    assert await ns.read(100, 6) == data[8 * size : 12 * size] + data[: 2 * size]


@pytest.mark.both_loops
async def test_transfers_over_the_limit_of_one_command(ns: Namespace, controller: Controller) -> None:
    size = ns.block_size
    for blocks in (ns.max_blocks, ns.max_blocks + 1, 3 * ns.max_blocks - 1, 5 * ns.max_blocks + 7):
        data = pattern(blocks * size, blocks)
        await ns.write(3, data, fua=True)
        assert await ns.read(3, blocks) == data
        into = bytearray(len(data))
        assert await ns.readinto(3, into) == len(data)
        assert into == data
        assert await ns.pread(len(data), 3 * size) == data
        if controller.identify.oncs & ONCS_COMPARE:
            await ns.compare(3, data)
            with pytest.raises(CompareFailure):
                await ns.compare(3, data[:-1] + b"\x00")


@pytest.mark.options(max_transfer=8192)
async def test_max_transfer_is_respected(ns: Namespace) -> None:
    assert ns.max_blocks == 8192 // ns.block_size
    data = pattern(100 * 1024 // ns.block_size * ns.block_size)
    await ns.write(0, data)
    assert await ns.read(0, len(data) // ns.block_size) == data


async def test_requests_over_mdts_are_split_at_it(faulty: str) -> None:
    async with nvme_async.open("emulated:size=16MiB,block=512,mdts=8KiB", **FAST) as controller:
        ns = controller.namespaces[1]
        rule = faults(controller).add(queue="io", opcode=0x01)
        await ns.write(0, pattern(20 * 1024))
        assert rule.hits == 3
        assert int.from_bytes(rule.last_command[48:50], "little") == 7  # the last one: 4 KiB, NLB is zero-based
        assert await ns.read(0, 40) == pattern(20 * 1024)


# -- commands by hand ------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_commands_by_hand(ns: Namespace, controller: Controller) -> None:
    nsid, size = ns.nsid, ns.block_size
    data = pattern(2 * size)
    done = await ns.submit(commands.write(nsid, 5, 2), data, tag=77)
    assert done.dw0 == 0
    assert (await ns.submit(commands.read(nsid, 5, 2))).data == data
    into = bytearray(2 * size)
    assert (await ns.submit(commands.read(nsid, 5, 2), into)).data is None
    assert into == data
    results = await ns.submit(
        [commands.read(nsid, 5, 1), commands.read(nsid, ns.blocks, 1), commands.flush(nsid)],
        [bytearray(size), bytearray(size), None],
    )
    assert isinstance(results[1], LbaOutOfRange)
    assert results[0].dw0 == results[2].dw0 == 0
    with pytest.raises(ValueError, match=rf"the command is for namespace {nsid + 1}, this is {nsid}"):
        await ns.submit(commands.flush(nsid + 1))
    with pytest.raises(ValueError, match="no buffer was given"):
        await ns.submit(commands.write(nsid, 5, 2))
    feature = await controller.admin(commands.get_features(Feature.NUMBER_OF_QUEUES))
    assert feature.dw0 & 0xFFFF >= 0
    page = await controller.admin(commands.identify(1))
    assert page.data is not None
    assert page.data[4:24].decode().strip() == controller.identify.sn.strip()
    with pytest.raises(CommandError) as caught:
        await controller.admin(commands.identify(0xEE))
    assert caught.value.admin
    assert isinstance(caught.value, InvalidField)


async def test_an_unknown_command_is_an_error(ns: Namespace) -> None:
    unknown = nvme_async.spec.commands.Command(opcode=0x7F, nsid=ns.nsid, data_length=0)
    with pytest.raises(InvalidOpcode, match=r"7f.*Invalid Command Opcode"):
        await ns.submit(unknown)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda ns: ns.read(-1), ValueError, r"lba is -1, must be 0 to 2\*\*64-1"),
        (lambda ns: ns.read(1 << 64), ValueError, r"lba is 18446744073709551616, must be 0 to 2\*\*64-1"),
        (lambda ns: ns.read(0, 0), ValueError, r"blocks is 0, must be 1 or more"),
        (lambda ns: ns.read(0, -4), ValueError, r"blocks is -4, must be"),
        (lambda ns: ns.read(0.5), TypeError, r"lba is a float, must be an integer"),
        (lambda ns: ns.read("0"), TypeError, r"lba is a str, must be an integer"),
        (lambda ns: ns.read(0, 1.0), TypeError, r"blocks is a float, must be an integer"),
        (lambda ns: ns.write(None, bytes(ns.block_size)), TypeError, r"lba is a NoneType"),
        (
            lambda ns: ns.readinto(0, bytearray(100)),
            ValueError,
            r"a buffer of 100 bytes is not a positive multiple of the block size of \d+",
        ),
        (lambda ns: ns.readinto(0, bytearray()), ValueError, r"a buffer of 0 bytes is not a positive multiple"),
        (
            lambda ns: ns.readinto(0, bytes(ns.block_size)),
            ValueError,
            r"the bytes is read-only, and data were to be read into it",
        ),
        (lambda ns: ns.readinto(0, 4096), TypeError, r"int"),
        (
            lambda ns: ns.write(0, b"abc"),
            ValueError,
            r"a buffer of 3 bytes is not a positive multiple of the block size of \d+",
        ),
        (lambda ns: ns.write(-5, bytes(ns.block_size)), ValueError, r"lba is -5, must be"),
        (lambda ns: ns.write(0, "text"), TypeError, r"str"),
        (lambda ns: ns.write(0, None), TypeError, r"NoneType"),
        (lambda ns: ns.compare(0, b""), ValueError, r"a buffer of 0 bytes"),
        (lambda ns: ns.pread(-1, 0), ValueError, r"length -1 is negative"),
        (lambda ns: ns.pread(ns.block_size, -ns.block_size), ValueError, r"offset -\d+ is negative"),
        (lambda ns: ns.pwrite(b"x", -1), ValueError, r"offset -1 is negative"),
        (lambda ns: ns.readv([bytes(8)], 0), ValueError, r"read-only"),
        (lambda ns: ns.write_zeroes(0, 0), ValueError, r"lba 0, blocks 0"),
        (lambda ns: ns.write_zeroes(-1, 1), ValueError, r"lba -1, blocks 1"),
        (lambda ns: ns.verify(0, -1), ValueError, r"blocks -1"),
        (lambda ns: ns.deallocate(0), ValueError, r"needs blocks"),
        (lambda ns: ns.deallocate([(0, 0)]), ValueError, r"lba 0, blocks 0"),
        (lambda ns: ns.copy([(0, ns.blocks)], 1), LbaOutOfRange, r"out of range"),
        (lambda ns: ns.read_many([0], blocks=0), ValueError, r"blocks is 0, must be 1 to \d+"),
        (lambda ns: ns.read_many([0], depth=-1), ValueError, r"depth is -1"),
        (lambda ns: ns.read_many([-1]), ValueError, r"lbas must be integers from 0 to 2\*\*64-1"),
        (lambda ns: ns.read_many(["x"]), ValueError, r"lbas must be integers"),
        (
            lambda ns: ns.read_many([0, 1], bytearray(ns.block_size)),
            ValueError,
            r"2 elements of \d+ bytes need \d+ bytes, the buffer has",
        ),
        (
            lambda ns: ns.write_many([0], b"short"),
            ValueError,
            r"1 elements of \d+ bytes need \d+ bytes, the buffer has 5",
        ),
    ],
)
async def test_invalid_arguments_are_refused(ns: Namespace, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        await call(ns)
    assert await ns.read(0) is not None
    assert ns.controller.queues.io[asyncio.get_running_loop()].hot.n_outstanding == 0


@pytest.mark.both_loops
async def test_requests_beyond_the_end_are_refused(ns: Namespace) -> None:
    last = ns.blocks
    for call in (
        lambda: ns.read(last),
        lambda: ns.read(last - 1, 2),
        lambda: ns.read((1 << 64) - 1, 1),
        lambda: ns.read(0, 1 << 63),
        lambda: ns.readinto(last, bytearray(ns.block_size)),
        lambda: ns.write(last - 1, bytes(2 * ns.block_size)),
        lambda: ns.compare(last, bytes(ns.block_size)),
        lambda: ns.write_zeroes(last - 1, 2),
        lambda: ns.deallocate(last, 1),
        lambda: ns.verify(0, last + 1),
        lambda: ns.pread(ns.block_size, last * ns.block_size),
    ):
        with pytest.raises(
            LbaOutOfRange, match=rf"on namespace {ns.nsid} lba \d+\+\d+: .*the namespace has {last} blocks"
        ) as caught:
            await call()
        assert isinstance(caught.value, IndexError)
        assert caught.value.dnr
    with pytest.raises(
        nvme_async.driver.batch.BatchError,
        match=r"1 of 2 commands failed, first element 1: Read .*(?i:LBA out of range)",
    ):
        await ns.read_many([0, last])


async def test_requests_work_with_gather_wait_and_tasks(ns: Namespace) -> None:
    """Requests are used in all the ways in which asyncio accepts coroutines."""
    await ns.write(0, pattern(ns.block_size))
    expected = pattern(ns.block_size)
    assert await asyncio.create_task(ns.read(0)) == expected
    assert await asyncio.wait_for(ns.read(0), 5) == expected
    assert await asyncio.shield(asyncio.ensure_future(ns.read(0))) == expected
    assert (await asyncio.gather(ns.read(0), ns.flush()))[0] == expected
    done, _ = await asyncio.wait([asyncio.create_task(ns.read(0)) for _ in range(3)])
    assert {task.result() for task in done} == {expected}
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ns.read(0)) for _ in range(50)]
    assert all(task.result() == expected for task in tasks)
    for future in asyncio.as_completed([ns.read(0), ns.read(0)]):
        assert await future == expected
    async with asyncio.timeout(5):
        assert await ns.read(0) == expected


async def test_numpy_integers_are_accepted(ns: Namespace) -> None:
    await ns.write(np.uint64(9), pattern(2 * ns.block_size))
    assert await ns.read(np.int32(9), np.uint8(2)) == pattern(2 * ns.block_size)
    assert (
        await ns.pread(np.int64(ns.block_size), np.int64(9 * ns.block_size))
        == pattern(2 * ns.block_size)[: ns.block_size]
    )
    await ns.write_zeroes(np.uint32(9), np.uint32(1))
    assert (await ns.read_many(np.array([9, 10]))).data[ns.block_size :] == pattern(2 * ns.block_size)[ns.block_size :]


async def test_a_request_can_be_awaited_only_once(ns: Namespace) -> None:
    request = ns.read(0)
    await request
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        await request


def test_io_works_in_asyncio_debug_mode(faulty: str) -> None:
    async def main() -> None:
        async with nvme_async.open(faulty, **FAST) as controller:
            ns = controller.namespaces[1]
            await within(10, asyncio.gather(*(asyncio.create_task(ns.write(i, bytes(512))) for i in range(100))))
            assert await asyncio.create_task(ns.read(5)) == bytes(512)

    asyncio.run(main(), debug=True)


async def test_namespaces_of_one_controller_are_independent(faulty: str) -> None:
    async with nvme_async.open("emulated:size=4MiB,block=512,namespaces=4", **FAST) as controller:
        assert list(controller.namespaces) == [1, 2, 3, 4]
        await asyncio.gather(*(ns.write(9, bytes([nsid]) * 512) for nsid, ns in controller.namespaces.items()))
        for nsid, ns in controller.namespaces.items():
            assert await ns.read(9) == bytes([nsid]) * 512
            assert repr(ns).startswith(f"<Namespace {nsid} of emulated:")
