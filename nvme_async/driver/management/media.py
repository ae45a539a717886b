"""Sanitize (Base 2.1, 5.1.22), Device Self-test (5.1.5), Get LBA Status (NVM Command Set 1.1,
4.2.1).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nvme_async.driver.management.logs import read_log
from nvme_async.driver.management.waiting import DAY, INTERVAL, Progress, until
from nvme_async.errors import ManagementError, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.lba_status import LbaStatus, LbaStatusDescriptor
from nvme_async.spec.logs import SanitizeState, SanitizeStatus, SelfTestLog, SelfTestResult
from nvme_async.spec.opcodes import NSID_ALL, LbaStatusAction, LogPage, SanitizeAction, SelfTest

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

_STATUS_BYTES = 4096


async def _sanitize_status(controller: Controller) -> SanitizeStatus:
    return SanitizeStatus.decode(await read_log(controller, LogPage.SANITIZE_STATUS, 512, rae=True))


async def sanitize(
    controller: Controller,
    action: SanitizeAction = SanitizeAction.BLOCK_ERASE,
    *,
    unrestricted: bool = False,
    pattern: int = 0,
    passes: int = 1,
    invert: bool = False,
    keep_allocated: bool = False,
    wait: bool = True,
    progress: Progress | None = None,
    interval: float = INTERVAL,
    timeout: float = DAY,
) -> SanitizeStatus:
    """Erases all user data of the NVM subsystem permanently, and returns when that is done.

    unrestricted: after a failure the failure mode may be left (AUSE). pattern, passes, invert: of
        an overwrite. keep_allocated: no deallocation afterwards (NDAS). wait=False: returns as soon
        as it has started.

    It can't be cancelled: if this is cancelled, it continues in the controller, across resets and
    power cycles, and there is no I/O until it ends. ManagementError if it fails.
    """
    await controller.admin(
        commands.sanitize(
            action,
            allow_unrestricted_exit=unrestricted,
            overwrite_passes=passes,
            overwrite_pattern=pattern,
            invert_pattern=invert,
            no_deallocate=keep_allocated,
        ),
        unlimited=True,
    )
    if action == SanitizeAction.EXIT_FAILURE_MODE or not wait:
        return await _sanitize_status(controller)

    async def look() -> float | None:
        status = await _sanitize_status(controller)
        return status.progress if status.state == SanitizeState.IN_PROGRESS else None

    await until(look, "Sanitize", progress=progress, interval=interval, timeout=timeout)
    status = await _sanitize_status(controller)
    if status.state == SanitizeState.FAILED:
        raise ManagementError(
            f"{controller.uri}: the sanitize operation failed; until another one succeeds"
            f"{', or the failure mode is left,' if unrestricted else ''} there is no I/O"
        )
    return status


async def self_test(
    controller: Controller,
    kind: SelfTest = SelfTest.SHORT,
    nsid: int = NSID_ALL,
    *,
    progress: Progress | None = None,
    interval: float = INTERVAL,
    timeout: float = DAY,
) -> SelfTestResult:
    """Runs a device self-test, during which I/O may continue, and returns its result.

    nsid: a namespace to include, FFFFFFFFh for all, 0 for none. When this is cancelled, or
    `timeout` seconds are over, the test is aborted.
    """
    await controller.admin(commands.device_self_test(kind, nsid))

    async def look() -> float | None:
        log = await _self_test_log(controller)
        return log.completion / 100 if log.in_progress else None

    try:
        await until(look, "Device Self-test", progress=progress, interval=interval, timeout=timeout)
    except BaseException as error:
        if isinstance(error, (asyncio.CancelledError, TimeoutError)):
            # Waits for its end, so that the next self-test finds none running.
            stop = asyncio.ensure_future(controller.admin(commands.device_self_test(SelfTest.ABORT, nsid)))
            try:
                await asyncio.shield(stop)
            except NvmeError:
                pass
        raise
    results = (await _self_test_log(controller)).valid_results
    if not results:
        raise ManagementError(f"{controller.uri}: the self-test log has no result")
    return results[0]


async def _self_test_log(controller: Controller) -> SelfTestLog:
    return SelfTestLog.decode(await read_log(controller, LogPage.DEVICE_SELF_TEST, SelfTestLog.SIZE))


async def lba_status(
    controller: Controller,
    nsid: int,
    lba: int = 0,
    blocks: int = 0,
    action: LbaStatusAction = LbaStatusAction.RETURN_TRACKED,
) -> list[LbaStatusDescriptor]:
    """The blocks from `lba` on (`blocks` of them, 0: all, at most 65535 for each command) that
    may not be readable, with as many commands as necessary.
    """
    found: list[LbaStatusDescriptor] = []
    end = lba + blocks if blocks else None
    while True:
        length = 0 if end is None else min(0xFFFF, end - lba)
        completion = await controller.admin(commands.get_lba_status(nsid, lba, _STATUS_BYTES, length, action))
        assert completion.data is not None
        part = LbaStatus.decode(completion.data)
        found += part.descriptors
        if part.cmpc == 1 and part.descriptors:  # the buffer was full
            last = part.descriptors[-1]
            lba = last.dslba + last.nlb + 1
        elif end is None or lba + length >= end:
            return found
        else:
            lba += length
