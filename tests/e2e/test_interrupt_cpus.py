"""A queue's interrupts follow the CPUs that its loop's thread is bound to."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Collection

import pytest
from driving import FAST, eventually

import nvme_async


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU is all there is")
async def test_vectors_of_bound_threads_are_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nvme_async.open("emulated:size=16MiB", hugepages="never", **FAST) as controller:
        steered: dict[int, Collection[int]] = {}

        def steer(vector: int, cpus: Collection[int]) -> bool:
            steered[vector] = set(cpus)
            return True

        monkeypatch.setattr(controller.transport.device, "steer", steer)  # type: ignore[attr-defined]
        done = threading.Event()
        cpu = min(os.sched_getaffinity(0))

        async def io() -> None:
            await controller.namespaces[1].read(0)
            await asyncio.to_thread(done.wait, 20)

        def work() -> None:
            os.sched_setaffinity(0, {cpu})
            asyncio.run(io())

        thread = threading.Thread(target=work)
        thread.start()
        await eventually(lambda: bool(steered))
        await eventually(lambda: [cpu] in [q["interrupt_cpus"] for q in controller.inspect()["io_queues"]])
        done.set()
        await asyncio.to_thread(thread.join)
        assert list(steered.values()) == [{cpu}]
        assert 0 not in steered
