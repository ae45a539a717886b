"""Commands that change a namespace's format during I/O, on the driver's own loop and on others:
nothing is transferred in another format than the current one.
"""

from __future__ import annotations

import asyncio
import struct
from array import array
from typing import Any

import pytest
from driving import FAST, LoopThread, eventually, faults, within

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.emulator import FOREVER
from nvme_async.errors import (
    CommandError,
    ControllerTimeout,
    InvalidNamespace,
    NamespaceChanged,
    NvmeError,
)
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands

GUARD = 0x5A


def block_of(lba: int, size: int) -> bytes:
    """The content of a block: its number and the block size that it was written with, repeated."""
    return struct.pack("<QQ", lba, size) * (size // 16)


class Load:
    """Writes and reads of one loop. Each read either fails or returns blocks that were written in
    the format of that call. Buffers that the device can access lie between guards.
    """

    def __init__(self, controller: Controller, first: int) -> None:
        self._controller = controller
        self._first = first
        self.stop = False
        self.done = self.changed = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._work(self._first + 16 * i, i) for i in range(6)))

    async def _work(self, lba: int, kind: int) -> None:
        ns = self._controller.namespaces[1]
        with self._controller.alloc(3 * 65536) as memory:
            memory[:] = bytes([GUARD]) * len(memory)
            while not self.stop:
                size = ns.block_size
                try:
                    await self._once(ns, lba, size, kind, memory)
                    self.done += 1
                except (NamespaceChanged, ValueError):
                    # ValueError: the buffer has the size for the previous block size.
                    self.changed += 1
                assert bytes(memory[:65536]) == bytes(memory[2 * 65536 :]) == bytes([GUARD]) * 65536
                await asyncio.sleep(0)

    async def _once(self, ns: Namespace, lba: int, size: int, kind: int, memory: Any) -> None:
        await ns.write(lba, block_of(lba, size) + block_of(lba + 1, size))
        size = ns.block_size  # of the read, which is made before anything else can run
        if kind % 3 == 0:
            got = await ns.read(lba, 2)
        elif kind % 3 == 1:
            await ns.readinto(lba, memory[65536 : 65536 + 2 * size])
            got = bytes(memory[65536 : 65536 + 2 * size])
        else:
            got = bytes((await ns.read_many(array("Q", [lba, lba + 1]))).data)
        # Zeroes: formatted between the write and the read.
        assert got in (block_of(lba, size) + block_of(lba + 1, size), bytes(2 * size)), got[:32]


@pytest.mark.parametrize(("size", "lbafs"), [(4096, (0, 1)), (512, (1, 0))], ids=["4096 to 512", "512 to 4096"])
async def test_format_under_load_from_several_loops(size: int, lbafs: tuple[int, int]) -> None:
    async with nvme_async.open(f"emulated:size=64MiB,block={size}", **FAST) as controller:
        loads = [Load(controller, 1000 * i) for i in range(3)]
        with LoopThread() as one, LoopThread() as other:
            running = [
                asyncio.ensure_future(loads[0].run()),
                asyncio.wrap_future(one.submit(loads[1].run())),
                asyncio.wrap_future(other.submit(loads[2].run())),
            ]
            await eventually(lambda: all(load.done > 20 for load in loads))
            for turn in range(12):
                before = [load.done for load in loads]
                await within(20, controller.admin(commands.format_nvm(1, lbafs[turn % 2])))
                assert controller.namespaces[1].block_size == (512, 4096)[lbafs[turn % 2]]
                await eventually(lambda b=before: all(x.done > y for x, y in zip(loads, b, strict=True)))
            for load in loads:
                load.stop = True
            await within(20, asyncio.gather(*running))
        assert sum(load.changed for load in loads) > 0
        assert controller.state == "ready"
        assert controller.resets == 0


@pytest.fixture
async def two() -> Any:
    async with nvme_async.open("emulated:size=16MiB,namespaces=2", **FAST) as controller:
        yield controller


async def test_io_waits_for_the_end_of_a_format_and_ends_with_an_error(two: Controller) -> None:
    ns, neighbour = two.namespaces[1], two.namespaces[2]
    rule = faults(two).add(queue="admin", opcode=0x80, delay=FOREVER, count=1)
    unsent = ns.write(0, b"x" * 4096)
    format_ = asyncio.create_task(two.admin(commands.format_nvm(1, 0)))
    await eventually(lambda: ns.geometry.held)
    assert two.inspect()["effects"]["running"] == ["Format NVM"]
    waiting = [
        asyncio.create_task(call)
        for call in (ns.read(0), ns.read_many(range(8)), ns.submit(commands.read(1, 0, 1)), ns.write_zeroes(0, 4))
    ]
    big = asyncio.ensure_future(ns.read(0, 1024))
    await neighbour.write(0, b"n" * 4096)  # not delayed
    assert not format_.done()
    await eventually(lambda: rule.hits)
    faults(two).release()
    await format_
    for call in (*waiting, big, unsent):
        with pytest.raises(NamespaceChanged, match=r"4096 bytes became blocks of 512 bytes"):
            await call
    assert (ns.block_size, ns.blocks) == (512, (16 << 20) // 512)
    assert await ns.read(0) == bytes(512)
    assert await neighbour.read(0) == b"n" * 4096


async def test_io_continues_after_a_format_that_changes_nothing(two: Controller) -> None:
    ns = two.namespaces[1]
    rule = faults(two).add(queue="admin", opcode=0x80, delay=FOREVER, count=1)
    format_ = asyncio.create_task(two.admin(commands.format_nvm(1, 1)))
    await eventually(lambda: ns.geometry.held)
    write = asyncio.create_task(ns.write(0, b"y" * 4096))
    await eventually(lambda: rule.hits)
    faults(two).release()
    await format_
    await write
    assert await ns.read(0) == b"y" * 4096


async def test_io_continues_after_a_refused_format(two: Controller) -> None:
    ns = two.namespaces[1]
    with pytest.raises(CommandError):
        await two.admin(commands.format_nvm(1, 5))
    await ns.write(0, b"y" * 4096)
    assert not ns.geometry.held


async def test_cancelling_a_format_holds_io_until_the_format_ends(two: Controller) -> None:
    ns = two.namespaces[1]
    rule = faults(two).add(queue="admin", opcode=0x80, delay=FOREVER, count=1)
    format_ = asyncio.create_task(two.admin(commands.format_nvm(1, 0)))
    await eventually(lambda: rule.hits)
    format_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await format_
    assert ns.geometry.held
    faults(two).release()
    with pytest.raises(NamespaceChanged):
        await ns.write(0, b"x" * 4096)
    assert ns.block_size == 512


async def test_a_format_is_not_sent_while_io_is_stuck() -> None:
    options = {**FAST, "command_timeout": 0, "drain_timeout": 0.2}
    async with nvme_async.open("emulated:size=16MiB", **options) as controller:
        ns = controller.namespaces[1]
        formats = faults(controller).add(queue="admin", opcode=0x80)
        held = faults(controller).add(queue="io", opcode=2, delay=FOREVER, count=1)
        slow = asyncio.create_task(ns.read(0))
        await eventually(lambda: held.hits)
        with pytest.raises(ControllerTimeout, match="was not sent"):
            await controller.admin(commands.format_nvm(1, 0))
        assert formats.hits == 0
        faults(controller).release()
        assert await slow == bytes(4096)
        await ns.write(0, b"x" * 4096)


async def test_no_io_is_sent_while_identify_fails_after_a_format(
    two: Controller,
) -> None:
    ns = two.namespaces[1]
    rule = faults(two).add(queue="admin", opcode=6, nsid=1, cdw10=0, fail=0x06)
    await two.admin(commands.format_nvm(1, 0))
    with pytest.raises(NamespaceChanged, match="has not been read"):
        await ns.write(0, b"x" * 4096)
    assert two.inspect()["rescan"]["unread"] == {1: str(two.scanner.unread[1])}
    assert await two.namespaces[2].read(0) == bytes(4096)
    rule.remove()
    await eventually(lambda: not two.inspect()["rescan"]["unread"])
    await ns.write(0, b"x" * 512)
    assert ns.block_size == 512


async def test_a_reset_during_a_format_ends_the_hold(two: Controller) -> None:
    ns = two.namespaces[1]
    lost = faults(two).add(queue="admin", opcode=0x80, discard=True, count=1)
    format_ = asyncio.create_task(two.admin(commands.format_nvm(1, 0)))
    await eventually(lambda: lost.hits)
    await within(20, two.reset())
    with pytest.raises(NvmeError):
        await within(10, format_)
    await eventually(lambda: ns._gone is None and not ns.geometry.held)
    await within(5, ns.write(0, b"x" * ns.block_size))


async def test_a_block_size_changed_by_another_host_ends_requests_of_the_old_one(two: Controller) -> None:
    ns = two.namespaces[1]
    late = ns.write(0, b"x" * 4096)
    batch = ns.read_many(range(4))
    held = faults(two).add(queue="io", opcode=2, nsid=1, delay_post=FOREVER, count=1)
    out = asyncio.create_task(ns.read(1))
    await eventually(lambda: held.hits)
    # Like another host's Format: the driver learns of it only from the event.
    await two.admin_queue.submit(commands.format_nvm(1, 0))
    await two.rescan()
    faults(two).release()
    with pytest.raises(NamespaceChanged):
        await out
    with pytest.raises(NamespaceChanged):
        await late
    assert ns.block_size == 512
    assert len((await batch).data) == 4 * 512
    assert len(await ns.read(0)) == 512


@pytest.mark.parametrize("nbytes", [512, 8192])
async def test_a_buffer_of_the_wrong_size_for_the_command_is_refused(two: Controller, nbytes: int) -> None:
    ns = two.namespaces[1]
    with pytest.raises(ValueError, match="transfers 4096 bytes"):
        await ns.submit(commands.read(1, 0, 1), bytearray(nbytes))
    with pytest.raises(ValueError, match="transfers 4096 bytes"):
        await ns.submit(commands.write(1, 0, 1), bytes(nbytes))


async def test_a_namespace_that_is_replaced_under_its_number_ends_the_old_handle(two: Controller) -> None:
    old, events = two.namespaces[2], []

    async def listen() -> None:
        async for event in two.events():
            events.append((event.kind, event.nsid))  # noqa: PERF401

    listener = asyncio.create_task(listen())
    await old.write(0, b"X" * 4096)
    unsent = old.write(5, b"meant for the old disk".ljust(4096))
    faults(two).remove_namespace(2, notice=False)
    faults(two).add_namespace(2, "16MiB")
    await eventually(lambda: two.namespaces[2] is not old)
    for call in (lambda: unsent, lambda: old.write(5, b"x" * 4096), lambda: old.read(0)):
        with pytest.raises(nvme_async.errors.NamespaceReplaced):
            await call()
    new = two.namespaces[2]
    assert new.identity != old.identity
    assert await new.read(5) == bytes(4096)
    assert ("namespace-replaced", 2) in events
    listener.cancel()


async def test_a_reset_notices_a_namespace_that_was_replaced_meanwhile(two: Controller) -> None:
    old = two.namespaces[2]
    faults(two).remove_namespace(2, notice=False)
    faults(two).add_namespace(2, "16MiB", notice=False)
    await two.reset()
    with pytest.raises(nvme_async.errors.NamespaceReplaced):
        await old.read(0)
    await two.namespaces[2].read(0)


async def test_a_namespace_that_returns_is_the_same_disk_only_with_the_same_identity(two: Controller) -> None:
    old = two.namespaces[2]
    faults(two).remove_namespace(2)
    await eventually(lambda: 2 not in two.namespaces)
    with pytest.raises(InvalidNamespace):
        await old.read(0)
    faults(two).add_namespace(2, "16MiB")
    await eventually(lambda: 2 in two.namespaces)
    with pytest.raises(InvalidNamespace):
        await old.read(0)


async def test_a_write_resent_by_a_reset_does_not_reach_another_disk(two: Controller) -> None:
    old = two.namespaces[2]
    lost = faults(two).add(queue="io", opcode=1, nsid=2, discard=True, count=1)
    write = asyncio.create_task(old.write(7, b"meant for the old disk".ljust(4096)))
    await asyncio.to_thread(lost.wait)
    faults(two).remove_namespace(2, notice=False)
    faults(two).add_namespace(2, "16MiB", notice=False)
    await two.reset()
    with pytest.raises(nvme_async.errors.NamespaceReplaced):
        await within(5, write)
    assert await two.namespaces[2].read(7) == bytes(4096)


async def test_another_controller_after_a_reset_fails_and_gets_no_io(two: Controller) -> None:
    ns = two.namespaces[1]
    page = (await two.admin(commands.identify(1))).data
    assert page is not None
    stranger = page[:4] + b"SOMEBODY ELSE'S".ljust(20) + page[24:1024]
    faults(two).add(queue="admin", opcode=6, cdw10=1, payload=stranger)
    writes = faults(two).add(queue="io", opcode=1)
    with pytest.raises(nvme_async.errors.ControllerReplaced, match="SOMEBODY ELSE"):
        await two.reset()
    with pytest.raises(nvme_async.errors.ControllerReplaced):
        await ns.write(0, b"x" * 4096)
    assert writes.hits == 0
