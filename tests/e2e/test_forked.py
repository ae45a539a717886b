"""A fork while controllers are open: the child owns none of their resources, and nothing it does
affects the parent.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import time
from typing import Any

import pytest
from forking import in_child

import nvme_async
from nvme_async import Manager
from nvme_async.emulator import EmulatedController
from nvme_async.errors import ControllerGone, QueueShutdown
from nvme_async.runtime import forks
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature

BLOCK = 4096


async def ended(pid: int) -> int:
    """Its exit status, while the loop continues."""
    limit = time.monotonic() + 60
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it doesn't block
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it was killed
            pytest.fail("the child hangs")
        await asyncio.sleep(0.005)


async def check_parent(namespace: nvme_async.Namespace) -> None:
    data = os.urandom(8 * BLOCK)
    for lba in range(0, 512, 8):
        await namespace.write(lba, data)
        assert await namespace.read(lba, 8) == data


async def test_a_child_is_refused_with_the_reason_and_may_close() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        namespace = controller.namespaces[1]
        await namespace.write(0, b"a" * BLOCK)

        def act() -> None:
            async def use() -> None:
                for attempt in (
                    lambda: namespace.read(0),
                    lambda: namespace.write(0, b"b" * BLOCK),
                    lambda: namespace.flush(),
                    lambda: namespace.read_many([0, 1]),
                    lambda: controller.admin(commands.get_features(Feature.NUMBER_OF_QUEUES)),
                    lambda: controller.reset(),
                    lambda: controller.rescan(),
                ):
                    with pytest.raises(QueueShutdown, match=f"process {os.getppid()}, which forked"):
                        await attempt()  # type: ignore[no-untyped-call]
                with pytest.raises(QueueShutdown, match="forked"):
                    controller.alloc(BLOCK)
                with pytest.raises(ControllerGone, match="forked"):
                    controller.device.read32(0)
                await controller.close()
                controller.device.close()

            asyncio.run(asyncio.wait_for(use(), 50))

        assert await ended(in_child(act)) == 0
        assert await namespace.read(0) == b"a" * BLOCK
        await check_parent(namespace)
        await controller.rescan()


async def test_a_child_that_drops_everything_during_io_does_not_affect_the_parent() -> None:
    """Coroutines are closed, buffers and queue pairs dropped while the parent's commands are in
    flight.
    """
    async with nvme_async.open("emulated:size=16MiB", mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        images = [random.Random(number).randbytes(BLOCK) for number in range(64)]
        going = True

        async def work(number: int) -> int:
            rounds = 0
            while going:
                await namespace.write(number, images[number])
                assert await namespace.read(number) == images[number]
                rounds += 1
            return rounds

        tasks = [asyncio.ensure_future(work(number)) for number in range(64)]
        await asyncio.sleep(0.02)

        def act() -> None:
            time.sleep(random.choice((0, 0.01)))  # the parent's controller goes on, in rings that were the child's too
            for task in tasks:
                task.get_coro().close()  # type: ignore[union-attr]
            tasks.clear()
            for queue in controller.queues.all():
                queue.hot.reap()
                queue.hot.flush()
            gc.collect()

        for _ in range(8):
            assert await ended(in_child(act)) == 0
            await asyncio.sleep(0.002)
        going = False
        rounds = await asyncio.gather(*tasks)
        assert min(rounds) > 0
        assert controller.failure is None
        assert all(queue["orphans"] == 0 for queue in controller.inspect()["io_queues"]), "no command lost its awaiter"
        await check_parent(namespace)


async def test_a_childs_writes_to_a_buffer_do_not_reach_the_parent() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        with controller.alloc(BLOCK) as buffer:
            buffer[:4] = b"mine"
            view = memoryview(buffer)

            def act() -> None:
                assert view[:4] == b"mine", "what was there can be read"
                view[:4] = b"hers"
                assert view[:4] == b"hers"

            assert await ended(in_child(act)) == 0
            assert view[:4] == b"mine"
            view.release()
        await check_parent(controller.namespaces[1])


async def test_a_peer_notices_the_parents_death_while_a_child_is_alive(tmp_path: Any) -> None:
    """A child holds no copy of the connection: otherwise a server would keep a dead driver's
    mappings, and accept no successor.
    """
    path = str(tmp_path / "socket")
    emulator = EmulatedController("size=16MiB")
    try:
        emulator.listen(path)
        ready, pipe_end = os.pipe()

        def drive() -> None:
            async def main() -> None:
                controller = await nvme_async.open(f"vfio-user:{path}")
                await controller.namespaces[1].read(0)
                child = in_child(lambda: time.sleep(60))
                os.write(pipe_end, f"{child}\n".encode())
                await asyncio.sleep(60)

            asyncio.run(main())

        driver = in_child(drive)
        child = int((await asyncio.to_thread(os.read, ready, 64)).decode())
        os.kill(driver, signal.SIGKILL)
        await ended(driver)
        try:
            async with asyncio.timeout(50), nvme_async.open(f"vfio-user:{path}") as controller:
                await check_parent(controller.namespaces[1])
        finally:
            os.kill(child, signal.SIGKILL)
        for fd in (ready, pipe_end):
            os.close(fd)
    finally:
        emulator.close()


async def test_closing_a_manager_in_a_child_does_not_wait() -> None:
    async with Manager(workers=2) as manager:
        device = await manager.load("emulated:size=16MiB")
        namespace = await device.namespace(1)
        assert await namespace.read(0) == bytes(BLOCK)

        def act() -> None:
            async def use() -> None:
                with pytest.raises(QueueShutdown):
                    await manager.load("emulated:size=1MiB")
                with pytest.raises(QueueShutdown):
                    await namespace.read(0)
                await manager.close()

            async def nothing() -> None:
                pass

            asyncio.run(asyncio.wait_for(use(), 50))
            with pytest.raises(QueueShutdown):
                manager.run(nothing())

        assert await ended(in_child(act)) == 0
        for _ in range(100):
            assert await namespace.read(0) == bytes(BLOCK)


async def test_a_child_can_open_its_own_controllers() -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:

        def act() -> None:
            async def use() -> None:
                async with nvme_async.open("emulated:size=16MiB") as own:
                    await check_parent(own.namespaces[1])

            asyncio.run(asyncio.wait_for(use(), 50))

        pid = in_child(act)
        await check_parent(controller.namespaces[1])
        assert await ended(pid) == 0


def test_a_failing_owner_in_the_child_does_not_stop_the_others() -> None:
    class Owner:
        forgotten = False

        def forget_in_child(self) -> None:
            self.forgotten = True
            raise RuntimeError("on purpose")

    owners = [Owner() for _ in range(3)]
    for owner in owners:
        forks.watch(owner)

    def act() -> None:
        assert all(owner.forgotten for owner in owners)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(act), 0)[1]) == 0
    assert not any(owner.forgotten for owner in owners)
