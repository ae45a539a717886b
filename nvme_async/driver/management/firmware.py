"""Firmware Image Download and Firmware Commit (Base 2.1, 5.1.9 and 5.1.8)."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING

from nvme_async.driver.management.waiting import Progress
from nvme_async.errors import CommandError, CommandTimeout, ConfigurationError, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.opcodes import FirmwareCommitAction

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

COMMIT_SECONDS = 600.0
"""The default for one Firmware Commit."""

_UNIT = 4096  # of FWUG
_UNKNOWN, _ANY = 0x00, 0xFF
_MOST = 64 << 10  # bytes of one command: the limit of the admin queue


class Activation(Enum):
    """What is needed for committed firmware to run."""

    NONE = "none"
    """Nothing more: it is running, or was only stored."""
    CONTROLLER_RESET = "controller level reset"
    CONVENTIONAL_RESET = "conventional reset"
    SUBSYSTEM_RESET = "NVM subsystem reset"


# Command specific status codes that say so, with the image committed (5.1.8).
_RESETS = {
    0x0B: Activation.CONVENTIONAL_RESET,
    0x10: Activation.SUBSYSTEM_RESET,
    0x11: Activation.CONTROLLER_RESET,
}

_OVERLAPPING_RANGE = (1, 0x14)  # status code type and code


def _chunk(controller: Controller, chunk: int | None) -> int:
    """Bytes of one download: a multiple of FWUG, as much as one command transfers."""
    fwug = controller.identify.fwug
    unit = 4 if fwug == _ANY else _UNIT if fwug == _UNKNOWN else fwug * _UNIT
    most = min(controller.transport.max_transfer, _MOST)
    if chunk is None:
        return max(unit, most // unit * unit)
    if chunk <= 0 or chunk % unit:
        raise ConfigurationError(f"chunk is {chunk}, not a positive multiple of {unit} (FWUG)")
    return chunk


async def download_firmware(
    controller: Controller,
    image: bytes,
    *,
    chunk: int | None = None,
    offset: int = 0,
    ignore_overlap: bool = False,
    progress: Progress | None = None,
) -> None:
    """Sends a firmware image, a multiple of 4 bytes, to the controller, which keeps it until a
    commit or a reset. If cancelled, a partial image remains, which the next download replaces.

    offset: where these bytes belong in the image. ignore_overlap: go on if the controller reports
    that they overlap others.
    """
    if not image or len(image) % 4:
        raise ConfigurationError(f"a firmware image of {len(image)} bytes: must be a positive multiple of 4")
    step = _chunk(controller, chunk)
    view = memoryview(image)
    for at in range(0, len(image), step):
        part = view[at : at + step]
        try:
            await controller.admin(commands.firmware_image_download(len(part), offset + at), part)
        except CommandError as error:
            if not ignore_overlap or (error.sct, error.sc) != _OVERLAPPING_RANGE:
                raise
        if progress is not None:
            progress((at + len(part)) / len(image))


async def commit_firmware(
    controller: Controller,
    slot: int = 0,
    action: FirmwareCommitAction = FirmwareCommitAction.REPLACE_AND_ACTIVATE,
    *,
    boot_partition: int = 0,
    timeout: float = COMMIT_SECONDS,
) -> Activation:
    """Stores the downloaded image in a slot (0: the controller chooses), or activates a stored
    one. Returns what is still needed for it to run.

    timeout: seconds, then CommandTimeout; the commit continues in the controller.
    """
    command = commands.firmware_commit(slot, action, boot_partition)
    try:
        async with asyncio.timeout(timeout) as limit:
            await controller.admin(command, unlimited=True)
    except TimeoutError as error:
        if isinstance(error, NvmeError) or not limit.expired():
            raise
        raise CommandTimeout(
            f"{command.name} has not finished within {timeout:g} s; it continues in the controller"
        ) from None
    except CommandError as error:
        if error.sct == 1 and error.sc in _RESETS:
            return _RESETS[error.sc]
        raise
    later = (FirmwareCommitAction.REPLACE_AND_ACTIVATE, FirmwareCommitAction.ACTIVATE)
    return Activation.CONTROLLER_RESET if action in later else Activation.NONE


async def update_firmware(
    controller: Controller,
    image: bytes,
    slot: int = 0,
    *,
    now: bool | None = None,
    progress: Progress | None = None,
) -> Activation:
    """Downloads, commits and activates an image; the controller is reset if that is needed.

    now: whether to activate it without a reset; None: if the controller can (FRMW bit 4). Returns
    what remains to be done by hand.
    """
    if now is None:
        now = bool(controller.identify.frmw & 1 << 4)
    await download_firmware(controller, image, progress=progress)
    action = FirmwareCommitAction.REPLACE_AND_ACTIVATE_NOW if now else FirmwareCommitAction.REPLACE_AND_ACTIVATE
    activation = await commit_firmware(controller, slot, action)
    if activation is Activation.CONTROLLER_RESET:
        await controller.reset("firmware activation")
        return Activation.NONE
    return activation
