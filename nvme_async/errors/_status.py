"""Which exception stands for which completion status."""

from __future__ import annotations

from nvme_async.errors._command import (
    CapacityExceeded,
    CommandAborted,
    CommandError,
    FdpDisabled,
    InvalidField,
    InvalidNamespace,
    InvalidOpcode,
    InvalidPlacementHandles,
    KeyDoesNotExist,
    KeyExists,
    LbaOutOfRange,
    NamespaceNotReady,
    NamespaceWriteProtected,
    ReservationConflict,
    StreamAllocationFailed,
)
from nvme_async.errors._media import (
    AccessDenied,
    ApplicationTagError,
    CompareFailure,
    DeallocatedBlock,
    GuardError,
    MediaError,
    ReferenceTagError,
    StorageTagError,
    UnrecoveredReadError,
    WriteFault,
)
from nvme_async.errors._zones import (
    InvalidZoneTransition,
    TooManyActiveZones,
    TooManyOpenZones,
    ZoneBoundaryError,
    ZoneFull,
    ZoneInvalidWrite,
    ZoneOffline,
    ZoneReadOnly,
)

# (sct, sc) → class; NVMe Base 2.0 figures 101-105, NVM Command Set 1.0 figure 16.
_BY_STATUS: dict[tuple[int, int], type[CommandError]] = {
    (0x0, 0x01): InvalidOpcode,
    (0x0, 0x02): InvalidField,
    (0x0, 0x07): CommandAborted,
    (0x0, 0x08): CommandAborted,
    (0x0, 0x09): CommandAborted,
    (0x0, 0x0A): CommandAborted,
    (0x0, 0x0B): InvalidNamespace,
    (0x0, 0x20): NamespaceWriteProtected,
    (0x0, 0x29): FdpDisabled,
    (0x0, 0x2A): InvalidPlacementHandles,
    (0x0, 0x80): LbaOutOfRange,
    (0x0, 0x81): CapacityExceeded,
    (0x0, 0x82): NamespaceNotReady,
    (0x0, 0x83): ReservationConflict,
    (0x0, 0x87): KeyDoesNotExist,
    (0x0, 0x89): KeyExists,
    (0x1, 0x7F): StreamAllocationFailed,
    (0x1, 0x82): NamespaceWriteProtected,
    (0x1, 0xB8): ZoneBoundaryError,
    (0x1, 0xB9): ZoneFull,
    (0x1, 0xBA): ZoneReadOnly,
    (0x1, 0xBB): ZoneOffline,
    (0x1, 0xBC): ZoneInvalidWrite,
    (0x1, 0xBD): TooManyActiveZones,
    (0x1, 0xBE): TooManyOpenZones,
    (0x1, 0xBF): InvalidZoneTransition,
    (0x2, 0x80): WriteFault,
    (0x2, 0x81): UnrecoveredReadError,
    (0x2, 0x82): GuardError,
    (0x2, 0x83): ApplicationTagError,
    (0x2, 0x84): ReferenceTagError,
    (0x2, 0x85): CompareFailure,
    (0x2, 0x86): AccessDenied,
    (0x2, 0x87): DeallocatedBlock,
    (0x2, 0x88): StorageTagError,
}


def command_error(status: int, **context: object) -> CommandError:
    """The exception for a completion's 15-bit status field (CQE dword 3 bits 31:17), with the
    command's context.
    """
    sc, sct = status & 0xFF, status >> 8 & 0x7
    cls = _BY_STATUS.get((sct, sc), MediaError if sct == 0x2 else CommandError)
    return cls(
        sct,
        sc,
        crd=status >> 11 & 0x3,
        more=bool(status >> 13 & 1),
        dnr=bool(status >> 14 & 1),
        **context,  # type: ignore[arg-type]
    )
