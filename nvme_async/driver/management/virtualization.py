"""Virtualization Management (Base 2.1, 5.1.33 and 8.2.6): a primary controller assigns flexible
resources to its secondary controllers, and takes them online and offline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.identify import (
    Oacs,
    PrimaryControllerCapabilities,
    SecondaryController,
    decode_secondary_controllers,
)
from nvme_async.spec.opcodes import Cns, VirtualizationAction

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

_QUEUES, _VECTORS = 0, 1


def _check(controller: Controller) -> None:
    if Oacs.VIRTUALIZATION_MANAGEMENT not in controller.identify.admin_commands:
        raise ConfigurationError(f"{controller.uri}: the controller has no Virtualization Management (OACS)")


async def primary_capabilities(controller: Controller) -> PrimaryControllerCapabilities:
    """The flexible and private resources of this controller, and how many are assigned."""
    _check(controller)
    completion = await controller.admin(commands.identify(Cns.PRIMARY_CONTROLLER_CAPABILITIES))
    assert completion.data is not None
    return PrimaryControllerCapabilities.decode(completion.data)


async def secondary_controllers(controller: Controller) -> tuple[SecondaryController, ...]:
    """All of this controller, in the order of their ids, with state and resources."""
    _check(controller)
    found: list[SecondaryController] = []
    while True:
        after = found[-1].scid + 1 if found else 0
        completion = await controller.admin(commands.identify(Cns.SECONDARY_CONTROLLERS, cntid=after))
        assert completion.data is not None
        more = [one for one in decode_secondary_controllers(completion.data) if one.scid >= after]
        found += more
        if not more or found[-1].scid == 0xFFFF:
            return tuple(found)


async def _resources(
    controller: Controller, action: VirtualizationAction, cntlid: int, queues: int | None, vectors: int | None
) -> tuple[int, int]:
    _check(controller)
    modified = [0, 0]
    for kind, count in ((_QUEUES, queues), (_VECTORS, vectors)):
        if count is not None:
            command = commands.virtualization_management(action, cntlid, kind, count)
            modified[kind] = (await controller.admin(command)).dw0 & 0xFFFF
    return modified[0], modified[1]


async def assign_resources(
    controller: Controller, cntlid: int, *, queues: int | None = None, vectors: int | None = None
) -> tuple[int, int]:
    """Assigns flexible resources to an offline secondary controller: queue pairs (the admin queue
    among them) and interrupt vectors; None leaves the number as it is. Returns how many were
    assigned. CommandError if there aren't enough, or the controller is online.
    """
    return await _resources(controller, VirtualizationAction.SECONDARY_ASSIGN, cntlid, queues, vectors)


async def allocate_resources(
    controller: Controller, *, queues: int | None = None, vectors: int | None = None
) -> tuple[int, int]:
    """Allocates flexible resources to this, the primary controller; they count from its next reset
    on. Otherwise as assign_resources().
    """
    action = VirtualizationAction.PRIMARY_FLEXIBLE_ALLOCATION
    return await _resources(controller, action, controller.identify.cntlid, queues, vectors)


async def set_secondary_online(controller: Controller, cntlid: int, online: bool = True) -> None:
    """Takes a secondary controller online, which needs at least two queue pairs and a vector, or
    offline, which ends its commands and frees its flexible resources.
    """
    _check(controller)
    action = VirtualizationAction.SECONDARY_ONLINE if online else VirtualizationAction.SECONDARY_OFFLINE
    await controller.admin(commands.virtualization_management(action, cntlid))
