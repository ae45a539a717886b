"""The outcomes of a device's operations: abandoned bundles, results of a predecessor's commands,
errors of other layers.
"""

from __future__ import annotations

import concurrent.futures

from nvme_async.errors import ControllerError, NvmeError
from nvme_async.keepalive import Adopted, Bundle
from nvme_async.keepalive.controller import Controller


def forsake(saving: concurrent.futures.Future[Bundle | None]) -> None:
    """The requester of the bundle was cancelled: the controller ends with its descriptors."""
    if not saving.cancelled() and saving.exception() is None:
        bundle = saving.result()
        if bundle is not None:
            bundle.close()


async def adopted_result(controller: Controller, tag: int) -> Adopted | None:
    """The predecessor's command with that tag, once it is finished; None if there is none. On the
    controller's loop.
    """
    async for command in controller.adopted:
        if command.tag == tag:
            return command
    return None


def as_nvme_error(error: BaseException, what: str) -> NvmeError:
    return error if isinstance(error, NvmeError) else ControllerError(f"{what}: {error!r}")
