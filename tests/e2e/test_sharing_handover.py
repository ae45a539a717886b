"""A worker hands over to a successor with a lease of its own: nothing of the two overlaps.

test_sharing_passing.py has successors that continue with the predecessor's queue pairs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driving import eventually, faults, is_stopped, pattern
from sharing_kit import FAST, keep_writing, owner, quiet, worker

import nvme_async
from nvme_async.emulator import FOREVER
from nvme_async.errors import ControllerError, ControllerGone, ControllerTimeout, QueueShutdown, RestoreRefused
from nvme_async.keepalive import takeover
from nvme_async.sharing import Share
from nvme_async.spec.opcodes import NvmOpcode

BLOCK = 4096
BESIDE = {**FAST, "keepalive": False}  # the successor doesn't want the predecessor's queue pairs
Pair = tuple[nvme_async.Controller, Share]


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Pair]:
    async with owner(tmp_path / "s", workers=8) as pair:
        yield pair


async def stuck_write(own: nvme_async.Controller, controller: nvme_async.Controller) -> asyncio.Task[None]:
    """A write of a worker that is executed at faults(own).release() only; the controller has it."""
    faults(own).add(queue="io", opcode=NvmOpcode.WRITE, count=1, delay=FOREVER)
    writing = asyncio.create_task(controller.namespaces[1].write(5, pattern(BLOCK, 1)))
    await eventually(lambda: faults(own).outstanding())
    return writing


async def test_a_chain_of_workers_hands_over_under_load_and_loses_no_acknowledged_write(
    shared: Pair, tmp_path: Path
) -> None:
    own, share = shared
    written: dict[int, int] = {}

    controller = await worker(share)
    before = faults(own).counters()
    for turn in range(4):
        namespace = controller.namespaces[1]
        loads = [asyncio.create_task(keep_writing(namespace, lba, written, QueueShutdown)) for lba in range(8)]
        await eventually(lambda: len(written) == 8)
        path = tmp_path / str(turn)
        async with controller.handover(path) as offer:
            successor = await nvme_async.take_over(path, **BESIDE)
            acknowledged = dict(written)
            await offer
        assert offer.taken
        assert successor.adopted.pause is not None
        await asyncio.gather(*loads)
        assert written == acknowledged  # the predecessor's last write was acknowledged before
        for lba, version in written.items():
            assert await successor.namespaces[1].read(lba) == pattern(BLOCK, version)
        await eventually(lambda: len(share.leases) == 1)
        controller = successor
    await controller.close()
    await eventually(lambda: not share.leases)
    assert quiet(own, before)


async def test_the_successor_waits_for_the_predecessors_writes(shared: Pair, tmp_path: Path) -> None:
    own, share = shared
    controller = await worker(share)
    writing = await stuck_write(own, controller)
    async with controller.handover(tmp_path / "h") as offer:
        taking = asyncio.create_task(nvme_async.take_over(tmp_path / "h", **BESIDE)._opened())
        await eventually(lambda: controller.transport.queues.held)
        # New I/O of the predecessor waits, and is never sent.
        late = asyncio.create_task(controller.namespaces[1].write(5, pattern(BLOCK, 2)))
        assert len(share.leases) == 2
        assert not taking.done()
        faults(own).release()
        successor = await taking
        await offer
    assert await writing is None
    with pytest.raises(QueueShutdown):
        await late
    assert await successor.namespaces[1].read(5) == pattern(BLOCK, 1)
    await successor.close()


async def test_a_stuck_command_withdraws_the_offer_and_the_worker_serves_again(shared: Pair, tmp_path: Path) -> None:
    own, share = shared
    controller = await worker(share, drain_timeout=0.05)
    writing = await stuck_write(own, controller)
    async with controller.handover(tmp_path / "h") as offer:
        with pytest.raises(ControllerError, match=r"withdrew.*still in flight"):
            await nvme_async.take_over(tmp_path / "h", **BESIDE)
        assert not offer.taken
        assert isinstance(offer.failures[0], ControllerTimeout)
        faults(own).release()
        await writing
        await controller.namespaces[1].write(6, pattern(BLOCK, 2))
        await eventually(lambda: len(share.leases) == 1)
        async with nvme_async.take_over(tmp_path / "h", **BESIDE) as successor:  # the next attempt
            assert await successor.namespaces[1].read(6) == pattern(BLOCK, 2)
            await offer


async def test_without_a_second_lease_the_predecessor_closes_first(tmp_path: Path) -> None:
    async with owner(tmp_path / "s", workers=1) as (own, share):
        controller = await worker(share)
        writing = await stuck_write(own, controller)
        async with controller.handover(tmp_path / "h") as offer:
            taking = asyncio.create_task(nvme_async.take_over(tmp_path / "h", **BESIDE)._opened())
            await eventually(lambda: controller.transport.queues.held)
            assert not taking.done()
            faults(own).release()
            async with await taking as successor:
                await offer
                await writing
                assert offer.taken
                assert await successor.namespaces[1].read(5) == pattern(BLOCK, 1)


async def test_a_successor_of_an_earlier_release_is_served_after_a_close(shared: Pair, tmp_path: Path) -> None:
    _, share = shared
    controller = await worker(share)
    async with controller.handover(tmp_path / "h") as offer:
        wire = takeover.Wire(await takeover._connect(str(tmp_path / "h")))
        await wire.send(hello=1, pid=os.getpid(), keepalive=True, short=True)
        answer = await wire.receive(30)
        assert (answer["offer"], answer["uri"]) == ("fresh", controller.uri)
        wire.close()
        await offer
    assert not share.leases


async def test_the_owner_resets_the_controller_during_a_hand_over(shared: Pair, tmp_path: Path) -> None:
    own, share = shared
    controller = await worker(share)
    writing = await stuck_write(own, controller)
    async with controller.handover(tmp_path / "h") as offer:
        taking = asyncio.create_task(nvme_async.take_over(tmp_path / "h", **BESIDE)._opened())
        await eventually(lambda: controller.transport.queues.held)
        before = faults(own).counters()["invalid_doorbells"]
        await own.reset("a test")  # both workers' queues are created again, and the write sent again
        async with await taking as successor:
            await offer
            await writing
            assert await successor.namespaces[1].read(5) == pattern(BLOCK, 1)
            assert faults(own).counters()["invalid_doorbells"] == before
    await eventually(lambda: not share.leases)


PREDECESSOR = """
import asyncio, os, signal, sys
import nvme_async
from nvme_async.keepalive import offer

def die_at(name, after=False):
    method = getattr(offer.Offer, name)
    async def dying(self, wire):
        if after:
            await method(self, wire)
        os.kill(os.getpid(), signal.{signal})
        return await method(self, wire)
    setattr(offer.Offer, name, dying)

async def main(path, where):
    async with nvme_async.open("shared:" + path, pool_bytes=4 << 20) as controller:
        await controller.namespaces[1].write(9, b"9" * 4096)
        async with controller.handover(where) as offered:
            print("offered", flush=True)
            try:
                await asyncio.wait_for(offered, 30)
            except asyncio.TimeoutError:
                pass
        if not offered.taken:
            await controller.namespaces[1].write(10, b"A" * 4096)
        print("taken" if offered.taken else "serves", flush=True)

{patch}
asyncio.run(main(*sys.argv[1:]))
"""


async def predecessor(share: Share, where: Path, patch: str, signal: str = "SIGKILL") -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PREDECESSOR.format(patch=patch, signal=signal), str(share.path), str(where),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"offered\n"
    return process


@pytest.mark.parametrize(
    ("patch", "taken"),
    [
        ("die_at('_beside')", False),  # before the successor has opened the controller
        ("die_at('_pass_on')", False),  # it is ready
        ("die_at('_drain', after=True)", False),  # all is drained, "go" not sent
        ("die_at('_answer')", True),  # between "go" and "taken"
    ],
)
async def test_a_predecessor_killed_on_the_way_leaves_one_lease_or_none(
    shared: Pair, tmp_path: Path, patch: str, taken: bool
) -> None:
    own, share = shared
    process = await predecessor(share, tmp_path / "h", patch)
    if taken:
        async with nvme_async.take_over(tmp_path / "h", **BESIDE) as successor:
            await process.wait()
            await eventually(lambda: len(share.leases) == 1)
            assert await successor.namespaces[1].read(9) == b"9" * BLOCK
    else:
        with pytest.raises(ControllerGone):
            await nvme_async.take_over(tmp_path / "h", **BESIDE)
        await process.wait()
    await eventually(lambda: not share.leases)
    assert len(own.queues.lent) == 0


SUCCESSOR = """
import asyncio, os, signal, sys
import nvme_async
from nvme_async.keepalive import takeover

def die():
    os.kill(os.getpid(), signal.SIGKILL)

{patch}
asyncio.run(nvme_async.take_over(sys.argv[1], pool_bytes=4 << 20, keepalive=False)._opened())
"""


@pytest.mark.parametrize(
    "patch",
    [
        "takeover.open_controller = lambda *_: die()",
        # It is ready, and never says so.
        "real = takeover.Wire.send\n"
        "takeover.Wire.send = lambda self, **what: die() if 'ready' in what else real(self, **what)",
        "takeover.Wire.send_taken = lambda *_, **__: die()",
    ],
)
async def test_a_successor_killed_on_the_way_leaves_the_predecessor_serving(
    shared: Pair, tmp_path: Path, patch: str
) -> None:
    _, share = shared
    async with worker(share) as controller, controller.handover(tmp_path / "h") as offer:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SUCCESSOR.format(patch=patch), str(tmp_path / "h")
        )
        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
        await eventually(lambda: offer.failures)
        assert not offer.taken
        await controller.namespaces[1].write(3, pattern(BLOCK, 3))
        assert await controller.namespaces[1].read(3) == pattern(BLOCK, 3)
        await eventually(lambda: len(share.leases) == 1)


async def test_a_stopped_predecessor_rings_no_doorbell_that_is_a_successors(shared: Pair, tmp_path: Path) -> None:
    """Stopped before "go": the successor gives up. After it: the successor has its own queues."""
    own, share = shared
    process = await predecessor(share, tmp_path / "h", "die_at('_pass_on')", "SIGSTOP")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(takeover, "READY_SECONDS", 0.5)
        with pytest.raises(ControllerTimeout):
            await nvme_async.take_over(tmp_path / "h", **BESIDE)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await eventually(lambda: not share.leases)

    process = await predecessor(share, tmp_path / "h2", "die_at('_answer')", "SIGSTOP")
    async with nvme_async.take_over(tmp_path / "h2", **BESIDE) as successor:
        await successor.namespaces[1].write(9, pattern(BLOCK, 9))
        before = faults(own).counters()["invalid_doorbells"]
        await eventually(lambda: is_stopped(process.pid))  # a SIGCONT before its SIGSTOP would be lost
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"taken\n"
        assert await asyncio.wait_for(process.wait(), 60) == 0
        await eventually(lambda: len(share.leases) == 1)
        assert await successor.namespaces[1].read(9) == pattern(BLOCK, 9)
        assert faults(own).counters()["invalid_doorbells"] == before


async def test_a_worker_that_does_not_get_the_controller_refuses_and_the_predecessor_serves(
    shared: Pair, tmp_path: Path
) -> None:
    _, share = shared
    async with worker(share) as controller:
        with pytest.MonkeyPatch.context() as patched:

            async def broken(*_: object) -> None:
                raise ControllerError("broken by a test")

            patched.setattr(takeover, "open_controller", broken)
            async with controller.handover(tmp_path / "h") as offer:
                with pytest.raises(ControllerError, match="broken by a test"):
                    await nvme_async.take_over(tmp_path / "h", **BESIDE)
                await eventually(lambda: offer.failures)
                assert isinstance(offer.failures[0], RestoreRefused)
                assert len(await controller.namespaces[1].read(0)) == BLOCK


@pytest.mark.parametrize("options", [["--drained"], []])
def test_the_benchmark_measures_it(options: list[str]) -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "worker_handover.py"
    command = [sys.executable, str(benchmark), "--rounds", "2", "--iodepth", "4", "--json", *options]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
    assert report["pause"]["rounds"] == report["gap"]["rounds"] == 2
    assert report["pause"]["median_ms"] > 0
