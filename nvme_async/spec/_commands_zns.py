"""Builders of the zoned namespace command set's I/O commands (ZNS 3.4)."""

from __future__ import annotations

from nvme_async.spec._command import U8, U16, U32, U64, Command, check, check_dwords
from nvme_async.spec.opcodes import ZnsOpcode, ZoneReceiveAction, ZoneReportOption


def zone_append(
    nsid: int,
    zslba: int,
    blocks: int,
    fua: bool = False,
    lr: bool = False,
    *,
    prinfo: int = 0,
    piremap: bool = False,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
    mptr: int = 0,
    dtype: int = 0,
    dspec: int = 0,
) -> Command:
    """Zone Append (ZNS 3.4.1) to the zone that begins at `zslba`. dtype, dspec: as in `write`.

    Completion dwords 0 and 1: the LBA it went to.
    """
    check("zslba", zslba, 0, U64)
    return Command(
        opcode=ZnsOpcode.ZONE_APPEND,
        nsid=check("nsid", nsid, 1, U32 - 1),
        mptr=mptr,
        cdw10=zslba & U32,
        cdw11=zslba >> 32,
        cdw12=check("blocks", blocks, 1, U16 + 1) - 1
        | check("dtype", dtype, 0, 15) << 20
        | piremap << 25
        | check("prinfo", prinfo, 0, 15) << 26
        | fua << 30
        | lr << 31,
        cdw13=check("dspec", dspec, 0, U16) << 16,
        cdw14=check("reftag", reftag, 0, U32),
        cdw15=check("apptag", apptag, 0, U16) | check("apptag_mask", apptag_mask, 0, U16) << 16,
        data_length=None,
    )


def zone_management_send(
    nsid: int, zslba: int, action: int, *, all_zones: bool = False, option: bool = False, nbytes: int = 0
) -> Command:
    """Zone Management Send (ZNS 3.4.3): an action on one zone, or on all that it fits. See
        ZoneSendAction.

    option: ZSASO, the action's own option (open with a zone random write area). nbytes: of a zone
        descriptor
    extension.
    """
    check("zslba", zslba, 0, U64)
    return Command(
        opcode=ZnsOpcode.ZONE_MANAGEMENT_SEND,
        nsid=check("nsid", nsid, 1, U32 - 1),
        cdw10=zslba & U32,
        cdw11=zslba >> 32,
        cdw13=check("action", action, 0, U8) | all_zones << 8 | option << 9,
        data_length=nbytes,
    )


def zone_management_receive(
    nsid: int,
    lba: int,
    nbytes: int,
    action: int = ZoneReceiveAction.REPORT,
    *,
    option: int = ZoneReportOption.ALL,
    partial: bool = False,
) -> Command:
    """Zone Management Receive (ZNS 3.4.2): a report of zones from the one with `lba` on, see
    `zns.ZoneReport`.

    partial: the report's number of zones counts those in the buffer, not all that match.
    """
    check("lba", lba, 0, U64)
    return Command(
        opcode=ZnsOpcode.ZONE_MANAGEMENT_RECEIVE,
        nsid=check("nsid", nsid, 1, U32 - 1),
        cdw10=lba & U32,
        cdw11=lba >> 32,
        cdw12=check_dwords("nbytes", nbytes),
        cdw13=check("action", action, 0, U8) | check("option", option, 0, U8) << 8 | partial << 16,
        data_length=nbytes,
    )
