"""From a completion's status to its waiter's exception."""

from __future__ import annotations

from nvme_async.errors import CommandTimeout, NvmeError, command_error
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import command_name
from nvme_async.spec.status import GenericStatus, status_text


def error_from(status: int, dw0: int, sqe: bytes, admin: bool, timed_out: bool) -> NvmeError:
    """The exception for a completed command; `timed_out` if the driver had sent an Abort for
    it.
    """
    command = Command.unpack(sqe, admin=admin)
    lba, blocks = command.lba, command.blocks
    if timed_out and status & 0x7FF == GenericStatus.ABORT_REQUESTED:
        where = "" if lba is None else f" lba {lba}+{blocks}"
        return CommandTimeout(
            f"{command.name} on namespace {command.nsid}{where}: no completion in time; it was "
            "aborted, or ended by a reset"
        )
    return command_error(
        status,
        opcode=command.opcode,
        nsid=command.nsid,
        lba=lba,
        blocks=blocks,
        admin=admin,
        dw0=dw0,
        text=status_text(status >> 8 & 7, status & 0xFF),
        command=command_name(command.opcode, admin=admin),
    )
