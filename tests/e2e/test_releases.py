"""Upgrade from release 0.1 to this tree and downgrade back, by real processes: hand-over, exec and
keeper. The controller notices neither, and what was in flight has its one result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from keeper_site import Site, settings, site
from releases import ROOT, ReleaseDriver, program, release

__all__ = ["settings", "site"]

READ = 0x02
KNOWN = """
def content(number):
    return (b"%016d" % number * 256)

async def check(namespace, count):
    for lba in range(count):
        assert await namespace.read(lba) == content(lba), lba

async def adopted(controller, number):
    found = [command async for command in controller.adopted]
    assert [(one.tag, one.lba, one.status) for one in found] == [(77, 3, 0)], found
    assert found[0].data == content(number)
"""
FIRST = """
controller = await nvme_async.open(uri, keepalive=True, keeper={holder})
namespace = controller.namespaces[1]
for lba in range(8):
    await namespace.write(lba, content(lba))
report(nvme_async.__file__)
await next_line()                       # reads are delayed from here on
from nvme_async.spec import commands
reading = asyncio.create_task(namespace.submit(commands.read(1, 3, 1), tag=77))
await asyncio.sleep(0.05)
"""
NEXT = """
await adopted(controller, 3)
namespace = controller.namespaces[1]
await check(namespace, 8)
await namespace.write(8, content(8))
await check(namespace, 9)
"""
HAND = """
reading.add_done_callback(lambda done: done.exception())
async with controller.handover(f"{keeper}.{number}") as offer:
    report("offered")
    await offer
"""

directions = pytest.mark.parametrize("upgrade", [True, False], ids=["upgrade", "downgrade"])


@pytest.fixture(scope="module")
def old() -> Path:
    return release()


def body(*parts: str, **values: Any) -> str:
    text = KNOWN + "".join(parts)
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def untouched(site: Site, before: dict[str, int]) -> None:
    after = site.lives()
    assert after == before, "it was reset, asked who it is, or got a new queue"


def in_flight(site: Site, driver: ReleaseDriver, folder: Path | None) -> None:
    """The first driver is at work, and of that release; one read of it stays out."""
    assert Path(driver.receive()).is_relative_to(folder or ROOT)
    site.controller.faults.add(queue="io", opcode=READ, delay=3600, count=1)
    driver.send()


@directions
def test_a_hand_over_and_back(site: Site, old: Path, upgrade: bool) -> None:
    one, other = (old, None) if upgrade else (None, old)
    first = ReleaseDriver(site, body(FIRST, HAND, holder="'none'", number=1), one)
    in_flight(site, first, one)
    assert first.receive() == "offered"
    before = site.lives()
    taking = 'controller = await nvme_async.take_over(f"{keeper}.{number}")\nreport("taken")\nawait next_line()\n'
    second = ReleaseDriver(
        site,
        body(taking, NEXT, HAND.partition("\n")[2].partition("\n")[2], number=1).replace(
            'handover(f"{keeper}.1")', 'handover(f"{keeper}.2")'
        ),
        other,
    )
    assert second.receive() == "taken"
    first.end()
    site.controller.faults.clear()
    site.controller.faults.release()
    second.send()
    assert second.receive() == "offered"
    third = ReleaseDriver(
        site,
        body(
            'controller = await nvme_async.take_over(f"{keeper}.2")\n',
            "await check(controller.namespaces[1], 9)\nreport('right')\nawait next_line()\nawait controller.close()\n",
        ),
        one,
    )
    assert third.receive() == "right"
    second.end()
    untouched(site, before)
    third.send()
    third.end()


@directions
def test_exec_into_the_other_release(site: Site, old: Path, upgrade: bool) -> None:
    one, other = (old, None) if upgrade else (None, old)
    then = program(
        site,
        body(
            "controller = await nvme_async.open(uri)\nreport('open')\nawait next_line()\n",
            NEXT,
            "report('right')\nawait controller.close()\n",
        ),
    )
    becomes = f"""
reading.add_done_callback(lambda done: done.exception())
os.environ["PYTHONPATH"] = {str(other or ROOT)!r}
await controller.exec([sys.executable, "-c", {then!r}])
"""
    driver = ReleaseDriver(site, body(FIRST, becomes, holder="'none'"), one)
    in_flight(site, driver, one)
    assert driver.receive() == "open"
    before = site.lives()
    assert (before["enables"], before["resets"]) == (1, 0)
    site.controller.faults.clear()
    site.controller.faults.release()
    driver.send()
    assert driver.receive() == "right"
    driver.end()


@directions
def test_killed_and_followed_through_the_keeper(site: Site, old: Path, upgrade: bool) -> None:
    one, other = (old, None) if upgrade else (None, old)
    first = ReleaseDriver(site, body(FIRST, "report('out')\nawait next_line()\n", holder="keeper"), one)
    in_flight(site, first, one)
    assert first.receive() == "out"
    before = site.lives()
    first.kill()
    site.controller.faults.clear()
    follow = "controller = await nvme_async.open(uri, keeper=keeper)\nreport('open')\nawait next_line()\n"
    second = ReleaseDriver(site, body(follow, NEXT, "report('right')\nawait next_line()\n"), other)
    assert second.receive() == "open"
    site.controller.faults.release()
    second.send()
    assert second.receive() == "right"
    untouched(site, before)
    second.kill()
    third = ReleaseDriver(
        site,
        body(
            "controller = await nvme_async.open(uri, keeper=keeper)\n",
            "await check(controller.namespaces[1], 9)\nreport('right')\nawait controller.close()\n",
        ),
        one,
    )
    assert third.receive() == "right"
    third.end()
    assert site.lives()["enables"] == 1
