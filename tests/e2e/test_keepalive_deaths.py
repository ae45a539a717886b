"""Drivers with a keeper are killed at chosen points: each successor gets a working controller and
the data.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from driving import eventually

import nvme_async
from nvme_async.errors import ConfigurationError
from nvme_async.keepalive import handover_wire
from nvme_async.keepalive.restoration import Restoration

sys.path.insert(0, str(Path(__file__).parent))
from keeper_site import Site, settings, site

__all__ = ["settings", "site"]

BLOCK = 4096


FIRST = """
    controller = await nvme_async.open(uri, keeper=keeper)
    await controller.namespaces[1].write(0, b"A" * 4096)
    report("up")
    await next_line()
"""

# The process stops forever on entering that function.
DIES_IN = """
    import {module} as module
    def dies(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
    module.{function} = dies
    await nvme_async.open(uri, keeper=keeper, keeper_wait=60)
    report("survived")
"""


async def opened(site: Site) -> nvme_async.Controller:
    return await nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60)


async def works(controller: nvme_async.Controller, first: bytes) -> None:
    namespace = controller.namespaces[1]
    assert await namespace.read(0) == first * BLOCK
    await namespace.write(1, b"Z" * BLOCK)
    assert await namespace.read(1) == b"Z" * BLOCK


async def test_killed_between_a_fresh_bring_up_and_the_new_deposit(site: Site) -> None:
    """The keeper still has the previous driver's bundle: same device, same registers, and a pool
    that the controller doesn't use.
    """
    driver = site.driver(FIRST)
    assert driver.receive() == "up"
    driver.kill()
    site.controller.faults.fatal()
    second = site.driver(DIES_IN.format(module="nvme_async.keepalive.depositor", function="Depositor.start"))
    second.popen.wait(60)
    assert site.lives()["enables"] == 2
    async with await opened(site) as controller:
        await works(controller, b"A")
        assert site.lives()["enables"] == 3, "not taken over by a saved state that is about another pool"
        assert controller.resets == 0


@pytest.mark.parametrize(
    ("module", "function", "enables"),
    [
        ("nvme_async.driver.queues.queue_set", "QueueSet.prepare_admin", 0),
        ("nvme_async.driver.queues.queue_set", "QueueSet.negotiate", 1),
        ("nvme_async.driver.pcie.queue_maker", "PcieQueueMaker.create", 1),
        ("nvme_async.driver.bringup", "BringUp._namespaces", 1),
        ("nvme_async.keepalive.kept", "KeptController._keep", 1),
        ("nvme_async.keepalive.depositor", "Depositor.start", 1),
    ],
)
async def test_killed_during_bring_up(site: Site, module: str, function: str, enables: int) -> None:
    driver = site.driver(DIES_IN.format(module=module, function=function))
    driver.popen.wait(60)
    assert site.lives()["enables"] == enables
    async with await opened(site) as controller:
        await works(controller, b"\0")
        assert site.lives()["enables"] == enables + 1
        assert controller.resets == 0
    assert site.deposits() == []


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("nvme_async.keepalive.restoration", "Restoration.connect"),
        ("nvme_async.keepalive.restoration", "Restoration._namespaces_of"),
        ("nvme_async.keepalive.restoration", "Restoration._adopt"),
        ("nvme_async.keepalive.cleanup", "Settlement.begin"),
        ("nvme_async.keepalive.manifest", "Manifest.write"),
        ("nvme_async.driver.controller", "EventListener.start"),
        ("nvme_async.keepalive.depositor", "Depositor.start"),
    ],
)
async def test_two_successors_killed_during_the_takeover(site: Site, module: str, function: str) -> None:
    driver = site.driver(FIRST)
    assert driver.receive() == "up"
    lives = site.lives()
    driver.kill()
    for _ in range(2):
        site.driver(DIES_IN.format(module=module, function=function)).popen.wait(60)
    async with await opened(site) as controller:
        await works(controller, b"A")
        assert site.lives() == lives
        await controller.validate_restore()
        [pool] = controller.memory.pools
        assert all(slot.state == "allocated" for slot in pool.slots())


@pytest.mark.parametrize(
    ("function", "again"),
    [
        ("transport._disable", 1),
        ("transport._enable", 1),
        ("queues.negotiate", 1),
        ("queues.create_all", 1),
        ("bringup._namespaces", 1),
        # From here on the controller works again.
        ("queues.go", 0),
        ("listener.start", 0),
    ],
)
async def test_killed_during_a_reset(site: Site, function: str, again: int) -> None:
    driver = site.driver(f"""
        controller = await nvme_async.open(uri, keeper=keeper)
        await controller.namespaces[1].write(0, b"A" * 4096)
        controller.{function} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        await controller.reset()
        report("survived")
    """)
    driver.popen.wait(60)
    enables = site.lives()["enables"]
    async with await opened(site) as controller:
        await works(controller, b"A")
        assert site.lives()["enables"] == enables + again
        assert controller.resets == 0
    assert site.deposits() == []


# Opcodes of Base 2.0, figure 138: Create I/O CQ and SQ, Delete I/O SQ and CQ.
@pytest.mark.parametrize("opcode", [5, 1, 0, 4])
@pytest.mark.parametrize("executed", [False, True])
async def test_killed_during_creation_or_deletion_of_a_queue_pair(site: Site, opcode: int, executed: bool) -> None:
    driver = site.driver(
        """
        controller = await nvme_async.open(uri, keeper=keeper)
        await controller.namespaces[1].write(0, b"A" * 4096)
        report("up")
        await next_line()
        async def connect():
            await controller.namespaces[1].read(0)
        while True:
            # Each loop gets a queue pair of its own, for which that of the loop before is deleted.
            await asyncio.to_thread(lambda: asyncio.run(connect()))
    """
    )
    assert driver.receive() == "up"
    kind = "delay_post" if executed else "delay"
    rule = site.controller.faults.add(queue="admin", opcode=opcode, **{kind: 3600.0})
    driver.send()
    rule.wait(timeout=60)
    before = site.lives()
    driver.kill()
    site.controller.faults.clear()
    controller = await opened(site)
    async with controller:
        site.controller.faults.release()
        await works(controller, b"A")
        await controller.validate_restore()
        now = site.lives()
        assert (now["enables"], now["resets"], now["identify"]) == (1, 0, before["identify"])
        assert controller.inspect()["unsettled_io_queues"] == []
        [pool] = controller.memory.pools
        known = {f"{kind} {queue.qid}" for queue in controller.queues.all() for kind in ("queue", "bounce")}
        assert {slot.owner for slot in pool.slots()} <= {"manifest", "shadow doorbells", *known}
        assert all(slot.state == "allocated" for slot in pool.slots())


OFFERS = """
    controller = await nvme_async.open(uri, keepalive=True, keeper=keeper)
    await controller.namespaces[1].write(0, b"A" * 4096)
    async with controller.handover(f"{keeper}.offer") as offer:
        report("offered")
        await offer
"""


@pytest.mark.parametrize("held", [False, True])
async def test_a_predecessor_killed_between_go_and_taken_costs_nothing(
    site: Site, held: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The successor has the whole controller by then. held: the keeper has the descriptors too."""
    driver = site.driver(OFFERS if held else OFFERS.replace("keeper=keeper", "keeper='none'"))
    assert driver.receive() == "offered"
    commit = Restoration.commit

    async def killed(self: Restoration) -> nvme_async.Controller:
        controller = await commit(self)
        driver.kill()
        return controller

    monkeypatch.setattr(Restoration, "commit", killed)
    before = site.lives()
    controller = await nvme_async.take_over(f"{site.keeper_path}.offer", keeper=site.keeper_path if held else "none")
    async with controller:
        await works(controller, b"A")
        assert site.lives() == before
        assert "the predecessor ended during the hand-over" in caplog.text


async def test_a_hand_over_is_between_processes_of_one_user(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side asks the kernel for the peer's user before it sends or trusts anything."""
    async with await opened(site) as controller:
        monkeypatch.setattr(handover_wire, "struct", _Another)
        async with controller.handover(f"{site.keeper_path}.offer") as offer:
            with pytest.raises(ConfigurationError, match="a process of user 4711 offers a controller"):
                await nvme_async.take_over(f"{site.keeper_path}.offer")
            await eventually(lambda: offer.failures)
            assert "a process of user 4711 asks for this controller" in str(offer.failures[0])
        await works_alone(controller)


async def works_alone(controller: nvme_async.Controller) -> None:
    await controller.namespaces[1].write(0, b"B" * BLOCK)
    assert await controller.namespaces[1].read(0) == b"B" * BLOCK


class _Another:
    """Replaces struct: SO_PEERCRED reports another user."""

    Struct = struct.Struct

    @staticmethod
    def unpack(form: str, data: bytes) -> tuple[int, ...]:
        pid, _, gid = struct.unpack(form, data)
        return pid, 4711, gid
