"""Opening with too few descriptors: a clear error wherever one is missed, and none left behind."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from driving import FAST, descriptors, within

import nvme_async
from nvme_async.emulator import EmulatedController
from nvme_async.errors import NvmeError


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def opens_with_one_more_each_time(uri: str, **options: Any) -> list[str]:
    """What was said until there were enough of them."""
    await asyncio.to_thread(int)  # the executor's thread needs none later
    lowest = os.dup(0)
    os.close(lowest)
    before = descriptors()
    said: list[str] = []
    while True:
        try:
            with open_files(lowest + len(said)):
                controller = await within(20, nvme_async.open(uri, **FAST, io_queues=2, **options))
        except NvmeError as error:
            said.append(str(error))
        else:
            await controller.close()
            return said
        limit = time.monotonic() + 30
        while (now := descriptors()) != before:
            assert time.monotonic() < limit, (now, before, said)
            await asyncio.sleep(0.005)
        assert len(said) < 100


@pytest.mark.parametrize("keepalive", [False, True])
async def test_too_few_to_open(keepalive: bool) -> None:
    # Another one keeps the reactor that they share: its descriptors come and go with its last user.
    with EmulatedController("size=1MiB"):
        said = await opens_with_one_more_each_time("emulated:size=1MiB", keepalive=keepalive)
    assert len(said) > 8
    # The controller is in this process, and hangs up where it is the one that has too few.
    reasons = ("too many open files", "limit of open files", "the device is gone")
    assert not [text for text in said if not any(reason in text.lower() for reason in reasons)]
