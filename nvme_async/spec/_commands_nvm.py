"""Builders of I/O commands and their payloads: NVM command set (NVM 3.2), flush and reservations
(Base 7).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from nvme_async.spec._command import U8, U16, U32, U64, Command, check, check_dwords
from nvme_async.spec.opcodes import DsmAttribute, NvmOpcode

MAX_BLOCKS = 65536
"""Logical blocks of one command: NLB has 16 bits and is zero-based."""
MAX_DSM_RANGES = 256


def _io(
    opcode: int,
    nsid: int,
    lba: int,
    blocks: int,
    flags: int = 0,
    *,
    prinfo: int = 0,
    dsm: int = 0,
    dspec: int = 0,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
    mptr: int = 0,
    fuse: int = 0,
    data: bool = True,
) -> Command:
    check("lba", lba, 0, U64)
    return Command(
        opcode=opcode,
        fuse=fuse,
        nsid=check("nsid", nsid, 1, U32),
        mptr=mptr,
        cdw10=lba & U32,
        cdw11=lba >> 32,
        cdw12=check("blocks", blocks, 1, MAX_BLOCKS) - 1 | flags | check("prinfo", prinfo, 0, 15) << 26,
        cdw13=check("dsm", dsm, 0, U8) | check("dspec", dspec, 0, U16) << 16,
        cdw14=check("reftag", reftag, 0, U32),
        cdw15=check("apptag", apptag, 0, U16) | check("apptag_mask", apptag_mask, 0, U16) << 16,
        data_length=None if data else 0,
    )


def _flags(fua: bool = False, lr: bool = False, stc: bool = False, deac: bool = False, dtype: int = 0) -> int:
    return lr << 31 | fua << 30 | deac << 25 | stc << 24 | check("dtype", dtype, 0, 15) << 20


def read(
    nsid: int,
    lba: int,
    blocks: int,
    fua: bool = False,
    lr: bool = False,
    *,
    prinfo: int = 0,
    stc: bool = False,
    dsm: int = 0,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
    mptr: int = 0,
) -> Command:
    """Read (NVM 3.2.4) of `blocks` (1..65536) logical blocks from `lba` on.

    fua: from the media, not from a volatile cache. lr: limited retry. prinfo: PRACT << 3 | PRCHK.
        stc:
    storage tag check.
    dsm: dataset management hints. reftag, apptag, apptag_mask: expected protection information.
        mptr:
    metadata address.
    """
    return _io(
        NvmOpcode.READ,
        nsid,
        lba,
        blocks,
        _flags(fua, lr, stc),
        prinfo=prinfo,
        dsm=dsm,
        reftag=reftag,
        apptag=apptag,
        apptag_mask=apptag_mask,
        mptr=mptr,
    )


def write(
    nsid: int,
    lba: int,
    blocks: int,
    fua: bool = False,
    lr: bool = False,
    *,
    prinfo: int = 0,
    stc: bool = False,
    dsm: int = 0,
    dtype: int = 0,
    dspec: int = 0,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
    mptr: int = 0,
) -> Command:
    """Write (NVM 3.2.6) of `blocks` (1..65536) logical blocks from `lba` on.

    fua: on the media before it completes. dtype, dspec: directive type and its value (a stream).
        The rest as
    in `read`.
    """
    return _io(
        NvmOpcode.WRITE,
        nsid,
        lba,
        blocks,
        _flags(fua, lr, stc, dtype=dtype),
        prinfo=prinfo,
        dsm=dsm,
        dspec=dspec,
        reftag=reftag,
        apptag=apptag,
        apptag_mask=apptag_mask,
        mptr=mptr,
    )


def compare(
    nsid: int,
    lba: int,
    blocks: int,
    fua: bool = False,
    lr: bool = False,
    *,
    prinfo: int = 0,
    stc: bool = False,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
    mptr: int = 0,
    fuse: int = 0,
) -> Command:
    """Compare (NVM 3.2.1) of the buffer with `blocks` logical blocks; status Compare Failure if
    they differ.

    fuse: 1 for the first command of a fused compare and write. The rest as in `read`.
    """
    return _io(
        NvmOpcode.COMPARE,
        nsid,
        lba,
        blocks,
        _flags(fua, lr, stc),
        prinfo=prinfo,
        reftag=reftag,
        apptag=apptag,
        apptag_mask=apptag_mask,
        mptr=mptr,
        fuse=check("fuse", fuse, 0, 2),
    )


def write_zeroes(
    nsid: int,
    lba: int,
    blocks: int,
    deac: bool = False,
    fua: bool = False,
    *,
    lr: bool = False,
    prinfo: int = 0,
    stc: bool = False,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
) -> Command:
    """Write Zeroes (NVM 3.2.8). deac: deallocate the blocks if they then read as zeroes.

    The rest as in `write`.
    """
    return _io(
        NvmOpcode.WRITE_ZEROES,
        nsid,
        lba,
        blocks,
        _flags(fua, lr, stc, deac),
        prinfo=prinfo,
        reftag=reftag,
        apptag=apptag,
        apptag_mask=apptag_mask,
        data=False,
    )


def write_uncorrectable(nsid: int, lba: int, blocks: int) -> Command:
    """Write Uncorrectable (NVM 3.2.7): reads of these blocks fail until they are written again."""
    return _io(NvmOpcode.WRITE_UNCORRECTABLE, nsid, lba, blocks, data=False)


def verify(
    nsid: int,
    lba: int,
    blocks: int,
    fua: bool = False,
    lr: bool = False,
    *,
    prinfo: int = 0,
    stc: bool = False,
    reftag: int = 0,
    apptag: int = 0,
    apptag_mask: int = 0,
) -> Command:
    """Verify (NVM 3.2.5): read the blocks and check them, without data transfer. Arguments as in
    `read`.
    """
    return _io(
        NvmOpcode.VERIFY,
        nsid,
        lba,
        blocks,
        _flags(fua, lr, stc),
        prinfo=prinfo,
        reftag=reftag,
        apptag=apptag,
        apptag_mask=apptag_mask,
        data=False,
    )


def flush(nsid: int) -> Command:
    """Flush (Base 7.1): what was completed before is on the media afterwards.

    NSID_ALL: all namespaces, if VWC allows.
    """
    return Command(opcode=NvmOpcode.FLUSH, nsid=check("nsid", nsid, 1, U32))


def dataset_management(nsid: int, ranges: int, attributes: int = DsmAttribute.DEALLOCATE) -> Command:
    """Dataset Management (NVM 3.2.3) of so many ranges (1..256), which `dsm_ranges` packs.

    See DsmAttribute.
    """
    check("ranges", ranges, 1, MAX_DSM_RANGES)
    return Command(
        opcode=NvmOpcode.DATASET_MANAGEMENT,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=ranges - 1,
        cdw11=check("attributes", attributes, 0, 7),
        data_length=16 * ranges,
    )


def dsm_ranges(ranges: Iterable[tuple[int, int]], context: int = 0) -> bytes:
    """The payload of Dataset Management: (lba, blocks) pairs, 16 bytes each; `context` are the
    context attributes.
    """
    payload = bytearray()
    check("context", context, 0, U32)
    for lba, blocks in ranges:
        payload += struct.pack("<IIQ", context, check("blocks", blocks, 0, U32), check("lba", lba, 0, U64))
    check("number of ranges", len(payload) // 16, 1, MAX_DSM_RANGES)
    return bytes(payload)


def reservation_register(nsid: int, action: int, ignore_existing_key: bool = False, cptpl: int = 0) -> Command:
    """Reservation Register (Base 7.3); payload: `reservation_register_payload`.

    See ReservationRegisterAction.
    """
    return Command(
        opcode=NvmOpcode.RESERVATION_REGISTER,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=check("action", action, 0, 2) | ignore_existing_key << 3 | check("cptpl", cptpl, 0, 3) << 30,
        data_length=16,
    )


def reservation_acquire(nsid: int, action: int, rtype: int, ignore_existing_key: bool = False) -> Command:
    """Reservation Acquire (Base 7.2); payload: `reservation_acquire_payload`.

    See ReservationAcquireAction.
    """
    return Command(
        opcode=NvmOpcode.RESERVATION_ACQUIRE,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=check("action", action, 0, 2) | ignore_existing_key << 3 | check("rtype", rtype, 1, 6) << 8,
        data_length=16,
    )


def reservation_release(nsid: int, action: int, rtype: int = 0, ignore_existing_key: bool = False) -> Command:
    """Reservation Release (Base 7.4); payload: `reservation_release_payload`.

    `rtype` must be the held type to release.
    """
    return Command(
        opcode=NvmOpcode.RESERVATION_RELEASE,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=check("action", action, 0, 1) | ignore_existing_key << 3 | check("rtype", rtype, 0, 6) << 8,
        data_length=8,
    )


def reservation_report(nsid: int, nbytes: int = 4096, extended: bool = False) -> Command:
    """Reservation Report (Base 7.5), `reservations.ReservationReport`.

    extended: needed with 128-bit host identifiers.
    """
    return Command(
        opcode=NvmOpcode.RESERVATION_REPORT,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=check_dwords("nbytes", nbytes),
        cdw11=int(extended),
        data_length=nbytes,
    )


def _keys(*keys: tuple[str, int]) -> bytes:
    return b"".join(struct.pack("<Q", check(name, key, 0, U64)) for name, key in keys)


def reservation_register_payload(current_key: int, new_key: int) -> bytes:
    """CRKEY and NRKEY (Base 7.3)."""
    return _keys(("current_key", current_key), ("new_key", new_key))


def reservation_acquire_payload(current_key: int, preempt_key: int = 0) -> bytes:
    """CRKEY and PRKEY (Base 7.2)."""
    return _keys(("current_key", current_key), ("preempt_key", preempt_key))


def reservation_release_payload(current_key: int) -> bytes:
    """CRKEY (Base 7.4)."""
    return _keys(("current_key", current_key))
