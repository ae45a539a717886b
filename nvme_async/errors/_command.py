"""Commands that failed: with an error status (the base class, and the generic ones), or without."""

from __future__ import annotations

from nvme_async.errors._root import NvmeError


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


class KeyDoesNotExist(CommandError, KeyError):
    """Key Does Not Exist (Key Value Command Set)."""

    def __str__(self) -> str:
        return CommandError.__str__(self)


class KeyExists(CommandError):
    """Key Exists, and must not be replaced (Key Value Command Set)."""


class FdpDisabled(CommandError):
    """Flexible Data Placement is disabled for the namespace's endurance group."""


class InvalidPlacementHandles(CommandError):
    """Invalid Placement Handle List: the namespace can't be created with it."""


class StreamAllocationFailed(CommandError):
    """Stream Resource Allocation Failed: no streams are left."""


class ManagementError(NvmeError):
    """The controller executed a management operation without success. The message names it and
    explains the result.
    """


class CommandTimeout(NvmeError, TimeoutError):
    """A command had no completion within its timeout, and was aborted or ended by a reset. Only
    then are its buffers released.
    """
