"""A controller that was dropped without close(): it warns, its descriptors are closed, and no
memory is corrupted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from keeper_site import Site, settings, site  # noqa: F401 - fixtures

import nvme_async


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def forget(**options: object) -> None:
    """Reads and an event request in flight, and no close()."""
    controller = await nvme_async.open("emulated:size=16MiB", **options)
    await controller.namespaces[1].write(0, b"x" * 4096)
    emulator = controller.device.emulator  # type: ignore[attr-defined]
    emulator.faults.add(queue="io", opcode=2, delay=0.05)
    for _ in range(4):
        asyncio.ensure_future(controller.namespaces[1].read(0, 4)).add_done_callback(lambda task: task.cancelled())
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("keepalive", [False, True])
def test_a_dropped_controller_warns_and_frees_its_descriptors(keepalive: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(forget())
        before = open_descriptors()
    asyncio.run(forget(keepalive=keepalive))
    with warnings.catch_warnings():
        # From Python 3.13 on the collector may come to the device's socket before the device.
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        with pytest.warns(ResourceWarning, match="unclosed controller emulated:size=16MiB"):
            gc.collect()
    assert open_descriptors() == before


def test_a_closed_or_handed_over_controller_does_not_warn() -> None:
    async def used(saved: bool) -> None:
        controller = await nvme_async.open("emulated:size=16MiB", keepalive=True)
        if saved:
            (await controller.save()).close()
        else:
            await controller.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for saved in (False, True):
            asyncio.run(used(saved))
            gc.collect()


DROPPED = """
    controller = await nvme_async.open(uri, keeper=keeper)
    await controller.namespaces[1].write(3, b"3" * 4096)
    report("written")
"""
TAKEN = """
    async with nvme_async.open(uri, keeper=keeper) as controller:
        report((await controller.namespaces[1].read(3))[:2].decode(), controller.adopted.lost)
"""


def test_a_dropped_controller_held_by_a_keeper_keeps_running(site: Site) -> None:  # noqa: F811
    first = site.driver(DROPPED, PYTHONWARNINGS="default::ResourceWarning")
    assert first.receive() == "written"
    first.popen.wait(20)
    before = site.lives()
    second = site.driver(TAKEN)
    assert second.receive() == "33 ()"
    assert site.lives()["enables"] == before["enables"]


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("flags", [(), ("-X", "dev")])
def test_the_interpreter_ends_quietly_after_a_save(closes: bool, flags: tuple[str, ...], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, nvme_async\n"
        "async def main():\n"
        # With -X dev asyncio reports what takes 0.1 s, as on a busy machine anything may.
        "    asyncio.get_running_loop().slow_callback_duration = 60\n"
        "    controller = await nvme_async.open('emulated:size=16MiB', keepalive=True, pool_pages=1024)\n"
        "    await controller.namespaces[1].read(0)\n"
        "    bundle = await controller.save()\n" + ("    bundle.close()\n" if closes else "") + "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, *flags, str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
