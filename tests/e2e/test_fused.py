"""Fused: no admin command after the bring-up, neither by this process nor by its successors."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from driving import eventually
from managed import Verifier, emulator, uri

import nvme_async
from nvme_async.emulator import FOREVER
from nvme_async.errors import AdminRefused, HandedOver, RestoreRefused
from nvme_async.keepalive import config, restore, state
from nvme_async.keepalive.manifest import find
from nvme_async.manager import Manager
from nvme_async.native import _hotpath
from nvme_async.spec import commands
from nvme_async.spec.opcodes import AdminOpcode, LogPage

CLASS = "+keepalive-by-class"
"""What the table of quirks has for the PCI ids of a class that is driven fused with keepalive."""


class Threads:
    """Event loops in threads of their own."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        self.loops.append(loop)
        self._threads.append(thread)
        return loop

    def stop(self) -> None:
        for loop, thread in zip(self.loops, self._threads, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()
        self.loops.clear()
        self._threads.clear()


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.stop()


async def read_on(loop: asyncio.AbstractEventLoop, controller: nvme_async.Controller, lba: int) -> bytes:
    async def read() -> bytes:
        return await controller.namespaces[1].read(lba)

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(read(), loop))


async def test_all_queue_pairs_are_made_at_the_bring_up_and_taken_by_loops(threads: Threads) -> None:
    async with nvme_async.open("emulated:size=16MiB,queues=4", fused=True, io_queues=3) as controller:
        faults = controller.device.emulator.faults  # type: ignore[attr-defined]
        made = faults.counters()["admin"]
        assert made[AdminOpcode.CREATE_IO_SQ] == 3
        assert AdminOpcode.ASYNC_EVENT_REQUEST not in made
        assert controller.inspect()["spare_io_queues"] == 2
        await controller.namespaces[1].write(7, b"7" * controller.namespaces[1].block_size)
        for _ in range(3):  # loops come and go: their queue pairs are parked again
            for _ in range(2):
                assert (await read_on(threads.start(), controller, 7))[:1] == b"7"
            assert len(controller.queues.io) == 3
            threads.stop()
        assert faults.counters()["admin"] == made
        with pytest.raises(AdminRefused, match=r"Get Log Page was not sent.*fused"):
            await controller.admin(commands.get_log_page(LogPage.ERROR_INFORMATION, 64))
        assert faults.counters()["admin"] == made
        await controller.reset("a test")
        assert faults.counters()["admin"][AdminOpcode.CREATE_IO_SQ] == 6
        assert (await controller.namespaces[1].read(7))[:1] == b"7"


async def test_normal_and_fused_controllers_are_served_across_three_servicings() -> None:
    normal, fused = uri(), uri()
    async with Manager(keepalive=True) as manager:
        await manager.load(fused, quirks=CLASS)
        loads = {address: Verifier(await manager.namespace(address, 1)) for address in (normal, fused)}
        for load in loads.values():
            await load.more(20)
        before = {address: emulator(manager, address).faults.counters() for address in loads}
        for _ in range(3):
            for address, load in loads.items():
                await manager.service(address, keepalive=True)
                await load.more(20)
        for address, load in loads.items():
            await load.stop()
            assert load.errors == []
            after = emulator(manager, address).faults.counters()
            assert {name: after[name] - before[address][name] for name in ("enables", "resets", "queues_created")} == {
                "enables": 0,
                "resets": 0,
                "queues_created": 0,
            }
        controllers = {address: manager.device(address).controller for address in loads}
        assert [controllers[address].fused for address in (normal, fused)] == [False, True]
        assert emulator(manager, fused).faults.counters()["admin"] == before[fused]["admin"]
        assert AdminOpcode.ASYNC_EVENT_REQUEST in emulator(manager, normal).faults.counters()["admin"]


async def test_the_class_counts_with_keepalive_only_and_can_be_overridden() -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"quirks": CLASS}, False),
        ({"quirks": CLASS, "keepalive": True}, True),
        ({"quirks": CLASS, "keepalive": True, "fused": False}, False),
        ({"keepalive": True}, False),
        ({"fused": True}, True),
    ]
    for options, expected in cases:
        async with nvme_async.open("emulated:size=1MiB", **options) as controller:
            assert controller.fused is expected, options
            assert controller.inspect()["fused"] is expected


async def test_a_saved_state_says_so_and_older_releases_do_not_take_it() -> None:
    controller = await nvme_async.open("emulated:size=1MiB", keepalive=True, fused=True)
    with await controller.save() as bundle:
        assert json.loads(bundle.manifest)["readable_by"] == state.FUSED
        async with await restore(bundle) as successor:
            assert successor.fused
            _, _, body = find(successor.memory.pools[0])
            assert state.decode(body).fused
            with pytest.raises(AdminRefused):
                await successor.rescan()


async def test_a_restore_refuses_admin_commands_that_are_pending_or_have_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify = _hotpath.verify_queue
    for change, words in (
        ({"in_flight": 1}, "1 admin commands pending"),
        ({"done": 1}, "1 admin commands pending"),
        ({"waiting": True}, "completion at the head"),
    ):
        controller = await nvme_async.open("emulated:size=1MiB", keepalive=True, fused=True)
        with await controller.save() as bundle:
            with monkeypatch.context() as patched:

                def changed(hot: Any, *, sums: bool, change: dict[str, Any] = change) -> dict[str, Any]:
                    found: dict[str, Any] = verify(hot, sums=sums)
                    return found if hot.qid else found | change

                patched.setattr(_hotpath, "verify_queue", changed)
                with pytest.raises(RestoreRefused, match=words):
                    await restore(bundle)
            await (await restore(bundle)).close()


@pytest.mark.parametrize(
    ("completed", "words"),
    [(False, "1 admin commands pending$"), (True, "1 admin commands pending, with a completion at the head")],
)
async def test_a_restore_refuses_an_admin_command_that_the_controller_has(completed: bool, words: str) -> None:
    controller = await nvme_async.open("emulated:size=1MiB", keepalive=True, fused=True)
    faults = controller.device.emulator.faults  # type: ignore[attr-defined]
    faults.add(queue="admin", opcode=AdminOpcode.GET_LOG_PAGE, count=1, delay=FOREVER)
    # The driver itself sends none: straight into the ring.
    sent = asyncio.create_task(
        controller.queues.admin.submit(commands.get_log_page(LogPage.ERROR_INFORMATION, 64), bytearray(64))
    )
    await eventually(faults.outstanding)
    with await controller.save() as bundle:
        with pytest.raises(HandedOver):
            await sent
        if completed:
            faults.release()
            await eventually(lambda: not faults.outstanding())
        before = faults.counters()
        for _ in range(2):  # it changes nothing
            with pytest.raises(RestoreRefused, match=words):
                await restore(bundle)
        assert faults.counters() == before
        async with await restore(bundle, policy="fresh") as successor:
            assert successor.fused
            assert faults.counters()["enables"] == before["enables"] + 1
            await successor.namespaces[1].read(0)


async def test_the_command_lines_option_applies_to_bring_up_and_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "command_line", config.CommandLine(fused=True))
    async with nvme_async.open("emulated:size=1MiB", keeper="none") as controller:
        assert controller.fused
        assert "fused on (command line)" in controller.decision
    async with nvme_async.open("emulated:size=1MiB", keeper="none", fused=False) as controller:
        assert not controller.fused
        assert "fused off (argument fused)" in controller.decision
    async with Manager(keepalive=True) as manager:
        address = uri()
        await manager.load(address)
        assert manager.device(address).controller.fused
        monkeypatch.setattr(config, "command_line", config.CommandLine(fused=False))
        await manager.service(address, keepalive=True)
        assert not manager.device(address).controller.fused


async def test_a_normal_controllers_admin_commands_are_no_obstacle() -> None:
    """An Asynchronous Event Request is always out there."""
    controller = await nvme_async.open("emulated:size=1MiB", keepalive=True)
    with await controller.save() as bundle:
        await (await restore(bundle)).close()
