"""Commands that show log pages which few controllers have, one row each; and FDP's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from nvme_async.cli.nvme import shapes_fdp, shapes_rare
from nvme_async.cli.nvme.page import RAE, Options, Page, Read, log, log_of_length
from nvme_async.driver.management.logs import read_log
from nvme_async.spec.fdp import configurations_size
from nvme_async.spec.opcodes import LogPage
from nvme_async.spec.rare_logs import BootPartitionHeader, EyeOpening

RAW = "A log page of few controllers."
_EVENTS = 64 + 63 * 64


def _aggregate(lid: int, most: Callable[[Any], int]) -> Read:
    """As many entries as there may be groups or sets."""

    async def read(controller: Any, options: Options) -> bytes:
        entries = min(options["entries"], most(controller.identify))
        nbytes = (8 + 2 * max(1, entries) + 3) & ~3
        data = await read_log(controller, lid, nbytes, rae=bool(options["rae"]))
        return data[: 8 + 2 * entries]

    return read


def _required(read: Read) -> Read:
    """The pages of FDP belong to an endurance group."""

    async def checked(controller: Any, options: Options) -> bytes:
        if not options["lsi"]:
            raise click.UsageError("--endgrp-id is needed: which endurance group")
        return await read(controller, options)

    return checked


def _eye_action(value: int) -> None:
    if value > 127 or value & 3 == 3 or value & 12 == 12:
        raise click.UsageError(f"--lsp {value:#x}: quality (bits 1:0) and action (bits 3:2) are 0 to 2")


async def _eye(controller: Any, options: Options) -> bytes:
    _eye_action(options["lsp"])
    read = log_of_length(
        LogPage.PHYSICAL_INTERFACE_RECEIVER_EYE_OPENING,
        EyeOpening.SIZE,
        lambda head: EyeOpening.decode(head).nbytes,
        head_lsp=0xF3,
    )
    return await read(controller, options)


ENDGRP = (("-e", "--endgrp-id"), "lsi", int, 0, "Which endurance group.")
DOMAIN = (("-d", "--domain-id"), "lsi", int, 0, "Which domain.")
ENTRIES = (("-e", "--log-entries"), "entries", int, 2044, "Maximum number of entries.")

PAGES: dict[str, Page] = {
    "predictable-lat-log": Page(
        about="Show the predictable latency of an NVM set of DEVICE.",
        read=log(LogPage.PREDICTABLE_LATENCY_PER_NVM_SET, 512),
        shape=shapes_rare.predictable_latency,
        options=((("-i", "--nvmset-id"), "lsi", int, 1, "Which NVM set."),),
    ),
    "pred-lat-event-agg-log": Page(
        about="List the NVM sets of DEVICE with a predictable latency event.",
        read=_aggregate(LogPage.PREDICTABLE_LATENCY_EVENT_AGGREGATE, lambda identify: identify.nsetidmax),
        shape=shapes_rare.event_aggregate,
        options=(ENTRIES, RAE),
    ),
    "endurance-event-agg-log": Page(
        about="List the endurance groups of DEVICE with an event.",
        read=_aggregate(LogPage.ENDURANCE_GROUP_EVENT_AGGREGATE, lambda identify: identify.endgidmax),
        shape=shapes_rare.event_aggregate,
        options=(ENTRIES, RAE),
    ),
    "phy-rx-eom-log": Page(
        about="Show the eye opening measurement of the receiver of DEVICE.",
        read=_eye,
        shape=shapes_rare.eye_opening,
        options=(
            (("-s", "--lsp"), "lsp", int, 0, "Bits 1:0 quality, 3:2 action: 0 read, 1 start, 2 abort."),
            (("-c", "--controller"), "lsi", int, 0, "Which controller."),
        ),
    ),
    "mi-cmd-support-effects-log": Page(
        about="Show which NVMe-MI commands DEVICE has.",
        read=log(LogPage.NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS, 1024),
        shape=shapes_rare.management_commands,
    ),
    "media-unit-stat-log": Page(
        about="Show the media units of DEVICE.",
        read=log_of_length(LogPage.MEDIA_UNIT_STATUS, 16, lambda head: 16 + 16 * int.from_bytes(head[:2], "little")),
        shape=shapes_rare.media_units,
        options=(DOMAIN,),
    ),
    "supported-cap-config-log": Page(
        about="List the capacity configurations of DEVICE.",
        read=log(LogPage.SUPPORTED_CAPACITY_CONFIGURATIONS, 4096),
        shape=shapes_rare.capacity_configurations,
        options=(DOMAIN,),
    ),
    "mgmt-addr-list-log": Page(
        about="List the addresses of the management agents of DEVICE.",
        read=log(LogPage.MANAGEMENT_ADDRESS_LIST, 4096),
        shape=shapes_rare.management_addresses,
    ),
    "rotational-media-info-log": Page(
        about="Show the rotational media of an endurance group of DEVICE.",
        read=log(LogPage.ROTATIONAL_MEDIA_INFORMATION, 512),
        shape=shapes_rare.rotational_media,
        options=((("-e", "--endg-id"), "lsi", int, 0, "Which endurance group."),),
    ),
    "dispersed-ns-participating-nss-log": Page(
        about="List the NVM subsystems that take part in a dispersed namespace of DEVICE.",
        read=log_of_length(
            LogPage.DISPERSED_NAMESPACE_PARTICIPATING_SUBSYSTEMS,
            256,
            lambda head: 256 + 256 * int.from_bytes(head[8:16], "little"),
        ),
        shape=shapes_rare.dispersed_namespace,
        options=((("-n", "--namespace-id"), "nsid", int, 1, "Which namespace."),),
    ),
    "reachability-groups-log": Page(
        about="List the reachability groups of DEVICE.",
        read=log(LogPage.REACHABILITY_GROUPS, 16384),
        shape=shapes_rare.reachability_groups,
        options=((("-g", "--groups-only"), "lsp", bool, False, "Without the namespaces of each group."), RAE),
    ),
    "reachability-associations-log": Page(
        about="List the reachability associations of DEVICE.",
        read=log(LogPage.REACHABILITY_ASSOCIATIONS, 16384),
        shape=shapes_rare.reachability_associations,
        options=((("-a", "--associations-only"), "lsp", bool, False, "Without the groups of each association."), RAE),
    ),
    # -- Flexible Data Placement -------------------------------------------------------------------
    "fdp configs": Page(
        about="List the FDP configurations of an endurance group of DEVICE.",
        read=_required(log_of_length(LogPage.FDP_CONFIGURATIONS, 16, configurations_size)),
        shape=shapes_fdp.configurations,
        options=(ENDGRP,),
    ),
    "fdp usage": Page(
        about="Show who uses the reclaim unit handles of an endurance group of DEVICE.",
        read=_required(
            log_of_length(LogPage.FDP_RUH_USAGE, 8, lambda head: 8 + 8 * int.from_bytes(head[:2], "little"))
        ),
        shape=shapes_fdp.usage,
        options=(ENDGRP,),
    ),
    "fdp stats": Page(
        about="Show how many bytes an endurance group of DEVICE has taken, written and erased.",
        read=_required(log(LogPage.FDP_STATISTICS, 64)),
        shape=shapes_fdp.statistics,
        options=(ENDGRP,),
    ),
    "fdp events": Page(
        about="List the FDP events of an endurance group of DEVICE: those of the controller, or of hosts.",
        read=_required(log(LogPage.FDP_EVENTS, _EVENTS)),
        shape=shapes_fdp.events,
        options=(ENDGRP, (("-E", "--host-events"), "lsp", bool, False, "Events that hosts caused.")),
    ),
}


def boot_partition_bytes(head: bytes) -> int:
    """Bytes of the log page, from its header."""
    return BootPartitionHeader.SIZE + BootPartitionHeader.decode(head).nbytes


read_boot_partition: Read = log_of_length(
    LogPage.BOOT_PARTITION, BootPartitionHeader.SIZE, boot_partition_bytes, most=(1 << 17) * 0x8000
)
