"""Commands of other processes on a device of this one, from `nvme-async --attach`."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import attrs

from nvme_async.errors import CommandError, ConfigurationError, QueueShutdown
from nvme_async.keepalive.controller import Controller
from nvme_async.manager.device import ManagedDevice
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.opcodes import AdminOpcode, Direction, Feature
from nvme_async.spec.registers import WITH_MSIX, Register

MOST = 512 << 10
"""Bytes that one command may transfer here: a line of the control socket holds no more."""
# The driver's own: other processes may not change queues, events and doorbells.
_FORBIDDEN = frozenset(
    {
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.ABORT,
        AdminOpcode.ASYNC_EVENT_REQUEST,
        AdminOpcode.DOORBELL_BUFFER_CONFIG,
    }
)
# Their values are addresses in this process's memory, or fixed at the bring-up.
_FORBIDDEN_FEATURES = frozenset({Feature.NUMBER_OF_QUEUES, Feature.HOST_MEMORY_BUFFER})


def _decode(request: dict[str, Any]) -> tuple[Command, bytes | None]:
    """ConfigurationError for an invalid command."""
    try:
        entry = bytes.fromhex(request["entry"])
        nbytes = request.get("nbytes", 0)
        data = request.get("data")
        payload = None if data is None else base64.b64decode(data, validate=True)
        command = Command.unpack(entry, admin=bool(request["admin"]))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ConfigurationError(
            f"a command must have entry (64 bytes, hexadecimal), admin, nbytes and data: {error}"
        ) from None
    if not isinstance(nbytes, int) or not 0 <= nbytes <= MOST:
        raise ConfigurationError(f"nbytes is {nbytes!r}, must be 0 to {MOST}")
    if command.admin and command.opcode in _FORBIDDEN:
        raise ConfigurationError(f"{command.name} is reserved for the driver")
    if command.admin and command.opcode == AdminOpcode.SET_FEATURES and command.cdw10 & 0xFF in _FORBIDDEN_FEATURES:
        raise ConfigurationError(f"{command.name} of feature {command.cdw10 & 0xFF:#04x} is reserved for the driver")
    # The driver fills in addresses.
    command = attrs.evolve(command, data_length=nbytes, mptr=0, prp1=0, prp2=0, psdt=0)
    if command.direction is Direction.HOST_TO_CONTROLLER and (payload is None or len(payload) != nbytes):
        raise ConfigurationError(
            f"{command.name} sends {nbytes} bytes, but {0 if payload is None else len(payload)} were given"
        )
    return command, payload


def _driven(device: ManagedDevice) -> Controller:
    """On the device's worker."""
    controller = device.controller
    if device.state != "ready" or controller is None:
        raise device.failure or QueueShutdown(f"{device.uri}: the device is {device.state}")
    return controller


async def read_register(device: ManagedDevice, offset: Any) -> int:
    """A register, or a property over a fabric, of a ready device by its offset. Reading has no side
    effect.
    """
    if not isinstance(offset, int) or offset not in WITH_MSIX:
        raise ConfigurationError(f"{offset!r} is no offset of a register that can be read")

    async def there() -> int:
        return await _driven(device).transport.read_property(Register(offset))

    return await device.worker.call(there)


async def describe_registers(device: ManagedDevice) -> dict[str, Any]:
    """The offsets that read_register() takes, and CAP, which every transport knows."""

    async def there() -> dict[str, Any]:
        transport = _driven(device).transport
        return {"offsets": [int(register) for register in transport.readable], "cap": transport.cap.to_int()}

    return await device.worker.call(there)


async def carry_out(device: ManagedDevice, request: dict[str, Any]) -> dict[str, Any]:
    """One command of a request; returns its completion, also if that is an error of the
    controller.
    """
    command, payload = _decode(request)

    async def there() -> Completion:
        controller = _driven(device)
        if command.admin:
            return await controller.admin(command, payload)
        if command.nsid not in controller.namespaces:
            raise ConfigurationError(f"{device.uri} has no active namespace {command.nsid}")
        return await controller.namespaces[command.nsid].submit(command, payload)

    try:
        completion = await device.worker.call(there)
    except CommandError as error:
        status = error.sct << 8 | error.sc | error.dnr << 14
        return {"status": status, "dw0": error.dw0, "dw1": 0, "data": None}
    data = None if completion.data is None else base64.b64encode(completion.data).decode()
    return {"status": 0, "dw0": completion.dw0, "dw1": completion.dw1, "data": data}
