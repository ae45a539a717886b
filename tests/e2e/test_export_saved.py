"""A save while an export's streams post commands in C, on loops of their own: nothing is posted or
rung afterwards, and what was acknowledged to a client is there for the successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path

import pytest
from driver_line import eventually, line
from nbd_client import NbdClient, NbdError

from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.emulator.faults import Doorbell
from nvme_async.export import NbdServer
from nvme_async.keepalive import restore
from nvme_async.keepalive.bundle import Bundle

BLOCK = 4096
TASKS = 8
POSITIONS = 128
"""Offset of submitted, sq_ringing, sq_rung, reaped, cq_ringing and cq_rung in a queue's memory."""


class Client:
    """Writes its blocks again and again; the last acknowledged and the last issued number of each
    are known.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.acked = [0] * TASKS
        self.issued = [0] * TASKS

    async def run(self, path: str) -> None:
        client = await NbdClient.connect(path)
        try:
            with contextlib.suppress(NbdError, ConnectionError):
                async with asyncio.TaskGroup() as tasks:
                    for at in range(TASKS):
                        tasks.create_task(self._write(client, at))
        except* (NbdError, ConnectionError):
            pass
        finally:
            await client.close(politely=False)

    async def _write(self, client: NbdClient, at: int) -> None:
        while True:
            self.issued[at] += 1
            await client.write((self.first + at) * BLOCK, content(self.issued[at]))
            self.acked[at] = self.issued[at]


def content(number: int) -> bytes:
    return struct.pack("<Q", number) * (BLOCK // 8)


def positions(bundle: Bundle, queues: dict[int, int]) -> dict[int, tuple[int, ...]]:
    """Of each queue pair by its id."""
    fd = bundle.descriptors["pool"]
    return {qid: struct.unpack("<6Q", os.pread(fd, 48, offset + POSITIONS)) for qid, offset in queues.items()}


def at_rest(saved: dict[int, tuple[int, ...]], entries: dict[int, int]) -> set[tuple[tuple[int, bool], int]]:
    """((queue, is it the completion queue's), doorbell) by the saved positions."""
    return {((qid, is_cq), saved[qid][at] % entries[qid]) for qid in entries for is_cq, at in ((False, 0), (True, 5))}


def last_doorbells(trace: list[Doorbell], entries: dict[int, int]) -> dict[tuple[int, bool], int]:
    """As the controller has seen them."""
    return {(doorbell.qid, doorbell.is_cq): doorbell.new for doorbell in trace if doorbell.qid in entries}


@pytest.mark.parametrize("threads", [0, 2])
async def test_nothing_is_posted_after_a_save(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[int] = []
    freeze = LoopQueue.freeze

    def counting(queue: LoopQueue) -> None:
        before = queue.hot.inspect()["sq"]["doorbells"]
        freeze(queue)
        rung.append(queue.hot.inspect()["sq"]["doorbells"] - before)

    monkeypatch.setattr(LoopQueue, "freeze", counting)
    path = str(tmp_path / "disk.nbd")
    clients = [Client(TASKS * number) for number in range(4)]
    async with (
        line("size=16MiB,latency=200us,jitter=100us") as drivers,
        asyncio.timeout(120),
        NbdServer(drivers.namespace, path, threads=threads, depth=4),
    ):
        tasks = [asyncio.ensure_future(client.run(path)) for client in clients]
        await eventually(lambda: min(min(client.acked) for client in clients) >= 3)
        assert drivers.driver.memory is not None
        slots = drivers.driver.memory.pools[0].slots()
        queues = {slot.tag: slot.offset for slot in slots if slot.owner.startswith("queue ")}
        assert len(queues) == 2 + threads
        entries = {queue.qid: queue.entries for queue in drivers.driver.queues.io_queues()}
        drivers.faults.trace(True)
        with await drivers.driver.save() as bundle:
            saved = positions(bundle, queues)
            for submitted, ringing, sq_rung, *_ in saved.values():
                assert submitted == ringing == sq_rung
            for _ in range(50):  # the clients' requests go on, and their loops run
                await asyncio.sleep(0.001)
            assert positions(bundle, queues) == saved
            # The controller reads doorbells in its own time.
            rest = at_rest(saved, entries)
            await eventually(lambda: last_doorbells(drivers.faults.doorbells(), entries).items() <= rest)
            assert len(rung) == len(queues)  # streams are frozen by their own threads
            assert all(count <= 1 for count in rung)
            await asyncio.gather(*tasks)
            drivers.past.append(drivers.driver)
            drivers.driver = await restore(bundle)
        await drivers.driver.adopted.wait()
        for client in clients:
            for at in range(TASKS):
                data = await drivers.namespace.read(client.first + at)
                assert data in (content(client.acked[at]), content(client.issued[at]))
