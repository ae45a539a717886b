"""The short version of tests/torture/lost_commands.py: any admin command is lost, fails once, or
fails for ever.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import pytest
from driving import faults

import nvme_async
from nvme_async.spec import commands

sys.path.insert(0, str(Path(__file__).parent.parent / "torture"))
from lost_commands import torture


@pytest.mark.timeout(300)
async def test_every_wait_ends_and_everything_that_can_work_does() -> None:
    said: list[str] = []
    await torture(150, seed=2026, parallel=24, report=said.append)
    assert "'rounds': 150" in said[-1]


async def test_a_command_that_fails_while_its_delay_is_examined_logs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its exception counts as retrieved: asyncio says nothing of it."""
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
    async with nvme_async.open("emulated:size=1MiB", admin_timeout=0.2, shutdown_timeout=0.2) as controller:

        async def sit_out() -> bool:
            await controller.transport.queues.fail(nvme_async.ControllerGone("gone meanwhile"))
            raise nvme_async.ControllerGone("registers read all-ones")

        monkeypatch.setattr(controller, "_sit_out", sit_out)
        faults(controller).add(queue="admin", opcode=6, drop=True)
        with pytest.raises(nvme_async.ControllerGone, match="all-ones"):
            await controller.admin_queue.submit(commands.identify(1))
    gc.collect()
    assert said == []
