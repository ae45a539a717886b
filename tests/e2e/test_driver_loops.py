"""Event loops, threads and controllers in every combination: one queue pair per loop, as long as
the controller has any.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from driving import FAST, HASTY, LoopThread, eventually, exercise, faults, pattern, within

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.emulator import FOREVER
from nvme_async.errors import ConfigurationError, ControllerGone, QueueShutdown
from nvme_async.keepalive.controller import Controller
from nvme_async.spec import commands

FACTORIES: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]
MODES = ("adaptive", "interrupt", "poll")


def in_thread(factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Any]) -> Any:
    """Runs asyncio.run() in its own thread; returns a concurrent Future of main()'s result."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                result = runner.run(main())
            future.set_result(result)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return future


@pytest.mark.both_loops
@pytest.mark.parametrize("mode", MODES)
async def test_many_loops_in_many_threads_do_io(address: str, mode: str) -> None:
    async with nvme_async.open(address, **FAST, mode=mode) as controller:
        ns = controller.namespaces[min(controller.namespaces)]
        count = min(5, controller.inspect()["io_queue_limit"] - 1)
        futures = [in_thread(FACTORIES[i % 2], lambda i=i: exercise(ns, i + 1)) for i in range(count)]  # type: ignore[misc]
        threads = {await within(60, asyncio.gather(exercise(ns, 0), *map(asyncio.wrap_future, futures))) is not None}
        assert threads == {True}
        state = controller.inspect()
        assert state["loops_sharing_a_queue"] == 0
        assert len(state["io_queues"]) >= 2
        qids = [queue["qid"] for queue in state["io_queues"]]
        assert len(set(qids)) == len(qids)


async def test_each_loop_has_its_own_queue_pair(faulty: str) -> None:
    async with nvme_async.open(faulty, **FAST) as controller:
        ns = controller.namespaces[1]
        with LoopThread() as one, LoopThread(uvloop.new_event_loop) as two:
            rules = {qid: faults(controller).add(queue="io", qid=qid) for qid in (1, 2, 3)}
            await exercise(ns, 0, 1)
            await one.submit(exercise(ns, 1, 2))
            await two.submit(exercise(ns, 2, 3))
            assert [rule.hits for rule in rules.values()] == [10, 20, 30]
            assert controller.queues.io[one.loop].loop is one.loop
            assert controller.inspect()["vectors"] > 2


@pytest.mark.parametrize("factory", FACTORIES, ids=["asyncio", "uvloop"])
async def test_more_loops_than_queue_pairs_share(factory: Any) -> None:
    """Later loops use another loop's queue pair, which is slower, and counted."""
    async with nvme_async.open("emulated:size=16MiB,block=512,queues=2", **FAST) as controller:
        ns = controller.namespaces[1]
        with LoopThread(factory) as own, LoopThread(factory) as third, LoopThread(factory) as fourth:
            await own.submit(exercise(ns, 1, 2))
            await within(
                20,
                asyncio.gather(third.submit(exercise(ns, 2, 2)), fourth.submit(exercise(ns, 3, 2)), exercise(ns, 0, 2)),
            )
            assert controller.inspect()["loops_sharing_a_queue"] == 2
            assert len(controller.inspect()["io_queues"]) == 2

            async def others() -> None:
                into = bytearray(512)
                await ns.write(5000, pattern(512))
                await ns.flush()
                assert await ns.readinto(5000, into) == 512
                assert into == pattern(512)
                await ns.compare(5000, into)
                with pytest.raises(
                    ConfigurationError, match=r"shares another loop's queue pair \(the controller has 2\)"
                ):
                    await ns.write_zeroes(0, 1)
                with pytest.raises(nvme_async.errors.LbaOutOfRange):
                    await ns.read(ns.blocks)
                with pytest.raises(asyncio.TimeoutError):
                    async with asyncio.timeout(0):
                        await ns.read(0)

            await within(10, third.submit(others()))


async def test_a_queue_pair_is_reused_after_its_loop_has_ended() -> None:
    async with nvme_async.open("emulated:size=16MiB,block=512,queues=2", **FAST) as controller:
        ns = controller.namespaces[1]
        for i in range(6):
            await asyncio.wrap_future(in_thread(FACTORIES[i % 2], lambda i=i: exercise(ns, i + 1, 2)))
        assert controller.inspect()["loops_sharing_a_queue"] == 0
        counters = faults(controller).counters()
        assert counters["queues_created"] - counters["queues_deleted"] == 4  # two pairs
        await exercise(ns, 0, 2)


@pytest.mark.parametrize("end", ["run", "bare"])
@pytest.mark.parametrize("factory", FACTORIES, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_loop_that_ends_with_commands_in_flight_disturbs_no_other(end: str, factory: Any, mode: str) -> None:
    """Their memory stays with the controller; late completions disturb no other command, and the
    queue pair is reused.
    """
    async with nvme_async.open("emulated:size=16MiB,block=512,queues=2", **FAST, mode=mode) as controller:
        ns = controller.namespaces[1]
        await ns.write(0, pattern(512))
        rule = faults(controller).add(queue="io", qid=2, opcode=0x02, delay=FOREVER)
        before = {(slot["offset"]) for pool in controller.inspect()["memory"]["pools"] for slot in pool["slots"]}

        def thread() -> None:
            async def main() -> None:
                tasks.extend(asyncio.create_task(ns.read(i)) for i in range(20))
                tasks.append(asyncio.create_task(ns.read_many(range(30))))
                while rule.hits < 20:
                    await asyncio.sleep(0.001)

            tasks: list[Any] = []
            if end == "run":
                with asyncio.Runner(loop_factory=factory) as runner:
                    runner.run(main())
                return
            # Without asyncio.run(), so the tasks aren't cancelled.
            loop = factory()
            loop.run_until_complete(main())
            for task in tasks:
                task._log_destroy_pending = False
            loop.close()

        await asyncio.to_thread(thread)
        gc.collect()
        held = faults(controller).outstanding()
        assert len(held) >= 20
        ended = next(queue for loop, queue in controller.queues.io.items() if loop.is_closed())
        assert ended.hot.n_outstanding >= 20
        slots = [slot for pool in controller.inspect()["memory"]["pools"] for slot in pool["slots"]]
        for one in held:
            for piece in one.ranges:
                assert any(
                    0 <= piece.iova - controller.memory.pools[0].iova - slot["offset"] < slot["nbytes"]
                    for slot in slots
                )  # type: ignore[union-attr]
        rule.remove()
        with LoopThread() as other:
            await within(20, other.submit(exercise(ns, 3, 3)))
            assert controller.inspect()["loops_sharing_a_queue"] == 0
            assert faults(controller).outstanding() == []
        await exercise(ns, 0, 3)
        del before


async def test_completions_for_an_ended_loop_are_harmless(faulty: str) -> None:
    """They arrive before another loop takes the queue pair over, in a reset, and while the
    controller is being closed.
    """
    for what in ("release", "reset", "close"):
        controller = await nvme_async.open(faulty, **FAST, drain_timeout=0.2)
        ns = controller.namespaces[1]
        rule = faults(controller).add(queue="io", qid=2, opcode=0x02, delay=FOREVER)

        def thread(ns: Namespace = ns, rule: Any = rule) -> None:
            async def main() -> None:
                tasks.extend(asyncio.create_task(ns.read(i)) for i in range(10))
                while rule.hits < 10:
                    await asyncio.sleep(0.001)

            tasks: list[Any] = []
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            for task in tasks:
                task._log_destroy_pending = False
            loop.close()

        await asyncio.to_thread(thread)
        rule.remove()
        if what == "release":
            faults(controller).release()
            queue = next(queue for loop, queue in controller.queues.io.items() if loop.is_closed())
            reaped = queue.hot.reap()
            while queue.hot.n_outstanding:
                await asyncio.sleep(0.001)
                reaped += queue.hot.reap()
            assert reaped == 10
        elif what == "reset":
            await within(10, controller.reset())
            assert await ns.read(0) == bytes(512)
        await within(10, controller.close())


async def test_several_controllers_work_in_one_loop(faulty: str) -> None:
    async with (
        nvme_async.open("emulated:size=8MiB,block=512,serial=A", **FAST) as a,
        nvme_async.open("emulated:size=8MiB,block=4096,serial=B", **FAST, mode="poll") as b,
        nvme_async.open("emulated:size=8MiB,block=512,serial=C,reactor=own", **FAST, mode="interrupt") as c,
    ):
        await within(30, asyncio.gather(*(exercise(one.namespaces[1], 0) for one in (a, b, c))))
        assert [one.identify.sn.strip() for one in (a, b, c)] == ["A", "B", "C"]
        await a.close()
        await exercise(b.namespaces[1], 0, 3)
        with pytest.raises(QueueShutdown):
            await a.namespaces[1].read(0)


def test_successive_loops_use_a_controller_of_another_thread(faulty: str) -> None:
    with LoopThread() as home:
        controller = asyncio.run_coroutine_threadsafe(nvme_async.open(faulty, **FAST)._open(), home.loop).result(10)
        try:
            ns = controller.namespaces[1]
            for i in range(4):
                asyncio.run(exercise(ns, i, 3))
                assert len(controller.inspect()["io_queues"]) == 2  # the home loop's, and the one that is passed on
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(exercise(ns, 5, 3))
        finally:
            asyncio.run_coroutine_threadsafe(controller.close(), home.loop).result(10)


async def test_admin_commands_and_close_work_from_another_loop(faulty: str) -> None:
    controller = await nvme_async.open(faulty, **FAST)
    ns = controller.namespaces[1]
    with LoopThread() as other:

        async def there() -> None:
            page = await controller.admin(commands.identify(1))
            assert page.data is not None
            assert len(page.data) == 4096
            with pytest.raises(nvme_async.errors.CommandError):
                await controller.admin(commands.identify(0xEE))
            await ns.write(0, pattern(512))
            await controller.reset()
            assert await ns.read(0) == pattern(512)
            await controller.close()
            await controller.close()
            with pytest.raises(QueueShutdown):
                await ns.read(0)

        await within(20, other.submit(there()))
    assert controller.state == "closed"


def test_an_ended_home_loop_is_an_error_not_a_hang(faulty: str) -> None:
    async def open_() -> Controller:
        return await nvme_async.open(faulty, **FAST)

    for closed in (False, True):
        home = asyncio.new_event_loop()
        controller = home.run_until_complete(open_())
        ns = controller.namespaces[1]
        if closed:
            home.close()

        async def elsewhere(ns: Namespace = ns, controller: Controller = controller) -> None:
            for call in (
                lambda: ns.read(0),
                lambda: ns.write_zeroes(0, 1),
                lambda: controller.admin(commands.identify(1)),
            ):
                with pytest.raises(QueueShutdown, match="the event loop that opened this controller is not running"):
                    await within(5, call())  # type: ignore[no-untyped-call]
            if controller.loop.is_closed():
                await within(10, controller.close())
                await controller.close()
                with pytest.raises(QueueShutdown):
                    await ns.read(0)
            else:
                with pytest.raises(QueueShutdown, match="is not running"):
                    await within(10, controller.close())

        asyncio.run(elsewhere())
        if not closed:
            home.run_until_complete(controller.close())
            home.run_until_complete(home.shutdown_default_executor())
            home.close()


async def test_sharers_survive_the_end_of_the_shared_loop(faulty: str) -> None:
    """A loop that shared its queue pair gets an error for a request on its way there, and another
    queue pair to share, if there is one.
    """
    async with nvme_async.open("emulated:size=16MiB,block=512,queues=1", **FAST) as controller:
        ns = controller.namespaces[1]
        with LoopThread() as guest:
            await guest.submit(exercise(ns, 1, 1))
            rule = faults(controller).add(queue="io", opcode=0x02, delay=FOREVER)
            task = guest.submit(ns._slow("read", (0,), {}))
            await eventually(lambda: rule.hits)
            rule.remove()
            (request,) = (one for one in asyncio.all_tasks() if "on_loop" in repr(one))
            request.cancel()
            with pytest.raises(QueueShutdown, match="the event loop that lends its queue pair is not running"):
                await within(5, task)
            faults(controller).release()
            await guest.submit(exercise(ns, 1, 1))


async def test_a_stuck_thread_delays_others_only_briefly(faulty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Controller._on_owner

    async def on_owner(self: Controller, queue: Any, function: Any, *, timeout: float = 10.0) -> Any:
        return await original(self, queue, function, timeout=0.2)

    monkeypatch.setattr(Controller, "_on_owner", on_owner)
    controller = await nvme_async.open(faulty, **{**FAST, **HASTY})
    ns = controller.namespaces[1]
    with LoopThread() as stuck:
        await stuck.submit(exercise(ns, 1, 1))
        there, back = threading.Event(), threading.Event()
        stuck.loop.call_soon_threadsafe(there.set)
        stuck.loop.call_soon_threadsafe(back.wait, 100)
        await asyncio.to_thread(there.wait, 30)
        try:
            await within(10, controller.close())
        finally:
            back.set()
        assert controller.state == "closed"
        with pytest.raises(QueueShutdown):
            await ns.read(0)
        # Its thread resumes in the end and releases its resources.
        with pytest.raises(QueueShutdown):
            await within(10, stuck.submit(ns._slow("read", (0,), {})))


async def test_queue_creation_survives_loops_that_come_and_go(faulty: str) -> None:
    """Cancelled at any moment: a creation that has started finishes, and nothing is lost."""
    rng = random.Random(4)
    async with nvme_async.open("emulated:size=16MiB,block=512,queues=4", **FAST) as controller:
        ns = controller.namespaces[1]
        for _ in range(30):

            async def main() -> None:
                task = asyncio.ensure_future(ns.read(0))
                for _ in range(rng.randrange(8)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            await asyncio.to_thread(asyncio.run, main())
        with LoopThread() as a, LoopThread() as b, LoopThread() as c:
            await within(20, asyncio.gather(*(one.submit(exercise(ns, i, 2)) for i, one in enumerate((a, b, c), 1))))
            assert controller.inspect()["loops_sharing_a_queue"] == 0
    assert controller.state == "closed"


async def test_a_failed_queue_creation_leads_to_sharing(faulty: str) -> None:
    """Another loop's is shared, and no id, vector or memory is lost."""
    async with nvme_async.open("emulated:size=16MiB,block=512,queues=3", **FAST) as controller:
        ns = controller.namespaces[1]
        for opcode in (0x05, 0x01):
            rule = faults(controller).add(queue="admin", opcode=opcode, fail=0x06, count=1)
            with LoopThread() as other:
                await within(10, other.submit(exercise(ns, 1, 1)))
            assert rule.hits >= 1
            rule.remove()
            await within(10, asyncio.to_thread(asyncio.run, exercise(ns, 1, 1)))
            with LoopThread() as other:
                await within(10, other.submit(exercise(ns, 1, 1)))
        state = controller.inspect()
        owners = [
            slot["owner"]
            for pool in state["memory"]["pools"]
            for slot in pool["slots"]
            if slot["owner"].startswith("queue")
        ]
        assert sorted(owners) == [
            "queue 0",
            *(f"queue {queue['qid']}" for queue in sorted(state["io_queues"], key=lambda q: q["qid"])),
        ]
        with LoopThread() as other, LoopThread() as another:
            await within(10, other.submit(exercise(ns, 1, 1)))
            await within(10, another.submit(exercise(ns, 2, 1)))
            assert sorted(queue["qid"] for queue in controller.inspect()["io_queues"]) == [1, 2, 3]


async def test_a_controller_failure_during_queue_creation_ends_in_an_error(faulty: str) -> None:
    controller = await nvme_async.open(faulty, **{**FAST, **HASTY})
    ns = controller.namespaces[1]
    faults(controller).add(queue="admin", opcode=0x05, remove=True)
    with LoopThread() as other, pytest.raises(ControllerGone):
        await within(10, other.submit(exercise(ns, 1, 1)))
    await within(10, controller.close())


async def test_a_reset_during_queue_creation(faulty: str) -> None:
    for opcode in (0x05, 0x01):
        async with nvme_async.open(faulty, **FAST) as controller:
            ns = controller.namespaces[1]
            rule = faults(controller).add(queue="admin", opcode=opcode, delay=FOREVER, count=1)
            with LoopThread() as other:
                task = other.submit(exercise(ns, 1, 2))
                await eventually(lambda: rule.hits)  # noqa: B023
                await within(10, controller.reset())
                await within(10, task)
                await exercise(ns, 2, 2)
                assert sorted(queue["qid"] for queue in controller.inspect()["io_queues"]) == [1, 2]
                assert controller.inspect()["loops_sharing_a_queue"] == 0
