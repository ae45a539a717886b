"""A hand-over, or a death, while a command that changes a namespace is in flight: the successor
sends no I/O before it knows the namespace's new state. Identities reach the successor.
"""

from __future__ import annotations

import asyncio

import pytest
from driver_line import WAYS, Way, eventually, line
from driving import within

from nvme_async.errors import ControllerReplaced, HandedOver, NamespaceChanged, NamespaceReplaced
from nvme_async.keepalive import state
from nvme_async.spec import commands

ways = pytest.mark.parametrize("way", WAYS)


@ways
async def test_handing_over_while_a_format_is_in_flight(way: Way) -> None:
    async with line() as drivers:
        old = drivers.namespace
        await old.write(0, b"a" * 4096)
        rule = drivers.faults.add(queue="admin", opcode=0x80, delay=float("inf"), count=1)
        formatting = asyncio.create_task(drivers.driver.admin(commands.format_nvm(1, 0)))
        await eventually(lambda: rule.hits)
        recorder = drivers.driver.recorder
        assert recorder is not None
        found = state.decode(recorder.manifest.body)
        assert (found.unverified, found.readable_by) == (True, 4)
        parked = asyncio.create_task(old.write(1, b"b" * 4096))
        await asyncio.sleep(0.01)
        writes = drivers.faults.add(queue="io", opcode=1)
        await drivers.succeed(way)
        for call in (formatting, parked):
            with pytest.raises(HandedOver):
                await call
        new = drivers.namespace
        assert new.block_size == 4096  # as saved; nothing is sent for it
        drivers.faults.release()
        with pytest.raises(NamespaceChanged):
            await within(5, new.write(1, b"c" * 4096))
        assert new.block_size == 512
        assert writes.hits == 0
        await new.write(1, b"d" * 512)
        assert await new.read(0, 3) == bytes(512) + b"d" * 512 + bytes(512)
        recorder = drivers.driver.recorder
        assert recorder is not None
        assert not state.decode(recorder.manifest.body).unverified


@ways
async def test_handing_over_between_a_format_and_its_identify(way: Way) -> None:
    async with line() as drivers:
        rule = drivers.faults.add(queue="admin", opcode=6, nsid=1, cdw10=0, delay=float("inf"), count=1)
        formatting = asyncio.create_task(drivers.driver.admin(commands.format_nvm(1, 0)))
        await eventually(lambda: rule.hits)
        await drivers.succeed(way)
        drivers.faults.release()
        await asyncio.gather(formatting, return_exceptions=True)
        with pytest.raises(NamespaceChanged):
            await within(5, drivers.namespace.write(1, b"c" * 4096))
        await drivers.namespace.write(1, b"d" * 512)


@ways
async def test_a_successor_knows_the_identities(way: Way) -> None:
    async with line("size=16MiB,namespaces=2") as drivers:
        before = drivers.driver
        await drivers.succeed(way)
        after = drivers.driver
        assert after is not before
        assert after.identity == before.identity
        assert after.namespaces[2].identity == before.namespaces[2].identity
        assert after.namespaces[2].identity.uuid is not None
        old = after.namespaces[2]
        drivers.faults.remove_namespace(2, notice=False)
        drivers.faults.add_namespace(2, "16MiB", notice=False)
        await after.rescan()
        with pytest.raises(NamespaceReplaced):
            await old.read(0)
        page = (await after.admin(commands.identify(1))).data
        assert page is not None
        stranger = page[:4] + b"ANOTHER".ljust(20) + page[24:1024]
        drivers.faults.add(queue="admin", opcode=6, cdw10=1, payload=stranger)
        with pytest.raises(ControllerReplaced, match="ANOTHER"):
            await after.reset()
