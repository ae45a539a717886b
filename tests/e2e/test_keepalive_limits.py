"""A successor that lacks descriptors, memory or threads reports it, and leaves the controller to
the predecessor or to the next attempt.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from driver_line import block, descriptors, line, settle, socket_path

from nvme_async.errors import NvmeError, RestoreRefused
from nvme_async.keepalive import restore

SUCCESSOR = """
import asyncio, resource, sys
import nvme_async
from nvme_async.errors import NvmeError

async def main():
    await asyncio.to_thread(int)  # the executor's thread exists already, as in a busy program
    kind, limit, where = sys.argv[1:]
    resource.setrlimit(getattr(resource, kind), (int(limit), resource.getrlimit(getattr(resource, kind))[1]))
    try:
        controller = await nvme_async.take_over(where, keeper="none")
    except NvmeError as error:
        print(type(error).__name__, error)
    else:
        print("taken")
        await controller.close()

asyncio.run(main())
"""


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_restore_with_too_few_descriptors_is_refused_at_any_point() -> None:
    async with line() as drivers:
        await drivers.namespace.write(0, block(7))
        await asyncio.to_thread(int)
        with await drivers.driver.save() as bundle:
            await settle()  # the predecessor's own are closed
            before = descriptors()
            lowest = os.dup(0)  # descriptor numbers from here on are free, or in use
            os.close(lowest)
            refusals, reasons = 0, set()
            while True:
                try:
                    with open_files(lowest + refusals):
                        drivers.driver = await restore(bundle)
                    break
                except RestoreRefused as error:
                    reasons.add("too many open files" in str(error).lower())
                    refusals += 1
                if len(os.listdir("/proc/self/fd")) != before:  # a full collection takes long in a large process
                    assert descriptors() == before
                assert refusals < 200
        assert refusals > 10
        assert reasons == {True}
        assert await drivers.namespace.read(0) == block(7)
        assert drivers.since()["disables"] == 0


@pytest.mark.parametrize(
    ("limit", "values", "says"),
    [
        ("RLIMIT_NOFILE", [8, 9, 10, 12, 14, 17, 20, 24, 28, 32, 40], "open"),
        pytest.param(
            *("RLIMIT_AS", [0], "out of memory|Cannot allocate memory|new thread"),
            marks=pytest.mark.skipif(
                "NVME_ASYNC_SANITIZE" in os.environ, reason="a sanitizer reserves more than any limit"
            ),
        ),
    ],
)
async def test_take_over_names_the_limit_and_the_predecessor_continues(
    limit: str, values: list[int], says: str, tmp_path: Path
) -> None:
    async with line() as drivers:
        await drivers.namespace.write(0, block(7))
        where = socket_path(tmp_path)
        outcomes = []
        async with drivers.driver.handover(where) as offer:
            for value in values:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", SUCCESSOR, limit, str(value or 1 << 20), str(where), stdout=subprocess.PIPE
                )
                said = (await asyncio.wait_for(process.communicate(), 60))[0].decode().strip()
                outcomes.append(said)
                if said == "taken":
                    break
                assert said.startswith(("RestoreRefused", "InvalidSavedState")), said
                assert await drivers.namespace.read(0) == block(7)
                await asyncio.sleep(0.05)
            assert all(isinstance(failure, (NvmeError, OSError)) for failure in offer.failures)
        assert outcomes[0] != "taken"
        assert all(re.search(says, said) for said in outcomes if said != "taken"), outcomes
