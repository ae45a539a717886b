"""Commands that the controller wants to be sent again after a delay (CRD, CRDT1 to 3, ACRE)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driving import FAST, pattern

import nvme_async
from nvme_async.errors import CommandError
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands
from nvme_async.spec.features import HostBehavior
from nvme_async.spec.opcodes import Feature, NvmOpcode
from nvme_async.spec.status import GenericStatus

INTERRUPTED = GenericStatus.COMMAND_INTERRUPTED
DELAYS = "emulated:size=16MiB,block=512,retry_delays=100ms/300ms/10s"
SHORTER = 0.099  # a loop's timer may end a clock tick early


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    async with nvme_async.open(DELAYS, **FAST) as opened:
        yield opened


def faults(controller: Controller) -> Any:
    return controller.device.emulator.faults  # type: ignore[union-attr]


def now() -> float:
    return asyncio.get_running_loop().time()


async def delayed(controller: Controller) -> None:
    """Until a command waits for the end of its delay."""
    while not any(queue["delayed"] for queue in controller.inspect()["io_queues"]):
        await asyncio.sleep(0)


async def test_the_host_enables_retry_delays_where_the_controller_has_some(controller: Controller) -> None:
    assert (controller.identify.crdt1, controller.identify.crdt2, controller.identify.crdt3) == (1, 3, 100)
    page = await controller.admin(commands.get_features(Feature.HOST_BEHAVIOR))
    assert page.data is not None
    assert HostBehavior.decode(page.data).acre
    await controller.reset()
    page = await controller.admin(commands.get_features(Feature.HOST_BEHAVIOR))
    assert page.data is not None
    assert HostBehavior.decode(page.data).acre
    async with nvme_async.open("emulated:size=16MiB", **FAST) as plain:
        page = await plain.admin(commands.get_features(Feature.HOST_BEHAVIOR))
        assert page.data is not None
        assert not HostBehavior.decode(page.data).acre


@pytest.mark.both_loops
async def test_a_command_is_sent_again_after_the_delay_and_never_earlier(controller: Controller) -> None:
    ns = controller.namespaces[1]
    for crd, delay in ((1, SHORTER), (2, 3 * SHORTER)):
        rule = faults(controller).add(queue="io", opcode=NvmOpcode.WRITE, count=1, fail=INTERRUPTED, crd=crd)
        before = now()
        await ns.write(crd, pattern(512, crd))
        assert now() - before >= delay
        assert rule.hits == 2
        rule.remove()
        assert await ns.read(crd) == pattern(512, crd)
    rule = faults(controller).add(queue="io", count=1, fail=INTERRUPTED, crd=1)
    into = bytearray(1024)
    before = now()
    assert await ns.readinto(1, into) == 1024
    assert now() - before >= SHORTER
    assert into == pattern(512, 1) + pattern(512, 2)
    assert rule.hits == 2


async def test_other_commands_go_on_during_a_delay() -> None:
    async with nvme_async.open(DELAYS, **{**FAST, "command_timeout": 60.0, "queue_entries": 2}) as controller:
        ns = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=NvmOpcode.WRITE, count=1, fail=INTERRUPTED, crd=3)
        write = asyncio.ensure_future(ns.write(0, pattern(512, 1)))
        await delayed(controller)
        for lba in range(20):  # with the only command id of the queue
            await ns.read(lba % 8)
        assert not write.done()
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write


async def test_a_cancelled_command_is_not_sent_again(controller: Controller) -> None:
    ns = controller.namespaces[1]
    rule = faults(controller).add(queue="io", opcode=NvmOpcode.WRITE, count=1, fail=INTERRUPTED, crd=1)
    data = bytearray(512)
    write = asyncio.ensure_future(ns.write(0, data))
    await delayed(controller)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    data.append(0)  # nothing holds the buffer any more
    await asyncio.sleep(0.15)
    assert rule.hits == 1
    await ns.settled()


async def test_attempts_and_delays_are_limited() -> None:
    async with nvme_async.open(DELAYS, **{**FAST, "retries": 2, "command_timeout": 5.0}) as controller:
        ns = controller.namespaces[1]
        rule = faults(controller).add(queue="io", opcode=NvmOpcode.READ, fail=INTERRUPTED, crd=1)
        with pytest.raises(CommandError, match="Interrupted") as raised:
            await ns.read(0)
        assert raised.value.crd == 1
        assert rule.hits == 3
        rule.remove()
        rule = faults(controller).add(queue="io", opcode=NvmOpcode.READ, fail=INTERRUPTED, crd=3)
        with pytest.raises(CommandError) as raised:
            await ns.read(0)  # 10 s are over the limit of a command
        assert raised.value.crd == 3
        assert rule.hits == 1


async def test_what_must_not_be_executed_twice_is_not_sent_again(controller: Controller) -> None:
    ns = controller.namespaces[1]
    rule = faults(controller).add(queue="io", opcode=NvmOpcode.COPY, fail=INTERRUPTED, crd=1)
    with pytest.raises(CommandError) as raised:
        await ns.copy([(0, 1)], 8)
    assert raised.value.crd == 1
    assert rule.hits == 1
    rule = faults(controller).add(queue="io", opcode=NvmOpcode.READ, fail=INTERRUPTED, crd=1, dnr=True)
    with pytest.raises(CommandError):
        await ns.read(0)
    assert rule.hits == 1


async def test_elements_of_a_batch_are_sent_again(controller: Controller) -> None:
    ns = controller.namespaces[1]
    data = b"".join(pattern(512, lba) for lba in range(8))
    rule = faults(controller).add(queue="io", opcode=NvmOpcode.WRITE, skip=2, count=3, fail=INTERRUPTED, crd=1)
    before = now()
    await ns.write_many(range(8), data)
    assert now() - before >= SHORTER
    assert rule.hits == 11
    faults(controller).add(queue="io", opcode=NvmOpcode.READ, skip=7, count=1, fail=INTERRUPTED, crd=1)
    faults(controller).add(queue="io", opcode=NvmOpcode.READ, count=1, fail=0x281, dnr=True)
    found = await ns.read_many(range(8), check=False)
    assert (found.failed, list(found.errors())) == (1, [0])
    assert found.data[512:] == data[512:]


async def test_admin_commands_that_read_are_sent_again(controller: Controller) -> None:
    rule = faults(controller).add(queue="admin", opcode=0x06, count=1, fail=INTERRUPTED, crd=1)
    before = now()
    await controller.admin(commands.identify(1))
    assert now() - before >= SHORTER
    assert rule.hits == 2


async def test_the_end_of_the_controller_ends_a_delay() -> None:
    async with nvme_async.open(DELAYS, **{**FAST, "command_timeout": 60.0}) as controller:
        ns = controller.namespaces[1]
        faults(controller).add(queue="io", opcode=NvmOpcode.WRITE, count=1, fail=INTERRUPTED, crd=3)
        write = asyncio.ensure_future(ns.write(0, bytes(512)))
        await delayed(controller)
        await controller.close()
        with pytest.raises(nvme_async.NvmeError):
            await asyncio.wait_for(write, 5)


async def test_a_reset_does_not_shorten_a_delay(controller: Controller) -> None:
    ns = controller.namespaces[1]
    faults(controller).add(queue="io", opcode=NvmOpcode.WRITE, count=1, fail=INTERRUPTED, crd=2)
    before = now()
    write = asyncio.ensure_future(ns.write(0, pattern(512, 3)))
    await delayed(controller)
    await controller.reset()
    await write
    assert now() - before >= 3 * SHORTER
    assert await ns.read(0) == pattern(512, 3)
