"""Media and Data Integrity Errors (status code type 2h)."""

from __future__ import annotations

from nvme_async.errors._command import CommandError


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
        where = f"; block {self.block}" if self.block is not None else ""
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
