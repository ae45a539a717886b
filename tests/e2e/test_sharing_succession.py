"""Workers continue I/O while the process that owns the controller hands over, execs, or is
killed.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from driving import eventually
from keeper_site import Driver, Site, settings, site
from sharing_kit import Worker

import nvme_async
from nvme_async.cli.main import cli
from nvme_async.errors import InvalidSavedState
from nvme_async.sharing import Share, succession
from nvme_async.sharing.channel import call_once
from nvme_async.sharing.stop_page import StopPage

__all__ = ["settings", "site"]

OWNER = """
    async with nvme_async.open(uri, keeper=keeper, keeper_wait=60) as controller:
        await controller.share({path!r}, queues=2)
        report("shared", controller.resets)
        while (said := await next_line()) == "reset":
            await controller.reset("a test")
            report("reset")
        if said == "exec":
            await controller.exec([sys.executable, "-c", {program!r}])
"""


def owner(site: Site, path: str, program: str = "") -> Driver:
    driver = site.driver(OWNER.format(path=path, program=program))
    assert driver.receive().startswith("shared")
    return driver


async def test_workers_continue_while_their_owner_is_killed_repeatedly(site: Site) -> None:
    path = site.folder / "shared"
    driver = owner(site, str(path))
    workers = [await Worker.start(path, seed) for seed in (1, 2, 3)]
    before = site.lives()
    for _ in range(3):
        driver.kill()
        for worker in workers:
            await worker.progress()  # there is no owner
        driver = await asyncio.to_thread(owner, site, str(path))
        await eventually(lambda: all(lease["connected"] for lease in leases(path)))
        assert len(leases(path)) == 3
    # Another worker connects to the successor, and one of the predecessor's ends.
    late = await Worker.start(path, 4)
    await workers.pop().kill()
    await eventually(lambda: len(leases(path)) == 3)
    after = site.lives()
    assert (after["enables"], after["resets"], after["invalid_doorbells"]) == (
        before["enables"], before["resets"], before["invalid_doorbells"],
    )  # fmt: skip
    driver.send("reset")
    assert await asyncio.to_thread(driver.receive) == "reset"
    for worker in [*workers, late]:
        await worker.progress()
        rounds, _gap, resets = await worker.stop()
        assert rounds > 0
        assert resets == 1
    await eventually(lambda: not leases(path))


def connected(controller: nvme_async.Controller) -> bool:
    return all(lease["connected"] for lease in controller.inspect()["leases"])


def leases(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = call_once(str(path), "list").body["leases"]
    return found


async def test_the_lease_of_a_worker_that_died_without_an_owner_ends(site: Site) -> None:
    path = site.folder / "shared"
    driver = owner(site, str(path))
    victim, steady = [await Worker.start(path, seed) for seed in (1, 2)]
    driver.kill()
    await victim.kill()
    await steady.progress()
    await asyncio.to_thread(owner, site, str(path))
    await eventually(lambda: [lease["pid"] for lease in leases(path)] == [steady.pid])
    assert (await steady.stop())[2] == 0


async def test_workers_continue_across_a_hand_over_and_an_exec(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    driver = await nvme_async.open("emulated:size=16MiB", keepalive=True)
    emulator = driver.device.emulator  # type: ignore[attr-defined]
    await driver.share(path)
    worker = await Worker.start(path, 1)
    before = emulator.faults.counters()
    for _ in range(5):
        socket = tmp_path / "handover"
        async with driver.handover(socket) as offer:
            successor = await nvme_async.take_over(socket)
            await offer
        assert isinstance(successor.queues.lender, Share)
        driver = successor
        await eventually(functools.partial(connected, successor))
        await worker.progress()
    share = await driver.share(path)
    assert share.resumed
    await driver.reset("a test")
    await worker.progress()
    assert emulator.faults.counters()["enables"] == before["enables"] + 1
    rounds, _gap, resets = await worker.stop()
    assert (rounds > 0, resets) == (True, 1)
    await eventually(lambda: not share.leases)
    await driver.close()


async def test_an_exec_of_the_owner_keeps_its_workers(site: Site) -> None:
    path = site.folder / "shared"
    program = (
        "import asyncio, sys, nvme_async\n"
        "async def main():\n"
        f"    async with nvme_async.open({site.uri!r}) as controller:\n"
        "        print('again', len(controller.inspect()['leases']), controller.resets, flush=True)\n"
        "        await asyncio.to_thread(sys.stdin.readline)\n"
        "asyncio.run(main())\n"
    )
    driver = owner(site, str(path), program)
    worker = await Worker.start(path, 1)
    driver.send("exec")
    assert await asyncio.to_thread(driver.receive) == "again 1 0"
    await worker.progress()
    await eventually(lambda: [lease["connected"] for lease in leases(path)] == [True])
    assert (await worker.stop())[2] == 0
    await eventually(lambda: not leases(path))


async def test_a_successor_stops_the_workers_before_it_resets(site: Site) -> None:
    path = site.folder / "shared"
    driver = owner(site, str(path))
    worker = await Worker.start(path, 1)
    [lease] = leases(path)
    worker.signal(signal.SIGSTOP)
    driver.kill()
    async with nvme_async.open(site.uri, keeper=site.keeper_path, keeper_wait=60, keepalive=False) as controller:
        stale = set(map(int, lease["queues"]))  # type: ignore[call-overload]
        assert controller.queues.lent == stale
        before = site.counters()
        worker.signal(signal.SIGCONT)
        await asyncio.sleep(0.3)
        after = site.counters()
        assert after["invalid_doorbells"] == before["invalid_doorbells"]
        assert stale & {controller.queues.lend() for _ in range(20)} == set()
    await worker.kill()


async def test_invalid_leases_are_refused(tmp_path: Path) -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        for saved in ({}, {"path": str(tmp_path / "s"), "policy": {}, "leases": [{"slot": 20}]}):
            with pytest.raises(InvalidSavedState, match="leases of its workers are invalid"):
                succession.resume(controller, saved, os.dup(StopPage().fd))
        with pytest.raises(InvalidSavedState, match="another size"):
            StopPage(os.memfd_create("x"))
        assert controller.queues.lender is None


async def test_the_stand_alone_owner_is_restarted_by_sigterm_and_workers_go_on(site: Site) -> None:
    path = site.folder / "shared"
    command = [sys.executable, "-m", "nvme_async", "--keeper", site.keeper_path, "share", site.uri, "--socket", path]

    async def start() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        assert b"shared at" in await asyncio.wait_for(process.stdout.readline(), 60)
        return process

    owner = await start()
    worker = await Worker.start(path, 1)
    before = site.lives()
    owner.send_signal(signal.SIGTERM)
    out, _ = await asyncio.wait_for(owner.communicate(), 60)
    assert (owner.returncode, b"left to the keeper" in out) == (0, True)
    await worker.progress()
    owner = await start()
    await eventually(lambda: [lease["connected"] for lease in leases(path)] == [True])
    after = site.lives()
    assert (after["enables"], after["resets"]) == (before["enables"], before["resets"])
    assert (await worker.stop())[2] == 0
    await eventually(lambda: not leases(path))
    owner.send_signal(signal.SIGINT)  # for good
    assert await asyncio.wait_for(owner.wait(), 60) == 0
    assert not path.exists()


def test_the_systemd_unit_starts_the_owner_with_the_store() -> None:
    unit = (Path(__file__).parents[2] / "examples" / "systemd" / "nvme-async-share.service").read_text()
    [start] = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart=")]
    arguments = start.split()[1:]
    result = CliRunner().invoke(cli, [*arguments[:2], "share", "--help"])
    assert result.exit_code == 0
    known = [word for word in arguments[3:] if word.startswith("--")]
    assert all(word in result.output for word in known)
    assert "FileDescriptorStoreMax=" in unit
