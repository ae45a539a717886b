"""Workers as processes: killed, stopped and replaced while others verify every block."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from driving import descriptors, eventually, faults, is_stopped
from sharing_kit import Worker, owner

from nvme_async.sharing import Share


def clean(share: Share, leases: int) -> bool:
    """Only these leases exist, and nothing is reserved for any other."""
    own = share.controller
    assert own.memory is not None
    taken = sum(len(lease.queues) for lease in share.leases.values())
    return (
        len(share.leases) == leases
        and len(own.queues.lent) == taken
        and len(own.memory.windows) == leases
        and own.memory.lent_mappings == sum(len(lease.mappings) for lease in share.leases.values())
        and len(share.stops._free) == 1024 - 16 - leases
    )


async def test_killed_workers_leave_nothing_behind_and_do_not_affect_others(tmp_path: Path) -> None:
    random.seed(17)
    async with owner(tmp_path / "s", workers=16) as (own, share):
        steady = [await Worker.start(tmp_path / "s", seed) for seed in (1, 2)]
        await eventually(lambda: clean(share, 2) and len(share._connections) == 2)
        before = descriptors()
        for turn in range(6):
            victim = await Worker.start(tmp_path / "s", 3 + turn)
            await asyncio.sleep(random.random() * 0.05)
            await victim.kill()
            await eventually(lambda: clean(share, 2))
        await eventually(lambda: descriptors() == before)
        results = [await worker.stop() for worker in steady]
        assert all(rounds > 0 and resets == 0 for rounds, _, resets in results)
        assert own.resets == 1  # for the doorbells, when sharing began
        assert share.killed >= 6
        await eventually(lambda: clean(share, 0))


async def test_a_reset_under_load_holds_workers_and_loses_nothing(tmp_path: Path) -> None:
    async with owner(tmp_path / "s") as (own, _):
        workers = [await Worker.start(tmp_path / "s", seed) for seed in (1, 2, 3)]
        for _ in range(4):
            await asyncio.sleep(0.2)
            await own.reset("a test")
        for worker in workers:
            await worker.progress()
            rounds, _gap, resets = await worker.stop()
            assert rounds > 0
            assert 1 <= resets <= 4


async def test_a_worker_stopped_during_a_reset_rings_no_old_doorbell(tmp_path: Path) -> None:
    async with owner(tmp_path / "s", stop_seconds=0.1) as (own, share):
        stopped, other = [await Worker.start(tmp_path / "s", seed) for seed in (1, 2)]
        [qid] = next(lease for lease in share.leases.values() if lease.pid == stopped.pid).queues
        await stopped.progress()
        stopped.signal(signal.SIGSTOP)
        await eventually(lambda: is_stopped(stopped.pid))
        for _ in range(2):
            await own.reset("a test")
        # Its queue id stays reserved, without a queue, until the worker has confirmed the new
        # epoch.
        assert own.queues.lend() != qid
        own.queues.return_lent(max(own.queues.lent - {q for lease in share.leases.values() for q in lease.queues}))
        faults(own).trace()
        counters = faults(own).counters()
        await other.progress()
        assert {bell.qid for bell in faults(own).doorbells()} & {qid} == set()
        await other.stop()
        # The trace has the last 4096: slow enough that the first of the new epoch are among them.
        faults(own).add(queue="io", delay=0.005)
        stopped.signal(signal.SIGCONT)
        await stopped.progress()
        bells = [bell for bell in faults(own).doorbells() if bell.qid == qid]
        first = {bell.is_cq: bell for bell in reversed(bells)}
        assert first.keys() == {False, True}
        # The first doorbells of the new epoch start at the beginning of the rings.
        assert all(bell.old == 0 and 0 < bell.new <= 64 for bell in first.values())
        assert faults(own).counters()["invalid_doorbells"] == counters["invalid_doorbells"]
        assert (await stopped.stop())[2] >= 1


async def test_a_stopped_worker_that_is_killed_gives_its_ids_back(tmp_path: Path) -> None:
    async with owner(tmp_path / "s", stop_seconds=0.1, options={"io_queues": 2}) as (own, share):
        worker = await Worker.start(tmp_path / "s", 1)
        worker.signal(signal.SIGSTOP)
        await own.reset("a test")
        assert await share.revoke(worker.pid) == 1
        assert len(share.leases) == 1  # it is alive: one of its doorbell stores may still come
        assert own.queues.lend() is None
        await worker.kill()
        await eventually(lambda: clean(share, 0))
        again = await Worker.start(tmp_path / "s", 2)
        await again.stop()


@pytest.mark.parametrize("queues", [1, 3])
async def test_a_worker_killed_while_its_queues_are_created_leaves_nothing(tmp_path: Path, queues: int) -> None:
    async with owner(tmp_path / "s", queues=queues) as (own, share):
        # Its Create I/O Submission Queue takes a while, and it is killed meanwhile.
        rule = faults(own).add(queue="admin", opcode=1, count=1, delay=0.3)
        starting = asyncio.ensure_future(Worker.start(tmp_path / "s", 1))
        await eventually(lambda: rule.hits)
        [lease] = share.leases.values()
        os.kill(lease.pid, signal.SIGKILL)
        await asyncio.gather(starting, return_exceptions=True)
        await eventually(lambda: clean(share, 0))
        steady = await Worker.start(tmp_path / "s", 2)
        assert (await steady.stop())[0] > 0
