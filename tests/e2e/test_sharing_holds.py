"""Workers hold their I/O while an admin command of another process changes namespaces, whatever
happens to their connection, and however closely such commands follow each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from driving import FAST, eventually, faults, pattern, within
from sharing_kit import owner, worker
from verified_load import cut

import nvme_async
from nvme_async.driver import discovery
from nvme_async.emulator import FOREVER
from nvme_async.errors import CommandError, ControllerTimeout, NamespaceChanged
from nvme_async.sharing import Share
from nvme_async.spec import commands

FORMAT = 0x80
TO_512, TO_4096 = 0, 1
Pair = tuple[nvme_async.Controller, Share]


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Pair]:
    async with owner(tmp_path / "s") as pair:
        yield pair


class Late:
    """An async function, delayed until go() is called."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._go = asyncio.Event()
        self.calls = 0

    async def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        await self._go.wait()
        return await self._real(*arguments)

    def go(self) -> None:
        self._go.set()


@pytest.fixture
async def attaching(shared: Pair, monkeypatch: pytest.MonkeyPatch) -> Late:
    """Of workers to the owner, after their connection was lost."""
    handlers = shared[1]._requests._handlers
    late = Late(handlers["attach"])
    monkeypatch.setitem(handlers, "attach", late)
    return late


async def stuck_format(own: nvme_async.Controller, lbaf: int) -> asyncio.Task[Any]:
    """The controller has a Format NVM, which it executes at faults(own).release()."""
    rule = faults(own).add(queue="admin", opcode=FORMAT, delay=FOREVER, count=1)
    running = asyncio.ensure_future(own.admin(commands.format_nvm(1, lbaf)))
    await eventually(lambda: rule.hits)
    return running


async def nothing_is_sent(own: nvme_async.Controller, request: asyncio.Future[Any]) -> None:
    before = faults(own).counters()["io"]
    await asyncio.sleep(0.05)
    assert faults(own).counters()["io"] == before
    assert not request.done()


async def test_the_end_of_a_hold_does_not_end_the_next_one(shared: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    own, share = shared
    async with worker(share) as controller:
        namespace = controller.namespaces[1]
        reading = Late(controller.effects.of_another)
        monkeypatch.setattr(controller.effects, "of_another", reading)
        await within(20, own.admin(commands.format_nvm(1, TO_512)))
        await eventually(lambda: reading.calls)  # the worker obeys the end of the first hold
        formatting = await stuck_format(own, TO_4096)
        reading.go()
        write = asyncio.ensure_future(namespace.write(0, pattern(4096)))
        await nothing_is_sent(own, write)
        faults(own).release()
        await within(20, formatting)
        with pytest.raises(NamespaceChanged):  # it was made in an earlier format
            await within(20, write)
        await namespace.write(0, pattern(4096))
        assert await namespace.read(0) == pattern(4096)


async def test_a_hold_outlasts_a_lost_connection(shared: Pair) -> None:
    own, share = shared
    async with worker(share) as controller:
        namespace = controller.namespaces[1]
        formatting = await stuck_format(own, TO_512)
        cut(controller)
        await eventually(lambda: controller.inspect()["lease"]["reconnections"] == 1)
        write = asyncio.ensure_future(namespace.write(0, pattern(4096)))
        await nothing_is_sent(own, write)
        faults(own).release()
        await within(20, formatting)
        with pytest.raises(NamespaceChanged):
            await within(20, write)
        assert await namespace.read(0) == bytes(512)


async def test_a_hold_whose_end_was_missed_ends(shared: Pair, attaching: Late) -> None:
    own, share = shared
    async with worker(share) as controller:
        namespace = controller.namespaces[1]
        formatting = await stuck_format(own, TO_512)
        cut(controller)
        await eventually(lambda: attaching.calls)
        write = asyncio.ensure_future(namespace.write(0, pattern(4096)))
        faults(own).release()
        await within(20, formatting)
        await nothing_is_sent(own, write)
        attaching.go()
        with pytest.raises(NamespaceChanged):
            await within(20, write)
        assert await namespace.read(0) == bytes(512)


async def test_a_command_waits_for_a_worker_that_is_lost_before_it_holds(shared: Pair, attaching: Late) -> None:
    own, share = shared
    async with worker(share) as controller:
        rule = faults(own).add(queue="io", delay=FOREVER, count=1)
        write = asyncio.ensure_future(controller.namespaces[1].write(0, pattern(4096)))
        await eventually(lambda: rule.hits)
        formatting = asyncio.ensure_future(own.admin(commands.format_nvm(1, TO_512)))
        [lease] = share.leases.values()
        await eventually(lambda: lease.holding)
        cut(controller)
        faults(own).release()
        await within(20, write)
        await eventually(lambda: attaching.calls)
        await asyncio.sleep(0.05)
        assert FORMAT not in faults(own).counters()["admin"]
        attaching.go()
        await within(20, formatting)
        await eventually(lambda: controller.namespaces[1].block_size == 512)
        assert await controller.namespaces[1].read(0) == bytes(512)


async def test_a_command_is_not_sent_if_a_worker_stays_away(tmp_path: Path) -> None:
    hasty = {"command_timeout": 0.2, "abort_timeout": 0.1}
    async with owner(tmp_path / "s", options=hasty) as (own, share), worker(share) as controller:
        handlers = share._requests._handlers
        handlers["attach"] = late = Late(handlers["attach"])
        cut(controller)
        with pytest.raises(ControllerTimeout, match="was not sent"):
            await within(20, own.admin(commands.format_nvm(1, TO_512)))
        assert FORMAT not in faults(own).counters()["admin"]
        await controller.namespaces[1].write(0, pattern(4096))
        assert await controller.namespaces[1].read(0) == pattern(4096)
        late.go()


async def test_a_namespace_that_cannot_be_read_again_takes_no_requests(
    shared: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, share = shared
    async with worker(share) as controller:
        namespace = controller.namespaces[1]
        real, failed = discovery.examine, []

        async def examine(asked: Any, nsid: int) -> Any:
            if asked is controller and not works:
                failed.append(nsid)
                raise CommandError(0, 0x06, text="Internal Error")
            return await real(asked, nsid)

        works = False
        monkeypatch.setattr(discovery, "examine", examine)
        await within(20, own.admin(commands.format_nvm(1, TO_512)))
        await eventually(lambda: failed)
        with pytest.raises(NamespaceChanged):
            await within(20, namespace.write(0, pattern(4096)))
        works = True
        await eventually(lambda: namespace.block_size == 512)
        assert await namespace.read(0) == bytes(512)


async def test_a_worker_that_comes_during_a_hold_waits_for_its_end(shared: Pair) -> None:
    own, share = shared
    async with worker(share):
        formatting = await stuck_format(own, TO_512)
        opening = asyncio.ensure_future(worker(share, **FAST).__aenter__())
        await nothing_is_sent(own, opening)
        faults(own).release()
        await within(20, formatting)
        controller = await within(20, opening)
        assert controller.namespaces[1].block_size == 512
        await controller.close()


async def test_a_worker_is_refused_if_the_hold_lasts(shared: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvme_async.sharing.owner._PATIENCE", 0.05)
    own, share = shared
    async with worker(share):
        formatting = await stuck_format(own, TO_512)
        with pytest.raises(nvme_async.errors.LeaseError, match="being changed \\(Format NVM\\)"):
            await within(20, worker(share).__aenter__())
        faults(own).release()
        await within(20, formatting)
