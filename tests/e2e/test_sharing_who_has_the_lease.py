"""A worker hands its queue pairs over, and one of those concerned is stopped, killed, reset or
replaced on the way: always exactly one process has the lease, or it has ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from driving import eventually, faults, is_stopped, pattern
from sharing_kit import FAST, hand_over, owner, worker

import nvme_async
from nvme_async.errors import ControllerGone, RestoreRefused
from nvme_async.sharing import Share
from nvme_async.sharing.channel import Channel, connect
from nvme_async.sharing.passable import PassableTransport

BLOCK = 4096
Pair = tuple[nvme_async.Controller, Share]


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Pair]:
    async with owner(tmp_path / "s", workers=8, queues=2) as pair:
        yield pair


PREDECESSOR = """
import asyncio, os, signal, sys
import nvme_async
from nvme_async.sharing import passing

def die_at(name):
    method = getattr(passing.Passing, name)
    async def dying(self, wire):
        os.kill(os.getpid(), signal.{signal})
        return await method(self, wire)
    setattr(passing.Passing, name, dying)

async def load(namespace, lba):
    try:
        while True:
            await namespace.write(lba, b"9" * 4096)
    except nvme_async.HandedOver:
        pass

async def main(path, where):
    async with nvme_async.open("shared:" + path, pool_bytes=4 << 20) as controller:
        loads = [asyncio.create_task(load(controller.namespaces[1], lba)) for lba in range(8)]
        async with controller.handover(where) as offered:
            print("offered", flush=True)
            await offered
        await asyncio.gather(*loads)
        print("taken", flush=True)

die_at("{name}")
asyncio.run(main(*sys.argv[1:]))
"""


async def predecessor(share: Share, where: Path, name: str, signal: str = "SIGKILL") -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PREDECESSOR.format(name=name, signal=signal), str(share.path), str(where),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"offered\n"
    return process


async def test_a_predecessor_stopped_after_go_rings_nothing_when_it_continues(shared: Pair, tmp_path: Path) -> None:
    """Also not after a reset, for which only the successor is asked."""
    own, share = shared
    process = await predecessor(share, tmp_path / "h", "_is_taken", "SIGSTOP")
    async with nvme_async.take_over(tmp_path / "h", **FAST) as successor:
        await eventually(lambda: is_stopped(process.pid))
        before = faults(own).counters()["invalid_doorbells"]
        [lease] = share.leases.values()
        assert (lease.pid, lease.dead) == (os.getpid(), False)
        await own.reset("a test")
        assert lease.silent
        await successor.namespaces[1].write(9, pattern(BLOCK, 9))
        await eventually(lambda: successor.resets == 1)
        [qid] = lease.present
        faults(own).trace()
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"taken\n"
        assert await asyncio.wait_for(process.wait(), 60) == 0
        # The successor has sent a few commands since the reset, the predecessor hundreds before it.
        assert all(bell.new <= 16 for bell in faults(own).doorbells() if bell.qid == qid)
        assert faults(own).counters()["invalid_doorbells"] == before
        assert await successor.namespaces[1].read(9) == pattern(BLOCK, 9)
        assert list(share.leases.values()) == [lease]
    await eventually(lambda: not share.leases and not own.queues.lent)


@pytest.mark.parametrize(("name", "taken"), [("_go", False), ("_is_taken", True)])
async def test_a_killed_predecessor_leaves_its_lease_to_a_successor_that_has_all(
    shared: Pair, tmp_path: Path, name: str, taken: bool
) -> None:
    own, share = shared
    process = await predecessor(share, tmp_path / "h", name)
    if taken:
        async with nvme_async.take_over(tmp_path / "h", **FAST) as successor:
            await process.wait()
            await successor.adopted.wait()
            assert await successor.namespaces[1].read(3) == b"9" * BLOCK
            [lease] = share.leases.values()
            assert (lease.pid, lease.dead, lease.ending) == (os.getpid(), False, "")
    else:
        with pytest.raises(ControllerGone):
            await nvme_async.take_over(tmp_path / "h", **FAST)
        await process.wait()
    await eventually(lambda: not share.leases and not own.queues.lent)


SUCCESSOR = """
import asyncio, os, signal, sys
import nvme_async
from nvme_async.sharing import inheriting, passable

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

{patch}
asyncio.run(nvme_async.take_over(sys.argv[1], pool_bytes=4 << 20)._opened())
"""


@pytest.mark.parametrize(
    ("patch", "taken"),
    [
        ("inheriting._Inheriting._join = die", False),
        ("inheriting._Inheriting._build = die", False),
        ("passable.PassableTransport.take = die", False),
        ("inheriting._Inheriting._adopt = die", True),
    ],
)
async def test_a_killed_successor_has_the_lease_or_the_predecessor_has(
    shared: Pair, tmp_path: Path, patch: str, taken: bool
) -> None:
    own, share = shared
    controller = await worker(share)
    async with controller.handover(tmp_path / "h") as offer:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SUCCESSOR.format(patch=patch), str(tmp_path / "h")
        )
        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
        await eventually(lambda: offer.failures or offer.taken)
        assert offer.taken is taken
        if not taken:
            await controller.namespaces[1].write(3, pattern(BLOCK, 3))
            assert await controller.namespaces[1].read(3) == pattern(BLOCK, 3)
            assert len(share.leases) == 1
            # The next attempt has all that it needs.
            async with nvme_async.take_over(tmp_path / "h", **FAST) as successor:
                assert await successor.namespaces[1].read(3) == pattern(BLOCK, 3)
    await controller.close()
    await eventually(lambda: not share.leases and not own.queues.lent)
    async with worker(share) as another:
        assert len(await another.namespaces[1].read(0)) == BLOCK


async def test_a_successor_without_an_answer_can_no_longer_take_the_lease(
    shared: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvme_async.sharing.passing.TAKEN_SECONDS", 0.1)
    _, share = shared
    real, waiting, go_on = PassableTransport.take, asyncio.Event(), asyncio.Event()

    async def late(self: PassableTransport) -> object:
        waiting.set()
        await go_on.wait()
        return await real(self)

    monkeypatch.setattr(PassableTransport, "take", late)
    async with worker(share) as controller, controller.handover(tmp_path / "h") as offer:
        taking = asyncio.ensure_future(nvme_async.take_over(tmp_path / "h", **FAST)._opened())
        await waiting.wait()
        await eventually(lambda: offer.failures)
        await controller.namespaces[1].write(3, pattern(BLOCK, 3))
        go_on.set()
        with pytest.raises(RestoreRefused, match="withdrawn"):
            await taking
        assert await controller.namespaces[1].read(3) == pattern(BLOCK, 3)


async def test_a_reset_while_the_predecessor_stands_still_leaves_it_the_lease(
    shared: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, share = shared
    real = PassableTransport.take

    async def after_a_reset(self: PassableTransport) -> object:
        await own.reset("a test")
        return await real(self)

    monkeypatch.setattr(PassableTransport, "take", after_a_reset)
    async with worker(share) as controller:
        before = faults(own).counters()["invalid_doorbells"]
        async with controller.handover(tmp_path / "h") as offer:
            with pytest.raises(RestoreRefused):
                await nvme_async.take_over(tmp_path / "h", **FAST)
            await eventually(lambda: offer.failures)
            assert isinstance(offer.failures[0], RestoreRefused)
            await controller.namespaces[1].write(3, pattern(BLOCK, 3))
            await eventually(lambda: controller.resets == 1)
            monkeypatch.setattr(PassableTransport, "take", real)
            await eventually((tmp_path / "h").exists)
            async with nvme_async.take_over(tmp_path / "h", **FAST) as successor:
                assert await successor.namespaces[1].read(3) == pattern(BLOCK, 3)
                assert faults(own).counters()["invalid_doorbells"] == before


async def test_the_owner_is_replaced_before_and_after_the_lease_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owner(tmp_path / "s", options={"keepalive": True}) as (own, share):
        controller = await worker(share)
        await controller.namespaces[1].write(3, pattern(BLOCK, 3))
        real, owners = PassableTransport.take, [own]

        async def after_a_hand_over(self: PassableTransport) -> object:
            if len(owners) == 1:
                async with own.handover(tmp_path / "owner") as offer:
                    owners.append(await nvme_async.take_over(tmp_path / "owner"))
                    await offer
            return await real(self)

        monkeypatch.setattr(PassableTransport, "take", after_a_hand_over)
        successor = await hand_over(controller, tmp_path / "h")
        assert await successor.namespaces[1].read(3) == pattern(BLOCK, 3)
        async with owners[1].handover(tmp_path / "owner") as offer:
            third = await nvme_async.take_over(tmp_path / "owner")
            await offer
        assert await successor.namespaces[1].read(3) == pattern(BLOCK, 3)
        [lease] = third.inspect()["leases"]
        await eventually(lambda: third.inspect()["leases"][0]["connected"])
        assert lease["state"] == "lives"
        assert successor.resets == 0
        await successor.close()
        await eventually(lambda: not third.inspect()["leases"])
        await third.close()


async def test_a_process_that_has_joined_may_not_touch_the_lease(shared: Pair) -> None:
    _, share = shared
    async with worker(share) as controller:
        assert isinstance(controller.transport, PassableTransport)
        secret = {**controller.transport.device.grant.secret(), "attempt": 1}
        sock = await connect(share.path, 1.0)
        channel = Channel(sock, lambda message: None)
        (await channel.request("join", secret)).close()
        for kind in ("delete", "renew", "detach", "create"):
            with pytest.raises(nvme_async.LeaseError, match="still process"):
                await channel.request(kind, {"qid": 1})
        with pytest.raises(nvme_async.LeaseError, match="epoch"):
            await channel.request("take", {"life": 77})
        channel.send("stopped", {"life": 99})
        (await channel.request("health", {})).close()
        [lease] = share.leases.values()
        assert lease.confirmed == lease.life
        channel.close()
        await eventually(lambda: lease.candidate is None)
        await controller.namespaces[1].read(0)
