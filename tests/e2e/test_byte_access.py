"""Any offset and length: pread, pwrite, readv, writev, streams and files, against a model."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from driving import eventually

import nvme_async
from nvme_async.driver.byte_guard import MAX_UNSETTLED, ByteGuard
from nvme_async.emulator import FOREVER
from nvme_async.errors import CommandTimeout, LbaOutOfRange

WHERE = "emulated:size=4MiB,block=512"
MODEL = 16 * 1024


@pytest.fixture
async def opened() -> AsyncIterator[nvme_async.Controller]:
    async with nvme_async.open(WHERE, max_transfer=4096, io_queues=2) as controller:
        yield controller


async def test_against_a_model(opened: nvme_async.Controller) -> None:
    ns, model, draw = opened.namespaces[1], bytearray(MODEL), random.Random(20)
    for _ in range(150):
        offset = draw.randrange(MODEL)
        nbytes = draw.randrange(min(MODEL - offset, 6000) + 1)
        if draw.random() < 0.3:  # whole blocks
            offset, nbytes = offset & ~511, nbytes & ~511
        if draw.random() < 0.5:
            data = draw.randbytes(nbytes)
            cut = sorted(draw.choices(range(nbytes + 1), k=2))
            if draw.random() < 0.5:
                assert await ns.pwrite(data, offset) == nbytes
            else:
                assert await ns.writev([data[: cut[0]], data[cut[0] : cut[1]], data[cut[1] :]], offset) == nbytes
            model[offset : offset + nbytes] = data
        else:
            assert await ns.pread(nbytes, offset) == model[offset : offset + nbytes]
            parts = [bytearray(nbytes // 3), bytearray(nbytes - nbytes // 3)]
            assert await ns.readv(parts, offset) == nbytes
            assert b"".join(parts) == model[offset : offset + nbytes]
    assert await ns.pread(MODEL, 0) == model


async def test_the_end_and_nothing(opened: nvme_async.Controller) -> None:
    ns = opened.namespaces[1]
    assert await ns.pread(0, 5) == b""
    assert await ns.pwrite(b"", 5) == await ns.writev([], 5) == await ns.readv([bytearray(0)], 0) == 0
    assert await ns.pwrite(b"end", ns.nbytes - 3) == 3
    assert await ns.pread(3, ns.nbytes - 3) == b"end"
    with pytest.raises(LbaOutOfRange):
        await ns.pread(2, ns.nbytes - 1)
    with pytest.raises(LbaOutOfRange):
        await ns.pwrite(b"ab", ns.nbytes - 1)
    with pytest.raises(LbaOutOfRange):
        await ns.writev([bytes(512), bytes(512)], ns.nbytes - 512)
    assert await ns.pread(3, ns.nbytes - 3) == b"end"
    with pytest.raises(ValueError, match="offset -1"):
        await ns.pwrite(b"x", -1)


@pytest.mark.both_loops
async def test_parts_of_one_block_written_at_the_same_time_are_all_there(opened: nvme_async.Controller) -> None:
    """Without the guard most are lost: each would read the block before the others write it."""
    ns = opened.namespaces[1]
    await asyncio.gather(*(ns.pwrite(bytes([i]) * 8, 8 * i) for i in range(64)))
    assert await ns.pread(512, 0) == b"".join(bytes([i]) * 8 for i in range(64))


async def test_two_event_loops_write_parts_of_one_block(opened: nvme_async.Controller) -> None:
    ns = opened.namespaces[1]

    async def half(odd: int) -> None:
        for i in range(odd, 64, 2):
            await ns.pwrite(bytes([i + 1]) * 8, 8 * i)

    thread = threading.Thread(target=lambda: asyncio.run(half(1)))
    thread.start()
    await half(0)
    await asyncio.to_thread(thread.join)
    assert await ns.pread(512, 0) == b"".join(bytes([i + 1]) * 8 for i in range(64))


async def test_a_cancelled_write_does_not_land_on_its_successor(opened: nvme_async.Controller) -> None:
    ns, faults = opened.namespaces[1], opened.device.emulator.faults  # type: ignore[attr-defined]
    rule = faults.add(queue="io", opcode=1, count=1, delay=FOREVER)
    first = asyncio.create_task(ns.pwrite(b"old", 100))
    await eventually(lambda: rule.hits)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(ns.pwrite(b"new", 100))
    await asyncio.sleep(0.02)
    assert not second.done()
    faults.release()
    await second
    await eventually(lambda: not faults.outstanding())
    assert await ns.pread(3, 100) == b"new"


async def test_the_guard_is_fair_and_remembers() -> None:
    guard, order = ByteGuard(), list[str]()

    async def settled(lba: int, blocks: int) -> None:
        order.append(f"settled {lba}+{blocks}")

    async def access(name: str, first: int, blocks: int, alone: bool) -> None:
        async with guard.writing(first, blocks, alone=alone, settled=settled):
            order.append(name)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for name, first, blocks, alone in (
            ("a", 0, 4, False),
            ("b", 2, 4, False),  # beside a: neither wants to be alone
            ("c", 3, 1, True),  # after both
            ("d", 0, 4, False),  # doesn't overtake c, which would otherwise wait forever
            ("e", 9, 1, True),  # somewhere else
        ):
            group.create_task(access(name, first, blocks, alone))
    assert order == ["a", "b", "e", "c", "d"]
    order.clear()
    for lba in range(MAX_UNSETTLED + 1):
        with pytest.raises(CommandTimeout):
            async with guard.writing(2 * lba, 1, alone=True, settled=settled):
                raise CommandTimeout("late")
    await access("again", 5, 1, True)  # merged by now: too many to track separately
    await access("again", 5, 1, True)
    assert order == [f"settled 0+{2 * MAX_UNSETTLED + 1}", "again", "again"]


async def test_waiting_for_the_guard_can_be_cancelled() -> None:
    guard = ByteGuard()

    async def settled(lba: int, blocks: int) -> None:
        raise AssertionError

    async with guard.writing(0, 1, alone=True, settled=settled):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), guard.writing(0, 1, alone=True, settled=settled):
                raise AssertionError
    async with asyncio.timeout(30), guard.writing(0, 1, alone=True, settled=settled):
        pass


async def test_a_stream_gives_the_bytes_in_order(opened: nvme_async.Controller) -> None:
    ns, data = opened.namespaces[1], random.Random(3).randbytes(50_000)
    await ns.pwrite(data, 700)
    async with ns.stream(700, len(data), chunk=4096, ahead=3) as chunks:
        parts = [part async for part in chunks]
    assert b"".join(parts) == data
    assert [len(part) for part in parts[:-1]] == [4096] * 12
    async with ns.stream(ns.nbytes - 5) as chunks:
        assert [len(part) async for part in chunks] == [5]
    async with ns.stream(0, 0) as chunks:
        assert [part async for part in chunks] == []


async def test_a_stream_that_is_left_leaves_nothing(opened: nvme_async.Controller) -> None:
    ns = opened.namespaces[1]
    async with ns.stream(chunk=512, ahead=8) as chunks:
        async for _ in chunks:
            break
    assert [task.get_name() for task in asyncio.all_tasks() if "read ahead" in task.get_name()] == []
    with pytest.raises(RuntimeError, match="inside `async with`"):
        await anext(ns.stream())
    for bad in ({"offset": -1}, {"nbytes": 1 << 60}, {"chunk": 0}, {"ahead": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ns.stream(**bad)  # type: ignore[arg-type]


async def test_a_cancelled_step_of_a_stream_loses_no_part(opened: nvme_async.Controller) -> None:
    ns, faults = opened.namespaces[1], opened.device.emulator.faults  # type: ignore[attr-defined]
    await ns.pwrite(b"first", 0)
    rule = faults.add(queue="io", opcode=2, count=1, delay=FOREVER)
    async with ns.stream(0, 1024, chunk=512, ahead=1) as chunks:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await anext(chunks)
        await eventually(lambda: rule.hits)
        faults.release()
        assert (await anext(chunks))[:5] == b"first"


async def test_a_file(opened: nvme_async.Controller) -> None:
    ns = opened.namespaces[1]
    async with ns.file(1000, 2000) as file:
        assert await file.write(b"hello, " + bytes(993)) == 1000
        assert await file.tell() == 1000
        assert await file.seek(-1000, 1) == 0
        assert await file.read(7) == b"hello, "
        target = bytearray(3000)
        assert await file.readinto(target) == 1993
        assert await file.read() == b""
        assert await file.seek(-3, 2) == 1997
        with pytest.raises(OSError, match="4 bytes at 1997 do not fit into 2000"):
            await file.write(b"four")
        assert await file.write(b"end") == 3
        await file.flush()
        await file.seek(0)
        assert len(await file.read()) == 2000
        with pytest.raises(ValueError, match="before the file's first byte"):
            await file.seek(-1)
        with pytest.raises(OSError, match="size of a namespace is fixed"):
            await file.truncate(0)
    assert file.closed
    with pytest.raises(ValueError, match="closed file"):
        await file.read()
    assert await ns.pread(3, 2997) == b"end"


async def test_calls_of_several_tasks_on_a_file_follow_each_other(opened: nvme_async.Controller) -> None:
    ns = opened.namespaces[1]
    async with ns.file() as file:
        await asyncio.gather(*(file.write(bytes([i]) * 100) for i in range(20)))
    assert await ns.pread(2000, 0) == b"".join(bytes([i]) * 100 for i in range(20))


async def test_a_managers_handle_has_all_of_it() -> None:
    async with nvme_async.Manager(workers=1) as manager:
        handle: nvme_async.AsyncNamespace = await manager.namespace(WHERE, 1)
        assert await handle.writev([b"abc", b"def"], 509) == 6
        target = bytearray(6)
        assert await handle.readv([target], 509) == 6
        assert bytes(target) == await handle.pread(6, 509) == b"abcdef"
        async with handle.stream(509, 6) as chunks:
            assert [part async for part in chunks] == [b"abcdef"]
        async with handle.file(509) as file:
            assert await file.read(3) == b"abc"


async def test_arrays_and_tensors_share_a_dma_buffer(opened: nvme_async.Controller) -> None:
    """NumPy by __array_interface__ and by DLPack; each is an export, which keeps the pages."""
    buffer = opened.alloc(4096)
    arrays: list[Any] = [np.asarray(buffer), np.from_dlpack(buffer)]  # type: ignore[arg-type]
    assert buffer.__dlpack_device__() == (1, 0)
    assert buffer.__array_interface__ == {"version": 3, "shape": (4096,), "typestr": "|u1"}
    await opened.namespaces[1].pwrite(b"\x07" * 4096, 0)
    await opened.namespaces[1].readinto(0, buffer)
    buffer.free()
    for array in arrays:
        assert array.dtype == np.uint8
        assert array.shape == (4096,)
        assert (array == 7).all()  # freed: but not yet given back
    with pytest.raises(ValueError, match="freed"):
        buffer.__dlpack__()
