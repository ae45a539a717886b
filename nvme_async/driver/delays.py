"""Commands that the controller could not complete for now, and wants to be sent again after a delay
(Base 2.1, 3.3.3.2.1, Command Retry Delay; 5.1.25.1.14, Advanced Command Retry Enable).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.transport import BatchOfCommands
from nvme_async.errors import CommandError
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyController
from nvme_async.spec.opcodes import AdminOpcode
from nvme_async.spec.status import GenericStatus

# Admin commands that only read.
ADMIN_RETRYABLE = frozenset(
    int(opcode) for opcode in (AdminOpcode.IDENTIFY, AdminOpcode.GET_LOG_PAGE, AdminOpcode.GET_FEATURES)
)


def wants_retry_delays(identify: IdentifyController) -> bool:
    """Has the controller delays to ask for?"""
    return bool(identify.crdt1 or identify.crdt2 or identify.crdt3)


def retry_delay(
    identify: IdentifyController | None, status: int, opcode: int, *, admin: bool, longest: float
) -> float | None:
    """After how many seconds a command that failed with the 15-bit `status` is sent again. None:
    not at all, because the controller doesn't ask for it, the command must not be executed twice,
    or the delay is over `longest` seconds (0: no limit).
    """
    completion = Completion(status=status)
    if identify is None or completion.dnr or not wants_retry_delays(identify):
        return None
    interrupted = (completion.sct, completion.sc) == (0, GenericStatus.COMMAND_INTERRUPTED)
    if not completion.crd and not interrupted:
        return None
    if opcode not in (ADMIN_RETRYABLE if admin else RETRYABLE):
        return None
    seconds = identify.retry_delay_seconds(completion.crd)
    return None if longest and seconds > longest else seconds


async def send_again(
    batch: BatchOfCommands,
    delay_of: Callable[[int], float | None],
    one: Callable[[int], Coroutine[Any, Any, object]],
) -> int:
    """The elements of a batch that failed for now are executed once more, each by one(element),
    which waits by itself if the controller asks for that again. Returns how many have failed.

    delay_of(status): see retry_delay().
    """
    failed = [(at, status) for at, status in enumerate(batch.statuses) if status]
    delays = {at: delay for at, status in failed if (delay := delay_of(status)) is not None}
    if not delays:
        return batch.failed
    await asyncio.sleep(max(delays.values()))
    statuses = batch.statuses
    for at, result in zip(delays, await asyncio.gather(*map(one, delays), return_exceptions=True), strict=True):
        if result is None or isinstance(result, int):
            statuses[at] = 0
        elif isinstance(result, CommandError):
            statuses[at] = result.status | result.crd << 11 | result.more << 13 | result.dnr << 14
        elif isinstance(result, BaseException):
            raise result
    return sum(1 for status in statuses if status)
