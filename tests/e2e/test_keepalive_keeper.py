"""A keeper holds a controller while its drivers are killed, closed, and started again."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

import nvme_async
from nvme_async.emulator import FOREVER
from nvme_async.errors import KeeperError, RestoreRefused
from nvme_async.keepalive import config
from nvme_async.keepalive.restoration import Restoration
from nvme_async.spec.opcodes import NvmOpcode

sys.path.insert(0, str(Path(__file__).parent))
from driving import eventually
from keeper_site import Site, settings, site

__all__ = ["settings", "site"]

BLOCK = 4096


WRITER = """
    controller = await nvme_async.open(uri, keeper=keeper)
    namespace = controller.namespaces[1]
    await namespace.write(0, b"A" * 4096)
    report("written", os.getpid())
    await next_line()
    asyncio.create_task(namespace.write(1, b"B" * 8192))
    asyncio.create_task(namespace.read(0, 1))
    await asyncio.sleep(0.01)
    report("out")
    await next_line()
"""


async def test_the_successor_of_a_killed_driver_gets_its_commands(site: Site) -> None:
    driver = site.driver(WRITER)
    assert driver.receive() == f"written {driver.pid}"
    before = site.lives()
    # The controller holds both until after the death; then their data are transferred.
    site.controller.faults.add(queue="io", delay=FOREVER)
    driver.send()
    assert driver.receive() == "out"
    await eventually(lambda: len(site.controller.faults.outstanding()) == 2)
    driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60) as controller:
        assert "keepalive on" in controller.decision
        assert site.keeper_path in controller.decision
        assert controller.resets == 0
        site.controller.faults.clear()
        site.controller.faults.release()
        commands = {command.opcode: command async for command in controller.adopted}
        assert set(commands) == {NvmOpcode.WRITE, NvmOpcode.READ}
        write, read = commands[NvmOpcode.WRITE], commands[NvmOpcode.READ]
        assert (write.lba, write.blocks, write.sent, write.status, write.error) == (1, 2, True, 0, None)
        assert read.data == b"A" * BLOCK
        namespace = controller.namespaces[1]
        assert await namespace.read(0, 3) == b"A" * BLOCK + b"B" * 2 * BLOCK
        await namespace.write(9, b"C" * BLOCK)
        assert site.lives() == before, "not reset, not asked, no queue made anew"
        [deposit] = site.deposits()
        assert (deposit.state, deposit.pid, deposit.successors) == ("owned", os.getpid(), 1)
    assert site.deposits() == []
    assert site.lives()["shutdowns"] == 1


async def test_three_consecutive_deaths(site: Site) -> None:
    lives = None
    for number in range(3):
        driver = site.driver(f"""
            controller = await nvme_async.open(uri, keeper=keeper, keeper_wait=60)
            namespace = controller.namespaces[1]
            found = (await namespace.read(0))[:1]
            await namespace.write(0, bytes([{number} + 65]) * 4096)
            report(found, len(controller.adopted))
            await next_line()
        """)
        assert driver.receive() == f"{bytes([number + 64]) if number else bytes(1)!r} 0"
        lives = lives or site.lives()
        driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60) as controller:
        assert (await controller.namespaces[1].read(0))[:1] == b"C"
        assert site.lives() == lives


async def test_a_clean_close_leaves_nothing_to_restore(site: Site) -> None:
    async with nvme_async.open(site.uri, keeper=site.keeper_path):
        [deposit] = site.deposits()
        assert (deposit.name, deposit.state, deposit.pid) == (site.uri, "owned", os.getpid())
    assert site.deposits() == []
    assert site.lives()["enables"] == 1
    async with nvme_async.open(site.uri, keeper=site.keeper_path) as controller:
        assert len(controller.adopted) == 0
    assert site.lives()["enables"] == 2


async def test_a_living_drivers_controller_is_not_handed_out(site: Site) -> None:
    driver = site.driver(WRITER)
    driver.receive()
    with pytest.raises(KeeperError, match=f"process {driver.pid}"):
        await nvme_async.open(site.uri, keeper=site.keeper_path)
    [deposit] = site.deposits()
    assert (deposit.state, deposit.pid) == ("owned", driver.pid)


async def test_a_warm_standby_takes_over(site: Site) -> None:
    driver = site.driver(WRITER)
    assert driver.receive() == f"written {driver.pid}"
    driver.send()
    assert driver.receive() == "out"
    lives = site.lives()
    standby = asyncio.ensure_future(_open(site, keeper_wait=60.0))
    while not site.deposits()[0].waiting:
        await asyncio.sleep(0.01)
    assert not standby.done()
    began = time.monotonic()
    driver.kill()
    controller = await standby
    assert time.monotonic() - began < 30
    assert (await controller.namespaces[1].read(0))[:1] == b"A"
    assert site.lives() == lives
    await controller.close()


async def _open(site: Site, **options: object) -> nvme_async.Controller:
    return await nvme_async.open(site.uri, keeper=site.keeper_path, **options)


async def test_a_standby_that_gives_up_leaves_the_waiting_line(site: Site) -> None:
    driver = site.driver(WRITER)
    driver.receive()
    standby = asyncio.ensure_future(_open(site, keeper_wait=60.0))
    while not site.deposits()[0].waiting:
        await asyncio.sleep(0.01)
    standby.cancel()
    with pytest.raises(asyncio.CancelledError):
        await standby
    while site.deposits()[0].waiting:
        await asyncio.sleep(0.01)
    driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60) as controller:
        assert controller.state == "ready"


async def test_a_restarted_keeper_gets_all_deposits_again(site: Site) -> None:
    driver = site.driver(WRITER)
    assert driver.receive() == f"written {driver.pid}"
    driver.send()
    assert driver.receive() == "out"
    lives = site.lives()
    site.stop_keeper()
    site.start_keeper()
    async with asyncio.timeout(60):
        while [deposit.state for deposit in site.deposits()] != ["owned"]:
            await asyncio.sleep(0.02)
    driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60) as controller:
        assert (await controller.namespaces[1].read(0))[:1] == b"A"
        assert site.lives() == lives


async def test_a_device_that_died_with_the_driver_is_brought_up_afresh(site: Site) -> None:
    driver = site.driver(WRITER)
    driver.receive()
    site.controller.drop_client()
    driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60) as controller:
        assert controller.state == "ready"
        assert len(controller.adopted) == 0
        assert site.lives()["enables"] == 2
        [deposit] = site.deposits()
        assert deposit.state == "owned"


async def test_with_keepalive_off_the_controller_is_reset_and_reclaimed(site: Site) -> None:
    driver = site.driver(WRITER)
    assert driver.receive() == f"written {driver.pid}"
    site.controller.faults.add(queue="io", delay=60)
    driver.send()
    assert driver.receive() == "out"
    driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60, keepalive=False) as controller:
        assert "keepalive off" in controller.decision
        site.controller.faults.clear()
        assert (await controller.namespaces[1].read(0))[:1] == b"A"
        lives = site.lives()
        assert lives["enables"] == 2
        assert lives["disables"] + lives["resets"] >= 1
        assert site.deposits() == []


async def test_the_environment_switches_keepalive_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.KEEP_ALIVE, "disabled,host,privatepool")
    async with nvme_async.open(site.uri, keeper=site.keeper_path) as controller:
        assert "disabled" in controller.decision
        assert site.deposits() == []
        assert controller.inspect()["keepalive"]["settings"]["enabled"] is False


async def test_the_decision_is_in_inspect(site: Site) -> None:
    async with nvme_async.open(site.uri, keeper=site.keeper_path, pool_pages=4096) as controller:
        settings = controller.inspect()["keepalive"]["settings"]
        assert (
            settings.items()
            >= {
                "enabled": True,
                "why": f"keeper {site.keeper_path} can take over, and there is a private pool of 4096 pages",
                "setting": "host,privatepool",
                "setting_source": "inferred",
                "pool_pages": 4096,
                "pool_source": "argument pool_pages",
                "vfio": True,
                "vfio_source": "inferred",
                "holder": f"keeper {site.keeper_path}",
                "warnings": [],
            }.items()
        )
        [pool] = controller.memory.pools
        assert pool.nbytes >= 4096 * 4096


async def test_a_successor_that_dies_during_the_takeover(site: Site) -> None:
    driver = site.driver(WRITER)
    assert driver.receive() == f"written {driver.pid}"
    site.controller.faults.add(queue="io", delay=FOREVER)
    driver.send()
    assert driver.receive() == "out"
    await eventually(lambda: len(site.controller.faults.outstanding()) == 2)
    lives = site.lives()
    driver.kill()
    second = site.driver(
        """
        controller = await nvme_async.open(uri, keeper=keeper, keeper_wait=60)
        report(len(controller.adopted), controller.adopted.draining)
        await next_line()
    """
    )
    assert second.receive() == "2 True"
    second.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60) as controller:
        site.controller.faults.clear()
        site.controller.faults.release()
        assert len([command async for command in controller.adopted]) == 2
        assert await controller.namespaces[1].read(1, 2) == b"B" * 2 * BLOCK
        assert site.lives() == lives


async def test_a_missing_keeper_is_an_error(tmp_path: Path, site: Site) -> None:
    with pytest.raises(KeeperError, match="no keeper"):
        await nvme_async.open(site.uri, keeper=str(tmp_path / "none"))
    assert site.lives()["enables"] == 0


async def test_after_a_failed_bring_up_the_next_process_may_try(site: Site) -> None:
    site.controller.faults.add(queue="admin", opcode=0x06, cdw10=1, fail=0x06, dnr=True)
    with pytest.raises(nvme_async.NvmeError, match="Identify"):
        await nvme_async.open(site.uri, keeper=site.keeper_path)
    assert site.deposits() == []


# -- hand-over of a controller that a keeper holds -------------------------------------------------

OFFERING = """
    from nvme_async.keepalive import saving
    {patch}
    controller = await nvme_async.open(uri, keeper=keeper)
    await controller.namespaces[1].write(0, b"A" * 4096)
    async with controller.handover(keeper + ".offer") as offer:
        report("offered")
        try:
            await asyncio.wait_for(asyncio.shield(offer._wait()), 60)
        finally:
            report("over", offer.taken)
    await next_line()
"""


async def test_a_hand_over_passes_the_deposit_on(site: Site) -> None:
    driver = site.driver(OFFERING.replace("{patch}", ""))
    assert driver.receive() == "offered"
    async with nvme_async.take_over(f"{site.keeper_path}.offer", keeper=site.keeper_path) as controller:
        assert driver.receive() == "over True"
        await eventually(
            lambda: [(one.pid, one.state, one.fds > 0) for one in site.deposits()] == [(os.getpid(), "owned", True)]
        )
        driver.send()
        driver.end()
        assert [one.pid for one in site.deposits()] == [os.getpid()]
        assert await controller.namespaces[1].read(0) == b"A" * BLOCK
    assert site.deposits() == []


async def test_a_predecessor_that_dies_after_the_hand_over_leaves_one_successor(site: Site) -> None:
    driver = site.driver(
        OFFERING.replace(
            "{patch}", "def die(controller): os.kill(os.getpid(), signal.SIGKILL)\n    saving.release = die"
        )
    )
    assert driver.receive() == "offered"
    async with nvme_async.take_over(f"{site.keeper_path}.offer", keeper="none") as controller:
        await asyncio.to_thread(driver.popen.wait, 60)
        await eventually(lambda: all(one.pid != driver.pid for one in site.deposits()))
        assert [one for one in site.deposits() if one.fds] == [], "a third process would have found it with the keeper"
        assert await controller.namespaces[1].read(0) == b"A" * BLOCK


async def test_a_failed_hand_over_keeps_the_deposit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Restoration) -> None:
        raise RestoreRefused("changed its mind")

    driver = site.driver(OFFERING.replace("{patch}", ""))
    assert driver.receive() == "offered"
    before = site.lives()
    monkeypatch.setattr(Restoration, "commit", refuse)
    with pytest.raises(RestoreRefused, match="changed its mind"):
        await nvme_async.take_over(f"{site.keeper_path}.offer", keeper=site.keeper_path)
    await eventually(
        lambda: [(one.pid, one.state, one.fds > 0) for one in site.deposits()] == [(driver.pid, "owned", True)]
    )
    monkeypatch.undo()
    driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60) as controller:
        assert await controller.namespaces[1].read(0) == b"A" * BLOCK
        assert site.lives() == before
