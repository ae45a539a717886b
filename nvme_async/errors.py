"""Every exception that nvme_async raises.

    NvmeError
    ├─ CommandError            the controller completed a command with a status other than success
    │  ├─ InvalidField, InvalidOpcode, InvalidNamespace, LbaOutOfRange, CapacityExceeded,
    │  │  NamespaceNotReady, ReservationConflict, CommandAborted, NamespaceWriteProtected
    │  └─ MediaError
    │     └─ WriteFault, UnrecoveredReadError, CompareFailure, AccessDenied, DeallocatedBlock
    ├─ ControllerError         the controller as a whole failed
    │  └─ ControllerGone, ControllerTimeout, ControllerFatal, DeviceError, ControllerReplaced
    ├─ CommandTimeout          one command had no completion in its time; it was aborted, or ended
    │                          by a reset
    ├─ NamespaceChanged        the namespace has another format than the request was made for
    │  └─ NamespaceReplaced    another namespace has its number
    ├─ HandedOver              this process gave the controller to a successor
    ├─ KeeperError             the process that holds descriptors between two drivers is gone,
    │                          silent, or refuses
    ├─ LeaseError              the process that shares its controller refused
    ├─ QueueShutdown           the queue pair or controller was closed
    ├─ InvalidSavedState       a pool or saved state is truncated, altered or foreign, and was left
    │                          as it is
    ├─ RestoreRefused          a live takeover isn't possible; the message says why, the controller
    │                          was left as it was
    ├─ ConfigurationError      a URI, option or environment variable is invalid
    └─ OutOfDmaMemory

Some also belong to built-in families that programs already catch: ControllerTimeout and
CommandTimeout are TimeoutError, ControllerGone, HandedOver and KeeperError are ConnectionError,
ConfigurationError and InvalidSavedState are ValueError, OutOfDmaMemory is MemoryError.
"""

from __future__ import annotations

__all__ = [
    "AccessDenied",
    "AdminRefused",
    "ApplicationTagError",
    "CapacityExceeded",
    "CommandAborted",
    "CommandError",
    "CommandTimeout",
    "CompareFailure",
    "ConfigurationError",
    "ControllerError",
    "ControllerFatal",
    "ControllerGone",
    "ControllerReplaced",
    "ControllerTimeout",
    "DeallocatedBlock",
    "DeviceError",
    "DeviceTimeout",
    "GuardError",
    "HandedOver",
    "InvalidField",
    "InvalidNamespace",
    "InvalidOpcode",
    "InvalidSavedState",
    "InvalidZoneTransition",
    "KeeperError",
    "KeyDoesNotExist",
    "KeyExists",
    "LbaOutOfRange",
    "LeaseError",
    "ManagementError",
    "MediaError",
    "NamespaceChanged",
    "NamespaceNotReady",
    "NamespaceReplaced",
    "NamespaceWriteProtected",
    "NoSuchNamespace",
    "NvmeError",
    "OutOfDmaMemory",
    "PiError",
    "QueueShutdown",
    "ReferenceTagError",
    "ReservationConflict",
    "RestoreRefused",
    "StorageTagError",
    "TooManyActiveZones",
    "TooManyOpenZones",
    "UnrecoveredReadError",
    "WriteFault",
    "ZoneBoundaryError",
    "ZoneError",
    "ZoneFull",
    "ZoneInvalidWrite",
    "ZoneOffline",
    "ZoneReadOnly",
    "command_error",
]


class NvmeError(Exception):
    """The root of all errors of this package."""


class CommandError(NvmeError):
    """A command completed with an error status (NVMe Base 2.0, 3.3.3.2.1).

    Attributes:
        sct, sc: status code type and status code.
        dnr: Do Not Retry; the same command would fail again.
        more: the Error Information log page has more information.
        crd: command retry delay index, 0 to 3.
        opcode, nsid: of the command. lba, blocks: of an I/O command that names them, else None.
        admin: whether it was an admin command.
        dw0: the command-specific result.
    """

    sct: int
    sc: int
    dnr: bool
    more: bool
    crd: int
    dw0: int
    opcode: int
    admin: bool
    nsid: int
    lba: int | None
    blocks: int | None
    text: str

    def __init__(
        self,
        sct: int,
        sc: int,
        *,
        dnr: bool = False,
        more: bool = False,
        crd: int = 0,
        opcode: int = 0,
        nsid: int = 0,
        lba: int | None = None,
        blocks: int | None = None,
        admin: bool = False,
        dw0: int = 0,
        text: str = "",
        command: str = "",
    ) -> None:
        self.sct, self.sc, self.dnr, self.more, self.crd = sct, sc, dnr, more, crd
        self.opcode, self.nsid, self.lba, self.blocks = opcode, nsid, lba, blocks
        self.admin, self.dw0, self.text = admin, dw0, text
        where = f" lba {lba}+{blocks}" if lba is not None else ""
        namespace = f" on namespace {nsid}" if nsid else ""
        retry = ", do not retry" if dnr else ""
        name = command or f"{'admin' if admin else 'I/O'} command {opcode:#04x}"
        super().__init__(f"{name}{namespace}{where}: {text or 'error'} (sct {sct:#x}, sc {sc:#04x}{retry})")

    @property
    def status(self) -> int:
        """Status code type and status code as the usual 11-bit number, sct << 8 | sc."""
        return self.sct << 8 | self.sc


class InvalidField(CommandError, ValueError):
    """Invalid Field in Command."""


class InvalidOpcode(CommandError):
    """Invalid Command Opcode."""


class InvalidNamespace(CommandError):
    """Invalid Namespace or Format: the namespace does not exist (any more)."""


class LbaOutOfRange(CommandError, IndexError):
    """LBA Out of Range."""


class CapacityExceeded(CommandError):
    """Capacity Exceeded."""


class NamespaceNotReady(CommandError):
    """Namespace Not Ready."""


class ReservationConflict(CommandError, PermissionError):
    """Reservation Conflict: another host holds the namespace."""


class CommandAborted(CommandError):
    """The command was aborted: by request, with its queue, or because a fused partner failed."""


class NamespaceWriteProtected(CommandError, PermissionError):
    """Namespace is Write Protected, or the attempted write is to a read only range."""


class MediaError(CommandError, OSError):
    """Media and Data Integrity Errors (status code type 2h)."""

    def __str__(self) -> str:  # OSError would format the arguments itself
        return str(self.args[0])


class WriteFault(MediaError):
    """Write Fault: the data could not be committed to the media."""


class UnrecoveredReadError(MediaError):
    """Unrecovered Read Error: the data could not be recovered from the media."""


class CompareFailure(MediaError):
    """Compare Failure: the media differ from the data that was sent."""


class PiError(MediaError):
    """A block's end-to-end protection information is wrong (NVM Command Set 1.1, 5.3).

    Attributes:
        tag: which part: "guard", "application tag", "reference tag" or "storage tag".
        block: the LBA of the block; None if the controller reported the error and its error log
            does not contain the LBA.
        found, expected: what this process found and computed; None where the controller checked.
    """

    tag = ""
    block: int | None = None
    found: int | None = None
    expected: int | None = None

    def __str__(self) -> str:
        where = f"; it is block {self.block}" if self.block is not None else ""
        values = f": found {self.found:#x}, expected {self.expected:#x}" if self.found is not None else ""
        return f"{self.args[0]}{where}{values}"


class GuardError(PiError):
    """End-to-end Guard Check Error: the data differ from the protected data."""

    tag = "guard"


class ApplicationTagError(PiError):
    """End-to-end Application Tag Check Error."""

    tag = "application tag"


class ReferenceTagError(PiError):
    """End-to-end Reference Tag Check Error: the data belong to another block."""

    tag = "reference tag"


class StorageTagError(PiError):
    """End-to-end Storage Tag Check Error."""

    tag = "storage tag"


class AccessDenied(MediaError):
    """Access Denied to the namespace or LBA range."""


class DeallocatedBlock(MediaError):
    """Deallocated or Unwritten Logical Block, where the controller reports reads of those."""


class KeyDoesNotExist(CommandError, KeyError):
    """Key Does Not Exist (Key Value Command Set)."""

    def __str__(self) -> str:
        return CommandError.__str__(self)


class KeyExists(CommandError):
    """Key Exists, and must not be replaced (Key Value Command Set)."""


class ZoneError(CommandError):
    """A zone did not allow the command (ZNS Command Set 1.1, 2.1.1)."""


class ZoneBoundaryError(ZoneError):
    """Zoned Boundary Error: beyond what the zone can hold."""


class ZoneFull(ZoneError):
    """Zone Is Full."""


class ZoneReadOnly(ZoneError):
    """Zone Is Read Only."""


class ZoneOffline(ZoneError):
    """Zone Is Offline."""


class ZoneInvalidWrite(ZoneError):
    """Zone Invalid Write: not at the write pointer."""


class TooManyActiveZones(ZoneError):
    """Too Many Active Zones (MAR)."""


class TooManyOpenZones(ZoneError):
    """Too Many Open Zones (MOR)."""


class InvalidZoneTransition(ZoneError):
    """Invalid Zone State Transition."""


class ManagementError(NvmeError):
    """The controller executed a management operation without success. The message names it and
    explains the result.
    """


class ControllerError(NvmeError):
    """The controller as a whole failed; every command on it fails with this."""


class ControllerGone(ControllerError, ConnectionError):
    """The device is gone: registers read all-ones, or the peer closed its socket."""


class ControllerTimeout(ControllerError, TimeoutError):
    """The controller, or the device behind the seam, did not answer in its time."""


class AdminRefused(ControllerError):
    """No admin command is sent after the bring-up: the controller is driven fused."""


class DeviceTimeout(ControllerTimeout):
    """The device layer, and so its registers, did not answer in time: a stopped vfio-user peer."""


class ControllerFatal(ControllerError):
    """CSTS.CFS is set, or the controller broke the protocol (a forged command id, for example)."""


class DeviceError(ControllerError, OSError):
    """The device layer refused: an ioctl or a vfio-user message failed; which, and why."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ControllerReplaced(ControllerError):
    """Another controller is at the address: serial number, model, subsystem NQN, controller id or
    PCI ids differ. Nothing meant for the first one was sent to it; open it, or ask the manager for
    a new handle.
    """


class NamespaceChanged(NvmeError):
    """The namespace has been formatted: a request that was made for the old format (block size,
    metadata, protection) ended without a result. It was not sent, or its outcome is unknown
    because the format changed while it was in flight. New requests use the new format.
    """


class NamespaceReplaced(NamespaceChanged):
    """Another namespace has this one's number: NGUID, EUI-64 or UUID differ. The handle can't be
    used any more; the new namespace has its own handle.
    """


class NoSuchNamespace(NvmeError, KeyError):
    """`controller.namespaces` has no active namespace of that number, but those named."""

    def __str__(self) -> str:  # KeyError would quote it
        return str(self.args[0])


class CommandTimeout(NvmeError, TimeoutError):
    """A command had no completion within its timeout, and was aborted or ended by a reset. Only
    then are its buffers released.
    """


class HandedOver(NvmeError, ConnectionError):
    """This process handed the controller to a successor.

    sent: True: the controller has the command, and its result belongs to the successor. False: it
        was never sent.
    """

    def __init__(self, message: str, *, sent: bool = False) -> None:
        self.sent = sent
        super().__init__(message)


class KeeperError(NvmeError, ConnectionError):
    """The keeper is missing, doesn't answer, or refused.

    Attributes:
        code: why it refused: "owned" (by another living process), "limit", "invalid"; "" if it did
            not refuse.
        pid: the process that a refusal is about, or None.
    """

    def __init__(self, text: str, *, code: str = "", pid: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.pid = pid


class LeaseError(NvmeError, PermissionError):
    """The process that shares a controller (nvme_async.sharing) refused a worker's request.

    Attributes:
        code: why: "full" (no more workers or queue pairs), "quota" (bytes or entries), "policy" (an
            admin command that workers may not send), "unknown" (there is no such lease), "revoked",
            "stale" (the controller was reset meanwhile), "invalid" (the message is invalid),
            "version" (of the protocol), "failed" (the controller).
    """

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class QueueShutdown(NvmeError):
    """The queue pair, namespace handle or controller is closed."""


class ConfigurationError(NvmeError, ValueError):
    """A URI, an option or an environment variable is invalid; the message names the value and
    the valid ones.
    """


class InvalidSavedState(NvmeError, ValueError):
    """A pool or a saved state is truncated, altered, foreign or of an unknown version; it was
    refused, not changed.
    """


class RestoreRefused(NvmeError):
    """A predecessor's running controller can't be taken over: another drive, changed limits, a
    state that doesn't match. The controller was left as it was; the message gives the reason.
    """


class OutOfDmaMemory(NvmeError, MemoryError):
    """No free run of pages in the pool is long enough. The message gives the requested size, the
    free bytes, and the longest run.
    """


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
    (0x0, 0x80): LbaOutOfRange,
    (0x0, 0x81): CapacityExceeded,
    (0x0, 0x82): NamespaceNotReady,
    (0x0, 0x83): ReservationConflict,
    (0x1, 0x82): NamespaceWriteProtected,
    (0x1, 0x87): KeyDoesNotExist,
    (0x1, 0x89): KeyExists,
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
