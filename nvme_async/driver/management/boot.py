"""Boot partitions (Base 2.1, 8.1.3): read through log page 15h, written like firmware."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import attrs

from nvme_async.driver.management.firmware import commit_firmware, download_firmware
from nvme_async.driver.management.logs import read_log
from nvme_async.driver.management.waiting import Progress
from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Feature, FirmwareCommitAction, LogPage
from nvme_async.spec.rare_logs import BootPartitionHeader

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

PARTITIONS = 2
_BY_FEATURE = 1 << 2  # BPCAP.SFBPWPS


class BootProtection(IntEnum):
    """A boot partition's protection against writing (feature 85h; Base 2.1, 8.1.3.3)."""

    UNLOCKED = 1
    LOCKED = 2
    LOCKED_UNTIL_POWER_CYCLE = 3
    BY_RPMB = 7
    """As the Replay Protected Memory Block says: set_features can't change it."""


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


def _check_protection(controller: Controller) -> None:
    _check(controller, None)
    if not controller.identify.bpcap & _BY_FEATURE:
        raise ConfigurationError(f"{controller.uri}: boot partitions can't be locked by Set Features (BPCAP)")


async def boot_partition_protection(controller: Controller) -> tuple[BootProtection, BootProtection]:
    """The state of both. ConfigurationError if the controller has no feature 85h."""
    _check_protection(controller)
    value = (await controller.admin(commands.get_features(Feature.BOOT_PARTITION_WRITE_PROTECTION))).dw0
    return BootProtection(value & 7), BootProtection(value >> 3 & 7)


async def protect_boot_partition(controller: Controller, partition: int, state: BootProtection) -> None:
    """Locks or unlocks one. A locked one refuses write_boot_partition(); each is locked after a
    power cycle. CommandError if it is locked until then.
    """
    _check_protection(controller)
    _check(controller, partition)
    value = state << 3 * partition  # 0 for the other: no change
    await controller.admin(commands.set_features(Feature.BOOT_PARTITION_WRITE_PROTECTION, value))


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
