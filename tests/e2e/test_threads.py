"""Many threads with an event loop each on one controller, switched between as often as possible.

A free-threaded interpreter runs this too (the job for 3.14t); with a global lock it shows what
depends on where threads are switched.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator

import pytest

import nvme_async

THREADS = 6
ROUNDS = 25
TAG = 0xABCD00


@pytest.fixture(autouse=True)
def _often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


async def test_loops_memory_registrations_and_inspection_at_once() -> None:
    failures: list[BaseException] = []
    async with nvme_async.open("emulated:size=16MiB,block=512", io_queues=8) as controller:
        ns = controller.namespaces[1]
        ended = threading.Event()

        async def user(number: int) -> None:
            block = bytes([number + 1]) * 512
            for i in range(ROUNDS):
                lba = 100 * number + i + 1  # block 0 is for what they share
                with controller.alloc(4096, tag=TAG + number) as buffer:
                    buffer[:512] = block
                    await ns.write(lba, buffer[:512])
                    await ns.readinto(lba, buffer[512:1024])
                    assert buffer[512:1024] == block
                assert await ns.read(lba) == block
                await ns.pwrite(bytes([number + 1]) * 8, 8 * number)  # all of them in one block
                many = await ns.read_many([lba, lba], blocks=1)
                assert bytes(many.data) == 2 * block

        def thread(number: int) -> None:
            try:
                asyncio.run(user(number))
            except BaseException as error:
                failures.append(error)

        def watcher() -> None:
            while not ended.is_set():
                state = controller.inspect()
                assert state["state"] == "ready"
                gc.collect(0)

        threads = [threading.Thread(target=thread, args=(number,)) for number in range(THREADS)]
        threads.append(threading.Thread(target=watcher))
        for one in threads:
            one.start()
        for _ in range(ROUNDS):  # on the home loop, as it must be
            with controller.register(bytearray(4096)) as mine:
                assert mine.nbytes == 4096
            await asyncio.sleep(0.001)
        for one in threads[:-1]:
            await asyncio.to_thread(one.join)
        ended.set()
        threads[-1].join()
        assert failures == []
        assert await ns.pread(8 * THREADS, 0) == b"".join(bytes([n + 1]) * 8 for n in range(THREADS))
        used = {slot["tag"] for pool in controller.inspect()["memory"]["pools"] for slot in pool.get("slots", ())}
        assert not used & set(range(TAG, TAG + THREADS))
