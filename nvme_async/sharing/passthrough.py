"""Admin commands that the owner sends for a worker."""

from __future__ import annotations

from typing import Any

import attrs

from nvme_async.driver.context import ControllerContext
from nvme_async.errors import CommandError, LeaseError
from nvme_async.sharing.policy import Policy
from nvme_async.sharing.protocol import COMMAND_BYTES, MAX_DATA, Message
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import AdminOpcode, Direction
from nvme_async.spec.registers import PAGE


def _dwords(command: Command) -> int | None:
    """Bytes that the controller transfers, if the command itself defines them; None: it does
    not.
    """
    opcode = command.opcode
    if opcode == AdminOpcode.IDENTIFY:
        return PAGE
    if opcode == AdminOpcode.GET_LOG_PAGE:
        return ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    if opcode == AdminOpcode.GET_LBA_STATUS:
        return (command.cdw12 + 1) * 4
    if opcode in (AdminOpcode.DIRECTIVE_RECEIVE, AdminOpcode.DIRECTIVE_SEND):
        return (command.cdw10 + 1) * 4
    return None


def check(message: Message) -> tuple[Command, bytes]:
    """The command, without addresses, and the data that it sends. LeaseError with code "invalid".

    The owner supplies the memory; a command that would transfer beyond it is refused.
    """
    if len(message.data) < COMMAND_BYTES:
        raise LeaseError(f"admin: {len(message.data)} bytes are not a command", code="invalid")
    nbytes = message.number("nbytes", 0, MAX_DATA)
    command = Command.unpack(message.data[:COMMAND_BYTES], admin=True)
    data = message.data[COMMAND_BYTES:]
    sends = command.direction is Direction.HOST_TO_CONTROLLER
    if command.direction is Direction.NONE and nbytes:
        raise LeaseError(f"admin: {command.name} transfers no data", code="invalid")
    if command.direction is Direction.BIDIRECTIONAL:
        raise LeaseError(f"admin: {command.name} transfers data in both directions", code="invalid")
    said = _dwords(command)
    if said is not None and nbytes != said:
        raise LeaseError(f"admin: {command.name} transfers {said} bytes, not {nbytes}", code="invalid")
    if (len(data) != nbytes) if sends else data:
        raise LeaseError(f"admin: {len(data)} bytes arrived with a command for {nbytes}", code="invalid")
    return attrs.evolve(command, mptr=0, prp1=0, prp2=0, fuse=0, psdt=0, data_length=nbytes), data


async def execute(
    controller: ControllerContext, policy: Policy, qids: set[int], message: Message
) -> tuple[dict[str, Any], bytes]:
    """The answer. LeaseError for commands that the policy forbids, NvmeError of the
    controller.
    """
    command, data = check(message)
    policy.check_admin(command, qids)
    try:
        if command.opcode == AdminOpcode.ABORT:
            completion = await controller._submit_admin(command, internal=True)
        else:
            completion = await controller.admin(command, data or None)
    except CommandError as error:
        status = error.status | error.crd << 11 | error.more << 13 | error.dnr << 14
        return {"status": status, "dw0": error.dw0}, b""
    return {"dw0": completion.dw0, "dw1": completion.dw1}, completion.data or b""
