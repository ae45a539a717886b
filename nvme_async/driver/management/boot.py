"""Boot partitions (Base 2.1, 8.1.3): read through log page 15h, written like firmware."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from nvme_async.driver.management.firmware import commit_firmware, download_firmware
from nvme_async.driver.management.logs import read_log
from nvme_async.driver.management.waiting import Progress
from nvme_async.errors import ConfigurationError
from nvme_async.spec.opcodes import FirmwareCommitAction, LogPage
from nvme_async.spec.rare_logs import BootPartitionHeader

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

PARTITIONS = 2


@attrs.frozen
class BootPartitions:
    """nbytes: size of each of the two. active: which one the controller boots from, 0 or 1."""

    nbytes: int
    active: int


def _check(controller: Controller, partition: int | None) -> None:
    if partition not in (None, 0, 1):
        raise ConfigurationError(f"{controller.uri}: boot partition {partition}, must be 0 or 1")
    if not controller.cap.bps:
        raise ConfigurationError(f"{controller.uri}: the controller has no boot partitions (CAP.BPS)")


async def boot_partitions(controller: Controller) -> BootPartitions:
    """Size and active partition. ConfigurationError if the controller has none."""
    _check(controller, None)
    header = BootPartitionHeader.decode(await read_log(controller, LogPage.BOOT_PARTITION, BootPartitionHeader.SIZE))
    return BootPartitions(header.nbytes, header.active)


async def read_boot_partition(controller: Controller, partition: int | None = None) -> bytes:
    """The content of a boot partition; None: of the active one."""
    _check(controller, partition)
    known = await boot_partitions(controller)
    chosen = known.active if partition is None else partition
    return await read_log(controller, LogPage.BOOT_PARTITION, known.nbytes, offset=BootPartitionHeader.SIZE, lsp=chosen)


async def write_boot_partition(
    controller: Controller,
    image: bytes,
    partition: int,
    *,
    activate: bool = False,
    progress: Progress | None = None,
) -> None:
    """Replaces a boot partition's content by a firmware image (a multiple of 4 bytes), and marks it
    active if asked for. If cancelled before its end, the partition is as it was, or has the image.
    """
    _check(controller, partition)
    known = await boot_partitions(controller)
    if len(image) > known.nbytes:
        raise ConfigurationError(
            f"{controller.uri}: an image of {len(image)} bytes; a boot partition has {known.nbytes}"
        )
    await download_firmware(controller, image, progress=progress)
    await commit_firmware(controller, 0, FirmwareCommitAction.REPLACE_BOOT_PARTITION, boot_partition=partition)
    if activate:
        await activate_boot_partition(controller, partition)


async def activate_boot_partition(controller: Controller, partition: int) -> None:
    """The controller boots from this partition from now on."""
    _check(controller, partition)
    await commit_firmware(controller, 0, FirmwareCommitAction.ACTIVATE_BOOT_PARTITION, boot_partition=partition)
