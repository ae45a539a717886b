"""Builders of admin commands (Base 5)."""

from __future__ import annotations

from nvme_async.spec._command import U8, U16, U32, U64, Command, check, check_dwords
from nvme_async.spec.opcodes import (
    NSID_ALL,
    AdminOpcode,
    Feature,
    FeatureSelect,
    FirmwareCommitAction,
    LbaStatusAction,
    NamespaceAttachmentAction,
    NamespaceManagementAction,
    SanitizeAction,
)
from nvme_async.spec.registers import PAGE

IDENTIFY_SIZE = 4096
_UUID_INDEX = 127

# Bytes of the data structure that goes with a feature; features not named here have none.
_FEATURE_DATA = {
    Feature.LBA_RANGE_TYPE: 4096,
    Feature.AUTONOMOUS_POWER_STATE_TRANSITION: 256,
    Feature.TIMESTAMP: 8,
    Feature.PREDICTABLE_LATENCY_MODE: 512,
    Feature.HOST_BEHAVIOR: 512,
    Feature.ENHANCED_CONTROLLER_METADATA: 4096,
    Feature.CONTROLLER_METADATA: 4096,
    Feature.NAMESPACE_METADATA: 4096,
}


def _feature_data(fid: int, cdw11: int) -> int:
    if fid == Feature.HOST_IDENTIFIER:
        return 16 if cdw11 & 1 else 8  # EXHID, extended host identifier
    return _FEATURE_DATA.get(Feature(fid), 0) if fid in Feature._value2member_map_ else 0


def _check_address(name: str, iova: int) -> int:
    check(name, iova, 0, U64)
    if iova % PAGE:
        raise ValueError(f"{name} {iova:#x} is not a multiple of {PAGE}")
    return iova


def identify(
    cns: int, nsid: int = 0, cntid: int = 0, csi: int = 0, cns_specific_id: int = 0, uuid_index: int = 0
) -> Command:
    """Identify (Base 5.17): 4096 bytes from the controller. See `opcodes.Cns` and `identify`."""
    return Command(
        opcode=AdminOpcode.IDENTIFY,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check("cns", cns, 0, U8) | check("cntid", cntid, 0, U16) << 16,
        cdw11=check("cns_specific_id", cns_specific_id, 0, U16) | check("csi", csi, 0, U8) << 24,
        cdw14=check("uuid_index", uuid_index, 0, _UUID_INDEX),
        data_length=IDENTIFY_SIZE,
        admin=True,
    )


def get_log_page(
    lid: int,
    nbytes: int,
    nsid: int = NSID_ALL,
    offset: int = 0,
    lsp: int = 0,
    lsi: int = 0,
    rae: bool = False,
    uuid_index: int = 0,
    csi: int = 0,
    index_offset: bool = False,
) -> Command:
    """Get Log Page (Base 5.16): `nbytes` (a multiple of 4) of the page, from `offset` on.

    offset: in bytes, a multiple of 4; with `index_offset` an index of the page's entries. Needs LPA
        bit 2 if
    not 0.
    rae: Retain Asynchronous Event, don't re-arm the event that this page belongs to.
    """
    numd = check_dwords("nbytes", nbytes)
    check("offset", offset, 0, U64)
    if offset % 4 and not index_offset:
        raise ValueError(f"log page offset {offset} is not a multiple of 4")
    return Command(
        opcode=AdminOpcode.GET_LOG_PAGE,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check("lid", lid, 0, U8) | check("lsp", lsp, 0, 0x7F) << 8 | rae << 15 | (numd & U16) << 16,
        cdw11=numd >> 16 | check("lsi", lsi, 0, U16) << 16,
        cdw12=offset & U32,
        cdw13=offset >> 32,
        cdw14=check("uuid_index", uuid_index, 0, _UUID_INDEX) | index_offset << 23 | check("csi", csi, 0, U8) << 24,
        data_length=nbytes,
        admin=True,
    )


def get_features(
    fid: int, sel: int = FeatureSelect.CURRENT, nsid: int = 0, cdw11: int = 0, uuid_index: int = 0
) -> Command:
    """Get Features (Base 5.15).

    The value comes in completion dword 0, for some features with a data structure.
    """
    data = 0 if sel == FeatureSelect.CAPABILITIES else _feature_data(fid, cdw11)
    if fid == Feature.HOST_MEMORY_BUFFER and sel != FeatureSelect.CAPABILITIES:
        data = 4096  # the attributes; Set Features has them in dwords instead
    return Command(
        opcode=AdminOpcode.GET_FEATURES,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check("fid", fid, 0, U8) | check("sel", sel, 0, 7) << 8,
        cdw11=check("cdw11", cdw11, 0, U32),
        cdw14=check("uuid_index", uuid_index, 0, _UUID_INDEX),
        data_length=data,
        admin=True,
    )


def set_features(
    fid: int,
    cdw11: int = 0,
    nsid: int = 0,
    save: bool = False,
    cdw12: int = 0,
    cdw13: int = 0,
    cdw14: int = 0,
    cdw15: int = 0,
) -> Command:
    """Set Features (Base 5.27). See `features` for values; some need a data structure, see
    `data_length`.

    save: keep the value over resets and power cycles, if the controller can.
    """
    return Command(
        opcode=AdminOpcode.SET_FEATURES,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check("fid", fid, 0, U8) | save << 31,
        cdw11=cdw11,
        cdw12=cdw12,
        cdw13=cdw13,
        cdw14=cdw14,
        cdw15=cdw15,
        data_length=_feature_data(fid, cdw11),
        admin=True,
    )


def create_io_cq(qid: int, entries: int, iova: int, vector: int = 0, interrupts: bool = True) -> Command:
    """Create I/O Completion Queue (Base 5.4), physically contiguous, `entries` of 16 bytes at
    `iova`.

    vector: interrupt vector, used if `interrupts` is true.
    """
    return Command(
        opcode=AdminOpcode.CREATE_IO_CQ,
        prp1=_check_address("completion queue address", iova),
        cdw10=check("qid", qid, 1, U16) | (check("entries", entries, 2, U16 + 1) - 1) << 16,
        cdw11=1 | interrupts << 1 | check("vector", vector, 0, U16) << 16,
        admin=True,
    )


def create_io_sq(qid: int, entries: int, iova: int, cqid: int, priority: int = 0, nvm_set: int = 0) -> Command:
    """Create I/O Submission Queue (Base 5.5), physically contiguous, `entries` of 64 bytes at
    `iova`.

    cqid: where completions go. priority: 0 urgent, 1 high, 2 medium, 3 low, used with weighted
        round robin
    only.
    """
    return Command(
        opcode=AdminOpcode.CREATE_IO_SQ,
        prp1=_check_address("submission queue address", iova),
        cdw10=check("qid", qid, 1, U16) | (check("entries", entries, 2, U16 + 1) - 1) << 16,
        cdw11=1 | check("priority", priority, 0, 3) << 1 | check("cqid", cqid, 1, U16) << 16,
        cdw12=check("nvm_set", nvm_set, 0, U16),
        admin=True,
    )


def delete_io_cq(qid: int) -> Command:
    """Delete I/O Completion Queue (Base 5.6); its submission queues must be gone."""
    return Command(opcode=AdminOpcode.DELETE_IO_CQ, cdw10=check("qid", qid, 1, U16), admin=True)


def delete_io_sq(qid: int) -> Command:
    """Delete I/O Submission Queue (Base 5.7); commands still in it are completed or aborted before
    it completes.
    """
    return Command(opcode=AdminOpcode.DELETE_IO_SQ, cdw10=check("qid", qid, 1, U16), admin=True)


def abort(sqid: int, cid: int) -> Command:
    """Abort (Base 5.1) of command `cid` in submission queue `sqid`.

    Dword 0 bit 0 of its completion: 1 not aborted.
    """
    return Command(
        opcode=AdminOpcode.ABORT,
        cdw10=check("sqid", sqid, 0, U16) | check("cid", cid, 0, U16) << 16,
        admin=True,
    )


def async_event_request() -> Command:
    """Asynchronous Event Request (Base 5.2): completes when there is an event, maybe never.

    See AsyncEvent.
    """
    return Command(opcode=AdminOpcode.ASYNC_EVENT_REQUEST, admin=True)


def keep_alive() -> Command:
    """Keep Alive (Base 5.18)."""
    return Command(opcode=AdminOpcode.KEEP_ALIVE, admin=True)


def doorbell_buffer_config(shadow_iova: int, eventidx_iova: int) -> Command:
    """Doorbell Buffer Config (Base 5.8): one memory page for shadow doorbells, one for EventIdx
    values.
    """
    return Command(
        opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG,
        prp1=_check_address("shadow doorbell address", shadow_iova),
        prp2=_check_address("EventIdx address", eventidx_iova),
        admin=True,
    )


def format_nvm(
    nsid: int, lbaf: int = 0, *, ses: int = 0, mset: bool = False, pi: int = 0, pil: bool = False
) -> Command:
    """Format NVM (Base 5.14): destroys all data of the namespace.

    lbaf: LBA format, 0..63. ses: see SecureErase. mset: metadata at the end of each block (else in
        a buffer
    of its own).
    pi: protection information type, 0 none. pil: it comes first in the metadata.
    """
    check("lbaf", lbaf, 0, 63)
    return Command(
        opcode=AdminOpcode.FORMAT_NVM,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=lbaf & 0xF
        | mset << 4
        | check("pi", pi, 0, 3) << 5
        | pil << 8
        | check("ses", ses, 0, 2) << 9
        | lbaf >> 4 << 12,
        admin=True,
    )


def namespace_management(action: int, nsid: int = 0, csi: int = 0) -> Command:
    """Namespace Management (Base 5.23).

    To create: 4096 bytes to the controller, the new nsid in completion dword 0.
    """
    create = action == NamespaceManagementAction.CREATE
    return Command(
        opcode=AdminOpcode.NAMESPACE_MANAGEMENT,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check("action", action, 0, 1),
        cdw11=check("csi", csi, 0, U8) << 24,
        data_length=4096 if create else 0,
        admin=True,
    )


def namespace_attachment(nsid: int, action: int = NamespaceAttachmentAction.ATTACH) -> Command:
    """Namespace Attachment (Base 5.22): a controller list (4096 bytes) to the controller, see
    `identify.encode_controller_list`.
    """
    return Command(
        opcode=AdminOpcode.NAMESPACE_ATTACHMENT,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=check("action", action, 0, 1),
        data_length=4096,
        admin=True,
    )


def firmware_commit(slot: int, action: int = FirmwareCommitAction.REPLACE, boot_partition: int = 0) -> Command:
    """Firmware Commit (Base 5.12). slot: 1..7, or 0 to let the controller choose."""
    return Command(
        opcode=AdminOpcode.FIRMWARE_COMMIT,
        cdw10=check("slot", slot, 0, 7)
        | check("action", action, 0, 7) << 3
        | check("boot_partition", boot_partition, 0, 1) << 31,
        admin=True,
    )


def firmware_image_download(nbytes: int, offset: int) -> Command:
    """Firmware Image Download (Base 5.13): `nbytes` of the image that belong at `offset`; both
        multiples of
    4.
    """
    numd = check_dwords("nbytes", nbytes)
    check("offset", offset, 0, U32 * 4)
    if offset % 4:
        raise ValueError(f"firmware image offset {offset} is not a multiple of 4")
    return Command(
        opcode=AdminOpcode.FIRMWARE_IMAGE_DOWNLOAD,
        cdw10=numd,
        cdw11=offset // 4,
        data_length=nbytes,
        admin=True,
    )


def _security(opcode: int, secp: int, spsp: int, nssf: int, nbytes: int, nsid: int) -> Command:
    return Command(
        opcode=opcode,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check("nssf", nssf, 0, U8) | check("spsp", spsp, 0, U16) << 8 | check("secp", secp, 0, U8) << 24,
        cdw11=check("nbytes", nbytes, 0, U32),
        data_length=nbytes,
        admin=True,
    )


def security_send(secp: int, spsp: int, nbytes: int, nssf: int = 0, nsid: int = 0) -> Command:
    """Security Send (Base 5.26): `nbytes` of security protocol `secp`, specific field `spsp`."""
    return _security(AdminOpcode.SECURITY_SEND, secp, spsp, nssf, nbytes, nsid)


def security_receive(secp: int, spsp: int, nbytes: int, nssf: int = 0, nsid: int = 0) -> Command:
    """Security Receive (Base 5.25): up to `nbytes` of security protocol `secp`, specific field
    `spsp`.
    """
    return _security(AdminOpcode.SECURITY_RECEIVE, secp, spsp, nssf, nbytes, nsid)


def _directive(opcode: int, dtype: int, doper: int, dspec: int, nbytes: int, nsid: int, cdw12: int) -> Command:
    return Command(
        opcode=opcode,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check_dwords("nbytes", nbytes) if nbytes else 0,
        cdw11=check("doper", doper, 0, U8) | check("dtype", dtype, 0, U8) << 8 | check("dspec", dspec, 0, U16) << 16,
        cdw12=cdw12,
        data_length=nbytes,
        admin=True,
    )


def directive_send(dtype: int, doper: int, dspec: int = 0, nbytes: int = 0, nsid: int = 0, cdw12: int = 0) -> Command:
    """Directive Send (Base 5.11)."""
    return _directive(AdminOpcode.DIRECTIVE_SEND, dtype, doper, dspec, nbytes, nsid, cdw12)


def directive_receive(
    dtype: int, doper: int, dspec: int = 0, nbytes: int = 0, nsid: int = 0, cdw12: int = 0
) -> Command:
    """Directive Receive (Base 5.10)."""
    return _directive(AdminOpcode.DIRECTIVE_RECEIVE, dtype, doper, dspec, nbytes, nsid, cdw12)


def sanitize(
    action: int,
    *,
    allow_unrestricted_exit: bool = False,
    overwrite_passes: int = 1,
    overwrite_pattern: int = 0,
    invert_pattern: bool = False,
    no_deallocate: bool = False,
) -> Command:
    """Sanitize (Base 5.24): starts to destroy all data of the NVM subsystem.

    The log page Sanitize Status reports progress and result.
    """
    check("overwrite_passes", overwrite_passes, 1, 16)
    overwrite = action == SanitizeAction.OVERWRITE
    return Command(
        opcode=AdminOpcode.SANITIZE,
        cdw10=check("action", action, 1, 4)
        | allow_unrestricted_exit << 3
        | (overwrite_passes & 0xF if overwrite else 0) << 4  # 16 is written as 0
        | invert_pattern << 8
        | no_deallocate << 9,
        cdw11=check("overwrite_pattern", overwrite_pattern, 0, U32),
        admin=True,
    )


def device_self_test(stc: int, nsid: int = 0) -> Command:
    """Device Self-test (Base 5.9). nsid: 0 the controller alone, NSID_ALL with all namespaces.

    stc: see SelfTest.
    """
    return Command(
        opcode=AdminOpcode.DEVICE_SELF_TEST,
        nsid=check("nsid", nsid, 0, U32),
        cdw10=check("stc", stc, 0, 15),
        admin=True,
    )


def get_lba_status(
    nsid: int, lba: int, nbytes: int, blocks: int = 0, action: int = LbaStatusAction.RETURN_TRACKED
) -> Command:
    """Get LBA Status (NVM 4.2.1): up to `nbytes` of descriptors.

    blocks: how many to check, 0 to the namespace's end.
    """
    check("lba", lba, 0, U64)
    return Command(
        opcode=AdminOpcode.GET_LBA_STATUS,
        nsid=check("nsid", nsid, 1, U32 - 1),
        cdw10=lba & U32,
        cdw11=lba >> 32,
        cdw12=check_dwords("nbytes", nbytes),
        cdw13=check("blocks", blocks, 0, U16) | check("action", action, 0, U8) << 24,
        data_length=nbytes,
        admin=True,
    )


def virtualization_management(action: int, cntlid: int, resource_type: int = 0, resources: int = 0) -> Command:
    """Virtualization Management (Base 5.28). resource_type: 0 queues, 1 interrupts.

    See VirtualizationAction.
    """
    return Command(
        opcode=AdminOpcode.VIRTUALIZATION_MANAGEMENT,
        cdw10=check("action", action, 0, 15)
        | check("resource_type", resource_type, 0, 1) << 8
        | check("cntlid", cntlid, 0, U16) << 16,
        cdw11=check("resources", resources, 0, U16),
        admin=True,
    )


def capacity_management(operation: int, element: int = 0, capacity: int = 0) -> Command:
    """Capacity Management (Base 5.3). capacity: in bytes.

    The new element's identifier is in completion dword 0.
    """
    check("capacity", capacity, 0, U64)
    return Command(
        opcode=AdminOpcode.CAPACITY_MANAGEMENT,
        cdw10=check("operation", operation, 0, 15) | check("element", element, 0, U16) << 16,
        cdw11=capacity & U32,
        cdw12=capacity >> 32,
        admin=True,
    )


def lockdown(scope: int, target: int, prohibit: bool, interface: int = 0, uuid_index: int = 0) -> Command:
    """Lockdown (Base 5.19). scope: 0 admin opcode, 2 feature identifier, 3 and up management
        interfaces'
    commands.

    target: the opcode or feature identifier. interface: 0 admin queue, 1 and the out-of-band
        endpoint, 2 that
    alone.
    """
    return Command(
        opcode=AdminOpcode.LOCKDOWN,
        cdw10=check("scope", scope, 0, 15)
        | prohibit << 4
        | check("interface", interface, 0, 3) << 5
        | check("target", target, 0, U8) << 8,
        cdw14=check("uuid_index", uuid_index, 0, _UUID_INDEX),
        admin=True,
    )
