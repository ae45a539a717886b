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

from nvme_async.errors._command import (
    CapacityExceeded,
    CommandAborted,
    CommandError,
    CommandTimeout,
    FdpDisabled,
    InvalidField,
    InvalidNamespace,
    InvalidOpcode,
    InvalidPlacementHandles,
    KeyDoesNotExist,
    KeyExists,
    LbaOutOfRange,
    ManagementError,
    NamespaceNotReady,
    NamespaceWriteProtected,
    ReservationConflict,
    StreamAllocationFailed,
)
from nvme_async.errors._controller import (
    AdminRefused,
    ControllerError,
    ControllerFatal,
    ControllerGone,
    ControllerReplaced,
    ControllerTimeout,
    DeviceError,
    DeviceTimeout,
)
from nvme_async.errors._local import ConfigurationError, OutOfDmaMemory, QueueShutdown
from nvme_async.errors._media import (
    AccessDenied,
    ApplicationTagError,
    CompareFailure,
    DeallocatedBlock,
    GuardError,
    MediaError,
    PiError,
    ReferenceTagError,
    StorageTagError,
    UnrecoveredReadError,
    WriteFault,
)
from nvme_async.errors._namespaces import NamespaceChanged, NamespaceReplaced, NoSuchNamespace
from nvme_async.errors._processes import HandedOver, InvalidSavedState, KeeperError, LeaseError, RestoreRefused
from nvme_async.errors._root import NvmeError
from nvme_async.errors._status import command_error
from nvme_async.errors._zones import (
    InvalidZoneTransition,
    TooManyActiveZones,
    TooManyOpenZones,
    ZoneBoundaryError,
    ZoneError,
    ZoneFull,
    ZoneInvalidWrite,
    ZoneOffline,
    ZoneReadOnly,
)

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
    "FdpDisabled",
    "GuardError",
    "HandedOver",
    "InvalidField",
    "InvalidNamespace",
    "InvalidOpcode",
    "InvalidPlacementHandles",
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
    "StreamAllocationFailed",
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

# Tracebacks, pickles and log records name the public module, where programs import the classes.
for _name in __all__:
    globals()[_name].__module__ = __name__
